"""A configuration may lie over another one, which it names as its base."""

from __future__ import annotations

from pathlib import Path

import pytest

from clprompt.cli.main import main
from clprompt.errors import ConfigError
from clprompt.experiment.config import load


@pytest.fixture
def based(tmp_path: Path) -> Path:
    """A configuration that lies over another one, each with the other's values in one key."""
    (tmp_path / "base.yaml").write_text(
        "data: {name: digits, test_fraction: 0.5}\nscenario: {name: split, experiences: 5}\n"
        "backbone: vit_letters\nstrategy: {name: ncm}\ntraining: {train_epochs: 5, lr: 0.2}\n"
    )
    path = tmp_path / "own.yaml"
    path.write_text(
        "base: base.yaml\nnote: once\ntags: [a, b]\ndata: {test_fraction: 0.8}\n"
        "strategy: {name: linear_probe}\ntraining: {train_epochs: 1}\n"
    )
    return path


def test_a_configuration_lies_over_its_base(based: Path) -> None:
    found = load(based, ["training.lr=0.3"])
    assert (found.data["name"], found.data["test_fraction"]) == ("digits", 0.8)
    assert found.strategy["name"] == "linear_probe"
    assert (found.training.train_epochs, found.training.lr) == (1, 0.3)
    assert (found.name, found.note, found.tags) == ("own", "once", ["a", "b"])


def test_a_base_may_be_given_beside_the_file(based: Path) -> None:
    path = based.parent / "short.yaml"
    path.write_text("training: {train_epochs: 2}\n")
    assert load(path, [f"base={based.parent / 'base.yaml'}"]).training.train_epochs == 2


def test_a_base_with_a_base_and_one_that_is_not_there_are_one_line(based: Path) -> None:
    path = based.parent / "two.yaml"
    path.write_text("base: own.yaml\n")
    with pytest.raises(ConfigError, match=r"own\.yaml has a base itself; one level"):
        load(path)
    path.write_text("base: nowhere.yaml\n")
    with pytest.raises(ConfigError, match=r"two\.yaml: base: nowhere\.yaml: there is no such file"):
        load(path)


def test_the_printed_configuration_says_its_base(based: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", str(based)]) == 0
    first, *rest = capsys.readouterr().out.splitlines()
    assert first == f"# base: {based.parent / 'base.yaml'}"
    assert not any(line.startswith("base") for line in rest)
