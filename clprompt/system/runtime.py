"""The process: its device, its signals, and deterministic algorithms while a run lasts."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from clprompt.errors import ClpromptError, ConfigError
from clprompt.system import launched


def find_device(name: str) -> torch.device:
    """The torch device of a name; "auto" takes a GPU where there is one.

    Of several processes of one run each gets a GPU of its own.

    Raises:
        ConfigError: a device that is not there.
    """
    if launched.processes() > 1:
        return _own_device(name)
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()  # "meta" has devices, but no numbers
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ConfigError(
            f'device "{name}" is not there; use auto, cpu, or a device of this machine'
        ) from error
    return device


def has_bf16(description: str = "/proc/cpuinfo") -> bool | None:
    """Whether the processor has instructions for bf16; None where nobody can tell.

    Args:
        description: the file in which Linux describes it.
    """
    try:
        lines = Path(description).read_text().splitlines()
    except OSError:
        return None
    flags = next((line for line in lines if line.lower().startswith(("flags", "features"))), None)
    return None if flags is None else not {"amx_bf16", "avx512_bf16", "bf16"}.isdisjoint(flags.split())


def _own_device(name: str) -> torch.device:
    """The device of this one of several processes."""
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if name not in ("auto", "cuda"):
        raise ConfigError(f'device must be auto, cpu or cuda in several processes (torchrun), got "{name}"')
    rank, count = launched.local_rank(), torch.cuda.device_count()
    if rank >= count:
        raise ConfigError(
            f"process {rank + 1} of this machine has no GPU of its own, of which there are {count}"
        )
    torch.cuda.set_device(rank)
    return torch.device("cuda", rank)


# ----------------------------------------------------------------------------- signals, reproducibility


@contextlib.contextmanager
def stop_signal() -> Iterator[Callable[[], int | None]]:
    """Turn the first SIGINT or SIGTERM into a question that the loop asks; a second one acts at once."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return

    def handle(number: int, frame: Any) -> None:
        received.append(number)
        signal.signal(number, previous[number])
        if launched.rank() == 0 and sys.stderr is not None:  # a step may take minutes, where it is compiled
            with contextlib.suppress(OSError, ValueError):  # not print: the signal may have come in one
                os.write(2, _STOPS)

    previous: dict[int, Any] = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
    for number in previous:
        signal.signal(number, handle)
    try:
        yield lambda: received[0] if received else None
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


_STOPS = b"stops after the step that is on, with a checkpoint (a second signal ends it at once)\n"


@contextlib.contextmanager
def reproducible(device: torch.device, *, deterministic: bool = True) -> Iterator[None]:
    """Ask torch for deterministic algorithms while a run lasts.

    On a GPU what has none is refused, since attention takes its deterministic form only then.

    Args:
        device: of the run.
        deterministic: False asks for none.

    Raises:
        ConfigError: an operation that has no deterministic form there, more memory than there is, or numbers
            of 64 bits where there are none.
    """
    on_gpu = device.type == "cuda"
    if on_gpu:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # matrix products are refused without
    memory: Any = torch.utils.deterministic  # a property of the module
    fill = memory.fill_uninitialized_memory
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    benchmark = torch.backends.cudnn.benchmark
    torch.use_deterministic_algorithms(deterministic, warn_only=not on_gpu)
    memory.fill_uninitialized_memory = fill and not on_gpu  # a twelfth of a step there
    torch.backends.cudnn.benchmark = False
    try:
        yield
    except ClpromptError:
        raise
    except TypeError as error:
        if device.type == "mps" and "float64" in str(error):
            raise ConfigError(
                f"{device} has no float64, which something here needs; use device=cpu"
            ) from error
        raise
    except RuntimeError as error:
        text = " ".join(str(error).split())
        if "deterministic" in text:
            raise ConfigError(
                f"{text.partition(', but you set')[0]}; set deterministic=false to run without equal bits"
            ) from error
        if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in text:
            raise ConfigError(
                f"{device} has too little memory left; make training.train_mb_size or eval_mb_size smaller "
                f"({text.partition('. ')[0]})"
            ) from error
        raise
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        memory.fill_uninitialized_memory = fill
        torch.backends.cudnn.benchmark = benchmark
