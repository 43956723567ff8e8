"""A process that ends with the one that started it, where the system can see to that.

Standard library only: it acts before anything heavy is imported.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

#: The environment variable that names the process which a new one shall not outlive.
PARENT = "CLPROMPT_PARENT"
_PR_SET_PDEATHSIG = 1


def end_with_parent() -> None:
    """Get SIGTERM when the process named by `PARENT` is gone, as if it had asked for the end; else nothing.

    A run then writes its checkpoint and gives its folder free. Linux alone has such a signal, and sends it at
    the end of the parent's thread: who starts a process waits for it in the same thread.
    """
    parent = os.environ.pop(PARENT, "")  # what this process starts is not the parent's child
    if not parent.isdigit() or sys.platform != "linux":
        return
    try:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)
    except (OSError, AttributeError):  # a C library without it
        return
    if os.getppid() != int(parent):  # it ended before the line above
        signal.raise_signal(signal.SIGTERM)
