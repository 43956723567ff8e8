"""What images and labels are known by, so that a run that goes on can tell whether they are still the same.

A fingerprint is a mapping of what is covered (``names``, ``sizes``, ``contents``, ...) to a checksum. It
depends neither on the machine nor on the folder in which the data lie:

* of images in memory, all pixels (or, of encoded ones, all bytes);
* of image files, their names below the folder that all have in common, and the sizes of all of them; of the
  contents, those of at most ``FILES`` files, evenly spread, and of each of those its first and last ``ENDS``
  bytes. To read every byte of a large data set would take longer than many a run.

A loader of images gives its own by a method ``fingerprint(indices)``; images of a loader without one are not
covered, but their number and labels are.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

#: Of how many files the contents are looked at, and how many bytes at either end of each.
FILES, ENDS = 2000, 2**15
_ROWS = 1024  # images that are looked at together
_THREADS = 16  # files that are asked for at a time, as a disk or a server may be far away

Fingerprint = dict[str, Any]


def checksum(parts: Iterable[bytes | np.ndarray]) -> str:
    """SHA-256 over byte strings and arrays, with the kind and shape of each array."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            digest.update(f"{part.dtype.str}{list(part.shape)}".encode())
            digest.update(np.ascontiguousarray(part).reshape(-1).view(np.uint8).data)
        else:
            digest.update(part)
    return digest.hexdigest()


def of_images(load: Callable[[int], Any], indices: np.ndarray) -> Fingerprint:
    """What a loader tells of these of its images, in this order; nothing where it has no such method."""
    method = getattr(load, "fingerprint", None)
    return dict(method(indices)) if callable(method) else {}


def of_rows(rows: Callable[[np.ndarray], np.ndarray], indices: np.ndarray) -> Fingerprint:
    """Of images that lie in memory.

    Args:
        rows: indices -> an array of those images, [n, ...].
        indices: of the images.
    """
    parts = (rows(indices[start : start + _ROWS]) for start in range(0, len(indices), _ROWS))
    return {"contents": checksum(parts)}


def of_files(paths: Sequence[str]) -> Fingerprint:
    """Of image files; see the head of this module."""
    start = os.path.commonprefix(paths).rfind("/") + 1  # noqa: RUF071 - cut at the end of a folder's name
    with ThreadPoolExecutor(_THREADS) as pool:
        parts = [paths[i : i + _ROWS] for i in range(0, len(paths), _ROWS)]
        sizes = np.concatenate([np.empty(0, np.int64), *pool.map(_sizes, parts)])
        chosen = np.unique(np.linspace(0, len(paths) - 1, min(len(paths), FILES)).astype(np.int64))
        contents = pool.map(_ends, [paths[i] for i in chosen], sizes[chosen].tolist())
        return {
            "names": checksum(os.fsencode(path[start:]) + b"\0" for path in paths),
            "sizes": checksum([sizes]),
            "contents": checksum(contents),
        }


def of_encoded(read: Callable[[int], bytes], indices: np.ndarray) -> Fingerprint:
    """Of image files that something else holds; of at most ``FILES`` the size, and both ends of the contents.

    Args:
        read: index -> the bytes of a file.
        indices: of the images.
    """
    chosen = np.unique(np.linspace(0, len(indices) - 1, min(len(indices), FILES)).astype(np.int64))
    files = (read(int(index)) for index in indices[chosen])
    return {"contents": checksum(b"%d\0" % len(file) + file[:ENDS] + file[-ENDS:] for file in files)}


def joined(parts: Iterable[Fingerprint]) -> Fingerprint:
    """The fingerprint of several, by what each covers."""
    kinds: dict[str, list[bytes]] = {}
    for number, part in enumerate(parts):
        for kind, value in part.items():
            kinds.setdefault(kind, []).append(f"{number} {value}\n".encode())
    return {kind: checksum(values) for kind, values in kinds.items()}


def _sizes(paths: Sequence[str]) -> np.ndarray:
    """Sizes of files, int64 [n]; -1 where there is none, and of what is no file."""
    sizes = []
    for path in paths:
        try:
            facts = os.stat(path)
        except (OSError, ValueError):
            sizes.append(-1)
        else:
            sizes.append(facts.st_size if stat.S_ISREG(facts.st_mode) else -1)
    return np.array(sizes, dtype=np.int64)


def _ends(path: str, size: int) -> bytes:
    if size < 0:
        return b""
    try:
        with open(path, "rb") as file:
            if size <= 2 * ENDS:
                return file.read()
            first = file.read(ENDS)
            file.seek(size - ENDS)
            return first + file.read()
    except OSError:
        return b""
