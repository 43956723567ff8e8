"""What the command `clprompt` does. Nothing heavy is imported before a command needs it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from clprompt import lazy_names

if TYPE_CHECKING:
    from clprompt.cli.main import entry as entry

__all__, __getattr__, __dir__ = lazy_names(
    __name__,
    {
        "entry": "clprompt.cli.main",
    },
)
