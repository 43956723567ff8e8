"""Where the golden and the conformance tests compute."""

import contextlib

import torch

from clprompt.system.runtime import reproducible

#: What ``pytest --device`` says; set before any test module is imported.
DEVICE = "cpu"


def as_in_a_run() -> contextlib.AbstractContextManager[None]:
    """Deterministic algorithms where a device has others, too."""
    return contextlib.nullcontext() if DEVICE == "cpu" else reproducible(torch.device(DEVICE))
