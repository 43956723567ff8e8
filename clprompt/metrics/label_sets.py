"""Metrics of multi-label class-incremental learning, over a whole evaluation set at once.

Conventions, and why a naive call of today's metric libraries gives other numbers:

* AP is the area under the precision-recall steps over *distinct* thresholds (scikit-learn's
  ``average_precision_score``): equal scores count together, nothing is interpolated.
* mAP is the mean over the seen classes *that have a positive*. torchmetrics gives such a class without
  positives the AP 0 and counts it.
* Scores are ranked as logits in float64. Probabilities in float32 are all 1.0 beyond a logit of 17 and tie;
  ``strict_reference=True`` ranks and thresholds those, as the first published implementation did.
* A label is predicted where its probability is *above* the threshold, 0.8 by default. 0/0 is 0.
* CF1 is the mean of the classes' F1. The other usual definition, the harmonic mean of mean precision and mean
  recall, is ``CF1_macro``.

All metrics are fractions in [0, 1].
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from clprompt.errors import DataError

FloatArray = NDArray[np.float64]
#: The metrics of an evaluation, by their names in the records.
METRICS = ("mAP", "CF1", "CF1_macro", "OF1", "OP", "OR")


@dataclass(frozen=True)
class MultiLabelScores:
    """The metrics of one evaluation.

    Attributes:
        mAP: mean of ``ap`` over the classes with a positive.
        ap: average precision per class, [C]; nan without a positive.
        precision, recall, f1: per class, [C].
        CF1, CF1_macro: mean of ``f1``; harmonic mean of mean precision and mean recall.
        OP, OR, OF1: precision, recall and F1 over all labels of all classes together.
    """

    mAP: float
    ap: FloatArray
    precision: FloatArray
    recall: FloatArray
    f1: FloatArray
    CF1: float
    CF1_macro: float
    OP: float
    OR: float
    OF1: float


@dataclass(frozen=True)
class LabelSetEvaluation:
    """The metrics on the test samples that have a seen label.

    Attributes:
        scores: None when there is no such sample.
        classes: the seen classes, ascending; the columns of what is given per class.
        images: how many test samples were evaluated.
        measure: the name of the measure, as the records say it.
        trained_head: the same of the method's trained head, where something else answered in its place.
    """

    scores: MultiLabelScores | None
    classes: list[int]
    images: int
    measure: str = "label_sets"
    trained_head: LabelSetEvaluation | None = None

    def record(self) -> dict[str, Any]:
        """The JSON form: the metrics by name, and per class "ap" and "f1" in the order of "classes"."""
        return {
            "measure": self.measure,
            "classes": self.classes,
            "images": self.images,
            **self.figures(),
            **({} if self.trained_head is None else {"trained_head": self.trained_head.figures()}),
        }

    def figures(self) -> dict[str, Any]:
        """The metrics by name, and per class "ap" and "f1": what stands under "trained_head" as well."""
        empty = [None] * len(self.classes)
        return {
            **{name: getattr(self.scores, name, None) for name in METRICS},
            "ap": empty if self.scores is None else self.scores.ap.tolist(),
            "f1": empty if self.scores is None else self.scores.f1.tolist(),
        }


def average_precision(scores: ArrayLike, targets: ArrayLike) -> FloatArray:
    """AP of every class: scores [n, C], 0/1 [n, C] -> [C]; nan for a class without a positive."""
    from sklearn.metrics import average_precision_score

    scores, targets = np.asarray(scores), np.asarray(targets)
    ap = np.full(targets.shape[1], np.nan)
    for c in np.flatnonzero(targets.any(axis=0)):
        ap[c] = average_precision_score(targets[:, c], scores[:, c])
    return ap


def multi_label_scores(
    logits: ArrayLike,
    targets: ArrayLike,
    classes: Sequence[int] | None = None,
    *,
    threshold: float = 0.8,
    strict_reference: bool = False,
) -> MultiLabelScores:
    """All metrics of one evaluation.

    Args:
        logits: [n, C], of all test images at once.
        targets: 0/1, [n, C].
        classes: the seen classes, whose columns alone count; None for all.
        threshold: probability above which a label is predicted.
        strict_reference: rank and threshold float32 probabilities in place of float64 logits.

    Raises:
        DataError: shapes that do not fit, targets other than 0 and 1, or no positive label at all.
    """
    scores, targets = np.asarray(logits), np.asarray(targets)
    if scores.ndim != 2 or scores.shape != targets.shape:
        raise DataError(f"logits and targets must both be [n, C], got {scores.shape} and {targets.shape}")
    if not np.isin(targets, (0, 1)).all():
        raise DataError("multi-hot targets must be 0 or 1")
    if not 0 < threshold < 1:
        raise DataError(f"the threshold must be between 0 and 1, got {threshold}")
    if classes is not None:
        scores, targets = scores[:, list(classes)], targets[:, list(classes)]
    if not targets.any():
        raise DataError("mAP is not defined: no test image has a label of the seen classes")
    if strict_reference:
        import torch

        scores = torch.sigmoid(torch.from_numpy(np.ascontiguousarray(scores, dtype=np.float32))).numpy()
        predicted = scores > np.float32(threshold)
    else:
        scores = scores.astype(np.float64)
        predicted = scores > np.log(threshold / (1 - threshold))
    ap = average_precision(scores, targets)
    correct = (predicted & (targets > 0)).sum(0)
    positive, present = predicted.sum(0), targets.sum(0)
    precision, recall = _ratio(correct, positive), _ratio(correct, present)
    overall = float(_ratio(correct.sum(), positive.sum())), float(_ratio(correct.sum(), present.sum()))
    f1 = _harmonic(precision, recall)
    return MultiLabelScores(
        mAP=float(np.nanmean(ap)),
        ap=ap,
        precision=precision,
        recall=recall,
        f1=f1,
        CF1=float(f1.mean()),
        CF1_macro=float(_harmonic(precision.mean(), recall.mean())),
        OP=overall[0],
        OR=overall[1],
        OF1=float(_harmonic(*overall)),
    )


def _ratio(above: ArrayLike, below: ArrayLike) -> FloatArray:
    above, below = np.asarray(above, dtype=np.float64), np.asarray(below, dtype=np.float64)
    return np.divide(above, below, out=np.zeros_like(above), where=below > 0)


def _harmonic(first: ArrayLike, second: ArrayLike) -> FloatArray:
    first, second = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    return _ratio(2 * first * second, first + second)


# --------------------------------------------------------------------------------------- of a run's records


def ends(records: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The evaluations at the ends of experiences, in order; of several of one experience the last."""
    last = {
        int(record["experience"]): record
        for record in records
        if record.get("kind") == "evaluation" and record["when"] == "experience"
    }
    return [last[experience] for experience in sorted(last)]


def curve(records: Iterable[Mapping[str, Any]], metric: str = "mAP") -> FloatArray:
    """One metric after each experience, [T]."""
    return np.array([_number(record[metric]) for record in ends(records)], dtype=np.float64)


def class_curves(records: Iterable[Mapping[str, Any]], num_classes: int) -> FloatArray:
    """AP of each class after each experience, [T, C]; nan for classes not seen yet or without a positive."""
    evaluations = ends(records)
    matrix = np.full((len(evaluations), num_classes), np.nan)
    for row, record in enumerate(evaluations):
        for class_id, value in zip(record["classes"], record["ap"], strict=True):
            matrix[row, class_id] = _number(value)
    return matrix


def group_matrix(records: Iterable[Mapping[str, Any]], groups: Sequence[Sequence[int]]) -> FloatArray:
    """mAP on the classes of each group after each experience, [T, groups]; nan where no class has an AP."""
    count = 1 + max((c for group in groups for c in group), default=-1)
    matrix = class_curves(records, count)
    columns = [matrix[:, list(group)] for group in groups]
    counts = [np.isfinite(column).sum(1) for column in columns]
    sums = [np.nansum(column, axis=1) for column in columns]
    pairs = zip(sums, counts, strict=True)
    return np.stack([np.where(n > 0, s / np.maximum(n, 1), np.nan) for s, n in pairs], axis=1)


def summarise(records: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """The metrics of a run by their names in ``results.json``: CF1 and OF1 after the last experience."""
    records = list(records)
    values = curve(records)
    values = values[~np.isnan(values)]
    last = ends(records)[-1] if values.size else {}
    return {
        "mAP_last": float(values[-1]) if values.size else float("nan"),
        "mAP_average": float(values.mean()) if values.size else float("nan"),
        **{name: _number(last.get(name)) for name in METRICS if name != "mAP"},
    }


def _number(value: float | None) -> float:
    return float("nan") if value is None else float(value)
