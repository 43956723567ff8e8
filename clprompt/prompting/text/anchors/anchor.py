"""What all anchors have: unprompted texts near which learned ones stay, and who can carry them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from clprompt.errors import ConfigError
from clprompt.prompting.model import PromptModel
from clprompt.prompting.text.model import TextModel
from clprompt.prompting.text.plugin import LiveText, TextPlugin
from clprompt.prompting.text.sources import (
    ClassTexts,
    Ensemble,
    check_fit,
    rows_one_by_one,
    tell_of_strangers,
)
from clprompt.targets import as_index

LACKING = "learns no texts that could be anchored"


class Anchor(TextPlugin):
    """Terms over the live rows of a step, the batch's image features, and both without prompts.

    Args:
        texts: what the unprompted text of a class is: a template with {}, a file of templates or of sentences
            by class name, ``imagenet_7`` or ``imagenet_80``; None for the method's own template.

    Raises:
        ConfigError: no such texts; when it is plugged, a method without a learned text for each class.
    """

    #: how the features of several texts become one
    rule: ClassVar[Ensemble] = "normalised"

    def __init__(self, texts: str | None = None) -> None:
        super().__init__()
        self.texts = None if texts is None else ClassTexts(texts, "anchor_texts")
        self._fitting: set[str] = set()  # names whose texts were tried

    def attach(self, model: PromptModel) -> None:
        method = type(model).__name__
        if not serves(type(model)):
            raise ConfigError(f"anchor={self.name}: {method} {LACKING}")
        assert isinstance(model, TextModel)
        why = model.why_unanchored()
        if why is not None:
            raise ConfigError(f"anchor={self.name} needs one learned text for each class, but {why}")
        if model.rows_from == "frozen":
            raise ConfigError(f"anchor={self.name} needs rows=kept or live, got frozen")
        if self.texts is None:
            self.texts = ClassTexts(model.template, "template")

    def check_names(self, names: Sequence[str]) -> None:
        assert self.texts is not None
        self.texts.check(names)
        new = [name for name in names if name not in self._fitting]
        check_fit(self.model.text, (text for name in new for text in self.texts.of(name)), self.texts.where)
        self._fitting.update(new)

    def files_read(self) -> dict[str, Any]:
        return {} if self.texts is None else self.texts.files_read()

    def name_classes(self, names: Sequence[str]) -> None:
        assert self.texts is not None
        if self.texts.sentences is not None:
            tell_of_strangers(self.texts.sentences, names, self.texts.where)

    def shown(self, classes: Sequence[int]) -> list[str]:
        """The names of classes."""
        return [self.model.names.shown(c) for c in classes]

    @torch.no_grad()
    def teacher(self, classes: Sequence[int]) -> Tensor:
        """The rows of the unprompted texts of classes, normalised, [n, E]."""
        model: TextModel = self.model
        names, texts = tuple(self.shown(classes)), self.texts
        assert texts is not None
        return model.once(
            f"teacher of {self.name}",
            names,
            lambda: rows_one_by_one(model.text, [texts.of(name) for name in names], self.rule),
        )

    def named(self, terms: Mapping[str, tuple[float, Tensor]]) -> dict[str, Tensor]:
        """Terms by the names that they have in the loss, weighted; none without weight."""
        return {f"{self.name}_{name}": weight * term for name, (weight, term) in terms.items() if weight}


def serves(method: type[PromptModel]) -> bool:
    """Whether a method learns texts."""
    return isinstance(method, type) and issubclass(method, TextModel) and method.trains


def divergence(predicted: Tensor, target: Tensor) -> Tensor:
    """KL(softmax(target) || softmax(predicted)), summed over rows and columns: [B, n], [B, n] -> scalar."""
    return F.kl_div(predicted.log_softmax(1), target.log_softmax(1), reduction="sum", log_target=True)


def of_labels(live: LiveText) -> tuple[Tensor, Tensor]:
    """For each image the place of its label among the live classes, [B], and whether it is there, [B]."""
    classes = as_index(live.classes, live.targets.device)
    place = torch.searchsorted(classes, live.targets).clamp(max=len(classes) - 1)
    return place, classes[place] == live.targets
