"""Maps of what a lane's selectors look at, laid over images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from clprompt.reporting.plots import short


def attention_grid(
    image: NDArray[np.float64], maps: NDArray[np.float64], rows: Sequence[str], columns: Sequence[str]
) -> Figure:
    """An image beside maps of attention laid over it.

    Args:
        image: [H, W, 3] or [H, W, 1], in [0, 1].
        maps: [rows, columns, h, w], of patches; each is scaled by its own largest value.
        rows: their titles.
        columns: their titles.

    Returns:
        A figure of one row of panels per row of maps, the image itself in front.
    """
    count, across = maps.shape[:2]
    figure = Figure(figsize=(1.25 * (across + 1) + 0.6, 1.3 * count + 0.5))
    panels = figure.subplots(count, across + 1, squeeze=False, gridspec_kw={"wspace": 0.08, "hspace": 0.08})
    grey = image.mean(-1) if image.shape[-1] != 1 else image[..., 0]
    high, wide = grey.shape
    for row in range(count):
        panels[row, 0].imshow(image if image.shape[-1] == 3 else grey, cmap="gray", vmin=0, vmax=1)
        panels[row, 0].set_ylabel(rows[row], fontsize=8, parse_math=False)
        for column in range(across):
            axes, values = panels[row, column + 1], maps[row, column]
            axes.imshow(grey, cmap="gray", vmin=0, vmax=1.5)
            top = values.max() or 1.0
            strength = np.clip(values / top, 0, 1)
            axes.imshow(
                strength,
                cmap="inferno",
                vmin=0,
                vmax=1,
                alpha=0.15 + 0.65 * strength,
                extent=(-0.5, wide - 0.5, high - 0.5, -0.5),
                interpolation="nearest",
            )
            if not row:
                axes.set_title(columns[column], fontsize=8)
    for axes in panels.flat:
        axes.set_xticks([])
        axes.set_yticks([])
    return figure


def attention_plots(
    images: NDArray[np.float64], maps: NDArray[np.float64], rows: Sequence[str], what: str, most: int = 6
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
        drawn[f"{what}s_{number:02d}"] = attention_grid(image, picked, [short(row) for row in rows], columns)
    return drawn
