"""Metrics as plain text in percent: the matrix of a run, of at most so many lines and columns."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

#: Columns of text that every terminal has.
WIDTH = 80
_SHOWN = 12  # class groups that fit into them
_NOTHING = "no evaluation at the end of an experience"


def percent(value: float | None) -> str:
    """A fraction in percent with one decimal; "-" where it is not defined."""
    return "-" if value is None or math.isnan(value) else f"{100 * value:.1f}"


def group_label(group: Sequence[int], names: Sequence[str], width: int = 24) -> str:
    """The names of a group's classes, "cat, hammer", shortened; "" where names are numbers and tell nothing.

    Args:
        group: class ids.
        names: of the classes 0..C-1.
        width: characters at most.
    """
    own = [str(names[c]) for c in group if c < len(names)]
    if not own or all(name.strip().isdigit() for name in own):
        return ""
    label = ", ".join(own)
    return label if len(label) <= width else f"{label[: width - 1].rstrip(' ,')}…"


def accuracy_lines(matrix: NDArray[np.float64], domains: Sequence[str] | None = None) -> list[str]:
    """The accuracy matrix; of many groups every n-th, the first and the last always among them.

    Args:
        matrix: [T, T], fractions.
        domains: the names of the groups where they are domains; None where they are class groups.
    """
    size = len(matrix)
    if size == 0:
        return [_NOTHING]
    shown = np.unique(np.linspace(0, size - 1, min(size, _SHOWN)).round().astype(int))
    word = "class group" if domains is None else "domain"
    lines = [f"accuracy (%) on each {word}, after each experience"]
    lines.append(f"{word[-6:].strip():8}" + "".join(f"{j + 1:6d}" for j in shown))
    for i in shown:
        lines.append(f"after{i + 1:3d}" + "".join(f"{percent(matrix[i, j]):>6}" for j in shown))
    if domains is not None:
        listed = ", ".join(f"{j + 1} {domains[j]}" for j in shown)
        lines += textwrap.wrap(f"domains: {listed}", WIDTH, break_on_hyphens=False)
    if len(shown) < size:
        lines.append(f"({len(shown)} of {size} experiences and groups; all of them: accuracy_matrix.csv)")
    return lines


def map_lines(matrix: NDArray[np.float64]) -> list[str]:
    """mAP per class group and over all seen classes, after each experience.

    Args:
        matrix: [T, groups + 1], fractions; the last column is that over all seen classes.
    """
    if not len(matrix):
        return [_NOTHING]
    done, groups = len(matrix), matrix.shape[1] - 1
    shown = np.unique(np.linspace(0, groups - 1, min(groups, _SHOWN - 2)).round().astype(int))
    lines = ["mAP (%) on the classes of each group and on all seen classes, after each experience"]
    lines.append("group   " + "".join(f"{j + 1:6d}" for j in shown) + "    seen")
    for i in np.unique(np.linspace(0, done - 1, min(done, _SHOWN)).round().astype(int)):
        cells = "".join(f"{percent(matrix[i, j]):>6}" for j in shown)
        lines.append(f"after{i + 1:3d}{cells}{percent(matrix[i, -1]):>8}")
    if len(shown) < groups or done > _SHOWN:
        lines.append(f"({len(shown)} of {groups} groups; all of them: map_matrix.csv)")
    return lines
