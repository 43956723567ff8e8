"""Arguments for tests over every method, of those whose defaults take long."""

from __future__ import annotations

from typing import Any

from clprompt.registry import strategies

SMALL: dict[str, dict[str, Any]] = {
    "coop": {"length": 4},  # more do not fit into the text tower of clip_letters
    "flyprompt": {"layers": (0, 2), "length": 2, "random_features": 48, "samples_per_expert": 40},
    "ranpac": {"random_features": 48},
}


def image_methods() -> list[str]:
    """Names of the strategies that can do with an image tower alone."""
    return [name for name in strategies.names() if not strategies.get(name).target.needs_text]
