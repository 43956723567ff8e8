"""JSON of other people's: what :mod:`json` takes without a word."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any


def once_each(message: str) -> Callable[[list[tuple[str, Any]]], dict[str, Any]]:
    """An ``object_pairs_hook`` for :func:`json.loads` that refuses a key which stands twice in an object.

    Args:
        message: of the ValueError, with {} in place of the key.
    """

    def members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        held = dict(pairs)
        if len(held) < len(pairs):
            twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
            raise ValueError(message.replace("{}", twice))
        return held

    return members
