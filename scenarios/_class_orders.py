"""Class orders: published ones by name, so that a stream can repeat a paper's, and those of files."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from clprompt import plain_yaml
from clprompt.data.names import class_name
from clprompt.errors import ConfigError, nearest
from clprompt.system.files import read_bytes

_ORDERS = {
    # Rebuffi et al., iCaRL, CVPR 2017; also the first of three orders of Douillard et al., PODNet, ECCV 2020
    "icarl-cifar100": """
        87 0 52 58 44 91 68 97 51 15 94 92 10 72 49 78 61 14 8 86 84 96 18 24 32
        45 88 11 4 67 69 66 77 47 79 93 29 50 57 83 17 81 41 12 37 59 25 20 80 73
        1 28 6 46 62 82 53 9 31 75 38 63 33 74 27 22 36 3 16 21 60 19 70 90 89
        43 5 42 65 76 40 30 23 85 2 95 56 48 71 64 98 13 99 7 34 55 54 26 35 39
    """,
}


#: Endings of the files of an order; another file must have a folder in its name, and is read as text.
_FILES = (".txt", ".json", ".yaml", ".yml", ".npy")
_LARGEST = 2**24  # bytes of such a file


def class_order(
    order: Sequence[int | str] | str, count: int, class_names: Sequence[str] | None = None
) -> list[int]:
    """A class order as a list.

    Args:
        order: a permutation of the class ids or of the class names; the name of one; or a file of one.

            - "numpy-1993" (or another seed): what ``np.random.seed(1993); np.random.permutation(count)``
              gives, the way in which most published code for any data set draws its order.
            - "icarl-cifar100": the fixed order of the iCaRL paper.
            - "alphabetical": that of the class names, whatever their ids: of folders, as loaders sort them.
            - a path: a list in JSON or YAML, a .npy array, or text with one a line. Integers throughout are
              class ids, anything else is class names.
        count: C.
        class_names: by class id, for orders by name; None where nobody knows them.

    Raises:
        ConfigError: an unknown name, a file that cannot be read, or no permutation of 0..C-1.
    """
    if isinstance(order, str):
        drawn = re.fullmatch(r"numpy[-_](\d{1,9})", order)
        key = order.replace("_", "-")
        if drawn:
            return np.random.RandomState(int(drawn[1])).permutation(count).tolist()
        if key in _ORDERS:
            order = [int(word) for word in _ORDERS[key].split()]
            if len(order) != count:
                raise ConfigError(
                    f"scenario.class_order {key} is an order of {len(order)} classes, the data has {count}"
                )
        elif key == "alphabetical":
            if class_names is None:
                raise ConfigError(
                    "scenario.class_order alphabetical: the names of the classes are not known here"
                )
            return sorted(range(count), key=lambda c: str(class_names[c]))
        elif re.fullmatch(r"\s*\d+(\s*,\s*\d+)*\s*", order):  # an override without brackets: 2,0,1
            order = [int(word) for word in order.split(",")]
        elif "," in order and "/" not in order:  # names without brackets: ant,bee,cat
            order = [word.strip() for word in order.split(",")]
        elif order.endswith(_FILES) or "/" in order or "\\" in order:
            return _of_file(order, count, class_names)
        else:
            names = ["numpy-1993", "alphabetical", *_ORDERS]
            raise ConfigError(
                f'scenario.class_order: there is no order "{order}"{nearest(order, names)}; known: '
                f"numpy-<seed>, alphabetical, {', '.join(_ORDERS)}, a list of class ids or names, "
                f"or a file ({', '.join(_FILES)})"
            )
    if any(isinstance(entry, str) for entry in order):
        return _permutation(order, count, class_names, "scenario.class_order", "entry")
    ids = [int(c) for c in order]
    problem = _problem(ids, count)
    if problem:
        raise ConfigError(
            f"scenario.class_order must be a permutation of the class ids 0..{count - 1}: {problem[1]}"
        )
    return ids


def _problem(order: Sequence[int], count: int) -> tuple[int | None, str] | None:
    """What keeps ids from being a permutation: the position, if it is at one, and a sentence."""
    first: dict[int, int] = {}
    for position, c in enumerate(order):
        if not 0 <= c < count:
            return position, f"there is no class {c}"
        if first.setdefault(c, position) != position:
            return position, f"class {c} is there twice"
    missing = [c for c in range(count) if c not in first]
    if missing:
        more = f" and {len(missing) - 1} more are" if len(missing) > 1 else " is"
        return None, f"class {missing[0]}{more} missing"
    return None


# ------------------------------------------------------------------------------------------------- files


def _of_file(path: str, count: int, class_names: Sequence[str] | None) -> list[int]:
    try:
        entries, unit = _entries(path, read_bytes(path, _LARGEST + 1))
    except FileNotFoundError:
        raise ConfigError(f"scenario.class_order: there is no file {path}") from None
    except (OSError, ValueError) as error:  # a path may hold a NUL
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"scenario.class_order: {path} cannot be read: {reason}") from None

    return _permutation(entries, count, class_names, f"scenario.class_order: {path}", unit)


def _permutation(
    entries: Sequence[int | str], count: int, class_names: Sequence[str] | None, where: str, unit: str
) -> list[int]:
    """Class ids of entries, which are ids throughout or else names.

    Args:
        entries: what is listed.
        count: C.
        class_names: by class id; None where nobody knows them.
        where: the list, for messages.
        unit: what one position of it is called there.

    Raises:
        ConfigError: an unknown name, or not each class once.
    """

    def refused(position: int | None, problem: str) -> ConfigError:
        place = "" if position is None else f", {unit} {position + 1}"
        return ConfigError(f"{where}{place}: {problem}; it must hold each of the {count} classes once")

    order = [entry for entry in entries if isinstance(entry, int)]
    if len(order) < len(entries):
        order, known = [], _by_name(class_names)
        for position, entry in enumerate(entries):
            ids = known.get(class_name(str(entry)), [])
            if len(ids) != 1:
                raise refused(position, _unknown(str(entry), len(ids), known))
            order.extend(ids)
    problem = _problem(order, count)
    if problem:
        raise refused(*problem)
    return order


def _by_name(class_names: Sequence[str] | None) -> dict[str, list[int]]:
    known: dict[str, list[int]] = {}
    for c, name in enumerate(class_names or ()):
        known.setdefault(class_name(str(name)), []).append(c)
    return known


def _unknown(name: str, count: int, known: Mapping[str, Any]) -> str:
    if count:
        return f'{count} classes are called "{name}", write class ids'
    if not known:
        return f'"{name}" is no class id, and the names of the classes are not known here'
    return f'there is no class "{name}"{nearest(name, known)}'


def _entries(path: str, data: bytes) -> tuple[list[int | str], str]:
    """What a file lists, and what one position of it is called.

    Raises:
        ValueError: it is no list of integers and text.
    """
    if len(data) > _LARGEST:
        raise ValueError("it is too large for a class order")
    if path.endswith(".npy"):
        values = _array(data)
    else:
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            line = data.count(b"\n", 0, error.start) + 1
            raise ValueError(f"line {line} is no text in UTF-8") from None
        if not path.endswith((".json", ".yaml", ".yml")):
            lines = [line.strip() for line in text.splitlines()]
            while lines and not lines[-1]:
                lines.pop()
            if "" in lines:
                raise ValueError(f"line {lines.index('') + 1} is empty")
            if all(re.fullmatch(r"-?\d{1,18}", line) for line in lines):
                return [int(line) for line in lines], "line"
            return list(lines), "line"
        try:
            values = json.loads(text) if path.endswith(".json") else plain_yaml.read(text)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"it is broken: {error}") from None
    if not isinstance(values, list):
        raise ValueError("it must hold a list of class ids or names")
    for position, value in enumerate(values):
        if isinstance(value, bool) or not isinstance(value, int | str):
            raise ValueError(f"entry {position + 1} is neither an integer nor text")
    return values, "entry"


def _array(data: bytes) -> Any:
    try:
        values = np.load(io.BytesIO(data), allow_pickle=False)
        return values.tolist() if values.ndim == 1 else None
    except Exception as error:  # numpy fails in many ways
        raise ValueError("it is no whole .npy file of numbers or text") from error
