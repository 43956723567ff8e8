"""`clprompt runs`: which runs there are and in which state, notes and tags, and how they go away."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from clprompt.cli.main import main
from clprompt.experiment import manage
from clprompt.system.files import FolderLock

CONFIG = """\
seed: {seed}
data: {{name: digits}}
scenario: {{name: split}}
strategy: {{name: {strategy}}}
note: {note}
tags: [{tags}]
"""

Make = Callable[..., Path]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """Makes a run folder below `runs` in the folder that one stands in."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()

    def make(
        name: str, *log: str, strategy: str = "mvp", seed: int = 0, done: bool = False, note="null", tags=""
    ) -> Path:
        folder = Path("runs") / "own" / name
        folder.mkdir(parents=True)
        text = CONFIG.format(seed=seed, strategy=strategy, note=note, tags=tags)
        (folder / "config.yaml").write_text(text)
        lines = [f"2026-01-01 12:00:00 {line}\n" for line in log]
        if log:
            (folder / "run.log").write_text("".join(lines))
        if done:
            results = {"strategy": strategy, "seed": seed, "average_accuracy": 0.7, "forgetting": 0.1}
            (folder / "results.json").write_text(json.dumps(results))
        return folder

    return make


def listed(capsys: pytest.CaptureFixture[str], *words: str) -> list[list[str]]:
    """The cells of the lines that are printed, without the header."""
    assert main(["runs", *words]) == 0
    lines = capsys.readouterr().out.splitlines()
    return [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in lines[1:]]


def test_every_run_is_listed_with_its_state_and_main_figure(
    make: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    told = "experience 2/5: average accuracy 61.0 %, forgetting 3.0 points, 2.0 s, ETA 0:00:09"
    make("a-done", "start", told, "done", done=True)
    make("b-failed", "start", told, "failed: images/7.png cannot be read", seed=1)
    make("c-stopped", "start", told, "stopped by signal 2 at ...", strategy="ncm")
    make("d-broken", "start")
    make("e-waiting")
    running = make("f-running", "start", told)
    (running / "lock").touch()
    with FolderLock(running):
        rows = listed(capsys)
    shown = {row[0]: row[1:5] for row in rows}
    assert shown == {
        "own/a-done": ["mvp", "0", "done", "70.0 %"],
        "own/b-failed": ["mvp", "1", "failed 2/5", "61.0 %"],
        "own/c-stopped": ["ncm", "0", "stopped 2/5", "61.0 %"],
        "own/d-broken": ["mvp", "0", "broken off", "-"],
        "own/e-waiting": ["mvp", "0", "not begun", "-"],
        "own/f-running": ["mvp", "0", "running 2/5", "61.0 %"],
    }


def test_a_run_whose_name_tells_strategy_and_seed_fits_a_terminal(
    make: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    make("20260101-120000-seed0-dualprompt", "start", "done", strategy="dualprompt", done=True)
    told = "experience 2/5: average accuracy 61.0 %, forgetting 3.0 points, 2.0 s, ETA 0:00:09"
    make("20260101-120000-seed1-dualprompt", "start", told, strategy="dualprompt", seed=1)
    assert main(["runs"]) == 0
    out, err = capsys.readouterr()
    header, first, second = out.splitlines()
    assert header.split() == ["run", "state", "figure", "age", "tags,", "note"]
    assert first.split()[:4] == ["own/20260101-120000-seed0-dualprompt", "done", "70.0", "%"]
    assert max(len(first), len(second)) <= 80
    assert err == "figure: average accuracy\n"


def test_a_figure_that_was_not_measured_gives_way_to_the_next(make: Make) -> None:
    folder = make("a", "start", "done", done=True)
    results = {"strategy": "mvp", "seed": 0, "A_auc": None, "A_avg": 0.5, "A_last": 0.25, "F_last": 0.0}
    (folder / "results.json").write_text(json.dumps(results))
    assert manage.read(folder).figure == "A_avg 50.0 %"


def test_runs_are_found_by_words_and_by_state(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    make("a", "start", "failed: no", strategy="ncm")
    make("b", "start", strategy="ncm", note="with small prompts", tags="paper")
    make("c", "start", "done", done=True)
    running = make("d", "start")
    (running / "lock").touch()
    with FolderLock(running):
        names = {
            words: [row[0] for row in listed(capsys, *words)]
            for words in [
                ("ncm",),
                ("ncm", "PAPER"),
                ("small",),
                ("--failed",),
                ("--running",),
                ("--dir", "runs/own"),
            ]
        }
    assert names == {
        ("ncm",): ["own/a", "own/b"],
        ("ncm", "PAPER"): ["own/b"],
        ("small",): ["own/b"],
        ("--failed",): ["own/a", "own/b"],
        ("--running",): ["own/d"],
        ("--dir", "runs/own"): ["a", "b", "c", "d"],
    }


def test_resume_of_the_folder_of_a_study_says_what_goes_on_with_it(
    make: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    make("mvp/seed0", "start", "stopped by signal 2 at ...")
    assert main(["resume", "runs/own"]) == 2
    err = capsys.readouterr().err
    assert "mvp/seed0; they are runs of a study, which goes on when its command, clprompt study" in err


def test_notes_and_tags_are_written_beside_the_configuration(
    make: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make("a", "start", note="before", tags="old")
    before = (run / "config.yaml").read_bytes()
    assert main(["runs", "tag", str(run), "paper", "new"]) == 0
    assert main(["runs", "note", str(run), "the good one"]) == 0
    assert main(["runs", "tag", str(run), "--drop", "old"]) == 0
    assert listed(capsys)[0][-1] == "[paper] [new] the good one"
    assert (run / "config.yaml").read_bytes() == before
    assert main(["runs", "tag", str(run), "--drop", "absent"]) == 2
    assert 'has no tag "absent"; its tags: paper, new' in capsys.readouterr().err


def test_a_run_is_removed_when_its_owner_says_so(
    make: Make, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = make("a", "start"), make("b", "start")
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))  # nobody who could be asked
    assert main(["runs", "rm", str(first)]) == 2
    assert "give --yes" in capsys.readouterr().err
    assert first.exists()
    assert main(["runs", "rm", str(first), "--yes"]) == 0
    assert not first.exists()
    assert second.exists()


def test_one_who_is_asked_may_say_no(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make("a", "start")
    answers = io.StringIO("n\n")
    answers.isatty = lambda: True
    monkeypatch.setattr("sys.stdin", answers)
    assert main(["runs", "rm", str(run)]) == 130
    assert run.exists()


def test_what_is_no_run_or_is_running_is_not_removed(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    run = make("a", "start")
    assert main(["runs", "rm", "runs/own", "--yes"]) == 2
    assert f"below it are {run}" in capsys.readouterr().err
    with FolderLock(run):
        assert main(["runs", "rm", str(run), "--yes"]) == 2
    assert "is in use by another process" in capsys.readouterr().err
    assert (run / "config.yaml").exists()


@pytest.mark.parametrize("command", [["resume", "runs"], ["predict", "runs", "x.png"]])
def test_a_folder_above_runs_names_them(
    command: list[str], make: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [make(f"run-{number}", "start") for number in range(6)]
    assert main(command) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        "clprompt: error: runs is not the folder of a run: it holds no config.yaml, but below it are "
        f"{', '.join(map(str, runs[1:]))} and 1 more"
    )


@pytest.mark.parametrize(
    ("seconds", "text"), [(5, "5 s"), (200, "3 min"), (3 * 3600, "3 h"), (49 * 3600, "2 d")]
)
def test_an_age_has_one_unit(seconds: float, text: str, make: Make) -> None:
    run = manage.read(make("a", "start"))
    assert run.age(run.changed + seconds) == text
    assert abs(time.time() - run.changed) < 600
