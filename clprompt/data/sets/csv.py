"""Images listed in a CSV file, each with one label (``csv``) or a set of labels (``multi_label_csv``)."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from clprompt import schema
from clprompt.data.bundle import DataBundle, assemble, assemble_sets, takes_views
from clprompt.data.images import Selected
from clprompt.data.names import class_name
from clprompt.data.reading import Reading, readable_files, takes_reading
from clprompt.data.repeats import resolved
from clprompt.data.selection import Selection, split_column, takes_selection
from clprompt.errors import DataError, nearest, tell
from clprompt.registry import datasets
from clprompt.schema import FilePath


@datasets.register("csv", domains="a column domain")
@schema.checked
@takes_views()
@takes_selection()
@takes_reading()
def csv_file(
    *,
    path: FilePath = "data.csv",
    test_path: FilePath | None = None,
    root: FilePath | None = None,
    selection: Selection,
    reading: Reading,
) -> DataBundle:
    """A CSV file with columns path and label, and a column split (train, test, val) or a file for the test.

    Labels are any text; where all are integers they are sorted as such. Without a split of either kind, test
    images are drawn from each class. A column domain says where each image comes from, for streams that go by
    it. The case of column names makes no difference; other columns are not read. Lines that name an image
    again are left out, and a note says how many; another says how many test images are training images.

    Args:
        path: the file.
        test_path: a second file of the same columns, which is the test set.
        root: the folder that relative image paths start from; each file's own folder by default.
        test_fraction: share of each class that is the test set, where the data has no split.
        split_seed: decides which images those are, and those of ``train_per_class`` and ``test_per_class``.
        classes: the classes to keep: names, or positions in their order such as 0-19.
        train_per_class: at most so many training images of each class.
        test_per_class: at most so many test images of each class.

    Raises:
        DataError: a missing file or column, an empty or surplus cell, an image with two labels, an image that
            cannot be read.
    """
    name = f"csv {path}"
    table = _read(path, test_path, root, label_sets=False)
    load, use = readable_files(name, table.paths, reading, table.places)
    return assemble(
        name,
        Selected(load, use),
        np.asarray([label for (label,) in table.labels])[use],
        None if table.is_test is None else table.is_test[use],
        selection,
        cache=reading.cache,
        domains=_domains(path, table.only(use)),
    )


@datasets.register("multi_label_csv", renamed={"train": "path", "test": "test_path"})
@schema.checked
@takes_views(augment="standard")
@takes_selection()
@takes_reading()
def multi_label_csv(
    *,
    path: FilePath = "data.csv",
    test_path: FilePath | None = None,
    root: FilePath | None = None,
    selection: Selection,
    reading: Reading,
) -> DataBundle:
    """The files of ``csv`` with a set of labels in each line, joined by semicolons: `a.jpg,cat;dog`.

    A line that ends in its comma is an image without labels. An image may have several lines: its labels are
    joined, and a note says how many lines that were. Class names are those of the training images, sorted.
    Without a split of either kind, test images are drawn from all; one of each class stays to train.

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

    Raises:
        DataError: a missing file, column or cell, a surplus cell, a test label that no training image has, no
            label at all in a part, an image that cannot be read.
    """
    name = f"multi_label_csv {path}"
    table = _read(path, test_path, root, label_sets=True)
    load, use = readable_files(name, table.paths, reading, table.places)
    table = table.only(use)
    hot, names = _multi_hot(table)
    if table.paths and not names:
        raise DataError(f"{path}: no line has a label")
    return assemble_sets(
        name,
        Selected(load, use),
        hot,
        table.is_test,
        selection,
        cache=reading.cache,
        names=names,
    )


@dataclass(frozen=True)
class _Table:
    """The rows of one or two files.

    Attributes:
        paths: of the images.
        labels: of each row: one, where rows have a label, or a set.
        places: "train.csv, line 3".
        domains: of each row; "" where nothing says so.
        is_test: which rows are test images, bool [n]; None where nothing says so.
    """

    paths: list[str]
    labels: list[tuple[str, ...]]
    places: list[str]
    domains: list[str]
    is_test: np.ndarray | None

    def only(self, rows: np.ndarray) -> _Table:
        """Some of the rows."""
        return _Table(
            paths=[self.paths[row] for row in rows],
            labels=[self.labels[row] for row in rows],
            places=[self.places[row] for row in rows],
            domains=[self.domains[row] for row in rows],
            is_test=None if self.is_test is None else self.is_test[rows],
        )


def _read(path: str, test_path: str | None, root: str | None, *, label_sets: bool) -> _Table:
    """The rows that are used, one for each image and part, of one file, or of one for each part."""
    table, parts = _rows(path, "data.path", root, label_sets)
    if test_path is not None:
        if parts is not None:
            raise DataError(f"{path} has a column split: drop data.test_path, or the column")
        more, more_parts = _rows(test_path, "data.test_path", root, label_sets)
        if more_parts is not None:
            in_test, used = split_column(more_parts, test_path, more.places)
            if (used & ~in_test).any():
                row = int(np.flatnonzero(used & ~in_test)[0])
                raise DataError(
                    f'{more.places[row]}: the split is "{more_parts[row]}", but data.test_path is the test '
                    "set; drop data.test_path, or the column"
                )
            more = more.only(np.flatnonzero(used))
        table = _Table(
            table.paths + more.paths,
            table.labels + more.labels,
            table.places + more.places,
            table.domains + more.domains,
            np.arange(len(table.paths) + len(more.paths)) >= len(table.paths),
        )
    elif parts is not None:
        is_test, used = split_column(parts, path, table.places)
        table = replace(table, is_test=is_test).only(np.flatnonzero(used))
    if not label_sets:
        _tell_joined(path, table)
        return _one_row_each(path, table, label_sets=False)
    _class_names(table)  # an unknown one is told with its line, which the next step may give up
    return _one_row_each(path, table, label_sets=True)


def _rows(path: str, key: str, root: str | None, label_sets: bool) -> tuple[_Table, list[str] | None]:
    """The rows of a file, and its split column if there is one."""
    start = os.path.dirname(path) if root is None else root
    table, parts = _Table([], [], [], [], None), []
    # strict: a quote that is not closed, or that does not close its cell, would swallow the lines that follow
    reader = csv.reader(io.StringIO(_text(path, key), newline=""), skipinitialspace=True, strict=True)
    try:
        first_line = next(reader, [])
        columns = _columns(path, first_line, ("path", "label", "split", *(() if label_sets else ("domain",))))
        for row in reader:
            if not any(cell.strip() for cell in row):
                continue  # spreadsheets write lines of commas below the last one
            place = f"{path}, line {reader.line_num}"
            if any(cell.strip() for cell in row[len(first_line) :]):
                hint = "; labels are joined by ;" if label_sets else ": quote one that holds a comma"
                raise DataError(f"{place}: there are more cells than columns{hint}")
            cells = _cells(row, columns, place, label_sets)
            table.paths.append(os.path.join(start, cells["path"]))
            names = cells["label"].split(";") if label_sets else [cells["label"]]
            table.labels.append(tuple(class_name(name.strip()) for name in names if name.strip()))
            table.places.append(place)
            table.domains.append(cells.get("domain", ""))
            parts.append(cells.get("split", ""))
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: {_reason(error)}") from error
    if not table.paths:
        raise DataError(f"{path}: there is no image in it, only the line of column names")
    return table, parts if "split" in columns else None


def _text(path: str, key: str) -> str:
    if not os.path.isfile(path):
        raise DataError(f"{key}: there is no file {path}; it must be a CSV file with columns path and label")
    try:
        with open(path, "rb") as file:
            content = file.read()
    except OSError as error:
        raise DataError(f"{key}: {path} cannot be read: {error.strerror or error}") from error
    except MemoryError as error:
        raise DataError(f"{key}: memory is short for {path}") from error
    if b"\0" in content:  # nearly every UTF-16 file has some
        line = content[: content.index(b"\0")].count(b"\n") + 1
        raise DataError(f"{path}, line {line}: this is not a CSV file in UTF-8: it holds a NUL byte")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        byte = error.object[error.start]
        raise DataError(
            f"{path}, line {line}: this is not a CSV file in UTF-8: it holds the byte {byte:#x}"
        ) from error


def _reason(error: csv.Error) -> str:
    text = str(error)
    if "field limit" in text:
        return (
            f"a cell is longer than {csv.field_size_limit()} characters, or a quote before it is not closed"
        )
    if "unexpected end" in text:
        return "a quote is not closed"
    if "expected after" in text:
        return "a comma must follow a cell's closing quote (a quote within a quoted cell is written twice)"
    return text


def _columns(path: str, cells: Sequence[str], read: Sequence[str]) -> dict[str, int]:
    """The position of each column that is read; the case of their names makes no difference."""
    names = [cell.strip() for cell in cells]
    columns: dict[str, int] = {}
    for position, name in enumerate(names):
        column = name.lower()
        if column in columns:
            raise DataError(f'{path}, line 1: there are two columns "{column}"; keep one of them')
        if column in read:
            columns[column] = position
    for column in ("path", "label"):
        if column not in columns:
            held = ", ".join(names) or "nothing"
            other = next((word for mark, word in _SEPARATORS.items() if len(names) == 1 and mark in held), "")
            hint = f"; the file is separated by {other}, it must be by commas" if other else ""
            raise DataError(
                f'{path}: there is no column "{column}" in the first line, which holds: {held}{hint}'
            )
    return columns


_SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "bars"}


def _cells(row: Sequence[str], columns: Mapping[str, int], place: str, label_sets: bool) -> dict[str, str]:
    """The cells of a row that are read, by column."""
    cells = {column: row[position].strip() for column, position in columns.items() if position < len(row)}
    for column, cell in cells.items():
        if "\n" in cell or "\r" in cell:
            raise DataError(f"{place}: the {column} holds a line break; is a quote before it not closed?")
    if not cells.get("path"):
        raise DataError(f"{place}: the path is missing")
    if label_sets and "label" not in cells:
        raise DataError(f"{place}: the label is missing; an image without labels ends in a comma")
    if not label_sets and not cells.get("label"):
        raise DataError(f"{place}: the label is missing")
    return cells


def _one_row_each(name: str, table: _Table, label_sets: bool) -> _Table:
    """The table with one row for each image of each part, where it was first.

    Equal rows are left out. Label sets may also come one label a line: they are joined.

    Raises:
        DataError: an image with two labels where each has one.
    """
    rows: dict[tuple[str, bool], int] = {}
    first_labels: dict[str, int] = {}
    labels = list(table.labels)
    again: list[tuple[int, int]] = []
    for row, image in enumerate(resolved(table.paths)):
        labelled = first_labels.setdefault(image, row)
        if not label_sets and labels[row] != labels[labelled]:
            raise DataError(
                f'{table.places[row]}: {table.paths[row]} has the label "{labels[row][0]}", and the label '
                f'"{labels[labelled][0]}" in {table.places[labelled]}; an image with several labels is one '
                "for multi_label_csv"
            )
        part = table.is_test is not None and bool(table.is_test[row])
        first = rows.setdefault((image, part), row)
        if first != row:
            again.append((row, first))
            labels[first] = tuple(dict.fromkeys(labels[first] + labels[row]))
    if not again:
        return table
    row, first = again[0]
    what = "their labels joined" if label_sets else "left out"
    tell(
        f"{name}: {len(again)} of {len(table.paths)} lines name an image again, {what}; "
        f"the first: {table.places[row]}, after {table.places[first]}"
    )
    return replace(table, labels=labels).only(np.array(sorted(rows.values())))


def _domains(path: str, table: _Table) -> list[str] | None:
    """The domain of each row; None where not every row has one."""
    without = [row for row, domain in enumerate(table.domains) if not domain]
    if without and any(table.domains):
        tell(
            f"{path}: {len(without)} of {len(table.domains)} lines have no domain, the first: "
            f"{table.places[without[0]]}; the column domain is not used"
        )
    return None if without else table.domains


def _tell_joined(path: str, table: _Table) -> None:
    """Labels that look like sets of them."""
    known = {label for (label,) in table.labels}
    joined = [
        row for row, (label,) in enumerate(table.labels) if ";" in label and known & {*label.split(";")}
    ]
    if joined:
        row = joined[0]
        tell(
            f'{path}: {len(joined)} labels are others joined by ;, the first: "{table.labels[row][0]}" in '
            f"{table.places[row]}; multi_label_csv reads them as label sets"
        )


def _class_names(table: _Table) -> list[str]:
    """The classes of the training images, sorted.

    Raises:
        DataError: a label of a test image that no training image has.
    """
    is_test = np.zeros(len(table.labels), dtype=bool) if table.is_test is None else table.is_test
    training = (names for names, test in zip(table.labels, is_test, strict=True) if not test)
    class_names = dict.fromkeys(sorted({name for names in training for name in names}))
    for names, place in zip(table.labels, table.places, strict=True):
        for name in names:
            if name not in class_names:
                hint = nearest(name, class_names) or "; no training image has it"
                raise DataError(f'{place}: unknown class "{name}"{hint}')
    return list(class_names)


def _multi_hot(table: _Table) -> tuple[np.ndarray, list[str]]:
    """Label sets uint8 [n, C], and the names of the classes."""
    class_names = _class_names(table)
    column = {name: c for c, name in enumerate(class_names)}
    hot = np.zeros((len(table.labels), len(class_names)), dtype=np.uint8)
    for row, names in enumerate(table.labels):
        hot[row, [column[name] for name in names]] = 1
    return hot, class_names
