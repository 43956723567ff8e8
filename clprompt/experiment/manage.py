"""Run folders as their owner sees them: which there are, in which state, with notes, and how they go away.

Nothing here loads torch. A note and tags come from the configuration; what is written later stands in
`notes.json`, for the configuration of a run stays as it was.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from clprompt import schema
from clprompt.errors import CheckpointError, ClpromptError, RunFolderError
from clprompt.metrics.measure import measure_behind
from clprompt.metrics.text import percent
from clprompt.reporting.finished import find_runs, not_a_run, read_results
from clprompt.system.documents import read_json, write_json
from clprompt.system.files import FolderLock, is_locked, one_line_errors
from clprompt.system.overlay import read_written

NOTES = "notes.json"
_TAIL = 4096  # bytes of run.log that are read

State = Literal["done", "running", "stopped", "failed", "broken off", "not begun"]


@dataclass(frozen=True)
class Kept:
    """A run folder.

    Attributes:
        folder: its place.
        label: of its strategy.
        seed: its seed; "-" where its configuration cannot be read.
        state: "broken off" began and neither ended nor said why, as after a crash of the machine.
        experience: how far one that is not done has come, "2/5"; "" where nobody knows.
        figure: its main metric, or that of its last experience.
        changed: when it last said something, in seconds since 1970.
        note: what its owner wrote.
        tags: what its owner called it.
    """

    folder: Path
    label: str
    seed: str
    state: State
    experience: str
    figure: str
    changed: float
    note: str
    tags: tuple[str, ...]

    def matches(self, words: Iterable[str]) -> bool:
        """Whether each word stands in its name, label, state, tags or note."""
        held = " ".join([str(self.folder), self.label, self.state, *self.tags, self.note]).lower()
        return all(word.lower() in held for word in words)

    def age(self, now: float | None = None) -> str:
        """How long ago it last said something: "12 s", "3 min", "5 h", "2 d"."""
        seconds = max((time.time() if now is None else now) - self.changed, 0.0)
        for unit, size in (("d", 86400.0), ("h", 3600.0), ("min", 60.0)):
            if seconds >= 2 * size:
                return f"{seconds / size:.0f} {unit}"
        return f"{seconds:.0f} s"


@dataclass(frozen=True)
class _Notes:
    """What notes.json holds."""

    note: str | None = None
    tags: list[str] | None = None


def kept_runs(top: Path) -> list[Kept]:
    """The runs at or below a folder, in the order of their names.

    Raises:
        RunFolderError: there is no such folder.
    """
    if not top.is_dir():
        raise RunFolderError(f"{top}: there is no such folder; --dir DIR says where runs are")
    return [read(folder) for folder in find_runs(top)]


def read(folder: Path) -> Kept:
    """A run as its folder tells it; what cannot be read is shown as unknown, and nothing is refused."""
    config = _configuration(folder)
    strategy = config.get("strategy")
    label = config.get("label") or (strategy.get("name") if isinstance(strategy, dict) else None) or "?"
    note, tags = _notes(folder, config)
    lines = _last_lines(folder)
    told = next((line for line in reversed(lines) if line.startswith("experience ")), "")
    where, _, metrics = told.removeprefix("experience ").partition(": ")
    state = _state(folder, lines)
    figure = _main_metric(folder) if state == "done" else metrics.partition(", ")[0]
    return Kept(
        folder,
        str(label),
        str(config.get("seed", "-")),
        state,
        "" if state == "done" else where,
        figure or "-",
        _changed(folder),
        note,
        tags,
    )


def _configuration(folder: Path) -> dict[str, Any]:
    try:
        return read_written(folder / "config.yaml")
    except ClpromptError:
        return {}


def _notes(folder: Path, config: dict[str, Any]) -> tuple[str, tuple[str, ...]]:
    held = {"note": config.get("note"), "tags": config.get("tags"), **_written(folder)}
    tags = held["tags"] if isinstance(held["tags"], list) else []
    return str(held["note"] or ""), tuple(map(str, tags))


def _written(folder: Path) -> dict[str, Any]:
    """What notes.json holds; empty without one."""
    path = folder / NOTES
    if not path.exists():
        return {}
    with contextlib.suppress(ClpromptError):
        held = read_json(path)
        schema.held(_Notes, held, "")
        return {key: held[key] for key in ("note", "tags") if key in held}
    return {}


def _last_lines(folder: Path) -> list[str]:
    """The last lines of run.log without their times."""
    try:
        with open(folder / "run.log", "rb") as file:
            file.seek(0, 2)
            file.seek(max(file.tell() - _TAIL, 0))
            text = file.read().decode(errors="replace")
    except OSError:
        return []
    return [line.split(" ", 2)[2] for line in text.splitlines() if line.count(" ") >= 2]


def _state(folder: Path, lines: Sequence[str]) -> State:
    if (folder / "results.json").exists():
        return "done"
    if is_locked(folder):
        return "running"
    if not lines:
        return "not begun"
    if lines[-1].startswith("stopped by signal"):
        return "stopped"
    return "failed" if lines[-1].startswith("failed: ") else "broken off"


def _main_metric(folder: Path) -> str:
    try:
        results = read_results(folder)
    except CheckpointError:
        return "cannot be read"
    metrics = measure_behind([results]).reported.items()
    # of an online run that was not evaluated in between the first is not known
    key, title = next((one for one in metrics if results.get(one[0]) is not None), next(iter(metrics)))
    return f"{title} {percent(results.get(key))} %"


def _changed(folder: Path) -> float:
    times = [path.stat().st_mtime for path in (folder / "run.log", folder / "config.yaml") if path.exists()]
    return max(times[:1], default=0.0)


# ------------------------------------------------------------------------------------------------ changes


def check_run(folder: Path) -> None:
    """Refuse what is not the folder of a run.

    Raises:
        RunFolderError: naming the runs below it, if any.
    """
    if not (folder / "config.yaml").is_file():
        raise not_a_run(folder)


def write_notes(
    folder: Path, *, note: str | None = None, add: Sequence[str] = (), drop: Sequence[str] = ()
) -> None:
    """Write a note or tags of a run; what is not given stays.

    Args:
        folder: of the run.
        note: in place of the one before; "" for none.
        add: further tags.
        drop: tags that go.

    Raises:
        RunFolderError: not a run, or a tag to drop that it does not have.
    """
    check_run(folder)
    old, tags = _notes(folder, _configuration(folder))
    unknown = [tag for tag in drop if tag not in tags]
    if unknown:
        raise RunFolderError(f'{folder} has no tag "{unknown[0]}"; its tags: {", ".join(tags) or "none"}')
    kept = [tag for tag in dict.fromkeys([*tags, *add]) if tag not in drop]
    write_json(folder / NOTES, {"note": old if note is None else note, "tags": kept})


def size(folder: Path) -> int:
    """Bytes of all files of a folder."""
    return sum(path.lstat().st_size for path in folder.rglob("*") if not path.is_dir())


def remove(folder: Path) -> None:
    """Remove a run and all that is in its folder.

    Raises:
        RunFolderError: not a run, or another process runs it.
        ClpromptError: it cannot be removed.
    """
    check_run(folder)
    with FolderLock(folder), one_line_errors(f"remove {folder}"):
        shutil.rmtree(folder)
