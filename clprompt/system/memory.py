"""How much memory the process has held."""

from __future__ import annotations

import contextlib
import resource
from pathlib import Path


def forget_peak() -> None:
    """Let :func:`peak_memory` count from now on, where the system can: what came before was another run's."""
    with contextlib.suppress(OSError):  # another system than Linux, or one that forbids it
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak_memory() -> int:
    """The most bytes of this process that were resident at a time, since the last :func:`forget_peak`."""
    try:  # getrusage counts what the parent process held when it started this one
        status = Path("/proc/self/status").read_text(encoding="ascii")
        return 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:"))
    except (OSError, StopIteration, ValueError):  # another system than Linux
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
