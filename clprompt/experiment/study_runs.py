"""The runs of a study, and the report over them.

What is finished is skipped, what was interrupted goes on, what fails is listed.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from clprompt import schema
from clprompt.errors import CheckpointError, ClpromptError, Interrupted, RunFolderError
from clprompt.experiment import config as configuration
from clprompt.experiment import folder as runfolder
from clprompt.experiment import manage, paths
from clprompt.experiment.launch import Launcher, Outcome
from clprompt.experiment.study import Planned, Study
from clprompt.metrics.measure import measure_behind
from clprompt.reporting import report, reported
from clprompt.reporting.finished import read_results
from clprompt.reporting.tables import columns, mean_and_error
from clprompt.system import overlay, progress, runtime
from clprompt.system.files import FolderLock, atomic_write, one_line_errors

# What may differ between a finished run and the study without any effect on its results.
_NO_MATTER = {
    *("device", "runs_dir", "export", "trackers", "note", "tags", "compare", "data.download"),
    *(f"training.{key}" for key in ("eval_mb_size", "workers", "checkpoint_every", "log_every")),
}
_SHOWN = 3  # differences that a refusal names


class StudyFailed(ClpromptError):
    """Some runs of a study failed; they were listed."""


@dataclass
class State:
    """What is to be done, by run.

    Attributes:
        finished: runs with results.
        waiting: runs to start or continue.
        changed: runs whose folder holds another configuration, begun or not, with what is different.
    """

    finished: list[Planned] = field(default_factory=list)
    waiting: list[Planned] = field(default_factory=list)
    changed: dict[Planned, list[str]] = field(default_factory=dict)


def survey(study: Study, *, again: bool = False) -> State:
    """Look at the folders of a study's runs; nothing is written.

    Args:
        study: whose runs.
        again: whether runs of another configuration are to be run again, from the start.
    """
    state = State()
    for run in study.runs:
        done = (run.folder / runfolder.RESULTS).exists()
        others = _others(run)
        if others and not again:
            state.changed[run] = others
        elif done and not others:
            state.finished.append(run)
        else:
            state.waiting.append(run)
    return state


def refuse_changed(study: Study, state: State) -> None:
    """Refuse a study whose folders hold another configuration, before anything is run or written.

    A study that goes on with other values than it began with would be half of each.

    Args:
        study: all the runs of this call.
        state: of those runs.

    Raises:
        RunFolderError: there are such folders; the line says what is different in how many of them.
    """
    if not state.changed:
        return
    folders: dict[str, list[Planned]] = {}
    for run, others in state.changed.items():
        for text in others:
            folders.setdefault(text, []).append(run)
    parts = [
        f"{text} ({f'in {len(runs)} folders' if len(runs) > 1 else runs[0].folder})"
        for text, runs in sorted(folders.items(), key=lambda one: -len(one[1]))
    ]
    more = f", and {len(parts) - _SHOWN} more" if len(parts) > _SHOWN else ""
    raise RunFolderError(
        f"{len(state.changed)} of {len(study.runs)} runs have a folder of another configuration than this "
        f"call's: {'; '.join(parts[:_SHOWN])}{more}; nothing was run or written. Repeat what the call before "
        f"was given (tuned=FILE, KEY=VALUE), or give name=NEW for a study beside it, or --again to run these "
        "again from the start"
    )


def _others(run: Planned) -> list[str]:
    """What is different in the configuration of a run's folder, a text for each key; [] for nothing."""
    if not (run.folder / "config.yaml").is_file():
        return []
    try:
        there = runfolder.read_config(run.folder)
    except ClpromptError as error:
        return [f"a configuration that cannot be read: {error}"]
    # a run keeps absolute paths
    old, new = (configuration.with_paths(one, paths.absolute).to_dict() for one in (there, run.config))
    before, now = (
        {key: schema.show(value) for key, value in overlay.flat(one).items()} for one in (old, new)
    )
    keys = [key for key in overlay.difference(old, new) if key not in _NO_MATTER]
    return [f"{key}={before.get(key, '(not there)')}, now {now.get(key, '(not there)')}" for key in keys]


def _has_checkpoint(folder: Path) -> bool:
    return any((folder / "checkpoint").glob("*")) if (folder / "checkpoint").is_dir() else False


def check(study: Study, waiting: Sequence[Planned]) -> None:
    """Build the parts of every kind of run once, so that mistakes show before hours are spent.

    Raises:
        ClpromptError: of the first that does not fit together; the line begins with its label.
    """
    from clprompt.experiment import build  # timm and torchvision with it, which a dry run can do without

    builder, seen = build.Builder(), set()
    for run in waiting:
        if (run.label, run.scenario) in seen:
            continue
        seen.add((run.label, run.scenario))
        try:
            builder.build(replace(run.config, device="cpu"))  # a GPU's memory is for the runs
        except ClpromptError as error:
            raise type(error)(f"{run.label}: {error}") from error
    for device in dict.fromkeys(run.config.device for run in waiting):
        runtime.find_device(device)


def prepare(run: Planned) -> None:
    """Make a run's folder with its configuration, unless it holds a checkpoint of it.

    Raises:
        ClpromptError: the folder cannot be written, or another process uses it.
    """
    with one_line_errors(f"make the folder {run.folder}"):
        run.folder.mkdir(parents=True, exist_ok=True)
    with FolderLock(run.folder):
        others = _others(run)
        if _has_checkpoint(run.folder) and not others:
            return  # its own configuration stays as the checkpoint knows it
        if others:
            for path in run.folder.iterdir():
                if path.is_dir():
                    shutil.rmtree(path)
                elif path.name not in ("lock", manage.NOTES):  # what its owner wrote stays
                    path.unlink()
        config = configuration.with_paths(run.config, paths.absolute)
        atomic_write(run.folder / "config.yaml", configuration.to_yaml(config))


def execute(
    waiting: Sequence[Planned], launch: Launcher, imports: Sequence[str], say: Callable[[str], None]
) -> dict[Planned, Outcome]:
    """Run them all; the outcomes of those that failed.

    Raises:
        Interrupted: a signal came; all that ran have written their checkpoints.
    """
    by_folder: dict[Path, Planned] = {}
    failed: dict[Planned, Outcome] = {}
    for run in waiting:
        try:
            prepare(run)
            by_folder[run.folder] = run
        except ClpromptError as error:
            failed[run] = Outcome("failed", str(error))
    count, began = 0, time.perf_counter()
    with runtime.stop_signal() as stop:
        for folder, outcome in launch(list(by_folder), imports, stop):
            run = by_folder[folder]
            if outcome is None:
                say(f"{run}: started; {folder / 'output.log'} follows it")
                continue
            count += 1
            position = f"[{count}/{len(waiting)}] {run}"
            left = (time.perf_counter() - began) / count * (len(waiting) - count)
            if outcome.status == "done" or (run.folder / runfolder.RESULTS).exists():
                eta = f", ETA {progress.clock(left)}" if count < len(waiting) else ""
                say(f"{position}: {_headline(folder)}{outcome.seconds:.0f} s{eta}")
            elif outcome.status == "failed":
                failed[run] = outcome
                say(f"{position}: failed: {outcome.reason}")
            else:
                say(f"{position}: stopped")
        signal = stop()
    if signal is not None:
        raise Interrupted(signal)
    return failed


def results_of(folder: Path) -> dict[str, Any]:
    """The results of a finished run; empty where there are none that can be read."""
    try:
        return read_results(folder)
    except CheckpointError:  # the report says why
        return {}


def _headline(folder: Path) -> str:
    results = results_of(folder)
    shown = [
        f"{title} {100 * results[key]:.1f}"
        for key, title in measure_behind([results]).shown([results]).items()
        if isinstance(results.get(key), float)
    ]
    return f"{', '.join(shown)} (%), " if shown else ""


# -------------------------------------------------------------------------------------- the end of a study


def failures(failed: dict[Planned, Outcome]) -> list[str]:
    """One line for every reason, with the runs that it stopped."""
    alike: dict[str, list[str]] = {}
    for run, outcome in failed.items():
        reason = outcome.reason.removeprefix(f"{run.folder}: ").replace(str(run.folder), "its folder")
        alike.setdefault(reason, []).append(str(run))
    return [f"failed: {'; '.join(runs)}: {reason}" for reason, runs in alike.items()]


def write_report(study: Study, finished: Sequence[Planned]) -> tuple[str, list[Path]]:
    """The report over the finished runs of a study, for a terminal, and the files it wrote."""
    comparison = report.collect((run.folder for run in finished), metrics=study.metrics)
    return comparison.text(), comparison.write(study.folder / "report")


def write_reported(study: Study, finished: Sequence[Planned]) -> tuple[str, Path | None]:
    """The literature's numbers beside those of the finished runs: for a terminal, and the file with them.

    What the study's own recipe did not make carries a "*" and a line that says what was laid over it.

    Returns:
        "" and None where the study names no numbers.
    """
    if study.reported is None:
        return "", None
    literature = reported.read(study.reported)
    rows: dict[tuple[str, str], list[Planned]] = {}
    for run in finished:
        rows.setdefault((run.scenario, run.base), []).append(run)
    ours, notes = {}, []
    for (stream, label), runs in rows.items():
        results = [results_of(run.folder) for run in runs]
        cell = " / ".join(mean_and_error([of.get(key) for of in results]) for key in literature.metrics)
        ours[stream, label] = cell + (" *" if runs[0].changes else "")
        if runs[0].changes:
            notes.append(f"* {label} on {stream}: not the packaged recipe, but {', '.join(runs[0].changes)}")
    path = study.folder / "reported.md"
    atomic_write(path, "\n".join([*literature.markdown(ours), *[""] * bool(notes), *notes, ""]))
    return "\n".join([literature.title, *columns(literature.table(ours)), *notes]), path


def best(study: Study, finished: Sequence[Planned]) -> tuple[list[str], Path | None]:
    """A sweep's best values by strategy: lines for a terminal, and `best.yaml`; nothing without a sweep.

    Args:
        study: whose sweep.
        finished: its finished runs; a value counts when all its runs are among them.
    """
    swept, done = [run for run in study.runs if run.values], set(finished)
    results = {run.folder: results_of(run.folder) if run in done else {} for run in swept}
    scored = [of_run for of_run in results.values() if of_run]
    if not scored:
        return [], None
    metric = study.metric or next(iter(measure_behind(scored).columns))
    rows = [("strategy", f"best by {metric}", "percent", "the others")]
    best_values: dict[str, dict[str, Any]] = {}
    for base in dict.fromkeys(run.base for run in swept):
        scores: dict[str, list[float | None]] = {}
        values: dict[str, dict[str, Any]] = {}
        for run in (run for run in swept if run.base == base):
            setting = run.label.removeprefix(base).strip()
            scores.setdefault(setting, []).append(results[run.folder].get(metric))
            values[setting] = run.values
        means = {setting: _mean(of_label) for setting, of_label in scores.items()}
        ranked = sorted(
            (setting for setting in means if means[setting] is not None),
            key=lambda setting: -means[setting],  # type: ignore[operator]
        )
        if not ranked:
            continue
        first = ranked[0]
        best_values[base] = values[first]
        others = [f"{setting}: {mean_and_error(scores[setting])}" for setting in scores if setting != first]
        rows.append((base, first + _edge(values, first), mean_and_error(scores[first]), ", ".join(others)))
    path = study.folder / "best.yaml"
    held = {"study": study.name, "metric": metric, "strategies": best_values}
    atomic_write(path, overlay.write(held))
    return columns(rows), path


def _mean(values: Sequence[float | None]) -> float | None:
    """Over the runs of one value; None unless all of them have a score."""
    scores = [value for value in values if value is not None and math.isfinite(value)]
    return sum(scores) / len(scores) if scores and len(scores) == len(values) else None


def _edge(values: dict[str, dict[str, Any]], first: str) -> str:
    """A remark where a number is the smallest or largest that was tried: a better one may lie outside."""
    for key, value in values[first].items():
        tried = sorted({point[key] for point in values.values() if isinstance(point[key], int | float)})
        if len(tried) > 1 and value in (tried[0], tried[-1]):
            return " (at the edge)"
    return ""
