"""Maps of what a lane's selectors look at, laid over images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from clprompt.reporting.attention import attention_grid
from clprompt.reporting.plots import short


def attention_plots(
    images: NDArray[np.floating], maps: NDArray[np.float64], rows: Sequence[str], what: str, most: int = 6
) -> dict[str, Figure]:
    """One :func:`attention_grid` per image, of the maps that are the least even in each row.

    Args:
        images: [B, H, W, channels], in [0, 1].
        maps: [B, rows, columns, h, w].
        rows: their titles.
        what: what a column is, for titles and names.
        most: columns that are drawn at most.
    """
    drawn = {}
    for number, (image, weights) in enumerate(zip(images, maps, strict=True), start=1):
        order = np.argsort(-weights.std(axis=(-2, -1)), axis=-1)[:, :most]  # (rows, most)
        picked = np.take_along_axis(weights, order[..., None, None], axis=1)
        columns = [f"{what} {rank + 1}" for rank in range(picked.shape[1])]
        names = [short(row) for row in rows]
        drawn[f"{what}s_{number:02d}"] = attention_grid([image] * len(rows), picked, names, [columns])
    return drawn
