"""The drawings of a run on multi-hot targets, and maps of attention over images."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

from clprompt.reporting.plots import _ANNOTATED, _NAMED, _UNSEEN, _experience_axis, _short, _ticks


def map_curves(seen: ArrayLike, groups: ArrayLike) -> Figure:
    """mAP over all seen classes after each experience [T], and over the classes of each group [T, groups]."""
    seen, groups = 100 * np.asarray(seen, dtype=np.float64), 100 * np.asarray(groups, dtype=np.float64)
    done, count = groups.shape if groups.ndim == 2 else (len(seen), 0)
    figure = Figure(figsize=(8.0, 4.8))
    axes = figure.add_subplot()
    colours = matplotlib.colormaps["viridis"](np.linspace(0, 0.9, max(count, 1)))
    for group in range(count):
        axes.plot(
            np.arange(1, done + 1),
            groups[:, group],
            color=colours[group],
            marker="o",
            markersize=4,
            linewidth=1.3,
            label=f"classes of experience {group + 1}",
        )
    axes.plot(np.arange(1, done + 1), seen, "k--", marker="s", markersize=4, label="all seen classes")
    _experience_axis(axes, max(count, done), "Mean average precision")
    axes.set(ylabel="mAP (%)", ylim=(-2, 102))
    handles = None if count <= _ANNOTATED // 2 else axes.lines[-1:]
    axes.legend(handles=handles, loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False)
    return figure


def class_ap(matrix: NDArray[np.float64], class_names: Sequence[str]) -> Figure:
    """Heat map of the classes' average precision after each experience, [T, C], in percent; grey where it is nan."""
    percent = 100 * np.asarray(matrix, dtype=np.float64).T  # (C, T)
    classes, done = max(percent.shape[0], 1), max(percent.shape[1], 1)
    figure = Figure(
        figsize=(float(np.clip(2.6 + 0.55 * done, 4, 12)), float(np.clip(1.5 + 0.32 * classes, 3, 12)))
    )
    axes = figure.add_subplot()
    colours = matplotlib.colormaps["cividis"].with_extremes(bad=_UNSEEN)
    shown = percent if percent.size else np.full((1, 1), np.nan)
    image = axes.imshow(shown, cmap=colours, vmin=0, vmax=100, aspect="auto", interpolation="nearest")
    if classes <= _ANNOTATED and done <= _ANNOTATED:
        for row, column in np.argwhere(np.isfinite(percent)):
            value = percent[row, column]
            colour = "black" if value > 55 else "white"
            axes.text(column, row, f"{value:.0f}", ha="center", va="center", fontsize=8, color=colour)
    columns, rows = _ticks(done, _ANNOTATED), _ticks(classes, _NAMED)[: len(class_names)]
    axes.set_xticks(columns, [str(tick + 1) for tick in columns])
    names = [_short(class_names[row]) for row in rows]
    axes.set_yticks(rows, names, fontsize=8, parse_math=False)
    axes.set(xlabel="after experience", title="Average precision per class")
    figure.colorbar(image, ax=axes, label="AP (%)", pad=0.03)
    return figure


def attention_grid(
    image: NDArray[np.float64], maps: NDArray[np.float64], rows: Sequence[str], columns: Sequence[str]
) -> Figure:
    """An image beside maps of attention laid over it.

    Args:
        image: [H, W, 3] or [H, W, 1], in [0, 1].
        maps: [rows, columns, h, w], of patches; each is scaled by its own largest value.
        rows, columns: their titles.

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


def attention_figures(
    images: NDArray[np.float64], maps: NDArray[np.float64], rows: Sequence[str], what: str, most: int = 6
) -> dict[str, Figure]:
    """One :func:`attention_grid` per image, of the maps that are the least even in each row.

    Args:
        images: [B, H, W, channels], in [0, 1].
        maps: [B, rows, columns, h, w].
        rows: their titles. what: what a column is, for titles and names.
        most: columns that are drawn at most.
    """
    figures = {}
    for number, (image, own) in enumerate(zip(images, maps, strict=True), start=1):
        order = np.argsort(-own.std(axis=(-2, -1)), axis=-1)[:, :most]  # (rows, most)
        picked = np.take_along_axis(own, order[..., None, None], axis=1)
        columns = [f"{what} {rank + 1}" for rank in range(picked.shape[1])]
        figures[f"{what}s_{number:02d}"] = attention_grid(
            image, picked, [_short(row) for row in rows], columns
        )
    return figures
