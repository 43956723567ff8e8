"""Linear classifiers in closed form, from class statistics; all in float64.

Sources: linear discriminant analysis, Fisher 1936; streaming on frozen features, Hayes & Kanan, CVPRW 2020
(arXiv 1909.01520); the shrinkage that follows the sample count is the posterior under an inverse Wishart
prior, as in regularised discriminant analysis (Friedman 1989). Ridge regression on one-hot targets: ACIL,
G-ACIL, and RanPAC over random features.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from clprompt.errors import ConfigError
from clprompt.prompting.statistics.sums import ClassStatistics

#: What the prior of the covariance weighs, in samples per feature: of labels, and of label sets.
PRIOR, PRIOR_OF_LABEL_SETS = 1.0, 10.0


class LinearMap(NamedTuple):
    """A linear classifier: logits = x W^T + b.

    Attributes:
        weight: W, float64 [C, D]; 0 for a class without a sample.
        bias: b, float64 [C]; -inf for a class without a sample.
    """

    weight: Tensor
    bias: Tensor

    def __call__(self, features: Tensor) -> Tensor:
        """Logits [B, C] of features [B, D]: computed in float64, never handed out in 16 bits.

        They run to hundreds, where bfloat16 rounds by 0.5.
        """
        logits = F.linear(features.to(self.weight), self.weight, self.bias)
        return handed_out(logits, features)


def handed_out(logits: Tensor, features: Tensor) -> Tensor:
    """Logits of float64 where the features are, in their number format or float32, whichever is wider."""
    return logits.to(features.device, torch.promote_types(features.dtype, torch.float32))


def covariance(statistics: ClassStatistics, shrinkage: float | None = None) -> Tensor:
    """The covariance that all classes share, shrunk towards its mean variance, float64 [D, D].

    (1 - a) A / v + a t I of the scatter A, its degrees of freedom v and the mean variance t = tr(A) / (v D),
    with a = k D / (k D + v). The identity, whatever the shrinkage, where nothing tells a scatter.

    Args:
        statistics: of labels (k = 1), or of label sets (k = 10).
        shrinkage: a fixed a in [0, 1].
    """
    scatter, freedom = statistics.scatter()
    width, trace = statistics.width, scatter.trace()
    identity = torch.eye(width, dtype=scatter.dtype, device=scatter.device)
    # the scatter of equal samples is not 0 but what rounding leaves
    if freedom <= 0 or bool(trace <= 1e-12 * statistics.second.trace()):
        return identity
    prior = PRIOR_OF_LABEL_SETS if statistics.has_label_sets else PRIOR
    share = prior * width / (prior * width + freedom) if shrinkage is None else shrinkage
    return (1 - share) / freedom * scatter + share * trace / (freedom * width) * identity


def lda(statistics: ClassStatistics, shrinkage: float | None = None) -> LinearMap:
    """Linear discriminant analysis: log posteriors under one covariance, without a prior of the classes.

    Of label sets, where the negatives are hidden, each class is compared with all samples: the logits are log
    densities relative to theirs, plus the log share of the class.

    Args:
        statistics: of at least one sample.
        shrinkage: see :func:`covariance`.

    Raises:
        ConfigError: a shrinkage so small that the covariance has no inverse.
    """
    means, seen = statistics.means(), statistics.seen
    shared = covariance(statistics, shrinkage)
    what = f"a shrinkage of {shrinkage}: the covariance of {statistics.width} features has no inverse"
    if not statistics.has_label_sets:
        weight = _solved(shared, means, what)
        bias = -0.5 * (means * weight).sum(1)
    else:
        number = statistics.number.double()
        mean = statistics.total / number
        distance = (means - mean) * seen[:, None]
        weight = _solved(shared, distance, what)
        bias = -weight @ mean - 0.5 * (distance * weight).sum(1) + (statistics.counts.double() / number).log()
    return _of_seen(weight, bias, seen)


def ridge(statistics: ClassStatistics, strength: float) -> LinearMap:
    """Ridge regression on targets of 1 for a sample's classes and 0 else, without a bias.

    Args:
        statistics: of at least one sample; hidden labels count as 0.
        strength: relative to the mean diagonal of the second moment, so that it does not change with the
            number of samples.

    Raises:
        ConfigError: a strength so small that there is no unique solution.
    """
    return ridge_absolute(statistics, strength * float(statistics.second.trace()) / statistics.width)


def ridge_absolute(statistics: ClassStatistics, strength: float) -> LinearMap:
    """:func:`ridge` with a strength that is added to the diagonal as it is."""
    diagonal = torch.full_like(statistics.total, strength)
    what = f"a ridge of {strength:.3g}: the second moment of {statistics.width} features has no inverse"
    weight = _solved(statistics.second + diagonal.diag(), statistics.sums, what)
    return _of_seen(weight, torch.zeros_like(weight[:, 0]), statistics.seen)


def cosine_means(statistics: ClassStatistics) -> LinearMap:
    """Unit-length class means: logits of unit-length features are cosines."""
    weight = F.normalize(statistics.means(), dim=1)
    return _of_seen(weight, torch.zeros_like(weight[:, 0]), statistics.seen)


def _solved(matrix: Tensor, rows: Tensor, what: str) -> Tensor:
    """Rows [C, D] times the inverse of a symmetric positive definite matrix [D, D]."""
    factor, failed = torch.linalg.cholesky_ex(matrix)
    if bool(failed):
        raise ConfigError(f"{what}; use a larger one")
    return torch.cholesky_solve(rows.T, factor).T


def _of_seen(weight: Tensor, bias: Tensor, seen: Tensor) -> LinearMap:
    return LinearMap(weight * seen[:, None], bias.masked_fill(~seen, float("-inf")))
