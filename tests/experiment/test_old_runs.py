"""Run folders that version 0.1.0 wrote, before there were wings, still resume, report and predict.

`fixtures/old-run` holds an interrupted run and what that version made of it in `expected`, a finished one,
one with keys that are called otherwise now, and images with the predictions of that version for them. They
come from another machine, which rounds otherwise, so numbers are close; `scripts/same_bits.py` compares bits.
"""

from __future__ import annotations

import csv
import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from warm_process import WarmProcess

OLD = Path(__file__).parents[1] / "fixtures" / "old-run"
# What records and results may hold beside what they held: the kind of figure, which older readers found out
# from a record's keys, checksums, and metrics that came later.
ADDED = {
    *("measure", "checksum", "checksums", "format"),
    *("average_incremental_accuracy_by_samples", "nonnegative_forgetting", "calibration_error"),
}


def command(*words: object, folder: Path = OLD) -> subprocess.CompletedProcess[str]:
    """What a command line says, called in a folder."""
    return subprocess.run(
        [sys.executable, "-m", "clprompt", *map(str, words)],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="module", autouse=True)
def _forks(warm_process: WarmProcess) -> Iterator[None]:
    """Commands are forks of a process that has imported everything."""
    with warm_process.as_python():
        yield


def close(found: Any, expected: Any) -> bool:
    """Whether two nested values are the same but for the last digits of their fractions."""
    if isinstance(found, dict) and isinstance(expected, dict):
        extra = found.keys() - expected.keys()
        return extra <= ADDED and all(key in found and close(found[key], expected[key]) for key in expected)
    if isinstance(found, list) and isinstance(expected, list):
        return len(found) == len(expected) and all(map(close, found, expected))
    if isinstance(found, float) and isinstance(expected, float):
        return math.isclose(found, expected, rel_tol=1e-4, abs_tol=1e-5)
    return type(found) is type(expected) and found == expected


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def predictions(text: str) -> list[list[Any]]:
    return [[*row[:3], float(row[3])] for row in list(csv.reader(text.splitlines()))[1:]]


@pytest.fixture(scope="module")
def resumed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the interrupted run, resumed to its end."""
    folder = tmp_path_factory.mktemp("old") / "interrupted"
    shutil.copytree(OLD / "interrupted", folder)
    done = command("resume", folder, folder=folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory) -> subprocess.CompletedProcess[str]:
    """What `clprompt report` says of all old folders together."""
    return command("report", OLD, f"out={tmp_path_factory.mktemp('report')}")


def test_an_old_interrupted_run_resumes_to_the_records_that_its_own_version_wrote(resumed: Path) -> None:
    found, expected = records(resumed), records(OLD / "expected")
    assert [record["step"] for record in found] == [record["step"] for record in expected]
    different = [(a, b) for a, b in zip(found, expected, strict=True) if not close(a, b)]
    assert different == []


def test_an_old_interrupted_run_keeps_the_records_that_it_had(resumed: Path) -> None:
    before = (OLD / "interrupted" / "metrics.jsonl").read_bytes()
    assert (resumed / "metrics.jsonl").read_bytes().startswith(before)


def test_an_old_interrupted_run_resumes_to_the_results_that_its_own_version_wrote(resumed: Path) -> None:
    found, expected = (
        json.loads((path / "results.json").read_text()) for path in (resumed, OLD / "expected")
    )
    costs = [results.pop("cost") for results in (found, expected)]
    assert close(found, expected)
    assert {costs[0][key] == costs[1][key] for key in ("steps", "state_numbers", "model")} == {True}


def test_an_old_interrupted_run_goes_on_beside_the_event_file_that_it_had(resumed: Path) -> None:
    events = sorted(path.relative_to(resumed).parent.name for path in resumed.rglob("*tfevents*"))
    assert events == ["tensorboard", "tensorboard"]


def test_an_old_interrupted_run_resumes_to_the_tensors_that_its_own_version_wrote(resumed: Path) -> None:
    found, expected = (load_file(path / "model.safetensors") for path in (resumed, OLD / "expected"))
    assert found.keys() == expected.keys()
    different = [
        name
        for name, value in expected.items()
        if found[name].dtype != value.dtype or not found[name].allclose(value, rtol=1e-3, atol=1e-4)
    ]
    assert different == []


def test_an_old_finished_run_stands_in_a_report_with_its_accuracy(
    reported: subprocess.CompletedProcess[str],
) -> None:
    assert reported.returncode == 0, reported.stderr
    accuracy = json.loads((OLD / "finished" / "results.json").read_text())["average_accuracy"]
    row = next(line for line in reported.stdout.splitlines() if line.startswith("vpt_deep"))
    assert f"{100 * accuracy:.1f}" in row


def test_an_old_run_with_an_old_key_stands_in_a_report(reported: subprocess.CompletedProcess[str]) -> None:
    assert reported.returncode == 0, reported.stderr
    assert any(line.startswith("mvp") for line in reported.stdout.splitlines())


def test_an_old_finished_run_predicts_what_its_own_version_predicted() -> None:
    done = command("predict", "finished", "images", "--top-k", "3")
    assert done.returncode == 0, done.stderr
    expected = (OLD / "expected" / "finished.csv").read_text()
    assert close(predictions(done.stdout), predictions(expected))


@pytest.mark.parametrize(
    "words",
    [
        ("predict", "old-keys", "images", "--top-k", "3"),
        ("resume", "old-keys"),
        ("config", "old-keys/config.yaml"),
    ],
    ids=lambda words: words[0],
)
def test_one_line_names_the_new_key_for_an_old_one(words: tuple[str, ...]) -> None:
    done = command(*words)
    (line,) = done.stderr.splitlines()
    assert done.returncode == 2
    assert line.startswith("clprompt: error: ")
    assert line.endswith("mask is now called logit_mask")
