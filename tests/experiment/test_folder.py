"""What a run folder says of where its run was made."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import torch

import clprompt
from clprompt.experiment import folder
from clprompt.strategies.ncm import NCMModel
from clprompt.testing.bench import tiny_vit

PACKAGE = Path(clprompt.__file__).parent


def git(where: Path, *arguments: str) -> str:
    command = ["git", "-C", str(where), "-c", "user.name=a", "-c", "user.email=a@b.c", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.strip()


def commit_of_a_package(repository: Path, package: str) -> Path:
    """A repository with one commit, which holds a package."""
    home = repository / package
    home.mkdir(parents=True)
    (home / "__init__.py").touch()
    git(repository, "init", "--quiet")
    git(repository, "add", ".")
    git(repository, "commit", "--quiet", "--message", "first")
    return home


@pytest.mark.skipif(
    not (PACKAGE.parent / ".git").exists(), reason="clprompt is installed outside of a checkout of its own"
)
def test_the_environment_of_a_run_from_a_checkout_names_its_commit() -> None:
    state = folder.environment(NCMModel(tiny_vit()), torch.device("cpu"))["git"]
    assert state["commit"] == git(PACKAGE, "rev-parse", "HEAD")


def test_a_change_in_the_checkout_is_told(tmp_path: Path) -> None:
    home = commit_of_a_package(tmp_path, "clprompt")
    commit = git(tmp_path, "rev-parse", "HEAD")
    assert folder.git_state(home) == {"commit": commit, "modified": False}
    (home / "__init__.py").write_text("# changed\n")
    assert folder.git_state(home) == {"commit": commit, "modified": True}


def test_somebody_elses_repository_is_no_checkout(tmp_path: Path) -> None:
    assert folder.git_state(commit_of_a_package(tmp_path, "lib/site-packages/clprompt")) is None


def test_an_ignored_folder_of_somebody_elses_repository_is_no_checkout(tmp_path: Path) -> None:
    commit_of_a_package(tmp_path, "theirs")
    (tmp_path / "clprompt").mkdir()
    (tmp_path / "clprompt" / "__init__.py").touch()
    assert folder.git_state(tmp_path / "clprompt") is None


def test_a_folder_outside_of_any_repository_is_no_checkout(tmp_path: Path) -> None:
    assert folder.git_state(tmp_path) is None
