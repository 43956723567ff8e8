"""What prompts of classes look at: heads of single images, and means over many."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from clprompt.reporting.attention import attention_grid
from clprompt.reporting.plots import short

if TYPE_CHECKING:
    from clprompt.strategies.prompt_cam.model import Look

#: Classes in a row of the map of means, and how many are drawn.
_ACROSS, _MOST = 10, 50


def heads(images: Sequence[NDArray[np.floating]], looks: Sequence[Look]) -> Figure:
    """An image in front of each row, then the heads of a class's prompt, the most important one first.

    Args:
        images: one for each row, [H, W, channels], in [0, 1].
        looks: the rows.
    """
    maps = np.stack([look.maps for look in looks])  # (rows, heads, h, w)
    titles = [
        [f"head {head + 1}: {values.sum():.0%}" for head, values in zip(look.heads, look.maps, strict=True)]
        for look in looks
    ]
    rows = [f"{short(look.name)}\n{look.chance:.0%}" for look in looks]
    figure = attention_grid(images, maps, rows, titles, interpolation="bilinear")
    figure.text(
        0.5,
        0.06,
        "rows: a class and its probability; from left to right: where the heads of its prompt look,\n"
        "the most important one first, and how much of their attention is on the image",
        ha="center",
        va="top",
        fontsize=7,
    )
    return figure


def means(maps: Mapping[str, NDArray[np.floating]]) -> Figure:
    """Mean maps by class as one picture, each scaled by its own largest value.

    Args:
        maps: [h, w] each; the first fifty are drawn.
    """
    names = list(maps)[:_MOST]
    height, width = maps[names[0]].shape
    across = min(_ACROSS, len(names))
    down = -(-len(names) // across)
    canvas = np.full((down * (height + 1), across * (width + 1)), np.nan)
    figure = Figure(figsize=(0.9 * across + 0.4, 1.05 * down + 0.5))
    axes = figure.add_subplot()
    for number, name in enumerate(names):
        row, column = divmod(number, across)
        top, left = row * (height + 1), column * (width + 1)
        canvas[top : top + height, left : left + width] = maps[name] / (maps[name].max() or 1.0)
        axes.text(left + width / 2, top - 0.7, short(name), fontsize=6, ha="center", parse_math=False)
    axes.imshow(canvas, cmap="inferno", vmin=0)
    axes.axis("off")
    axes.set_title("where each class's prompt looks, mean over heads and images", fontsize=8, pad=14)
    return figure
