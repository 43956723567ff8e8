"""Curves as one CSV file, for a spreadsheet or pandas."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from clprompt.registry import sinks
from clprompt.reporting.markup import csv_table
from clprompt.system.files import AppendOnlyFile
from clprompt.tracking.sink import Sink

_FILE = "scalars.csv"


@sinks.register("csv")
class ScalarTable(Sink):
    """`scalars.csv` in the run folder: step, tag and value of every point; see :class:`Sink`."""

    files: ClassVar[Sequence[str]] = (_FILE,)

    def __init__(self, folder: Path, earlier: Collection[str] = ()) -> None:
        super().__init__(folder, earlier)
        begun = (folder / _FILE).exists()  # of a resumed run it was cut back, and has its header
        self.file = AppendOnlyFile(folder / _FILE)
        if not begun:
            self.file.append(b"step,tag,value\n")

    def scalars(self, step: int, values: Mapping[str, float | None]) -> None:
        self.file.append(csv_table([step, tag, value] for tag, value in values.items()).encode())

    def flush(self) -> dict[str, int]:
        return {_FILE: self.file.sync()}

    def close(self) -> None:
        self.file.close()
