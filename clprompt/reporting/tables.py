"""Aligned columns of text, and means with their standard errors."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np


def columns(rows: Iterable[Sequence[str]]) -> list[str]:
    """Rows of equal length as aligned lines."""
    rows = list(rows)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]


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
