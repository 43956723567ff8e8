"""Numbers of the literature, each with its source, and beside them those of our runs.

A file of `configs/reported` holds them:

    title: ...
    metrics: [average_accuracy]          # of results.json; what a column of ours shows, joined by " / "
    streams: {cifar100: CIFAR-100}       # LABEL: title of the columns; labels are those of a study
    sources: {L: ...}                    # LETTER: where a number with [LETTER] stands
    rows:
      - {method: L2P, label: l2p, cifar100: "83.56 [L]"}     # without a label nothing here runs it
"""

from __future__ import annotations

import re
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from clprompt import schema
from clprompt.errors import ConfigError
from clprompt.reporting.markup import markdown_table
from clprompt.system import overlay

OURS = "clprompt"
REPORTED = "table of the literature"  # as messages call such a file


@dataclass(frozen=True)
class Reported:
    """Numbers of the literature; the attributes are the keys of the file.

    Attributes:
        title: what all numbers have in common.
        metrics: names of our metrics that compare with them.
        streams: title of each stream by its label.
        sources: by letter.
        rows: of each `method`, maybe a `label`, and by stream what is reported.
    """

    title: str
    metrics: list[str]
    streams: dict[str, str]
    sources: dict[str, str]
    rows: list[dict[str, str]]

    def table(self, ours: Mapping[tuple[str, str], str] | None = None) -> list[list[str]]:
        """The header and one line of cells per row.

        Args:
            ours: by stream and label what we measured; a number that is not there was not run, and its cell
                stays empty. "-" stands where nothing here runs the method, or nothing is reported.
        """
        ours = ours or {}
        lines = [["method", *(cell for title in self.streams.values() for cell in (title, OURS))]]
        for row in self.rows:
            cells = [row["method"]]
            for stream in self.streams:
                own = ours.get((stream, row["label"]), "") if "label" in row else "-"
                cells += [row.get(stream, "-"), own]
            lines.append(cells)
        return lines

    def markdown(self, ours: Mapping[tuple[str, str], str] | None = None) -> list[str]:
        """Title, table and sources as lines of Markdown."""
        sources = [f"- [{letter}] {text}" for letter, text in self.sources.items()]
        return [self.title, "", *markdown_table(self.table(ours)), "", *sources]


def read(name: str) -> Reported:
    """The packaged numbers of a name, or those in a file.

    Raises:
        ConfigError: no such file, or something in it is not as it must be.
    """
    path = overlay.find(name, REPORTED)
    values = overlay.read(path)
    try:
        return _checked(values)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def _checked(values: dict[str, Any]) -> Reported:
    hints = typing.get_type_hints(Reported)
    schema.check_keys(values, list(hints), "")
    held = Reported(**{key: schema.check(values.get(key), hint, key) for key, hint in hints.items()})
    for number, row in enumerate(held.rows):
        schema.check_keys(row, ["method", "label", *held.streams], f"rows.{number}")
        if "method" not in row:
            raise ConfigError(f"rows.{number}.method is missing")
        for stream in (stream for stream in held.streams if stream in row):
            letters = re.findall(r"\[(\w+)\]", row[stream])
            if not letters or any(letter not in held.sources for letter in letters):
                known = ", ".join(f"[{letter}]" for letter in held.sources)
                raise ConfigError(f'rows.{number}.{stream}: "{row[stream]}" names no source; known: {known}')
    return held
