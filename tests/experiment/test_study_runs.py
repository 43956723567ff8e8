"""Studies that run: real processes, tiny models.

Most of these processes are forks of a warm one (`warm_python`); a fresh one starts where a test does not
ask for that.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from warm_process import WarmProcess

from clprompt.cli.main import main
from clprompt.errors import RunFolderError
from clprompt.experiment import config, launch, manage, run, study_runs
from clprompt.experiment import study as studies
from clprompt.system.files import FolderLock
from clprompt.system.parent import PARENT

pytestmark = pytest.mark.usefixtures("same_picture")

SETTINGS: dict[str, Any] = {
    "data": {"name": "digits", "test_fraction": 0.9},
    "backbone": {"name": "vit_tiny_patch16_224", "embed_dim": 16, "depth": 2, "num_heads": 2, "img_size": 32},
    "scenario": {"name": "split", "experiences": 2},
    "training": {"train_epochs": 1, "lr": 0.01},
    "strategies": {
        "probe": {"name": "linear_probe", "sweep": {"training.lr": [0.001, 0.1]}},
        "ncm": {"training": {"train_epochs": 1}},
    },
}


def write(folder: Path, **changes: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump({"runs_dir": str(folder / "runs")} | SETTINGS | changes))
    return path


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, warm_process: WarmProcess) -> Path:
    """The file of a study that ran, two runs at a time."""
    file = write(tmp_path_factory.mktemp("study"))
    with warm_process.as_python():
        assert main(["study", str(file), "--jobs", "2"]) == 0
    return file


@pytest.fixture
def python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that is run in place of Python."""
    path = tmp_path / "python"
    path.touch(mode=0o755)
    monkeypatch.setattr(sys, "executable", str(path))
    return path


@pytest.fixture
def runs(finished: Path) -> Path:
    """The folder of the runs of that study."""
    return finished.parent / "runs" / "tiny"


def test_a_run_of_a_study_is_an_ordinary_run(runs: Path, tmp_path: Path) -> None:
    folder = runs / "probe-lr=0.1" / "seed0"
    held = config.load(folder / "config.yaml", [f"runs_dir={tmp_path}"])
    assert (held.label, held.training.lr) == ("probe lr=0.1", 0.1)
    (alone,) = run.run(held)
    assert (alone.folder / "metrics.jsonl").read_bytes() == (folder / "metrics.jsonl").read_bytes()


def test_what_is_finished_is_skipped(finished: Path, runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in runs.glob("*/seed0/*")}
    assert main(["study", str(finished)]) == 0
    assert before == {path: path.stat().st_mtime_ns for path in runs.glob("*/seed0/*")}
    assert "3 of 3 runs are finished already" in capsys.readouterr().err


def test_the_end_shows_the_best_value(finished: Path, runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["study", str(finished)]) == 0
    results = {
        lr: json.loads((runs / f"probe-lr={lr}" / "seed0" / "results.json").read_text())["average_accuracy"]
        for lr in (0.001, 0.1)
    }
    best = max(results, key=lambda lr: results[lr])
    assert yaml.safe_load((runs / "best.yaml").read_text()) == {
        **{"study": "tiny", "metric": "average_accuracy", "strategies": {"probe": {"training.lr": best}}},
    }
    assert f"lr={best} (at the edge)" in capsys.readouterr().out


def test_the_report_of_a_study_shows_labels(finished: Path, runs: Path) -> None:
    assert main(["study", str(finished)]) == 0
    table = (runs / "report" / "report.md").read_text()
    assert all(f"| {label} |" in table for label in ("probe lr=0.001", "probe lr=0.1", "ncm"))


def test_the_report_of_a_study_shows_the_metrics_that_it_names(finished: Path, runs: Path) -> None:
    assert main(["study", str(finished), "metrics=[nonnegative_forgetting]"]) == 0
    header = (runs / "report" / "report.md").read_text().partition("| strategy ")[2].partition("\n")[0]
    assert "nonnegative forgetting" in header
    assert "average accuracy" not in header


def test_a_study_of_another_configuration_than_its_folders_is_refused_before_anything_is_written(
    finished: Path, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in runs.rglob("*")}
    assert main(["study", str(finished), "strategies.probe.training.weight_decay=0.1", "seed=[0,1]"]) == 2
    assert before == {path: path.stat().st_mtime_ns for path in runs.rglob("*")}
    (line,) = capsys.readouterr().err.splitlines()
    assert "2 of 6 runs have a folder of another configuration" in line
    assert "training.weight_decay=0.0, now 0.1 (in 2 folders); nothing was run" in line


def test_a_folder_whose_run_has_not_begun_counts_as_one_of_another_configuration(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tuned = tmp_path / "best.yaml"
    tuned.write_text("{study: other, metric: average_accuracy, strategies: {ncm: {training.lr: 0.001}}}")
    file = write(tmp_path, strategies={"ncm": None})
    (planned,) = studies.load(file, [f"tuned={tuned}"]).runs
    study_runs.prepare(planned)
    words = ["study", str(file), "--dry-run"]
    assert main(words) == 2
    assert f"training.lr=0.001, now 0.01 ({planned.folder})" in capsys.readouterr().err
    assert main([*words, f"tuned={tuned}"]) == 0
    assert main([*words, "name=beside"]) == 0
    assert main([*words, "--again"]) == 0


def test_settings_that_change_no_result_leave_nothing_to_run(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    harmless = ["training.workers=0", "training.eval_mb_size=7", "export=full"]
    assert main(["study", str(finished), "--dry-run", *harmless]) == 0
    assert capsys.readouterr().out == ""


def test_again_asks_for_a_run_of_another_configuration(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["study", str(finished), "strategies.ncm.training.lr=0.5"]
    assert main([*words, "--again", "--dry-run"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        shlex.join(["clprompt", *words, "--only", "ncm", "--seed", "0", "--again"])
    ]


@pytest.mark.usefixtures("warm_python")
def test_a_printed_command_runs_its_run_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write(tmp_path, strategies={"nearest mean": "ncm", "probe": "linear_probe"})
    assert main(["study", str(file), "--dry-run"]) == 0
    line = capsys.readouterr().out.splitlines()[0]
    assert main(shlex.split(line)[1:]) == 0
    assert "1 of 2 runs are done" in capsys.readouterr().err
    assert (tmp_path / "runs" / "tiny" / "nearest-mean" / "seed0" / "results.json").is_file()
    assert not (tmp_path / "runs" / "tiny" / "probe").exists()


@pytest.mark.usefixtures("warm_python")
def test_again_starts_a_run_over(tmp_path: Path) -> None:
    file = write(tmp_path, strategies={"nearest mean": "ncm", "probe": "linear_probe"})
    words = ["study", str(file), "--only", "nearest mean", "--seed", "0"]
    folder = tmp_path / "runs" / "tiny" / "nearest-mean" / "seed0"
    assert main(words) == 0
    manage.write_notes(folder, note="for the paper", add=["kept"])
    assert main([*words, "training.train_mb_size=8", "--again"]) == 0
    assert config.load(folder / "config.yaml").training.train_mb_size == 8
    assert (manage.read(folder).note, manage.read(folder).tags) == ("for the paper", ("kept",))
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert sum(record["kind"] == "evaluation" for record in records) == 2  # nothing of the run before


@pytest.mark.usefixtures("warm_python")
def test_runs_go_on_after_one_that_fails_with_its_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(tmp_path, strategies={"one": "ncm", "two": "ncm"}, seed=[0])
    taken = tmp_path / "runs" / "tiny" / "one" / "seed0"
    taken.mkdir(parents=True)
    with FolderLock(taken):
        assert main(["study", str(file)]) == 2
    shown = capsys.readouterr()
    assert "failed: one, seed 0: its folder is in use by another process" in shown.err
    assert shown.err.splitlines()[-1] == "clprompt: error: 1 of 2 runs failed"
    assert "\ntwo " in shown.out


@pytest.mark.usefixtures("warm_python")
def test_the_reason_of_a_failure_is_the_processs_last_line(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("data: {name: digits}\n")
    outcome = launch.execute(str(tmp_path), threads=1)
    assert outcome.status == "failed"
    assert outcome.reason == "scenario is missing; it must be a mapping with a name"


def test_the_reason_is_the_error_though_another_process_writes_there_too(
    tmp_path: Path, python: Path
) -> None:
    python.write_text(
        "#!/bin/sh\necho clprompt: error: it is in use by another process\necho epoch 3/5: 10 steps\nexit 2\n"
    )
    outcome = launch.execute(str(tmp_path), threads=1)
    assert outcome == launch.Outcome("failed", "it is in use by another process", outcome.seconds)


def test_a_run_in_use_is_not_started_though_it_has_a_checkpoint(tmp_path: Path) -> None:
    study = studies.load(write(tmp_path, strategies={"one": "ncm"}, seed=[0]))
    folder = study.runs[0].folder
    (folder / "checkpoint").mkdir(parents=True)
    (folder / "checkpoint" / "state.pt").touch()
    (folder / "config.yaml").write_text(config.to_yaml(study.runs[0].config))
    with FolderLock(folder), pytest.raises(RunFolderError, match="is in use by another process"):
        study_runs.prepare(study.runs[0])


def test_a_run_knows_which_process_it_must_not_outlive(tmp_path: Path, python: Path) -> None:
    python.write_text(f'#!/bin/sh\necho "${PARENT}" > {tmp_path / "parent"}\n')
    assert launch.execute(str(tmp_path), threads=1).status == "done"
    assert (tmp_path / "parent").read_text() == f"{os.getpid()}\n"


def test_a_mistake_that_the_parts_show_stops_a_study_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(tmp_path, strategies={"ncm": None, "joint": None}, online={"iterations": 1})
    assert main(["study", str(file)]) == 2
    assert "clprompt: error: joint: strategy joint needs experience boundaries" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


@pytest.mark.usefixtures("warm_python")
def test_a_stopped_study_goes_on_to_the_same_bits_with_the_line_that_it_prints(tmp_path: Path) -> None:
    long = {"train_epochs": 25, "lr": 0.01, "checkpoint_every": 3, "log_every": 1}
    file = write(tmp_path, strategies={"probe": "linear_probe"}, seed=[0, 1], training=long)
    words = [sys.executable, "-P", "-m", "clprompt", "study", str(file), "--jobs", "2"]
    process = subprocess.Popen(words, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    states = [tmp_path / "runs" / "tiny" / "probe" / f"seed{k}" / "checkpoint" / "state.pt" for k in (0, 1)]
    limit = time.monotonic() + 120
    while not all(state.exists() for state in states[: launch.cores()]) and time.monotonic() < limit:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    last = err.splitlines()[-1]
    again = shlex.split(last.removeprefix("interrupted; continue with: "))
    assert again == ["clprompt", "study", str(file), "--jobs", "2"]
    folders = [state.parent.parent for state in states]
    assert not any((folder / "results.json").exists() for folder in folders)
    assert main(again[1:]) == 0
    assert "resume at" in (folders[0] / "run.log").read_text()
    held = config.load(folders[0] / "config.yaml", [f"runs_dir={tmp_path / 'alone'}"])
    (alone,) = run.run(held)
    assert (alone.folder / "metrics.jsonl").read_bytes() == (folders[0] / "metrics.jsonl").read_bytes()


def test_jobs_share_out_the_cores() -> None:
    count = launch.cores()
    assert launch.Local(1).threads == count
    assert launch.Local(10 * count).jobs == count
    assert launch.Local(count).threads == 1


def test_ray_runs_the_same_study(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'clprompt[ray]'")
    file = write(tmp_path, strategies={"ncm": None, "probe": "linear_probe"})
    assert main(["study", str(file), "--launcher", "ray"]) == 0  # in fresh processes
    assert "\nprobe " in capsys.readouterr().out
    assert main(["study", str(file), "--dry-run"]) == 0
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--gpus-per-run", "0.5"], "--gpus-per-run needs --launcher ray, got --launcher local"),
        (["--launcher", "ray", "--gpus-per-run", "2"], "--gpus-per-run must be from 0 to 1"),
    ],
)
def test_a_share_of_a_gpu_that_no_run_can_use_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], told: str
) -> None:
    assert main(["study", str(write(tmp_path)), *words]) == 2
    assert told in capsys.readouterr().err


def test_without_ray_its_launcher_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    assert main(["study", str(write(tmp_path)), "--launcher", "ray"]) == 2
    assert "--launcher ray needs Ray: pip install 'clprompt[ray]'" in capsys.readouterr().err
