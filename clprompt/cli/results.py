"""The block that the command line prints at the end of a run."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from clprompt.errors import RunFolderError
from clprompt.reporting.tables import columns, mean_and_error, paragraph

if TYPE_CHECKING:
    from clprompt.experiment.run import Result


def results(finished: Sequence[Result]) -> str:
    """The block at the end: accuracies, means over seeds, run folders, and how to look at them.

    Args:
        finished: what was run, of one or several strategies and seeds.
    """
    from clprompt.metrics.accuracy import group_names
    from clprompt.metrics.text import group_label
    from clprompt.reporting import summary
    from clprompt.tracking import TensorBoard
    from clprompt.tracking.records import growing_files

    groups: dict[str, dict[int, Result]] = {}  # strategy -> seed -> result
    for result in finished:
        group, count = result.name, 1
        while result.seed in groups.setdefault(group, {}):  # one strategy twice, with other arguments
            count += 1
            group = f"{result.name} ({count})"
        groups[group][result.seed] = result
    several = any(len(of_seeds) > 1 for of_seeds in groups.values())
    labelled = {
        f"{group}, seed {seed}" if several else group: result
        for group, of_seeds in groups.items()
        for seed, result in of_seeds.items()
    }
    tables = {label: (result.matrix, result.summary) for label, result in labelled.items()}
    names = {label: group_names(result.records) for label, result in labelled.items()}
    heads = {label: result.trained_head for label, result in labelled.items()}
    classes = {
        label: [group_label(group, result.class_names) for group in result.groups]
        for label, result in labelled.items()
    }
    parts = [summary.text_summary(tables, names, heads, classes).rstrip("\n")]
    if several:
        parts.append("\n".join(_over_seeds(groups)))
    if len(finished) > 1:
        parts += _remarks(finished)
    places = [(label, str(result.folder)) for label, result in labelled.items()]
    parts.append("\n".join(columns(places, width=sys.maxsize)))  # a path is copied: it never breaks
    charted = [result.folder for result in finished if growing_files(result.folder, TensorBoard.files)]
    folders = dict.fromkeys(str(folder.parent) for folder in charted)
    if folders:
        parts.append("\n".join(shlex.join(["tensorboard", "--logdir", folder]) for folder in folders))
    return "\n\n".join(parts)


def _remarks(finished: Sequence[Result]) -> list[str]:
    """What a report would say below such tables."""
    from clprompt.reporting.report import collect

    try:
        sections = collect([result.folder for result in finished]).sections
    except RunFolderError:  # results are shown though their folders were moved meanwhile
        return []
    return [paragraph(line) for section in sections for line in section.remarks()]


def _over_seeds(groups: dict[str, dict[int, Result]]) -> list[str]:
    from clprompt.metrics.measure import TRAINED_HEAD_TITLE, measure_behind

    summaries = [result.summary for of_seeds in groups.values() for result in of_seeds.values()]
    shown = measure_behind(summaries).shown(summaries)
    averaged = {key: shown[key] for key in shown if key not in ("backward_transfer", "last_accuracy")}
    rows: list[Sequence[str]] = [("percent, mean ± standard error", "seeds", *averaged.values())]
    for group, of_seeds in groups.items():
        heads = [head for result in of_seeds.values() if (head := result.trained_head) is not None]
        of_labels: dict[str, list[dict[str, float]]] = {
            group: [result.summary for result in of_seeds.values()]
        }
        if heads:
            of_labels[f"{group} ({TRAINED_HEAD_TITLE})"] = heads
        for label, of_label in of_labels.items():
            cells = [mean_and_error([metrics.get(key) for metrics in of_label]) for key in averaged]
            rows.append((label, str(len(of_label)), *cells))
    return columns(rows)
