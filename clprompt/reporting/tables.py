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
    mean = f"{100 * fractions.mean():{'+' if signed else ''}.1f}"
    if len(fractions) == 1:
        return mean
    return f"{mean} ± {100 * fractions.std(ddof=1) / math.sqrt(len(fractions)):.1f}"
