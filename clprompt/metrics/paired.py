"""Two models on the same seeds or test images: how much one is ahead, and how sure that is.

All draws are the same in every call. scipy is imported where it is used.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]
#: Resamples of the test images behind an interval, and its coverage.
RESAMPLES, CONFIDENCE = 1000, 0.95

_EQUAL = 1e-9  # differences of fractions that are nearer to each other are one


@dataclass(frozen=True)
class OverSeeds:
    """What the differences of two models on the same seeds tell.

    Attributes:
        mean: of the differences.
        error: its standard error; nan for fewer than two seeds.
        low: lower end of the t interval of the mean, of coverage :data:`CONFIDENCE`; nan where ``error`` is,
            or where all differences are equal, which says nothing of how they vary.
        high: its upper end.
        t: p-value of the paired t test that the mean is 0, both ways; nan as ``low``.
        sign: p-value of the exact sign test that either is as likely to be ahead, both ways; equal ones are
            left out, and without others it is 1; nan for fewer than two seeds.
    """

    mean: float
    error: float
    low: float
    high: float
    t: float
    sign: float


def over_seeds(differences: ArrayLike) -> OverSeeds:
    """Test the differences of two models, paired by seed.

    Args:
        differences: one a seed, [n], n at least 1.

    Source: Student 1908; Dixon and Mood 1946.
    """
    from scipy import stats

    differences = np.asarray(differences, dtype=np.float64)
    count, mean = len(differences), float(differences.mean())
    if count < 2:
        return OverSeeds(mean, math.nan, math.nan, math.nan, math.nan, math.nan)
    ahead, behind = int((differences > _EQUAL).sum()), int((differences < -_EQUAL).sum())
    sign = float(stats.binomtest(ahead, ahead + behind).pvalue) if ahead + behind else 1.0
    error = float(differences.std(ddof=1)) / math.sqrt(count)
    if np.ptp(differences) < _EQUAL:
        return OverSeeds(mean, error, math.nan, math.nan, math.nan, sign)
    found = stats.ttest_1samp(differences, 0)
    low, high = found.confidence_interval(CONFIDENCE)
    return OverSeeds(mean, error, float(low), float(high), float(found.pvalue), sign)


def mcnemar(right: ArrayLike, other_right: ArrayLike) -> float:
    """The p-value of the exact McNemar test that two models are right equally often.

    Of the images that one model alone has right, each is as likely to be the one's as the other's; both ways
    count. 1 where there is no such image.

    Args:
        right: whether one model has an image right, boolean [n].
        other_right: the same of the other.

    Source: McNemar 1947; the exact binomial form.
    """
    from scipy.stats import binomtest

    right, other_right = np.asarray(right, dtype=bool), np.asarray(other_right, dtype=bool)
    alone, other_alone = int((right & ~other_right).sum()), int((other_right & ~right).sum())
    return float(binomtest(alone, alone + other_alone).pvalue) if alone + other_alone else 1.0


def mean_interval(differences: ArrayLike) -> tuple[float, float]:
    """The bootstrap interval of a mean over test images.

    Args:
        differences: of two models, image by image, [n]; over several seeds their means.

    Returns:
        Its ends, the percentiles over resampled images; nan for fewer than two images.
    """
    differences = np.asarray(differences, dtype=np.float64)
    if len(differences) < 2:
        return math.nan, math.nan
    return _interval(lambda rows: differences[rows].mean(-1), len(differences))


def map_interval(
    targets: ArrayLike, scores: Sequence[ArrayLike], other_scores: Sequence[ArrayLike]
) -> tuple[float, float]:
    """The bootstrap interval of a difference in mAP, its mean over seeds.

    Args:
        targets: 0/1, [n, C].
        scores: of one model, [n, C] for each seed.
        other_scores: of the other model.

    Returns:
        Its ends, the percentiles over test images, resampled for all seeds and both models together; nan for
        fewer than two images.
    """
    targets = np.asarray(targets)
    if len(targets) < 2:
        return math.nan, math.nan
    signed = [(+1, _Ranking(of_seed, targets)) for of_seed in scores]
    signed += [(-1, _Ranking(of_seed, targets)) for of_seed in other_scores]

    def difference(rows: NDArray[np.int64]) -> float:
        weights = np.bincount(rows, minlength=len(targets)).astype(np.float64)
        return sum(sign * ranking.mean_average_precision(weights) for sign, ranking in signed) / len(scores)

    return _interval(difference, len(targets), vectorized=False)


class _Ranking:
    """Images ranked by the scores of each class, for average precision under many weights.

    Args:
        scores: [n, C].
        targets: 0/1, [n, C].
    """

    def __init__(self, scores: ArrayLike, targets: NDArray[np.integer]) -> None:
        falling = -np.asarray(scores, dtype=np.float64).T  # (C, n)
        self.order = np.argsort(falling, axis=1, kind="stable")
        ranked = np.take_along_axis(falling, self.order, 1)
        # equal scores count together: of each place the last one with its score
        last = np.stack([np.searchsorted(of_class, of_class, "right") - 1 for of_class in ranked])
        # the positives class by class, in the order of their ranks: all that average precision sums over
        positive = np.take_along_axis(targets.T, self.order, 1) > 0
        self.classes, ranks = positive.nonzero()  # (P,) each
        self.images = self.order[self.classes, ranks]
        self.last = last[self.classes, ranks]
        found = positive.reshape(-1).cumsum().reshape(positive.shape)
        self.found = found[self.classes, self.last]  # positives up to there, those of earlier classes too
        self.earlier = np.searchsorted(self.classes, self.classes)  # positives of earlier classes

    def mean_average_precision(self, weights: FloatArray) -> float:
        """The mAP of images that come so often, [n], over the classes with a positive; nan without one.

        As :func:`clprompt.metrics.label_sets.average_precision` of the repeated images.
        """
        shown = weights[self.order].cumsum(1)[self.classes, self.last]
        often = weights[self.images]
        sums = np.concatenate([[0.0], often.cumsum()])
        found = sums[self.found] - sums[self.earlier]
        parts = often * np.divide(found, shown, out=np.zeros_like(found), where=shown > 0)
        totals = np.bincount(self.classes, often, len(self.order))
        has_any = totals > 0
        if not has_any.any():
            return math.nan
        return float((np.bincount(self.classes, parts, len(self.order))[has_any] / totals[has_any]).mean())


def _interval(
    statistic: Callable[[NDArray[np.int64]], FloatArray | float], images: int, *, vectorized: bool = True
) -> tuple[float, float]:
    """The percentile interval of a statistic of image indices, over resampled images."""
    from scipy.stats import bootstrap

    found = bootstrap(
        (np.arange(images),),
        (lambda rows, axis=-1: statistic(rows)) if vectorized else statistic,
        n_resamples=RESAMPLES,
        batch=max(1, 10**6 // images) if vectorized else None,
        vectorized=vectorized,
        confidence_level=CONFIDENCE,
        method="percentile",
        random_state=np.random.default_rng(0),
    )
    return float(found.confidence_interval.low), float(found.confidence_interval.high)
