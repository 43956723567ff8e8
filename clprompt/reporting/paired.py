"""Two rows of a report over the same test images: how far one is ahead, and how sure that is.

The metrics of a report are paired by seed; here the test images are paired as well, from `predictions.npz`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clprompt.errors import CheckpointError
from clprompt.metrics import paired
from clprompt.metrics.label_sets import average_precision
from clprompt.metrics.last import LastPredictions
from clprompt.reporting import predictions
from clprompt.reporting.finished import Run
from clprompt.reporting.rows import Row
from clprompt.reporting.tables import interval, points, probability

Table = list[list[str]]


@dataclass
class Comparison:
    """What the last predictions of some rows tell against those of another.

    Attributes:
        table: the header and a line for each row that can be compared; [] for none.
        remarks: how the table is to be read, and why rows are not in it.
    """

    table: Table = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Pair:
    """The predictions of two runs on the same images; see :class:`clprompt.metrics.last.LastPredictions`."""

    test_set: NDArray[Any] | None
    images: NDArray[Any]
    targets: NDArray[Any]
    outputs: NDArray[Any]
    others: NDArray[Any]


def compare(rows: Sequence[Row], base: Row) -> Comparison:
    """Each of some rows less another one, on the test images and seeds that both have.

    Args:
        rows: of one stream, the base among them.
        base: the row to subtract.
    """
    read = _Reader()
    lines: Table = []
    left_out: dict[str, list[str]] = {}
    labels = False
    for row in rows:
        if row is base:
            continue
        pairs: dict[int, _Pair] = {}
        for seed in sorted(row.runs.keys() & base.runs.keys()):
            pair = _pair(read(row.runs[seed]), read(base.runs[seed]), base.label)
            if isinstance(pair, _Pair):
                pairs[seed] = pair
            else:
                left_out.setdefault(pair, []).append(f"{row.label} (seed {seed})")
        if pairs:
            lines.append(_line(f"{row.label} minus {base.label}", list(pairs.values())))
            labels = next(iter(pairs.values())).targets.ndim == 1
            if not _are_together(pairs.values()):
                left_out.setdefault("no interval over seeds with other test images", []).append(row.label)
    remarks = [f"not compared over test images, {why}: {', '.join(of)}" for why, of in left_out.items()]
    if not lines:
        return Comparison([], remarks)
    what = "accuracy" if labels else "mAP"
    header = [f"{what} over test images (positive: the first is better)", "seeds", "images", "difference"]
    header.append(f"{paired.CONFIDENCE:.0%} interval")
    if labels:
        header.append("McNemar's p by seed")
    return Comparison([header, *lines], [_READ + _TESTED * labels, *remarks])


_READ = (
    "Over test images: what the last evaluations predicted, percentage points over all their images, mean "
    f"over seeds. The interval is of the bootstrap ({paired.RESAMPLES} resamples of the test images, the "
    "same for both rows and all seeds): it tells what other test images would change, not what other seeds "
    "would."
)
_TESTED = " McNemar's p: his exact test of each seed, on the images that one of the two alone has right."


class _Reader:
    """Reads the predictions of each run once; a line where there are none."""

    def __init__(self) -> None:
        self._known: dict[Any, LastPredictions | str] = {}

    def __call__(self, run: Run) -> LastPredictions | str:
        if run.folder not in self._known:
            try:
                checksum = (run.results.get("checksums") or {}).get(predictions.PREDICTIONS)
                self._known[run.folder] = predictions.read(run.folder, checksum)
            except CheckpointError as error:
                is_there = os.path.lexists(run.folder / predictions.PREDICTIONS)
                self._known[run.folder] = str(error) if is_there else f"no {predictions.PREDICTIONS}"
        found = self._known[run.folder]
        if isinstance(found, str) or not run.is_trained_head or found.trained_head is None:
            return found
        return replace(found, outputs=found.trained_head)


def _pair(one: LastPredictions | str, other: LastPredictions | str, label: str) -> _Pair | str:
    """The predictions of two runs side by side, or why they cannot be.

    Args:
        one: of a run; a line where there are none.
        other: of the run that is subtracted.
        label: of that one.
    """
    if isinstance(one, str):
        return one
    if isinstance(other, str):
        return f"{other} of {label}"
    if not _same_images(one, other):
        return f"tested on other images than {label}"
    if not _equal(one.classes, other.classes):
        return f"scores of other classes than {label}"
    return _Pair(one.test_set, one.images, one.targets, one.outputs, other.outputs)


def _same_images(one: LastPredictions | _Pair, other: LastPredictions | _Pair) -> bool:
    keys = ("test_set", "images", "targets")
    return all(_equal(getattr(one, key), getattr(other, key)) for key in keys)


def _are_together(pairs: Iterable[_Pair]) -> bool:
    """Whether all seeds were tested on the same images, which can then be resampled for all of them."""
    first, *others = pairs
    return all(_same_images(first, other) for other in others)


def _equal(one: NDArray[Any] | None, other: NDArray[Any] | None) -> bool:
    return one is other if one is None or other is None else np.array_equal(one, other)


def _line(label: str, of_seeds: Sequence[_Pair]) -> list[str]:
    """Cells of the table.

    Args:
        label: of the row.
        of_seeds: at least one pair.
    """
    first, together = of_seeds[0], _are_together(of_seeds)
    low = high = math.nan
    if first.targets.ndim == 1:
        right = [(pair.outputs == pair.targets, pair.others == pair.targets) for pair in of_seeds]
        differences = [ours.astype(float) - theirs for ours, theirs in right]
        mean = float(np.mean([of_seed.mean() for of_seed in differences])) if len(first.images) else math.nan
        if together:
            low, high = paired.mean_interval(np.mean(differences, axis=0))
        more = [", ".join(probability(paired.mcnemar(*of_seed)) for of_seed in right)]
    else:
        mean = float(np.mean([_map(p.outputs, p.targets) - _map(p.others, p.targets) for p in of_seeds]))
        if together and not math.isnan(mean):
            scores = [[pair.outputs for pair in of_seeds], [pair.others for pair in of_seeds]]
            low, high = paired.map_interval(first.targets, *scores)
        more = []
    counts = [str(len(of_seeds)), str(len(first.images))]
    return [label, *counts, points(mean), interval(low, high), *more]


def _map(scores: NDArray[Any], targets: NDArray[Any]) -> float:
    """Over the classes with a positive; nan without one."""
    return float(np.nanmean(average_precision(scores, targets))) if targets.any() else math.nan
