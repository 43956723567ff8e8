"""The plain text that is printed at the end of a run: accuracy matrices, figures, and a table that compares."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray

# Figures of the summary by their short title in the table that compares strategies.
COLUMNS = {
    "average_accuracy": "average",
    "average_incremental_accuracy": "incremental",
    "forgetting": "forgetting",
    "backward_transfer": "transfer",
    "last_accuracy": "last",
}
# of runs under the online protocol
ONLINE_COLUMNS = {"A_auc": "A_auc", "A_avg": "A_avg", "A_last": "A_last", "F_last": "F_last"}
_WIDTH = 100  # columns of the printed text
_SHOWN = 15  # class groups that fit into them


def columns_of(summaries: Iterable[Mapping[str, float | None]]) -> dict[str, str]:
    """The figures that a table of these runs shows, with their titles."""
    return ONLINE_COLUMNS if any("A_auc" in summary for summary in summaries) else COLUMNS


def text_summary(results: Mapping[str, tuple[ArrayLike, Mapping[str, float | None]]]) -> str:
    """The block that is printed at the end of a run, plain text of at most 100 columns.

    Args:
        results: by strategy, the accuracy matrix R [T, T] and `clprompt.metrics.summarise` of it; with more
            than one strategy a table compares them.
    """
    blocks = []
    for name, (matrix, summary) in results.items():
        title = _shortened(name, _WIDTH)
        if "A_auc" in summary:
            figures = ", ".join(f"{key} {_percent(summary.get(key))}" for key in ONLINE_COLUMNS) + " (%)"
        else:
            average, lost = (_percent(summary.get(key)) for key in ("average_accuracy", "forgetting"))
            figures = f"average accuracy {average} %, forgetting {lost}{' points' if lost != '-' else ''}"
        lines = _matrix_lines(np.asarray(matrix, dtype=np.float64))
        blocks.append("\n".join([title, "=" * len(title), *lines, figures]))
    if len(results) > 1:
        columns = columns_of(summary for _, summary in results.values())
        width = min(max(map(len, [*results, "in percent"])), 40)
        lines = [
            f"{'in percent':{width}}" + "".join(f"{title:>{len(title) + 2}}" for title in columns.values())
        ]
        lines.append("-" * len(lines[0]))
        for name, (_, summary) in results.items():
            cells = (f"{_percent(summary.get(key)):>{len(title) + 2}}" for key, title in columns.items())
            lines.append(f"{_shortened(name, width):{width}}" + "".join(cells))
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def _matrix_lines(matrix: NDArray[np.float64]) -> list[str]:
    """The accuracy matrix in percent; of many groups every n-th, the first and the last always among them."""
    size = len(matrix)
    if size == 0:
        return ["no evaluation at the end of an experience"]
    shown = np.unique(np.linspace(0, size - 1, min(size, _SHOWN)).round().astype(int))
    lines = ["accuracy (%) on each class group, after each experience"]
    lines.append("group   " + "".join(f"{j + 1:6d}" for j in shown))
    for i in shown:
        lines.append(f"after{i + 1:3d}" + "".join(f"{_percent(matrix[i, j]):>6}" for j in shown))
    if len(shown) < size:
        lines.append(f"({len(shown)} of {size} experiences and groups; all of them: accuracy_matrix.csv)")
    return lines


def _percent(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{100 * value:.1f}"


def _shortened(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"
