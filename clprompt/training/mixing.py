"""Mixed images and soft labels: mixup and label smoothing as parts of the training section."""

from __future__ import annotations

from torch import Tensor

from clprompt.errors import ConfigError, ProtocolError
from clprompt.prompting.losses import SoftLabels
from clprompt.prompting.model import PromptModel
from clprompt.seeding import derive, preserved_rng
from clprompt.targets import is_label_sets
from clprompt.training.settings import Training


def check_mixing(model: PromptModel, training: Training) -> None:
    """Refuse mixed images, before anything is trained, where a plug-in counts features of what is received.

    Raises:
        ConfigError: naming the setting.
    """
    if training.mixup and model.counts_received():
        raise ConfigError(
            "training.mixup must be 0: a plug-in counts features, and those of mixed images are no class's"
        )


def soften(
    images: Tensor, targets: Tensor, training: Training, classes: int, seed: int, *position: int
) -> tuple[Tensor, SoftLabels | None]:
    """Mix the images of a batch and soften its labels as the training section says.

    Args:
        images: [B, 3, H, W].
        targets: [B].
        training: its ``mixup``, ``mixup_probability`` and ``label_smoothing``.
        classes: C, columns of the model's logits.
        seed: decides the draw, with the position.
        *position: of the step in the run, so that any step can be entered again.

    Returns:
        The images and the soft labels; None for labels as they are.

    Raises:
        ProtocolError: multi-hot targets.
    """
    if not training.mixup and not training.label_smoothing:
        return images, None
    if is_label_sets(targets):
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
