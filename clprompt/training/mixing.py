"""Mixed images and soft labels: mixup, CutMix and label smoothing as parts of the training section."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from clprompt.errors import ConfigError, ProtocolError
from clprompt.prompting.losses import SoftLabels
from clprompt.prompting.model import PromptModel
from clprompt.prompting.step import BatchPart
from clprompt.seeding import derive, preserved_rng
from clprompt.targets import is_label_sets
from clprompt.training.settings import Training


def check_mixing(model: PromptModel, training: Training, *, told: bool) -> None:
    """Refuse mixed images, before anything is trained, where the method or a plug-in has no use for them.

    One that counts features of what is received has none, nor one that reads the label of an image.

    Args:
        model: with its plug-ins.
        training: its ``mixup`` and ``cutmix``.
        told: whether the loop tells of experiences, or may still do so.

    Raises:
        ConfigError: naming the setting.
    """
    for name in ("mixup", "cutmix"):
        if getattr(training, name) and model.counts_received(told=told):
            raise ConfigError(
                f"training.{name} must be 0: the method or a plug-in counts features, and those of "
                "mixed images are no class's"
            )
        reading = [plugin.name for plugin in model.plugins if plugin.needs_label]
        if getattr(training, name) and reading:
            raise ConfigError(
                f"training.{name} must be 0: {', '.join(reading)} reads the label of an image, and mixed "
                "images have two"
            )


def soften(
    images: Tensor,
    targets: Tensor,
    training: Training,
    classes: int,
    seed: int,
    *position: int,
    part: BatchPart | None = None,
) -> tuple[Tensor, SoftLabels | None]:
    """Mix the images of a batch and soften its labels as the training section says.

    Args:
        images: [B, 3, H, W].
        targets: [B], on any device.
        training: its ``mixup`` and ``cutmix``, the probability of each, and ``label_smoothing``.
        classes: C, columns of the model's logits.
        seed: decides the draw, with the position.
        *position: of the step in the run, so that any step can be entered again.
        part: the images are this part of the batch, the targets are all of it; images that are mixed are
            gathered first.

    Returns:
        The images and the soft labels; None for labels as they are.

    Raises:
        ProtocolError: multi-hot targets.

    Source: mixup, Zhang et al., ICLR 2018; CutMix, Yun et al., ICCV 2019.
    """
    if not training.mixup and not training.cutmix and not training.label_smoothing:
        return images, None
    if is_label_sets(targets):
        raise ProtocolError(
            "training.mixup, training.cutmix and training.label_smoothing need one label per image, "
            "not multi-hot"
        )
    if part is not None and (training.mixup or training.cutmix):
        images = part.whole(images)
    labels = targets = targets.to(images.device, non_blocking=True)
    left = 1.0  # the share of batches that are neither cut nor mixed before
    for name in ("cutmix", "mixup"):
        alpha, share = getattr(training, name), getattr(training, f"{name}_probability")
        if alpha and labels is targets:
            mix = _one_in(min(share / left, 1.0), name, alpha, classes)
            left -= share
            with preserved_rng(
                derive(seed, name, *position), devices=False
            ):  # it draws from the global state
                images, labels = mix(images, targets)
    if part is not None and (training.mixup or training.cutmix):
        images = images[part.rows]
    return images, SoftLabels(labels, training.label_smoothing)


def _one_in(share: float, name: str, alpha: float, classes: int) -> Callable[..., tuple[Tensor, Tensor]]:
    """What mixes the images and labels of so large a share of batches."""
    from torchvision.transforms import v2

    kind = {"mixup": v2.MixUp, "cutmix": v2.CutMix}[name]
    return v2.RandomApply([kind(alpha=alpha, num_classes=classes)], p=share)
