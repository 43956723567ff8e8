"""MULTI-LANE: lanes of summary tokens beside the patch stream."""

from __future__ import annotations

from typing import TYPE_CHECKING

from clprompt import lazy_names

if TYPE_CHECKING:
    from clprompt.strategies.multilane.model import MultiLaneModel as MultiLaneModel

# at first use: help imports a folder's command, and shall not load torch
__all__, __getattr__, __dir__ = lazy_names(
    __name__, {"MultiLaneModel": "clprompt.strategies.multilane.model"}
)
