"""What a run writes while it goes on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from clprompt import lazy_names

if TYPE_CHECKING:
    from clprompt.tracking.tracker import RunTracker as RunTracker

__all__, __getattr__, __dir__ = lazy_names(
    __name__,
    {
        "RunTracker": "clprompt.tracking.tracker",
    },
)
