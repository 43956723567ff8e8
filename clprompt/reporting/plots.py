"""The plots of a run (accuracy matrix and curves, forgetting, confusion matrix) and of several together.

Each function returns a `matplotlib.figure.Figure` that belongs to nobody: no pyplot, no global state, nothing
to close. The colours are cividis and viridis, which read the same for colour-blind eyes and in grey print.
Class groups and experiences are counted from 1, as on the axes of the TensorBoard dashboards.
"""

from __future__ import annotations

import io
import itertools
import warnings
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, ListedColormap, Normalize, PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from clprompt.metrics import accuracy

_ANNOTATED = 20  # cells a side up to which every cell of a heat map carries its number
_NAMED = 40  # classes up to which every one is named on the axes
_UNSEEN = "#e8e8e8"  # cells that have no value
_NAME_LENGTH = 18  # characters of a class name that are drawn
#: Okabe and Ito's colours, which stay apart for colour-blind eyes; marks tell them apart in grey print.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
#: How many lines of one drawing have a colour; the others are grey.
LINES = 6
_BEHIND = "#bbbbbb"
_SALT = 16820  # by which methods that are often compared have no number in common


def png(figure: Figure, dpi: int = 120) -> bytes:
    """The figure as the bytes of a PNG file."""
    return drawn(figure, "png", dpi)


def image(figure: Figure, dpi: int = 120) -> Image.Image:
    """The figure as an image of Pillow's, all of it."""
    return Image.open(io.BytesIO(png(figure, dpi)))


def drawn(figure: Figure, kind: str, dpi: int = 120) -> bytes:
    """The figure as the bytes of a file, the same bytes each time.

    Args:
        figure: what is drawn.
        kind: png, pdf or svg.
        dpi: pixels per inch of a PNG.
    """
    buffer = io.BytesIO()
    # Type 42: publishers refuse matplotlib's own Type 3 fonts
    settings: Any = {"pdf.fonttype": 42, "svg.hashsalt": "clprompt"}
    undated = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}.get(kind)
    with warnings.catch_warnings(), matplotlib.rc_context(settings):
        # Class names may be in any script; a box in place of a letter is no reason to warn on every drawing.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        # "tight" makes room for whatever labels there are, at half of the constrained layout's cost.
        figure.savefig(buffer, format=kind, dpi=dpi, bbox_inches="tight", pad_inches=0.08, metadata=undated)
    return buffer.getvalue()


def accuracy_matrix(matrix: ArrayLike, names: Sequence[str] | None = None) -> Figure:
    """Heat map of the accuracy matrix R [T, T] in percent; grey where a group had not been seen.

    Args:
        matrix: fractions, [T, T].
        names: of the groups where they are domains; None where they are class groups.
    """
    percent = 100 * np.asarray(matrix, dtype=np.float64)
    size = max(len(percent), 1)
    side = float(np.clip(1.6 + 0.5 * size, 4.0, 9.5))
    figure = Figure(figsize=(side + 1.0, side))
    axes = figure.add_subplot()
    image = _heat(axes, percent, Normalize(0, 100))
    if size <= _ANNOTATED:
        _annotate(axes, percent, image.to_rgba(percent), ".1f" if size <= 10 else ".0f", font=9)
    ticks = _ticks(size, _ANNOTATED)
    _group_ticks(axes, ticks, names)
    axes.set_yticks(ticks, [str(tick + 1) for tick in ticks])
    axes.set(ylabel="after experience", title=f"Accuracy per {_group_word(names)}")
    figure.colorbar(image, ax=axes, label="accuracy (%)", fraction=0.046, pad=0.03)
    return figure


def accuracy_curves(
    matrix: ArrayLike,
    names: Sequence[str] | None = None,
    references: Mapping[str, ArrayLike] | None = None,
    labels: Sequence[str] | None = None,
) -> Figure:
    """One line per group over the experiences, with their average: how each group is remembered.

    Args:
        matrix: fractions, [T, T].
        names: see :func:`accuracy_matrix`.
        references: lines that the average is held against by what they are called, fractions [T].
        labels: which classes each class group holds, [T] or more; "" for nothing to say.
    """
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
            label=group_title(group, labels) if names is None else _text(short(names[group])),
        )
    axes.plot(
        experiences,
        accuracy.accuracy_curve(percent),
        "k--",
        marker=marker and "s",
        markersize=4,
        label="average",
    )
    beside = [
        _reference(axes, experiences, 100 * np.asarray(line, dtype=np.float64), title, number)
        for number, (title, line) in enumerate((references or {}).items())
    ]
    _experience_axis(axes, size, f"How each {_group_word(names)} is remembered")
    axes.set(ylabel="accuracy (%)", ylim=(-2, 102))
    if size <= 12:
        axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False)
    else:
        axes.legend(handles=axes.lines[-1 - len(beside) :], loc="lower left")
        norm = BoundaryNorm(np.arange(size + 1) + 0.5, size)
        scale = ScalarMappable(norm, ListedColormap(colours))
        bar = figure.colorbar(scale, ax=axes, label=_group_word(names), ticks=_ticks(size, 10) + 1)
        if names is not None:
            bar.set_ticklabels([short(names[tick]) for tick in _ticks(size, 10)], parse_math=False)
    return figure


def anytime_accuracy(
    records: Iterable[Mapping[str, Any]], references: Mapping[str, Mapping[int, float]] | None = None
) -> Figure:
    """Accuracy on the seen classes over the samples received, of an online run; sessions are shaded in turn.

    Args:
        records: of the run; the periodic evaluations are the line, those at session ends the squares.
        references: by what they are called, lines that it is held against: fractions by sample count.
    """
    evaluations = [r for r in records if r.get("kind") == "evaluation" and r["accuracy"] is not None]
    periodic = [r for r in evaluations if r["when"] == "anytime"]
    ends = [r for r in evaluations if r["when"] == "experience"]
    figure = Figure(figsize=(8.0, 4.2))
    axes = figure.add_subplot()
    bounds = [0, *(r["samples"] for r in ends)]
    for number, (start, stop) in enumerate(itertools.pairwise(bounds)):
        axes.axvspan(start, stop, color="#e6eef5" if number % 2 == 0 else "#fbf3e4", linewidth=0, zorder=0)
        if len(ends) <= _ANNOTATED and stop - start > 0.03 * bounds[-1]:
            name = str(ends[number]["experience"] + 1)
            axes.text((start + stop) / 2, 101, name, ha="center", va="bottom", fontsize=8, color="#555555")
    axes.plot(
        [r["samples"] for r in periodic],
        [100 * r["accuracy"] for r in periodic],
        color="#0072b2",
        marker="o" if len(periodic) <= 60 else None,
        markersize=3,
        label="periodic",
    )
    axes.plot(
        [r["samples"] for r in ends],
        [100 * r["accuracy"] for r in ends],
        color="#d55e00",
        linestyle="none",
        marker="s",
        markersize=5,
        clip_on=False,  # the last one stands on the edge
        zorder=3,
        label="at an experience's end",
    )
    for number, (title, line) in enumerate((references or {}).items()):
        _reference(axes, np.array(list(line)), 100 * np.array(list(line.values())), title, number)
    axes.set(xlabel="samples received", ylabel="accuracy on seen classes (%)", ylim=(0, 101))
    axes.set_xlim(0, max([1, *(r["samples"] for r in evaluations)]))
    axes.set_title("Anytime accuracy (shaded: experiences)", pad=16)
    axes.grid(axis="y", color="#ffffff", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.legend(loc="lower right")
    return figure


def forgetting(matrix: ArrayLike, names: Sequence[str] | None = None) -> Figure:
    """Average forgetting over the experiences, and what each group lost by the last one.

    Args:
        matrix: fractions, [T, T].
        names: see :func:`accuracy_matrix`.
    """
    percent = 100 * np.asarray(matrix, dtype=np.float64)
    size = len(percent)
    figure = Figure(figsize=(9.5, 4.0))
    curve, bars = figure.subplots(1, 2, gridspec_kw={"wspace": 0.25})
    values = accuracy.forgetting_curve(percent)
    curve.plot(
        np.arange(1, size + 1), values, color="#0072b2", marker="o" if size <= 50 else None, markersize=4
    )
    _experience_axis(curve, size, f"Average forgetting of the {_group_word(names)}s")
    curve.set(ylabel="forgetting (percentage points)")
    evaluated = np.flatnonzero(~np.isnan(percent).all(axis=1))
    done = int(evaluated[-1]) + 1 if evaluated.size else 0
    lost = accuracy.group_forgetting(percent[:done, :done])
    bars.bar(np.arange(1, done + 1), np.nan_to_num(lost), color="#d55e00")
    _experience_axis(bars, size, f"Lost per {_group_word(names)} by experience {done}")
    bars.set(xlabel=_group_word(names), ylabel="best earlier accuracy - accuracy now")
    if names is not None:
        _group_ticks(bars, _ticks(size, _ANNOTATED), names, first=1)
    for axes in (curve, bars):
        axes.axhline(0, color="black", linewidth=0.8)
        low, high = axes.get_ylim()
        axes.set_ylim(min(low, -1), max(high, 5))  # a flat line at zero should look flat
        if not np.isfinite(lost).any():
            note = "defined from the second\nexperience on"
            axes.text(0.5, 0.5, note, transform=axes.transAxes, ha="center")
    return figure


def overlay(
    curves: Mapping[str, ArrayLike],
    title: str,
    label: str,
    *,
    references: Mapping[str, ArrayLike] | None = None,
    at: Sequence[float] | None = None,
    axis: str = "after experience",
    subject: str = "",
) -> Figure:
    """Several strategies over the experiences or something else: means over seeds, bands of standard error.

    The first :data:`LINES` have colours, bands and marks, the rest is grey; each is named at its end. A name
    has its colour wherever it stands. The vertical axis has 0 on it, or says that it has not.

    Args:
        curves: by strategy, fractions [S, T] of S seeds; nan where a value is not defined.
        title: above the drawing.
        label: of the vertical axis.
        references: lines that all are held against by what they are called, fractions [S, T].
        at: where the T values stand on the horizontal axis; None for experiences 1..T.
        axis: the label of the horizontal axis.
        subject: the strategy that it is about, which stands in front; "" for none.
    """
    references = references or {}
    figure = Figure(figsize=(8.0, max(4.8, 0.2 * (len(curves) + len(references)) + 1)))
    axes = figure.add_subplot()
    size = max((np.shape(values)[1] for values in curves.values()), default=0)
    experiences = np.arange(1, size + 1) if at is None else np.asarray(at)
    coloured = _numbered(sorted(curves, key=lambda name: name != subject)[:LINES])
    for name, values in curves.items():
        percent = 100 * np.asarray(values, dtype=np.float64)
        mean = _mean_over_seeds(percent)
        if name not in coloured:
            axes.plot(experiences, mean, color=_BEHIND, linewidth=1.0, zorder=1, label=_text(name))
            continue
        number = coloured[name]
        in_front = name == subject
        axes.plot(
            experiences,
            mean,
            color=COLOURS[number],
            marker=MARKERS[number] if size <= _ANNOTATED else None,
            markersize=6 if in_front else 5,
            linewidth=2.8 if in_front else 1.6,
            zorder=4 if in_front else 2.5,
            label=_text(name),
        )
        error = _standard_error(percent)
        axes.fill_between(
            experiences,
            mean - error,
            mean + error,
            color=COLOURS[number],
            alpha=0.15,
            linewidth=0,
            zorder=1.5,
        )
    for number, (name, values) in enumerate(references.items()):
        line = _mean_over_seeds(100 * np.asarray(values, dtype=np.float64))
        _reference(axes, experiences, line, name, number)
    counts = sorted({len(np.asarray(values)) for values in curves.values()})
    if counts and counts[-1] > 1:
        seeds = f"{counts[0]} to {counts[-1]}" if len(counts) > 1 else str(counts[0])
        title += f"\nmean ± standard error over {seeds} seeds"
    if at is None:
        _experience_axis(axes, size, title)
    else:
        axes.set(xlabel=axis, title=title)
        axes.grid(axis="y", color="#dddddd", linewidth=0.6)
        axes.set_axisbelow(True)
    axes.set(ylabel=label + _from_zero(axes))
    axes.spines[["top", "right"]].set_visible(False)
    _name_at_ends(axes, axes.get_position().height * figure.get_figheight(), bold=_text(subject))
    return figure


def _numbered(names: Sequence[str]) -> dict[str, int]:
    """For each name the number of its colour and mark, the same in every drawing.

    A name has a number of its own; where two have one, the later in the alphabet takes the next that is free.

    Args:
        names: at most as many as there are colours.
    """
    numbers: dict[str, int] = {}
    for name in sorted(names):
        number = zlib.crc32(f"{_SALT}{name}".encode()) % len(COLOURS)
        while number in numbers.values():
            number = (number + 1) % len(COLOURS)
        numbers[name] = number
    return numbers


def _from_zero(axes: Axes) -> str:
    """Let the vertical axis begin at 0 where that costs less than half of it; else what the label says."""
    low, high = axes.get_ylim()
    near, far = sorted((low, high), key=abs)
    if low * high <= 0:
        return ""
    if abs(near) > abs(far) / 2:
        return " (axis not from 0)"
    axes.set_ylim(min(low, 0), max(high, 0))
    return ""


def _name_at_ends(axes: Axes, inches: float, bold: str) -> None:
    """Name each line beside its end, in its colour; names that would overlap move apart.

    Args:
        axes: with its lines drawn and its limits as they stay.
        inches: its height.
        bold: the name that is bold.
    """
    ends = []
    for line in axes.lines:
        values = np.asarray(line.get_ydata(), dtype=np.float64)
        defined = np.flatnonzero(np.isfinite(values))
        if defined.size:
            ends.append((float(values[defined[-1]]), np.asarray(line.get_xdata())[defined[-1]], line))
    ends.sort(key=lambda end: end[0])
    low, high = axes.get_ylim()
    axes.set_ylim(low, high)
    gap = 0.155 * (high - low) / inches  # a line of text of 9 points
    heights = [end[0] for end in ends]
    for number in range(1, len(heights)):
        heights[number] = max(heights[number], heights[number - 1] + gap)
    top = high
    for number in reversed(range(len(heights))):  # what went over the top pushes the others down
        heights[number] = top = min(heights[number], top)
        top -= gap
    for height, (end, where, line) in zip(heights, ends, strict=True):
        colour = line.get_color()
        name = str(line.get_label())
        axes.annotate(
            name,
            (where, end),
            (1.03, height),
            textcoords=axes.get_yaxis_transform(),
            color="#777777" if colour == _BEHIND else colour,
            fontsize=9,
            fontweight="bold" if name == bold else "normal",
            va="center",
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": colour,
                "linewidth": 0.6,
                "alpha": 0.7,
                "relpos": (0, 0.5),
            },
        )


def _standard_error(percent: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of the mean over seeds, [S, T] -> [T]; 0 for one seed, whose error is unknown and drawn as no band."""
    defined = ~np.isnan(percent)
    seeds = defined.sum(axis=0)
    squares = np.nansum(np.where(defined, percent - _mean_over_seeds(percent), np.nan) ** 2, axis=0)
    variance = np.divide(squares, seeds - 1, out=np.zeros(percent.shape[1]), where=seeds > 1)
    return np.sqrt(variance / np.maximum(seeds, 1))


def _mean_over_seeds(percent: NDArray[np.float64]) -> NDArray[np.float64]:
    """The mean of what is defined, [S, T] -> [T]; nan over nothing."""
    seeds = (~np.isnan(percent)).sum(axis=0)
    return np.divide(
        np.nansum(percent, axis=0), seeds, out=np.full(percent.shape[1], np.nan), where=seeds > 0
    )


def _reference(axes: Axes, at: NDArray[Any], percent: NDArray[np.float64], title: str, number: int) -> Artist:
    """A dashed line without marks, unlike all that a method draws; several differ in grey and dashes."""
    (line,) = axes.plot(
        at,
        percent,
        color=("#b00020", "#555555", "#999999")[number % 3],
        linestyle=(0, (6 - number % 3, 2 + number % 3)),
        linewidth=1.8,
        zorder=3,
        label=_text(title),
    )
    return line


def confusion_matrix(
    counts: NDArray[np.int64], class_names: Sequence[str], groups: Sequence[Sequence[int]] = ()
) -> Figure:
    """Heat map of the confusion counts [C, C]: the colour is the share of the true class.

    Args:
        counts: by true class (rows) and predicted class (columns).
        class_names: of the classes 0..C-1.
        groups: the class ids of each group, in whose order the classes stand; without any by their ids.
    """
    arrived = [c for group in groups for c in group]
    order = list(dict.fromkeys([*arrived, *range(len(counts))]))
    counts = np.asarray(counts)[order][:, order]
    class_names = [class_names[c] for c in order]
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
    names = [short(class_names[tick]) for tick in ticks]
    font = 9 if size <= _ANNOTATED else 7
    # A class may be called "$5_bill$": names are text, not formulas.
    axes.set_xticks(ticks, names, rotation=90, fontsize=font, parse_math=False)
    axes.set_yticks(ticks, names, fontsize=font, parse_math=False)
    axes.set(
        xlabel="predicted class",
        ylabel="true class",
        title="Confusion matrix" + (", classes as they arrived" if arrived else ""),
    )
    figure.colorbar(image, ax=axes, label="share of the true class (%), root scale", fraction=0.046, pad=0.03)
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


def _group_word(names: Sequence[str] | None) -> str:
    return "class group" if names is None else "domain"


def _group_ticks(
    axes: Axes, ticks: NDArray[np.int64], names: Sequence[str] | None, *, first: int = 0
) -> None:
    """Number the groups on a horizontal axis, the first of which stands at ``first``, or name the domains."""
    axes.set_xlabel(_group_word(names))
    if names is None:
        axes.set_xticks(ticks + first, [str(tick + 1) for tick in ticks])
    else:
        labels = [short(names[tick]) for tick in ticks]
        axes.set_xticks(ticks + first, labels, rotation=90, parse_math=False)


def group_title(group: int, labels: Sequence[str] | None) -> str:
    """What a class group is called in a legend: "3: cat, hammer"."""
    label = labels[group] if labels and group < len(labels) else ""
    return f"{group + 1}: {_text(label)}" if label else f"group {group + 1}"


def _text(name: str) -> str:
    """A name for a legend, where it is text and not a formula."""
    return name.replace("$", r"\$")


def _experience_axis(axes: Axes, size: int, title: str) -> None:
    """A horizontal axis that counts experiences (or groups) from 1, in whole numbers."""
    axes.xaxis.set_major_locator(MaxNLocator(nbins=12, integer=True, min_n_ticks=1))
    axes.set(xlabel="after experience", title=title, xlim=(0.5, max(size, 1) + 0.5))
    axes.grid(axis="y", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)


def short(name: str) -> str:
    """A class name as far as there is room for it."""
    return name if len(name) <= _NAME_LENGTH else f"{name[: _NAME_LENGTH - 1]}…"
