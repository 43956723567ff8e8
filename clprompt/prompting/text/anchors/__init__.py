"""Anchors: terms that hold learned texts and prompted images near what the towers say without prompts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from clprompt import lazy_names

if TYPE_CHECKING:
    from clprompt.prompting.text.anchors.anchor import Anchor as Anchor
    from clprompt.prompting.text.anchors.consistency import Consistency as Consistency
    from clprompt.prompting.text.anchors.direction import Direction as Direction
    from clprompt.prompting.text.anchors.equal_shifts import EqualShifts as EqualShifts
    from clprompt.prompting.text.anchors.self_regulation import SelfRegulation as SelfRegulation

__all__, __getattr__, __dir__ = lazy_names(
    __name__,
    {
        "Anchor": "clprompt.prompting.text.anchors.anchor",
        "Consistency": "clprompt.prompting.text.anchors.consistency",
        "Direction": "clprompt.prompting.text.anchors.direction",
        "EqualShifts": "clprompt.prompting.text.anchors.equal_shifts",
        "SelfRegulation": "clprompt.prompting.text.anchors.self_regulation",
    },
)
