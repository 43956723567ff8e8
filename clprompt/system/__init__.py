"""How clprompt deals with the machine: files, checkpoints, YAML overlays, the process and its progress."""

from __future__ import annotations

from typing import TYPE_CHECKING

from clprompt import lazy_names

if TYPE_CHECKING:
    from clprompt.system.files import AppendOnlyFile as AppendOnlyFile
    from clprompt.system.files import FolderLock as FolderLock
    from clprompt.system.files import atomic_write as atomic_write
    from clprompt.system.runtime import find_device as find_device

__all__, __getattr__, __dir__ = lazy_names(
    __name__,
    {
        "AppendOnlyFile": "clprompt.system.files",
        "FolderLock": "clprompt.system.files",
        "atomic_write": "clprompt.system.files",
        "find_device": "clprompt.system.runtime",
    },
)
