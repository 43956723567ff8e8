"""Averages of prompts along their way: what the epochs of an experience leave, weighted by a Gaussian."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Annotated

import torch
from torch import Tensor, nn

from clprompt import schema
from clprompt.errors import ConfigError
from clprompt.prompting.model import PromptModel
from clprompt.prompting.plugin import Plugin
from clprompt.prompting.text.anchors.anchor import serves
from clprompt.registry import plugins
from clprompt.schema import above, at_least

#: Where the weights are largest, as a share of the epochs.
_MEAN = 0.75


class Trajectory(Plugin):
    """At an experience's end all that the method trained becomes its mean over the ends of epochs 1, 2, ...

    Epoch e counts with exp(-(e - mean)^2 / (2 std^2)); weights are divided by their sum. The average takes
    the place of the prompts before anything is stored of them, and the next experience starts from there. The
    released code averages the frozen towers too, in half precision, and once at the very end.

    Args:
        mean: epoch of the largest weight; None for three quarters of the epochs of an experience.
        std: width of the weights, in epochs.

    Attributes:
        sums: weighted sums of the method's parameters, by name.
        weight: sum of the weights.
        epochs: (begun, planned) of the experience, int64 [2].

    Raises:
        ConfigError: a value out of range; when it is plugged, a method that learns no texts, or that is never
            told of experiences.

    Source: Khattak et al., ICCV 2023 (PromptSRC), arXiv 2307.06948, section 3.3.
    """

    name = "trajectory"
    needs_experiences = True

    @schema.checked
    def __init__(
        self, *, mean: Annotated[float, at_least(0)] | None = None, std: Annotated[float, above(0)] = 1.0
    ) -> None:
        super().__init__()
        self.mean = mean
        self.std = std
        self.sums = nn.Module()
        self.weight: Tensor
        self.epochs: Tensor
        self.register_buffer("weight", torch.zeros(()))
        self.register_buffer("epochs", torch.zeros(2, dtype=torch.int64))

    def attach(self, model: PromptModel) -> None:
        method = type(model).__name__
        if not serves(type(model)):
            raise ConfigError(f"trajectory=true: {method} {_LACKING}")
        if model.boundaries == "unused":
            raise ConfigError(
                f"trajectory=true needs to know of experiences, of which {method} is never told here"
            )
        self.follow()

    # ------------------------------------------------------------------ along the way

    def begin_experience(self, classes: object) -> None:
        self._restart()

    def begin_epoch(self, epoch: int, epochs: int) -> None:
        begun = int(self.epochs[0])
        if begun > epoch:  # resumed in its middle
            return
        if begun == 0:
            self.check_epochs(epochs)
        else:
            self._add(begun, int(self.epochs[1]))
        self.epochs.copy_(torch.tensor([epoch + 1, epochs]))

    @torch.no_grad()
    def training_ended(self) -> None:
        begun, planned = self.epochs.tolist()
        if begun == 0:  # nothing was trained, or the loop has no epochs: the prompts are their own average
            return
        self._add(begun, planned)
        for parameter, total in self._trained():
            parameter.copy_(total / self.weight)
        self._restart()

    @torch.no_grad()
    def _add(self, epoch: int, epochs: int) -> None:
        """Count the parameters as the end of an epoch, from 1, leaves them."""
        weight = self.weight_of(epoch, epochs)
        self.weight += weight
        for parameter, total in self._trained():
            total.add_(parameter.detach().to(total), alpha=weight)

    def weight_of(self, epoch: int, epochs: int) -> float:
        """The weight of an epoch, from 1, among so many; not divided by their sum."""
        mean = _MEAN * epochs if self.mean is None else self.mean
        distance = (epoch - mean) / self.std
        return math.exp(-distance * distance / 2)  # a product: powers of large numbers raise

    def check_epochs(self, epochs: int) -> None:
        least = torch.finfo(self.weight.dtype).tiny
        if epochs and sum(self.weight_of(epoch, epochs) for epoch in range(1, epochs + 1)) < least:
            raise ConfigError(
                f"trajectory_mean={_MEAN * epochs if self.mean is None else self.mean} is so far from all "
                f"{epochs} epochs of an experience that none has a weight with trajectory_std={self.std}"
            )

    def _trained(self) -> Iterator[tuple[nn.Parameter, Tensor]]:
        """The parameters that are trained, each with its sum."""
        for name, parameter in self.model.own_parameters().items():
            if parameter.requires_grad:
                yield parameter, self.sums.get_buffer(_safe(name))

    def _restart(self) -> None:
        for tensor in (*self.sums.buffers(), self.weight, self.epochs):
            tensor.zero_()

    # ------------------------------------------------------------------ state

    def grow_classes(self, num_classes: int) -> None:
        self.follow()

    @torch.no_grad()
    def follow(self) -> None:
        """Have a sum for each of the method's parameters; what joins late counts as if it had been there."""
        own = self.model.own_parameters()
        for name in set(self.sums._buffers) - set(map(_safe, own)):
            del self.sums._buffers[name]
        for name, parameter in own.items():
            total = self.sums._buffers.get(_safe(name))
            if total is None or total.shape != parameter.shape:
                value = parameter.detach()
                wide = value.to(torch.promote_types(value.dtype, torch.float32))
                joined = wide * self.weight.to(wide)
                if total is not None:
                    joined[: len(total)] = total
                self.sums.register_buffer(_safe(name), joined)


def _safe(name: str) -> str:
    """A name for a buffer, which may hold no dot."""
    return name.replace(".", "/")


_LACKING = "trains no texts whose prompts could be averaged"


@plugins.register("trajectory", serves=serves, lacking=_LACKING)
@schema.checked
def trajectory(
    *,
    trajectory: bool = False,
    trajectory_mean: Annotated[float, at_least(0)] | None = None,
    trajectory_std: Annotated[float, above(0)] | None = None,
) -> Trajectory | None:
    """Prompts become their mean over the ends of epochs: the short form of :class:`Trajectory`.

    Args:
        trajectory: whether at all.
        trajectory_mean: epoch, from 1, of the largest weight; null for three quarters of the epochs.
        trajectory_std: width of the weights, in epochs; null for 1.
    """
    if not trajectory:
        for key, value in {"trajectory_mean": trajectory_mean, "trajectory_std": trajectory_std}.items():
            if value is not None:
                raise ConfigError(f"{key} belongs to trajectory, which is false")
        return None
    return Trajectory(mean=trajectory_mean, std=1.0 if trajectory_std is None else trajectory_std)
