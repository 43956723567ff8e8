"""The plain text that is printed at the end of a run: matrices, metrics, and a table that compares."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray

from clprompt.metrics.measure import Accuracy, LabelSets, Measure, Online, measure_behind

Summary = Mapping[str, float | None]

_WIDTH = 100  # columns of the printed text
_SHOWN = 15  # class groups that fit into them


def text_summary(results: Mapping[str, tuple[ArrayLike, Summary]]) -> str:
    """The block that is printed at the end of a run, plain text of at most 100 columns.

    Args:
        results: by strategy, the matrix of its measure and the metrics of `results.json`
            (:meth:`clprompt.metrics.measure.Measure.matrix` and ``summarise``); with more than one strategy a
            table compares them.
    """
    blocks = []
    for name, (matrix, summary) in results.items():
        title, measure = _shortened(name, _WIDTH), measure_behind([summary])
        lines = _LINES[measure.name](np.asarray(matrix, dtype=np.float64))
        blocks.append("\n".join([title, "=" * len(title), *lines, _METRICS[measure.name](measure, summary)]))
    if len(results) > 1:
        columns = measure_behind(summary for _, summary in results.values()).columns
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


def _accuracy_metrics(measure: Measure, summary: Summary) -> str:
    average, lost = (_percent(summary.get(key)) for key in ("average_accuracy", "forgetting"))
    return f"average accuracy {average} %, forgetting {lost}{' points' if lost != '-' else ''}"


def _all_metrics(measure: Measure, summary: Summary) -> str:
    return ", ".join(f"{text} {_percent(summary.get(key))}" for key, text in measure.columns.items()) + " (%)"


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


_LINES: dict[str, Callable[[NDArray[np.float64]], list[str]]] = {
    Accuracy.name: _matrix_lines,
    Online.name: _matrix_lines,
    LabelSets.name: _map_lines,
}
_METRICS: dict[str, Callable[[Measure, Summary], str]] = {
    Accuracy.name: _accuracy_metrics,
    Online.name: _all_metrics,
    LabelSets.name: _all_metrics,
}
