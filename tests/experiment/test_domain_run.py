"""Runs by domain and of few shots, from the configuration to the files, with every strategy that can."""

import csv
import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_methods import SMALL, image_methods
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import clprompt
from clprompt import registry
from clprompt.cli import results as results_
from clprompt.data import DataBundle, ImageArray, ImageSource
from clprompt.data.dataset import datasets_for
from clprompt.data.plan import make_plan
from clprompt.errors import ClpromptError, ConfigError, Interrupted
from clprompt.experiment import run as experiment
from clprompt.metrics import accuracy, text
from clprompt.reporting import report
from clprompt.scenarios.domain import plan
from clprompt.testing.bench import tiny_vit
from clprompt.training.evaluation import evaluator_for
from clprompt.training.fit import fit
from clprompt.training.settings import Online, Training

pytestmark = pytest.mark.usefixtures("same_picture")
NAMES = ["$x$, y", "clip/art", "photo"]
TEXTUAL = [name for name in registry.strategies.names() if name not in image_methods()]


def arrays(count: int = 108, part: str = "train") -> dict[str, np.ndarray]:
    """A pattern for each of three classes, lit otherwise in each of three domains."""
    draw = np.random.default_rng(0)
    patterns, lights = draw.integers(0, 160, (3, 8, 8)), draw.integers(0, 60, (3, 8, 8))
    labels, domains = np.arange(count) % 3, np.arange(count) // 3 % 3
    noise = np.random.default_rng(part == "test").integers(0, 30, (count, 8, 8))
    images = (patterns[labels] + lights[domains] + noise).astype(np.uint8)
    return {"images": images, "labels": labels, "domains": np.array(NAMES)[domains]}


def settings(folder: Path, **changed: Any) -> dict[str, Any]:
    file = folder / "data.npz"
    if not file.exists():
        data = arrays()
        np.savez(file, **data, split=(np.arange(len(data["labels"])) % 4 == 3) + 0)
    values = {
        "name": "domains",
        "data": {"name": "npz", "path": str(file)},
        "scenario": {"name": "domain"},
        "backbone": {
            "name": "vit_tiny_patch16_224",
            "img_size": 8,
            "patch_size": 4,
            "embed_dim": 16,
            "depth": 2,
            "num_heads": 2,
            "in_chans": 1,
        },
        "strategy": {"name": "linear_probe"},
        "training": {"train_mb_size": 9, "train_epochs": 2, "lr": 0.05},
        "runs_dir": str(folder / "runs"),
        "device": "cpu",
    }
    return {**values, **changed}


def bundle(train: int = 90, test: int = 45) -> DataBundle:
    parts = []
    for part, count in (("train", train), ("test", test)):
        data = arrays(count, part)
        domains = np.searchsorted(sorted(NAMES), data["domains"])
        images = torch.from_numpy(data["images"])[:, None].repeat(1, 3, 2, 2)
        parts.append(ImageSource(ImageArray(images), data["labels"].astype(np.int64), domains=domains))
    return DataBundle("lit", *parts, ["a", "b", "c"], domain_names=sorted(NAMES))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> experiment.Result:
    return experiment.run(settings(tmp_path_factory.mktemp("whole")))[0]


def table(folder: Path, name: str) -> list[list[str]]:
    with open(folder / name, newline="") as file:
        return list(csv.reader(file))


def names_of(result: experiment.Result) -> list[str]:
    names = accuracy.group_names(result.records)
    assert names is not None
    return names


# ---------------------------------------------------------------------------------------------- by domain


def test_a_domain_is_evaluated_from_its_experience_on(whole: experiment.Result) -> None:
    assert (np.isnan(whole.matrix) == np.triu(np.ones((3, 3)), 1)).all()
    ends = [record for record in whole.records if record["kind"] == "evaluation"]
    assert [sum(count for *_, count in record["confusion"]) for record in ends] == [9, 18, 27]


def test_a_run_tells_accuracy_and_forgetting_of_each_domain_by_name(whole: experiment.Result) -> None:
    names = names_of(whole)
    assert sorted(names) == sorted(NAMES)
    assert table(whole.folder, "accuracy_matrix.csv")[0] == ["after_experience", *names]
    header, *rows = table(whole.folder, "per_domain_accuracy.csv")
    assert header == ["domain", "accuracy", "forgetting"]
    assert [row[0] for row in rows] == names
    assert [float(row[1]) for row in rows] == pytest.approx(whole.matrix[-1].tolist())
    lost = np.nanmax(whole.matrix[:-1, :2], axis=0) - whole.matrix[-1, :2]
    assert [float(row[2]) for row in rows[:2]] == pytest.approx(lost.tolist())
    assert rows[2][2] == ""
    assert whole.summary["forgetting"] == pytest.approx(lost.mean())


def test_tensorboard_has_a_curve_for_each_domain(whole: experiment.Result) -> None:
    events = EventAccumulator(str(whole.folder))
    events.Reload()
    tags = events.Tags()["scalars"]
    assert {f"accuracy/domain_{name}" for name in NAMES} <= set(tags)
    assert {f"forgetting/domain_{name}" for name in names_of(whole)[:2]} <= set(tags)
    assert not [tag for tag in tags if "group_" in tag]


def test_the_printed_matrix_is_of_domains(whole: experiment.Result) -> None:
    printed = results_.results([whole])
    assert "accuracy (%) on each domain, after each experience" in printed
    listed = ", ".join(f"{n} {name}" for n, name in enumerate(names_of(whole), start=1))
    assert f"domains: {listed}" in printed


def test_a_report_compares_runs_by_domain(whole: experiment.Result) -> None:
    section = report.collect([str(whole.folder)]).sections[0]
    assert section.title == "domain on npz, 3 domains"
    for table_of, metric in zip(section.of_domains(), ("accuracy", "forgetting"), strict=True):
        assert table_of[0] == [f"{metric} per domain", "seeds", *sorted(NAMES)]
        by_name = accuracy.domain_metrics(whole.records)[metric]
        expected = [text.percent(by_name[name]) for name in sorted(NAMES)]
        assert table_of[1] == ["linear_probe", "1", *expected]


def test_an_interrupted_run_continues_to_the_same_records(whole: experiment.Result, tmp_path: Path) -> None:
    class Stop:
        steps = 0

        def step(self) -> None:
            self.steps += 1
            if self.steps == 8:  # within the second domain
                os.kill(os.getpid(), signal.SIGTERM)

        def __getattr__(self, name: str) -> Any:
            return lambda *_: None

    with pytest.raises(Interrupted) as caught:
        experiment.run(settings(tmp_path), progress=Stop())
    resumed = experiment.resume(caught.value.folders[0])
    for name in ("metrics.jsonl", "per_domain_accuracy.csv", "model.safetensors"):
        assert (resumed.folder / name).read_bytes() == (whole.folder / name).read_bytes(), name


def test_other_domains_of_the_same_images_are_refused_on_resume(tmp_path: Path) -> None:
    class Stop:
        def step(self) -> None:
            os.kill(os.getpid(), signal.SIGTERM)

        def __getattr__(self, name: str) -> Any:
            return lambda *_: None

    run = settings(tmp_path, scenario={"name": "split", "experiences": 3})
    with pytest.raises(Interrupted) as caught:
        experiment.run(run, progress=Stop())
    data = dict(np.load(tmp_path / "data.npz"))
    np.savez(tmp_path / "data.npz", **data | {"domains": data["domains"][::-1]})
    with pytest.raises(ClpromptError, match=r"other training images \(data.name=npz\): domains"):
        experiment.resume(caught.value.folders[0])


def test_online_a_domain_counts_from_its_first_batch_on() -> None:
    data, model = bundle(), registry.strategies.get("linear_probe").target(tiny_vit(), boundary_free=True)
    train, _, test = datasets_for(data, model.backbone)
    stream = plan(train.targets, domains=train.domains, domain_names=data.domain_names)
    records = fit(
        model, stream, train, test, training=Training(train_mb_size=10), online=Online(eval_every=20)
    )
    anytime = [record["groups"] for record in records if record["when"] == "anytime"]
    assert [[value is not None for value in groups] for groups in anytime] == [
        [True, False, False],
        [True, True, False],
        [True, True, True],
        [True, True, True],
    ]
    assert accuracy.online_metrics(records)["A_auc"] >= 0


def test_classes_that_have_not_come_are_not_evaluated() -> None:
    data, model = bundle(), registry.strategies.get("ncm").target(tiny_vit())
    train, _, test = datasets_for(data, model.backbone)
    rows = np.flatnonzero((train.domains != 0) | (train.targets != 2))  # the first domain lacks class 2
    stream = plan(train.targets[rows], domains=train.domains[rows], shuffle=False)
    stream = type(stream)(
        tuple(rows[index] for index in stream.indices),
        stream.classes,
        stream.num_classes,
        stream.order,
        stream.names,
    )
    records = fit(model, stream, train, test)
    evaluated = [sum(count for *_, count in record["confusion"]) for record in records]
    assert evaluated == [10, 30, 45]


def test_a_test_set_of_other_domains_is_evaluated_whole_after_every_experience() -> None:
    data, model = bundle(), registry.strategies.get("ncm").target(tiny_vit())
    train, _, test = datasets_for(data, model.backbone)
    rows = np.flatnonzero(train.domains != 2)
    known = {"domains": train.domains[rows], "domain_names": data.domain_names}
    stream = plan(train.targets[rows], **known, shuffle=False)
    test.domains = np.full(len(test), 2)
    evaluator = evaluator_for(stream, test, test.targets)
    assert [len(group) for group in evaluator.groups] == [45, 0]
    model.observe(torch.arange(3))
    model.received(torch.randn(3, 32), torch.arange(3))
    for experience in range(2):
        found = evaluator.run(model, experience)
        assert found.groups == [found.accuracy, None]
        assert found.group_names == ["photo", "clip/art (no test images)"]
    record = {"kind": "evaluation", "when": "experience", "experience": 0, **found.record()}
    assert accuracy.domain_metrics([record])["accuracy"] == {"photo": found.accuracy}


def test_a_strategy_that_needs_new_classes_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="MULTI-LANE needs class lists that do not overlap"):
        experiment.run(settings(tmp_path, strategy={"name": "multilane", "prompt_blocks": 1}))
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("scenario", ["domain", "few_shot"])
@pytest.mark.parametrize("name", image_methods())
def test_every_strategy_is_trained_or_refused_in_one_line(name: str, scenario: str) -> None:
    data, target = bundle(train=36, test=18), registry.strategies.get(name).target
    model = target(
        tiny_vit(), **({"components_per_experience": 4} if name == "coda_prompt" else SMALL.get(name, {}))
    )
    train, clean, test = datasets_for(data, model.backbone)
    arguments: dict[str, Any] = {"base_classes": 1, "ways": 1, "shots": 2} if scenario == "few_shot" else {}
    known = {"domains": train.domains, "domain_names": data.domain_names}
    stream = make_plan({"name": scenario, **arguments}, train.targets, seed=0, **known)
    online = Online(eval_every=None) if model.boundaries == "unused" else None
    arguments = {"clean": clean, "training": Training(lr=0.01), "online": online}
    if name in ("multilane", "prompt_cam") and scenario == "domain":
        with pytest.raises(ConfigError, match=r"^class 0 is in the experiences 1 and 2; .* not overlap$"):
            fit(model, stream, train, test, **arguments)
        return
    last = accuracy.accuracy_matrix(fit(model, stream, train, test, **arguments))[-1]
    assert last.shape == (3,)
    assert not np.isnan(last).any()


@pytest.mark.parametrize("strategy", TEXTUAL)
def test_classes_are_told_by_their_names_in_every_domain(strategy: str, tmp_path: Path) -> None:
    sections = settings(tmp_path, backbone={"name": "clip_letters"})
    sections["data"]["class_names"] = {0: "digit one", 1: "digit two", 2: "digit three"}
    sections["strategy"] = {"name": strategy, **SMALL.get(strategy, {})}
    sections["training"]["train_epochs"] = 1
    (result,) = experiment.run(sections)
    assert np.isfinite(result.matrix[np.tril_indices(3)]).all()
    model = clprompt.load(result.folder)
    assert {model.names.shown(c) for c in range(3)} == {"digit one", "digit two", "digit three"}


# ------------------------------------------------------------------------------------------ of few shots


@pytest.fixture(scope="module")
def few_shot(tmp_path_factory: pytest.TempPathFactory) -> experiment.Result:
    scenario = {"name": "few_shot", "base_classes": 1, "ways": 1, "shots": 4}
    return experiment.run(settings(tmp_path_factory.mktemp("few"), scenario=scenario, strategy="ncm"))[0]


def test_results_tell_base_from_novel_classes(few_shot: experiment.Result) -> None:
    written = json.loads((few_shot.folder / "results.json").read_text())
    base = few_shot.matrix[-1, 0]
    novel = few_shot.matrix[-1, 1:].mean()  # each class has as many test images
    assert written["base_accuracy"] == pytest.approx(base)
    assert written["novel_accuracy"] == pytest.approx(novel)
    assert written["harmonic_mean_accuracy"] == pytest.approx(2 * base * novel / (base + novel))
    assert written["performance_drop"] == pytest.approx(1 - written["last_accuracy"])
    assert "average_accuracy" in written


def test_the_harmonic_mean_is_told_after_every_experience(few_shot: experiment.Result) -> None:
    header, first, *others = table(few_shot.folder, "few_shot.csv")
    assert header == ["after_experience", "accuracy", "base", "novel", "harmonic_mean"]
    assert first == ["1", "1.0", "1.0", "", ""]
    means = []
    for number, row in enumerate(others, start=2):
        base, novel, mean = map(float, row[2:])
        assert row[0] == str(number)
        assert mean == pytest.approx(2 * base * novel / (base + novel))
        means.append(mean)
    assert few_shot.summary["average_harmonic_mean_accuracy"] == pytest.approx(np.mean(means))


def test_images_that_are_no_shots_are_said(few_shot: experiment.Result) -> None:
    said = "46 of 81 training images take no part: of each of the 2 novel classes all but 4"
    assert said in (few_shot.folder / "run.log").read_text()


def test_a_report_ranks_few_shot_runs_by_the_harmonic_mean(few_shot: experiment.Result) -> None:
    header = report.collect([str(few_shot.folder)]).sections[0].table()[0]
    assert header[2:5] == ["harmonic mean", "base", "novel"]
