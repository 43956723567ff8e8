"""Random numbers as pure functions of what they are for.

Nothing in clprompt walks along one global random stream. Every draw comes from a generator made on the spot
from the seed and from what is drawn: ``generator(seed, "order", experience, epoch)``. So any step of a run
can be entered again (exact resume), the three front ends agree, and a caller's random state is left alone.
"""

from __future__ import annotations

import contextlib
import hashlib
import random
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch


def derive(seed: int, *keys: int | str) -> int:
    """A 63-bit seed for a purpose, e.g. ``derive(0, "order", experience, epoch)``; stable across machines."""
    text = "/".join([str(int(seed)), *(str(key) for key in keys)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def generator(seed: int, *keys: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """A fresh generator for one purpose; two calls with the same arguments draw the same numbers.

    Args:
        seed: decides them, with the next.
        *keys: what is drawn.
        device: where; each kind of device draws numbers of its own.
    """
    return torch.Generator(device).manual_seed(derive(seed, *keys))


def rng_state() -> dict[str, Any]:
    """The global random states as tensors and plain values; clprompt draws from none, outsiders may."""
    kind, keys, *rest = np.random.get_state()  # noqa: NPY002
    version, numbers, gauss = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
        "numpy": [kind, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest],
        "python": [version, list(numbers), gauss],
    }


def set_rng_state(state: Mapping[str, Any]) -> None:
    """Put back what :func:`rng_state` gave."""
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))


@contextlib.contextmanager
def preserved_rng(seed: int | None = None, *, devices: bool = True) -> Iterator[None]:
    """Restore torch's, numpy's and ``random``'s global states on leaving; seed them on entering if asked.

    For the few callees that draw from global state: timm's initialisers, torchvision's transforms.

    Args:
        seed: what to seed them with; None leaves them as they are.
        devices: with the states of GPUs. Without is cheap enough for every image of a data set:
            torch.manual_seed formats three stack traces for absent devices, and waits for present ones.
    """
    cpu = torch.default_generator
    # raw states: converting them as rng_state does takes ten times as long
    before = cpu.get_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
    cuda = torch.cuda.get_rng_state_all() if devices and torch.cuda.is_initialized() else None
    try:
        if seed is not None:
            torch.manual_seed(seed) if devices else cpu.manual_seed(seed)
            np.random.seed(seed % 2**32)  # noqa: NPY002
            random.seed(seed)
        yield
    finally:
        cpu.set_state(before[0])
        np.random.set_state(before[1])  # noqa: NPY002
        random.setstate(before[2])
        if cuda is not None:
            torch.cuda.set_rng_state_all(cuda)
