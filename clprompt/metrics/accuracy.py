"""Metrics of class-incremental learning, in plain numpy.

Everything but the per-class metrics is a function of the accuracy matrix R [T, T]: `R[i, j]` is the accuracy,
in [0, 1], on class group j after experience i, and nan where no class of the group had been seen. A class
group holds the classes that are new with one experience. A group without classes or without test samples is a
column of nan; every mean runs over what is not nan, and a mean over nothing is nan.

Sources: Lopez-Paz and Ranzato 2017 (GEM; backward transfer), Chaudhry et al. 2018 (Riemannian walk;
forgetting), Rebuffi et al. 2017 (iCaRL; average incremental accuracy).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from clprompt.errors import DataError

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Evaluation:
    """Accuracy on the test samples of seen classes.

    Attributes:
        accuracy: over samples; nan when no class was seen.
        groups: per class group; None where no class of the group was seen.
        confusion: (target, predicted) -> count.
        measure: the name of the measure, as the records say it.
        group_names: of the groups, where they are domains and no class groups.
        of_parts: "base_accuracy" and "novel_accuracy" of a few-shot stream, over samples; None for a part of
            which no sample was evaluated.
        trained_head: the same of the method's trained head, where something else answered in its place.
        names: what :meth:`clprompt.metrics.names.OfNames.record` gives, where every class has a name that a
            text tower reads.
        retrieval: what :func:`clprompt.metrics.retrieval.search_all` gives, and the same of frozen features
            under "frozen", where it was asked for.
        calibration_error: see :func:`clprompt.metrics.calibration.calibration_error`.
    """

    accuracy: float
    groups: list[float | None]
    confusion: Counter[tuple[int, int]]
    measure: str = "accuracy"
    group_names: list[str] | None = None
    of_parts: dict[str, float | None] = field(default_factory=dict)
    trained_head: Evaluation | None = None
    names: dict[str, Any] | None = None
    retrieval: dict[str, Any] | None = None
    calibration_error: float | None = None

    def record(self) -> dict[str, Any]:
        """The JSON form; the confusion as sorted cells [target, predicted, count]."""
        cells = sorted([target, predicted, count] for (target, predicted), count in self.confusion.items())
        return {
            "measure": self.measure,
            "accuracy": self.accuracy,
            "groups": self.groups,
            "confusion": cells,
            **({} if self.group_names is None else {"group_names": self.group_names}),
            **self.of_parts,
            **({} if self.trained_head is None else {"trained_head": self.trained_head.figures()}),
            **({} if self.names is None else {"names": self.names}),
            **({} if self.retrieval is None else {"retrieval": self.retrieval}),
            **self._calibration(),
        }

    def figures(self) -> dict[str, Any]:
        """What stands under "trained_head": no confusion; of each class [class id, samples, right]."""
        samples, right = Counter[int](), Counter[int]()
        for (target, predicted), count in self.confusion.items():
            samples[target] += count
            right[target] += count * (target == predicted)
        per_class = [[c, samples[c], right[c]] for c in sorted(samples)]
        figures = {"accuracy": self.accuracy, "groups": self.groups, "per_class": per_class}
        return {**figures, **self.of_parts, **self._calibration()}

    def _calibration(self) -> dict[str, float]:
        return {} if self.calibration_error is None else {"calibration_error": self.calibration_error}


def accuracy_matrix(records: Iterable[Mapping[str, Any]]) -> FloatArray:
    """Accuracy matrix of a run from what its engine reported.

    Args:
        records: the lines of `metrics.jsonl`; only evaluations at the end of an experience count, and the
            last one of an experience if there are several.

    Returns:
        R [T, T], T the number of class groups; rows of experiences that were not evaluated are nan. [0, 0]
        without any such evaluation.

    Raises:
        DataError: records of a run on multi-hot targets.
        ValueError: records that differ in the number of groups or whose experience has no group.
    """
    rows: dict[int, Sequence[float | None]] = {}
    for record in records:
        if record.get("kind") != "evaluation" or record.get("when") != "experience":
            continue
        if "groups" not in record:
            raise DataError(
                "accuracy is not defined for a run on multi-hot targets; see clprompt.metrics.label_sets"
            )
        rows[int(record["experience"])] = record["groups"]
    size = len(next(iter(rows.values()), ()))
    matrix = np.full((size, size), np.nan)
    for experience, groups in rows.items():
        if len(groups) != size:
            raise ValueError(f"experience {experience} reports {len(groups)} class groups, others {size}")
        if not 0 <= experience < size:
            raise ValueError(f"experience {experience} was reported, but there are {size} class groups")
        matrix[experience] = [np.nan if value is None else value for value in groups]
    return matrix


def group_names(records: Iterable[Mapping[str, Any]]) -> list[str] | None:
    """The domains that are the groups of a run; None where they are class groups, which have numbers."""
    for record in records:
        if record.get("kind") == "evaluation" and record.get("group_names") is not None:
            return [str(name) for name in record["group_names"]]
    return None


def domain_metrics(records: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Accuracy after the last experience and forgetting of each domain, by name; {} of other runs.

    A domain without test images has neither.
    """
    records = list(records)
    names = group_names(records)
    if names is None:
        return {}
    matrix = accuracy_matrix(records)
    done = 1 + max((int(record["experience"]) for record in session_ends(records)), default=-1)
    matrix = matrix[:done, :done]
    last, lost = (matrix[-1], group_forgetting(matrix)) if done else ((), ())
    return {
        metric: {
            name: float(value)
            for name, value, column in zip(names, values, matrix.T, strict=False)
            if not np.isnan(column).all()
        }
        for metric, values in (("accuracy", last), ("forgetting", lost))
    }


def harmonic_mean(first: float | None, second: float | None) -> float:
    """2 a b / (a + b); 0 where both are 0, nan where one is not defined."""
    first, second = _number(first), _number(second)
    return 0.0 if first == second == 0 else 2 * first * second / (first + second)


def few_shot_metrics(records: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """The metrics of a few-shot stream besides those of any other.

    base_accuracy, novel_accuracy: after the last experience, over the test samples of the classes of the
    first experience and of all others. harmonic_mean_accuracy: of the two. average_harmonic_mean_accuracy:
    its mean over the experiences from the second on. performance_drop: accuracy on all classes after the
    first experience less that after the last.

    Sources: Tao et al. 2020 (arXiv 2004.10956; the protocol, the drop), Peng et al. 2022 (ALICE, arXiv
    2208.00147; the harmonic mean).
    """
    ends = session_ends(records)
    first, last = (ends[0], ends[-1]) if ends else ({}, {})
    base, novel = last.get("base_accuracy"), last.get("novel_accuracy")
    return {
        "harmonic_mean_accuracy": harmonic_mean(base, novel),
        "base_accuracy": _number(base),
        "novel_accuracy": _number(novel),
        "average_harmonic_mean_accuracy": mean_of_defined(harmonic_mean_curve(ends)),
        "performance_drop": _number(first.get("accuracy")) - _number(last.get("accuracy")),
    }


def harmonic_mean_curve(records: Iterable[Mapping[str, Any]]) -> FloatArray:
    """The harmonic mean of base and novel accuracy after each experience of a few-shot stream, [T]."""
    return np.array(
        [
            harmonic_mean(record["base_accuracy"], record["novel_accuracy"])
            for record in session_ends(records)
        ],
        dtype=np.float64,
    )


def average_accuracy(matrix: ArrayLike) -> float:
    """Mean accuracy over the class groups after the last experience: mean_j R[T-1, j]."""
    matrix = _square(matrix)
    return mean_of_defined(matrix[-1]) if len(matrix) else float("nan")


def accuracy_curve(matrix: ArrayLike) -> FloatArray:
    """Mean accuracy over the groups seen so far, after each experience: [T], mean_{j<=i} R[i, j]."""
    matrix = _square(matrix)
    return np.array([mean_of_defined(row[: i + 1]) for i, row in enumerate(matrix)], dtype=np.float64)


def average_incremental_accuracy(matrix: ArrayLike) -> float:
    """Mean of the accuracy curve over the experiences: mean_i mean_{j<=i} R[i, j]."""
    return mean_of_defined(accuracy_curve(matrix))


def average_incremental_accuracy_by_samples(records: Iterable[Mapping[str, Any]]) -> float:
    """Mean over the experiences of the accuracy over all test samples of the classes seen by then.

    A class group counts by its test samples here, where :func:`average_incremental_accuracy` weighs groups
    equally; the two agree where all groups have as many.

    Source: PILOT's "Average Accuracy", which rounds each experience to 0.01 %; here nothing is rounded.
    """
    return mean_of_defined(np.array([_number(record["accuracy"]) for record in session_ends(records)]))


def group_forgetting(matrix: ArrayLike) -> FloatArray:
    """What each class group lost since its best day: [T], max_{i<T-1} R[i, j] - R[T-1, j].

    Negative where a group ended better than it ever was. nan for the last group, which had no time to be
    forgotten, and for groups that were never measured before the last experience.
    """
    matrix = _square(matrix)
    if len(matrix) == 0:
        return np.empty(0)
    # fmax ignores nan and, unlike nanmax, says nothing about a column that holds nothing else.
    best = np.fmax.reduce(matrix[:-1], axis=0, initial=np.nan)
    lost = best - matrix[-1]
    lost[-1] = np.nan
    return lost


def forgetting(matrix: ArrayLike) -> float:
    """Mean of `group_forgetting`, mean_{j<T-1} (max_{i<T-1} R[i, j] - R[T-1, j]); nan for T=1."""
    return mean_of_defined(group_forgetting(matrix))


def nonnegative_forgetting(matrix: ArrayLike) -> float:
    """Forgetting whose maximum runs over all experiences, the last included: never below 0; nan for T=1.

    mean_{j<T-1} (max_{i<=T-1} R[i, j] - R[T-1, j]), so that a group that ended better than it ever was counts
    0 where :func:`forgetting` counts its gain.

    Source: the released codes of L2P and DualPrompt in PyTorch, PILOT, Mammoth.
    """
    return mean_of_defined(np.maximum(group_forgetting(matrix), 0))


def forgetting_curve(matrix: ArrayLike) -> FloatArray:
    """Forgetting as it stood after each experience: [T], nan at the first."""
    matrix = _square(matrix)
    return np.array([forgetting(matrix[:n, :n]) for n in range(1, len(matrix) + 1)], dtype=np.float64)


def backward_transfer(matrix: ArrayLike) -> float:
    """Mean gain of the older groups since they were learnt, mean_{j<T-1} R[T-1, j] - R[j, j]; nan for T=1."""
    matrix = _square(matrix)
    return mean_of_defined((matrix[-1] - np.diagonal(matrix))[:-1]) if len(matrix) else float("nan")


def last_forgetting(matrix: ArrayLike) -> float:
    """F_last of a blurry stream: what the classes that were ever known lost by the end of the last session.

    Args:
        matrix: [T, C], accuracy of each class after each session, 0 while the class was not seen.

    Returns:
        mean of max_{k<T-1} acc[k, j] - acc[T-1, j] over the classes j whose maximum is above 0; may be
        negative. nan for T=1, and where no class was ever right before the last session.
    """
    matrix = np.asarray(matrix, dtype=np.float64)
    if len(matrix) < 2:
        return float("nan")
    best = matrix[:-1].max(axis=0, initial=0)
    return mean_of_defined((best - matrix[-1])[best > 0])


def class_accuracy_matrix(records: Iterable[Mapping[str, Any]]) -> FloatArray:
    """Accuracy of each class after each session, [T, C]; 0 while it was not seen.

    From the confusion counts, or from the "per_class" of records that have none.
    """
    ends = session_ends(records)
    named = [c for record in ends for cell in record.get("confusion", ()) for c in cell[:2]]
    named += [c for record in ends for c, *_ in record.get("per_class", ())]
    return np.array([np.nan_to_num(_class_accuracy(record, 1 + max(named, default=-1))) for record in ends])


def _class_accuracy(record: Mapping[str, Any], num_classes: int) -> FloatArray:
    """Accuracy of each class [C] at an evaluation; nan for a class without test samples."""
    if "per_class" not in record:
        return per_class_accuracy(record["confusion"], num_classes)
    values = np.full(num_classes, np.nan)
    for c, samples, right in record["per_class"]:
        if not 0 <= right <= samples:
            raise ValueError(f"bad entry [{c}, {samples}, {right}] of per_class")
        values[c] = right / samples if samples else np.nan
    return values


def online_metrics(records: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """The metrics of an online run, on the classes of which a sample had been received by then.

    A_auc: mean of the periodic accuracies, the area under their curve over the samples. A_avg: mean of the
    accuracies at the session ends. A_last: accuracy at the last session's end. F_last: see
    :func:`last_forgetting`.

    Source: Moon et al. 2023 (arXiv 2308.09303) and its released code, with exact counts in place of count +
    1e-5.
    """
    records = list(records)
    ends = [_number(record["accuracy"]) for record in session_ends(records)]
    return {
        "A_auc": mean_of_defined(np.array([_number(record["accuracy"]) for record in _anytime(records)])),
        "A_avg": average_incremental_accuracy_by_samples(records),
        "A_last": ends[-1] if ends else float("nan"),
        "F_last": last_forgetting(class_accuracy_matrix(records)),
    }


def session_ends(records: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The evaluations at the ends of sessions, in order; the last one of a session if there are several."""
    ends = {
        int(record["experience"]): record
        for record in records
        if record.get("kind") == "evaluation" and record["when"] == "experience"
    }
    return [ends[experience] for experience in sorted(ends)]


def _anytime(records: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [r for r in records if r.get("kind") == "evaluation" and r["when"] == "anytime"]


def _number(value: float | None) -> float:
    return float("nan") if value is None else float(value)


def confusion_matrix(triplets: Iterable[Sequence[int]], num_classes: int) -> NDArray[np.int64]:
    """Counts [C, C] by true class (rows) and predicted class (columns).

    Args:
        triplets: `[target, predicted, count]`; pairs that appear more than once are added up.
        num_classes: C.

    Raises:
        ValueError: a class id outside 0..C-1 or a negative count.
    """
    matrix = np.zeros((num_classes, num_classes), dtype=np.int64)
    for target, predicted, count in triplets:
        if not (0 <= target < num_classes and 0 <= predicted < num_classes) or count < 0:
            raise ValueError(f"bad entry [{target}, {predicted}, {count}] for {num_classes} classes")
        matrix[target, predicted] += count
    return matrix


def per_class_accuracy(triplets: Iterable[Sequence[int]], num_classes: int) -> FloatArray:
    """Accuracy of each class [C] from the confusion triplets; nan for a class without test samples."""
    matrix = confusion_matrix(triplets, num_classes)
    samples = matrix.sum(axis=1)
    return np.divide(np.diagonal(matrix), samples, out=np.full(num_classes, np.nan), where=samples > 0)


def summarise(records: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """The metrics of a run by their names in `results.json`, as fractions; nan where one is not defined.

    Of a run that is not over, the metrics are those after its last evaluated experience. `last_accuracy` is
    over all test samples of the classes seen by the last evaluation, of either kind, and
    `average_incremental_accuracy_by_samples` over those seen at the end of each experience; the others weigh
    class groups equally.
    """
    records = list(records)
    evaluations = [record for record in records if record.get("kind") == "evaluation"]
    matrix = accuracy_matrix(records)
    done = 1 + max((int(r["experience"]) for r in evaluations if r["when"] == "experience"), default=-1)
    matrix = matrix[:done, :done]
    last = evaluations[-1]["accuracy"] if evaluations else None
    return {
        "average_accuracy": average_accuracy(matrix),
        "average_incremental_accuracy": average_incremental_accuracy(matrix),
        "average_incremental_accuracy_by_samples": average_incremental_accuracy_by_samples(records),
        "forgetting": forgetting(matrix),
        "nonnegative_forgetting": nonnegative_forgetting(matrix),
        "backward_transfer": backward_transfer(matrix),
        "last_accuracy": float("nan") if last is None else float(last),
    }


def _square(matrix: ArrayLike) -> FloatArray:
    array = np.asarray(matrix, dtype=np.float64)
    if array.ndim != 2 or array.shape[0] != array.shape[1]:
        raise ValueError(f"an accuracy matrix is square, [T, T]; this one has the shape {list(array.shape)}")
    return array


def mean_of_defined(values: FloatArray) -> float:
    """The mean over what is not nan; nan over nothing."""
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if defined.size else float("nan")
