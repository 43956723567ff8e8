"""What follows from the tree, packages and the long description; everything else stands in pyproject.toml."""

import re
from pathlib import Path

from setuptools import find_packages, setup

#: Folders that users edit: at the top of the repository, and installed inside the package.
TOP = ("configs", "scenarios", "strategies")
HOME = "https://github.com/clprompt/clprompt/blob/main/"

readme = Path(__file__).with_name("README.md").read_text(encoding="utf-8")

setup(
    packages=find_packages(include=["clprompt", "clprompt.*"])
    + [f"clprompt.{name}" for folder in TOP for name in find_packages(include=[folder, f"{folder}.*"])],
    package_dir={"clprompt": "clprompt", **{f"clprompt.{folder}": folder for folder in TOP}},
    # a package index knows no files beside the page: links lead to the repository
    long_description=re.sub(r"\]\((?![a-z]+:|#)", f"]({HOME}", readme),
    long_description_content_type="text/markdown",
)
