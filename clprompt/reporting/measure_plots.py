"""What is drawn of a run, by its measure: after each experience, at the end, and of several runs together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from clprompt.metrics import accuracy, label_sets
from clprompt.metrics.measure import Accuracy, LabelSets, Measure, Online
from clprompt.reporting import label_set_plots, plots

Record = Mapping[str, Any]
_Draw = Callable[[Sequence[Record], Record, Sequence[str], Sequence[Sequence[int]]], dict[str, Figure]]

#: Titles of a report's curves and of their vertical axes, by the names that `Measure.curves` gives them.
_CURVES = {
    "average_accuracy": ("Average accuracy over the class groups seen", "accuracy (%)"),
    "forgetting": ("Average forgetting", "forgetting (percentage points)"),
    "mAP": ("mAP over the classes seen", "mAP (%)"),
}


def of_evaluation(
    measure: Measure,
    records: Sequence[Record],
    record: Record,
    names: Sequence[str],
    groups: Sequence[Sequence[int]],
) -> dict[str, Figure]:
    """The plots of an evaluation at the end of an experience, by name.

    Args:
        measure: of the run.
        records: of the run so far, the evaluation among them.
        record: the evaluation.
        names: of the classes 0..C-1.
        groups: the class ids of each group.
    """
    return _OF_EVALUATION[measure.name](records, record, names, groups)


def at_the_end(measure: Measure, records: Sequence[Record]) -> dict[str, Figure]:
    """The plots that a finished run has besides, by name; on a dashboard they are charts."""
    if not isinstance(measure, Accuracy):
        return {}
    return {"forgetting": plots.forgetting(accuracy.accuracy_matrix(records))}


def of_runs(curves: Mapping[str, Mapping[str, ArrayLike]]) -> dict[str, bytes]:
    """The curves of several strategies together as PNG files, by the name of the curve.

    Args:
        curves: by the name that `Measure.curves` gives them and by strategy, fractions [S, T] of S seeds.
    """
    return {name: plots.png(plots.overlay(rows, *_CURVES[name])) for name, rows in curves.items()}


def _accuracy(
    records: Sequence[Record], record: Record, names: Sequence[str], groups: Sequence[Sequence[int]]
) -> dict[str, Figure]:
    return _matrix(records) | _confusion(record, names)


def _online(
    records: Sequence[Record], record: Record, names: Sequence[str], groups: Sequence[Sequence[int]]
) -> dict[str, Figure]:
    anytime = {"anytime_accuracy": plots.anytime_accuracy(records)}
    return _matrix(records) | anytime | _confusion(record, names)


def _label_sets(
    records: Sequence[Record], record: Record, names: Sequence[str], groups: Sequence[Sequence[int]]
) -> dict[str, Figure]:
    seen = label_sets.curve(records)
    by_group = label_sets.group_matrix(records, groups)
    by_class = label_sets.class_curves(records, len(names))
    return {
        "map_curves": label_set_plots.map_curves(seen, by_group),
        "class_ap": label_set_plots.class_ap(by_class, names),
    }


def _matrix(records: Sequence[Record]) -> dict[str, Figure]:
    matrix = accuracy.accuracy_matrix(records)
    return {
        "accuracy_matrix": plots.accuracy_matrix(matrix),
        "accuracy_curves": plots.accuracy_curves(matrix),
    }


def _confusion(record: Record, names: Sequence[str]) -> dict[str, Figure]:
    if record.get("confusion") is None:
        return {}
    counts = accuracy.confusion_matrix(record["confusion"], len(names))
    return {"confusion_matrix": plots.confusion_matrix(counts, names)}


_OF_EVALUATION: dict[str, _Draw] = {
    Accuracy.name: _accuracy,
    Online.name: _online,
    LabelSets.name: _label_sets,
}
