"""What a run writes while it goes on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from clprompt import lazy_names

if TYPE_CHECKING:
    from clprompt.tracking.records import Records as Records
    from clprompt.tracking.sink import Sink as Sink
    from clprompt.tracking.tensorboard import TensorBoard as TensorBoard
    from clprompt.tracking.tracker import RunTracker as RunTracker

__all__, __getattr__, __dir__ = lazy_names(
    __name__,
    {
        "Records": "clprompt.tracking.records",
        "RunTracker": "clprompt.tracking.tracker",
        "Sink": "clprompt.tracking.sink",
        "TensorBoard": "clprompt.tracking.tensorboard",
    },
)
