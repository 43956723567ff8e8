"""Methods that train nothing: classifiers on frozen features whose solution is known in closed form."""

from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from clprompt.backbones.vit import FrozenViT
from clprompt.prompting.losses import SoftLabels
from clprompt.prompting.model import Boundaries, Cache, Encoded, PromptModel
from clprompt.prompting.plugin import Samples
from clprompt.prompting.statistics.closed_forms import cosine_means, handed_out
from clprompt.prompting.statistics.heads import StatisticsHead
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

    Each received batch counts once, however many iterations are made over it, and in the first epoch of an
    experience alone: a second one would double the counts, on which a shrinkage depends.

    Weights are no state: they are solved when a prediction needs them and statistics have changed. A training
    step needs none: its logits, which nothing but the log reads, are cosines to the class means.

    Args:
        backbone: the frozen vision transformer.
        on_statistics: what is counted, and which classifier follows from it.
        seed: where all random numbers come from.
    """

    def __init__(self, backbone: FrozenViT, on_statistics: StatisticsHead, *, seed: int = 0) -> None:
        super().__init__(backbone, seed=seed)
        self.on_statistics = on_statistics
        self._is_first_epoch = True

    @property
    def class_statistics(self) -> ClassStatistics:
        """What was counted."""
        return self.on_statistics.classes

    def begin_epoch(self, epoch: int) -> None:
        self._is_first_epoch = epoch == 0

    def end_experience(self, samples: Samples | None = None) -> None:
        super().end_experience(samples)
        self._is_first_epoch = True  # of what comes next, should nobody tell

    def received(self, features: Tensor, targets: Tensor) -> None:
        """Count a batch."""
        if self._is_first_epoch:
            self.on_statistics.add(features, targets)

    def grow_classes(self, num_classes: int) -> None:
        self.on_statistics.grow(num_classes)

    def predictable(self) -> Tensor:
        """Boolean [C]: the classes with a sample."""
        return self.class_statistics.seen.to(self.device)

    def classify(self, encoded: Encoded) -> Tensor:
        """Logits [B, C]; computed in float64, in float32 at least."""
        if not self.training and self.class_statistics.counted:
            return self.on_statistics.classify(encoded.features)
        unit = F.normalize(self.on_statistics.expand(encoded.features), dim=1)
        return handed_out(self.class_statistics.once("means", cosine_means)(unit), encoded.features)
