"""TCPA: tokens choose the prompts that they see."""

from __future__ import annotations

from typing import TYPE_CHECKING

from clprompt import lazy_names

if TYPE_CHECKING:
    from clprompt.strategies.tcpa.model import TCPAModel as TCPAModel

# at first use: help imports a folder's command, and shall not load torch
__all__, __getattr__, __dir__ = lazy_names(__name__, {"TCPAModel": "clprompt.strategies.tcpa.model"})
