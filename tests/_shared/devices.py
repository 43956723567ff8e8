"""Where the golden and the conformance tests compute: CLPROMPT_TEST_DEVICE, such as "cuda", or the CPU."""

import contextlib
import os

from clprompt.system.runtime import reproducible

DEVICE = os.environ.get("CLPROMPT_TEST_DEVICE", "cpu")


def as_in_a_run() -> contextlib.AbstractContextManager[None]:
    """Deterministic algorithms where a device has others, too."""
    return contextlib.nullcontext() if DEVICE == "cpu" else reproducible()
