"""DAM-VP: diversity-clustered pixel prompts, and the meta-prompts that they start from."""

from __future__ import annotations

from typing import TYPE_CHECKING

from clprompt import lazy_names

if TYPE_CHECKING:
    from clprompt.strategies.damvp.model import DAMVPModel as DAMVPModel

# at first use: help imports a folder's command, and shall not load torch
__all__, __getattr__, __dir__ = lazy_names(__name__, {"DAMVPModel": "clprompt.strategies.damvp.model"})
