"""Maps of attention laid over images: a grid of panels, one row per image or per what looks at it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from clprompt.inputs import ImageSpec


def pixels(images: Any, inputs: ImageSpec) -> NDArray[np.float32]:
    """Normalised images, a tensor [B, C, H, W], as they were: [B, H, W, C], in [0, 1]."""
    mean, std = (np.asarray(value, dtype=np.float32).reshape(-1, 1, 1) for value in (inputs.mean, inputs.std))
    return (images.detach().cpu().float().numpy() * std + mean).clip(0, 1).transpose(0, 2, 3, 1)


def attention_grid(
    images: Sequence[NDArray[np.floating]],
    maps: NDArray[np.floating],
    rows: Sequence[str],
    titles: Sequence[Sequence[str]],
    *,
    interpolation: Literal["nearest", "bilinear"] = "nearest",
) -> Figure:
    """Images beside maps of attention laid over them.

    Args:
        images: one for each row, [H, W, 3] or [H, W, 1], in [0, 1].
        maps: [rows, columns, h, w], of patches; each is scaled by its own largest value.
        rows: their titles.
        titles: of the maps, [rows][columns]; of the first row alone where these are those of the columns.
        interpolation: how patches become pixels.

    Returns:
        A figure of one row of panels per row of maps, the image itself in front.
    """
    count, across = maps.shape[:2]
    is_titled = len(titles) > 1  # every row
    figure = Figure(figsize=(1.25 * (across + 1) + 0.6, (1.5 if is_titled else 1.3) * count + 0.5))
    gap = {"wspace": 0.08, "hspace": 0.25 if is_titled else 0.08}
    panels = figure.subplots(count, across + 1, squeeze=False, gridspec_kw=gap)
    for row, image in enumerate(images):
        grey = image.mean(-1) if image.shape[-1] != 1 else image[..., 0]
        high, wide = grey.shape
        panels[row, 0].imshow(image if image.shape[-1] == 3 else grey, cmap="gray", vmin=0, vmax=1)
        panels[row, 0].set_ylabel(rows[row], fontsize=8, parse_math=False)
        for column in range(across):
            axes, values = panels[row, column + 1], maps[row, column]
            axes.imshow(grey, cmap="gray", vmin=0, vmax=1.5)
            strength = np.clip(values / (values.max() or 1.0), 0, 1)
            axes.imshow(
                strength,
                cmap="inferno",
                vmin=0,
                vmax=1,
                alpha=0.15 + 0.65 * strength,
                extent=(-0.5, wide - 0.5, high - 0.5, -0.5),
                interpolation=interpolation,
            )
            if row < len(titles):
                axes.set_title(titles[row][column], fontsize=8)
    for axes in panels.flat:
        axes.set_xticks([])
        axes.set_yticks([])
    return figure
