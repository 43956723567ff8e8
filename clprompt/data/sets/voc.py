"""PASCAL VOC 2007 with its label sets: multi-hot targets, uint8 [n, C]."""

from __future__ import annotations

import glob
import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from clprompt import schema
from clprompt.data.bundle import DataBundle, assemble_set_files, takes_views
from clprompt.data.names import class_name
from clprompt.data.reading import Reading, takes_reading
from clprompt.data.selection import Classes
from clprompt.errors import DataError, tell
from clprompt.registry import datasets
from clprompt.schema import FilePath


@datasets.register("voc2007", paper="Everingham et al., IJCV 2010")
@schema.checked
@takes_views(augment="standard")
@takes_reading(but=("cache",))
def voc2007(
    *,
    path: FilePath = "data/VOCdevkit/VOC2007",
    train: str = "trainval",
    test: str = "test",
    classes: Classes | None = None,
    reading: Reading,
) -> DataBundle:
    """PASCAL VOC by its image-set files: 20 classes in alphabetical order; "difficult" objects are absent.

    Args:
        path: folder with ImageSets/Main and JPEGImages.
        train: name of the image set to train on.
        test: name of the image set to test on.
        classes: the classes to keep, in this order: names, or positions such as 0-19; other labels are
            dropped, and images that are left without one.

    Raises:
        DataError: a missing file, a line of another form, an image with both flags, files that list other
            images than one another, a part without any label, an image that cannot be read.
    """
    folder = Path(path) / "ImageSets" / "Main"
    suffix = f"_{train}.txt"
    files = [file.name for file in folder.glob(f"*{glob.escape(suffix)}") if not file.name.startswith(".")]
    stems = sorted(name.removesuffix(suffix) for name in files if name != suffix)
    if not stems:
        raise DataError(f"{folder} has no image sets *{suffix}")
    for one, other in itertools.pairwise(sorted(stems, key=class_name)):
        if class_name(one) == class_name(other):
            raise DataError(f'{folder}: two files *{suffix} are those of the class "{class_name(one)}"')
    (paths, hot), (more, more_hot) = (_read_voc(Path(path), stems, part) for part in (train, test))
    is_test = np.arange(len(paths) + len(more)) >= len(paths)
    return assemble_set_files(
        "voc2007",
        paths + more,
        np.concatenate([hot, more_hot]),
        is_test,
        classes=classes,
        reading=reading,
        names=stems,
    )


def _read_voc(root: Path, stems: Sequence[str], part: str) -> tuple[list[str], np.ndarray]:
    """Paths of the images of a part, and their label sets [n, C]."""
    order: list[str] | None = None
    columns = []
    for stem in stems:
        file = root / "ImageSets" / "Main" / f"{stem}_{part}.txt"
        flags = _flags(file)
        order = list(flags) if order is None else order
        other = sorted(set(order) ^ flags.keys())
        if other:
            raise DataError(
                f"{file} lists other images than the file of class {stems[0]}: {other[0]} is in one of them"
            )
        columns.append([flags[image] == 1 for image in order])
    paths = [str(root / "JPEGImages" / f"{image}.jpg") for image in order or []]
    return paths, np.array(columns, dtype=np.uint8).T


def _flags(file: Path) -> dict[str, int]:
    """1, 0 or -1 of each image."""
    if file.exists() and not file.is_file():
        raise DataError(f"{file}: it is not a file")
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise DataError(f"{file}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: this is not a text file in UTF-8") from error
    flags: dict[str, int] = {}
    again = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        words = line.split()
        if len(words) != 2 or words[1] not in ("1", "0", "-1", "+1") or "\0" in line:
            raise DataError(
                f"{file}, line {number}: every line must be an image and 1, 0 or -1, got {line[:60]!r}"
            )
        image, flag = words[0], int(words[1])
        if ".." in Path(image).parts or Path(image).is_absolute():
            raise DataError(f"{file}, line {number}: the image {image} leads out of the folder JPEGImages")
        if flags.get(image, flag) != flag:
            raise DataError(f"{file}, line {number}: the image {image} has {flag}, and {flags[image]} above")
        if image in flags:
            again.append(number)
        flags[image] = flag
    if again:
        tell(f"{file}: {len(again)} of {len(lines)} lines repeat an earlier one; the first: line {again[0]}")
    return flags
