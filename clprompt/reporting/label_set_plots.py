"""The plots of a run on label sets."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

from clprompt.reporting.plots import (
    _ANNOTATED,
    _NAMED,
    _UNSEEN,
    _experience_axis,
    _ticks,
    group_title,
    short,
)


def map_curves(seen: ArrayLike, groups: ArrayLike, labels: Sequence[str] = ()) -> Figure:
    """mAP over all seen classes after each experience [T], and over the classes of each group [T, groups].

    Args:
        seen: fractions, [T].
        groups: fractions, [T, groups].
        labels: which classes each group holds, [groups] or more; "" for nothing to say.
    """
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
            label=group_title(group, labels),
        )
    axes.plot(np.arange(1, done + 1), seen, "k--", marker="s", markersize=4, label="all seen classes")
    _experience_axis(axes, max(count, done), "Mean average precision")
    axes.set(ylabel="mAP (%)", ylim=(-2, 102))
    handles = None if count <= _ANNOTATED // 2 else axes.lines[-1:]
    axes.legend(handles=handles, loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False)
    return figure


def class_ap(matrix: NDArray[np.float64], class_names: Sequence[str]) -> Figure:
    """Heat map of the classes' average precision after each experience, [T, C] in percent; grey where nan."""
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
    names = [short(class_names[row]) for row in rows]
    axes.set_yticks(rows, names, fontsize=8, parse_math=False)
    axes.set(xlabel="after experience", title="Average precision per class")
    figure.colorbar(image, ax=axes, label="AP (%)", pad=0.03)
    return figure
