"""Heads on class statistics: each says what is counted, and which classifier follows from the sums."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from clprompt.prompting.heads import LinearHead
from clprompt.prompting.statistics.closed_forms import LinearMap, cosine_means, handed_out, lda, ridge
from clprompt.prompting.statistics.random_features import HeldOutStrength, RandomFeatures
from clprompt.prompting.statistics.sums import ClassStatistics
from clprompt.seeding import derive

#: Features [B, D] with their labels [B], or multi-hot [B, C].
Parts = Sequence[tuple[Tensor, Tensor]]


class Ended(NamedTuple):
    """An experience whose samples have all been counted.

    Attributes:
        experience: its index, from 0.
        seed: of the model.
        parts: its features and targets, for heads that ask for them by ``reads_samples``.
        experiences: the newest experience of each class, int64 [C], -1 for none; None where nobody knows.
        trained: the method's trained head; None where it has none that is linear.
    """

    experience: int
    seed: int
    parts: Parts = ()
    experiences: Tensor | None = None
    trained: LinearHead | None = None


class StatisticsHead(nn.Module, ABC):
    """A classifier that follows from class statistics.

    Args:
        width: D, of the features that are counted; what :meth:`expand` makes of them may be wider.

    Attributes:
        classes: the class statistics.
    """

    #: whether it follows from the statistics alone, without training
    is_closed_form: ClassVar[bool] = True
    #: whether it takes multi-hot targets
    takes_label_sets: ClassVar[bool] = True

    def __init__(self, width: int) -> None:
        super().__init__()
        self.classes = ClassStatistics(width)

    @property
    def reads_samples(self) -> bool:
        """Whether it looks at all samples of an experience together when it ends."""
        return False

    @property
    def needs_experiences(self) -> bool:
        """Whether it has to know where experiences end."""
        return self.reads_samples

    def expand(self, features: Tensor) -> Tensor:
        """What is counted and classified, in float64: [B, D] -> [B, D], or wider."""
        return features.to(self.classes.second)

    def add(self, features: Tensor, targets: Tensor) -> None:
        """Count a batch; see :meth:`ClassStatistics.add`."""
        self.classes.add(self.expand(features), targets)

    def settle(self, ended: Ended) -> None:
        """Do what is to be done at the end of an experience."""

    def grow(self, num_classes: int) -> None:
        """Have at least ``num_classes`` columns."""
        self.classes.grow(num_classes)

    @abstractmethod
    def solve(self, classes: ClassStatistics) -> LinearMap:
        """The classifier of expanded features that follows from the statistics."""

    def classify(self, features: Tensor) -> Tensor:
        """Features [B, D] -> logits [B, C], -inf for a class without a sample; solved when that changed."""
        return handed_out(self.classes.once("head", self.solve)(self.expand(features)), features)


class LDAHead(StatisticsHead):
    """Linear discriminant analysis, see :func:`clprompt.prompting.statistics.closed_forms.lda`.

    Args:
        width: D.
        shrinkage: of the covariance; None for one that follows the sample count.
    """

    def __init__(self, width: int, shrinkage: float | None = None) -> None:
        super().__init__(width)
        self.shrinkage = shrinkage

    def solve(self, classes: ClassStatistics) -> LinearMap:
        return lda(classes, self.shrinkage)


class MeansHead(StatisticsHead):
    """Cosine to the class means."""

    def solve(self, classes: ClassStatistics) -> LinearMap:
        return cosine_means(classes)

    def classify(self, features: Tensor) -> Tensor:
        unit = F.normalize(self.expand(features), dim=1)
        return handed_out(self.classes.once("head", self.solve)(unit), features)


class RidgeHead(StatisticsHead):
    """Ridge regression on one-hot targets, over the features or over random ones of them.

    Args:
        width: D.
        seed: of the random features, and of which samples are held out.
        random_features: M; None for the features themselves.
        strength: relative to the mean diagonal of the second moment, or "held_out": chosen at the end of each
            experience from its samples; None for 0.3, or 1 on random features.
    """

    def __init__(
        self, width: int, seed: int, random_features: int | None = None, strength: float | str | None = None
    ) -> None:
        super().__init__(random_features or width)
        default = 0.3 if random_features is None else 1.0
        self.strength = strength if isinstance(strength, float) else default
        self.random_features = (
            None if random_features is None else RandomFeatures(width, random_features, seed)
        )
        self.held_out = HeldOutStrength() if strength == "held_out" else None

    @property
    def reads_samples(self) -> bool:
        return self.held_out is not None

    def expand(self, features: Tensor) -> Tensor:
        return super().expand(features) if self.random_features is None else self.random_features(features)

    def settle(self, ended: Ended) -> None:
        if self.held_out is not None and ended.parts:
            self.held_out.choose(ended.parts, self.expand, derive(ended.seed, "strength", ended.experience))
            self.classes.forget()

    def solve(self, classes: ClassStatistics) -> LinearMap:
        if self.held_out is not None:
            return self.held_out.solve(classes, self.strength)
        return ridge(classes, self.strength)
