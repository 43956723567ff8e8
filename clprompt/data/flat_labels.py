"""The labels of images that lie in one folder without class folders, as the archives of ImageNet have them.

======================================= ====================================================================
val/val_annotations.txt                 Tiny ImageNet: a file's name, its class, a box; separated by tabs
LOC_val_solution.csv                    Kaggle's ImageNet: ImageId,PredictionString; class and box, repeated
ILSVRC2012_validation_ground_truth.txt  ImageNet's devkit: line n is the class of ILSVRC2012_val_0000000n.JPEG
======================================= ====================================================================

The devkit counts classes in an order of its own, not that of their names: its meta.mat says which is which.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from clprompt.errors import DataError

FILES = ("val_annotations.txt", "LOC_val_solution.csv", "ILSVRC2012_validation_ground_truth.txt")


@dataclass(frozen=True)
class FlatLabels:
    """The classes of images by their files' names.

    Attributes:
        file: that says it.
        classes: the name of a file without its extension -> its class.
    """

    file: Path
    classes: dict[str, str]


def flat_labels(folder: Path, root: Path) -> FlatLabels | None:
    """The labels of the images in a folder, from the first of ``FILES`` that is there; None where none is.

    Args:
        folder: that holds the images.
        root: of the data set. The files are looked for in both, in a devkit's folder there, and up to three
            folders above, where Kaggle's archive has them.

    Raises:
        DataError: a line that is not what it should be, or ids without meta.mat.
    """
    places = [folder, root, *root.resolve().parents[:3]]
    for place in places[:1]:
        if (file := place / FILES[0]).is_file():
            return FlatLabels(file, _annotations(file))
    for place in places:
        if (file := place / FILES[1]).is_file():
            return FlatLabels(file, _solution(file))
    for place in places:
        for file in (
            place / FILES[2],
            place / "data" / FILES[2],
            *sorted(place.glob(f"*devkit*/data/{FILES[2]}")),
        ):
            if file.is_file():
                return FlatLabels(file, _ground_truth(file))
    return None


def _lines(file: Path) -> Iterator[tuple[int, str]]:
    """The lines of a file that hold something, with their numbers."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"{file}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: this is not text in UTF-8: {error}") from error
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            yield number, line.strip()


def _annotations(file: Path) -> dict[str, str]:
    classes: dict[str, str] = {}
    for number, line in _lines(file):
        name, *rest = line.split("\t")
        if not rest:
            raise DataError(
                f'{file}, line {number}: it must be a file\'s name, a tab and a class, got "{line[:80]}"'
            )
        _add(classes, Path(name.strip()).stem, rest[0].strip(), file, number)
    return classes


def _solution(file: Path) -> dict[str, str]:
    classes: dict[str, str] = {}
    for number, line in _lines(file):
        cells = next(csv.reader([line]))
        if number == 1 and cells[0].strip() == "ImageId":
            continue
        words = cells[1].split() if len(cells) == 2 else []
        if not words or len(words) % 5:
            raise DataError(
                f"{file}, line {number}: it must be an ImageId, a comma, and a class and a box of four "
                f'numbers once or more, got "{line[:80]}"'
            )
        for word in words[::5]:
            _add(classes, Path(cells[0].strip()).stem, word, file, number)
    return classes


def _add(classes: dict[str, str], stem: str, name: str, file: Path, number: int) -> None:
    if classes.setdefault(stem, name) != name:
        raise DataError(f"{file}, line {number}: {stem} is of class {name}, and of {classes[stem]} before")


def _ground_truth(file: Path) -> dict[str, str]:
    lines = list(_lines(file))
    names = None if all(re.fullmatch(r"n\d{8}", line) for _, line in lines) else _synsets(file)
    classes = {}
    for position, (number, line) in enumerate(lines, start=1):
        name = line if names is None else names.get(line)
        if name is None:
            raise DataError(
                f'{file}, line {number}: there is no class "{line[:80]}" in {file.parent / "meta.mat"}'
            )
        classes[f"ILSVRC2012_val_{position:08d}"] = name
    return classes


def _synsets(file: Path) -> dict[str, str]:
    """The class of each id of the devkit, from the table beside the labels."""
    from scipy.io import loadmat

    table = file.parent / "meta.mat"
    if not table.is_file():
        raise DataError(
            f"{file} holds the devkit's ids, whose order is not that of the class folders: meta.mat, "
            "which the devkit has beside it, is missing"
        )
    try:
        synsets = loadmat(table, squeeze_me=True)["synsets"]
        return {
            str(int(number)): str(name)
            for number, name in zip(synsets["ILSVRC2012_ID"], synsets["WNID"], strict=True)
        }
    except Exception as error:  # damaged files fail in scipy, zlib and numpy in ways of their own
        text = " ".join(str(error).split())[:200]
        raise DataError(f"{table} is not the table of classes of ImageNet's devkit: {text}") from error
