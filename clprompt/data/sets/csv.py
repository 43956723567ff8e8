"""Images listed in a CSV file, each with one label (``csv``) or a set of labels (``multi_label_csv``)."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from clprompt import schema
from clprompt.data.bundle import DataBundle, OnBadImage, assemble, assemble_sets, readable_files
from clprompt.data.images import Selected
from clprompt.data.selection import Classes, Limit, Selection, Share, split_column
from clprompt.data.transforms import Augment
from clprompt.errors import DataError, nearest
from clprompt.registry import datasets


@datasets.register("csv")
@schema.checked
def csv_file(
    *,
    path: str = "data.csv",
    test_path: str | None = None,
    root: str | None = None,
    test_fraction: Share = 0.2,
    split_seed: int = 0,
    classes: Classes | None = None,
    train_per_class: Limit | None = None,
    test_per_class: Limit | None = None,
    on_bad_image: OnBadImage = "error",
    augment: Augment = "none",
    cache: bool = True,
) -> DataBundle:
    """A CSV file with columns path and label, and a column split (train, test, val) or a file for the test.

    Labels are any text; where all are integers they are sorted as such. Without a split of either kind, test
    images are drawn from each class.

    Args:
        path: the file.
        test_path: a second file of the same columns, which is the test set.
        root: the folder that relative image paths start from; each file's own folder by default.
        test_fraction: share of each class that is the test set, where the data has no split.
        split_seed: decides which images those are, and those of ``train_per_class`` and ``test_per_class``.
        classes: the classes to keep: names, or positions in their order such as 0-19.
        train_per_class: at most so many training images of each class.
        test_per_class: at most so many test images of each class.
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
    table = _read(path, test_path, root, label_sets=False)
    load, use = readable_files(name, table.paths, on_bad_image)
    return assemble(
        name,
        Selected(load, use),
        np.asarray(table.labels)[use],
        None if table.is_test is None else table.is_test[use],
        selection,
        augment=augment,
        cache=cache,
    )


@datasets.register("multi_label_csv", renamed={"train": "path", "test": "test_path"})
@schema.checked
def multi_label_csv(
    *,
    path: str = "data.csv",
    test_path: str | None = None,
    root: str | None = None,
    test_fraction: Share = 0.2,
    split_seed: int = 0,
    classes: Classes | None = None,
    train_per_class: Limit | None = None,
    test_per_class: Limit | None = None,
    on_bad_image: OnBadImage = "error",
    augment: Augment = "standard",
    cache: bool = True,
) -> DataBundle:
    """The files of ``csv`` with a set of labels in each line, joined by semicolons: `a.jpg,cat;dog`.

    A line that ends in its comma is an image without labels. Class names are those of the training images,
    sorted. Without a split of either kind, test images are drawn from all; one of each class stays to train.

    Args:
        path: the file.
        test_path: a second file of the same columns, which is the test set.
        root: the folder that relative image paths start from; each file's own folder by default.
        test_fraction: share of the images that is the test set, where the data has no split.
        split_seed: decides which images those are, and those of ``train_per_class`` and ``test_per_class``.
        classes: the classes to keep, in this order: names, or positions such as 0-19; other labels are
            dropped, and images that are left without one.
        train_per_class: at most so many training images of each class; an image is taken where one of its
            labels has room for it, images without labels are not.
        test_per_class: the same for test images.
        on_bad_image: "error" names an image that cannot be read; "skip" leaves it out.
        augment: "none", "standard", "autoaugment-cifar" or "autoaugment-imagenet"; "standard" by default,
            where ``csv`` has "none".
        cache: keep prepared images in memory.

    Raises:
        DataError: a missing file, column or cell, a test label that no training image has, an image that
            cannot be read.
    """
    selection = Selection(
        classes=classes,
        train_per_class=train_per_class,
        test_per_class=test_per_class,
        test_fraction=test_fraction,
        split_seed=split_seed,
    )
    name = f"multi_label_csv {path}"
    table = _read(path, test_path, root, label_sets=True)
    load, use = readable_files(name, table.paths, on_bad_image)
    table = table.only(use)
    hot, names = _multi_hot(table)
    if not names:
        raise DataError(f"{path}: no line has a label")
    return assemble_sets(
        name,
        Selected(load, use),
        hot,
        table.is_test,
        selection,
        augment=augment,
        cache=cache,
        names=names,
    )


@dataclass(frozen=True)
class _Table:
    """The rows of one or two files.

    Attributes:
        paths: of the images.
        labels: the cells as they stand in the file.
        places: "train.csv, line 3".
        is_test: which rows are test images, bool [n]; None where nothing says so.
    """

    paths: list[str]
    labels: list[str]
    places: list[str]
    is_test: np.ndarray | None

    def only(self, rows: np.ndarray) -> _Table:
        """Some of the rows."""
        return _Table(
            paths=[self.paths[row] for row in rows],
            labels=[self.labels[row] for row in rows],
            places=[self.places[row] for row in rows],
            is_test=None if self.is_test is None else self.is_test[rows],
        )


def _read(path: str, test_path: str | None, root: str | None, *, label_sets: bool) -> _Table:
    """The rows that are used, of one file, or of one for each part."""
    table, parts = _rows(path, "data.path", root, label_sets)
    if test_path is not None:
        if parts is not None:
            raise DataError(f"{path} has a column split: drop data.test_path, or the column")
        more, _ = _rows(test_path, "data.test_path", root, label_sets)
        return _Table(
            table.paths + more.paths,
            table.labels + more.labels,
            table.places + more.places,
            np.arange(len(table.paths) + len(more.paths)) >= len(table.paths),
        )
    if parts is None:
        return table
    is_test, used = split_column(parts, path)
    return replace(table, is_test=is_test).only(np.flatnonzero(used))


def _rows(path: str, key: str, root: str | None, label_sets: bool) -> tuple[_Table, list[str] | None]:
    """The rows of a file, and its split column if there is one."""
    if not os.path.isfile(path):
        raise DataError(f"{key}: there is no file {path}; it must be a CSV file with columns path and label")
    start = os.path.dirname(path) if root is None else root
    table, parts = _Table([], [], [], None), []
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, skipinitialspace=True)
            columns = [column.strip() for column in reader.fieldnames or ()]
            reader.fieldnames = columns
            for column in ("path", "label"):
                if column not in columns:
                    held = ", ".join(columns) or "nothing"
                    raise DataError(
                        f'{path}: there is no column "{column}" in the first line, which holds: {held}'
                    )
            for row in reader:
                place = f"{path}, line {reader.line_num}"
                _check_row(row, place, label_sets)
                table.paths.append(os.path.join(start, row["path"].strip()))
                table.labels.append(row["label"].strip())
                table.places.append(place)
                parts.append(row.get("split") or "")
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: this is not a CSV file in UTF-8: {error}") from error
    if not table.paths:
        raise DataError(f"{path}: there is no image in it, only the line of column names")
    return table, parts if "split" in columns else None


def _check_row(row: Mapping[Any, Any], place: str, label_sets: bool) -> None:
    if not (row["path"] or "").strip():
        raise DataError(f"{place}: the path is missing")
    if label_sets and None in row:  # cells beyond the last column: labels that were joined by commas
        raise DataError(f"{place}: there are more cells than columns; labels are joined by ;")
    if label_sets and row["label"] is None:
        raise DataError(f"{place}: the label is missing; an image without labels ends in a comma")
    if not label_sets and not (row["label"] or "").strip():
        raise DataError(f"{place}: the label is missing")


def _multi_hot(table: _Table) -> tuple[np.ndarray, list[str]]:
    """Label sets uint8 [n, C], and the names of the classes, which are those of the training images, sorted.

    Raises:
        DataError: a label of a test image that no training image has.
    """
    label_sets = [[name.strip() for name in cell.split(";") if name.strip()] for cell in table.labels]
    is_test = np.zeros(len(label_sets), dtype=bool) if table.is_test is None else table.is_test
    training = (names for names, test in zip(label_sets, is_test, strict=True) if not test)
    class_names = sorted({name for names in training for name in names})
    column = {name: c for c, name in enumerate(class_names)}
    hot = np.zeros((len(label_sets), len(class_names)), dtype=np.uint8)
    for row, names in enumerate(label_sets):
        for name in names:
            if name not in column:
                hint = nearest(name, class_names) or "; no training image has it"
                raise DataError(f'{table.places[row]}: unknown class "{name}"{hint}')
            hot[row, column[name]] = 1
    return hot, class_names
