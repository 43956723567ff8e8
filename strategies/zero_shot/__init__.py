"""Zero-shot classification by text: templates, descriptions, pairs, a search over texts, a feature cache."""

from __future__ import annotations

from typing import TYPE_CHECKING

from clprompt import lazy_names

if TYPE_CHECKING:
    from clprompt.strategies.zero_shot.model import ZeroShotModel as ZeroShotModel

# at first use: help looks for a folder's command, and shall not load torch
__all__, __getattr__, __dir__ = lazy_names(__name__, {"ZeroShotModel": "clprompt.strategies.zero_shot.model"})
