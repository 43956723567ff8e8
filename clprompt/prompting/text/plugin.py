"""Plug-ins of methods whose classifier is text: what they see of a step, and where they may stand."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from clprompt.prompting.plugin import Plugin
from clprompt.prompting.step import Step


class LiveText(NamedTuple):
    """What a training step compares, over the classes whose rows are live: those of the current experience.

    With ``rows: live`` and ``mask: seen`` these are all seen ones, without experiences those of the batch.

    Attributes:
        classes: n of them, rising.
        rows: their text features t^, normalised, [n, E], with gradient.
        features: image features f^, normalised, [B, E], with gradient where images are prompted.
        logits: of these classes, unmasked, [B, n], with gradient.
        targets: labels [B] or multi-hot [B, C].
        images: [B, 3, H, W]; where several processes make a step, the part that is encoded here.
        frozen: gives f0^, the features of the same images in the frozen tower, [B, E], normalised and
            without gradient; computed at most once a step.
    """

    classes: list[int]
    rows: Tensor
    features: Tensor
    logits: Tensor
    targets: Tensor
    images: Tensor
    frozen: Callable[[], Tensor]


class TextPlugin(Plugin):
    """A plug-in of a :class:`~clprompt.prompting.text.model.TextModel`; each hook does nothing by default."""

    def adapt_images(self, features: Tensor) -> Tensor:
        """Changes image features [B, E], not normalised yet, on the way to the logits, always."""
        return features

    def adapt_rows(self, rows: Tensor) -> Tensor:
        """Changes rows of learned texts, normalised before and after, [n, E]."""
        return rows

    def name_classes(self, names: Sequence[str]) -> None:
        """Called when classes were named, with their shown names, for notices about them."""

    def check_names(self, names: Sequence[str]) -> None:
        """Refuse classes for which something is missing, before they are trained on.

        Args:
            names: shown names of classes.

        Raises:
            ConfigError: naming the class.
        """

    def text_terms(self, live: LiveText) -> Mapping[str, Tensor]:
        """Terms that are added to the loss of a step, scalars by name; not asked without live rows."""
        return {}

    def terms(self, step: Step, collected: Sequence[Any]) -> Mapping[str, Tensor]:
        with torch.autocast(step.features.device.type, enabled=False):
            return {name: term for live in collected for name, term in self.text_terms(live).items()}
