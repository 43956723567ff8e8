"""The records of a run, its one source, and the files of a run folder that only grow.

`metrics.jsonl` is a JSON object a line, without times, so that two runs of one configuration are equal byte
for byte. A resumed run is exact because every file that only grows is cut back to the size that it had at the
checkpoint.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any

from clprompt.errors import CheckpointError
from clprompt.system.files import AppendOnlyFile

RECORDS = "metrics.jsonl"

Record = dict[str, Any]


class Records:
    """`metrics.jsonl` of a run folder.

    Args:
        folder: the run folder; the file has been cut back, see :func:`cut_back`.
        rows: the records that it holds, see :func:`read_records`.
    """

    def __init__(self, folder: Path, rows: Iterable[Record] = ()) -> None:
        self.rows = list(rows)
        self._file = AppendOnlyFile(folder / RECORDS)

    def append(self, record: Record) -> None:
        """Add a record of plain values, see :func:`jsonable`; other programs see it at once."""
        self._file.append((json.dumps(record, sort_keys=True, allow_nan=False) + "\n").encode())
        self._file.drain()
        self.rows.append(record)

    def flush(self) -> dict[str, int]:
        """Make everything durable; the file's size by its name."""
        return {RECORDS: self._file.sync()}

    def close(self) -> None:
        """Write what is pending and close the file; a second call does nothing."""
        self._file.close()


def read_records(folder: Path, size: int) -> list[Record]:
    """The records in the first bytes of a folder's `metrics.jsonl`.

    Raises:
        CheckpointError: there are no whole lines of JSON up to there.
    """
    if size == 0:
        return []
    path = folder / RECORDS
    try:
        with open(path, "rb") as file:
            data = file.read(size)
        if not data.endswith(b"\n"):
            raise ValueError("not at the end of a line")
        return [json.loads(line) for line in data.splitlines()]
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} cannot be read up to the checkpoint at byte {size}: {error}"
        ) from error


def jsonable(value: Any) -> Any:
    """Plain JSON values from numbers of numpy and torch too; what is not finite becomes None."""
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): jsonable(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(entry) for entry in value]
    if hasattr(value, "tolist"):  # arrays, tensors and their scalars
        return jsonable(value.tolist())
    raise TypeError(f"a record cannot hold a {type(value).__name__}: {value!r}")


# ---------------------------------------------------------------------------------- files that only grow


def growing_files(folder: Path, patterns: Iterable[str]) -> set[str]:
    """The files of a run folder that fit, as paths inside it with forward slashes."""
    return {path.relative_to(folder).as_posix() for pattern in patterns for path in folder.glob(pattern)}


def check_sizes(folder: Path, patterns: Iterable[str], sizes: Mapping[str, int]) -> None:
    """Refuse, before anything is cut, what a checkpoint of this folder cannot have recorded.

    Raises:
        CheckpointError: a recorded file fits no pattern, is missing, or is shorter than recorded.
    """
    patterns = list(patterns)
    for name, size in sizes.items():
        if not any(_fits(name, pattern) for pattern in patterns) or not isinstance(size, int) or size < 0:
            raise CheckpointError(
                f"{folder}: the checkpoint records {name!r} with size {size!r}: "
                "not ours, nor of a sink that is here"
            )
        path = folder / name
        if path.is_symlink() or not path.is_file():
            raise CheckpointError(f"{path} is missing, but the checkpoint recorded {size} bytes of it")
        present = path.stat().st_size
        if present < size:
            raise CheckpointError(
                f"{path} has {present} bytes, fewer than the {size} that the checkpoint recorded"
            )


def cut_back(folder: Path, patterns: Iterable[str], sizes: Mapping[str, int]) -> None:
    """Cut every file to its size at the checkpoint; files that it did not record go."""
    for name in growing_files(folder, patterns) - sizes.keys():
        (folder / name).unlink()
    for name, size in sizes.items():
        os.truncate(folder / name, size)


def _fits(name: str, pattern: str) -> bool:
    """Whether a path inside the folder fits, part by part."""
    parts, wanted = PurePosixPath(name).parts, PurePosixPath(pattern).parts
    pairs = zip(parts, wanted, strict=False)
    return len(parts) == len(wanted) and ".." not in parts and all(fnmatchcase(*pair) for pair in pairs)
