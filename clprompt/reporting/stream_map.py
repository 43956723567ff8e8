"""The map of a stream: how many samples of which class arrive in which session, as a table and as a drawing.

A plan says what it wants about its classes: with ``kinds`` [C] (a word for each class) and ``moved`` [n]
samples of each kind, and those that arrive away from their class's home, are told apart. No image is loaded
and no model is built; a label vector is enough.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from clprompt.data.plan import Plan
from clprompt.metrics.text import WIDTH
from clprompt.system.files import atomic_write, one_line_errors

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLOURS = ("#0072b2", "#e69f00", "#009e73", "#56b4e9")  # of the kinds, in alphabetical order
_MOVED = "#b3316f"
_LISTED = 40  # classes up to which every one has a line of its own


@dataclass(frozen=True)
class StreamMap:
    """Counts of a stream.

    Attributes:
        title: what was drawn.
        counts: samples per session and class, [T, C].
        moved: those of them that arrive away from home, [T, C].
        kinds: a word for each class, [C]; all the same where the plan makes no difference.
        home: the session to which a class belongs, [C]; -1 for none.
        class_names: [C].
        session_names: [T], such as domains; None for their numbers.
        notes: what takes no part, in a sentence each.
    """

    title: str
    counts: np.ndarray
    moved: np.ndarray
    kinds: np.ndarray
    home: np.ndarray
    class_names: list[str]
    session_names: list[str] | None = None
    notes: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        plan: Plan,
        targets: np.ndarray,
        title: str,
        class_names: Sequence[str] | None = None,
        notes: Sequence[str] = (),
    ) -> StreamMap:
        """Count a plan over the labels it was made from, [n]; notes stand below the table."""
        targets, count = np.asarray(targets), plan.num_classes
        counts = plan.describe(targets)
        moved = np.zeros_like(counts)
        if plan.moved is not None:
            for row, indices in zip(moved, plan.indices, strict=True):
                row += np.bincount(targets[indices[plan.moved[indices]]], minlength=count)
        home = np.full(count, -1)
        for session, group in enumerate(plan.classes):
            home[[c for c in group if home[c] < 0]] = session
        kinds = np.full(count, "samples") if plan.kinds is None else np.asarray(plan.kinds)
        names = [str(c) for c in range(count)] if class_names is None else [str(name) for name in class_names]
        return cls(title, counts, moved, kinds, home, names, plan.session_names, tuple(notes))

    @property
    def kind_names(self) -> list[str]:
        """The kinds that occur, "disjoint" before "blurry" and any other in alphabetical order."""
        return sorted(set(self.kinds.tolist()), key=lambda kind: (kind != "disjoint", kind))

    def table(self) -> str:
        """Plain text of at most 80 columns: a line per session, and one per class where they fit."""
        blocks = [self.title, "\n".join(self._sessions())]
        blocks.append("\n".join(self._classes()))
        blocks.append("\n".join(textwrap.fill(note, WIDTH) for note in self.notes))
        return "\n\n".join(block for block in blocks if block)

    def _sessions(self) -> list[str]:
        several = len(self.kind_names) > 1
        kinds = self.kind_names if several else []
        settled = self.counts - self.moved
        named = self.session_names is not None
        titles = ["experience", "samples", "classes", *kinds, *(["moved"] if several else [])]
        titles += ["name"] * named
        rows = [
            [
                str(t + 1),
                str(row.sum()),
                str((row > 0).sum()),
                *(str(settled[t, self.kinds == kind].sum()) for kind in kinds),
                *([str(self.moved[t].sum())] if several else []),
                *([self.session_names[t][:20]] if self.session_names is not None else []),
            ]
            for t, row in enumerate(self.counts)
        ]
        parts = (settled[:, self.kinds == kind].sum() for kind in kinds)
        last = [self.counts.sum(), (self.counts.sum(0) > 0).sum(), *parts]
        rows.append(["all", *map(str, last), *([str(self.moved.sum())] if several else []), *[""] * named])
        return _aligned(titles, rows)

    def _classes(self) -> list[str]:
        sessions, count = self.counts.shape
        if count > _LISTED or sessions > 12:
            return []
        several = len(self.kind_names) > 1
        titles = ["class", *(["kind"] if several else []), *(str(t + 1) for t in range(sessions))]
        rows = []
        for c in self.order():
            kind = [str(self.kinds[c])] if several else []
            rows.append([self.class_names[c][:20], *kind, *(str(n) if n else "." for n in self.counts[:, c])])
        lines = _aligned(titles, rows)
        return ["samples of each class in each experience", *lines] if len(lines[0]) <= WIDTH else []

    def order(self) -> np.ndarray:
        """Classes by home session, then kind: the order of the drawing and the table."""
        rank = np.array([self.kind_names.index(kind) for kind in self.kinds.tolist()])
        return np.lexsort((np.arange(len(rank)), rank, self.home))

    def figure(self) -> Figure:
        """Sessions from left to right: bars of what arrives above, a cell per class and session below."""
        from matplotlib.colors import to_rgb
        from matplotlib.figure import Figure
        from matplotlib.patches import Patch

        sessions, count = self.counts.shape
        colours = dict(zip(self.kind_names, _COLOURS * (1 + len(self.kind_names) // 4), strict=False))
        several = len(colours) > 1 or self.moved.any()
        width, height = np.clip(3 + 0.55 * sessions, 5.5, 12), np.clip(2.6 + 0.2 * count, 4.6, 10)
        figure = Figure(figsize=(float(width), float(height)))
        share = 1.5 / float(height)
        bars, cells = figure.subplots(
            2, 1, sharex=True, gridspec_kw={"height_ratios": [share, 1 - share], "hspace": 0.08}
        )
        settled = self.counts - self.moved
        parts = [(settled[:, self.kinds == kind].sum(1), colour) for kind, colour in colours.items()]
        parts.append((self.moved.sum(1), _MOVED))
        bottom = np.zeros(sessions)
        for values, colour in parts:
            bars.bar(np.arange(1, sessions + 1), values, bottom=bottom, color=colour, width=0.86)
            bottom += values
        bars.set(ylabel="samples", title=self.title)
        bars.spines[["top", "right"]].set_visible(False)

        image = np.ones((count, sessions, 3))
        for kind, colour in colours.items():
            _paint(image, np.where(self.kinds == kind, settled, 0).T, to_rgb(colour))
        _paint(image, self.moved.T, to_rgb(_MOVED))
        order = self.order()
        cells.imshow(
            image[order],
            aspect="auto",
            interpolation="nearest" if count <= 1000 and sessions <= 1000 else "antialiased",
            extent=(0.5, sessions + 0.5, count - 0.5, -0.5),
        )
        if count * sessions <= 400:
            for row, c in enumerate(order):
                for t in np.flatnonzero(self.counts[:, c]):
                    bright = image[c, t] @ (0.299, 0.587, 0.114) > 0.55
                    cells.text(
                        t + 1,
                        row,
                        str(self.counts[t, c]),
                        ha="center",
                        va="center",
                        fontsize=7,
                        color="black" if bright else "white",
                    )
        if count <= _LISTED:
            names = [self.class_names[c][:20] for c in order]
            cells.set_yticks(range(count), names, fontsize=8, parse_math=False)
            cells.set_yticks(np.arange(count - 1) + 0.5, minor=True)
            cells.grid(which="minor", axis="y", color="#eeeeee", linewidth=0.6)
            cells.tick_params(axis="y", which="minor", length=0)
        step = max(1, -(-sessions // 20))
        shown = range(1, sessions + 1, step)
        if self.session_names is None:
            cells.set_xticks(shown)
        else:
            labels = [self.session_names[t - 1][:20] for t in shown]
            cells.set_xticks(shown, labels, rotation=90, parse_math=False)
        cells.set(xlabel="experience", ylabel="class (by home experience)")
        if several:
            handles = [Patch(color=colour, label=kind) for kind, colour in colours.items()]
            handles.append(Patch(color=_MOVED, label="moved away from home"))
            bars.legend(handles=handles, loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False)
        return figure


def draw(folder: Path, plan: Plan, targets: np.ndarray, class_names: Sequence[str]) -> None:
    """Write the map of a run's stream beside the run's other drawings, `figures/stream_map.png`."""
    from clprompt.reporting import plots

    drawn = StreamMap.of(plan, targets, "The stream of this run", class_names).figure()
    with one_line_errors(f"write {folder / 'figures'}"):
        (folder / "figures").mkdir(exist_ok=True)
    atomic_write(folder / "figures" / "stream_map.png", plots.png(drawn))


def _paint(image: np.ndarray, counts: np.ndarray, colour: tuple[float, ...]) -> None:
    """Colour the cells [C, T] that have samples, the paler the fewer, on a scale of this colour's own."""
    most = counts.max(initial=0)
    if most:
        strength = np.where(counts > 0, 0.25 + 0.75 * np.sqrt(counts / most), 0)[..., None]
        np.copyto(image, 1 - strength * (1 - np.array(colour)), where=(counts > 0)[..., None])


def _aligned(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(titles, *rows, strict=True)]
    lines = ["  ".join(cell.rjust(w) for cell, w in zip(row, widths, strict=True)) for row in (titles, *rows)]
    lines.insert(1, "-" * len(lines[0]))
    return lines
