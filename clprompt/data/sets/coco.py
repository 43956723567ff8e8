"""COCO with its label sets: multi-hot targets, uint8 [n, C]."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from clprompt import schema
from clprompt.data.bundle import DataBundle, assemble_set_files, takes_views
from clprompt.data.names import class_name
from clprompt.data.reading import Reading, takes_reading
from clprompt.data.selection import Classes
from clprompt.errors import DataError
from clprompt.plain_json import once_each
from clprompt.registry import datasets
from clprompt.schema import FilePath


@datasets.register("coco", paper="Lin et al., ECCV 2014")
@schema.checked
@takes_views(augment="standard")
@takes_reading(but=("cache",))
def coco(
    *,
    path: FilePath = "data/coco",
    train_annotations: str = "annotations/instances_train2014.json",
    test_annotations: str = "annotations/instances_val2014.json",
    train_images: str = "train2014",
    test_images: str = "val2014",
    classes: Classes | None = None,
    reading: Reading,
) -> DataBundle:
    """COCO's images and its 80 object categories in alphabetical order; images without an object are kept.

    Any annotation is a label, that of a crowd, too. Categories without an annotation in either file are left
    out, and a note names them.

    Args:
        path: folder that holds what the other arguments name, relative to it.
        train_annotations: JSON file of instances.
        test_annotations: JSON file of instances; its categories are those of the training images by name.
        train_images: folder of training images; file names lead to no other.
        test_images: folder of test images.
        classes: the classes to keep, in this order: names, or positions such as 0-19; other labels are
            dropped, and images that are left without one.

    Raises:
        DataError: a missing file, one of another content, equal ids of images or of categories, an annotation
            of something that the file does not list, a part without any label, an image that cannot be read.
    """
    root = Path(path)
    train = _read_coco(root / train_annotations, root / train_images)
    test = _read_coco(root / test_annotations, root / test_images)
    names = sorted({*train.categories, *test.categories})
    hot = np.concatenate([part.multi_hot(names) for part in (train, test)])
    is_test = np.arange(len(hot)) >= len(train.paths)
    return assemble_set_files(
        "coco",
        train.paths + test.paths,
        hot,
        is_test,
        classes=classes,
        reading=reading,
        names=names,
    )


@dataclass(frozen=True)
class _Instances:
    """What a file of instances says.

    Attributes:
        paths: of the images, by their ids.
        labels: row of an image and name of its category, one of each annotation.
        categories: their names.
    """

    paths: list[str]
    labels: list[tuple[int, str]]
    categories: list[str]

    def multi_hot(self, names: list[str]) -> np.ndarray:
        """Label sets, uint8 [n, C], of classes in this order."""
        column = {name: c for c, name in enumerate(names)}
        hot = np.zeros((len(self.paths), len(names)), dtype=np.uint8)
        for row, name in self.labels:
            hot[row, column[name]] = 1
        return hot


def _read_coco(file: Path, folder: Path) -> _Instances:
    entries = _load(file)
    categories: dict[int, str] = {}
    for place, entry in _each(file, entries, "categories"):
        number = _id(place, entry, "id")
        if number in categories:
            raise DataError(f"{place}: the id {number} is that of another category, too")
        categories[number] = class_name(_text(place, entry, "name"))
    files: dict[int, str] = {}
    for place, entry in _each(file, entries, "images"):
        number = _id(place, entry, "id")
        if number in files:
            raise DataError(f"{place}: the id {number} is that of another image, too")
        files[number] = _inside(place, folder, _text(place, entry, "file_name"))
    row = {number: position for position, number in enumerate(sorted(files))}
    labels = []
    for place, entry in _each(file, entries, "annotations"):
        image, category = _id(place, entry, "image_id"), _id(place, entry, "category_id")
        if image not in row or category not in categories:
            what = f"image {image}" if image not in row else f"category {category}"
            raise DataError(f"{place}: an annotation names {what}, which the file does not list")
        labels.append((row[image], category))
    _check_names(file, {number: categories[number] for number in sorted({number for _, number in labels})})
    named = [(position, categories[number]) for position, number in labels]
    return _Instances([files[number] for number in sorted(files)], named, list(categories.values()))


def _load(file: Path) -> dict[str, Any]:
    if file.exists() and not file.is_file():
        raise DataError(f"{file}: it is not a file")
    try:
        held = json.loads(
            file.read_text(encoding="utf-8-sig"),
            object_pairs_hook=once_each('"{}" stands twice in an object'),
        )
    except OSError as error:
        raise DataError(f"{file}: {error.strerror or error}") from error
    except MemoryError as error:
        raise DataError(f"{file}: memory is short for this file") from error
    except RecursionError as error:
        raise DataError(f"{file} is not a COCO file of instances: brackets stand too deep in it") from error
    except ValueError as error:
        raise DataError(f"{file} is not a COCO file of instances: {error}") from error
    if not isinstance(held, dict):
        raise DataError(f"{file} is not a COCO file of instances: it must hold an object, not {_kind(held)}")
    return held


def _each(file: Path, held: dict[str, Any], key: str) -> list[tuple[str, dict[str, Any]]]:
    """The entries of a list, each with its place."""
    if key not in held:
        lists = ", ".join(sorted(held)) or "nothing"
        raise DataError(f"{file} is not a COCO file of instances: it has no {key}; it holds {lists}")
    if not isinstance(held[key], list):
        raise DataError(f"{file}: {key} must be a list, not {_kind(held[key])}")
    entries = []
    for position, entry in enumerate(held[key]):
        place = f"{file}, {key}[{position}]"
        if not isinstance(entry, dict):
            raise DataError(f"{place} must be an object, not {_kind(entry)}")
        entries.append((place, entry))
    return entries


def _kind(value: Any) -> str:
    kinds = {dict: "an object", list: "a list", str: "text", bool: "a truth value", type(None): "null"}
    return kinds.get(type(value), "a number")


def _id(place: str, entry: dict[str, Any], key: str) -> int:
    """An integer; exporters write it as text or with a point, too."""
    value = _member(place, entry, key)
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if (isinstance(value, float) and value.is_integer()) or (
        isinstance(value, str) and re.fullmatch(r"-?\d{1,18}", value)
    ):
        return int(value)
    raise DataError(f"{place}: {key} must be an integer, got {json.dumps(value)[:60]}")


def _text(place: str, entry: dict[str, Any], key: str) -> str:
    value = _member(place, entry, key)
    text = str(value) if isinstance(value, str | int) and not isinstance(value, bool) else ""
    # half a character (a lone surrogate) cannot be written anywhere
    if not text.strip() or any(c in "\0\r\n" or "\ud800" <= c <= "\udfff" for c in text):
        raise DataError(f"{place}: {key} must be text in one line, got {json.dumps(value)[:60]}")
    return text


def _member(place: str, entry: dict[str, Any], key: str) -> Any:
    if key not in entry:
        raise DataError(f"{place}: there is no {key}; it holds {', '.join(sorted(entry)) or 'nothing'}")
    return entry[key]


def _inside(place: str, folder: Path, file: str) -> str:
    """The path of a file in a folder."""
    top = os.path.join(os.path.abspath(folder), "")
    if not os.path.normpath(os.path.join(top, file)).startswith(top):
        raise DataError(f"{place}: the file name {file} leads out of the folder of images {folder}")
    return str(folder / file)


def _check_names(file: Path, annotated: dict[int, str]) -> None:
    """Categories with annotations have names of their own; a group without any may be called as its class."""
    ids: dict[str, int] = {}
    for number, name in annotated.items():
        if name in ids:
            raise DataError(f'{file}: categories {ids[name]} and {number} are both called "{name}"')
        ids[name] = number
