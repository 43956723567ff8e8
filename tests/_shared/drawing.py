"""Drawing takes ten times as long as a tiny run: where pictures are not what is tested, all are the same."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np
import pytest


@contextlib.contextmanager
def same_picture() -> Iterator[None]:
    """Every picture of a run is the same, whatever it shows."""
    from matplotlib.figure import Figure

    from clprompt.reporting import plots

    blank = Figure()
    with pytest.MonkeyPatch.context() as patch:
        picture = plots.png(plots.accuracy_curves(np.eye(1)), dpi=20)
        for name in ("accuracy_matrix", "accuracy_curves", "forgetting", "confusion_matrix"):
            patch.setattr(plots, name, lambda *_, **__: blank)
        patch.setattr(plots, "png", lambda *_, **__: picture)
        yield
