"""A report's tables for a paper: LaTeX that the package booktabs sets, and CSV with the numbers behind it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import fmean, stdev
from typing import TYPE_CHECKING

from clprompt.metrics.measure import LESS_IS_BETTER, TITLES
from clprompt.reporting import markup
from clprompt.reporting.rows import COSTS

if TYPE_CHECKING:
    from clprompt.reporting.report import Report, Section


def latex(report: Report, *, underline_second: bool = False) -> str:
    """The tables of a report, each a `table` environment; of the metrics the best of each column is bold.

    Rows whose means are equal as they are shown are equally good; a column of equal ones has no best.

    Args:
        report: what was found.
        underline_second: underline the second best of each column.
    """
    parts = ["% needs \\usepackage{booktabs}\n"]
    for section in report.sections:
        table, marks = _metrics(section, underline_second)
        parts.append(markup.latex_table(table, _caption(section), f"tab:{section.slug}", marks))
        for number, more in enumerate(report.tables(section)[1:], 2):
            caption = f"{section.title}: {_SEEDS.format(_counts(section))}."
            parts.append(markup.latex_table(more, caption, f"tab:{section.slug}-{number}"))
    return "\n".join(parts)


_SEEDS = "percent, mean ± standard error over {} seeds"


def _counts(section: Section) -> str:
    """Over how many seeds its rows are, such as "3" or "1 to 3"."""
    counts = sorted({len(row.runs) for row in section.rows})
    return str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"


def _caption(section: Section) -> str:
    seeds = _SEEDS.format(_counts(section)) if _counts(section) != "1" else "percent, one seed"
    return f"{section.title}: {seeds}; the best of each column is bold."


def _metrics(section: Section, second: bool) -> tuple[list[list[str]], dict[tuple[int, int], str]]:
    """The table of its metrics, and the commands around its best cells by row and column."""
    used = section.metrics()
    seeds = ["seeds"] if len({len(row.runs) for row in section.rows}) > 1 else []
    arrows = {key: "↓" if key in LESS_IS_BETTER else "↑" for key in used}
    table = [["strategy", *seeds, *(f"{TITLES[key]} {arrows[key]}" for key in used)]]
    marks: dict[tuple[int, int], str] = {}
    for row in section.rows:
        count = [str(len(row.runs))] if seeds else []
        table.append([row.label, *count, *map(row.mean, used)])
    for column, key in enumerate(used, 1 + len(seeds)):
        # in tenths of a percent, as they are shown
        shown = {
            line: round(1000 * fmean(row.values(key).values()))
            for line, row in enumerate(section.rows, 1)
            if row.values(key)
        }
        ranked = sorted(set(shown.values()), reverse=key not in LESS_IS_BETTER)
        commands = ["mathbf", *["underline"] * second]
        if len(ranked) > 1:
            command_of = dict(zip(ranked, commands, strict=False))
            marks |= {(line, column): command_of[v] for line, v in shown.items() if v in command_of}
    return table, marks


def csv(report: Report) -> str:
    """The numbers of a report as CSV, a line for each row of its tables and metric or cost.

    Fractions, not percent; seconds, bytes and counts of parameters as they were measured. The columns:
    ``stream``, ``strategy``, ``metric`` (its key in `results.json`), ``n`` (seeds), ``mean``,
    ``standard_error`` (empty for one seed), and the value of each seed.
    """
    rows = [row for section in report.sections for row in section.rows]
    seeds = sorted({seed for row in rows for seed in row.runs})
    header = ["stream", "strategy", "metric", "n", "mean", "standard_error", *(f"seed_{s}" for s in seeds)]
    lines: list[list[object]] = [[*header]]
    for section in report.sections:
        for row in section.rows:
            values = {key: row.values(key) for key in section.metrics()}
            values |= {key: row.costs(key) for key in COSTS}
            for metric, of_seeds in values.items():
                if of_seeds:
                    numbers = [of_seeds.get(seed) for seed in seeds]
                    lines.append([section.title, row.label, metric, *_moments(of_seeds), *numbers])
    return markup.csv_table(lines)


def _moments(of_seeds: Mapping[int, float]) -> list[float | None]:
    """How many values there are, their mean, and its standard error; None for that of one."""
    values = list(of_seeds.values())
    error = stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
    return [len(values), fmean(values), error]
