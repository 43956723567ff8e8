"""Arguments for tests over every method, of those whose defaults take long."""

from __future__ import annotations

from typing import Any

from clprompt.prompting.model import PromptModel
from clprompt.registry import strategies

SMALL: dict[str, dict[str, Any]] = {
    "coop": {"length": 4},  # more do not fit into the text tower of clip_letters
    "flyprompt": {"layers": (0, 2), "length": 2, "random_features": 48, "samples_per_expert": 40},
    "ranpac": {"random_features": 48},
}


def image_methods() -> list[str]:
    """Names of the strategies that can do with an image tower alone."""
    return [name for name in strategies.names() if not strategies.get(name).target.needs_text]


def takes_label_sets_its_own_way(name: str) -> bool:
    """Whether a strategy that trains on label sets does more with targets than the code that all share."""
    method = strategies.get(name).target
    hooks = ("losses", "base_loss", "received", "training_mask", "check_targets")
    own = any(getattr(method, hook) is not getattr(PromptModel, hook) for hook in hooks)
    return own and method.multi_label is True
