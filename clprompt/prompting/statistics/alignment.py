"""Gaussian alignment: a trained head, trained on with samples of a Gaussian for each class seen.

Sources: SLCA (Zhang et al., ICCV 2023, arXiv 2303.05118), which trains on with the head of before, and
HiDe-Prompt (Wang et al., NeurIPS 2023, arXiv 2310.07234), which does not; numbers as in LAMDA-PILOT and in
HiDe-Prompt's released code. Here the aligned head stands beside the trained one, which never knows of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clprompt.errors import ConfigError
from clprompt.prompting.heads import grow_rows
from clprompt.prompting.statistics.closed_forms import LinearMap
from clprompt.prompting.statistics.heads import Ended, StatisticsHead
from clprompt.prompting.statistics.sums import ClassStatistics, kept_exact
from clprompt.seeding import generator

#: What covariance a class has: one of its own, the diagonal of that, or the one that all classes share.
Covariance = Literal["full", "diagonal", "shared"]
#: Whose numbers.
Recipes = Literal["slca", "hide"]

#: Added to the variance of every feature, as in both sources.
_VARIANCE = 1e-4


@dataclass(frozen=True)
class Recipe:
    """How a head is trained on samples; with SGD, a cosine over the epochs down to 0, and cross-entropy.

    Args:
        samples: of each class, new ones in every epoch.
        epochs: over them.
        batch_size: samples of a step.
        lr: of the first epoch.
        momentum: of SGD.
        weight_decay: of SGD.
        shrink: how far the means of old classes are moved towards the origin: a class of experience s of t,
            counted from 1, is drawn around (1 - shrink + shrink s / t) of its mean.
        temperature: divides logits that were divided by the mean norm of an experience's; None leaves them as
            they are.
        old_steps_only: make as many steps in an epoch as there are old classes, and leave the rest of the
            samples out.
        stays_aligned: old classes' rows go on from the last alignment, not from the trained head.
    """

    samples: int
    epochs: int
    batch_size: int
    lr: float
    momentum: float = 0.9
    weight_decay: float = 5e-4
    shrink: float = 0.0
    temperature: float | None = None
    old_steps_only: bool = False
    stays_aligned: bool = False


#: Published numbers, by the name of their method.
RECIPES: Mapping[str, Recipe] = {
    "slca": Recipe(samples=256, epochs=3, batch_size=256, lr=0.01, shrink=0.1, temperature=0.1),
    "hide": Recipe(samples=120, epochs=30, batch_size=120, lr=0.005, old_steps_only=True, stays_aligned=True),
}


class ClassMoments(nn.Module):
    """The second moment of each class, beside :class:`ClassStatistics`, from which its covariance follows.

    Sums, in float64 as there. A class of a few samples has a covariance of low rank.

    Args:
        width: D, of the features.
        diagonal: keep the diagonal alone.
        limit_bytes: the most that all of them may take.

    Attributes:
        second: uncentred, float64 [C, D, D], or its diagonals [C, D].
    """

    def __init__(self, width: int, *, diagonal: bool = False, limit_bytes: int = 4 * 2**30) -> None:
        super().__init__()
        self.limit_bytes = limit_bytes
        self.second: Tensor
        shape = (0, width) if diagonal else (0, width, width)
        self.register_buffer("second", torch.zeros(shape, dtype=torch.float64))

    @property
    def is_diagonal(self) -> bool:
        """Whether the diagonals alone are kept."""
        return self.second.ndim == 2

    def grow(self, num_classes: int) -> None:
        """Have at least ``num_classes`` of them.

        Raises:
            ConfigError: more bytes than the limit.
        """
        missing = num_classes - len(self.second)
        needed = 8 * num_classes * math.prod(self.second.shape[1:])
        if missing > 0 and needed > self.limit_bytes:
            raise ConfigError(
                f"align_covariance=full keeps {needed:,} bytes for {num_classes} classes of width "
                f"{self.second.shape[1]}; at most {self.limit_bytes:,} are allowed: use diagonal or shared"
            )
        if missing > 0:
            grow_rows(self.second, torch.zeros(missing, *self.second.shape[1:]))

    @torch.no_grad()
    def add(self, features: Tensor, targets: Tensor) -> None:
        """Count a batch: features [B, D] and labels [B]."""
        rows = features.detach().to(self.second.device, torch.float64)
        targets = targets.to(self.second.device)
        if self.is_diagonal:
            self.second.index_add_(0, targets, rows.square())
            return
        for label in targets.unique().tolist():
            members = rows[targets == label]
            self.second[label].addmm_(members.T, members)

    def covariances(self, statistics: ClassStatistics) -> Tensor:
        """Of each class by n - 1, float64 [C, D, D] or [C, D]; 0 for a class of less than two samples."""
        counts, means = statistics.counts.double(), statistics.means()
        axes = (slice(None),) + (None,) * (self.second.ndim - 1)
        outer = means.square() if self.is_diagonal else means[:, :, None] * means[:, None]
        centred = (self.second - counts[axes] * outer) / (counts - 1).clamp(min=1)[axes]
        return centred * (counts > 1).double()[axes]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        return kept_exact(self, fn)


class Gaussians(NamedTuple):
    """What samples are drawn from.

    Attributes:
        classes: ids with a sample, int64 [K].
        means: theirs, float64 [K, D].
        factors: roots of their covariances, float64: lower triangles [K, D, D], or [1, D, D] where all
            classes share it, or standard deviations [K, D].
    """

    classes: Tensor
    means: Tensor
    factors: Tensor

    def draw(self, count: int, scale: Tensor, source: torch.Generator) -> Tensor:
        """So many samples of each class, class by class, float32 [K * count, D].

        Args:
            count: of one class.
            scale: of the means, [K].
            source: of the noise.
        """
        width = self.means.shape[1]
        samples = torch.empty(len(self.classes), count, width, device=self.means.device)
        for row, mean in enumerate(self.means * scale[:, None]):
            noise = torch.randn(count, width, generator=source, dtype=torch.float64).to(mean)
            factor = self.factors[min(row, len(self.factors) - 1)]
            samples[row] = mean + (noise * factor if factor.ndim == 1 else noise @ factor.T)
        return samples.flatten(0, 1)


def gaussians(statistics: ClassStatistics, moments: ClassMoments | None = None) -> Gaussians:
    """A Gaussian for each class with a sample.

    Args:
        statistics: of labels.
        moments: of the same samples; None for the covariance that all classes share.
    """
    classes = statistics.seen.nonzero().flatten()
    means = statistics.means()[classes]
    if moments is None:
        scatter, freedom = statistics.scatter()
        shared = scatter / max(freedom, 1)
        return Gaussians(classes, means, _triangle(shared)[None])
    covariances = moments.covariances(statistics)[classes]
    if moments.is_diagonal:
        return Gaussians(classes, means, (covariances.clamp(min=0) + _VARIANCE).sqrt())
    return Gaussians(classes, means, torch.stack([_triangle(one) for one in covariances]))


def _triangle(covariance: Tensor) -> Tensor:
    """The Cholesky factor of a covariance [D, D] and the variance that is added to it."""
    wide = torch.eye(len(covariance), dtype=covariance.dtype, device=covariance.device)
    factor, failed = torch.linalg.cholesky_ex(covariance + _VARIANCE * wide)
    if bool(failed):
        raise ConfigError(
            "statistics=align: features are so large that rounding leaves a covariance without a root; use "
            "align_covariance=diagonal"
        )
    return factor


def align(
    head: LinearMap, source: Gaussians, experiences: Tensor, recipe: Recipe, *, seed: int, experience: int
) -> LinearMap:
    """The head, trained on with samples of all classes; the classes compete with each other alone.

    The draws are a function of (seed, experience, epoch).

    Args:
        head: weights [C, D] and biases [C] to begin with, which stay as they are.
        source: what is drawn from.
        experiences: the experience of each class, int64 [C], from 0.
        recipe: how.
        seed: of the draws.
        experience: the one that just ended, from 0.
    """
    classes, device = source.classes, source.means.device
    weight = head.weight.detach()[classes].to(device, torch.float32, copy=True).requires_grad_()
    bias = head.bias.detach()[classes].to(device, torch.float32, copy=True).requires_grad_()
    homes = experiences.to(device)[classes]  # (K,)
    groups = [homes == home for home in homes.unique()]
    scale = 1 - recipe.shrink + recipe.shrink * (homes + 1).double() / (experience + 1)
    labels = torch.arange(len(classes), device=device).repeat_interleave(recipe.samples)
    steps = -(-len(labels) // recipe.batch_size)
    if recipe.old_steps_only:
        steps = min(steps, int((homes < experience).sum()))
    optimizer = torch.optim.SGD(
        [weight, bias], lr=recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay
    )
    with torch.enable_grad(), torch.autocast(device.type, enabled=False):
        for epoch in range(recipe.epochs):
            for group in optimizer.param_groups:
                group["lr"] = recipe.lr * (1 + math.cos(math.pi * epoch / recipe.epochs)) / 2
            noise = generator(seed, "alignment", experience, epoch)
            samples = source.draw(recipe.samples, scale, noise)
            order = torch.randperm(len(labels), generator=noise).to(device)
            for rows in order.split(recipe.batch_size)[:steps]:
                logits = F.linear(samples[rows], weight, bias)
                loss = F.cross_entropy(_divided(logits, groups, recipe.temperature), labels[rows])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
    aligned = LinearMap(head.weight.detach().to(device).clone(), head.bias.detach().to(device).clone())
    aligned.weight[classes] = weight.detach().to(aligned.weight)
    aligned.bias[classes] = bias.detach().to(aligned.bias)
    return aligned


def _divided(logits: Tensor, groups: Sequence[Tensor], temperature: float | None) -> Tensor:
    """Logits [B, K] by the mean norm of those of an experience, and by the temperature."""
    if temperature is None:
        return logits
    norms = [logits[:, group].norm(dim=1, keepdim=True) + 1e-7 for group in groups]
    return logits / torch.cat(norms, dim=1).mean(1, keepdim=True) / temperature


class AlignedHead(StatisticsHead):
    """A trained head that is aligned at the end of each experience but the first, beside the trained one.

    Args:
        width: D, of the features.
        covariance: of the Gaussians.
        recipe: whose numbers, a key of ``RECIPES``.

    Attributes:
        moments: second moments by class; None where the classes share a covariance.
        weight: of the aligned head, [C, D]; state, as the head that it came from is trained on.
        bias: its biases, [C].
    """

    is_closed_form = False
    takes_label_sets = False

    def __init__(self, width: int, covariance: Covariance = "full", recipe: Recipes = "slca") -> None:
        super().__init__(width)
        self.recipe = RECIPES[recipe]
        self.moments = (
            None if covariance == "shared" else ClassMoments(width, diagonal=covariance == "diagonal")
        )
        self.weight: Tensor
        self.bias: Tensor
        self.register_buffer("weight", torch.zeros(0, width))
        self.register_buffer("bias", torch.zeros(0))

    @property
    def needs_experiences(self) -> bool:
        return True

    def grow(self, num_classes: int) -> None:
        super().grow(num_classes)
        if self.moments is not None:
            self.moments.grow(num_classes)
        missing = num_classes - len(self.bias)
        if missing > 0:
            grow_rows(self.weight, torch.zeros(missing, self.weight.shape[1]))
            grow_rows(self.bias, torch.zeros(missing))

    def add(self, features: Tensor, targets: Tensor) -> None:
        super().add(features, targets)
        if self.moments is not None:
            self.moments.add(features, targets)

    @torch.no_grad()
    def settle(self, ended: Ended) -> None:
        """Align the trained head as it is now; it stays so."""
        assert ended.trained is not None
        assert ended.experiences is not None
        head = LinearMap(ended.trained.weight.detach(), ended.trained.bias.detach())
        if ended.experience:
            source = gaussians(self.classes, self.moments)
            start = head
            if self.recipe.stays_aligned:  # old rows are trained on from where the last alignment left them
                old = ((ended.experiences >= 0) & (ended.experiences < ended.experience)).to(self.bias.device)
                start = LinearMap(
                    torch.where(old[:, None], self.weight, head.weight.to(self.weight)),
                    torch.where(old, self.bias, head.bias.to(self.bias)),
                )
            head = align(
                start, source, ended.experiences, self.recipe, seed=ended.seed, experience=ended.experience
            )
        self.weight.copy_(head.weight)
        self.bias.copy_(head.bias)
        self.classes.forget()

    def solve(self, classes: ClassStatistics) -> LinearMap:
        """The aligned head, in float64."""
        return LinearMap(self.weight.to(classes.second), self.bias.to(classes.second))
