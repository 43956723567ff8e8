"""Runs over streams whose classes come back, with every strategy that can, and their metrics."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_methods import SMALL, image_methods

from clprompt import registry
from clprompt.errors import ConfigError, Interrupted
from clprompt.experiment import run as experiment
from clprompt.metrics import accuracy
from clprompt.reporting import report
from clprompt.reporting.stream_map import StreamMap
from clprompt.scenarios.repetition import RepetitionPlan, plan
from clprompt.testing.bench import CLASSES, ToyImages, tiny_vit
from clprompt.training.fit import fit
from clprompt.training.settings import Online, Training

pytestmark = pytest.mark.usefixtures("same_picture")
STREAM = {"experiences": 4, "probability": 0.5, "samples_per_experience": 12}


def settings(folder: Path, **changed: Any) -> dict[str, Any]:
    file = folder / "data.npz"
    if not file.exists():
        labels = np.arange(80) % 4
        noise = np.random.default_rng(0).integers(0, 90, (80, 8, 8))
        split = (np.arange(80) % 5 == 4) + 0
        images = (noise + 40 * labels[:, None, None]).astype(np.uint8)
        np.savez(file, images=images, labels=labels, split=split)
    vit = {"img_size": 8, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2, "in_chans": 1}
    values = {
        "name": "again",
        "device": "cpu",
        "runs_dir": str(folder / "runs"),
        "data": {"name": "npz", "path": str(file)},
        "scenario": {"name": "repetition", **STREAM},
        "backbone": {"name": "vit_tiny_patch16_224", **vit},
        "strategy": {"name": "linear_probe"},
        "training": {"train_mb_size": 4, "train_epochs": 1, "lr": 0.05},
    }
    return {**values, **changed}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> experiment.Result:
    return experiment.run(settings(tmp_path_factory.mktemp("whole")))[0]


def stream(arguments: dict[str, Any]) -> tuple[RepetitionPlan, ToyImages, ToyImages]:
    """A stream of the toy images, whose classes come back, and both parts."""
    parts = ToyImages(12), ToyImages(4, "test")
    for part in parts:  # class ids without gaps
        part.targets = np.searchsorted(sorted(c for group in CLASSES for c in group), part.targets)
    found = plan(parts[0].targets, seed=2, experiences=4, **arguments)
    assert sum(map(len, found.classes)) > 6
    return found, *parts


def test_a_class_counts_in_the_group_of_its_first_experience(whole: experiment.Result) -> None:
    found = plan(np.arange(64) % 4, **STREAM)
    assert whole.groups == [list(group) for group in found.groups]
    met = [bool(group) for group in whole.groups]
    assert sum(met) < 4  # an experience without a new class is a column of nan, and counts in no mean
    matrix = whole.matrix
    assert (~np.isnan(matrix) == np.tri(4, dtype=bool) & met).all()
    assert whole.summary["average_accuracy"] == pytest.approx(np.nanmean(matrix[-1]))
    assert not np.isnan(whole.summary["average_incremental_accuracy_by_samples"])


def test_a_run_says_what_never_comes_and_what_comes_several_times(whole: experiment.Result) -> None:
    log = (whole.folder / "run.log").read_text()
    assert "of 64 training images take no part: every experience draws its own" in log
    assert "of 64 training images come several times" in log


def test_a_report_shows_runs_with_repetition(whole: experiment.Result) -> None:
    shown = report.collect([whole.folder])
    assert not shown.left_out
    assert shown.sections[0].title == "repetition on npz, 4 class groups"


def test_an_interrupted_run_continues_to_the_same_records(whole: experiment.Result, tmp_path: Path) -> None:
    class Stop:
        steps = 0

        def step(self) -> None:
            self.steps += 1
            if self.steps == 5:  # within the second experience
                os.kill(os.getpid(), signal.SIGTERM)

        def __getattr__(self, name: str) -> Any:
            return lambda *_: None

    with pytest.raises(Interrupted) as caught:
        experiment.run(settings(tmp_path), progress=Stop())
    resumed = experiment.resume(caught.value.folders[0])
    for name in ("metrics.jsonl", "accuracy_matrix.csv", "model.safetensors"):
        assert (resumed.folder / name).read_bytes() == (whole.folder / name).read_bytes(), name


def test_a_strategy_that_needs_new_classes_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="MULTI-LANE needs class lists that do not overlap"):
        experiment.run(settings(tmp_path, strategy={"name": "multilane", "prompt_blocks": 1}))
    assert not (tmp_path / "runs").exists()


def test_a_long_tail_is_said_in_the_log(tmp_path: Path) -> None:
    scenario = {"name": "split", "experiences": 2, "long_tail": "ordered", "imbalance": 4}
    result = experiment.run(settings(tmp_path, scenario=scenario, strategy="ncm"))[0]
    said = "28 of 64 training images take no part: a long tail (ordered, imbalance 4) has 16 to 4 of each"
    assert said in (result.folder / "run.log").read_text()
    assert json.loads((result.folder / "results.json").read_text())["nonnegative_forgetting"] >= 0


FORMS = {"sampling": {"probability": 0.6, "samples_per_experience": 24}, "slots": {"slots": 4}}


@pytest.mark.parametrize("name", image_methods())
def test_every_strategy_learns_classes_that_come_back_or_is_refused_in_one_line(name: str) -> None:
    found, train, test = stream(FORMS["sampling"])
    target = registry.strategies.get(name).target
    model = target(
        tiny_vit(), **({"components_per_experience": 4} if name == "coda_prompt" else SMALL.get(name, {}))
    )
    online = Online(eval_every=None) if model.boundaries == "unused" else None
    arguments: dict[str, Any] = {"training": Training(lr=0.01), "online": online}
    if name in ("multilane", "prompt_cam"):
        with pytest.raises(ConfigError, match="needs class lists that do not overlap") as told:
            fit(model, found, train, test, **arguments)
        assert "\n" not in str(told.value)
        return
    records = fit(model, found, train, test, **arguments)
    met = [bool(group) for group in found.groups]
    assert (~np.isnan(accuracy.accuracy_matrix(records)[-1]) == met).all()
    assert model.seen.nonzero().flatten().tolist() == list(range(6))


@pytest.mark.parametrize("form", FORMS)
def test_the_map_of_a_stream_shows_classes_where_they_come(form: str) -> None:
    found, train, _ = stream(FORMS[form])
    drawn = StreamMap.of(found, train.targets, "repetition")
    assert [tuple(np.flatnonzero(row).tolist()) for row in drawn.counts] == list(found.classes)
    assert [int(t) for t in drawn.home] == [
        next(t for t, classes in enumerate(found.classes) if c in classes) for c in range(6)
    ]
