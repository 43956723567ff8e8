"""What is printed: aligned columns, means over seeds, one label per run."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from clprompt import registry
from clprompt.cli import listing, results
from clprompt.errors import ConfigError
from clprompt.experiment import run as experiment
from clprompt.reporting import tables

Summary = dict[str, Any]


def result(
    name: str, seed: int, accuracy: float, folder: str, trained: float | None = None
) -> experiment.Result:
    """What an experiment returns for a run of two experiences, and of its trained head."""
    records: list[dict[str, Any]] = [
        {"kind": "evaluation", "when": "experience", "experience": 0, "accuracy": 1.0, "groups": [1.0, None]},
        {"kind": "evaluation", "when": "experience", "experience": 1, "accuracy": 0.5, "groups": [0.5, 0.5]},
    ]
    summary: Summary = {
        "average_accuracy": accuracy,
        "average_incremental_accuracy": 0.75,
        "forgetting": 0.5,
        "backward_transfer": -0.5,
        "last_accuracy": 0.5,
    }
    if trained is not None:
        for record, groups in zip(records, ([trained, None], [trained, trained]), strict=True):
            record["trained_head"] = {"accuracy": trained, "groups": groups, "per_class": []}
    return experiment.Result(Path(folder), name, seed, records, summary, [[0], [1]])


def test_a_tracker_is_listed_and_says_what_it_needs() -> None:
    assert [
        line.split()[0] for line in listing.listing("trackers") if line[0] != " "
    ] == registry.sinks.names()
    lines = listing.about("wandb")
    assert lines[0] == "wandb (tracker)"
    assert "Needs the package wandb: pip install 'clprompt[wandb]'" in lines


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ([0.5], "50.0"),
        ([0.5, 0.7], "60.0 ± 10.0"),
        ([0.1, 0.2, 0.3], "20.0 ± 5.8"),
        ([0.5, None, float("nan")], "50.0"),
        ([], "-"),
        ([None], "-"),
    ],
)
def test_a_mean_comes_with_its_standard_error_in_percent(values: list[float | None], text: str) -> None:
    assert tables.mean_and_error(values) == text


def test_columns_are_aligned_without_trailing_blanks() -> None:
    assert tables.columns([("a", "b"), ("long", "c")]) == ["a     b", "long  c"]
    assert tables.columns([]) == []


def test_words_wrap_in_their_column_and_numbers_never() -> None:
    rows = [("name", "what it is", "percent"), ("a name of words", "b " * 12, "63.7 ± 1.5")]
    assert tables.columns(rows, 40) == [
        "name           what it is        percent",
        "a name of      b b b b b b b  63.7 ± 1.5",
        "words          b b b b b",
    ]


def test_a_table_that_is_wider_all_the_same_goes_on_below() -> None:
    rows = [("name", "one", "two", "three"), ("a", "1.0 ± 0.5", "-2.0 .. +3.5", "1,234")]
    assert tables.columns(rows, 24) == [
        "name        one",
        "a     1.0 ± 0.5",
        "",
        "name           two",
        "a     -2.0 .. +3.5",
        "",
        "name  three",
        "a     1,234",
    ]


@pytest.fixture
def charted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Makes run folders that TensorBoard shows."""
    monkeypatch.chdir(tmp_path)

    def make(folder: str) -> str:
        Path(folder).mkdir(parents=True)
        Path(folder, "events.out.tfevents.1.host.1.0").touch()
        return folder

    return make


def test_one_seed_needs_no_seed_in_its_label_and_no_mean() -> None:
    text = results.results([result("alpha", 0, 0.5, "runs/x/a"), result("beta", 0, 0.6, "runs/x/b")])
    assert "seed" not in text
    assert "±" not in text
    assert text.splitlines()[-3:] == ["", "alpha  runs/x/a", "beta   runs/x/b"]


def test_the_classes_of_each_group_stand_below_the_matrix_where_they_have_names() -> None:
    run = result("a", 0, 0.5, "runs/x/a")
    named = dataclasses.replace(run, class_names=["cat", "hammer"])
    assert "class groups: 1 cat; 2 hammer" in results.results([named]).splitlines()
    numbered = dataclasses.replace(run, class_names=["0", "1"])
    assert "class groups" not in results.results([numbered])


def test_a_result_shows_its_figures_and_not_its_records() -> None:
    shown = repr(experiment.Results([result("alpha", 0, 0.5, "runs/x/a")]))
    assert "'average_accuracy': 0.5" in shown
    assert "evaluation" not in shown


def test_several_seeds_are_summed_up_by_strategy() -> None:
    runs = [result(name, seed, 0.5 + 0.2 * seed, f"runs/x/{name}{seed}") for seed in (0, 1) for name in "ab"]
    lines = results.results(runs).splitlines()
    (mean,) = [line.split() for line in lines if line.startswith("a ") and "±" in line]
    assert mean == ["a", "2", "60.0", "±", "10.0", "75.0", "±", "0.0", "50.0", "±", "0.0"]
    assert "b, seed 1  runs/x/b1" in lines


def test_the_trained_heads_of_several_seeds_are_summed_up_apart() -> None:
    runs = [result("a", seed, 0.9, f"runs/x/{seed}", trained=0.2 + 0.2 * seed) for seed in (0, 1)]
    lines = results.results(runs).splitlines()
    assert "trained head: average accuracy 40.0 %, forgetting 0.0 points" in lines
    (mean,) = [line.split() for line in lines if line.startswith("a (trained head)")]
    assert mean == [*("a", "(trained", "head)", "2"), *("30.0", "±", "10.0") * 2, "0.0", "±", "0.0"]


def test_a_strategy_that_is_compared_with_itself_has_two_labels() -> None:
    runs = [result("alpha", seed, 0.5, f"runs/x/{seed}{which}") for seed in (0, 1) for which in "pq"]
    lines = results.results(runs).splitlines()
    assert "alpha (2), seed 1  runs/x/1q" in lines
    assert sum("±" in line and line.startswith("alpha") for line in lines) == 2


def test_runs_in_several_folders_have_a_tensorboard_line_each(charted: Callable[[str], str]) -> None:
    runs = [
        result(name, 0, 0.5, charted(folder)) for name, folder in (("a", "runs/x/1"), ("b", "runs/y z/1"))
    ]
    lines = results.results([*runs, result("c", 0, 0.5, "runs/without/1")]).splitlines()
    assert lines[-2:] == ["tensorboard --logdir runs/x", "tensorboard --logdir 'runs/y z'"]


# ------------------------------------------------------------------------------------------------ backbones


def test_the_list_of_strategies_says_which_need_a_text_tower() -> None:
    lines = listing.listing("strategies")
    begun = [line.split()[0] if line[0] != " " else "" for line in lines]
    told = {name: "" for name in begun if name}
    name = ""
    for first, line in zip(begun, lines, strict=True):
        name = first or name
        told[name] += " " + " ".join(line.split())
    needing = {name for name, text in told.items() if "needs a text tower" in text}
    assert {"coop", "maple", "zero_shot"} <= needing
    assert "ncm" not in needing


@pytest.mark.parametrize("kind", ["strategies", "scenarios", "datasets", "configs", "studies"])
def test_a_list_fits_eighty_columns(kind: str) -> None:
    assert max(map(len, listing.listing(kind))) <= 80


def test_the_list_of_strategies_says_of_boundaries_what_instances_answer() -> None:
    entries = [registry.strategies.get(name) for name in registry.strategies.names()]
    ours = [entry for entry in entries if entry.module.startswith("clprompt.strategies.")]
    told = {entry.name: entry.info.get("boundaries") for entry in ours}
    assert told == {entry.name: listing.asked_boundaries(entry.target) for entry in ours}


def test_the_list_of_backbones_begins_with_the_embedded_ones() -> None:
    image_text, images, from_file = listing.listing("backbones")[:3]
    assert re.match(r"clip_letters +embedded; vit_letters with a text tower: ", image_text)
    assert re.match(r"vit_letters +embedded; 169,728 parameters, 16x16 images", images)
    assert re.match(r"clip +CLIP and SigLIP from a file: ", from_file)


def test_the_list_of_backbones_says_how_many_there_are() -> None:
    lines = listing.listing("backbones")
    at = next(number for number, line in enumerate(lines) if line.startswith("and "))
    count, names = lines[at], lines[at + 1 :]
    assert count.startswith(f"and {len(names)} of timm with pretrained weights")
    assert {"vit_base_patch16_224.augreg_in21k", "deit_small_patch16_224.fb_in1k"} <= {*names}
    assert listing.listing("backbones", short=True)[-1].endswith(": clprompt list backbones")


def test_timm_models_that_are_not_listed_are_those_that_a_frozen_vit_refuses() -> None:
    import timm
    import torch

    from clprompt.backbones.vit import FrozenViT
    from clprompt.errors import BackboneError

    listed = {name.split(".")[0] for name in listing.timm_backbones()}
    small = dict(pretrained=False, num_classes=0, depth=1)
    for module in ("vision_transformer", "deit"):
        names = {name.split(".")[0] for name in timm.list_models(module=module, pretrained=True)}
        # one of each size and family is enough, and all that are left out
        for name in {*sorted(names)[::8], *(names - listed)}:
            with torch.device("meta"):
                vit = timm.create_model(name, **small)
            if name in listed:
                FrozenViT(vit)
            else:
                with pytest.raises(BackboneError):
                    FrozenViT(vit)


# ------------------------------------------------------------------------------------------------ arguments


def test_every_argument_of_everything_that_has_a_name_is_said_in_a_sentence() -> None:
    untold = [
        f"{section.name}.{argument.name}"
        for section in listing.sections()
        for argument in section.arguments()
        if not argument.sentence.rstrip(".")
    ]
    assert not untold, f"say under Args what these are: {', '.join(untold)}"


def test_a_strategy_is_listed_with_each_argument_its_type_default_and_sentence() -> None:
    lines = listing.about("dualprompt")
    assert "Paper: Wang et al., ECCV 2022, arXiv 2204.04799" in lines
    at = lines.index("  e_length: int (at least 1); default 20")
    assert lines[at + 1] == "      length of the expert prompts."
    assert '  form: one of "prefix", "projected", "fresh"; default "prefix"' in lines
    assert any(line.startswith("batchwise_prompt is no argument: ") for line in lines)
    assert not any(line.startswith("  seed:") for line in lines)  # a run gives it


def test_a_data_set_is_listed_with_the_arguments_that_all_have() -> None:
    lines = listing.about("fashion-mnist")
    assert any(line.startswith("  train_per_class: int (at least 1) or null; default null") for line in lines)
    assert any(line.startswith("  augment: one of ") for line in lines)


def test_settings_are_listed_with_the_words_behind_their_fields() -> None:
    lines = listing.about("training")
    at = lines.index("  lr: float (above 0); default 0.005")
    assert lines[at + 1] == "      learning rate"


def test_a_list_of_arguments_fits_eighty_columns() -> None:
    for section in listing.sections():
        for line in listing.about(section.name):
            assert len(line) <= 80 or " " not in line.strip(), line


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("dualpromt", 'nothing is called "dualpromt"; did you mean "dualprompt"?'),
        ("quickstart", "clprompt config quickstart prints it"),
    ],
)
def test_a_name_that_is_none_is_answered_in_one_line(name: str, answer: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(answer)):
        listing.about(name)
