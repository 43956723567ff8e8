"""What a report says of runs beside their metrics: the settings that they share, and where they were made."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from clprompt import schema


def value_text(value: Any) -> str:
    """A setting's value; of a file its name alone, for folders differ between machines."""
    if not isinstance(value, str):
        return schema.show(value)
    return Path(value).name if Path(value).suffix and "/" in value else value


def arguments(settings: Mapping[str, Any]) -> str:
    """Settings as "key=value, key=value"."""
    return ", ".join(f"{key}={value_text(value)}" for key, value in settings.items())


def shared(settings: Sequence[Mapping[str, Any]]) -> str:
    """What all rows of a table have in common beside their stream.

    Settings that are off (0, false) are left out, and with them those that say how (``mixup_probability``).

    Args:
        settings: of each row by dotted key, as `clprompt.reporting.report.Run.settings` gives them.
    """
    common = in_common(settings)
    prefixes = ("backbone.", "training.", "online.", "memory.", "precision", "query_precision")
    off = tuple(f"{key}_" for key, value in common.items() if value in (0, False))
    return arguments(
        {
            key.removesuffix(".name").removeprefix("training."): value
            for key, value in common.items()
            if key.startswith(prefixes) and value not in (0, False) and not key.startswith(off)
        }
    )


def in_common(settings: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The settings that all rows have, with one value."""
    first, *others = settings
    common = {key: value for key, value in first.items() if all(key in other for other in others)}
    return {key: value for key, value in common.items() if all(other[key] == value for other in others)}


def several_masks(rows: Iterable[tuple[str, str | None]]) -> str:
    """A line where methods are trained under several masks; else "".

    Args:
        rows: the label of each, and its mask; None where nobody knows it or none matters.
    """
    labels: dict[str, dict[str, None]] = {}
    for label, mask in rows:
        if mask is not None:
            labels.setdefault(mask, {})[label] = None
    if len(labels) < 2:
        return ""
    named = "; ".join(f"mask={mask} ({', '.join(of)})" for mask, of in labels.items())
    return (
        f"Rows differ in the classes that compete in training: {named}. What lies between them is a "
        "difference of masks as well (strategy.mask sets it)."
    )


def machines(environments: Iterable[Mapping[str, Any] | None]) -> list[str]:
    """A line for each kind of machine, set of versions and revision, and of how many runs.

    Args:
        environments: what environment.json says of each run; None where it says nothing.
    """
    counts: dict[str, int] = {}
    known = [facts for facts in environments if facts is not None]
    for facts in known:
        for line in filter(None, (_machine(facts), _versions(facts), _revision(facts))):
            counts[line] = counts.get(line, 0) + 1
    return [
        line if count == len(known) else f"{line} ({count} of {len(known)} runs)"
        for line, count in sorted(counts.items())
    ]


def _machine(facts: Mapping[str, Any]) -> str:
    parts = [str(facts.get("device"))] if facts.get("device") not in ("cpu", None) else []
    parts.append(str(facts.get("processor") or "processor of unknown kind"))
    threads = facts.get("threads")
    used = f" ({threads} used by a run)" if threads != facts.get("processors") else ""
    parts.append(f"{facts.get('processors')} cores{used}")
    return f"hardware: {', '.join(parts)}; {facts.get('platform')}"


def _versions(facts: Mapping[str, Any]) -> str:
    versions = {"python": facts.get("python"), **(facts.get("versions") or {})}
    return f"versions: {', '.join(f'{name} {number}' for name, number in versions.items() if number)}"


def _revision(facts: Mapping[str, Any]) -> str:
    git = facts.get("git") or {}
    return f"revision: {git['commit'][:12]}{' (modified)' * bool(git.get('modified'))}" if git else ""
