"""Prompt-CAM: one prompt per class, whose attention shows what its score stands on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from clprompt import lazy_names

if TYPE_CHECKING:
    from clprompt.strategies.prompt_cam.model import PromptCAMModel as PromptCAMModel

# at first use: help imports a folder's command, and shall not load torch
__all__, __getattr__, __dir__ = lazy_names(
    __name__, {"PromptCAMModel": "clprompt.strategies.prompt_cam.model"}
)
