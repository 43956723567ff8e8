"""The plain text that is printed at the end of a run: matrices, metrics, and a table that compares."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike

from clprompt.metrics.measure import TRAINED_HEAD_TITLE, measure_behind
from clprompt.metrics.text import WIDTH, percent
from clprompt.reporting.tables import columns

Summary = Mapping[str, float | None]


def text_summary(
    results: Mapping[str, tuple[ArrayLike, Summary]],
    group_names: Mapping[str, Sequence[str] | None] | None = None,
    trained_heads: Mapping[str, Summary | None] | None = None,
    classes: Mapping[str, Sequence[str]] | None = None,
) -> str:
    """The block that is printed at the end of a run, plain text of at most 80 columns where words allow it.

    Args:
        results: by strategy, the matrix of its measure and the metrics of `results.json`
            (:meth:`clprompt.metrics.measure.Measure.matrix` and ``summarise``); with more than one strategy a
            table compares them.
        group_names: by strategy, the domains that are its groups; None for class groups.
        trained_heads: by strategy, the metrics of its trained head; None where nothing else answered.
        classes: by strategy, which classes each of its class groups holds; "" for nothing to say.
    """
    blocks, rows = [], []
    for name, (matrix, summary) in results.items():
        title, measure = _shortened(name, WIDTH), measure_behind([summary])
        names = (group_names or {}).get(name)
        lines = measure.matrix_lines(np.asarray(matrix, dtype=np.float64), names)
        held = [f"{number} {text}" for number, text in enumerate((classes or {}).get(name, ()), 1) if text]
        if held and names is None:
            lines += textwrap.wrap(f"class groups: {'; '.join(held)}", WIDTH, break_on_hyphens=False)
        lines.append(measure.headline(summary))
        rows.append((name, summary))
        trained = (trained_heads or {}).get(name)
        if trained is not None:
            lines.append(f"{TRAINED_HEAD_TITLE}: {measure.headline(trained)}")
            rows.append((f"{name} ({TRAINED_HEAD_TITLE})", trained))
        blocks.append("\n".join([title, "=" * len(title), *lines]))
    if len(results) > 1:
        summaries = [summary for _, summary in results.values()]
        shown = measure_behind(summaries).shown(summaries)
        cells = [[name, *(percent(summary.get(key)) for key in shown)] for name, summary in rows]
        blocks.append("\n".join(columns([["in percent", *shown.values()], *cells])))
    return "\n\n".join(blocks)


def _shortened(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"
