"""A plug-in, which rides on any method, and the key that switches it on."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from torch import Tensor

from clprompt import Plugin, Step, at_least, checked


class SmallLogits(Plugin):
    """Adds the mean square of a step's logits to the loss.

    Args:
        weight: of that term.
    """

    name = "small_logits"

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.weight = weight

    def terms(self, step: Step, collected: Sequence[Any]) -> Mapping[str, Tensor]:
        logits = step.logits.masked_fill(step.logits.isinf(), 0)  # of classes that were never seen
        return {"small_logits": self.weight * logits.square().mean()}


@checked
def small_logits(*, small_logits: Annotated[float, at_least(0)] = 0.0) -> SmallLogits | None:
    """Logits that stay small.

    Args:
        small_logits: weight of their mean square in the loss; 0 for no such term.
    """
    return SmallLogits(small_logits) if small_logits else None
