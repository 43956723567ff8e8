"""`clprompt runs`: the runs that there are, their notes and tags, and how they are removed."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from clprompt.cli.screen import hint, show
from clprompt.errors import ConfigError
from clprompt.system.files import plain_name

if TYPE_CHECKING:
    from clprompt.experiment.manage import Kept

_FAILED = ("failed", "broken off")


class _ListFirst(click.Group):
    """Lists where no command is named: `clprompt runs mvp` is `clprompt runs list mvp`."""

    def parse_args(self, context: click.Context, args: list[str]) -> list[str]:
        helps = context.help_option_names
        if not args or (args[0] not in self.commands and args[0] not in helps):
            args = ["list", *args]
        return super().parse_args(context, args)


_runs = click.argument("runs", metavar="RUN...", nargs=-1, required=True, type=click.Path(path_type=Path))


@click.group(
    "runs",
    cls=_ListFirst,
    short_help="List runs, note something down, remove them.",
    subcommand_metavar="[FILTER]... | COMMAND ...",
)
def group() -> None:
    """List the runs that there are, note something down, remove them.

    `clprompt runs` lists all below the folder runs, `clprompt runs mvp seed0` those with all these words in
    their name, strategy, state, tags or note; `clprompt runs list --help` has the options.
    """


@group.command("list")
@click.argument("words", metavar="[FILTER]...", nargs=-1)
@click.option(
    "--dir", "top", metavar="DIR", type=click.Path(path_type=Path), default="runs", show_default=True
)
@click.option("--running", is_flag=True, help="Only those that run.")
@click.option("--failed", is_flag=True, help="Only those that failed or broke off.")
def list_(words: tuple[str, ...], top: Path, running: bool, failed: bool) -> None:
    """List runs: name, state, main figure, age, tags and note; strategy and seed, unless all names tell them.

    FILTER are words; a run is listed when all stand in its name, strategy, state, tags or note.
    """
    from clprompt.experiment.manage import kept_runs
    from clprompt.reporting.tables import columns

    states = {*(["running"] if running else []), *(_FAILED if failed else ())}
    found = [run for run in kept_runs(top) if run.matches(words) and (not states or run.state in states)]
    if not found:
        show(f"no such run below {top}" if words or states else f"no run below {top}")
        return
    header = ("run", "strategy", "seed", "state", "figure", "age", "tags, note")
    rows = [header, *(_row(run, top) for run in found)]
    figures = {run.figure.rsplit(" ", 2)[0] for run in found if run.figure.endswith(" %")}
    if len(figures) == 1:  # a terminal has 80 columns: what all lines would say is said once
        (title,) = figures
        rows = [(*row[:4], row[4].removeprefix(f"{title} "), *row[5:]) for row in rows]
    if all(_names_itself(run) for run in found):
        rows = [(row[0], *row[3:]) for row in rows]
    # a line a run, however wide: paths are copied, and programs read lines
    for line in columns(rows, width=sys.maxsize):
        show(line)
    if len(figures) == 1:
        hint(f"figure: {title}")


def _names_itself(run: Kept) -> bool:
    """Whether the last two folders of a run name its strategy and seed."""
    name = "/".join(run.folder.parts[-2:])
    return plain_name(run.label) in name and f"seed{run.seed}" in name


def _row(run: Kept, top: Path) -> tuple[str, ...]:
    state = " ".join(filter(None, (run.state, run.experience)))
    tags = " ".join(f"[{tag}]" for tag in run.tags)
    notes = " ".join(" ".join(filter(None, (tags, run.note))).split())
    return (os.path.relpath(run.folder, top), run.label, run.seed, state, run.figure, run.age(), notes)


@group.command()
@click.argument("run", metavar="RUN", type=click.Path(path_type=Path))
@click.argument("text")
def note(run: Path, text: str) -> None:
    """Note TEXT down for a run, in place of its note; "" for none."""
    from clprompt.experiment.manage import write_notes

    write_notes(run, note=text)


@group.command()
@click.argument("run", metavar="RUN", type=click.Path(path_type=Path))
@click.argument("tags", metavar="TAG...", nargs=-1)
@click.option("--drop", metavar="TAG", multiple=True, help="Take a tag away. Repeatable.")
def tag(run: Path, tags: tuple[str, ...], drop: tuple[str, ...]) -> None:
    """Add tags to a run."""
    from clprompt.experiment.manage import write_notes

    if not tags and not drop:
        raise click.UsageError("Missing argument 'TAG...' (or --drop TAG).")
    write_notes(run, add=tags, drop=drop)


@group.command()
@_runs
@click.option("--yes", is_flag=True, help="Do not ask.")
def rm(runs: tuple[Path, ...], yes: bool) -> None:
    """Remove runs, with all that is in their folders; asks first.

    RUN is the folder of a run; one that is running is left alone.
    """
    from clprompt.experiment import manage

    folders: Any = list(dict.fromkeys(runs))
    for folder in folders:
        manage.check_run(folder)
    if not yes:
        if not sys.stdin.isatty():
            raise ConfigError("runs rm asks before it removes anything; where nobody can answer, give --yes")
        for folder in folders:
            show(f"{folder}  {manage.size(folder) / 1e6:.1f} MB")
        click.confirm(f"remove {len(folders)} run{'s' * (len(folders) != 1)}?", abort=True)
    for folder in folders:
        manage.remove(folder)
        show(f"removed: {folder}")
