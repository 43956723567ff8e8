"""Drawing takes ten times as long as a tiny run: where pictures are not what is tested, all are the same."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest

_PLOTS = ("accuracy_matrix", "accuracy_curves", "forgetting", "confusion_matrix")


@contextlib.contextmanager
def same_picture() -> Iterator[None]:
    """Every picture of a run is the same, whatever it shows."""
    from matplotlib.figure import Figure

    from clprompt.reporting import plots, stream_map

    blank = Figure()
    with pytest.MonkeyPatch.context() as patch:
        picture = plots.png(plots.accuracy_curves(np.eye(1)), dpi=20)
        for name in _PLOTS:
            patch.setattr(plots, name, lambda *_, **__: blank)
        patch.setattr(stream_map.StreamMap, "figure", lambda _: blank)
        patch.setattr(plots, "png", lambda *_, **__: picture)
        yield


@contextlib.contextmanager
def written_picture() -> Iterator[None]:
    """Every picture of a run says in words what it would show, so that two are equal as drawings would be."""
    from clprompt.reporting import plots

    def words(name: str, *shown: Any, **more: Any) -> str:
        return f"{name} of {shown} {more}"

    with pytest.MonkeyPatch.context() as patch, np.printoptions(threshold=10**6, precision=17):
        for name in _PLOTS:
            patch.setattr(plots, name, partial(words, name))
        patch.setattr(plots, "png", lambda figure, dpi=120: f"a picture of {dpi} dpi, {figure}".encode())
        yield
