"""Drawings of what tokens chose: which prompt entries patches see, and how many tokens switched later on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

_IDLE = "#e8e8e8"  # an entry that the class token does not see


def choices(
    images: NDArray[np.float64],
    patches: NDArray[np.bool_] | None,
    prefix: NDArray[np.bool_] | None,
    *,
    grid: tuple[int, int],
    blocks: Sequence[int],
    added: int,
) -> Figure:
    """Per image (row) and block (column), the entries of every patch; below, those of the class token.

    A colour is an entry. A patch that sees k entries is cut into k stripes, in the order of their numbers.

    Args:
        images: [B, H, W, 1 or 3], any range.
        patches: [blocks, B, n, M]; None where patches have no pool.
        prefix: of the first prefix token, [blocks, B, M]; None where it has no pool.
        grid: rows and columns of patches.
        blocks: the blocks' numbers.
        added: entries that an experience adds, for the legend; all M where nothing grows.
    """
    count, columns = len(images), len(blocks) + 1
    figure = Figure(figsize=(1.5 * columns, 1.85 * count + 0.75), layout="constrained")
    parts = figure.add_gridspec(2 * count + 1, columns, height_ratios=[*([1.0, 0.14] * count), 0.14])
    for row in range(count):
        picture = images[row] - images[row].min()
        axes = figure.add_subplot(parts[2 * row, 0])
        axes.imshow(np.broadcast_to(picture / max(picture.max(), 1e-6), (*picture.shape[:2], 3)))
        _bare(axes, "image" if row == 0 else "")
        for column, block in enumerate(blocks):
            axes = figure.add_subplot(parts[2 * row, column + 1])
            if patches is not None:
                _stripes(axes, patches[column, row], grid)
            _bare(axes, f"block {block}" if row == 0 else "")
            if prefix is not None:
                strip = figure.add_subplot(parts[2 * row + 1, column + 1])
                total = prefix.shape[-1]
                shown = np.where(prefix[column, row], np.arange(total), -1)[None]
                _entries(strip, shown, total)
                _bare(strip, "")
    total = next((part.shape[-1] for part in (patches, prefix) if part is not None), 0)
    legend = figure.add_subplot(parts[2 * count, :])
    _entries(legend, np.arange(total)[None], total)
    ticks = range(total) if total <= 30 else range(0, total, max(added, 1))
    legend.set_xticks(list(ticks), [str(tick) for tick in ticks], fontsize=7)
    for first in range(added, total, max(added, 1)):
        legend.axvline(first - 0.5, color="black", linewidth=1.2)
    legend.set_yticks([])
    split = f", {added} of each experience" if added < total else ""
    legend.set_xlabel(
        f"entry of the pool{split}; squares: patches, strips: class token (grey: not chosen)", fontsize=8
    )
    return figure


def _stripes(axes: Axes, chosen: NDArray[np.bool_], grid: tuple[int, int]) -> None:
    top_k, total = int(chosen[0].sum()), chosen.shape[-1]
    entries = np.nonzero(chosen)[1].reshape(*grid, top_k)  # ascending entries of each patch
    _entries(axes, entries.reshape(grid[0], grid[1] * top_k), total, extent=(0, grid[1], grid[0], 0))
    axes.set_aspect("equal")
    for edge in range(1, grid[1]):
        axes.axvline(edge, color="white", linewidth=0.6)
    for edge in range(1, grid[0]):
        axes.axhline(edge, color="white", linewidth=0.6)


def _entries(
    axes: Axes,
    numbers: NDArray[np.int64],
    total: int,
    extent: tuple[float, float, float, float] | None = None,
) -> None:
    # from dark to bright, for every eye and in grey print; neighbours in number are neighbours in colour
    colours = matplotlib.colormaps["viridis"](np.linspace(0, 1, max(total, 1)))
    shown = ListedColormap(colours).with_extremes(under=_IDLE)
    axes.imshow(
        numbers,
        cmap=shown,
        vmin=-0.5,
        vmax=total - 0.5,
        interpolation="nearest",
        aspect="auto",
        extent=extent,
    )


def _bare(axes: Axes, title: str) -> None:
    axes.set(xticks=[], yticks=[])
    axes.set_title(title, fontsize=9)


def switched(shares: Mapping[int, Sequence[float]]) -> Figure:
    """Share of tokens that see other entries than when their class group was learned.

    Args:
        shares: by class group, counted from 0, the share after its own experience and each later one.
    """
    figure = Figure(figsize=(7.0, 4.2))
    axes = figure.add_subplot()
    colours = matplotlib.colormaps["viridis"](np.linspace(0, 0.9, max(len(shares), 1)))
    for colour, (group, values) in zip(colours, shares.items(), strict=True):
        after = range(group + 1, group + 1 + len(values))
        axes.plot(
            after, [100 * v for v in values], marker="o", color=colour, label=f"class group {group + 1}"
        )
    last = max((group + len(values) for group, values in shares.items()), default=1)
    axes.set(xlim=(0.8, last + 0.2), xlabel="after experience", ylabel="tokens that switched (%)")
    axes.set_ylim(bottom=0)
    axes.set_title("Interference: tokens of earlier experiences that see other entries now")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    if shares and len(shares) <= 12:
        axes.legend(fontsize=8)
    return figure
