"""Methods that train nothing: classifiers on frozen features whose solution is known in closed form."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from clprompt.backbones.vit import FrozenViT
from clprompt.prompting.losses import SoftLabels
from clprompt.prompting.model import Boundaries, Cache, Encoded, PromptModel
from clprompt.prompting.plugin import Samples
from clprompt.prompting.statistics.closed_forms import LinearMap, cosine_means, handed_out
from clprompt.prompting.statistics.sums import ClassStatistics


class FrozenFeaturesModel(PromptModel):
    """Something on frozen features of which no part is trained by gradient.

    Args:
        backbone: the frozen vision transformer.
        seed: where all random numbers come from.
    """

    trains: ClassVar[bool] = False
    soft_labels: ClassVar[bool] = False

    def __init__(self, backbone: FrozenViT, *, seed: int = 0) -> None:
        super().__init__(backbone, seed=seed, mask="none")
        self.head = None
        self.first_block = backbone.depth

    @property
    def boundaries(self) -> Boundaries:
        return "unused"

    def encode(self, images: Tensor, cached: Cache | None = None) -> Encoded:
        return Encoded(self.features(images, cached))

    def losses(
        self, encoded: Encoded, targets: Tensor, soft: SoftLabels | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """No loss: nothing is trained by gradient."""
        return self.classify(encoded), {}


class ClosedFormModel(FrozenFeaturesModel):
    """A linear classifier on frozen features, solved from class statistics.

    A method says in :meth:`solve` what follows from the statistics, and in :meth:`expand` of what they are.
    Each received batch counts once, however many iterations are made over it, and in the first epoch of an
    experience alone: a second one would double the counts, on which a shrinkage depends.

    Weights are no state: they are solved when a prediction needs them and statistics have changed. A training
    step needs none: its logits, which nothing but the log reads, are cosines to the class means.

    Args:
        backbone: the frozen vision transformer.
        seed: where all random numbers come from.
        width: of the expanded features; None for the backbone's.
    """

    def __init__(self, backbone: FrozenViT, *, seed: int = 0, width: int | None = None) -> None:
        super().__init__(backbone, seed=seed)
        self.class_statistics = ClassStatistics(width or backbone.width)
        self._is_first_epoch = True

    @abstractmethod
    def solve(self, statistics: ClassStatistics) -> LinearMap:
        """The classifier that follows from the statistics."""

    def expand(self, features: Tensor) -> Tensor:
        """Frozen features [B, D] -> what is counted and classified, in float64 where the statistics are."""
        return features.to(self.class_statistics.second)

    def begin_epoch(self, epoch: int) -> None:
        self._is_first_epoch = epoch == 0

    def end_experience(self, samples: Samples | None = None) -> None:
        super().end_experience(samples)
        self._is_first_epoch = True  # of what comes next, should nobody tell

    def received(self, features: Tensor, targets: Tensor) -> None:
        """Count a batch; features that are not finite are left to whoever watches the steps and blames."""
        if self._is_first_epoch and bool(features.isfinite().all()):
            self.class_statistics.add(self.expand(features), targets)

    def grow_classes(self, num_classes: int) -> None:
        self.class_statistics.grow(num_classes)

    def predictable(self) -> Tensor:
        """Boolean [C]: the classes with a sample."""
        return self.class_statistics.seen.to(self.device)

    def classify(self, encoded: Encoded) -> Tensor:
        """Logits [B, C]; computed in float64, in float32 at least."""
        statistics, features = self.class_statistics, self.expand(encoded.features)
        if self.training or not bool(statistics.seen.any()):
            logits = statistics.once("means", cosine_means)(F.normalize(features, dim=1))
        else:
            logits = statistics.once("head", self.solve)(features)
        return handed_out(logits, encoded.features)
