"""A report's tables for a paper: LaTeX that the package booktabs sets, and CSV with the numbers behind it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import TYPE_CHECKING

from clprompt.errors import printable
from clprompt.metrics.measure import LESS_IS_BETTER, TITLES
from clprompt.metrics.paired import CONFIDENCE, RESAMPLES, over_seeds
from clprompt.reporting import markup
from clprompt.reporting.paired import Table
from clprompt.reporting.rows import COSTS, differences

if TYPE_CHECKING:
    from clprompt.reporting.report import Report, Section


def latex(report: Report, *, underline_second: bool = False) -> str:
    """The tables of a report, each a `table` environment; of the metrics the best of each column is bold.

    What rows were told that is not the default, and under which masks, stands above as a comment. Rows
    whose means are equal as they are shown are equally good; a column of equal ones has no best.

    Args:
        report: what was found.
        underline_second: underline the second best of each column.
    """
    parts = ["% needs \\usepackage{booktabs}\n"]
    for section in report.sections:
        table, marks = _metrics(section, underline_second)
        label = f"tab:{section.slug}"
        parts += [
            f"% {printable(' '.join(line.split()))}"
            for line in [*section.arguments(), section.masks()]
            if line
        ]
        parts.append(markup.latex_table(table, _caption(section), label, marks))
        differences = section.differences(report.against)
        if differences:
            parts.append(_of_differences(section, differences, report.against, f"{label}-differences"))
        if section.compared.table:
            parts.append(_over_images(section, report.against, f"{label}-images"))
        for number, domains in enumerate(section.of_domains(), 1):
            caption = f"{section.title}: {_SEEDS.format(_counts(section))}."
            parts.append(markup.latex_table(domains, caption, f"{label}-domains-{number}"))
    return "\n".join(parts)


_SEEDS = "percent, mean ± standard error over {} seeds"


def _of_differences(section: Section, tables: Sequence[Table], against: str, label: str) -> str:
    """One table of the differences in each metric, a block each."""
    counts = {line[1] for table in tables for line in table[1:]}
    first = 2 if len(counts) == 1 else 1  # seeds are told once where they are everywhere the same
    rows = [["minus " + against, *tables[0][0][first:]]]
    for key, table in zip(section.of_differences(against), tables, strict=True):
        rows.append([f"{TITLES[key]} {_arrow(key)}"])
        rows += [[_minuend(line[0], against), *line[first:]] for line in table[1:]]
    over = f"{counts.pop()} seeds" if len(counts) == 1 else "seeds"
    caption = (
        f"{section.title}: differences to {against} in percentage points, paired by seed, mean ± standard "
        f"error over {over}. The {CONFIDENCE:.0%} interval and p (t): paired t test; p (sign): exact sign "
        "test; not corrected for the number of rows."
    )
    return markup.latex_table(rows, caption, label)


def _over_images(section: Section, against: str, label: str) -> str:
    """The table of the differences over test images."""
    header, *lines = section.compared.table
    shared = {tuple(line[1:3]) for line in lines}
    first = 3 if len(shared) == 1 else 1  # seeds and images, likewise
    rows = [["minus " + against, *header[first:]]]
    rows += [[_minuend(line[0], against), *line[first:]] for line in lines]
    what = header[0].partition(" ")[0]
    seeds, images = (f"{count} " for count in shared.pop()) if len(shared) == 1 else ("", "")
    caption = (
        f"{section.title}: differences to {against} in {what} over the same {images}test images, percentage "
        f"points, mean over {seeds}seeds. The {CONFIDENCE:.0%} interval: paired bootstrap over test images "
        f"({RESAMPLES} resamples), which tells nothing of other seeds."
    )
    if len(header) > 5:
        caption += " McNemar's p: his exact test of each seed."
    return markup.latex_table(rows, caption, label)


def _minuend(label: str, against: str) -> str:
    return label.removesuffix(f" minus {against}")


def _arrow(key: str) -> str:
    return "↓" if key in LESS_IS_BETTER else "↑"


def _counts(section: Section) -> str:
    """Over how many seeds its rows are, such as "3" or "1 to 3"."""
    counts = sorted({len(row.runs) for row in section.rows})
    return str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"


def _caption(section: Section) -> str:
    seeds = _SEEDS.format(_counts(section)) if _counts(section) != "1" else "percent, one seed"
    same = section.without_spread()
    zero = (
        f" ± 0.0 ({', '.join(same)}): seeds agree, which tells nothing of other test images." if same else ""
    )
    return f"{section.title}: {seeds}; the best of each column is bold.{zero}"


def _metrics(section: Section, second: bool) -> tuple[list[list[str]], dict[tuple[int, int], str]]:
    """The table of its metrics, and the commands around its best cells by row and column."""
    used = section.metrics()
    seeds = ["seeds"] if len({len(row.runs) for row in section.rows}) > 1 else []
    table = [["strategy", *seeds, *(f"{TITLES[key]} {_arrow(key)}" for key in used)]]
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
    ``standard_error`` (empty for one seed), and the value of each seed. A report against a row has a line for
    each difference to it as well, paired by seed: ``minus`` is that row, ``low`` and ``high`` the interval
    and ``p_t`` the p-value of the paired t test, ``p_sign`` that of the exact sign test.
    """
    rows = [row for section in report.sections for row in section.rows]
    seeds = sorted({seed for row in rows for seed in row.runs})
    tests = ["low", "high", "p_t", "p_sign"] if report.against else []
    header = ["stream", "strategy", *(["minus"] if tests else []), "metric", "n", "mean", "standard_error"]
    lines: list[list[object]] = [[*header, *tests, *(f"seed_{seed}" for seed in seeds)]]
    for section in report.sections:
        base = section.row(report.against)
        for row in section.rows:
            values = {key: row.values(key) for key in section.metrics()}
            values |= {key: row.costs(key) for key in COSTS}
            for metric, of_seeds in values.items():
                if of_seeds:
                    nothing = [None] if tests else []
                    numbers = [*_moments(of_seeds), *nothing * len(tests), *map(of_seeds.get, seeds)]
                    lines.append([section.title, row.label, *nothing, metric, *numbers])
        others = [row for row in section.rows if row is not base]
        for row, metric in itertools.product(others, section.metrics()):
            of_seeds = differences(row, base, metric) if base is not None else {}
            if of_seeds:
                numbers = [*_moments(of_seeds), *_tested(of_seeds), *map(of_seeds.get, seeds)]
                lines.append([section.title, row.label, report.against, metric, *numbers])
    return markup.csv_table(lines)


def _tested(of_seeds: Mapping[int, float]) -> list[float | None]:
    """Interval and p-values of differences; None where there is none."""
    found = over_seeds(list(of_seeds.values()))
    return [None if math.isnan(v) else v for v in (found.low, found.high, found.t, found.sign)]


def _moments(of_seeds: Mapping[int, float]) -> list[float | None]:
    """How many values there are, their mean, and its standard error; None for that of one."""
    values = list(of_seeds.values())
    error = stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
    return [len(values), fmean(values), error]
