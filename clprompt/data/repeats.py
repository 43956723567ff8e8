"""Images that a data set lists more than once: in both of its parts, or with labels that differ."""

from __future__ import annotations

import functools
import hashlib
import itertools
import os
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import numpy as np

from clprompt.data.images import ImageArray, ImageBytes, ImageFiles, ImageSource, Joined, Selected
from clprompt.errors import tell


class Identity(NamedTuple):
    """What tells one image from the others.

    Attributes:
        key: equal where two entries are one image: a file's resolved path, or a digest of an array's bytes.
        name: what messages call the entry.
    """

    key: Hashable
    name: str


@functools.singledispatch
def identities(load: Callable[[int], Any], indices: np.ndarray) -> list[Identity]:
    """The identity of some images of a loader; none of one that does not know what its images are made of."""
    return []


@identities.register
def _(load: ImageFiles, indices: np.ndarray) -> list[Identity]:
    paths = [load.paths[index] for index in indices]
    return list(map(Identity, resolved(paths), paths))


@identities.register
def _(load: ImageBytes, indices: np.ndarray) -> list[Identity]:
    files = (load.data[load.offsets[index] : load.offsets[index + 1]] for index in indices)
    return [
        Identity(_digest(file), f"image {index}") for file, index in zip(files, indices.tolist(), strict=True)
    ]


@identities.register
def _(load: ImageArray, indices: np.ndarray) -> list[Identity]:
    return [Identity(_digest(load.images[index].numpy()), f"image {index}") for index in indices.tolist()]


@identities.register
def _(load: Selected, indices: np.ndarray) -> list[Identity]:
    return identities(load.load, load.indices[indices])


@identities.register
def _(load: Joined, indices: np.ndarray) -> list[Identity]:
    part_of, positions = load.places(indices)
    each = [iter(identities(part, positions[part_of == number])) for number, part in enumerate(load.loads)]
    return [
        Identity(identity.key, f"{identity.name} of part {number + 1}")
        for number in part_of.tolist()
        for identity in itertools.islice(each[number], 1)
    ]


def _digest(pixels: np.ndarray) -> bytes:
    return hashlib.blake2b(np.ascontiguousarray(pixels).data, digest_size=16).digest()


def resolved(paths: Sequence[str]) -> list[str]:
    """Paths without links or detours, as ``os.path.realpath`` gives them, each folder looked up once."""
    folders: dict[str, tuple[str, set[str]]] = {}
    places = []
    for path in paths:
        folder, file = os.path.split(path)
        if folder not in folders:
            folders[folder] = (os.path.realpath(folder), _links(folder))
        place, links = folders[folder]
        places.append(os.path.realpath(path) if file in links else f"{place}/{file}")
    return places


def _links(folder: str) -> set[str]:
    """The symbolic links in a folder; none where it cannot be read."""
    try:
        with os.scandir(folder or ".") as entries:
            return {entry.name for entry in entries if entry.is_symlink()}
    except OSError:
        return set()


def merged(
    name: str, paths: Sequence[str], hot: np.ndarray, is_test: np.ndarray
) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Label sets of files with one entry for each file of each part, where it was first, its labels joined.

    Args:
        name: of the data set; messages begin with it.
        paths: of the files, n.
        hot: their label sets, multi-hot 0/1, [n, C].
        is_test: which of them are test images, bool [n].
    """
    rows: dict[tuple[str, bool], int] = {}
    joined = hot.copy()
    again = []
    for row, key in enumerate(zip(resolved(paths), is_test.tolist(), strict=True)):
        first = rows.setdefault(key, row)
        if first != row:
            again.append(paths[row])
            joined[first] |= hot[row]
    if again:
        count = f"{len(again)} of {len(paths)}"
        tell(f"{name}: {count} entries name an image again, their labels joined; the first: {again[0]}")
    keep = sorted(rows.values())
    return [paths[row] for row in keep], joined[keep], is_test[keep]


def tell_repeats(name: str, train: ImageSource, test: ImageSource) -> None:
    """Say how many test images are training images, and how many images come again in one part.

    Args:
        name: of the data set; messages begin with it.
        train: training images with labels or label sets.
        test: test images likewise.
    """
    shared: list[tuple[str, str]] = []
    again: list[tuple[str, str]] = []
    otherwise: list[tuple[str, str]] = []
    trained: dict[Hashable, tuple[str, Any]] = {}
    for part in (train, test):
        known: dict[Hashable, tuple[str, Any]] = {}
        for row, (key, entry) in enumerate(identities(part.load, np.arange(len(part)))):
            target = part.targets[row].tolist()
            first, label = trained.get(key) or known.get(key) or (entry, target)
            pair = (entry, first)
            if part is test and key in trained:
                shared.append(pair)
            elif key in known and label == target:
                again.append(pair)
            if label != target:
                otherwise.append(pair)
            known.setdefault(key, (entry, target))
        trained = known
    count = len(train) + len(test)
    for pairs, what in (
        (shared, f"of {len(test)} test images are training images as well"),
        (otherwise, f"of {count} images come again with another label"),
        (again, f"of {count} images come again with the same label"),
    ):
        if pairs:
            entry, first = pairs[0]
            also = "" if entry == first else f", which is {first}"
            tell(f"{name}: {len(pairs)} {what}; the first: {entry}{also}")
