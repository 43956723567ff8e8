"""`clprompt study`: what it prints, in which order, and how it ends."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any

from clprompt.cli.screen import data, hint, show
from clprompt.errors import Interrupted
from clprompt.experiment import study as studies


def run(
    name: str,
    overrides: Sequence[str],
    *,
    imports: Sequence[str],
    jobs: int | None,
    only: Sequence[str],
    scenario: Sequence[str],
    seed: Sequence[int],
    again: bool,
    dry_run: bool,
    launcher: str,
    gpus_per_run: float | None,
) -> None:
    """Run a study, or print its commands; see `clprompt study --help`.

    Raises:
        ClpromptError: a mistake, found before anything is run where that is possible.
        StudyFailed: some runs failed; the report over the others is written.
        Interrupted: a signal came.
    """
    whole = studies.load(name, overrides)
    part = studies.chosen_runs(whole, only, scenario, seed)
    from clprompt.experiment import launch, study_runs  # after the cheap mistakes are told

    launcher_of_runs = launch.launcher(launcher, jobs, gpus_per_run)
    for note in whole.notes:
        hint(note)
    state = study_runs.survey(part, again=again)
    study_runs.refuse_changed(part, state)
    if dry_run:
        _print_commands(state.waiting, name, overrides, imports, again)
        hint(f"# {len(state.waiting)} to run, {len(state.finished)} finished; at the end, for the report:")
        hint(f"# {studies.command(name, overrides)}")
        return
    if state.finished:
        hint(f"{len(state.finished)} of {len(part.runs)} runs are finished already")
    study_runs.check(part, state.waiting)
    try:
        failed = study_runs.execute(state.waiting, launcher_of_runs, imports, hint)
    except Interrupted as stop:
        options: dict[str, Any] = {
            "--jobs": jobs,
            "--launcher": None if launcher == "local" else launcher,
            "--gpus-per-run": gpus_per_run,
        }
        words = [word for key, value in options.items() if value is not None for word in (key, str(value))]
        words += [word for label in only for word in ("--only", label)]
        words += [word for label in scenario for word in ("--scenario", label)]
        words += [word for number in seed for word in ("--seed", str(number))]
        raise Interrupted(stop.signal, again=["clprompt", "study", name, *overrides, *words]) from None
    lines = study_runs.failures(failed)
    if part.runs == whole.runs:
        _end(whole)
    elif not lines:
        rest = studies.command(name, overrides)
        hint(f"{len(part.runs)} of {len(whole.runs)} runs are done; the others and the report: {rest}")
    for line in lines:
        hint(line)
    if lines:
        raise study_runs.StudyFailed(f"{len(failed)} of {len(part.runs)} runs failed")


def _end(study: studies.Study) -> None:
    """The report over what is finished, the best of a sweep, and where everything is."""
    from clprompt.experiment import study_runs

    finished = study_runs.survey(study).finished
    if not finished:
        return
    text, written = study_runs.write_report(study, finished)
    show(text)
    beside, path = study_runs.write_reported(study, finished)
    if path is not None:
        show("\n" + beside)
        written.append(path)
    lines, path = study_runs.best(study, finished)
    if path is not None:
        show("\n" + "\n".join(lines))
        written.append(path)
    show("\n" + "\n".join(map(str, written)))
    show("\n" + shlex.join(["tensorboard", "--logdir", str(study.folder)]))


def _print_commands(
    runs: Sequence[studies.Planned],
    name: str,
    overrides: Sequence[str],
    imports: Sequence[str],
    again: bool,
) -> None:
    options = [word for module in imports for word in ("--import", module)] + ["--again"] * again
    for run in runs:
        data(studies.command_of(run, name, overrides, options) + "\n")
