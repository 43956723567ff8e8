"""The report over many runs: one table and two drawings for every stream, as text, Markdown and one HTML file.

Runs of one configuration that differ in their seed alone are one row: means with standard errors. Rows of one
stream (the same data, scenario and number of class groups) stand in one table; another stream has a table of its
own, for its figures do not compare. Everything is read from the run folders; no torch, no model, no registry.
"""

from __future__ import annotations

import html
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from clprompt import config as configuration
from clprompt import figures, metrics, schema
from clprompt.errors import RunFolderError
from clprompt.files import atomic_write, one_line_errors
from clprompt.markup import html_image, html_page, html_table, markdown_table
from clprompt.terminal import columns, mean_and_error

#: Figures of results.json by their title in the table; those that no run of a stream has are left out.
METRICS = {
    "average_accuracy": "average accuracy",
    "average_incremental_accuracy": "incremental",
    "forgetting": "forgetting",
    "A_auc": "A_auc",
    "A_avg": "A_avg",
    "A_last": "A_last",
    "F_last": "F_last",
    "mAP_last": "mAP last",
    "mAP_average": "mAP average",
    "CF1": "CF1",
    "OF1": "OF1",
}
# What may differ between runs whose results are the same, or says nothing about them.
_NO_MATTER = {
    *("seed", "device", "runs_dir", "export", "compare", "data.path", "data.download"),
    *(f"training.{key}" for key in ("eval_mb_size", "workers", "checkpoint_every", "log_every")),
}
_STREAM = ("data", "scenario")

Curves = dict[str, NDArray[np.float64]]


@dataclass(frozen=True)
class Run:
    """A finished run as its folder tells it.

    Attributes:
        folder: the run folder. name: its label, or the strategy. seed: its seed. config: its config.yaml. results: its results.json.
        matrix: the accuracy matrix [T, T]; [0, 0] where no accuracy was measured per experience.
        precision: mAP over the seen classes after each experience [T], of multi-hot targets; [0] of others.
    """

    folder: Path
    name: str
    seed: int
    config: dict[str, Any]
    results: dict[str, Any]
    matrix: NDArray[np.float64]
    precision: NDArray[np.float64]

    @property
    def experiences(self) -> int:
        """How many experiences were evaluated at their end."""
        return max(len(self.matrix), len(self.precision))

    @property
    def settings(self) -> dict[str, Any]:
        """Dotted keys that make up the identity of the run, but for the seed."""
        flat = configuration.flat(self.config)
        return {key: value for key, value in flat.items() if key not in _NO_MATTER and value is not None}

    @property
    def stream(self) -> str:
        """What two runs share whose figures compare: data, scenario, class groups, with boundaries or without."""
        keys = {k: v for k, v in self.settings.items() if k.split(".")[0] in _STREAM}
        keys["groups"] = self.experiences
        keys["online"] = self.config.get("online") is not None
        return json.dumps(keys, sort_keys=True, default=str)


@dataclass
class Row:
    """Runs that differ in nothing but their seed.

    Attributes:
        label: its label or strategy, with what tells it apart from others of its name.
        runs: by seed.
    """

    label: str
    runs: dict[int, Run]

    def mean(self, key: str) -> str:
        """A figure of results.json over the seeds."""
        return mean_and_error([run.results.get(key) for run in self.runs.values()])

    def cost(self, key: str) -> float | None:
        """The mean of a number under `cost`; None where no run has it."""
        known = [run.results.get("cost", {}).get(key) for run in self.runs.values()]
        known = [value for value in known if isinstance(value, int | float)]
        return sum(known) / len(known) if known else None


@dataclass
class Section:
    """One stream and what ran on it.

    Attributes:
        title: data set, scenario and class groups. slug: the same for file names. details: their arguments.
        rows: by strategy, the best average accuracy first where there is one.
    """

    title: str
    slug: str
    details: str
    rows: list[Row]

    def table(self) -> list[list[str]]:
        """The header and one line of cells per row."""
        used = [
            key
            for key in METRICS
            if any(run.results.get(key) is not None for row in self.rows for run in row.runs.values())
        ]
        lines = [["strategy", "seeds", *(METRICS[key] for key in used), "parameters", "seconds"]]
        for row in self.rows:
            parameters, seconds = row.cost("method_parameters"), row.cost("seconds")
            lines.append(
                [
                    row.label,
                    str(len(row.runs)),
                    *map(row.mean, used),
                    "-" if parameters is None else f"{parameters:,.0f}",
                    "-" if seconds is None else f"{seconds:,.1f}",
                ]
            )
        return lines

    def drawings(self) -> dict[str, bytes]:
        """PNG files by name; none where no accuracy was measured after each experience."""
        runs = [run for row in self.rows for run in row.runs.values()]
        if any(len(run.precision) for run in runs):
            curves = {row.label: np.stack([run.precision for run in row.runs.values()]) for row in self.rows}
            return {"mAP": figures.png(figures.overlay(curves, "mAP over the classes seen", "mAP (%)"))}
        if not any(len(run.matrix) for run in runs):
            return {}
        accuracy, lost = self._curves(metrics.accuracy_curve), self._curves(metrics.forgetting_curve)
        return {
            "average_accuracy": figures.png(
                figures.overlay(accuracy, "Average accuracy over the class groups seen", "accuracy (%)")
            ),
            "forgetting": figures.png(
                figures.overlay(lost, "Average forgetting", "forgetting (percentage points)")
            ),
        }

    def _curves(self, curve: Any) -> Curves:
        return {
            row.label: np.stack([curve(run.matrix) for run in row.runs.values()])
            for row in self.rows
            if row.runs
        }


@dataclass
class Report:
    """What was found below the folders that somebody named.

    Attributes:
        sections: one for every stream.
        left_out: folder and reason of each run that does not count.
    """

    sections: list[Section]
    left_out: list[tuple[Path, str]] = field(default_factory=list)

    def text(self) -> str:
        """For a terminal."""
        parts = []
        for section in self.sections:
            heading = [section.title, "=" * len(section.title), *filter(None, [section.details])]
            parts.append("\n".join([*heading, *columns(section.table())]))
        parts.append(_NOTE)
        if self.left_out:
            parts.append("\n".join(["left out:", *(f"  {folder}: {why}" for folder, why in self.left_out)]))
        return "\n\n".join(parts)

    def write(self, folder: str | os.PathLike[str]) -> list[Path]:
        """Write report.md, report.html and the drawings; the paths of all of them.

        Raises:
            ClpromptError: the folder cannot be written.
        """
        folder = Path(folder)
        with one_line_errors(f"make the folder {folder}"):
            folder.mkdir(parents=True, exist_ok=True)
        written, markdown = [], ["# Report", ""]
        pages = [f"<p>{html.escape(_NOTE).replace('+-', '&plusmn;')}</p>"]
        for section in self.sections:
            markdown += [
                f"## {section.title}",
                "",
                section.details,
                "",
                *markdown_table(section.table()),
                "",
            ]
            pages.append(f"<h2>{html.escape(section.title)}</h2>\n<p>{html.escape(section.details)}</p>")
            pages.append(html_table(section.table()))
            for name, data in section.drawings().items():
                path = folder / (f"{name}.png" if len(self.sections) == 1 else f"{name}-{section.slug}.png")
                atomic_write(path, data)
                written.append(path)
                what = f"{name.replace('_', ' ')} over the experiences"
                markdown += [f"![{what}]({path.name})", ""]
                pages.append(html_image(data, f"{what}, {section.title}"))
            rows = [["strategy", "seed", "run folder"], *_run_rows(section)]
            markdown += ["Runs:", "", *markdown_table(rows), ""]
            pages.append(f"<details><summary>Runs</summary>\n{html_table(rows)}</details>")
        markdown += [_NOTE, ""]
        if self.left_out:
            rows = [["left out", "reason"], *([str(path), why] for path, why in self.left_out)]
            markdown += [*markdown_table(rows), ""]
            pages.append(html_table(rows))
        atomic_write(folder / "report.md", "\n".join(markdown))
        atomic_write(folder / "report.html", html_page("Report", pages))
        return [folder / "report.md", folder / "report.html", *written]


_NOTE = "Percent, mean +- standard error over seeds; parameters of the method beside the backbone; seconds per run."


# ------------------------------------------------------------------------------------------------ reading


def collect(paths: Iterable[str | os.PathLike[str]]) -> Report:
    """Read all runs in the given folders.

    Args:
        paths: run folders, or folders with run folders somewhere below; files beside them are ignored.

    Raises:
        RunFolderError: a path that is not there, or no finished run at all.
    """
    given = [Path(path) for path in paths]
    for path in given:
        if not path.exists():
            raise RunFolderError(f"{path} is not the folder of a run: there is no such folder")
    folders = list(dict.fromkeys(folder for path in given for folder in find_runs(path)))
    if not folders:
        raise RunFolderError(f"no run folder in {', '.join(map(str, given))}")
    runs: list[Run] = []
    left_out: list[tuple[Path, str]] = []
    for folder in folders:
        if not (folder / "results.json").exists():
            left_out.append((folder, "not finished"))
            continue
        try:
            runs.append(_read(folder))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError) as error:
            left_out.append((folder, f"it cannot be read: {' '.join(str(error).split())[:200]}"))
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
    return Report(sections, left_out)


def find_runs(path: Path) -> list[Path]:
    """The run folders at or below a path, sorted; a run folder is one that holds a config.yaml."""
    found = []
    for folder, below, files in os.walk(path):
        if "config.yaml" in files:
            found.append(Path(folder))
            below.clear()  # nothing inside a run folder is another
        below.sort()
    return sorted(found)


def _read(folder: Path) -> Run:
    config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    with open(folder / "metrics.jsonl", encoding="utf-8") as file:
        # most lines are losses, which nobody reads here
        records = [json.loads(line) for line in file if '"evaluation"' in line]
    matrix = metrics.accuracy_matrix(record for record in records if record.get("groups") is not None)
    ends = {record["experience"]: record.get("mAP") for record in records if record["when"] == "experience"}
    precision = np.array([] if len(matrix) else [ends[key] for key in sorted(ends)], dtype=np.float64)
    name, seed = str(config.get("label") or config["strategy"]["name"]), int(results["seed"])
    return Run(folder, name, seed, config, results, matrix, precision)


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
    rows = [Row(label, dict(sorted(g.items()))) for label, g in zip(_labels(groups), groups, strict=True)]
    rows.sort(key=_order)
    first = runs[0]
    sections = configuration.flat({key: first.config.get(key) for key in _STREAM})
    arguments = [
        f"{key.split('.', 1)[1]}={_value(value)}"
        for key, value in sections.items()
        if value is not None and key not in _NO_MATTER and not key.endswith(".name")
    ]
    names = [str(first.config[key]["name"]) for key in _STREAM]
    count = f"{first.experiences} class groups"
    online = "online" if first.config.get("online") is not None else ""
    title = ", ".join(filter(None, [" on ".join(reversed(names)), online, count]))
    slug = "-".join(filter(None, [*names, online, str(first.experiences)]))
    slug = "".join(mark if mark.isalnum() or mark in "-_" else "_" for mark in slug)
    return Section(title, slug, ", ".join(arguments), rows)


def _order(row: Row) -> tuple[float, str]:
    known = [run.results.get("average_accuracy") for run in row.runs.values()]
    values = [value for value in known if value is not None]
    return (-sum(values) / len(values) if values else math.inf, row.label)


def _labels(groups: Sequence[Mapping[int, Run]]) -> list[str]:
    """Their labels or strategies; where one appears more than once, with what differs: the configuration's name or arguments.

    No two labels are equal.
    """
    first = [next(iter(group.values())) for group in groups]
    settings = [run.settings for run in first]
    names = [run.config.get("label") or _name(run.settings) for run in first]
    labels: list[str] = []
    for name, own in zip(names, settings, strict=True):
        same = [other for other, its in zip(settings, names, strict=True) if its == name]
        keys = sorted({key for other in same for key in {*own, *other} if own.get(key) != other.get(key)})
        if len({str(other["name"]) for other in same}) == len(same) > 1:
            told = [str(own["name"])]
        else:
            told = [f"{key.removeprefix('strategy.')}={_value(own.get(key))}" for key in keys]
        label = f"{name} ({', '.join(told)})" if told else name
        labels.append(label if label not in labels else f"{label} #{len(labels) + 1}")
    return labels


def _name(settings: Mapping[str, Any]) -> str:
    """The strategy; a memory of images beside it is always told."""
    size = settings.get("memory.size")
    return str(settings["strategy.name"]) + (f" + {size} images" if size else "")


def _value(value: Any) -> str:
    return value if isinstance(value, str) else schema.show(value)


# ------------------------------------------------------------------------------------------------ writing


def _run_rows(section: Section) -> list[list[str]]:
    return [[row.label, str(seed), str(run.folder)] for row in section.rows for seed, run in row.runs.items()]
