"""Random features, and the strength of a ridge over them that is chosen on samples held out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clprompt.prompting.statistics.closed_forms import LinearMap, ridge, ridge_absolute
from clprompt.prompting.statistics.sums import ClassStatistics, kept_exact
from clprompt.seeding import generator

#: What a strength is chosen among, as RanPAC's released code does.
STRENGTHS = tuple(10.0**power for power in range(-8, 9))
_ROWS = 1024  # that are expanded at a time


class RandomFeatures(nn.Module):
    """relu(x P) of features x [B, D], with P [D, M] of N(0, 1): a function of the seed, and no state.

    Args:
        width: D.
        number: M.
        seed: what P is drawn from.
    """

    def __init__(self, width: int, number: int, seed: int) -> None:
        super().__init__()
        drawn = torch.randn(width, number, dtype=torch.float64, generator=generator(seed, "random features"))
        self.projection: Tensor
        self.register_buffer("projection", drawn, persistent=False)

    def forward(self, features: Tensor) -> Tensor:
        """[B, D] -> float64 [B, M]."""
        return F.relu(features.to(self.projection) @ self.projection)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        return kept_exact(self, fn)


class HeldOutStrength(nn.Module):
    """A ridge whose strength is chosen at the end of each experience, from its samples.

    Attributes:
        chosen: what is added to the diagonal, float64 []; 0 before the first choice.
    """

    def __init__(self) -> None:
        super().__init__()
        self.chosen: Tensor
        self.register_buffer("chosen", torch.zeros((), dtype=torch.float64))

    def choose(
        self, parts: Sequence[tuple[Tensor, Tensor]], expand: Callable[[Tensor], Tensor], seed: int
    ) -> None:
        """Choose anew, see :func:`held_out_strength`; what a sample by itself says is nothing.

        Args:
            parts: features [B, D] and labels [B], or multi-hot [B, C], of the experience that ends.
            expand: gives what the ridge is made over, float64 [B, M].
            seed: decides which samples are held out.
        """
        features, targets = map(torch.cat, zip(*parts, strict=True))
        found = held_out_strength(features, targets, expand, seed)
        if found is not None:
            self.chosen.fill_(found)

    def solve(self, statistics: ClassStatistics, otherwise: float) -> LinearMap:
        """The ridge of the chosen strength, or of a relative one before the first choice."""
        if not bool(self.chosen):
            return ridge(statistics, otherwise)
        # below that, rounding would decide whether there is a solution
        least = 1e-12 * float(statistics.second.trace())
        return ridge_absolute(statistics, max(float(self.chosen), least))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        return kept_exact(self, fn)


def held_out_strength(
    features: Tensor, targets: Tensor, expand: Callable[[Tensor], Tensor], seed: int
) -> float | None:
    """The strength of a ridge with the least squared error on the last fifth of samples in shuffled order.

    Each strength is solved for on the other four fifths, all of them by one decomposition.

    Args:
        features: of the current experience, [N, D].
        targets: labels [N], or multi-hot [N, C] of visible labels.
        expand: gives what the ridge is made over, float64 [N, M].
        seed: decides the order.

    Returns:
        One of ``STRENGTHS``, the smallest of equally good ones; None for a sample by itself.

    Source: the released code of RanPAC; McDonnell et al., NeurIPS 2023, arXiv 2307.02251.
    """
    if len(features) < 2:
        return None
    order = torch.randperm(len(features), generator=generator(seed, "held out"))
    features, hot = features[order], (targets if targets.ndim == 2 else F.one_hot(targets))[order]
    count = int(0.8 * len(order))

    def expanded(rows: slice) -> Iterator[tuple[Tensor, Tensor]]:
        for part, shown in zip(features[rows].split(_ROWS), hot[rows].split(_ROWS), strict=True):
            wide = expand(part)
            yield wide, shown.to(wide)

    if count <= expand(features[:1]).shape[1]:  # of two matrices with the same eigenvalues the smaller one
        fit, shown = map(torch.cat, zip(*expanded(slice(count)), strict=True))
        values, basis = torch.linalg.eigh(fit @ fit.T)
        left, right = fit.T @ basis, basis.T @ shown
    else:
        second = sum(wide.T @ wide for wide, _ in expanded(slice(count)))
        sums = sum(wide.T @ shown for wide, shown in expanded(slice(count)))
        values, left = torch.linalg.eigh(second)
        right = left.T @ sums
    values = values.clamp(min=0)[:, None]  # of a matrix without full rank rounding leaves negative ones
    errors = torch.zeros(len(STRENGTHS), dtype=torch.float64)
    for number, strength in enumerate(STRENGTHS):
        weight = left @ (right / (values + strength))  # [M, C]
        for wide, shown in expanded(slice(count, None)):
            errors[number] += float((wide @ weight - shown).square().sum())
    return STRENGTHS[int(errors.argmin())]
