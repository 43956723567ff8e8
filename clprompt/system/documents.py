"""JSON files of a run folder that know their format and checksum: what cannot be read right is told.

Standard library only, as the report reads them without torch.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Collection, Mapping
from typing import Any

from clprompt.errors import CheckpointError
from clprompt.system.files import atomic_write, read_text

#: What a run folder's files hold, and how. A reader takes all numbers up to its own; what was written before
#: there were numbers is of format 1.
FORMAT = 1
#: The key, last in a file, of the checksum over all others.
CHECKSUM = "checksum"
#: What of `cost` is not covered, as it was measured: equal runs shall have equal checksums.
MEASURED = ("seconds", "experience_seconds", "peak_memory_bytes")


def write_json(
    path: str | os.PathLike[str], values: Mapping[str, Any], uncovered: Collection[str] = ()
) -> None:
    """Write a mapping as JSON, atomically, with its format and checksum; nan becomes null.

    Args:
        path: the file.
        values: the mapping.
        uncovered: keys that the checksum leaves out.

    Raises:
        ClpromptError: the operating system refused.
    """
    plain = {"format": FORMAT, **_plain(values)}
    atomic_write(path, json.dumps({**plain, CHECKSUM: checksum(plain, uncovered)}, indent=2) + "\n")


def read_json(path: str | os.PathLike[str], uncovered: Collection[str] = ()) -> dict[str, Any]:
    """The mapping in a JSON file without format and checksum, which are checked where it has them.

    Args:
        path: the file.
        uncovered: as it was written.

    Raises:
        CheckpointError: the file cannot be read, is no JSON object or of a later format, or was changed after
            it was written.
    """
    try:
        values = json.loads(read_text(path))
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read: it is no JSON: {error}") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} cannot be read: it must hold a JSON object")
    number = values.get("format", 1)
    if not isinstance(number, int) or not 1 <= number <= FORMAT:
        raise CheckpointError(
            f"{path} is of format {json.dumps(number)}, which another version of clprompt wrote; "
            f"this one reads formats up to {FORMAT}"
        )
    written = values.pop(CHECKSUM, None)
    if written is not None and written != checksum(values, uncovered):
        raise CheckpointError(
            f"{path} was changed or damaged after it was written: its checksum is another; "
            f'if you changed it yourself, remove its key "{CHECKSUM}"'
        )
    values.pop("format", None)
    return values


def checksum(values: Mapping[str, Any], uncovered: Collection[str] = ()) -> str:
    """SHA-256 over plain values, whatever the order of keys and the spaces between them.

    Args:
        values: plain values.
        uncovered: keys that are left out, beside ``MEASURED``.
    """
    covered = {key: value for key, value in values.items() if key not in uncovered}
    cost = values.get("cost")
    if isinstance(cost, Mapping):
        covered["cost"] = {key: value for key, value in cost.items() if key not in MEASURED}
    return hashlib.sha256(json.dumps(covered, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def parse_lines(data: bytes, only: bytes = b"") -> list[dict[str, Any]]:
    """The objects of a file of JSON lines.

    Args:
        data: the file's bytes.
        only: lines without these bytes are passed over.

    Raises:
        ValueError: a line that is no JSON object; the message says which.
    """
    objects = []
    for number, line in enumerate(data.splitlines(), start=1):
        if only not in line:
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"line {number} is no JSON: {error}") from error
        if not isinstance(value, dict):
            raise ValueError(f"line {number} is no JSON object")
        objects.append(value)
    return objects


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, float) and math.isnan(value):
        return None
    return value
