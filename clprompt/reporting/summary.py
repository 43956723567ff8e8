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
# of runs on multi-hot targets
MULTI_LABEL_COLUMNS = {"mAP_last": "last mAP", "mAP_average": "average mAP", "CF1": "CF1", "OF1": "OF1"}
_WIDTH = 100  # columns of the printed text
_SHOWN = 15  # class groups that fit into them


def columns_of(summaries: Iterable[Mapping[str, float | None]]) -> dict[str, str]:
    """The figures that a table of these runs shows, with their titles."""
    summaries = list(summaries)
    if any("mAP_last" in summary for summary in summaries):
        return MULTI_LABEL_COLUMNS
    return ONLINE_COLUMNS if any("A_auc" in summary for summary in summaries) else COLUMNS


def text_summary(results: Mapping[str, tuple[ArrayLike, Mapping[str, float | None]]]) -> str:
    """The block that is printed at the end of a run, plain text of at most 100 columns.

    Args:
        results: by strategy, the accuracy matrix R [T, T] and `clprompt.metrics.accuracy.summarise` of it (for multi-hot
            targets, the mAP of each class group [T, groups] with that over all seen classes as the last column, and
            `clprompt.metrics.label_sets.summarise`); with more than one strategy a table compares them.
    """
    blocks = []
    for name, (matrix, summary) in results.items():
        title = _shortened(name, _WIDTH)
        if "mAP_last" in summary:
            figures = ", ".join(
                f"{text} {_percent(summary.get(key))}" for key, text in MULTI_LABEL_COLUMNS.items()
            )
            lines = _map_lines(np.asarray(matrix, dtype=np.float64))
            blocks.append("\n".join([title, "=" * len(title), *lines, f"{figures} (%)"]))
            continue
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


def _map_lines(matrix: NDArray[np.float64]) -> list[str]:
    """mAP in percent per class group and over all seen classes (the last column), after each experience."""
    if not len(matrix):
        return ["no evaluation at the end of an experience"]
    done, groups = len(matrix), matrix.shape[1] - 1
    shown = np.unique(np.linspace(0, groups - 1, min(groups, _SHOWN - 2)).round().astype(int))
    lines = ["mAP (%) on the classes of each group and on all seen classes, after each experience"]
    lines.append("group   " + "".join(f"{j + 1:6d}" for j in shown) + "    seen")
    for i in np.unique(np.linspace(0, done - 1, min(done, _SHOWN)).round().astype(int)):
        cells = "".join(f"{_percent(matrix[i, j]):>6}" for j in shown)
        lines.append(f"after{i + 1:3d}{cells}{_percent(matrix[i, -1]):>8}")
    if len(shown) < groups or done > _SHOWN:
        lines.append(f"({len(shown)} of {groups} groups; all of them: map_matrix.csv)")
    return lines


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
