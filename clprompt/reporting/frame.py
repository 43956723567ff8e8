"""Finished runs as a table of pandas."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from clprompt.errors import ClpromptError, tell
from clprompt.metrics.measure import TITLES
from clprompt.reporting import report
from clprompt.reporting.finished import Run


class Finished(list[Run]):
    """Finished runs as their folders tell them; each has the name of its row in a report."""

    def to_frame(self) -> Any:
        """A pandas DataFrame with a row for each run: label, strategy, scenario, seed, metrics, folder.

        Metrics are fractions.

        Raises:
            ClpromptError: pandas is not installed.
        """
        return data_frame(
            {"label": run.name, "strategy": run.results["strategy"]}
            | {"scenario": run.config["scenario"]["name"], "seed": run.seed}
            | {key: run.results[key] for key in TITLES if key in run.results}
            | {"folder": str(run.folder)}
            for run in self
        )


def results(*paths: str | os.PathLike[str]) -> Finished:
    """The finished runs at or below folders: of runs, of a study, or all of them.

    Runs that are not finished or cannot be read are left out, and a :class:`DataWarning` names each.

    Args:
        paths: run folders, or folders with run folders somewhere below.

    Raises:
        RunFolderError: no such folder, or no finished run.
    """
    collected = report.collect(paths)
    for folder, why in collected.left_out:
        tell(f"{folder} is left out: {why}")
    rows = (row for section in collected.sections for row in section.rows)
    return Finished(replace(run, name=row.label) for row in rows for run in row.runs.values())


def data_frame(rows: Iterable[Mapping[str, Any]]) -> Any:
    """A pandas DataFrame of rows.

    Raises:
        ClpromptError: pandas is not installed.
    """
    try:
        import pandas
    except ImportError:
        raise ClpromptError("to_frame needs pandas: pip install pandas") from None
    return pandas.DataFrame(list(rows))
