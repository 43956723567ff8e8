"""Studies of whole configurations, and the literature's numbers beside their results."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from warm_process import WarmProcess

from clprompt.cli.main import main
from clprompt.errors import ConfigError
from clprompt.experiment import config, launch, study, study_runs
from clprompt.reporting import reported
from clprompt.system import overlay

TINY: dict[str, Any] = {"name": "vit_tiny_patch16_224", "embed_dim": 16, "depth": 2, "num_heads": 2}
RECIPE: dict[str, Any] = {
    "seed": [0, 1],
    "data": {"name": "digits", "test_fraction": 0.9},
    "scenario": {"name": "split", "experiences": 2},
    "backbone": TINY | {"img_size": 32},
    "strategy": {"name": "linear_probe"},
    "compare": [{"name": "ncm", "training": {"train_mb_size": 16}}],
    "training": {"lr": 0.01, "workers": 1},
}
NUMBERS: dict[str, Any] = {
    "title": "Ten tasks",
    "metrics": ["average_accuracy"],
    "streams": {"digits": "Digits", "letters": "Letters"},
    "sources": {"A": "a paper"},
    "rows": [
        {"method": "Probe", "label": "probe", "digits": "81.5 [A]", "letters": "70.1 [A]"},
        {"method": "NCM", "label": "ncm", "digits": "40.1 [A]"},
        {"method": "Another", "letters": "99.0 [A]"},
    ],
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with a recipe and numbers of the literature in it."""
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    (tmp_path / "numbers.yaml").write_text(yaml.safe_dump(NUMBERS))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def a_study(section: dict[str, Any] | None = None, **shared: Any) -> study.Study:
    stream = {"configurations": {"probe": "recipe.yaml"}} | (section or {})
    return study.from_dict({"experiments": {"digits": stream}} | shared, name="tiny")


@pytest.mark.usefixtures("folder")
def test_each_configuration_brings_its_own_recipe_and_what_it_compares_with() -> None:
    found = a_study()
    assert [(run.scenario, run.label, run.seed) for run in found.runs] == [
        *(("digits", "probe", 0), ("digits", "ncm", 0), ("digits", "probe", 1), ("digits", "ncm", 1)),
    ]
    assert [run.config.training.train_mb_size for run in found.runs[:2]] == [32, 16]
    assert found.runs[0].config.data == config.load("recipe.yaml").data
    assert found.runs[1].folder == Path("runs/tiny/digits/ncm/seed0")


@pytest.mark.usefixtures("folder")
def test_a_section_without_a_name_adds_its_keys_and_one_with_a_name_replaces() -> None:
    stream = {"training": {"train_epochs": 3}, "data": "letters"}
    run, *_ = a_study(stream, training={"lr": 0.5}, backbone={"depth": 1}, seed=7).runs
    assert (run.config.training.lr, run.config.training.train_epochs, run.config.training.workers) == (
        0.5,
        3,
        1,
    )
    assert (run.config.data["name"], run.config.backbone["depth"], run.seed) == ("letters", 1, 7)
    assert run.config.backbone["img_size"] == 32


@pytest.mark.usefixtures("folder")
def test_what_was_laid_over_a_recipe_and_changes_numbers_is_known() -> None:
    run, *_ = a_study({"compare": []}, training={"lr": 0.5, "workers": 0}, seed=3, device="cpu").runs
    assert run.changes == ("training.lr=0.5",)


def test_what_a_recipe_leaves_to_its_user_is_no_change(folder: Path) -> None:
    (folder / "recipe.yaml").write_text(yaml.safe_dump(RECIPE | {"training": {"lr": "???"}}))
    assert a_study(training={"lr": 0.5}).runs[0].changes == ()


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"sweep": {"training.lr": [1]}}, r"give experiments \(whole configurations\) or sweep, not both"),
        ({"experiments": {"digits": {}}}, r"experiments\.digits\.configurations must map labels to sections"),
        ({"experiments": {}}, "experiments must map labels to sections, such as experiments: {cifar100"),
        (
            {"experiments": {"digits": {"configurations": {"probe": "recipe.yaml"}, "strategy": "ncm"}}},
            r'unknown key "experiments\.digits\.strategy"',
        ),
        (
            {"experiments": {"d": {"configurations": {"q": "quickstrat"}}}},
            r'experiments\.d\.configurations\.q: no configuration is called .* did you mean "quickstart"',
        ),
        (
            {"experiments": {"d": {"configurations": {"q": "no.yaml"}}}},
            r"\.q: no\.yaml: there is no such file",
        ),
        ({"experiments": {"d": {"configurations": "quickstart"}}}, r"d\.configurations must map labels"),
        ({"experiments": {"d": 3}}, r"experiments\.d must be a mapping, got 3"),
        ({"experiments": {"-": {}}}, "a label must hold a letter or a digit"),
        ({"data": 3}, r"experiments\.digits\.configurations\.probe: data must be a name or a mapping"),
        ({"training": [1]}, r"\.probe: training must be a mapping"),
        ({"seed": [0, 0]}, r"\.probe: seed names a seed twice"),
        ({"experiments": {"d": {"configurations": {"q": 3}}}}, r"experiments\.d\.configurations\.q must be"),
        ({"training": {"lr": -1}}, r"experiments\.digits\.configurations\.probe: training\.lr must be above"),
        ({"reported": "nothing"}, 'no table of the literature is called "nothing"; known: '),
        ({"reported": 3}, "reported must be str or null, got 3"),
    ],
)
@pytest.mark.usefixtures("folder")
def test_a_mistake_is_one_line(changes: dict[str, Any], line: str) -> None:
    with pytest.raises(ConfigError, match=line) as raised:
        a_study(**changes)
    assert "\n" not in str(raised.value)


def test_two_recipes_of_one_label_are_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match='"ncm" and "ncm" would share the folder'):
        a_study({"configurations": {"probe": "recipe.yaml", "ncm": "recipe.yaml"}})


# ------------------------------------------------------------------------------------------ the literature


def test_a_number_that_was_not_run_is_an_empty_cell(folder: Path) -> None:
    assert reported.read("./numbers.yaml").table({("digits", "probe"): "80.0"}) == [
        ["method", "Digits", "clprompt", "Letters", "clprompt"],
        ["Probe", "81.5 [A]", "80.0", "70.1 [A]", ""],
        ["NCM", "40.1 [A]", "", "-", ""],
        ["Another", "-", "-", "99.0 [A]", "-"],
    ]


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"metrics": 3}, "metrics must be"),
        ({"rows": [{"method": "A", "cifar": "1 [A]"}]}, r'unknown key "rows\.0\.cifar"'),
        ({"rows": [{"digits": "1 [A]"}]}, r"rows\.0\.method is missing"),
        ({"rows": [{"method": "A", "digits": "1"}]}, r'rows\.0\.digits: "1" names no source'),
        ({"rows": [{"method": "A", "digits": "1 [B]"}]}, r'rows\.0\.digits: "1 \[B\]" names no source'),
    ],
)
def test_a_mistake_in_the_numbers_is_one_line(folder: Path, changes: dict[str, Any], line: str) -> None:
    (folder / "numbers.yaml").write_text(yaml.safe_dump(NUMBERS | changes))
    with pytest.raises(ConfigError, match=rf"numbers\.yaml: {line}"):
        reported.read("./numbers.yaml")


@pytest.mark.usefixtures("same_picture")
def test_results_stand_beside_the_literatures(folder: Path, warm_process: WarmProcess) -> None:
    stream = {"configurations": {"probe": "recipe.yaml"}, "data": {"test_fraction": 0.95}, "compare": []}
    values = {"experiments": {"digits": stream}, "reported": "./numbers.yaml", "training": {"workers": 0}}
    (folder / "tiny.yaml").write_text(yaml.safe_dump(values | {"seed": 0}))
    found = study.load("tiny.yaml")
    with warm_process.as_python():
        assert study_runs.execute(found.runs, launch.launcher("local", 1), [], print) == {}
    finished = study_runs.survey(found).finished
    text, path = study_runs.write_reported(found, finished)
    accuracy = f"{100 * study_runs.results_of(finished[0].folder)['average_accuracy']:.1f}"
    assert f"| Probe | 81.5 [A] | {accuracy} * | 70.1 [A] |  |" in path.read_text()
    assert "* probe on digits: not the packaged recipe, but data.test_fraction=0.95" in path.read_text()
    assert text.startswith("Ten tasks\nmethod")


@pytest.mark.parametrize("name", [name for name, _ in overlay.names("reported")])
def test_every_packaged_number_has_a_source(name: str) -> None:
    held = reported.read(name)
    used = {letter for row in held.rows for cell in row.values() for letter in re.findall(r"\[(\w+)\]", cell)}
    assert used == set(held.sources)


PUBLISHED = [name for name, _ in overlay.names("study") if name.startswith("published-")]


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_study_of_published_runs_fills_every_cell_that_is_empty(name: str) -> None:
    found = study.load(name)
    held = reported.read(found.reported)
    empty = {(stream, row["label"]) for row in held.rows if "label" in row for stream in held.streams}
    runs = {(run.scenario, run.label) for run in found.runs}
    assert empty == {(stream, label) for stream, label in runs if stream in held.streams}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_study_of_published_runs_changes_no_recipe(name: str) -> None:
    assert {run.changes for run in study.load(name).runs} == {()}


def test_the_commands_of_a_study_of_published_runs_name_stream_and_method(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["study", "published-split", "--dry-run", "--only", "coda_prompt"]) == 0
    assert [shlex.split(line)[2:] for line in capsys.readouterr().out.splitlines()] == [
        ["published-split", "--only", "coda_prompt", "--scenario", stream, "--seed", "0"]
        for stream in ("cifar100", "imagenet-r")
    ]
