"""MaPLe: prompts in both towers, and the ways to couple them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from clprompt import lazy_names

if TYPE_CHECKING:
    from clprompt.strategies.maple.model import MaPLeModel as MaPLeModel

__all__, __getattr__, __dir__ = lazy_names(__name__, {"MaPLeModel": "clprompt.strategies.maple.model"})
