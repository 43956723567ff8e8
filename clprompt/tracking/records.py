"""The records of a run, its one source, and the files of a run folder that only grow.

`metrics.jsonl` is a JSON object a line, without times, so that two runs of one configuration are equal byte
for byte. A resumed run is exact because every file that only grows is cut back to the size that it had at the
checkpoint, and is refused where its bytes up to there are others than they were.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any

from clprompt.errors import CheckpointError, RunFolderError
from clprompt.system.documents import parse_lines
from clprompt.system.files import AppendOnlyFile, open_regular, read_bytes

RECORDS = "metrics.jsonl"

_CHUNK = 1 << 20  # bytes that are read at a time

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
        data = read_bytes(path, size)
        if not data.endswith(b"\n"):
            raise ValueError("not at the end of a line")
        return parse_lines(data)
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


class Prefixes:
    """Checksums of files that only grow, up to a size, each byte read once.

    Args:
        folder: the run folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._digests: dict[str, Any] = {}
        self._sizes: dict[str, int] = {}

    def checksums(self, sizes: Mapping[str, int]) -> dict[str, str]:
        """SHA-256 over the first bytes of each file; no size may be smaller than it was at the last call.

        Raises:
            RunFolderError: a file is gone, or shorter.
        """
        for name, size in sizes.items():
            digest = self._digests.setdefault(name, hashlib.sha256())
            self._read(name, self._sizes.get(name, 0), size, digest)
            self._sizes[name] = size
        return {name: self._digests[name].hexdigest() for name in sizes}

    def _read(self, name: str, start: int, end: int, digest: Any) -> None:
        """Hash a part of a file."""
        path = self.folder / name
        try:
            with open_regular(path) as file:
                if os.fstat(file.fileno()).st_size < end or end < start:
                    raise RunFolderError(f"{path} was cut while the run was writing it")
                file.seek(start)
                while file.tell() < end:
                    digest.update(file.read(min(end - file.tell(), _CHUNK)))
        except FileNotFoundError:
            raise RunFolderError(f"{path} was removed while the run was writing it") from None
        except OSError as error:
            raise RunFolderError(f"{path} cannot be read: {error.strerror or error}") from error


def check_checksums(
    folder: Path, sizes: Mapping[str, int], now: Mapping[str, str], then: Mapping[str, str]
) -> None:
    """Refuse files whose first bytes are others than when the checkpoint was written.

    Args:
        folder: the run folder.
        sizes: how many bytes of each file the checkpoint recorded.
        now: the checksums of those.
        then: those that the checkpoint recorded.

    Raises:
        CheckpointError: a file whose checksum is another, or that has none.
    """
    for name, size in sizes.items():
        if now[name] != then.get(name):
            raise CheckpointError(
                f"{folder / name} was changed or damaged: its first {size} bytes are not those that the "
                "checkpoint recorded; put the file back as it was, or start a new run"
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
