"""Mixed images and soft labels: mixup and label smoothing as parts of the training section."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from clprompt.config import Training
from clprompt.errors import ProtocolError
from clprompt.seeding import derive, preserved_rng


@dataclass(frozen=True, eq=False)
class SoftLabels:
    """What a step trains towards in place of its labels.

    Attributes:
        labels: [B], or a distribution over all classes [B, C].
        smoothing: how much of it is spread over the classes that compete.
    """

    labels: Tensor
    smoothing: float

    def loss(self, logits: Tensor, allowed: Tensor | None) -> Tensor:
        """Cross-entropy over the allowed classes [C] (None: all), logits [B, C] -> scalar."""
        labels = self.labels
        if labels.ndim == 1:
            labels = F.one_hot(labels, logits.shape[1]).to(logits.dtype)
        if allowed is not None:  # smoothing reaches no class that does not compete
            logits, labels = logits[:, allowed], labels[:, allowed]
        return F.cross_entropy(logits.float(), labels.float(), label_smoothing=self.smoothing)


def soften(
    images: Tensor, targets: Tensor, training: Training, classes: int, seed: int, *position: int
) -> tuple[Tensor, SoftLabels | None]:
    """Mix the images of a batch and soften its labels as the training section says.

    Args:
        images: [B, 3, H, W]. targets: [B].
        training: its ``mixup``, ``mixup_probability`` and ``label_smoothing``.
        classes: C, columns of the model's logits.
        seed, position: decide the draw, so that any step can be entered again.

    Returns:
        The images and the soft labels; None for labels as they are.

    Raises:
        ProtocolError: multi-hot targets.
    """
    if not training.mixup and not training.label_smoothing:
        return images, None
    if targets.ndim != 1:
        raise ProtocolError(
            "training.mixup and training.label_smoothing need one label per image, not multi-hot"
        )
    labels = targets
    if training.mixup:
        from torchvision.transforms import v2

        mix = v2.RandomApply(
            [v2.MixUp(alpha=training.mixup, num_classes=classes)], p=training.mixup_probability
        )
        with preserved_rng(derive(seed, "mixup", *position), devices=False):  # it draws from the global state
            images, labels = mix(images, targets)
    return images, SoftLabels(labels, training.label_smoothing)
