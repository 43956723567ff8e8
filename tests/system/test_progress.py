"""How far a run is: a bar on a terminal, plain lines elsewhere, silence in a library."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import re
import sys
import types
from importlib.machinery import ModuleSpec
from typing import Any

import pytest

from clprompt.system import progress


def test_plain_lines_are_one_for_each_epoch_and_message() -> None:
    stream = io.StringIO()
    with progress.create(stream) as lines:
        for run in range(2):
            lines.start(f"method, seed {run}", 2)
            for experience in range(2):
                lines.experience(experience, 2)
                for epoch in range(2):
                    lines.epoch(epoch, 2, 3)
                    for _ in range(3):
                        lines.step()
                lines.message("accuracy 0.5")
    text = stream.getvalue()
    assert "\r" not in text
    found = [line.split(": ")[0] for line in text.splitlines()]
    of_one_run = [
        *["experience 1/2, epoch 1/2", "experience 1/2, epoch 2/2", "accuracy 0.5", "experience 1/2"],
        *["experience 2/2, epoch 1/2", "experience 2/2, epoch 2/2", "accuracy 0.5", "experience 2/2"],
    ]
    assert found == ["method, seed 0", *of_one_run, "method, seed 1", *of_one_run]
    assert ": 3 steps, " in text


def test_an_epoch_that_was_resumed_midway_has_its_line_too() -> None:
    stream = io.StringIO()
    with progress.Lines(stream) as lines:
        lines.experience(1, 2)
        lines.epoch(0, 1, 5)
        lines.step()
    assert stream.getvalue().startswith("experience 2/2, epoch 1/1: 1 step, ")


def test_an_epoch_that_was_done_before_the_run_was_resumed_has_no_line() -> None:
    stream = io.StringIO()
    with progress.Lines(stream) as lines:
        lines.epoch(1, 2, 0)
    assert stream.getvalue() == ""


def test_lines_that_nobody_reads_any_more_stop_nothing() -> None:
    reader, writer = os.pipe()
    with open(writer, "w") as stream, progress.Lines(stream) as lines:
        lines.message("read by head")
        os.close(reader)
        lines.message("read by nobody")
        lines.message("nor this")


def test_what_came_of_an_experience_stands_in_place_of_its_own_line() -> None:
    stream = io.StringIO()
    with progress.Lines(stream) as lines:
        lines.start("method, seed 0", 1)
        lines.experience(0, 1)
        lines.epoch(0, 1, 1)
        lines.step()
        lines.evaluated("experience 1/1: average accuracy 50.0 %, 1.0 s")
    _, epoch, last = stream.getvalue().splitlines()
    assert epoch.startswith("experience 1/1, epoch 1/1: 1 step, ")
    assert last == "experience 1/1: average accuracy 50.0 %, 1.0 s"


def test_a_line_of_an_epoch_says_how_long_the_run_still_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now[0])
    stream = io.StringIO()
    with progress.Lines(stream) as lines:
        lines.start("method, seed 0", 4)
        lines.experience(1, 4)  # a resumed run: what came before it was not timed
        lines.epoch(0, 2, 1)
        now[0] = 60.0
        lines.step()
    assert stream.getvalue().splitlines()[1] == "experience 2/4, epoch 1/2: 1 step, 60.0 s, ETA 0:05:00"


@pytest.mark.parametrize("is_terminal", [False, True])
def test_of_several_runs_each_says_its_number_and_when_all_are_done(
    is_terminal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rich.console import Console

    now = [0.0]
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now[0])
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=150)
    with progress.Bar(console) if is_terminal else progress.Lines(stream) as display:
        for number in (1, 2, 3):
            display.turn(number, 3)
            display.start("method, seed 0", 2)
            now[0] += 1800.0
    text = stream.getvalue()
    for title in (
        "run 1 of 3: method",
        "run 2 of 3 (all: ETA 1:00:00): method",
        "run 3 of 3 (all: ETA 0:30:00)",
    ):
        assert title in text


def test_a_bar_shows_experience_epoch_and_the_time_left() -> None:
    from rich.console import Console

    stream = io.StringIO()
    with progress.Bar(Console(file=stream, force_terminal=True, width=100)) as bar:
        bar.start("method, seed 0", 2)
        for experience in range(2):
            bar.experience(experience, 2)
            bar.epoch(0, 1, 2)
            bar.message("[accuracy] 0.5")
            for _ in range(2):
                bar.step()
    text = stream.getvalue()
    for part in ("method, seed 0", "experience 2/2", "epoch 1/1", "ETA", "[accuracy] 0.5", "100%"):
        assert part in text


class Output(contextlib.nullcontext):
    """A widget of ipywidgets that shows what is displayed within it."""

    def clear_output(self, wait: bool) -> None:
        """What it shows next stands in the place of this."""


@pytest.fixture
def notebook(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """This process is a notebook's kernel; what it displays."""
    import rich.console

    shown: list[Any] = []
    monkeypatch.setattr(rich.console, "_is_jupyter", lambda: True)
    for name, content in (("ipywidgets", {"Output": Output}), ("IPython.display", {"display": shown.append})):
        module = types.ModuleType(name)
        module.__dict__.update(content, __spec__=ModuleSpec(name, None))
        monkeypatch.setitem(sys.modules, name, module)
    return shown


def test_a_notebook_has_a_bar_and_plain_lines_below_it(
    notebook: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    from rich.text import Text

    with progress.create() as bar:
        bar.turn(2, 12)
        bar.start("coda_prompt, seed 0", 10)
        bar.experience(9, 10)
        bar.epoch(0, 10, 1)
        bar.step()
        bar.message("experience 1/10: average accuracy 50.0 %")
        print("of a method")
    written = capsys.readouterr()
    assert written.out.splitlines() == [
        "run 2 of 12 (all: ETA 0:00:00): coda_prompt, seed 0",
        "experience 1/10: average accuracy 50.0 %",
        "of a method",
    ]
    assert written.err == ""
    last = [Text.from_ansi(one.text).plain.strip() for one in notebook if hasattr(one, "text")][-2]
    assert len(last) <= 90
    assert re.search(r"experience 10/10  epoch 1/10 \d:\d\d:\d\d ETA \S+$", last)
    assert "…" not in last


@pytest.mark.usefixtures("notebook")
def test_a_notebook_without_widgets_has_lines_and_no_warning(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with progress.create() as lines:
        lines.start("method", 1)
    assert capsys.readouterr().out == "method: 1 experience\n"
    assert not recwarn.list


def test_library_code_may_pass_a_display_that_shows_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.Progress() as silent:
        silent.start("method", 1)
        silent.experience(0, 1)
        silent.epoch(0, 1, 1)
        silent.step()
        silent.message("text")
    assert capsys.readouterr() == ("", "")


def test_a_stopwatch_goes_on_from_the_seconds_of_earlier_sessions() -> None:
    watch = progress.Stopwatch([10.0, 5.0])
    assert watch.lap(1)[0] == 10.0
    laps = watch.lap(3)  # nothing was done in experience 2
    assert laps[2] == 0.0
    assert 5.0 < laps[1] < 6.0
    assert 0.0 < laps[3] < 1.0
    assert watch.seconds == laps
