"""Aligned columns of text that fit a terminal, and means with their standard errors."""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Iterable, Sequence

import numpy as np

from clprompt.metrics.text import WIDTH

_GAP = "  "
# Cells that are never broken: numbers with their errors and intervals, and paths.
_FIGURES = re.compile(r"[-+<]?[0-9](?:[-+<0-9.± ]|,(?! ))*|-?")
_PATH = re.compile(r"\S*/\S*")


def columns(rows: Iterable[Sequence[str]], width: int = WIDTH) -> list[str]:
    """Rows of equal length as aligned lines; words wrap inside their column, numbers and paths never.

    Columns of numbers, whatever their header is, stand to the right. What is wider all the same becomes
    several tables, one below the other, each with the first column.

    Args:
        rows: cells of text; the first row may be a header.
        width: of the lines, where no single word is longer.
    """
    rows = list(rows)
    if not rows:
        return []
    least = [max(map(_least, column)) for column in zip(*rows, strict=True)]
    shown, used = [0], least[0]
    for number in range(1, len(least)):
        if used + len(_GAP) + least[number] > width and len(shown) > 1:
            rest = [0, *range(number, len(least))]
            first = columns([[row[n] for n in shown] for row in rows], width)
            return [*first, "", *columns([[row[n] for n in rest] for row in rows], width)]
        shown.append(number)
        used += len(_GAP) + least[number]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    while sum(widths) + len(_GAP) * (len(widths) - 1) > width:
        spare = [wide - narrow for wide, narrow in zip(widths, least, strict=True)]
        if max(spare) == 0:
            break
        # the widest gives way first
        widest = max((n for n, more in enumerate(spare) if more), key=lambda n: widths[n])
        widths[widest] -= 1
    numbers = [bool(below) and all(map(_FIGURES.fullmatch, below)) for _, *below in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [_wrapped(cell, wide) for cell, wide in zip(row, widths, strict=True)]
        for number in range(max(map(len, cells))):
            parts = (cell[number] if number < len(cell) else "" for cell in cells)
            padded = (
                part.rjust(wide) if right else part.ljust(wide)
                for part, wide, right in zip(parts, widths, numbers, strict=True)
            )
            lines.append(_GAP.join(padded).rstrip())
    return lines


def _is_whole(cell: str) -> bool:
    return bool(_FIGURES.fullmatch(cell) or _PATH.fullmatch(cell))


def _least(cell: str) -> int:
    """The width that a cell needs at least."""
    return len(cell) if _is_whole(cell) else max(map(len, cell.split()), default=0)


def _wrapped(cell: str, width: int) -> list[str]:
    if len(cell) <= width or _is_whole(cell):
        return [cell]
    return textwrap.wrap(cell, width, break_long_words=False, break_on_hyphens=False)


def paragraph(text: str, width: int = WIDTH, indent: str = "", hanging: str = "") -> str:
    """A line of words as lines of at most so many columns, behind an indent; after the first a larger one."""
    return textwrap.fill(
        text,
        width,
        initial_indent=indent,
        subsequent_indent=indent + hanging,
        break_long_words=False,
        break_on_hyphens=False,
    )


def mean_and_error(values: Iterable[float | None], *, signed: bool = False) -> str:
    """Fractions as "81.3 ± 0.4" in percent: the mean and its standard error; "-" where there is no value.

    Args:
        values: None and NaN are left out.
        signed: show the sign of a positive mean too, as for differences.
    """
    fractions = np.asarray(
        [value for value in values if value is not None and math.isfinite(value)], dtype=float
    )
    if len(fractions) == 0:
        return "-"
    mean = points(fractions.mean()) if signed else f"{100 * fractions.mean():.1f}"
    if len(fractions) == 1:
        return mean
    return f"{mean} ± {100 * fractions.std(ddof=1) / math.sqrt(len(fractions)):.1f}"


def points(difference: float) -> str:
    """A difference of fractions as "+1.2" percentage points; "-" where it is not defined."""
    return "-" if math.isnan(difference) else f"{100 * difference:+.1f}"


def interval(low: float, high: float) -> str:
    """The ends of an interval of such differences, "-0.5 .. +2.9"; "-" where there is none."""
    return "-" if math.isnan(low) else f"{points(low)} .. {points(high)}"


def probability(p: float) -> str:
    """A p-value in two digits; "-" where it is not defined."""
    if math.isnan(p):
        return "-"
    return f"{p:.2g}" if p >= 1e-4 else "<0.0001"
