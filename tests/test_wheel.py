"""What is installed is what lies in the tree: no package and no file is forgotten."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("build")
pytest.importorskip("setuptools", minversion="77")

ROOT = Path(__file__).parent.parent
#: Folders of the tree, by where they are installed.
HOMES = {"clprompt": "clprompt", **{f"clprompt/{top}": top for top in ("configs", "scenarios", "strategies")}}

pytestmark = pytest.mark.skipif(
    not (ROOT / "pyproject.toml").is_file(), reason="builds the source tree; clprompt is installed without it"
)


def tree() -> Iterator[str]:
    """Every file of the tree, by the path where it is to be installed."""
    for home, top in HOMES.items():
        for path in (ROOT / top).rglob("*"):
            parts = path.relative_to(ROOT / top).parts
            if path.is_file() and not any(part.startswith(".") or part == "__pycache__" for part in parts):
                yield "/".join([home, *parts])


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[zipfile.ZipFile]:
    """A wheel of this tree, built from a copy, without network."""
    copy, out = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("wheel")
    unwanted = shutil.ignore_patterns("__pycache__", ".*")
    for top in HOMES.values():
        shutil.copytree(ROOT / top, copy / top, ignore=unwanted)
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy / name)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(copy)]
    made = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert made.returncode == 0, made.stdout + made.stderr
    (file,) = out.glob("*.whl")
    with zipfile.ZipFile(file) as archive:
        yield archive


@pytest.fixture(scope="module")
def wheel(archive: zipfile.ZipFile) -> list[str]:
    """The files of the wheel; its metadata left out."""
    return [name for name in archive.namelist() if ".dist-info/" not in name]


def test_the_wheel_holds_every_module_of_the_tree_and_no_other(wheel: list[str]) -> None:
    assert sorted(n for n in wheel if n.endswith(".py")) == sorted(n for n in tree() if n.endswith(".py"))


def test_the_wheel_holds_every_data_file_of_the_tree_and_no_other(wheel: list[str]) -> None:
    files = sorted(name for name in wheel if not name.endswith(".py"))
    assert files == sorted(name for name in tree() if not name.endswith(".py"))
    assert {
        "clprompt/py.typed",
        "clprompt/assets/vit_letters.json",
        "clprompt/configs/quickstart.yaml",
    } <= set(files)


def test_links_of_the_long_description_lead_out_of_the_package_index(archive: zipfile.ZipFile) -> None:
    (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
    links = re.findall(r"\]\(([^)]+)\)", archive.read(name).decode())
    assert any(link.endswith("/docs/own-data.md") for link in links)
    assert not [link for link in links if not link.startswith(("https://", "#"))]
