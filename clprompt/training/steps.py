"""The steps of one training iteration, shared by the engine's loop and the Avalanche strategy's."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from clprompt.prompting.losses import SoftLabels
from clprompt.prompting.model import Cache, PromptModel, Step
from clprompt.prompting.plugin import Samples
from clprompt.training import optim
from clprompt.training.precision import autocast


def check_stream(
    model: PromptModel, classes: Sequence[Collection[int]], *, epochs: int, online: bool
) -> None:
    """Refuse a stream that a model is sure not to finish.

    Args:
        model: before the first of its experiences.
        classes: of each experience.
        epochs: that each is trained for.
        online: whether the stream does not tell of them.

    Raises:
        ConfigError: what the method or a plug-in says.
    """
    if online:
        model.check_online()
        return
    model.check_epochs(epochs)
    if model.boundaries != "unused":
        first = int(model.experience) + 1
        begun = [list(group) for i, group in enumerate(classes, first) if not model.stops(i)]
        model.check_stream(begun)


def begin(model: PromptModel, classes: Iterable[int], samples: Samples) -> bool:
    """Begin an experience for whoever wants to know of it; returns whether the method did.

    Args:
        model: one that has no use for boundaries lets its plug-ins know of them.
        classes: of the experience.
        samples: see :meth:`PromptModel.begin_experience`.
    """
    if model.boundaries == "unused":
        model.begin_for_plugins(classes, samples)
        return False
    model.begin_experience(classes, samples)
    return True


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
    cached: Cache | None = None,
) -> Step:
    """The model's loss on one batch, under the autocast of a precision.

    ``soft`` and ``cached`` as :meth:`PromptModel.training_loss` takes them.

    Raises:
        ProtocolError: soft labels for a method whose loss has no use for them.
    """
    with autocast(images.device, precision):
        given: dict[str, Any] = {"soft": soft, "cached": cached}  # not to a method that takes neither
        told = {name: value for name, value in given.items() if value is not None}
        return model.training_loss(images, targets, **told)


def train_step(
    model: PromptModel,
    optimizer: Optimizer | None,
    images: Tensor,
    targets: Tensor,
    *,
    clip_grad: float | None = None,
    precision: str = "float32",
    soft: SoftLabels | None = None,
    cached: Cache | None = None,
    scaler: torch.amp.GradScaler | None = None,
) -> Step:
    """One iteration on one batch: loss, backward, optimizer step.

    ``soft`` and ``cached`` as :meth:`PromptModel.training_loss` takes them; with a scaler, a step whose
    gradient overflows is left out.

    Raises:
        ConfigError: settings of the optimizer with which it cannot take its step.
    """
    step = train_step_loss(model, images, targets, precision, soft, cached)
    if step.loss.requires_grad and optimizer is not None:
        optimizer.zero_grad(set_to_none=True)
        loss = step.loss if scaler is None else scaler.scale(step.loss)
        loss.backward()
        if model.part is not None:
            model.part.average_gradients(p for group in optimizer.param_groups for p in group["params"])
        if scaler is not None:
            scaler.unscale_(optimizer)
        optim.clip(optimizer, clip_grad)
        with optim.in_range(optimizer):
            if scaler is None:
                optimizer.step()
            else:
                scaler.step(optimizer)
                scaler.update()
    return step
