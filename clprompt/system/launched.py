"""Whether this process is one of several that make a run together, as ``torchrun`` starts them.

Standard library only: the command line asks before it imports anything heavy.
"""

from __future__ import annotations

import contextlib
import os
import time
from typing import Any

#: What ``torchrun`` tells a process; with less torch.distributed cannot find the others.
_VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")

_TOLD = "clprompt: told"
_STAY = 2.0  # seconds

_store: Any = None  # what all processes read and write, once they have met


def processes() -> int:
    """How many processes were started together with this one, itself included."""
    if any(name not in os.environ for name in _VARIABLES):
        return 1
    return _number("WORLD_SIZE", 1)


def rank() -> int:
    """Which of them this one is, from 0; the first writes and speaks."""
    return _number("RANK", 0) if processes() > 1 else 0


def local_rank() -> int:
    """Which of those on this machine it is, from 0."""
    return _number("LOCAL_RANK", rank()) if processes() > 1 else 0


def command() -> str:
    """What stands before ``clprompt`` on a command line that starts as many processes on this machine."""
    if processes() == 1:
        return ""
    return f"torchrun --nproc-per-node {_number('LOCAL_WORLD_SIZE', processes())} -m "


def meet(store: Any) -> None:
    """Remember what all processes read and write.

    Args:
        store: a ``torch.distributed.Store``; None once it is gone.
    """
    global _store
    _store = store


def is_first_to_tell() -> bool:
    """Whether no other process has told the user yet why the run ends: one line is enough.

    Whoever has a reason tells it before the others notice that it is gone.
    """
    if _store is None:
        return rank() == 0
    try:
        return int(_store.add(_TOLD, 1)) == 1
    except RuntimeError:  # the process that kept it is gone
        return True


def stay_for_others() -> None:
    """Stay for a moment until all have asked who tells, where this process keeps what they read."""
    if _store is None or rank() or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        return
    until = time.monotonic() + _STAY
    with contextlib.suppress(RuntimeError):
        while int(_store.add(_TOLD, 0)) < processes() and time.monotonic() < until:
            time.sleep(0.02)


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, "")
    return int(text) if text.isdigit() else default
