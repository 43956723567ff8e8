"""Number formats of a forward pass."""

from __future__ import annotations

import contextlib
import warnings
from typing import Any

import torch

from clprompt.errors import ConfigError

_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager[Any]:
    """The autocast context of a precision; none of "float32"."""
    if precision == "float32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, _TYPES[precision])


def gradient_scaler(device: torch.device, precision: str) -> torch.amp.GradScaler | None:
    """What keeps gradients within the range of "fp16"; None for a precision that needs none.

    Raises:
        ConfigError: torch has no such autocast on the device.
    """
    if precision == "float32":
        return None
    try:
        with warnings.catch_warnings(), autocast(device, precision):
            warnings.simplefilter("error")  # it warns of what it does not have, and goes on without
            one = torch.ones(1, 1, device=device)
            there = (one @ one).dtype == _TYPES[precision]
            scaler = torch.amp.GradScaler(device.type) if precision == "fp16" else None
    except (RuntimeError, UserWarning, ValueError) as error:
        line = " ".join(str(error).split()).partition(". ")[0]
        raise ConfigError(f"precision={precision} is not there on {device}: {line}") from error
    if not there:
        raise ConfigError(f"precision={precision} is not there on {device}; use float32")
    return scaler
