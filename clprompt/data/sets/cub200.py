"""Caltech-UCSD Birds 200-2011 by its own files."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath

import numpy as np

from clprompt import schema
from clprompt.data.archives import Archive
from clprompt.data.bundle import DataBundle, takes_views
from clprompt.data.class_folders import found_bundle
from clprompt.data.lists import FoundImages, numbered_lines
from clprompt.data.normalisation import IMAGENET
from clprompt.data.reading import Reading, takes_reading
from clprompt.data.selection import Selection, takes_selection
from clprompt.errors import DataError
from clprompt.registry import datasets
from clprompt.schema import FilePath

_ARCHIVE = Archive(
    "CUB_200_2011",
    ("images", r"images\.txt", r"classes\.txt", r"image_class_labels\.txt", r"train_test_split\.txt"),
    "CUB_200_2011.tgz from https://data.caltech.edu/records/65de6-vp158",
)


@datasets.register("cub200", paper="Wah et al., 2011")
@schema.checked
@takes_views(normalisation=IMAGENET)
@takes_selection(but=("test_fraction",))
@takes_reading()
def cub200(
    *,
    path: FilePath = "data/CUB_200_2011",
    selection: Selection,
    reading: Reading,
) -> DataBundle:
    """CUB-200-2011: 200 kinds of birds, 5994 + 5794 images by the authors' split.

    PILOT distributes another split of the same images in train/ and test/, which ``imagefolder`` reads.

    Args:
        path: the folder CUB_200_2011 of the archive, or the one that holds it.
        classes: the classes to keep: names, or class ids such as 0-19.
        train_per_class: at most so many training images of each class.
        test_per_class: at most so many test images of each class.
        split_seed: decides which images those are.

    Raises:
        DataError: the data is not there, its files contradict one another, or an image cannot be read.
    """
    return found_bundle(
        "cub200",
        _images(_ARCHIVE.top("cub200", path)),
        selection,
        reading,
    )


def _images(top: Path) -> FoundImages:
    images = _table(top / "images.txt", "the path of an image")
    classes = _table(top / "classes.txt", "the name of a class")
    labels = _table(top / "image_class_labels.txt", "a class of classes.txt", set(classes))
    trains = _table(top / "train_test_split.txt", "0 or 1", {"0", "1"})
    paths = []
    for path, place in images.values():
        if ".." in PurePosixPath(path).parts or PurePosixPath(path).is_absolute() or "\0" in path:
            raise DataError(f"{place}: {path!r:.80} leads out of images/")
        paths.append(str(top / "images" / path))
    for file, table in (("image_class_labels.txt", labels), ("train_test_split.txt", trains)):
        if other := sorted(images.keys() ^ table.keys(), key=int):
            where = "images.txt" if other[0] in table else file
            raise DataError(f"{top / where}: there is no image {other[0]}, which the other files have")
    order = sorted(classes, key=int)
    return FoundImages(
        paths,
        [order.index(labels[number][0]) for number in images],
        np.array([trains[number][0] == "0" for number in images], dtype=bool),
        names=[classes[number][0] for number in order],
        places=[place for _, place in images.values()],
    )


def _table(file: Path, what: str, allowed: set[str] | None = None) -> dict[str, tuple[str, str]]:
    """What a file says of each number, and the place of that line."""
    table: dict[str, tuple[str, str]] = {}
    for place, line in numbered_lines(file):
        match = re.fullmatch(r"(\d{1,9}) +(\S.*)", line)
        if match is None or (allowed is not None and match[2] not in allowed):
            raise DataError(f"{place}: it must be a number and {what}, got {line[:60]!r}")
        if match[1] in table:
            raise DataError(f"{place}: the number {match[1]} stands in {table[match[1]][1]}, too")
        table[match[1]] = match[2], place
    return table
