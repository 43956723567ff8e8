"""``data.class_names``: what the classes of any data set are called, from a file or as it stands."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from clprompt import plain_yaml
from clprompt.data.lists import numbered_lines, text_of
from clprompt.data.names import class_name
from clprompt.errors import DataError, nearest, tell
from clprompt.plain_json import once_each
from clprompt.schema import FilePath

#: What the ``class_names`` argument of a data set may be.
Names = FilePath | list[str | list[str]] | dict[str | int, str | list[str]]

_KEY = "data.class_names"
_WORDNET = re.compile(r"(n\d{8})\s+(\S.*)")  # a line of ImageNet's own lists: n01440764 tench, Tinca tinca


@dataclass(frozen=True, kw_only=True)
class Naming:
    """What the classes are called; an argument of every data set.

    Attributes:
        class_names: names of the classes, in place of those that the data bring: a mapping by class id or by
            the data's own names, a list by class id, or a file of either (JSON, YAML, or text with a name a
            line, or a class, a tab and its name). Several names of a class are synonyms; the first is shown.
    """

    class_names: Names | None = None


def read_names(given: Names, own: Sequence[str]) -> list[list[str]]:
    """All names of each class, the shown one first, [C].

    Args:
        given: see :class:`Naming`.
        own: the data's own names, [C].

    Raises:
        DataError: a file that cannot be read, a class without a name, or an id that is no class's. Own names
            that the data do not have are told of and left out, as a file may name the classes of more data.
    """
    place = _KEY
    held: Any = given
    if isinstance(given, str):
        place = f"{_KEY}: {given}"
        held = _in_file(given)
    if isinstance(held, list):
        if len(held) != len(own):
            raise DataError(f"{place}: {len(held)} names for {len(own)} classes")
        entries: dict[str, Any] = {str(c): names for c, names in enumerate(held)}
        keys = [str(c) for c in range(len(own))]
    else:
        entries = _by_text(held, place)
        keys = _keys(entries, own, place)
    return [_checked(entries[key], f"{place}: class {_shown(c, own)}") for c, key in enumerate(keys)]


def _keys(entries: Mapping[str, Any], own: Sequence[str], place: str) -> list[str]:
    """The key of each class: its own name, or its id where the own names are not all there."""
    keys = [class_name(name) for name in own]
    missing = [c for c, key in enumerate(keys) if key not in entries]
    if missing and entries and all(key.isdecimal() for key in entries):
        keys = [str(c) for c in range(len(own))]
        missing = [c for c, key in enumerate(keys) if key not in entries]
        beyond = sorted(
            entries.keys() - set(keys), key=lambda key: (len(key), key)
        )  # int() takes 4300 digits
        if beyond:
            raise DataError(f"{place}: {beyond[0]:.60} is not within the {len(own)} classes 0-{len(own) - 1}")
    spare = sorted(entries.keys() - set(keys))
    if missing:
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        hint = nearest(own[missing[0]], spare)
        raise DataError(f"{place}: no name for class {_shown(missing[0], own)}{more}{hint}")
    if spare:
        tell(
            f"{place}: names of classes that the data do not have are left out: {len(spare)}, the first "
            f'"{spare[0]:.60}"'
        )
    return keys


def _shown(c: int, own: Sequence[str]) -> str:
    return str(c) if own[c] == str(c) else f'{c} ("{own[c]}")'


def _checked(given: Any, place: str) -> list[str]:
    names = [given] if isinstance(given, str) else given
    if not isinstance(names, list | tuple) or not names or not all(isinstance(name, str) for name in names):
        raise DataError(f"{place} must have a name, as text, or a list of names; got {given!r:.60}")
    names = [class_name(name).strip() for name in names]
    if not all(names):
        raise DataError(f"{place} has an empty name")
    return names


def _by_text(held: Any, place: str) -> dict[str, Any]:
    """A mapping whose keys are text; class ids may be written as numbers."""
    if not isinstance(held, Mapping):
        raise DataError(f"{place} must hold a name for each class, as a mapping or a list; got {held!r:.60}")
    entries: dict[str, Any] = {}
    for key, names in held.items():
        if isinstance(key, bool) or not isinstance(key, str | int):
            raise DataError(f"{place}: a class is a class id or a name; {key!r} must stand in quotes")
        text = class_name(str(key)).strip()
        if text in entries:
            raise DataError(f'{place}: class "{text}" is named twice')
        entries[text] = names
    return entries


def _in_file(file: str) -> Any:
    if not os.path.isfile(file):
        what = "it is not a file" if os.path.exists(file) else "there is no such file"
        raise DataError(f"{_KEY}: {file}: {what}")
    kind = os.path.splitext(file)[1].lower()
    try:
        if kind == ".json":
            return json.loads(text_of(file), object_pairs_hook=once_each('class "{}" is named twice'))
        if kind in (".yaml", ".yml"):
            return plain_yaml.read(text_of(file))
    except (ValueError, RecursionError) as error:
        if isinstance(error, DataError):
            raise DataError(f"{_KEY}: {error}") from None
        line = getattr(error, "lineno", None) or getattr(error, "line", None)
        problem = getattr(error, "msg", None) or " ".join(str(error).split())
        raise DataError(f"{_KEY}: {file}{f', line {line}' if line else ''}: {problem}") from None
    return _of_lines(file)


def _of_lines(file: str) -> list[str] | dict[str, Any]:
    """A name a line in the order of the class ids, or a class and its names; the first line decides."""
    names: list[str] = []
    by_class: dict[str, Any] = {}
    try:
        lines = list(numbered_lines(file))
    except DataError as error:
        raise DataError(f"{_KEY}: {error}") from None
    for place, line in lines:
        wordnet = _WORDNET.fullmatch(line)
        if "\t" in line:
            key, *own = (part.strip() for part in line.split("\t"))
        elif wordnet:
            key, own = wordnet[1], [part.strip() for part in wordnet[2].split(",")]
        else:
            key, own = "", [line]
        if (names and key) or (by_class and not key):
            what = (
                "lines before have a name alone" if names else "the class, or the tab behind it, is missing"
            )
            raise DataError(f"{_KEY}: {place}: {what}, got {line[:60]!r}")
        if not key:
            names.append(line)
        elif class_name(key) in by_class:
            raise DataError(f'{_KEY}: {place}: class "{key}" is named twice')
        else:
            by_class[class_name(key)] = own
    if not lines:
        raise DataError(f"{_KEY}: {file}: it is empty")
    return names or by_class
