"""A preset beside the released code of its paper: what that code runs, and where the preset differs.

`configs/released/NAME.yaml` holds the values of the code that was released for the preset NAME, each with the
file that says so; the head of the preset says what differs from them, and why:

    # differs from the published run:
    #   training.lr: ours 0.01, released 0.001 (the reason)

or "differs from the published run: nothing", or "no published run: the reason".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from clprompt import schema
from clprompt.errors import ConfigError
from clprompt.experiment import config as configs
from clprompt.system import overlay

DIFFERS, NONE = "differs from the published run:", "no published run:"


@dataclass(frozen=True, kw_only=True)
class Field:
    """One value of a released run.

    Attributes:
        released: the value in the words of a configuration; of a field without a key, in plain words.
        file: which file of the repository says so.
        called: what it is called there.
        ours: what is done here in its place, where no key of a configuration sets it.
        reason: why no key does.
        repository: OWNER/NAME on GitHub.
        commit: which state of it was read.
    """

    released: Any
    file: str
    called: str
    repository: str
    commit: str
    ours: Any = None
    reason: str | None = None


@dataclass(frozen=True, kw_only=True)
class Released:
    """What the released code of a paper runs.

    Attributes:
        run: the command or configuration of it, in its repository.
        repository: OWNER/NAME on GitHub.
        commit: which state of it was read.
        fields: by dotted key of a configuration.
        no_switch: fields that no key sets, by their name in plain words.
    """

    run: str
    repository: str
    commit: str
    fields: dict[str, Field]
    no_switch: dict[str, Field]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One field of a released run beside what a configuration has there; both as text.

    Attributes:
        field: a dotted key, or the name of what no key sets.
        released: the released value.
        ours: the configuration's.
        differs: whether they are two.
        reason: why, as the preset's head says it; "" where it says nothing of it.
    """

    field: str
    released: str
    ours: str
    differs: bool
    reason: str = ""


@dataclass(frozen=True)
class Head:
    """What the comments at the top of a preset say of the published run.

    Attributes:
        differences: the lines of the block, by field; None where there is no block.
        none: why there is no published run; None where nothing is said of that.
    """

    differences: dict[str, str] | None
    none: str | None


def names() -> list[str]:
    """The presets of which released values are known."""
    return [name for name, _ in overlay.names("released")]


def released(path: Path) -> Released:
    """The released values of a preset.

    Args:
        path: its file, or a file of the same name.

    Raises:
        ConfigError: none are known, with the reason where the file's head says one.
    """
    if path.stem not in names():
        reason = head(path).none
        raise ConfigError(
            f"{path.stem} has no published run: {reason}"
            if reason
            else f'no published run of "{path.stem}" is known; known: {", ".join(names()) or "none"}'
        )
    values = overlay.read(overlay.find(path.stem, "released"))
    where = {key: values[key] for key in ("repository", "commit")}

    def fields(part: str) -> dict[str, Field]:
        return {key: Field(**{**where, **field}) for key, field in (values.get(part) or {}).items()}

    return Released(run=values["run"], **where, fields=fields("fields"), no_switch=fields("no_switch"))


def head(path: Path) -> Head:
    """What the comments at the top of a configuration say of the published run."""
    differences: dict[str, str] | None = None
    none, last = None, ""
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        text = line.removeprefix("#").removeprefix(" ")
        if text.startswith(NONE):
            none = text.removeprefix(NONE).strip()
        elif text.startswith(DIFFERS):
            differences = {}
        elif differences is not None and text.startswith("    ") and last:  # a line that runs on
            differences[last] += f" {text.strip()}"
        elif differences is not None and text.startswith("  "):
            last = text.partition(": ours ")[0].strip()
            differences[last] = text.strip()
        else:
            last = ""
    return Head(differences, none)


def compare(run: Released, config: configs.Config, path: Path) -> list[Row]:
    """The released values of a preset beside those of a configuration, in the order of the released file.

    Args:
        run: the released values.
        config: the preset's, or one that was made of it by overrides.
        path: the preset's file, whose head says the reasons.
    """
    ours = overlay.flat(config.to_dict())
    said = head(path).differences or {}
    rows = []
    for key, field in run.fields.items():
        value = shown(ours[key]) if key in ours else "not set"
        differs = key not in ours or ours[key] != field.released
        row = Row(field=key, released=shown(field.released), ours=value, differs=differs)
        rows.append(replace(row, reason=_reason(row, said)) if differs else row)
    for key, field in run.no_switch.items():
        rows.append(
            Row(
                field=key,
                released=shown(field.released),
                ours=shown(field.ours),
                differs=True,
                reason=field.reason or "",
            )
        )
    return rows


def _reason(row: Row, said: dict[str, str]) -> str:
    """The reason that the preset's head gives for this very difference; "" where it gives none."""
    start = f"{row.field}: ours {row.ours}, released {row.released} ("
    line = said.get(row.field, "")
    return line.removeprefix(start).removesuffix(")") if line.startswith(start) else ""


def block(rows: Sequence[Row]) -> list[str]:
    """The lines that a preset's head says of rows that differ."""
    return [
        f"{row.field}: ours {row.ours}, released {row.released} ({row.reason})" for row in rows if row.differs
    ]


def shown(value: Any) -> str:
    """A value on one line; text without quotes."""
    return value if isinstance(value, str) else schema.show(value)


def against(name_or_path: str, overrides: Sequence[str] = ()) -> tuple[Released, list[Row]]:
    """A configuration's released run, and the two field by field; a file is taken by its name.

    Raises:
        ConfigError: see `released`, and whatever a user can get wrong in a configuration.
    """
    path = overlay.find(name_or_path)
    overlay.read(path)  # says what is wrong with the file
    run = released(path)
    return run, compare(run, configs.load(name_or_path, overrides), path)
