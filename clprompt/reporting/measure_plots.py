"""What is drawn of a run, by its measure: after each experience, at the end, and of several runs together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from clprompt.metrics import accuracy, label_sets
from clprompt.metrics.measure import Measure
from clprompt.metrics.text import group_label
from clprompt.reporting import label_set_plots, plots

Record = Mapping[str, Any]


@dataclass(frozen=True)
class _Drawn:
    """What a plot may look at.

    Attributes:
        measure: of the run.
        records: of the run so far.
        record: the last evaluation at the end of an experience; {} where a plot is not of an evaluation.
        names: of the classes 0..C-1.
        groups: the class ids of each group.
    """

    measure: Measure
    records: Sequence[Record]
    record: Record
    names: Sequence[str]
    groups: Sequence[Sequence[int]]

    def labels(self) -> list[str]:
        """Which classes each class group holds, as legends say it."""
        return [group_label(group, self.names) for group in self.groups]


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
    return _drawings(measure.plots, _Drawn(measure, records, record, names, groups))


def at_the_end(measure: Measure, records: Sequence[Record]) -> dict[str, Figure]:
    """The plots that a finished run has besides, by name; on a dashboard they are charts."""
    return _drawings(measure.final_plots, _Drawn(measure, records, {}, (), ()))


def of_runs(
    measure: Measure,
    curves: Mapping[str, Mapping[str, ArrayLike]],
    references: Mapping[str, Mapping[str, ArrayLike]],
    subject: str = "",
) -> dict[str, Figure]:
    """The curves of several strategies together, by the name of the curve.

    Args:
        measure: of the runs.
        curves: by the name that `Measure.curves` gives them and by strategy, fractions [S, T] of S seeds.
        references: by the name of a curve and by what they are called, the lines that it is held against.
        subject: the strategy that stands in front; "" for none.
    """
    return {
        name: plots.overlay(
            rows, *measure.curve_titles[name], references=references.get(name, {}), subject=subject
        )
        for name, rows in curves.items()
    }


def _drawings(names: Sequence[str], drawn: _Drawn) -> dict[str, Figure]:
    drawings = ((name, PLOTS[name](drawn)) for name in names)
    return {name: drawing for name, drawing in drawings if drawing is not None}


def _accuracy_matrix(drawn: _Drawn) -> Figure:
    names = accuracy.group_names(drawn.records)
    return plots.accuracy_matrix(accuracy.accuracy_matrix(drawn.records), names)


def _accuracy_curves(drawn: _Drawn) -> Figure:
    names = accuracy.group_names(drawn.records)
    line = drawn.measure.references(drawn.records).get("average_accuracy")
    beside = {} if line is None else {drawn.measure.reference_title: line}
    return plots.accuracy_curves(accuracy.accuracy_matrix(drawn.records), names, beside, drawn.labels())


def _anytime_accuracy(drawn: _Drawn) -> Figure:
    line = drawn.measure.anytime_reference(drawn.records)
    return plots.anytime_accuracy(drawn.records, {drawn.measure.reference_title: line} if line else {})


def _confusion_matrix(drawn: _Drawn) -> Figure | None:
    if drawn.record.get("confusion") is None:
        return None
    counts = accuracy.confusion_matrix(drawn.record["confusion"], len(drawn.names))
    return plots.confusion_matrix(counts, drawn.names, drawn.groups)


def _forgetting(drawn: _Drawn) -> Figure:
    names = accuracy.group_names(drawn.records)
    return plots.forgetting(accuracy.accuracy_matrix(drawn.records), names)


def _map_curves(drawn: _Drawn) -> Figure:
    seen, by_group = label_sets.curve(drawn.records), label_sets.group_matrix(drawn.records, drawn.groups)
    return label_set_plots.map_curves(seen, by_group, drawn.labels())


def _class_ap(drawn: _Drawn) -> Figure:
    by_class = label_sets.class_curves(drawn.records, len(drawn.names))
    return label_set_plots.class_ap(by_class, drawn.names)


#: What draws each plot that a measure names in `plots` or `final_plots`; None where there is nothing to draw.
PLOTS: dict[str, Callable[[_Drawn], Figure | None]] = {
    "accuracy_matrix": _accuracy_matrix,
    "accuracy_curves": _accuracy_curves,
    "anytime_accuracy": _anytime_accuracy,
    "confusion_matrix": _confusion_matrix,
    "forgetting": _forgetting,
    "map_curves": _map_curves,
    "class_ap": _class_ap,
}
