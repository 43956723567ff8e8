"""What a classifier of names is worth beyond the classes it was trained on, in plain numpy.

A group that is still to come has names already, so it can be evaluated before any of its images was trained
on. R [T, T] is the accuracy on class group j after experience i; what stands above the diagonal is about
groups still to come.

Sources: Zheng et al. 2023 (ZSCL, arXiv 2303.06628; transfer), Zhou et al. 2022 (CoCoOp, arXiv 2203.05557; the
harmonic mean of base and new accuracy).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from clprompt.metrics.accuracy import FloatArray, harmonic_mean, mean_of_defined

#: The metrics of ``results.json`` that a run on names has besides, with their titles in tables.
NAMES_METRICS = {
    "zero_shot": "zero-shot",
    "transfer": "transfer to unseen",
    "base_new_H": "H of base and new",
    "base_new_H_of_all": "H among all names",
    "zero_shot_template_min": "zero-shot, worst template",
    "zero_shot_template_max": "zero-shot, best template",
    "zero_shot_template_std": "zero-shot, spread of templates",
}


@dataclass(frozen=True)
class OfNames:
    """Accuracies of an evaluation in which every class of the stream answers by its name.

    Attributes:
        zero_shot: of names without prompts, per class group that was seen, among the seen classes; None for
            one that was not.
        own: of each group that is still to come, among its own classes; None for one that was seen.
        base: over the samples of seen classes, among these.
        new: over the samples of classes still to come, among these; None where there are none.
        base_of_all: over the samples of seen classes, among all names.
        new_of_all: over those of classes still to come, among all names.
        zero_shot_base: of names without prompts, over the samples of seen classes, among these.
        templates: of several templates, the mean of ``zero_shot`` over the groups seen by each of them alone.
    """

    zero_shot: list[float | None]
    own: list[float | None]
    base: float | None
    new: float | None
    base_of_all: float | None
    new_of_all: float | None
    zero_shot_base: float | None = None
    templates: dict[str, float] = field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        """The JSON form; ``templates`` where there are several."""
        return {key: value for key, value in vars(self).items() if key != "templates" or value}


def score_names(
    logits: NDArray[Any],
    unprompted: NDArray[Any],
    targets: NDArray[np.int64],
    seen: Sequence[int],
    groups: Sequence[NDArray[np.int64]],
    templates: Mapping[str, NDArray[np.bool_]] | None = None,
) -> OfNames:
    """The accuracies of all test samples by names.

    Args:
        logits: of every class, seen or not, [n, C].
        unprompted: the same of names without prompts, [n, C].
        targets: class ids, [n].
        seen: the ids of the seen classes.
        groups: rows of ``logits`` per class group; a group may be empty.
        templates: whether each template alone is right about samples of seen classes, [n]; None for one.
    """
    is_seen = np.zeros(logits.shape[1], dtype=bool)
    is_seen[list(seen)] = True
    old = is_seen[targets]  # (n,)

    def accuracy(scores: NDArray[Any], rows: NDArray[Any], among: NDArray[np.bool_]) -> float | None:
        if not len(rows):
            return None
        predicted = np.where(among, scores[rows], -np.inf).argmax(axis=1)
        return float((predicted == targets[rows]).mean())

    zero_shot, own = [], []
    for rows in groups:
        before, later = rows[old[rows]], rows[~old[rows]]
        among = np.zeros_like(is_seen)
        among[targets[rows]] = True
        zero_shot.append(accuracy(unprompted, before, is_seen))
        own.append(accuracy(logits, later, among) if not len(before) else None)
    base, new = np.flatnonzero(old), np.flatnonzero(~old)
    everything = np.zeros_like(is_seen)
    everything[targets] = True
    everything |= is_seen
    seen_rows = [rows[old[rows]] for rows in groups]
    alone = {
        template: float(np.mean([right[rows].mean() for rows in seen_rows if len(rows)]))
        for template, right in (templates or {}).items()
    }
    return OfNames(
        zero_shot,
        own,
        accuracy(logits, base, is_seen),
        accuracy(logits, new, everything & ~is_seen),
        accuracy(logits, base, everything),
        accuracy(logits, new, everything),
        accuracy(unprompted, base, is_seen),
        alone,
    )


def transfer(matrix: ArrayLike) -> FloatArray:
    """Accuracy on each group before it was trained on: [T - 1], mean_{i<j} R[i, j] for j = 1..T-1.

    Args:
        matrix: R [T, T], each group among its own classes; nan counts for nothing.
    """
    rows = np.asarray(matrix, dtype=np.float64)
    return np.array([mean_of_defined(rows[:j, j]) for j in range(1, len(rows))], dtype=np.float64)


def base_new_harmonic_mean(matrix: ArrayLike, counts: ArrayLike) -> FloatArray:
    """H = 2 b n / (b + n) after each experience but the last, [T - 1].

    b and n are the accuracies over the samples of groups 0..i and of those still to come.

    Args:
        matrix: R [T, T]; groups 0..i of row i among seen classes, the others among unseen ones.
        counts: samples of each group, [T].
    """
    rows, weights = np.asarray(matrix, dtype=np.float64), np.asarray(counts, dtype=np.float64)

    def share(row: FloatArray, part: slice) -> float:
        return float(np.average(row[part], weights=weights[part]))

    means = [
        harmonic_mean(share(row, slice(0, i + 1)), share(row, slice(i + 1, None)))
        for i, row in enumerate(rows[:-1])
    ]
    return np.array(means, dtype=np.float64)


def zero_shot_curve(records: Iterable[Mapping[str, Any]]) -> FloatArray | None:
    """The zero-shot line [T]: after each experience the accuracy of names without prompts on the groups seen.

    None of a run without names; nan where an experience was not evaluated.
    """
    ends = _ends(records)
    if not ends:
        return None
    curve = np.full(_groups_of(ends), np.nan)
    for experience, names in ends.items():
        curve[experience] = zero_shot_accuracy(names)
    return curve


def zero_shot_accuracy(names: Mapping[str, Any]) -> float:
    """The mean over the groups seen of an evaluation, see :class:`OfNames`."""
    return mean_of_defined(np.array([value for value in names["zero_shot"] if value is not None]))


def _ends(records: Iterable[Mapping[str, Any]]) -> dict[int, Mapping[str, Any]]:
    """What the evaluations of a run say of names, by experience."""
    return {
        int(record["experience"]): record["names"]
        for record in records
        if record.get("kind") == "evaluation" and record.get("names") is not None
    }


def _groups_of(ends: Mapping[int, Mapping[str, Any]]) -> int:
    return len(next(iter(ends.values()))["own"])


def summarise_names(records: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """The metrics of a run on names by their names in ``results.json``, as fractions; {} of other runs.

    zero_shot: of names without prompts, mean over the class groups after the last experience. transfer: mean
    over the groups from the second on of :func:`transfer`. base_new_H: mean over the experiences but the last
    of the harmonic mean of base and new accuracy, each among its own classes; base_new_H_of_all: the same
    among all names. Of several templates the accuracy after the last experience by each alone:
    zero_shot_template_min, zero_shot_template_max, and zero_shot_template_std, with n - 1.
    """
    ends = _ends(records)
    if not ends:
        return {}
    size = _groups_of(ends)
    own = np.full((size, size), np.nan)
    for experience, names in ends.items():
        own[experience] = [np.nan if value is None else value for value in names["own"]]
    within = [harmonic_mean(of["base"], of["new"]) for of in ends.values()]
    of_all = [harmonic_mean(of["base_of_all"], of["new_of_all"]) for of in ends.values()]
    return {
        "zero_shot": zero_shot_accuracy(ends[max(ends)]),
        "transfer": mean_of_defined(transfer(own)),
        "base_new_H": mean_of_defined(np.array(within)),
        "base_new_H_of_all": mean_of_defined(np.array(of_all)),
        **_spread(template_accuracies(ends[max(ends)])),
    }


def template_accuracies(names: Mapping[str, Any]) -> dict[str, float]:
    """By template alone, the best first; {} of an evaluation with a single one."""
    alone: Mapping[str, float] = names.get("templates") or {}
    return dict(sorted(alone.items(), key=lambda item: (-item[1], item[0])))


def _spread(alone: Mapping[str, float]) -> dict[str, float]:
    if not alone:
        return {}
    values = np.array(list(alone.values()))
    return {
        "zero_shot_template_min": float(values.min()),
        "zero_shot_template_max": float(values.max()),
        "zero_shot_template_std": float(values.std(ddof=1)),
    }
