"""Studies as they are read: which runs, in which order and place, and what a mistake says."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from clprompt.cli.main import main
from clprompt.errors import ConfigError
from clprompt.experiment import config as configuration
from clprompt.experiment import study
from clprompt.system import overlay

BASE: dict[str, Any] = {
    "seed": [3, 1],
    "runs_dir": "out",
    "data": {"name": "digits"},
    "backbone": {"name": "vit_letters"},
    "scenario": {"name": "split", "experiences": 5},
    "training": {"train_epochs": 2, "lr": 0.1},
    "strategies": {"l2p": None, "long": {"name": "l2p", "length": 9, "training": {"lr": 0.2}}},
}


def a_study(**changes: Any) -> study.Study:
    return study.from_dict(BASE | changes, name="tiny")


def test_all_strategies_have_their_first_seed_before_any_has_its_second() -> None:
    found = a_study()
    assert [(run.label, run.seed) for run in found.runs] == [("l2p", 3), ("long", 3), ("l2p", 1), ("long", 1)]


def test_a_runs_place_is_made_of_study_label_and_seed() -> None:
    found = a_study(strategies={"long & wide": {"name": "l2p"}})
    assert [run.folder for run in found.runs] == [
        Path("out/tiny/long---wide/seed3"),
        Path("out/tiny/long---wide/seed1"),
    ]


def test_several_scenarios_stand_between_study_and_label() -> None:
    streams = {"two": {"name": "split", "experiences": 2}, "split": None}
    found = a_study(scenario=None, scenarios=streams, seed=0)
    assert [(run.scenario, run.label) for run in found.runs] == [
        *(("two", "l2p"), ("split", "l2p"), ("two", "long"), ("split", "long")),
    ]
    assert found.runs[0].folder == Path("out/tiny/two/l2p/seed0")
    assert found.runs[0].config.scenario["experiences"] == 2
    assert found.runs[1].config.scenario["name"] == "split"


def test_a_scenario_may_have_online_of_its_own() -> None:
    blurry = {"name": "si_blurry", "online": {"iterations": 2}}
    streams = {"split": None, "blurry": blurry}
    found = a_study(scenario=None, scenarios=streams, seed=0, strategies={"mvp": None})
    assert [run.config.online and run.config.online.iterations for run in found.runs] == [None, 2]
    assert found.notes == ()
    shared: Any = {"scenario": None, "scenarios": {"split": None, "blurry": "si_blurry"}, "online": {}}
    found = a_study(**shared, strategies={"mvp": None})
    assert found.notes == (
        "online counts for the scenarios split, blurry: all of them are trained online; one that is not says "
        "so: scenarios.split.online=null",
    )


def test_a_label_is_the_strategys_name_unless_it_has_one() -> None:
    first, second = (run.config for run in a_study().runs[:2])
    assert (first.label, second.label, first.name) == ("l2p", "long", "tiny")


def test_a_labels_settings_are_its_own() -> None:
    first, second = (run.config for run in a_study().runs[:2])
    assert first.strategy["name"] == second.strategy["name"] == "l2p"
    assert (first.strategy["length"], second.strategy["length"]) == (5, 9)
    assert (first.training.lr, second.training.lr) == (0.1, 0.2)
    assert first.training.train_epochs == second.training.train_epochs == 2


def test_a_sweep_multiplies_runs_and_their_labels_hold_its_values() -> None:
    strategies = {"l2p": {"sweep": {"training.lr": [0.5], "strategy.length": [1, 2]}}, "ncm": {"sweep": None}}
    found = a_study(strategies=strategies | {"linear_probe": None}, sweep={"training.lr": [1, 0.001]}, seed=0)
    assert [run.label for run in found.runs] == [
        *("l2p lr=0.5 length=1", "l2p lr=0.5 length=2", "ncm", "linear_probe lr=1", "linear_probe lr=0.001"),
    ]
    assert [run.base for run in found.runs[:2]] == ["l2p", "l2p"]
    assert [run.config.training.lr for run in found.runs] == [0.5, 0.5, 0.1, 1.0, 0.001]
    assert [run.config.strategy["length"] for run in found.runs[:2]] == [1, 2]


def test_tuned_values_go_to_whoever_names_their_label(
    tmp_path: Path,
) -> None:
    file = tmp_path / "best.yaml"
    file.write_text(
        yaml.safe_dump({"strategies": {"l2p": {"training.lr": 0.7, "strategy.length": 3}}, "study": "s"})
    )
    strategies = {
        "l2p": None,
        "wide": {"name": "l2p", "pool_size": 20, "tuned": "l2p"},
        "other": {"name": "l2p"},
        "swept": {"name": "l2p", "tuned": "l2p", "sweep": {"training.lr": [0.9]}},
    }
    found = a_study(strategies=strategies, tuned=str(file), seed=0)
    got = [(run.base, run.config.training.lr, run.config.strategy["length"]) for run in found.runs]
    assert got == [("l2p", 0.7, 3), ("wide", 0.7, 3), ("other", 0.1, 5), ("swept", 0.9, 3)]
    assert found.notes == (f"not in {file}, so with the study's own values: other",)


def test_overrides_reach_sections_labels_and_bare_names(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(
        yaml.safe_dump(
            BASE | {"strategies": {"short": "l2p", "ncm": None}, "data": "digits"}, sort_keys=False
        )
    )
    found = study.load(
        file,
        ["strategies.short.training.lr=0.4", "strategies.short.length=2", "seed=7", "data.test_fraction=0.5"],
    )
    assert found.name == "mine"
    run = found.runs[0]
    assert (run.seed, run.config.training.lr, run.config.strategy["length"]) == (7, 0.4, 2)
    assert run.config.data["test_fraction"] == 0.5


def test_runs_are_chosen_by_label() -> None:
    whole = a_study(sweep={"training.lr": [1, 2]})
    assert [run.label for run in study.chosen_runs(whole, ["long"], [], [1]).runs] == [
        "long lr=1",
        "long lr=2",
    ]
    assert [str(run) for run in study.chosen_runs(whole, ["l2p lr=2"], [], [3]).runs] == ["l2p lr=2, seed 3"]


def test_a_choice_of_no_run_is_one_line() -> None:
    whole = a_study(sweep={"training.lr": [1, 2]})
    with pytest.raises(ConfigError, match=r'--only lnog: .*did you mean "long"\?'):
        study.chosen_runs(whole, ["lnog"], [], [])
    with pytest.raises(ConfigError, match="--seed 9: the study has no such run; known: 3, 1"):
        study.chosen_runs(whole, [], [], [9])
    with pytest.raises(ConfigError, match="--scenario x: the study has no such run; known: none"):
        study.chosen_runs(whole, [], ["x"], [])


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"strategy": "l2p"}, r'unknown key "strategy"; did you mean "strategies"\?'),
        (
            {"strategies": {"l2p": {"lenght": 3}}},
            r'strategies\.l2p: .*"strategies\.l2p\.lenght"; did you mean',
        ),
        ({"strategies": {"l2q": None}}, r'strategies\.l2q: strategy\.name: unknown strategy "l2q"'),
        (
            {"strategies": {"l2p": {"training": {"lr": -1}}}},
            r"strategies\.l2p: training\.lr must be above 0, got -1",
        ),
        ({"strategies": {}}, "strategies must map labels to sections, such as"),
        ({"strategies": {"l2p": 3}}, r"strategies\.l2p must be a mapping, got 3"),
        ({"strategies": {"-": "l2p"}}, "a label must hold a letter or a digit"),
        ({"strategies": {"a b": "l2p", "a-b": "ncm"}}, '"a b" and "a-b" would share the folder'),
        (
            {"scenario": None, "scenarios": {"two": {"name": "split", "experience": 2}}},
            r'^unknown key "scenarios\.two\.experience"; did you mean',
        ),
        ({"base": "mine.yaml"}, "base lays a configuration over another one, and a study has none"),
        ({"scenarios": {"split": None}}, "give scenario .* or scenarios .*, not both"),
        ({"scenario": None}, "^scenario is missing"),
        ({"scenario": {"name": "split", "online": None}}, r'^unknown key "scenario\.online"'),
        ({"sweep": {"training.lr": []}}, r"sweep\.training\.lr must be a list of different values"),
        ({"sweep": {"training.lr": [1, 1]}}, r"sweep\.training\.lr must be a list of different values"),
        (
            {"sweep": {"data.path": ["a"]}},
            r'a key must begin with "training\." or "strategy\.", got "data\.path"',
        ),
        ({"sweep": {"training.rate": [1]}}, r'unknown key "training\.rate"'),
        ({"metric": "forgetting"}, "metric must be one of"),
        ({"metrics": ["forgeting"]}, 'no metric is called "forgeting"; did you mean "forgetting"'),
        ({"tuned": "nowhere.yaml"}, "nowhere.yaml: there is no such file"),
    ],
)
def test_a_mistake_is_one_line(changes: dict[str, Any], line: str) -> None:
    with pytest.raises(ConfigError, match=line):
        a_study(**changes)


def test_a_study_in_place_of_a_configuration_is_called_one(tmp_path: Path) -> None:
    path = tmp_path / "compare.yaml"
    path.write_text(yaml.safe_dump(BASE))
    with pytest.raises(ConfigError, match=r"compare\.yaml is a study, not a configuration: clprompt study "):
        configuration.load(path)


PACKAGED = [name for name, _ in overlay.names("study") if not name.startswith("published-")]


@pytest.mark.parametrize("name", PACKAGED)
def test_every_packaged_study_is_complete_but_for_its_data_and_weights(name: str, tmp_path: Path) -> None:
    for given in _given(name)[:1]:
        where = given.partition("=")[0]
        with pytest.raises(ConfigError, match=rf"{where} has no value in .*; set it with {where}=\.\.\."):
            study.load(name, ["backbone.checkpoint=w.safetensors"])
    labels = {run.base for run in study.load(name.removeprefix("tune-"), _given(name)).runs}
    best = tmp_path / "best.yaml"
    best.write_text(yaml.safe_dump({"strategies": {label: {"training.lr": 0.5} for label in labels}}))
    found = study.load(name, [*_given(name), f"tuned={best}", "sweep=null"])
    assert found.notes == ()  # what is tuned is a label of the study that takes it
    taken = [run for run in found.runs if "training.lr" not in run.values]  # others have a grid of their own
    assert taken
    assert all(run.config.training.lr == 0.5 for run in taken)


def _given(name: str) -> list[str]:
    """What a packaged study needs to be told."""
    if name.endswith("-digits"):
        return []
    where = "data.source.path" if "multilabel" in name else "data.path"
    return [f"{where}=f.npz", "backbone.checkpoint=w.safetensors"]


def test_every_swept_strategy_has_the_same_rates_and_is_in_its_study() -> None:
    for name in (name for name in PACKAGED if name.startswith("tune-")):
        tuning = study.load(name, _given(name))
        values = {
            base: sorted({rate for run in tuning.runs if run.base == base for rate in run.values.values()})
            for base in {run.base for run in tuning.runs}
        }
        first = next(iter(values.values()))
        assert len(first) == {"tune-siblurry-digits": 4, "tune-siblurry": 3}.get(name, 6)
        assert all(own == first for own in values.values()), "not the same rates for every method"
        strategies = {run.base: run.config.strategy for run in study.load(name[5:], _given(name)).runs}
        for run in tuning.runs:
            swept = {key.removeprefix("strategy.") for key in run.values}
            own = {key: value for key, value in run.config.strategy.items() if key not in swept}
            assert own == {key: value for key, value in strategies[run.base].items() if key not in swept}


def test_studies_are_listed_with_their_first_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "studies"]) == 0
    assert re.search(r"^split +\w", capsys.readouterr().out, re.MULTILINE)


def test_an_unknown_study_is_told_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["study", "splt"]) == 2
    assert 'no study is called "splt"; did you mean "split"?' in capsys.readouterr().err


def test_a_command_line_of_a_run_names_it_alone() -> None:
    (run,) = a_study(strategies={"my way": "l2p"}, seed=0, sweep={"training.lr": [0.5]}).runs
    line = study.command_of(run, "a b.yaml", ["data.path=x y"])
    assert shlex.split(line) == [
        *("clprompt", "study", "a b.yaml", "data.path=x y", "--only", "my way lr=0.5", "--seed", "0"),
    ]
