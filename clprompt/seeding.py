"""Random numbers as pure functions of what they are for.

Nothing in clprompt walks along one global random stream. Every draw comes from a generator made on the spot from
the seed and from what is drawn: ``generator(seed, "order", experience, epoch)``. So any step of a run can be entered
again (exact resume), the three front ends agree, and a library call leaves the caller's random state alone.
"""

from __future__ import annotations

import contextlib
import hashlib
import random
from collections.abc import Iterator

import numpy as np
import torch


def derive(seed: int, *keys: int | str) -> int:
    """A 63-bit seed for one purpose, e.g. ``derive(0, "order", experience, epoch)``; stable across machines."""
    text = "/".join([str(int(seed)), *(str(key) for key in keys)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def generator(seed: int, *keys: int | str) -> torch.Generator:
    """A fresh CPU generator for one purpose; two calls with the same arguments draw the same numbers."""
    return torch.Generator().manual_seed(derive(seed, *keys))


@contextlib.contextmanager
def preserved_rng(seed: int | None = None) -> Iterator[None]:
    """Restore the global random states of torch, numpy and ``random`` on leaving; seed them on entering if asked.

    For the few callees that draw from global state: timm's initialisers, torchvision's transforms.
    """
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    try:
        if seed is not None:
            torch.manual_seed(seed)
            np.random.seed(seed % 2**32)
            random.seed(seed)
        yield
    finally:
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])
        random.setstate(states[2])
        if cuda is not None:
            torch.cuda.set_rng_state_all(cuda)
