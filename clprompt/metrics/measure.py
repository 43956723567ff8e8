"""What a run is measured by: accuracy, that of an online or a few-shot protocol, or precision of label sets.

A measure is chosen once, by :func:`measure_of`, and named in every evaluation record (``"measure"``). The
evaluator walks and caches, the measure scores; tracker, summary, report and study ask it what to chart, print
and tabulate.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from clprompt.errors import ConfigError, DataError, nearest
from clprompt.metrics import accuracy, label_sets, text
from clprompt.metrics.accuracy import Evaluation
from clprompt.metrics.calibration import CALIBRATION_METRICS, calibration_error, summarise_calibration
from clprompt.metrics.label_sets import LabelSetEvaluation
from clprompt.metrics.last import LastPredictions
from clprompt.metrics.names import (
    NAMES_METRICS,
    summarise_names,
    template_accuracies,
    zero_shot_accuracy,
    zero_shot_curve,
)
from clprompt.metrics.retrieval import RETRIEVAL_METRICS, retrieval_scalars, summarise_retrieval

Record = Mapping[str, Any]
Rows = list[list[object]]


class Measure(ABC):
    """What evaluations score and what becomes of their records.

    Attributes:
        name: as the records say it.
        by_group: samples join class group by class group; False evaluates one set of samples.
        columns: the metrics of ``results.json`` that tables compare by, with short titles; the first one
            ranks.
        reported: those of them that a report over many runs shows, with their titles there.
        optional: further ones that tables show beside those where a run has them, with their titles.
        also_reported: further ones that the wider tables of a report show where a run has them.
        by_choice: further ones, which tables show where they are asked for, with their titles.
        deciding: the metrics by which a sweep may choose, higher being better.
        charts: scalars that belong into one chart, by its title: regular expressions over tags.
        plots: the drawings of an evaluation at the end of an experience, in order; see
            :mod:`clprompt.reporting.measure_plots`.
        final_plots: the drawings that a finished run has besides; on a dashboard they are charts.
        curve_titles: the titles of each of ``curves`` and of its vertical axis.
        two_kinds: what a report says where its table and its drawings tell two kinds of forgetting.
        reference_title: what the lines of ``references`` are called.
        told: the scalars that a run tells after each experience, by tag, with their titles and units.
    """

    name: ClassVar[str]
    by_group: ClassVar[bool] = True
    columns: ClassVar[Mapping[str, str]]
    reported: ClassVar[Mapping[str, str]]
    optional: ClassVar[Mapping[str, str]] = {}
    also_reported: ClassVar[Mapping[str, str]] = {}
    by_choice: ClassVar[Mapping[str, str]] = {}
    deciding: ClassVar[Sequence[str]]
    charts: Mapping[str, Sequence[str]]
    plots: ClassVar[Sequence[str]]
    final_plots: ClassVar[Sequence[str]] = ()
    curve_titles: ClassVar[Mapping[str, tuple[str, str]]]
    two_kinds: ClassVar[str] = ""
    reference_title: ClassVar[str] = ""
    told: ClassVar[Mapping[str, tuple[str, str]]]

    @classmethod
    def of_report(cls) -> dict[str, str]:
        """The metrics that the tables of a report show where a run has them, with their titles."""
        return {**cls.reported, **cls.optional, **cls.also_reported}

    @abstractmethod
    def checked(self, targets: Any) -> NDArray[Any]:
        """Test targets as an array.

        Raises:
            DataError: they are not what this measure scores.
        """

    @abstractmethod
    def shows(self, targets: NDArray[Any], classes: Sequence[int]) -> NDArray[np.bool_]:
        """Which samples belong to one of these classes, [n]."""

    @abstractmethod
    def score(
        self,
        logits: NDArray[Any],
        targets: NDArray[Any],
        seen: NDArray[np.int64],
        groups: Sequence[NDArray[np.int64]],
    ) -> Evaluation | LabelSetEvaluation:
        """The evaluation of these samples.

        Args:
            logits: [n, C], of samples with a seen class.
            targets: theirs, [n] or [n, C].
            seen: the ids of the seen classes, ascending.
            groups: rows of ``logits`` per group; a group may be empty.
        """

    @abstractmethod
    def predictions(
        self,
        images: NDArray[np.int64],
        targets: NDArray[Any],
        seen: NDArray[np.int64],
        logits: NDArray[Any],
        trained: NDArray[Any] | None,
    ) -> LastPredictions:
        """What of an evaluation is kept image by image.

        Args:
            images: indices into the test set, [n].
            targets: theirs, [n] or [n, C].
            seen: the ids of the seen classes, ascending.
            logits: [n, C].
            trained: those of the trained head, where something else answered; else None.
        """

    @abstractmethod
    def scalars(
        self, records: Sequence[Record], record: Record, groups: Sequence[Sequence[int]]
    ) -> dict[str, float | None]:
        """What an evaluation charts, by tag; what is not defined yet has no point.

        Args:
            records: of the run so far, the evaluation among them.
            record: the evaluation.
            groups: the class ids of each group.
        """

    def line(self, records: Sequence[Record], record: Record, groups: Sequence[Sequence[int]]) -> str:
        """What a run tells of an evaluation at the end of an experience; see :meth:`scalars`."""
        scalars = self.scalars(records, record, groups)
        return ", ".join(
            f"{title} {text.percent(scalars[tag])} {unit}"
            for tag, (title, unit) in self.told.items()
            if scalars.get(tag) is not None
        )

    @abstractmethod
    def summarise(self, records: Iterable[Record]) -> dict[str, float]:
        """The metrics of a run by their names in ``results.json``; fractions, nan where not defined."""

    @abstractmethod
    def matrix(self, records: Iterable[Record], groups: Sequence[Sequence[int]]) -> NDArray[np.float64]:
        """What is printed of each class group after each experience, [T, groups], or more columns.

        Args:
            records: of the run.
            groups: the class ids of each group.
        """

    @abstractmethod
    def matrix_lines(
        self, matrix: NDArray[np.float64], group_names: Sequence[str] | None = None
    ) -> list[str]:
        """The lines that are printed of :meth:`matrix`.

        Args:
            matrix: what it gives.
            group_names: of the groups where they are domains; None where they are class groups.
        """

    def shown(self, summaries: Iterable[Mapping[str, Any]]) -> dict[str, str]:
        """The titles of ``columns``, and of those ``optional`` metrics that some run has.

        Args:
            summaries: the metrics of ``results.json`` of runs.
        """
        known = {key for summary in summaries for key, value in summary.items() if value is not None}
        return {**self.columns, **{key: title for key, title in self.optional.items() if key in known}}

    def headline(self, summary: Mapping[str, float | None]) -> str:
        """The line that is printed of a run's metrics: all columns.

        Args:
            summary: the metrics of ``results.json``.
        """
        metrics = (
            f"{title} {text.percent(summary.get(key))}" for key, title in self.shown([summary]).items()
        )
        return ", ".join(metrics) + " (%)"

    @abstractmethod
    def curves(self, records: Iterable[Record]) -> dict[str, NDArray[np.float64]]:
        """The metrics that a report draws over the experiences, each [T]."""

    def references(self, records: Iterable[Record]) -> dict[str, NDArray[np.float64]]:
        """Lines [T] that some of ``curves`` are to be held against, by the name of the curve."""
        return {}

    def anytime(self, records: Iterable[Record]) -> dict[int, float]:
        """What periodic evaluations scored by the sample count at which they were due; {} without such."""
        return {}

    def anytime_reference(self, records: Iterable[Record]) -> dict[int, float]:
        """What :meth:`anytime` is to be held against, by sample count; {} without such."""
        return {}

    @abstractmethod
    def tables(
        self, records: Sequence[Record], names: Sequence[str], groups: Sequence[Sequence[int]]
    ) -> dict[str, Rows]:
        """The tables of a finished run by file name; none without an evaluation after an experience.

        Args:
            records: of the run.
            names: of the classes 0..C-1.
            groups: the class ids of each group.

        Returns:
            The header and the lines of each; None is an empty cell.
        """

    def notes(self, record: Record, names: Sequence[str], groups: Sequence[Sequence[int]]) -> dict[str, Rows]:
        """Tables, by tag, that stand beside the charts of an evaluation at the end of an experience."""
        return {}


class Accuracy(Measure):
    """One label per sample: the accuracy on each group, and what is forgotten of it.

    Args:
        group_names: of the groups where they are domains; None where they are class groups.
    """

    name = "accuracy"
    columns: ClassVar[Mapping[str, str]] = {
        "average_accuracy": "average",
        "average_incremental_accuracy": "incremental",
        "forgetting": "forgetting",
        "backward_transfer": "backward transfer",
        "last_accuracy": "last",
    }
    reported: ClassVar[Mapping[str, str]] = {
        "average_accuracy": "average accuracy",
        "average_incremental_accuracy": "incremental",
        "forgetting": "forgetting",
    }
    optional: ClassVar[Mapping[str, str]] = {
        "zero_shot": NAMES_METRICS["zero_shot"],
        **{key: RETRIEVAL_METRICS[key] for key in ("recall_at_1", "frozen_recall_at_1")},
    }
    also_reported: ClassVar[Mapping[str, str]] = {
        key: NAMES_METRICS[key] for key in ("transfer", "base_new_H")
    }
    by_choice: ClassVar[Mapping[str, str]] = {
        "average_incremental_accuracy_by_samples": "incremental by samples",
        "nonnegative_forgetting": "nonnegative forgetting",
        **CALIBRATION_METRICS,
        **NAMES_METRICS,
        **RETRIEVAL_METRICS,
    }
    deciding: ClassVar[Sequence[str]] = (
        "average_accuracy",
        "average_incremental_accuracy",
        "average_incremental_accuracy_by_samples",
        "last_accuracy",
    )
    charts: Mapping[str, Sequence[str]] = {
        # a line of each run that is selected: of twelve runs, twelve
        "average accuracy": [r"^accuracy/average$", r"^names/zero_shot$"],
        "forgetting": [r"^accuracy/forgetting$"],
        "accuracy per class group (select one run)": [r"^accuracy/group_\d+$"],
    }
    plots: ClassVar[Sequence[str]] = ("accuracy_matrix", "accuracy_curves", "confusion_matrix")
    final_plots: ClassVar[Sequence[str]] = ("forgetting",)
    curve_titles: ClassVar[Mapping[str, tuple[str, str]]] = {
        "average_accuracy": ("Average accuracy over the groups seen", "accuracy (%)"),
        "forgetting": ("Average forgetting", "forgetting (percentage points)"),
    }
    reference_title: ClassVar[str] = "zero-shot line"
    told: ClassVar[Mapping[str, tuple[str, str]]] = {
        "accuracy/average": ("average accuracy", "%"),
        "accuracy/forgetting": ("forgetting", "points"),
    }

    def __init__(self, group_names: Sequence[str] | None = None) -> None:
        self.group_names = None if group_names is None else list(group_names)
        if group_names is not None:
            self.charts = {
                **{title: Accuracy.charts[title] for title in ("average accuracy", "forgetting")},
                "accuracy per domain (select one run)": ["^accuracy/domain_"],
                "forgetting per domain (select one run)": ["^forgetting/domain_"],
            }

    def checked(self, targets: Any) -> NDArray[Any]:
        labels = np.asarray(targets)
        if labels.ndim != 1:
            raise DataError(
                "accuracy is not defined on multi-hot targets; evaluate them by the measure LabelSets()"
            )
        return labels

    def shows(self, targets: NDArray[Any], classes: Sequence[int]) -> NDArray[np.bool_]:
        return np.isin(targets, classes)

    def score(
        self,
        logits: NDArray[Any],
        targets: NDArray[Any],
        seen: NDArray[np.int64],
        groups: Sequence[NDArray[np.int64]],
    ) -> Evaluation:
        """Accuracy over all samples and over those of each group, and which classes were taken for which."""
        predicted = _predicted(logits)
        right = predicted == targets
        return Evaluation(
            accuracy=float(right.sum() / len(right)) if len(right) else math.nan,
            groups=[float(right[rows].sum() / len(rows)) if len(rows) else None for rows in groups],
            confusion=Counter(zip(targets.tolist(), predicted.tolist(), strict=True)),
            measure=self.name,
            group_names=self.group_names,
            calibration_error=calibration_error(logits, targets),
        )

    def predictions(
        self,
        images: NDArray[np.int64],
        targets: NDArray[Any],
        seen: NDArray[np.int64],
        logits: NDArray[Any],
        trained: NDArray[Any] | None,
    ) -> LastPredictions:
        order = np.argsort(images)
        return LastPredictions(
            images[order].astype(np.int32),
            targets[order].astype(np.int32),
            _predicted(logits)[order].astype(np.int32),
            None if trained is None else _predicted(trained)[order].astype(np.int32),
        )

    def scalars(
        self, records: Sequence[Record], record: Record, groups: Sequence[Sequence[int]]
    ) -> dict[str, float | None]:
        if record["when"] == "anytime":
            return {"anytime/accuracy": record["accuracy"]}
        row = record["experience"]
        matrix = accuracy.accuracy_matrix(records)[: row + 1, : row + 1]
        names = accuracy.group_names([record])
        scalars = _by_group("accuracy", record["groups"], names)
        scalars["accuracy/average"] = accuracy.average_accuracy(matrix)
        scalars["accuracy/forgetting"] = accuracy.forgetting(matrix)
        if names is not None:
            scalars |= _by_group("forgetting", accuracy.group_forgetting(matrix), names)
        scalars |= _of_names(record.get("names"))
        scalars |= retrieval_scalars(record.get("retrieval"))
        scalars["accuracy/calibration_error"] = record.get("calibration_error")
        # A group that was not seen yet has no point, and no forgetting is defined after one experience.
        return _defined(scalars)

    def summarise(self, records: Iterable[Record]) -> dict[str, float]:
        records = list(records)
        return {
            **accuracy.summarise(records),
            **summarise_names(records),
            **summarise_retrieval(records),
            **summarise_calibration(records),
        }

    def matrix(self, records: Iterable[Record], groups: Sequence[Sequence[int]]) -> NDArray[np.float64]:
        """The accuracy matrix, [T, T]."""
        return accuracy.accuracy_matrix(records)

    def matrix_lines(
        self, matrix: NDArray[np.float64], group_names: Sequence[str] | None = None
    ) -> list[str]:
        return text.accuracy_lines(matrix, group_names)

    def headline(self, summary: Mapping[str, float | None]) -> str:
        """Average accuracy and forgetting, in words; the zero-shot line where there is one."""
        average, lost = (text.percent(summary.get(key)) for key in ("average_accuracy", "forgetting"))
        line = f"average accuracy {average} %, forgetting {lost}{' points' if lost != '-' else ''}"
        known = {key: title for key, title in self.optional.items() if summary.get(key) is not None}
        return ", ".join([line, *(f"{title} {text.percent(summary[key])} %" for key, title in known.items())])

    def curves(self, records: Iterable[Record]) -> dict[str, NDArray[np.float64]]:
        matrix = accuracy.accuracy_matrix(records)
        return {
            "average_accuracy": accuracy.accuracy_curve(matrix),
            "forgetting": accuracy.forgetting_curve(matrix),
        }

    def references(self, records: Iterable[Record]) -> dict[str, NDArray[np.float64]]:
        """The zero-shot line of a run on names."""
        line = zero_shot_curve(records)
        return {} if line is None else {"average_accuracy": line}

    def tables(
        self, records: Sequence[Record], names: Sequence[str], groups: Sequence[Sequence[int]]
    ) -> dict[str, Rows]:
        last = last_evaluation(records)
        if last is None:
            return {}
        matrix = accuracy.accuracy_matrix(records)
        group_names = accuracy.group_names(records)
        header: list[object] = ["after_experience", *(group_names or _group_titles(len(matrix)))]
        lines: Rows = [[i + 1, *map(_cell, row)] for i, row in enumerate(matrix)]
        tables: dict[str, Rows] = {"accuracy_matrix.csv": [header, *lines]}
        alone = template_accuracies(last.get("names") or {})
        if alone:
            rows: Rows = [[template, _cell(value)] for template, value in alone.items()]
            tables["zero_shot_templates.csv"] = [["template", "accuracy"], *rows]
        if group_names is not None:
            tables["per_domain_accuracy.csv"] = _domain_rows(accuracy.domain_metrics(records))
        if last.get("confusion") is not None:
            counts = accuracy.confusion_matrix(last["confusion"], len(names))
            tables["per_class_accuracy.csv"] = _class_rows(counts, names, groups)
            tables["confusion_matrix.csv"] = [
                ["true class \\ predicted class", *names],
                *([name, *row] for name, row in zip(names, counts.tolist(), strict=True)),
            ]
            tables["per_class_history.csv"] = _class_history(records, names, groups)
        return tables

    def notes(self, record: Record, names: Sequence[str], groups: Sequence[Sequence[int]]) -> dict[str, Rows]:
        if record.get("confusion") is None:
            return {}
        counts = accuracy.confusion_matrix(record["confusion"], len(names))
        return {"per_class_accuracy": [row for row in _class_rows(counts, names, groups) if row[3]]}


def _of_names(names: Record | None) -> dict[str, float | None]:
    """What an evaluation charts of names that were not trained, by tag."""
    if names is None:
        return {}
    own = [value for value in names["own"] if value is not None]
    return {
        "names/zero_shot": zero_shot_accuracy(names),
        "names/transfer": sum(own) / len(own) if own else None,
        "names/base_new_H": accuracy.harmonic_mean(names["base"], names["new"]),
        "names/base_new_H_of_all": accuracy.harmonic_mean(names["base_of_all"], names["new_of_all"]),
    }


class Online(Accuracy):
    """Accuracy under the online protocol, where evaluations come while the stream goes on."""

    name = "online"
    columns: ClassVar[Mapping[str, str]] = {
        "A_auc": "A_auc",
        "A_avg": "A_avg",
        "A_last": "A_last",
        "F_last": "F_last",
    }
    reported: ClassVar[Mapping[str, str]] = columns
    by_choice: ClassVar[Mapping[str, str]] = {**CALIBRATION_METRICS, **NAMES_METRICS, **RETRIEVAL_METRICS}
    curve_titles: ClassVar[Mapping[str, tuple[str, str]]] = {
        **Accuracy.curve_titles,
        "forgetting": (
            "Average forgetting of the class groups (not F_last)",
            "forgetting (percentage points)",
        ),
    }
    two_kinds: ClassVar[str] = (
        "Two kinds of forgetting: F_last is a mean over single classes, each less its best accuracy after an "
        "earlier experience; the drawing is the mean over class groups, the classes of one home experience "
        "together."
    )
    deciding: ClassVar[Sequence[str]] = ("A_auc", "A_avg", "A_last")
    plots: ClassVar[Sequence[str]] = (
        "accuracy_matrix",
        "accuracy_curves",
        "anytime_accuracy",
        "confusion_matrix",
    )

    def summarise(self, records: Iterable[Record]) -> dict[str, float]:
        """The protocol's own metrics, then those of :class:`Accuracy`."""
        records = list(records)
        return {**accuracy.online_metrics(records), **super().summarise(records)}

    def headline(self, summary: Mapping[str, float | None]) -> str:
        """All columns: the protocol's own metrics, where :class:`Accuracy` names two of its own."""
        return Measure.headline(self, summary)

    def anytime(self, records: Iterable[Record]) -> dict[int, float]:
        """The accuracy of each periodic evaluation by the sample count at which it was due."""
        return {
            int(record["nominal"]): float(record["accuracy"])
            for record in records
            if record.get("when") == "anytime"
            and record.get("nominal")
            and record.get("accuracy") is not None
        }

    def anytime_reference(self, records: Iterable[Record]) -> dict[int, float]:
        """The zero-shot line of a run on names: after each session, over the test images of classes seen."""
        return {
            int(record["samples"]): float(record["names"]["zero_shot_base"])
            for record in records
            if record.get("when") == "experience"
            and (record.get("names") or {}).get("zero_shot_base") is not None
        }


class FewShot(Accuracy):
    """Accuracy on a few-shot stream: on base and on novel classes, and their harmonic mean.

    Args:
        base_classes: the class ids of the first experience; all others are novel.
    """

    name = "few_shot"
    columns: ClassVar[Mapping[str, str]] = {
        "harmonic_mean_accuracy": "harmonic mean",
        "base_accuracy": "base",
        "novel_accuracy": "novel",
        "average_harmonic_mean_accuracy": "average harmonic",
        "performance_drop": "drop",
        "last_accuracy": "last",
    }
    reported: ClassVar[Mapping[str, str]] = columns
    by_choice: ClassVar[Mapping[str, str]] = {**Accuracy.reported, **Accuracy.by_choice}
    deciding: ClassVar[Sequence[str]] = (
        *("harmonic_mean_accuracy", "average_harmonic_mean_accuracy"),
        *("base_accuracy", "novel_accuracy", "last_accuracy"),
    )
    charts: Mapping[str, Sequence[str]] = {
        "base and novel accuracy": [r"^accuracy/(base|novel|harmonic_mean)$"],
        **Accuracy.charts,
    }
    curve_titles: ClassVar[Mapping[str, tuple[str, str]]] = {
        "harmonic_mean_accuracy": ("Harmonic mean of base and novel accuracy", "harmonic mean (%)"),
        **Accuracy.curve_titles,
    }
    told: ClassVar[Mapping[str, tuple[str, str]]] = {
        "accuracy/harmonic_mean": ("harmonic mean", "%"),
        **Accuracy.told,
    }

    def __init__(self, base_classes: Sequence[int] = ()) -> None:
        super().__init__()
        self.base_classes = frozenset(base_classes)

    def score(
        self,
        logits: NDArray[Any],
        targets: NDArray[Any],
        seen: NDArray[np.int64],
        groups: Sequence[NDArray[np.int64]],
    ) -> Evaluation:
        """As of all labels, and the accuracy over the samples of base and of novel classes."""
        evaluation = super().score(logits, targets, seen, groups)
        right: Counter[bool] = Counter()
        all_of: Counter[bool] = Counter()
        for (target, predicted), count in evaluation.confusion.items():
            all_of[target in self.base_classes] += count
            right[target in self.base_classes] += count * (target == predicted)
        return replace(
            evaluation,
            of_parts={
                name: right[base] / all_of[base] if all_of[base] else None
                for name, base in (("base_accuracy", True), ("novel_accuracy", False))
            },
        )

    def scalars(
        self, records: Sequence[Record], record: Record, groups: Sequence[Sequence[int]]
    ) -> dict[str, float | None]:
        scalars = super().scalars(records, record, groups)
        if record["when"] == "experience":
            base, novel = record["base_accuracy"], record["novel_accuracy"]
            scalars |= {"accuracy/base": base, "accuracy/novel": novel}
            scalars["accuracy/harmonic_mean"] = accuracy.harmonic_mean(base, novel)
        return _defined(scalars)

    def summarise(self, records: Iterable[Record]) -> dict[str, float]:
        """The protocol's own metrics, then those of :class:`Accuracy`."""
        records = list(records)
        return {**accuracy.few_shot_metrics(records), **super().summarise(records)}

    def headline(self, summary: Mapping[str, float | None]) -> str:
        """All columns, where :class:`Accuracy` names two of its own."""
        return Measure.headline(self, summary)

    def curves(self, records: Iterable[Record]) -> dict[str, NDArray[np.float64]]:
        records = list(records)
        harmonic = accuracy.harmonic_mean_curve(records)
        return {"harmonic_mean_accuracy": harmonic, **super().curves(records)}

    def tables(
        self, records: Sequence[Record], names: Sequence[str], groups: Sequence[Sequence[int]]
    ) -> dict[str, Rows]:
        tables = super().tables(records, names, groups)
        return {**tables, "few_shot.csv": _few_shot_rows(records)} if tables else tables


class LabelSets(Measure):
    """Any number of labels per sample: mAP and F1 over one set of all samples with a seen label.

    Args:
        threshold: probability above which a label counts as predicted.
        strict_reference: see :func:`clprompt.metrics.label_sets.multi_label_scores`.
    """

    name = "label_sets"
    by_group: ClassVar[bool] = False
    columns: ClassVar[Mapping[str, str]] = {
        "mAP_last": "last mAP",
        "mAP_average": "average mAP",
        "CF1": "CF1",
        "OF1": "OF1",
    }
    reported: ClassVar[Mapping[str, str]] = {
        "mAP_last": "mAP last",
        "mAP_average": "mAP average",
        "CF1": "CF1",
        "OF1": "OF1",
    }
    deciding: ClassVar[Sequence[str]] = ("mAP_last", "mAP_average", "CF1", "OF1")
    charts: Mapping[str, Sequence[str]] = {
        "mAP over the seen classes": [r"^mAP/seen$"],
        "mAP per class group (select one run)": [r"^mAP/group_\d+$"],
        "F1": [r"^multi_label/(CF1|OF1)$"],
    }
    plots: ClassVar[Sequence[str]] = ("map_curves", "class_ap")
    curve_titles: ClassVar[Mapping[str, tuple[str, str]]] = {"mAP": ("mAP over the classes seen", "mAP (%)")}
    told: ClassVar[Mapping[str, tuple[str, str]]] = {"mAP/seen": ("mAP", "%")}

    def __init__(self, threshold: float = 0.8, strict_reference: bool = False) -> None:
        self.threshold = threshold
        self.strict_reference = strict_reference

    def checked(self, targets: Any) -> NDArray[Any]:
        hot = np.asarray(targets)
        if hot.ndim != 2 or not np.isin(hot, (0, 1)).all():
            raise DataError(f"multi-hot targets must be 0 or 1, [n, C]; got the shape {list(hot.shape)}")
        return hot

    def shows(self, targets: NDArray[Any], classes: Sequence[int]) -> NDArray[np.bool_]:
        return np.asarray(targets[:, [c for c in classes if c < targets.shape[1]]].any(1))

    def score(
        self,
        logits: NDArray[Any],
        targets: NDArray[Any],
        seen: NDArray[np.int64],
        groups: Sequence[NDArray[np.int64]] = (),
    ) -> LabelSetEvaluation:
        """The scores over the seen classes; groups are read off the classes' average precision instead."""
        hot = _over(targets, seen)
        scores = None
        if hot.any():
            scores = label_sets.multi_label_scores(
                logits[:, seen], hot, threshold=self.threshold, strict_reference=self.strict_reference
            )
        return LabelSetEvaluation(scores, seen.tolist(), len(targets), measure=self.name)

    def predictions(
        self,
        images: NDArray[np.int64],
        targets: NDArray[Any],
        seen: NDArray[np.int64],
        logits: NDArray[Any],
        trained: NDArray[Any] | None,
    ) -> LastPredictions:
        order = np.argsort(images)
        return LastPredictions(
            images[order].astype(np.int32),
            _over(targets, seen)[order].astype(np.uint8),
            logits[order][:, seen].astype(np.float32),
            None if trained is None else trained[order][:, seen].astype(np.float32),
            seen.astype(np.int32),
        )

    def scalars(
        self, records: Sequence[Record], record: Record, groups: Sequence[Sequence[int]]
    ) -> dict[str, float | None]:
        if record["when"] == "anytime":
            return _defined({"anytime/mAP": record["mAP"]})
        scalars = _by_group("mAP", label_sets.group_matrix([record], groups)[0])
        scalars["mAP/seen"] = record["mAP"]
        for key in label_sets.METRICS[1:]:
            scalars[f"multi_label/{key}"] = record[key]
        return _defined(scalars)

    def summarise(self, records: Iterable[Record]) -> dict[str, float]:
        return label_sets.summarise(records)

    def matrix(self, records: Iterable[Record], groups: Sequence[Sequence[int]]) -> NDArray[np.float64]:
        """mAP of each class group and, last, over all seen classes, [T, groups + 1]."""
        records = list(records)
        return np.column_stack([label_sets.group_matrix(records, groups), label_sets.curve(records)])

    def matrix_lines(
        self, matrix: NDArray[np.float64], group_names: Sequence[str] | None = None
    ) -> list[str]:
        return text.map_lines(matrix)

    def curves(self, records: Iterable[Record]) -> dict[str, NDArray[np.float64]]:
        return {"mAP": label_sets.curve(records)}

    def tables(
        self, records: Sequence[Record], names: Sequence[str], groups: Sequence[Sequence[int]]
    ) -> dict[str, Rows]:
        last = last_evaluation(records)
        if last is None:
            return {}
        matrix, seen = label_sets.group_matrix(records, groups), label_sets.curve(records)
        group_of = _group_of(groups)
        header: list[object] = ["after_experience", "seen", *_group_titles(len(groups))]
        classes: Rows = [["class", "name", "group", "ap", "f1"]]
        for c, ap, f1 in zip(last["classes"], last["ap"], last["f1"], strict=True):
            classes.append([c, names[c], group_of.get(c, ""), _cell(ap), _cell(f1)])
        lines: Rows = [[i + 1, _cell(seen[i]), *map(_cell, row)] for i, row in enumerate(matrix)]
        return {"map_matrix.csv": [header, *lines], "per_class_ap.csv": classes}


MEASURES: dict[str, type[Measure]] = {kind.name: kind for kind in (Accuracy, Online, FewShot, LabelSets)}
#: The key of records and results under which the figures of a run's trained head stand, where something else
#: answered in its place; and its name beside a label.
TRAINED_HEAD, TRAINED_HEAD_TITLE = "trained_head", "trained head"
#: What an evaluation says beside its figures.
_NO_FIGURES = (
    *("kind", "when", "step", "samples", "experience", "nominal", "measure", "group_names"),
    *("classes", "images"),
    "names",  # classes answer by their text there, whatever else answers otherwise
    "retrieval",  # embeddings are compared, whatever answers
)
#: Every metric of ``results.json`` that a table may show, by its title there.
TITLES = {
    key: title
    for kind in MEASURES.values()
    for key, title in {
        **kind.columns,
        **kind.reported,
        **kind.optional,
        **kind.also_reported,
        **kind.by_choice,
    }.items()
}

#: Those of which less is better.
LESS_IS_BETTER = frozenset(
    {
        *("forgetting", "nonnegative_forgetting", "F_last", "performance_drop", "calibration_error"),
        "zero_shot_template_std",
    }
)


def check_metrics(names: Iterable[str]) -> None:
    """Raises `ConfigError` at the first name that is none of ``TITLES``."""
    for name in names:
        if name not in TITLES:
            hint = nearest(name, TITLES)
            raise ConfigError(f'no metric is called "{name}"{hint}; known: {", ".join(TITLES)}')


def measure_of(
    targets: Any,
    online: bool = False,
    *,
    threshold: float = 0.8,
    group_names: Sequence[str] | None = None,
    base_classes: Sequence[int] | None = None,
) -> Measure:
    """The measure of a run, from what is evaluated.

    Args:
        targets: of the test set: labels [n], or multi-hot [n, C].
        online: the run is evaluated while its stream goes on.
        threshold: of label sets, the probability above which a label counts as predicted.
        group_names: see :class:`Accuracy`.
        base_classes: of a few-shot stream, which is measured as such unless online; None for others.
    """
    if np.ndim(targets) == 2:
        return LabelSets(threshold)
    if base_classes is not None and not online:
        return FewShot(base_classes)
    return Online(group_names) if online else Accuracy(group_names)


def measure_named(name: str) -> Measure:
    """The measure of records that name it.

    Raises:
        DataError: there is none of that name.
    """
    if name not in MEASURES:
        raise DataError(f'no measure is called "{name}"; known: {", ".join(MEASURES)}')
    return MEASURES[name]()


def measure_in(records: Iterable[Record]) -> Measure:
    """The measure of a run's records; accuracy without an evaluation.

    Records from before measures were named tell it by their keys: label sets have an "mAP", and the
    evaluations of online runs say at which sample count they were due ("nominal").
    """
    evaluations = [record for record in records if record.get("kind") == "evaluation"]
    for record in evaluations:
        if "measure" in record:
            return measure_named(record["measure"])
    if any("mAP" in record for record in evaluations):
        return LabelSets()
    if any("novel_accuracy" in record for record in evaluations):
        return FewShot()
    return Online() if any("nominal" in record for record in evaluations) else Accuracy()


def measure_behind(summaries: Iterable[Mapping[str, Any]]) -> Measure:
    """The measure behind metrics of ``results.json``, which names none: its first column is among them."""
    summaries = list(summaries)
    for kind in (LabelSets, Online, FewShot):
        if any(next(iter(kind.columns)) in summary for summary in summaries):
            return kind()
    return Accuracy()


def summarise(records: Iterable[Record]) -> dict[str, float]:
    """The metrics of a run by their names in ``results.json``, of whatever measure its records are."""
    records = list(records)
    return measure_in(records).summarise(records)


def of_trained_head(records: Iterable[Record]) -> list[Record]:
    """A run's evaluations with the figures of its trained head; [] where nothing else ever answered.

    An evaluation without such figures was answered by the trained head itself.

    Raises:
        DataError: figures that are none, or fewer than the evaluation itself has.
    """
    evaluations = [record for record in records if record.get("kind") == "evaluation"]
    if not any(TRAINED_HEAD in record for record in evaluations):
        return []
    return [_of_trained_head(record) if TRAINED_HEAD in record else record for record in evaluations]


def _of_trained_head(record: Record) -> Record:
    figures, known = record[TRAINED_HEAD], {*_NO_FIGURES, TRAINED_HEAD, "confusion"}
    lacking = record.keys() - known - (figures.keys() if isinstance(figures, Mapping) else set())
    if lacking or not isinstance(figures, Mapping):
        what = f"lacks {min(lacking)}" if isinstance(figures, Mapping) else "holds no figures"
        raise DataError(f"the {TRAINED_HEAD} of an evaluation of experience {record['experience']} {what}")
    return {**{key: record[key] for key in _NO_FIGURES if key in record}, **figures}


def trained_head_summary(records: Iterable[Record]) -> dict[str, float] | None:
    """The metrics of a run's trained head by name, see :func:`summarise`; None where it alone answered."""
    evaluations = of_trained_head(records)
    return summarise(evaluations) if evaluations else None


def last_evaluation(records: Sequence[Record]) -> Record | None:
    """The last evaluation at the end of an experience."""
    for record in reversed(records):
        if record.get("kind") == "evaluation" and record["when"] == "experience":
            return record
    return None


def _predicted(logits: NDArray[Any]) -> NDArray[np.int64]:
    """Logits [n, C] -> class ids [n]; of no image, there may be no class."""
    return logits.argmax(1) if len(logits) else np.empty(0, dtype=np.int64)


def _over(targets: NDArray[Any], seen: NDArray[np.int64]) -> NDArray[np.int64]:
    """Multi-hot targets over the seen classes; a model may know classes that no target names."""
    hot = np.zeros((len(targets), len(seen)), dtype=np.int64)
    named = seen < targets.shape[1]
    hot[:, named] = targets[:, seen[named]]
    return hot


def _by_group(
    metric: str, values: Iterable[float | None], names: Sequence[str] | None = None
) -> dict[str, Any]:
    """Scalars by tag: with the names of domains, or numbered so that the tags sort by group."""
    values = list(values)
    if names is not None:
        return {f"{metric}/domain_{name}": value for name, value in zip(names, values, strict=False)}
    width = max(2, len(str(len(values))))
    return {f"{metric}/group_{j + 1:0{width}d}": value for j, value in enumerate(values)}


def _defined(scalars: Mapping[str, float | None]) -> dict[str, float | None]:
    return {tag: value for tag, value in scalars.items() if value is not None and not math.isnan(value)}


def _cell(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else float(value)


def _group_titles(count: int) -> list[str]:
    return [f"group_{j + 1}" for j in range(count)]


def _domain_rows(metrics: Mapping[str, Mapping[str, float]]) -> Rows:
    """A line for each domain, from :func:`clprompt.metrics.accuracy.domain_metrics`."""
    lost = metrics["forgetting"]
    rows: Rows = [["domain", "accuracy", "forgetting"]]
    return rows + [[name, _cell(value), _cell(lost[name])] for name, value in metrics["accuracy"].items()]


def _few_shot_rows(records: Iterable[Record]) -> Rows:
    """Accuracy on base and novel classes and their harmonic mean, after each experience."""
    rows: Rows = [["after_experience", "accuracy", "base", "novel", "harmonic_mean"]]
    for record in records:
        if record.get("when") == "experience" and "novel_accuracy" in record:
            base, novel = record["base_accuracy"], record["novel_accuracy"]
            mean = _cell(accuracy.harmonic_mean(base, novel))
            rows.append([record["experience"] + 1, _cell(record["accuracy"]), base, novel, mean])
    return rows


def _group_of(groups: Sequence[Sequence[int]]) -> dict[int, int]:
    """The number of each class's group, counted from 1."""
    return {c: j + 1 for j, group in enumerate(groups) for c in group}


def _class_rows(counts: NDArray[np.int64], names: Sequence[str], groups: Sequence[Sequence[int]]) -> Rows:
    """Samples and accuracy of each class, from the confusion counts [C, C]."""
    group_of = _group_of(groups)
    rows: Rows = [["class", "name", "group", "samples", "correct", "accuracy"]]
    for c, name in enumerate(names):
        samples, correct = int(counts[c].sum()), int(counts[c, c])
        share = correct / samples if samples else None
        rows.append([c, name, group_of.get(c, ""), samples, correct, share])
    return rows


def _class_history(records: Iterable[Record], names: Sequence[str], groups: Sequence[Sequence[int]]) -> Rows:
    """Class by class its accuracy after each experience, and what most of its other images were taken for."""
    ends = []
    for record in accuracy.session_ends(records):
        if record.get("confusion") is None:
            continue
        counts = accuracy.confusion_matrix(record["confusion"], len(names))  # one of [C, C] at a time
        samples, correct = counts.sum(1), counts.diagonal().copy()
        np.fill_diagonal(counts, 0)
        ends.append((int(record["experience"]) + 1, samples, correct, counts.argmax(1), counts.max(1)))
    group_of = _group_of(groups)
    rows: Rows = [
        ["class", "name", "group", "after_experience", "samples", "correct", "accuracy", "taken_for", "times"]
    ]
    for c, name in enumerate(names):
        for after, *of_classes in ends:
            number, right, most, times = (int(values[c]) for values in of_classes)
            if number:
                taken: list[object] = [names[most] if times else None, times]
                rows.append([c, name, group_of.get(c, ""), after, number, right, right / number, *taken])
    return rows
