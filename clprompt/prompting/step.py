"""What a method hands on within one training step, and what it predicts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol, TypeVar

from torch import Tensor, nn

Value = TypeVar("Value")


class BatchPart(Protocol):
    """The part of a batch that this process encodes, where several make one run.

    Attributes:
        total: images of the batch.
        rows: those of them that this process holds.
    """

    total: int
    rows: slice

    def whole(self, own: Value, /) -> Value:
        """Rows [b, ...] of this process's images -> of all, [B, ...], with gradient; in tuples, too."""
        ...

    def means(self, own: Sequence[Tensor], /) -> list[Tensor]:
        """Scalars that are means over this process's images -> means over all of them, with gradient."""
        ...

    def average_gradients(self, parameters: Iterable[nn.Parameter], /) -> None:
        """Bring what each process has as gradients of its own loss to the gradient of the batch's."""
        ...


class Encoded(NamedTuple):
    """What :meth:`PromptModel.encode` returns.

    Attributes:
        features: the head's input, [B, D].
        terms: the method's own parts of the loss, scalars that are added; read in training only. Each is a
            mean over the images, or does not depend on them: what compares images belongs into
            :meth:`PromptModel.losses`, which sees all of a batch where several processes encode it.
        details: what else the method needs later in the same step (chosen slots, distances); a tensor in it
            has a row for each image.
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
