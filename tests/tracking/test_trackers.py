"""Trackers that a configuration names: a table of scalars, Weights & Biases and MLflow without a server."""

from __future__ import annotations

import csv
import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from clprompt import registry
from clprompt.errors import ConfigError
from clprompt.experiment import config as configuration
from clprompt.reporting import plots
from clprompt.tracking.sink import step_axis
from clprompt.tracking.tracker import RunTracker

RUN = "20260101-120000-seed0-ncm"
SETTINGS = {"seed": 0, "strategy.name": "ncm", "data.path": "here", "note": "a try", "tags": ["a", "b"]}

pytestmark = pytest.mark.usefixtures("same_picture")


def needs(package: str, extra: str = "") -> pytest.MarkDecorator:
    absent = importlib.util.find_spec(package) is None
    reason = f"{package} is not installed: pip install 'clprompt[{extra or package}]'"
    return pytest.mark.skipif(absent, reason=reason)


def train(step: int) -> dict[str, Any]:
    return {"kind": "train", "step": step, "terms": {"loss": 1 / step}, "lr": 0.01}


def tracked(folder: Path, name: str, sizes: dict[str, int] | None = None) -> RunTracker:
    folder.mkdir(parents=True, exist_ok=True)
    tracker: Any = registry.sinks.get(name).target
    return RunTracker(folder, ["zero", "one"], [[0], [1]], sizes, sinks=[tracker])


def stopped(folder: Path, name: str) -> dict[str, int]:
    """A run that is stopped after its second step; the sizes of its files after the first."""
    tracker = tracked(folder, name)
    tracker.settings(SETTINGS)
    tracker.record(train(1))
    sizes = tracker.flush()
    tracker.record(train(2))
    tracker.flush()
    tracker.close()
    return sizes


def resumed(folder: Path, name: str, sizes: dict[str, int]) -> None:
    """The same run, which goes on from its first step."""
    tracker = tracked(folder, name, sizes)
    tracker.settings({**SETTINGS, "data.path": "moved"})
    tracker.record(train(2))
    tracker.record(train(3))
    figure = Figure()
    figure.add_subplot().plot([0, 1])
    tracker.diagnostics(1, {"keys/spread": np.arange(5.0), "keys/drawn": figure})
    tracker.finish()
    tracker.close()
    tracker.close()


def stopped_and_resumed(folder: Path, name: str) -> None:
    resumed(folder, name, stopped(folder, name))


def test_the_table_of_scalars_is_that_of_an_uninterrupted_run(tmp_path: Path) -> None:
    stopped_and_resumed(tmp_path, "csv")
    step, *lines = csv.reader((tmp_path / "scalars.csv").read_text().splitlines())
    assert step == ["step", "tag", "value"]
    assert lines == [
        cells
        for step in (1, 2, 3)
        for cells in ([str(step), "train/loss", str(1 / step)], [str(step), "train/lr", "0.01"])
    ]


@needs("wandb")
def test_a_resumed_run_is_the_same_one_in_weights_and_biases(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    folder = tmp_path / "one" / RUN
    program = (
        "import json, pathlib, sys; import test_trackers as own; folder = pathlib.Path(sys.argv[1]); "
        "sizes = json.loads(sys.argv[2]); "
        "print(json.dumps(own.resumed(folder, 'wandb', sizes) if sizes else own.stopped(folder, 'wandb')))"
    )
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), *sys.path]))
    sizes = "{}"
    for _ in range(2):  # its service lives as long as a process, and knows runs by their ids
        said = subprocess.run(
            [sys.executable, "-c", program, str(folder), sizes], check=True, capture_output=True, text=True
        )
        sizes = said.stdout.splitlines()[-1]
    identity = (folder / "wandb-id.txt").read_text().strip()
    files = list((folder / "wandb").glob("offline-run-*/*.wandb"))
    assert files
    assert {file.stem for file in files} == {f"run-{identity}"}
    words = (b"train/loss", b"keys/spread", b"keys/drawn", b"strategy.name", b"a try")
    words += (b"seed0-ncm-20260101-120000", b"\x13ncm-20260101-120000")
    told = b"".join(file.read_bytes() for file in files)
    assert [word for word in words if word not in told] == []


@needs("mlflow")
@needs("sqlalchemy", "mlflow")
def test_a_resumed_run_is_the_same_one_in_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    sizes = stopped(tmp_path / "one" / RUN, "mlflow")
    from mlflow.tracking import MlflowClient

    client = MlflowClient()
    experiment = client.get_experiment_by_name("one")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "KILLED"
    assert run.data.params == {key: str(value) for key, value in SETTINGS.items()}
    resumed(tmp_path / "one" / RUN, "mlflow", sizes)
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_name == "seed0-ncm-20260101-120000"
    assert run.info.status == "FINISHED"
    assert run.data.params["data.path"] == "here"  # a setting there cannot change
    assert run.data.tags["mlflow.note.content"] == "a try"
    assert {"a", "b", "mlflow.user"} <= set(run.data.tags)
    points = {(point.step, point.value) for point in client.get_metric_history(run.info.run_id, "train/loss")}
    assert points == {(1, 1.0), (2, 0.5), (3, 1 / 3)}
    drawn = client.list_artifacts(run.info.run_id, "keys/drawn")
    assert [artifact.path for artifact in drawn] == ["keys/drawn/0001.png"]
    with Image.open(client.download_artifacts(run.info.run_id, "keys/drawn/0001.png")) as picture:
        assert picture.size == plots.image(Figure()).size  # drawn as the files of the run are


def test_steps_are_counted_in_what_a_tag_is_about() -> None:
    tags = ("train/loss", "anytime/accuracy", "accuracy/average", "trained_head/anytime/accuracy")
    assert [step_axis(tag) for tag in tags] == ["steps", "samples", "experiences", "samples"]


@pytest.mark.parametrize(
    ("trackers", "message"),
    [
        ("tensorbord", 'trackers: unknown tracker "tensorbord"; did you mean "tensorboard"?'),
        ("csv,csv", "trackers names one twice"),
    ],
)
def test_trackers_that_there_are_not_are_refused_in_one_line(trackers: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        configuration.load("quickstart", [f"trackers={trackers}"])
    assert message in str(caught.value)


def test_a_tracker_whose_package_is_absent_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry.sinks.get("csv").target, "package", "no_such_package_here")
    with pytest.raises(ConfigError, match=r"csv needs the package no_such_package_here: pip install"):
        configuration.load("quickstart", ["trackers=csv"])
