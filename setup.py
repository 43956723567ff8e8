"""Which folders become which packages, by rule; everything else stands in pyproject.toml."""

from setuptools import find_packages, setup

#: Folders that users edit: at the top of the repository, and installed inside the package.
TOP = ("configs", "scenarios", "strategies")

setup(
    packages=find_packages(include=["clprompt", "clprompt.*"])
    + [f"clprompt.{name}" for folder in TOP for name in find_packages(include=[folder, f"{folder}.*"])],
    package_dir={"clprompt": "clprompt", **{f"clprompt.{folder}": folder for folder in TOP}},
)
