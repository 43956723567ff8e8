"""What a method hands on within one training step, and what it predicts."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from torch import Tensor


class Encoded(NamedTuple):
    """What :meth:`PromptModel.encode` returns.

    Attributes:
        features: the head's input, [B, D].
        terms: the method's own parts of the loss, scalars that are added; read in training only.
        details: what else the method needs later in the same step (chosen slots, distances).
    """

    features: Tensor
    terms: Mapping[str, Tensor] = MappingProxyType({})
    details: Any = None


class Step(NamedTuple):
    """What one training step produced.

    Attributes:
        loss: scalar to call ``backward`` on (without a graph where a method trains nothing).
        logits: [B, C], masked by seen classes only, with their graph (Avalanche's LwF distils on them).
        terms: each part of the loss by name, detached scalars, for the log.
        features: the head's input, [B, D], detached.
    """

    loss: Tensor
    logits: Tensor
    terms: dict[str, Tensor]
    features: Tensor


class Predictions(NamedTuple):
    """What :meth:`PromptModel.predictions` returns; logits [B, C], -inf for classes never observed.

    Attributes:
        logits: those that predict.
        trained: those of the method's own head, where a plug-in answered in its place; None elsewhere.
        embeddings: what retrieval compares, [B, E], where it was asked for.
    """

    logits: Tensor
    trained: Tensor | None
    embeddings: Tensor | None = None
