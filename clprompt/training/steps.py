"""The steps of one training iteration, shared by the engine's loop and the Avalanche strategy's."""

from __future__ import annotations

from torch import Tensor
from torch.optim import Optimizer

from clprompt.errors import ProtocolError
from clprompt.prompting.losses import SoftLabels
from clprompt.prompting.model import PromptModel, Step
from clprompt.training import optim
from clprompt.training.precision import autocast


def receive(model: PromptModel, optimizer: Optimizer | None, targets: Tensor) -> None:
    """Tell the model which labels have arrived, and let the optimizer follow its growth."""
    if model.observe(targets) and optimizer is not None:
        optim.sync(optimizer, model)


def train_step_loss(
    model: PromptModel,
    images: Tensor,
    targets: Tensor,
    precision: str = "float32",
    soft: SoftLabels | None = None,
) -> Step:
    """The model's loss on one batch, under the autocast of a precision.

    Raises:
        ProtocolError: soft labels for a method whose loss has no use for them.
    """
    model.soft = soft
    try:
        with autocast(images.device, precision):
            step = model.training_loss(images, targets)
        if model.soft is not None:
            raise ProtocolError(
                f"{type(model).__name__} has a loss of its own, which takes neither training.mixup nor "
                "training.label_smoothing"
            )
    finally:
        model.soft = None
    return step


def train_step(
    model: PromptModel,
    optimizer: Optimizer | None,
    images: Tensor,
    targets: Tensor,
    *,
    clip_grad: float | None = None,
    precision: str = "float32",
    soft: SoftLabels | None = None,
) -> Step:
    """One iteration on one batch: loss, backward, optimizer step."""
    step = train_step_loss(model, images, targets, precision, soft)
    if step.loss.requires_grad and optimizer is not None:
        optimizer.zero_grad(set_to_none=True)
        step.loss.backward()
        optim.clip(optimizer, clip_grad)
        optimizer.step()
    return step
