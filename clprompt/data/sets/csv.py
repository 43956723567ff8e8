"""Images listed in a CSV file: with one label each, or with a label set."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import numpy as np

from clprompt.data.bundle import (
    Classes,
    DataBundle,
    OnBadImage,
    Selection,
    _from_paths,
    _image_source,
    _multi_hot,
    split_column,
)
from clprompt.data.transforms import Augment
from clprompt.errors import DataError
from clprompt.registry import datasets

# ----------------------------------------------------------------------------------------------------- csv


@datasets.register("csv")
def csv_file(
    *,
    path: str = "data.csv",
    test_path: str | None = None,
    root: str | None = None,
    test_fraction: float = 0.2,
    split_seed: int = 0,
    classes: Classes | None = None,
    train_per_class: int | None = None,
    test_per_class: int | None = None,
    on_bad_image: OnBadImage = "error",
    augment: Augment = "none",
    cache: bool = True,
) -> DataBundle:
    """A CSV file with columns path and label, and a column split (train, test, val) or a second file for the test.

    Labels are any text; where all are integers they are sorted as such. Without a split of either kind, test images
    are drawn from each class.

    Args:
        path: the file.
        test_path: a second file of the same columns, which is the test set.
        root: the folder that relative image paths start from; each file's own folder by default.
        test_fraction: share of each class that is the test set, where the data has no split.
        split_seed: decides which images those are, and those of the next two arguments.
        classes: the classes to keep: names, or positions in their order such as 0-19.
        train_per_class, test_per_class: at most so many images of each class.
        on_bad_image: "error" names an image that cannot be read; "skip" leaves it out.
        augment: "none", "standard", "autoaugment-cifar" or "autoaugment-imagenet".
        cache: keep prepared images in memory.

    Raises:
        DataError: a missing file or column, an empty cell, an image that cannot be read.
    """
    selection = Selection(
        classes=classes,
        train_per_class=train_per_class,
        test_per_class=test_per_class,
        test_fraction=test_fraction,
        split_seed=split_seed,
    )
    name = f"csv {path}"
    paths, labels, parts = _rows(path, "data.path", root)
    is_test = None
    if test_path is not None:
        if parts is not None:
            raise DataError(f"{path} has a column split: drop data.test_path, or the column")
        more, more_labels, _ = _rows(test_path, "data.test_path", root)
        is_test = np.arange(len(paths) + len(more)) >= len(paths)
        paths, labels = [*paths, *more], [*labels, *more_labels]
    elif parts is not None:
        is_test, used = split_column(parts, path)
        where = np.flatnonzero(used)
        paths, labels, is_test = [paths[i] for i in where], [labels[i] for i in where], is_test[where]
    return _from_paths(name, paths, labels, is_test, selection, on_bad_image, augment, cache)


def _rows(path: str, key: str, root: str | None) -> tuple[list[str], list[str], list[str] | None]:
    """Image paths, labels, and the split column if there is one."""
    if not os.path.isfile(path):
        raise DataError(f"{key}: there is no file {path}; it must be a CSV file with columns path and label")
    start = os.path.dirname(path) if root is None else root
    paths, labels, parts = [], [], []
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, skipinitialspace=True)
            columns = [column.strip() for column in reader.fieldnames or ()]
            reader.fieldnames = columns
            for column in ("path", "label"):
                if column not in columns:
                    found = ", ".join(columns) or "nothing"
                    raise DataError(
                        f'{path}: there is no column "{column}" in the first line, which holds: {found}'
                    )
            for row in reader:
                for column in ("path", "label"):
                    if not (row[column] or "").strip():
                        raise DataError(f"{path}, line {reader.line_num}: the {column} is missing")
                paths.append(os.path.join(start, row["path"].strip()))
                labels.append(row["label"].strip())
                parts.append(row.get("split") or "")
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: this is not a CSV file in UTF-8: {error}") from error
    if not paths:
        raise DataError(f"{path}: there is no image in it, only the line of column names")
    return paths, labels, parts if "split" in columns else None


@datasets.register("multi_label_csv")
def multi_label_csv(
    *,
    train: str,
    test: str,
    root: str | None = None,
    classes: list[str] | None = None,
    augment: Augment = "standard",
) -> DataBundle:
    """Own images from two CSV files with the header `path,label` and lines such as `a.jpg,cat;dog`.

    Args:
        train, test: the files; a line without labels is an image without labels.
        root: folder of relative paths; by default that of each file.
        classes: the class names in their order; null for all names of the training file, sorted.
        augment: "none" or "standard".
    """
    tables = {}
    for part, file in (("train", train), ("test", test)):
        paths, labels = _read_csv(Path(file), Path(root) if root else Path(file).parent)
        tables[part] = (Path(file), paths, labels)
    names = classes or sorted({name for given in tables["train"][2] for name in given})
    if not names:
        raise DataError(f"{train}: no line has a label")
    sources = {
        part: _image_source(
            paths,
            _multi_hot(labels, names, lambda row, file=file: f"{file}, line {row + 2}"),  # type: ignore[misc]
        )
        for part, (file, paths, labels) in tables.items()
    }
    return DataBundle(Path(train).stem, sources["train"], sources["test"], list(names), augment)


def _read_csv(file: Path, root: Path) -> tuple[list[Path], list[list[str]]]:
    try:
        with open(file, newline="", encoding="utf-8-sig") as stream:
            rows = list(csv.reader(stream))
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{file}: {getattr(error, 'strerror', None) or 'not a text file in UTF-8'}"
        ) from error
    if not rows or [cell.strip() for cell in rows[0]] != ["path", "label"]:
        raise DataError(f"{file}: the first line must be path,label")
    paths, labels = [], []
    for number, row in enumerate(rows[1:], start=2):
        if len(row) != 2:
            raise DataError(
                f"{file}, line {number}: must be a path and labels joined by ;, got {len(row)} cells"
            )
        paths.append(root / row[0].strip())
        labels.append([name.strip() for name in row[1].split(";") if name.strip()])
    missing = next((path for path in paths if not path.is_file()), None)
    if missing is not None:
        raise DataError(f"{file}: there is no image {missing}")
    if not paths:
        raise DataError(f"{file}: no image is listed")
    return paths, labels
