"""Numbers that are not finite: noticed where they arise, blamed on what they come from, never a figure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from clprompt.errors import BackboneError, ClpromptError, DataError, NotFiniteError, ProtocolError
from clprompt.prompting.model import PromptModel
from clprompt.prompting.step import BatchPart, Step

#: Row of a batch -> words for its image.
Names = Callable[[int], str]

#: What helps against steps that are too large, and what broke a method that makes none.
_LOWER = "lower training.lr or set training.clip_grad"
_RECEIVED = "what it received was not finite"


class _Noted(NamedTuple):
    """A step: whether it was finite and its loss, its number and that of its experience, from 1."""

    finite: Tensor
    loss: Tensor
    number: int
    experience: int
    part: BatchPart | None


class FiniteWatch:
    """Whether every training step was finite: flags on the device, read where that is waited for anyway.

    Of the steps between two readings the images of the last one alone are kept.

    Args:
        model: what is trained.
    """

    def __init__(self, model: PromptModel) -> None:
        self.model = model
        self._unread: list[_Noted] = []
        self._images: Tensor | None = None  # of the last of them
        self._last: _Noted | None = None

    def note(self, step: Step, images: Tensor, number: int, experience: int) -> None:
        """Note a step; on a CPU, for which nobody waits, it is read at once.

        Args:
            step: what it produced; a method without a loss shows in its features what is wrong.
            images: on which it was made, [B, 3, H, W], on any device.
            number: of the step, from 1.
            experience: from 1, as a progress display counts.

        Raises:
            ClpromptError: see :meth:`check`.
        """
        loss = step.loss.detach()
        finite = loss.isfinite().all() & step.features.isfinite().all()
        self._last = _Noted(finite, loss, number, experience, self.model.part)
        self._unread.append(self._last)
        self._images = images
        if finite.device.type == "cpu":
            self.check()

    def check(self) -> None:
        """Refuse to go on after a step that was not finite.

        Raises:
            DataError: its images are not finite.
            BackboneError: the frozen backbone makes features of finite images that are not.
            ProtocolError: anything else; before the first step it is not the learning rate's fault.
        """
        unread, self._unread = self._unread, []
        images, self._images = self._images, None
        noted = next((noted for noted in unread if not bool(noted.finite)), None)
        if noted is None:
            return
        broken = not bool(noted.loss.isfinite().all())
        what = f"the loss is {float(noted.loss)}" if broken else "the features are not finite"
        if noted is not unread[-1]:  # its images are gone
            where = f"at step {noted.number} (experience {noted.experience})"
            raise ProtocolError(f"{what} {where}; {_LOWER}, or look for an image that is not finite")
        assert images is not None
        raise self._blamed(what, images, noted.number, noted.experience, noted.part)

    @contextmanager
    def step(self, images: Tensor, number: int, experience: int) -> Iterator[None]:
        """A training step, in which something may meet what is not finite before there is a loss.

        Args:
            images: on which it is made, [B, 3, H, W].
            number: of the step, from 1.
            experience: from 1.

        Raises:
            ClpromptError: see :meth:`check`.
        """
        try:
            yield
        except NotFiniteError as error:
            raise self._blamed(str(error), images, number, experience, self.model.part) from None

    def _blamed(
        self, what: str, images: Tensor, number: int, experience: int, part: BatchPart | None
    ) -> ClpromptError:
        if part is not None:  # all processes see the same, and blame the same image
            images = part.whole(self.model.placed(images))
        where = f"at step {number} (experience {experience})"
        return blame(
            self.model,
            images,
            f"{what} {where}",
            lambda row: f"image {row + 1} of the batch {where}",
            trained=number > 1 and self.model.trains,
        )

    def check_state(self) -> None:
        """The same, and refuse a state that the last step broke although its loss was finite.

        Raises:
            ProtocolError: naming the first tensor that is not finite.
        """
        self.check()
        noted = self._last
        after = f" after step {noted.number} (experience {noted.experience})" if noted else ""
        check_state(self.model, f"the model is broken{after}")


def check_state(model: PromptModel, what: str) -> None:
    """Refuse a method whose state is not finite: such keys still choose, and figures look like good ones.

    Args:
        model: of its buffers only nan is refused, and not where that stands for "not known yet".
        what: follows from it.

    Raises:
        ProtocolError: naming the first tensor.
    """
    broken = model.broken_in(model.method_state())
    if broken is not None:
        raise ProtocolError(f"{what}: {broken}; {_LOWER if model.trains else _RECEIVED}")


def check_logits(model: PromptModel, logits: Tensor, images: Tensor, names: Names) -> None:
    """Refuse logits from which a figure would be made although they are no numbers.

    Args:
        model: that made them, in eval mode.
        logits: of a batch, [B, C].
        images: of the batch, [B, 3, H, W].
        names: of the images.

    Raises:
        DataError: the images are not finite.
        BackboneError: the frozen backbone makes features of finite images that are not.
        ProtocolError: the logits of a class with predictions are not finite.
    """
    columns = model.predictable()[: logits.shape[1]].nonzero().flatten()
    wrong = ~logits[:, columns].isfinite()  # (B, predictable classes)
    if not bool(wrong.any()):
        return
    row, column = wrong.nonzero()[0].tolist()
    label = int(columns[column])
    what = f"no evaluation is recorded: the logit of class {label} is {float(logits[row, label])}"
    raise blame(model, images, f"{what} for {names(row)}", names, trained=model.trains)


def check_features(model: PromptModel, features: Tensor, images: Tensor, names: Names) -> None:
    """Refuse features [B, D] of images [B, 3, H, W] that are not finite.

    Raises:
        DataError: the images are not finite.
        BackboneError: they are.
    """
    if not bool(features.isfinite().all()):
        raise blame(model, images, "the features are not finite", names, trained=False)


@torch.no_grad()
def blame(model: PromptModel, images: Tensor, what: str, names: Names, *, trained: bool) -> ClpromptError:
    """The error that says where numbers that are not finite come from, as far as can be found out.

    Args:
        model: that made them.
        images: from these, [B, 3, H, W].
        what: was seen.
        names: of the images.
        trained: whether earlier steps may have broken the method.
    """
    images = model.placed(images)
    rows = (~images.isfinite()).flatten(1).any(1).nonzero()
    if len(rows):
        row = int(rows[0])
        value = float(images[row][~images[row].isfinite()][0])
        return DataError(f"{names(row)} is not finite: it holds {value}")
    rows = (~model.backbone.features(images).isfinite()).any(1).nonzero()
    if len(rows):
        weight = broken_weight(model.backbone.state_dict())
        reason = f"its weight {weight}" if weight else "its weights are finite, but too large"
        return BackboneError(
            f"the backbone's features of {names(int(rows[0]))} are not finite, though the image is: {reason}"
        )
    if trained:
        return ProtocolError(f"{what}; {_LOWER}")
    return ProtocolError(
        f"{what}; no step was made before, and images and backbone are finite: "
        f"a setting of {type(model).__name__} is out of range"
    )


def broken_weight(weights: Mapping[str, Tensor]) -> str | None:
    """The first tensor that is not finite, and what it holds; None where all are."""
    for name, value in weights.items():
        wrong = ~value.detach().isfinite()
        if bool(wrong.any()):
            return f"{name} holds {float(value.detach()[wrong][0])}"
    return None
