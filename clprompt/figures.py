"""The drawings of a run: accuracy matrix, accuracy curves, forgetting, confusion matrix.

Each function returns a `matplotlib.figure.Figure` that belongs to nobody: no pyplot, no global state, nothing
to close. The colours are cividis and viridis, which read the same for colour-blind eyes and in grey print.
Class groups and experiences are counted from 1, as on the axes of the TensorBoard dashboards.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, ListedColormap, Normalize, PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike, NDArray

from clprompt import metrics

_ANNOTATED = 20  # cells a side up to which every cell of a heat map carries its number
_NAMED = 40  # classes up to which every one is named on the axes
_UNSEEN = "#e8e8e8"  # cells that have no value
_NAME_LENGTH = 18  # characters of a class name that are drawn


def png(figure: Figure, dpi: int = 120) -> bytes:
    """The figure as the bytes of a PNG file."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # Class names may be in any script; a box in place of a letter is no reason to warn on every drawing.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        # "tight" makes room for whatever labels there are, at half of the constrained layout's cost.
        figure.savefig(buffer, format="png", dpi=dpi, bbox_inches="tight", pad_inches=0.08)
    return buffer.getvalue()


def accuracy_matrix(matrix: ArrayLike) -> Figure:
    """Heat map of the accuracy matrix R [T, T] in percent; grey where a group had not been seen."""
    percent = 100 * np.asarray(matrix, dtype=np.float64)
    size = max(len(percent), 1)
    side = float(np.clip(1.6 + 0.5 * size, 4.0, 9.5))
    figure = Figure(figsize=(side + 1.0, side))
    axes = figure.add_subplot()
    image = _heat(axes, percent, Normalize(0, 100))
    if size <= _ANNOTATED:
        _annotate(axes, percent, image.to_rgba(percent), ".1f" if size <= 10 else ".0f", font=9)
    ticks = _ticks(size, _ANNOTATED)
    axes.set_xticks(ticks, [str(tick + 1) for tick in ticks])
    axes.set_yticks(ticks, [str(tick + 1) for tick in ticks])
    axes.set(xlabel="class group", ylabel="after experience", title="Accuracy per class group")
    figure.colorbar(image, ax=axes, label="accuracy (%)", fraction=0.046, pad=0.03)
    return figure


def accuracy_curves(matrix: ArrayLike) -> Figure:
    """One line per class group over the experiences, with their average: how each group is remembered."""
    percent = 100 * np.asarray(matrix, dtype=np.float64)
    size = len(percent)
    figure = Figure(figsize=(8.0, 4.8))
    axes = figure.add_subplot()
    experiences = np.arange(1, size + 1)
    # The last tenth of viridis is too pale for a line on white.
    colours = matplotlib.colormaps["viridis"](np.linspace(0, 0.9, max(size, 1)))
    marker = "o" if size <= _ANNOTATED else None
    for group in range(size):
        axes.plot(
            experiences,
            percent[:, group],
            color=colours[group],
            marker=marker,
            markersize=4,
            linewidth=1.3 if size <= _ANNOTATED else 0.8,
            label=f"group {group + 1}",
        )
    axes.plot(
        experiences,
        metrics.accuracy_curve(percent),
        "k--",
        marker=marker and "s",
        markersize=4,
        label="average",
    )
    _experience_axis(axes, size, "How each class group is remembered")
    axes.set(ylabel="accuracy (%)", ylim=(-2, 102))
    if size <= 12:
        axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False)
    else:
        axes.legend(handles=axes.lines[-1:], loc="lower left")
        norm = BoundaryNorm(np.arange(size + 1) + 0.5, size)
        scale = ScalarMappable(norm, ListedColormap(colours))
        figure.colorbar(scale, ax=axes, label="class group", ticks=_ticks(size, 10) + 1)
    return figure


def forgetting(matrix: ArrayLike) -> Figure:
    """Average forgetting over the experiences, and what each class group lost by the last one."""
    percent = 100 * np.asarray(matrix, dtype=np.float64)
    size = len(percent)
    figure = Figure(figsize=(9.5, 4.0))
    curve, bars = figure.subplots(1, 2, gridspec_kw={"wspace": 0.25})
    values = metrics.forgetting_curve(percent)
    curve.plot(
        np.arange(1, size + 1), values, color="#0072b2", marker="o" if size <= 50 else None, markersize=4
    )
    _experience_axis(curve, size, "Average forgetting")
    curve.set(ylabel="forgetting (percentage points)")
    evaluated = np.flatnonzero(~np.isnan(percent).all(axis=1))
    done = int(evaluated[-1]) + 1 if evaluated.size else 0
    lost = metrics.group_forgetting(percent[:done, :done])
    bars.bar(np.arange(1, done + 1), np.nan_to_num(lost), color="#d55e00")
    _experience_axis(bars, size, f"Lost per class group by experience {done}")
    bars.set(xlabel="class group", ylabel="best earlier accuracy - accuracy now")
    for axes in (curve, bars):
        axes.axhline(0, color="black", linewidth=0.8)
        low, high = axes.get_ylim()
        axes.set_ylim(min(low, -1), max(high, 5))  # a flat line at zero should look flat
        if not np.isfinite(lost).any():
            note = "defined from the second\nexperience on"
            axes.text(0.5, 0.5, note, transform=axes.transAxes, ha="center")
    return figure


def confusion_matrix(counts: NDArray[np.int64], class_names: Sequence[str]) -> Figure:
    """Heat map of the confusion counts [C, C]: the colour is the share of the true class."""
    counts = np.asarray(counts)
    samples = counts.sum(axis=1, keepdims=True)
    share = np.divide(
        100.0 * counts, samples, out=np.full(counts.shape, np.nan, dtype=np.float64), where=samples > 0
    )
    size = max(len(counts), 1)
    side = float(np.clip(1.8 + 0.42 * size, 4.2, 11.0))
    figure = Figure(figsize=(side + 1.0, side))
    axes = figure.add_subplot()
    # The square root brings out the few per cent that make up most of a good model's confusions.
    image = _heat(axes, share, PowerNorm(0.5, 0, 100))
    if size <= _ANNOTATED:
        _annotate(axes, np.where(counts > 0, counts, np.nan), image.to_rgba(share), ".0f", font=8)
    ticks = _ticks(size, _NAMED)[: len(class_names)]
    names = [_short(class_names[tick]) for tick in ticks]
    font = 9 if size <= _ANNOTATED else 7
    # A class may be called "$5_bill$": names are text, not formulas.
    axes.set_xticks(ticks, names, rotation=90, fontsize=font, parse_math=False)
    axes.set_yticks(ticks, names, fontsize=font, parse_math=False)
    axes.set(xlabel="predicted class", ylabel="true class", title="Confusion matrix")
    figure.colorbar(image, ax=axes, label="share of the true class (%)", fraction=0.046, pad=0.03)
    return figure


def _heat(axes: Axes, values: NDArray[np.float64], norm: Normalize) -> ScalarMappable:
    """Draw a square matrix as cells, grey where it is nan."""
    colours = matplotlib.colormaps["cividis"].with_extremes(bad=_UNSEEN)
    if values.size == 0:
        values = np.full((1, 1), np.nan)
    # "nearest" keeps the cells sharp; a matrix with more cells than pixels must be averaged instead.
    interpolation = "nearest" if len(values) <= 100 else "antialiased"
    return axes.imshow(values, cmap=colours, norm=norm, interpolation=interpolation)


def _annotate(
    axes: Axes, numbers: NDArray[np.float64], cells: NDArray[np.float64], form: str, font: float
) -> None:
    """Write the finite numbers into their cells, of colours [T, T, 4]: dark on bright and bright on dark."""
    brightness = cells[..., :3] @ (0.299, 0.587, 0.114)
    for row, column in np.argwhere(np.isfinite(numbers)):
        colour = "black" if brightness[row, column] > 0.5 else "white"
        text = format(numbers[row, column], form)
        axes.text(column, row, text, ha="center", va="center", fontsize=font, color=colour)


def _ticks(size: int, most: int) -> NDArray[np.int64]:
    """At most `most` evenly spaced indices of 0..size-1, the first included."""
    return np.arange(0, size, max(1, -(-size // most)))


def _experience_axis(axes: Axes, size: int, title: str) -> None:
    """A horizontal axis that counts experiences (or groups) from 1, in whole numbers."""
    axes.xaxis.set_major_locator(MaxNLocator(nbins=12, integer=True, min_n_ticks=1))
    axes.set(xlabel="after experience", title=title, xlim=(0.5, max(size, 1) + 0.5))
    axes.grid(axis="y", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)


def _short(name: str) -> str:
    return name if len(name) <= _NAME_LENGTH else f"{name[: _NAME_LENGTH - 1]}…"
