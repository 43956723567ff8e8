"""What a run says while it goes on: to whoever watches, and the same in its run.log."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clprompt.experiment import folder as runfolder
from clprompt.system.progress import Pace
from clprompt.tracking.tracker import RunTracker
from clprompt.training.engine import ProgressLike


class Telling:
    """A listener of the engine that says how well each experience went, and when the run will be done.

    Args:
        folder: the run folder.
        progress: a display; None for run.log alone.
        tracker: of the run; it hears of a record first.
        experiences: how many the stream has.
    """

    diagnostics = None

    def __init__(
        self, folder: Path, progress: ProgressLike | None, tracker: RunTracker, experiences: int
    ) -> None:
        self.folder = folder
        self.progress = progress
        self.tracker = tracker
        self.experiences = experiences
        self._pace = Pace(experiences)
        self._since = time.perf_counter()

    def begin(self, title: str, experience: int) -> None:
        """The run begins, or goes on, with this experience; counted from 0."""
        if self.progress:
            self.progress.start(title, self.experiences)
            self.progress.message(str(self.folder))
        self._pace.begin(experience)
        self._since = time.perf_counter()

    def note(self, text: str) -> None:
        """Say what is worth reading."""
        runfolder.log(self.folder, text)
        if self.progress:
            self.progress.message(text)

    def record(self, record: Mapping[str, Any]) -> None:
        if record["kind"] != "evaluation" or record["when"] != "experience":
            return
        number, now = record["experience"] + 1, time.perf_counter()
        metrics = self.tracker.measure.line(self.tracker.records, record, self.tracker.groups)
        parts = [metrics, f"{now - self._since:.1f} s", self._pace.left(number)]
        text = f"experience {number}/{self.experiences}: {', '.join(filter(None, parts))}"
        self._since = now
        runfolder.log(self.folder, text)
        if self.progress:
            self.progress.evaluated(text)

    def speed(self, step: int, images_per_second: float) -> None:
        """Nobody reads it in a line."""
