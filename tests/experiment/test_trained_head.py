"""One run, two heads: a plug-in answers, and the trained head's figures are those of a run without it."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clprompt.cli import results as printed
from clprompt.errors import Interrupted
from clprompt.experiment import run as experiment
from clprompt.metrics import of_trained_head
from clprompt.reporting import report
from clprompt.system.progress import Progress

VIT = {"name": "vit_tiny_patch16_224", "img_size": 8, "patch_size": 4, "in_chans": 1, "embed_dim": 16}
COMMON = {
    "device": "cpu",
    "data": {"name": "digits"},
    "backbone": VIT | {"depth": 2, "num_heads": 2},
    "training": {"train_mb_size": 256, "train_epochs": 1, "eval_mb_size": 256, "log_every": 1},
}
STREAMS: dict[str, dict[str, Any]] = {
    "offline": {"scenario": {"name": "split", "experiences": 2}},
    "online": {
        "scenario": {"name": "si_blurry", "sessions": 2},
        "online": {"iterations": 2, "eval_every": 512},
    },
    "label sets": {
        "data": {"name": "digit_mosaics", "train_images": 60, "test_images": 40},
        "scenario": {"name": "multi_label", "classes_per_experience": 5},
        "backbone": VIT | {"depth": 2, "num_heads": 2, "img_size": 16},
    },
}

pytestmark = pytest.mark.usefixtures("same_picture")


def values(folder: Path, stream: str, **strategy: Any) -> dict[str, Any]:
    free = {"boundary_free": True} if stream == "online" else {}
    section = {"name": "linear_probe", **free, **strategy}
    return {**COMMON, **STREAMS[stream], "strategy": section, "runs_dir": str(folder)}


@pytest.fixture(scope="module", params=STREAMS)
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A run whose statistics answer, and one without them."""
    folder = tmp_path_factory.mktemp("runs")
    (of_two,) = experiment.run(values(folder, request.param, statistics="lda"))
    (plain,) = experiment.run(values(folder, request.param))
    return {"stream": request.param, "two": of_two, "plain": plain}


def results(result: experiment.Result) -> dict[str, Any]:
    return json.loads((result.folder / "results.json").read_text())


def test_the_trained_head_has_the_metrics_of_a_run_without_the_plug_in(both: dict[str, Any]) -> None:
    found, plain = results(both["two"]), results(both["plain"])
    assert found["trained_head"] == {key: plain[key] for key in found["trained_head"]}
    assert found["trained_head"].keys() == found["per_seed"].keys()
    assert found["trained_head"] != {key: found[key] for key in found["trained_head"]}
    assert "trained_head" not in plain


def test_every_evaluation_has_the_figures_of_a_run_without_the_plug_in(both: dict[str, Any]) -> None:
    found = of_trained_head(both["two"].records)
    plain = [record for record in both["plain"].records if record["kind"] == "evaluation"]
    assert len(found) == len(plain) >= 2
    for record, other in zip(found, plain, strict=True):
        assert {key: record[key] for key in other if key != "confusion"} == {
            key: value for key, value in other.items() if key != "confusion"
        }
        if "confusion" in other:
            right = [count for target, predicted, count in other["confusion"] if target == predicted]
            assert sum(row[2] for row in record["per_class"]) == sum(right)


def test_both_heads_are_printed(both: dict[str, Any]) -> None:
    lines = printed.results([both["two"]]).splitlines()
    assert any(line.startswith("trained head: ") for line in lines)
    assert not any("trained head" in line for line in printed.results([both["plain"]]).splitlines())


def test_a_report_subtracts_one_head_from_the_other(both: dict[str, Any]) -> None:
    found = report.collect([both["two"].folder], against="linear_probe (trained head)")
    (section,) = found.sections
    assert sorted(row.label for row in section.rows) == ["linear_probe", "linear_probe (trained head)"]
    _, differences, *_, over_images = found.tables(section)
    first = section.metrics()[0]
    summary, trained = both["two"].summary, both["two"].trained_head
    assert differences[1][2] == f"{100 * (summary[first] - trained[first]):+.1f}"
    last = "mAP_last" if both["stream"] == "label sets" else "last_accuracy"
    assert over_images[1][3] == f"{100 * (summary[last] - trained[last]):+.1f}"


# ------------------------------------------------------------------------------------------ last predictions


def kept(result: experiment.Result) -> dict[str, Any]:
    with np.load(result.folder / "predictions.npz", allow_pickle=False) as file:
        return dict(file)


def test_the_last_predictions_of_the_trained_head_are_those_of_a_run_without_the_plug_in(
    both: dict[str, Any],
) -> None:
    found, plain = kept(both["two"]), kept(both["plain"])
    name = "scores" if both["stream"] == "label sets" else "predicted"
    assert found.keys() == {*plain, f"trained_head_{name}"}
    assert np.array_equal(found[f"trained_head_{name}"], plain[name])
    for key in plain.keys() - {name}:
        assert np.array_equal(found[key], plain[key])
    assert not np.array_equal(found[name], plain[name])


def test_the_last_predictions_give_the_last_figures(both: dict[str, Any]) -> None:
    found = kept(both["two"])
    if both["stream"] == "label sets":
        from clprompt.metrics.label_sets import multi_label_scores

        assert multi_label_scores(found["scores"], found["targets"]).mAP == results(both["two"])["mAP_last"]
    else:
        right = found["predicted"] == found["targets"]
        assert right.sum() / len(right) == results(both["two"])["last_accuracy"]
    assert (np.diff(found["images"]) > 0).all()


class At(Progress):
    """Stops a run after a number of steps."""

    def __init__(self, step: int) -> None:
        self.left = step

    def step(self) -> None:
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("both", ["offline", "online"], indirect=True)
def test_a_resumed_run_has_the_same_bits_of_both_heads(both: dict[str, Any], tmp_path: Path) -> None:
    stop = At(len(both["plain"].records) // 3)
    with pytest.raises(Interrupted) as caught:
        experiment.run(values(tmp_path, both["stream"], statistics="lda"), progress=stop)
    resumed = experiment.resume(caught.value.folders[0])
    for name in ("metrics.jsonl", "predictions.npz"):
        assert (resumed.folder / name).read_bytes() == (both["two"].folder / name).read_bytes()
    now, then = results(resumed), results(both["two"])
    assert {**now, "cost": 0} == {**then, "cost": 0}


@pytest.mark.parametrize("both", ["offline"], indirect=True)
def test_a_run_that_was_stopped_at_its_very_end_has_its_last_predictions(
    both: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("clprompt.experiment.folder.export_model", fail)
        with pytest.raises(KeyboardInterrupt):
            experiment.run(values(tmp_path, both["stream"], statistics="lda"))
    (folder,) = (path.parent for path in tmp_path.rglob("config.yaml"))
    resumed = experiment.resume(folder)
    assert results(resumed)["checksums"] == results(both["two"])["checksums"]
    assert np.array_equal(kept(resumed)["images"], kept(both["two"])["images"])
