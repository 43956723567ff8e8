"""The report over many runs: a table and plots for every stream, as text, Markdown and one HTML file.

Runs of one configuration that differ in their seed alone are one row: means with standard errors. What their
trained heads answered, where something else answered in their place, is a second row. Rows of one
stream (the same data, scenario and number of class groups) stand in one table; another stream has a table of
its own, for its metrics do not compare. Everything is read from the run folders; no torch, no model, no
registry.
"""

from __future__ import annotations

import html
import json
import math
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from clprompt.errors import RunFolderError
from clprompt.metrics.measure import LESS_IS_BETTER, MEASURES, TITLES, check_metrics, measure_behind
from clprompt.metrics.paired import CONFIDENCE, over_seeds
from clprompt.metrics.text import WIDTH
from clprompt.reporting import facts, measure_plots, plots
from clprompt.reporting.finished import NO_MATTER, STREAM, Run, find_runs, read_run
from clprompt.reporting.markup import as_markdown, html_image, html_page, html_table, markdown_table
from clprompt.reporting.paired import Comparison, compare
from clprompt.reporting.rows import (
    COSTS,
    Row,
    differences,
    is_below,
    labels_of,
    not_default,
    rates_of,
    with_trained_heads,
)
from clprompt.reporting.tables import columns, interval, mean_and_error, paragraph, probability
from clprompt.system.files import atomic_write, one_line_errors
from clprompt.system.overlay import flat

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Metrics of results.json by their title in the table; those that no run of a stream has are left out.
METRICS = {key: title for measure in MEASURES.values() for key, title in measure.of_report().items()}
Curves = dict[str, NDArray[np.float64]]


@dataclass
class Section:
    """One stream and what ran on it.

    Attributes:
        title: data set, scenario and class groups.
        slug: the same for file names.
        details: their arguments.
        rows: by strategy, the best by the first metric of the table first.
        shared: the settings that all of them have in common.
        chosen: the metrics that its table shows; none for those of its measure.
        compared: the last predictions of its rows against those of one, where that was asked for.
    """

    title: str
    slug: str
    details: str
    rows: list[Row]
    shared: str = ""
    chosen: Sequence[str] = ()
    compared: Comparison = field(default_factory=Comparison)

    def metrics(self) -> list[str]:
        """The metrics of results.json that its table shows: those chosen or of its measure that some run has.

        Where the measure's first one was never measured (an online run without periodic evaluations), all
        there are.
        """
        results = [
            {key: value for key, value in run.results.items() if value is not None}
            for row in self.rows
            for run in row.runs.values()
        ]
        measure = measure_behind(results)
        shown: Iterable[str] = self.chosen or measure.of_report()
        if not self.chosen and next(iter(shown)) not in {key for values in results for key in values}:
            shown = METRICS
        return [key for key in shown if any(key in values for values in results)]

    def table(self) -> list[list[str]]:
        """The header and one line of cells per row: metrics and costs."""
        used = self.metrics()
        costs = [key for key in COSTS if any(row.cost(key) is not None for row in self.rows)]
        costs = list(dict.fromkeys(["method_parameters", "seconds", *costs]))
        rates = [rates_of(row) for row in self.rows]
        several = ["lr"] if len(set(rates)) > 1 else []
        lines = [
            [
                "strategy",
                "seeds",
                *several,
                *(TITLES[key] for key in used),
                *(COSTS[key][0] for key in costs),
            ]
        ]
        for row, rate in zip(self.rows, rates, strict=True):
            cells = [row.label, str(len(row.runs)), *([rate] if several else []), *map(row.mean, used)]
            for key in costs:
                _, factor, decimals = COSTS[key]
                value = row.cost(key)
                cells.append("-" if value is None else f"{value * factor:,.{decimals}f}")
            lines.append(cells)
        return lines

    def of_domains(self) -> list[list[list[str]]]:
        """Accuracy and forgetting of each domain, a table each; [] where the groups are class groups."""
        runs = [run for row in self.rows for run in row.runs.values()]
        tables = []
        for metric in dict.fromkeys(metric for run in runs for metric in run.domains):
            names = sorted({name for run in runs for name in run.domains.get(metric, ())})
            lines = [[f"{metric} per domain", "seeds", *names]]
            for row in self.rows:
                of_runs = [run.domains.get(metric, {}) for run in row.runs.values()]
                cells = (mean_and_error([values.get(name) for values in of_runs]) for name in names)
                lines.append([row.label, str(len(row.runs)), *cells])
            tables.append(lines)
        return tables

    def differences(self, against: str) -> list[list[list[str]]]:
        """Each metric of every row less that of one of them, on the seeds that both have, a table each.

        [] where there is no such row, or no other has a seed and a metric in common with it.
        """
        tables = []
        for key, lines in self.of_differences(against).items():
            sign = "negative" if key in LESS_IS_BETTER else "positive"
            title = f"{TITLES[key]} ({sign}: the first is better)"
            header = [title, "seeds", "difference", f"{CONFIDENCE:.0%} interval", "p (t)", "p (sign)"]
            tables.append([header, *lines])
        return tables

    def of_differences(self, against: str) -> dict[str, list[list[str]]]:
        """The lines of those tables by metric."""
        base = self.row(against)
        others = [row for row in self.rows if row is not base] if base is not None else []
        lines = {
            key: [_of_differences(row, base, key) for row in others if base is not None]
            for key in self.metrics()
        }
        return {key: [line for line in of_key if line] for key, of_key in lines.items() if any(of_key)}

    def arguments(self) -> list[str]:
        """A line for each row, what its strategy was told that is not the default; of older runs none."""
        common = facts.in_common([run.settings for row in self.rows for run in row.runs.values()])
        rows = [row for row in self.rows if not any(run.is_trained_head for run in row.runs.values())]
        told = {row.label: not_default(row, common) for row in rows}
        return [f"{label}: {arguments}" for label, arguments in told.items() if arguments is not None]

    def remarks(self) -> list[str]:
        """How its metrics are to be read, a line each, where something could mislead."""
        return list(filter(None, [self.masks(), self.sampling_error(), self.without_error()]))

    def two_kinds(self) -> str:
        """A line where its table and its drawings tell two kinds of forgetting; else ""."""
        measure = next(iter(self.rows[0].runs.values())).measure
        return measure.two_kinds if self._curves("forgetting") else ""

    def without_spread(self) -> list[str]:
        """The labels of rows with a metric whose error over seeds is shown as 0.0."""
        return [
            row.label
            for row in self.rows
            if any(mean_and_error(row.values(key).values()).endswith("± 0.0") for key in self.metrics())
        ]

    def masks(self) -> str:
        """A line where rows were trained under several masks; else ""."""
        return facts.several_masks((row.label, run.mask) for row in self.rows for run in row.runs.values())

    def without_error(self) -> str:
        """A line that names the rows with a metric that all seeds agree on; else ""."""
        labels = self.without_spread()
        if not labels:
            return ""
        return (
            f"± 0.0 ({', '.join(labels)}): seeds agree on the number, as where next to nothing that a "
            "seed draws changes it. That does not say that other test images would give it."
        )

    def sampling_error(self) -> str:
        """A line where test images are so few that an accuracy is uncertain by a point or more; else "".

        The standard error of a share of right answers among so many images, which seeds that have their test
        images in common do not show.
        """
        errors = []
        for row in self.rows:
            images = min((run.test_images for run in row.runs.values()), default=0)
            right = list(row.values(next(iter(self.metrics()), "")).values())
            if images and right:
                share = float(np.mean(right))
                errors.append((100 * math.sqrt(max(share * (1 - share), 0) / images), images, row.label))
        error, images, label = max(errors, default=(0.0, 0, ""))
        if error < 1:
            return ""
        return (
            f"Few test images: with {images} of them the sampling error of one accuracy is up to "
            f"±{error:.1f} points ({label}), beside the ± of the table, which is over seeds alone."
        )

    def row(self, label: str) -> Row | None:
        """The row of a label; None without one."""
        return next((row for row in self.rows if row.label == label), None)

    def drawings(self, subject: str = "") -> dict[str, Figure]:
        """The drawings by name; none where nothing was measured after each experience.

        Args:
            subject: the row that stands in front; "" for none.
        """
        runs = [run for row in self.rows for run in row.runs.values()]
        if not any(run.experiences for run in runs):
            return {}
        curves = {name: self._curves(name) for name in runs[0].curves}
        references = {name: self._references(partial(_reference, name)) for name in curves}
        return self._anytime(subject) | measure_plots.of_runs(runs[0].measure, curves, references, subject)

    def _anytime(self, subject: str = "") -> dict[str, Figure]:
        """The accuracy over the samples received, at the counts that all runs of an online stream have."""
        counts = [set(run.anytime) for row in self.rows for run in row.runs.values()]
        at = sorted(set.intersection(*counts)) if counts else []
        if not at:
            return {}
        curves = {
            row.label: np.array([[run.anytime[count] for count in at] for run in row.runs.values()])
            for row in self.rows
        }
        drawn = plots.overlay(
            curves,
            "Accuracy on the classes received",
            "accuracy (%)",
            references=self._references(lambda run: _between(run.anytime_reference, at)),
            at=at,
            axis="samples received",
            subject=subject,
        )
        return {"anytime_accuracy": drawn}

    def _references(self, line_of: Callable[[Run], NDArray[np.float64] | None]) -> Curves:
        """The lines that curves are held against, by title; one that several rows share is one line.

        Args:
            line_of: a run's, [T]; None of one without.
        """
        title = next(iter(self.rows[0].runs.values())).measure.reference_title
        lines: list[dict[int, NDArray[np.float64]]] = []
        labels: list[str] = []
        for row in self.rows:
            found = {seed: line_of(run) for seed, run in row.runs.items()}
            of_seeds = {seed: line for seed, line in found.items() if line is not None}
            if not of_seeds:
                continue
            shared = next((line for line in lines if _agree(line, of_seeds)), None)
            if shared is not None:
                shared.update(of_seeds)
            else:
                lines.append(of_seeds)
                labels.append(row.label)
        titles = [title] if len(lines) == 1 else [f"{title} ({label})" for label in labels]
        return {title: np.stack(list(line.values())) for title, line in zip(titles, lines, strict=True)}

    def _curves(self, name: str) -> Curves:
        curves = {
            row.label: [run.curves[name] for run in row.runs.values() if name in run.curves]
            for row in self.rows
        }
        return {label: np.stack(of_runs) for label, of_runs in curves.items() if of_runs}


def _of_differences(row: Row, base: Row, key: str) -> list[str]:
    """A line of the table of a metric's differences; [] where no seed has both."""
    of_seeds = list(differences(row, base, key).values())
    if not of_seeds:
        return []
    found = over_seeds(of_seeds)
    return [
        f"{row.label} minus {base.label}",
        str(len(of_seeds)),
        mean_and_error(of_seeds, signed=True),
        interval(found.low, found.high),
        *map(probability, (found.t, found.sign)),
    ]


def _reference(name: str, run: Run) -> NDArray[np.float64] | None:
    return run.references.get(name)


def _between(line: dict[int, float], at: Sequence[int]) -> NDArray[np.float64] | None:
    """The values of a line at other places [T], straight between its own; nan beside it, None for no line."""
    places = sorted(line)
    if not places:
        return None
    return np.interp(at, places, [line[place] for place in places], left=np.nan, right=np.nan)


def _agree(line: dict[int, NDArray[np.float64]], other: dict[int, NDArray[np.float64]]) -> bool:
    """Whether two lines by seed are one, as far as both have the same seeds; those of no seed are not."""
    both = line.keys() & other.keys()
    return bool(both) and all(np.array_equal(line[seed], other[seed], equal_nan=True) for seed in both)


@dataclass
class Report:
    """What was found below the folders that somebody named.

    Attributes:
        sections: one for every stream.
        left_out: folder and reason of each run that does not count.
        noted: what is to be said of runs that count: folder and line.
        against: the label of the row that a second table subtracts from the others; "" for no such table.
    """

    sections: list[Section]
    left_out: list[tuple[Path, str]] = field(default_factory=list)
    noted: list[tuple[Path, str]] = field(default_factory=list)
    against: str = ""

    def text(self, width: int = WIDTH) -> str:
        """For a terminal.

        Args:
            width: columns that it has.
        """
        parts = []
        for section in self.sections:
            heading = [section.title, "=" * len(section.title)]
            details = filter(None, [section.details, section.shared])
            heading += [paragraph(line, width) for line in details]
            first, *others = (columns(table, width) for table in self.tables(section))
            parts.append("\n".join([*heading, *first]))
            parts += ["\n".join(table) for table in others]
            told = [paragraph(line, width, hanging="  ") for line in section.arguments()]
            parts += ["\n".join([_TOLD, *told])] if told else []
            parts += [paragraph(remark, width) for remark in self.remarks(section)]
        parts.append("\n".join(paragraph(line, width) for line in [self.note(), *self.machines()]))
        for title, lines in (("left out", self.left_out), ("noted", self.noted)):
            if lines:
                parts.append("\n".join([f"{title}:", *(f"  {folder}: {line}" for folder, line in lines)]))
        return "\n\n".join(parts)

    def tables(self, section: Section) -> list[list[list[str]]]:
        """What a section shows: its table, the differences where they were asked for, its domains."""
        differences = [*section.differences(self.against), section.compared.table]
        return [table for table in (section.table(), *differences, *section.of_domains()) if table]

    def remarks(self, section: Section) -> list[str]:
        """How a section's tables are to be read, a line each."""
        seeds = sorted({line[1] for table in section.differences(self.against) for line in table[1:]})
        lines = (
            [_PAIRED.format(" and ".join(f"{n}: {2 ** (1 - int(n)):.2g}" for n in seeds))] if seeds else []
        )
        return [*lines, *section.compared.remarks, *section.remarks(), *filter(None, [section.two_kinds()])]

    def note(self) -> str:
        """What the columns are."""
        shown = {key for section in self.sections for key in section.metrics()}
        return _NOTE + _ZERO_SHOT_NOTE * ("zero_shot" in shown)

    def machines(self) -> list[str]:
        """Hardware and versions of the runs, a line each, and how many could not be checked."""
        rows = [row for section in self.sections for row in section.rows]
        runs = list({run.folder: run for row in rows for run in row.runs.values()}.values())
        older = sum(not run.has_checksums for run in runs)
        without = f"checksums: {older} of {len(runs)} runs hold none, as an older version wrote them"
        return facts.machines(run.environment for run in runs) + [without] * bool(older)

    def write(self, folder: str | os.PathLike[str], figures: str = "png") -> list[Path]:
        """Write report.md, report.html and the drawings; the paths of all of them.

        Args:
            folder: where to write; it is made.
            figures: "pdf" or "svg" has the drawings in that form as well, beside the PNG files of the pages.

        Raises:
            ClpromptError: the folder cannot be written.
        """
        folder = Path(folder)
        with one_line_errors(f"make the folder {folder}"):
            folder.mkdir(parents=True, exist_ok=True)
        written, markdown = [], ["# Report", ""]
        pages = [f"<p>{html.escape(self.note())}</p>"]
        for section in self.sections:
            markdown += [
                f"## {as_markdown(section.title)}",
                "",
                as_markdown(section.details),
                *(["", as_markdown(section.shared)] if section.shared else []),
                "",
            ]
            pages.append(f"<h2>{html.escape(section.title)}</h2>\n<p>{html.escape(section.details)}</p>")
            pages.append(f"<p>{html.escape(section.shared)}</p>" if section.shared else "")
            for table in self.tables(section):
                markdown += [*markdown_table(table), ""]
                pages.append(html_table(table))
            if section.arguments():
                markdown += [_TOLD, "", *(f"* {as_markdown(line)}" for line in section.arguments()), ""]
                items = "".join(f"<li>{html.escape(line)}</li>" for line in section.arguments())
                pages.append(f"<p>{_TOLD}</p>\n<ul>{items}</ul>")
            for remark in self.remarks(section):
                markdown += [as_markdown(remark), ""]
                pages.append(f"<p>{html.escape(remark)}</p>")
            for name, figure in section.drawings(self.against).items():
                path = folder / (f"{name}.png" if len(self.sections) == 1 else f"{name}-{section.slug}.png")
                data = plots.png(figure)
                atomic_write(path, data)
                written.append(path)
                if figures != "png":
                    written.append(path.with_suffix(f".{figures}"))
                    atomic_write(written[-1], plots.drawn(figure, figures))
                what = f"{name.replace('_', ' ')} over the experiences"
                markdown += [f"![{what}]({path.name})", ""]
                pages.append(html_image(data, f"{what}, {section.title}"))
            rows = [["strategy", "seed", "run folder"], *_run_rows(section)]
            markdown += ["Runs:", "", *markdown_table(rows), ""]
            pages.append(f"<details><summary>Runs</summary>\n{html_table(rows)}</details>")
        markdown += [self.note(), "", *(f"* {as_markdown(line)}" for line in self.machines()), ""]
        pages += [f"<p>{html.escape(line)}</p>" for line in self.machines()]
        for title, lines in ((["left out", "reason"], self.left_out), (["noted", "what"], self.noted)):
            if not lines:
                continue
            rows = [title, *([str(path), line] for path, line in lines)]
            markdown += [*markdown_table(rows), ""]
            pages.append(html_table(rows))
        atomic_write(folder / "report.md", "\n".join(markdown))
        atomic_write(folder / "report.html", html_page("Report", pages))
        return [folder / "report.md", folder / "report.html", *written]


_TOLD = "What a row was told that is not the default:"
_PAIRED = (
    "Differences are paired by seed, in percentage points, mean ± standard error. The interval and p (t) are "
    "of the paired t test, which takes differences to be normal; p (sign) is of the exact sign test, which "
    "takes nothing for granted and cannot be below (seeds: p) {}. Neither corrects for the number of rows."
)
_NOTE = (
    "Percent, mean ± standard error over seeds. Average accuracy: over the class groups (or domains) after "
    "the last experience; incremental: its mean over the experiences. Parameters: of the method beside the "
    "backbone; seconds: per run; peak MiB: of the process, of the allocator on a GPU."
)
_ZERO_SHOT_NOTE = (
    " Zero-shot: average accuracy of the class names without prompts, in the run's own template or texts. "
    "Transfer to unseen: by name, on class groups before they were trained on. H: harmonic mean over seen "
    "classes and those to come, each among its own."
)


# ------------------------------------------------------------------------------------------------ reading


def collect(
    paths: Iterable[str | os.PathLike[str]], against: str = "", metrics: Sequence[str] = ()
) -> Report:
    """Read all runs in the given folders.

    Args:
        paths: run folders, or folders with run folders somewhere below; files beside them are ignored.
        against: the label of a row; a table of differences to it is added for every stream that it ran on,
            and one over test images where the runs have their last predictions.
        metrics: of results.json, those that the tables show, in this order; none for those of each measure.

    Raises:
        ConfigError: a metric that there is not.
        RunFolderError: a path that is not there, no finished run at all, no row of that label, or a metric
            that no run has.
    """
    check_metrics(metrics)
    roots = [Path(path) for path in paths]
    for path in roots:
        if not path.exists():
            raise RunFolderError(f"{path} is not the folder of a run: there is no such folder")
    folders = list(dict.fromkeys(folder for path in roots for folder in find_runs(path)))
    if not folders:
        raise RunFolderError(f"no run folder in {', '.join(map(str, roots))}")
    runs: list[Run] = []
    left_out: list[tuple[Path, str]] = []
    for folder in folders:
        if not (folder / "results.json").exists():
            left_out.append((folder, "not finished"))
            continue
        try:
            run = read_run(folder)
            _section([run], [])  # whatever would fail below over all of them fails here, over this one alone
            runs.append(run)
        except Exception as error:  # a foreign folder fails in many ways, and takes no other run with it
            text = " ".join(str(error).split())[:200] or type(error).__name__
            left_out.append((folder, f"it cannot be read: {text.removeprefix(f'{folder}/')}"))
    if not runs:
        first, why = left_out[0]
        more = f" and {len(left_out) - 1} more" if len(left_out) > 1 else ""
        raise RunFolderError(f"no finished run to report; left out: {first} ({why}){more}")
    streams: dict[str, list[Run]] = {}
    for run in runs:
        streams.setdefault(run.stream, []).append(run)
    sections = [_section(of_stream, left_out) for of_stream in streams.values()]
    for number, section in enumerate(sections):  # two streams may differ in arguments that no file name shows
        if section.slug in [other.slug for other in sections[:number]]:
            section.slug += f"-{number + 1}"
    for section in sections:
        section.chosen = tuple(dict.fromkeys(metrics))
    absent = set(metrics) - {key for section in sections for key in section.metrics()}
    if absent:
        raise RunFolderError(f"no run has the metric {min(absent)}")
    labels = list(dict.fromkeys(row.label for section in sections for row in section.rows))
    if against and against not in labels:
        raise RunFolderError(f"no row {against!r} to compare with; the rows are {', '.join(labels)}")
    for section in sections if against else ():
        base = section.row(against)
        if base is not None:
            section.compared = compare(section.rows, base)
    noted = [(run.folder, line) for run in runs for line in run.notes]
    return Report(sections, left_out, noted, against)


def _section(runs: Sequence[Run], left_out: list[tuple[Path, str]]) -> Section:
    by_settings: dict[str, dict[int, Run]] = {}
    # the folder names begin with the time: the last of equal runs counts
    for run in sorted(runs, key=lambda run: run.folder.name):
        of_seeds = by_settings.setdefault(json.dumps(run.settings, sort_keys=True, default=str), {})
        if run.seed in of_seeds:
            left_out.append(
                (of_seeds[run.seed].folder, f"{run.folder} is a later run of the same configuration")
            )
        of_seeds[run.seed] = run
    groups = list(by_settings.values())
    rows = with_trained_heads(
        [Row(label, dict(sorted(g.items()))) for label, g in zip(labels_of(groups), groups, strict=True)]
    )
    first = runs[0]
    keys = [run.not_default for run in runs]
    # older runs do not tell which of their values are the default
    told = None if None in keys else {key for of_run in keys for key in of_run or ()}
    sections = flat({key: first.config.get(key) for key in STREAM})
    arguments = facts.arguments(
        {
            key.split(".", 1)[1]: value
            for key, value in sections.items()
            if value is not None
            and not key.endswith(".name")
            and _is_told(key, value)
            and (told is None or is_below(key, told))
        }
    )
    names = [str(first.config[key]["name"]) for key in STREAM]
    count = f"{first.experiences} {'domains' if first.domains else 'class groups'}"
    online = "online" if first.config.get("online") is not None else ""
    title = ", ".join(filter(None, [" on ".join(reversed(names)), online, count]))
    slug = "-".join(filter(None, [*names, online, str(first.experiences)]))
    slug = "".join(mark if mark.isalnum() or mark in "-_" else "_" for mark in slug)
    shared = facts.shared([run.settings for row in rows for run in row.runs.values()])
    section = Section(title, slug, arguments, rows, shared)
    first_metric = next(iter(section.metrics()), "")

    def order(row: Row) -> tuple[float, str]:
        scores = [run.results.get(first_metric) for run in row.runs.values()]
        values = [value for value in scores if value is not None]
        return (-sum(values) / len(values) if values else math.inf, row.label)

    rows.sort(key=order)
    return section


def _is_told(key: str, value: Any) -> bool:
    """A folder of data says nothing, the name of a file does."""
    return key not in NO_MATTER or (key.endswith(".path") and bool(Path(str(value)).suffix))


# ------------------------------------------------------------------------------------------------ writing


def _run_rows(section: Section) -> list[list[str]]:
    return [[row.label, str(seed), str(run.folder)] for row in section.rows for seed, run in row.runs.items()]
