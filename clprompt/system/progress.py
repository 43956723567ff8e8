"""How far a run is: a bar on a terminal, plain lines elsewhere, nothing in a library.

The engine reports to a `Progress` and knows no more about it. Indices start at 0, as in the records.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import time
from collections.abc import Iterable
from types import TracebackType
from typing import Any, Self, TextIO

from clprompt.errors import printable
from clprompt.system import launched

_NOTEBOOK_COLUMNS = 90  # beside the file browser of a notebook; what is wider is cut off there


class Progress:
    """Reports nothing. The base of those that do, and what library code passes when it wants silence.

    The order of the calls: `turn` where there are several runs; `start`; per experience `experience`, then
    per epoch `epoch` and one `step` per training step, then `evaluated`; `close` at the very end (leaving a
    `with` block closes). `start` again begins the next run.
    """

    def turn(self, number: int, total: int) -> None:
        """Of several runs, one after the other, run `number` is next; counted from 1."""

    def start(self, description: str, total_experiences: int) -> None:
        """A run begins; `description` names it."""

    def experience(self, index: int, total: int) -> None:
        """Experience `index` of `total` begins, and the one before is over."""

    def epoch(self, epoch: int, epochs: int, steps: int) -> None:
        """Epoch `epoch` of `epochs` begins; it has `steps` training steps (a resumed one reports fewer)."""

    def step(self) -> None:
        """One training step is done. Called for each: it has to be cheap."""

    def evaluated(self, text: str) -> None:
        """The experience is trained and evaluated; `text` says how well."""
        self.message(text)

    def message(self, text: str) -> None:
        """A line worth reading."""

    def close(self) -> None:
        """Everything is over, or was broken off. May be called twice."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Pace:
    """How long a run still takes, from what this process did of it.

    Args:
        total: experiences of the run.
    """

    def __init__(self, total: int) -> None:
        self.total = max(total, 1)
        self._first: float | None = None
        self._began = 0.0

    def begin(self, experiences: float) -> None:
        """So many experiences are done, and the next one begins; only the first call counts."""
        if self._first is None:
            self._first, self._began = experiences, time.perf_counter()

    def left(self, experiences: float) -> str:
        """What is left when so many experiences are done, as "ETA 0:12:30"; "" where nobody knows."""
        done = experiences - (self._first or 0.0)
        if self._first is None or done <= 0 or experiences >= self.total:
            return ""
        seconds = (time.perf_counter() - self._began) * (self.total - experiences) / done
        return f"ETA {clock(seconds)}"


class Turns:
    """Which of several runs is on, and how long all of them still take."""

    def __init__(self) -> None:
        self._began: float | None = None
        self._text = ""

    def next(self, number: int, total: int) -> None:
        """Run `number` of `total` is next; counted from 1."""
        now = time.perf_counter()
        self._began = now if self._began is None or number == 1 else self._began
        self._text = f"run {number} of {total}"
        if number > 1:
            left = (now - self._began) * (total - number + 1) / (number - 1)
            self._text += f" (all: ETA {clock(left)})"

    def title(self, description: str) -> str:
        """What a run is called, with its number where there are several; told once."""
        text, self._text = self._text, ""
        return f"{text}: {description}" if text else description


def write_line(text: str, stream: TextIO) -> None:
    """Write a line; one that nobody reads any more, as of `| head`, goes nowhere, as do those behind it."""
    try:
        print(text, file=stream, flush=True)
    except BrokenPipeError:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), stream.fileno())


def clock(seconds: float) -> str:
    """Seconds as hours, minutes and seconds: 1:02:03."""
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"


class Lines(Progress):
    """One line at the end of each epoch and experience, with its seconds: for log files and pipes.

    Lines of epochs say how long the run still takes.

    Args:
        stream: where the lines go.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._turns = Turns()
        self._pace = Pace(1)
        self._experience: tuple[int, int, float] | None = None  # index, total, when it began
        self._epoch: tuple[int, int, float] | None = None
        self._steps = self._done = 0

    def turn(self, number: int, total: int) -> None:
        self._turns.next(number, total)

    def start(self, description: str, total_experiences: int) -> None:
        self.close()
        self._pace = Pace(total_experiences)
        self._print(f"{self._turns.title(description)}: {_count(total_experiences, 'experience')}")

    def experience(self, index: int, total: int) -> None:
        self._end_experience()
        self._pace.begin(index)
        self._experience = (index, total, time.perf_counter())

    def epoch(self, epoch: int, epochs: int, steps: int) -> None:
        self._end_epoch()
        self._epoch = (epoch, epochs, time.perf_counter())
        self._steps, self._done = steps, 0

    def step(self) -> None:
        self._done += 1
        if self._done >= self._steps:
            self._end_epoch()

    def evaluated(self, text: str) -> None:
        self._end_epoch()
        self._experience = None  # the text says all that its own line would
        self._print(text)

    def message(self, text: str) -> None:
        self._print(text)

    def close(self) -> None:
        self._end_experience()

    def _end_epoch(self) -> None:
        if self._epoch is None:
            return
        epoch, epochs, began = self._epoch
        self._epoch = None
        if not self._done:  # a resumed run whose checkpoint was written at the epoch's end
            return
        experience, left = "", ""
        if self._experience:
            index, total, _ = self._experience
            experience = f"experience {_of(index, total)}, "
            left = self._pace.left(index + (epoch + 1) / epochs)
        parts = [_count(self._done, "step"), f"{time.perf_counter() - began:.1f} s", left]
        self._print(f"{experience}epoch {_of(epoch, epochs)}: {', '.join(filter(None, parts))}")

    def _end_experience(self) -> None:
        self._end_epoch()
        if self._experience is None:
            return
        index, total, began = self._experience
        self._experience = None
        self._print(f"experience {_of(index, total)}: {time.perf_counter() - began:.1f} s")

    def _print(self, text: str) -> None:
        write_line(printable(text), self._stream)


class Bar(Progress):
    """A bar with experience, epoch and the time that is left for the whole run.

    Args:
        console: a rich console on a terminal.
    """

    def __init__(self, console: Any = None) -> None:
        from rich.console import Console

        self._console = console or Console(stderr=True)
        self._notebook: bool = self._console.is_jupyter
        self._turns = Turns()
        self._live: Any = None
        self._task: Any = None
        self._total = self._epochs = self._steps = 1
        self._index = self._epoch = self._done = 0
        self._begun = False  # whether this run's first experience has
        self._drawn = 0.0

    def turn(self, number: int, total: int) -> None:
        self._turns.next(number, total)

    def start(self, description: str, total_experiences: int) -> None:
        from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        self.close()
        title = self._turns.title(description)
        if self._notebook:  # beside the title there is no room for the times
            print(printable(title), flush=True)
            title = ""
        # Drawn by this thread alone: a refreshing thread could hold its lock when a loader forks its workers.
        self._live = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:3.0f}%"),
            TextColumn("{task.fields[where]}"),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            console=self._console,
            auto_refresh=False,
            redirect_stdout=not self._notebook,
            redirect_stderr=not self._notebook,
        )
        self._live.start()
        self._total = max(total_experiences, 1)
        self._index = self._epoch = self._done = 0
        self._begun = False
        self._task = self._live.add_task(title, total=float(self._total), where="")
        self._draw(force=True)

    def experience(self, index: int, total: int) -> None:
        if self._live is None or (self._begun and index <= self._index):  # another run, not announced
            self.start("", total)
        self._begun = True
        self._index = index
        self._total = max(total, 1)
        self._epoch = self._done = 0
        self._epochs = self._steps = 1
        self._draw(force=True)

    def epoch(self, epoch: int, epochs: int, steps: int) -> None:
        self._epoch = epoch
        self._epochs = max(epochs, 1)
        self._steps = max(steps, 1)
        self._done = 0
        self._draw(force=True)

    def step(self) -> None:
        self._done += 1
        self._draw()

    def message(self, text: str) -> None:
        if self._notebook:  # rich would make a block of its own of each line
            print(printable(text), flush=True)
        else:
            self._console.print(printable(text), markup=False, highlight=False)

    def close(self) -> None:
        if self._live is None:
            return
        self._draw(force=True)
        live, self._live = self._live, None
        live.stop()

    def _draw(self, force: bool = False) -> None:
        now = time.monotonic()
        if self._live is None or not (force or now - self._drawn > 0.1):
            return
        self._drawn = now
        within = (self._epoch + min(self._done / self._steps, 1.0)) / self._epochs
        where = f"experience {_of(self._index, self._total)}  epoch {_of(self._epoch, self._epochs)}"
        done = min(self._index + within, self._total)
        self._live.update(self._task, completed=done, total=float(self._total), where=where)
        self._live.refresh()


class Stopwatch:
    """Seconds spent on each experience, over all the sessions of a run.

    Args:
        seconds: of the earlier sessions, as a checkpoint kept them.
    """

    def __init__(self, seconds: Iterable[float] = ()) -> None:
        self.seconds = list(seconds)
        self._last = time.perf_counter()

    def lap(self, experience: int) -> list[float]:
        """Add the time since the last lap to an experience; the seconds of all of them so far."""
        now = time.perf_counter()
        self.seconds += [0.0] * (experience + 1 - len(self.seconds))
        self.seconds[experience] += now - self._last
        self._last = now
        return list(self.seconds)


def create(stream: TextIO | None = None) -> Progress:
    """A bar where the stream (stderr unless told) is a terminal that can redraw a line, or in a notebook with
    ipywidgets, else plain lines.

    Of several processes of one run the first alone reports.
    """
    if launched.rank():
        return Progress()
    from rich.console import Console

    console = Console(file=stream or sys.stderr)
    if console.is_jupyter:
        if importlib.util.find_spec("ipywidgets") is None:  # which rich draws with
            return Lines(stream or sys.stdout)
        console.width = min(console.width, _NOTEBOOK_COLUMNS)
        return Bar(console)
    redraws = console.is_terminal and not console.is_dumb_terminal
    return Bar(console) if redraws else Lines(stream)


def _of(index: int, total: int) -> str:
    return f"{index + 1}/{total}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")
