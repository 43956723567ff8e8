"""What other people's tables hold, in every reader: each cell of the tables below says what becomes of it.

A cell is ``Used`` (read, without a word), ``Told`` (read, and notes say what, with a number), ``Refused``
(one line that names the place), or ``NotThere`` (the reader's files cannot hold such a thing, and why). A
reader that is left out of a row is a failure.
"""

import io
import json
import re
import unicodedata
import warnings
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from clprompt import registry
from clprompt.data import DataBundle
from clprompt.errors import ClpromptError, DataWarning
from tests._shared.archives import cub200_tables, stanford_cars_tables, write_lines

# ------------------------------------------------------------------------------------------------- outcomes


@dataclass(frozen=True)
class Used:
    """Read without a word, as these images and classes."""

    train: int = 4
    test: int = 4
    names: tuple[str, ...] = ("cat", "dog")


@dataclass(frozen=True)
class Told:
    """Read, with notes that match: one, or several in this order."""

    notes: str | tuple[str, ...]
    train: int = 4
    test: int = 4
    names: tuple[str, ...] = ("cat", "dog")


@dataclass(frozen=True)
class Refused:
    """One line that matches."""

    line: str


@dataclass(frozen=True)
class NotThere:
    """The reader's files cannot hold it."""

    why: str


Outcome = Used | Told | Refused | NotThere


def check(reader: str, arguments: dict[str, Any], outcome: Outcome) -> DataBundle | None:
    """Read, and compare with what a cell says."""
    read = registry.datasets.get(reader.partition(",")[0]).target
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if isinstance(outcome, Refused):
            with pytest.raises(ClpromptError, match=outcome.line) as refused:
                read(**arguments)
            assert "\n" not in str(refused.value)
            return None
        bundle = read(**arguments)
    notes = [str(warning.message) for warning in caught if warning.category is DataWarning]
    assert not [warning for warning in caught if warning.category is not DataWarning]
    assert (len(bundle.train), len(bundle.test)) == (outcome.train, outcome.test)
    assert tuple(bundle.class_names) == outcome.names
    told = outcome.notes if isinstance(outcome, Told) else ()
    patterns = (told,) if isinstance(told, str) else told
    assert len(notes) == len(patterns), notes
    for pattern, note in zip(patterns, notes, strict=True):
        assert re.search(pattern, note)
        assert "\n" not in note
    return bundle


def cells(table: dict[str, dict[str, Outcome]]) -> list[Any]:
    """The cells of a table as parameters: oddity, reader, outcome."""
    return [
        pytest.param(oddity, reader, outcome, id=f"{oddity}-{reader}")
        for oddity, row in table.items()
        for reader, outcome in row.items()
        if not isinstance(outcome, NotThere)
    ]


# ------------------------------------------------------------------------------------------------ CSV files

CSV = ("csv", "multi_label_csv")
LINES = ["path,label,split"] + [
    f"{i}.png,{'cat' if i % 2 else 'dog'},{'test' if i > 3 else 'train'}" for i in range(8)
]


def lines(*more: str, header: str = LINES[0], end: str = "\n") -> bytes:
    """The eight good rows, with others below them."""
    return (end.join([header, *LINES[1:], *more]) + end).encode()


def both(outcome: Outcome) -> dict[str, Outcome]:
    return dict.fromkeys(CSV, outcome)


E_COMPOSED, E_APART = (unicodedata.normalize(form, "\u00e9") for form in ("NFC", "NFD"))

CSV_FILES: dict[str, tuple[bytes, dict[str, Outcome]]] = {
    "as it should be": (lines(), both(Used())),
    "a mark of the byte order": (b"\xef\xbb\xbf" + lines(), both(Used())),
    "line ends of Windows": (lines(end="\r\n"), both(Used())),
    "line ends of old Macs": (lines(end="\r"), both(Used())),
    "a last empty line": (lines(""), both(Used())),
    "last empty lines of Windows": (lines("", "", end="\r\n"), both(Used())),
    "empty lines between": (lines("", "8.png,cat,train"), both(Used(train=5))),
    "a last line of commas": (lines(",,", " , "), both(Used())),
    "surplus cells": (
        lines("8.png,cat,train,big"),
        both(Refused(r"data\.csv, line 10: there are more cells than columns")),
    ),
    "a label with an unquoted comma": (
        lines("8.png,dog, big,train"),
        both(Refused(r"data\.csv, line 10: there are more cells than columns")),
    ),
    "a label with a quoted comma": (
        lines('8.png,"dog, big",train'),
        both(
            Told(
                ('class "dog, big" has no test image', 'class "dog, big" has one training image only'),
                train=5,
                names=("cat", "dog", "dog, big"),
            )
        ),
    ),
    "surplus cells that are empty": (lines("8.png,cat,train,,"), both(Used(train=5))),
    "columns without a name": (lines(header="path,label,split,,"), both(Used())),
    "columns in capitals": (lines(header="Path,LABEL,Split"), both(Used())),
    "columns with blanks": (lines(header=" path , label,split "), both(Used())),
    "a doubled column": (
        lines(header="path,label,split,label"),
        both(Refused(r'data\.csv, line 1: there are two columns "label"')),
    ),
    "columns that differ in case": (
        lines(header="path,label,split,Path"),
        both(Refused(r'data\.csv, line 1: there are two columns "path"')),
    ),
    "a doubled column that is not read": (lines(header="path,label,split,note,note"), both(Used())),
    "a missing cell": (
        lines("8.png"),
        {
            "csv": Refused(r"data\.csv, line 10: the label is missing"),
            "multi_label_csv": Refused(r"data\.csv, line 10: the label is missing"),
        },
    ),
    "an empty label": (
        lines("8.png,,train"),
        {"csv": Refused(r"data\.csv, line 10: the label is missing"), "multi_label_csv": Used(train=5)},
    ),
    "a missing path": (lines(",cat,train"), both(Refused(r"data\.csv, line 10: the path is missing"))),
    "a missing part": (
        lines("8.png,cat"),
        both(Refused(r'data\.csv, line 10: split "" of image 8 must be train, test or val')),
    ),
    "parts of floating point": (lines().replace(b"train", b"0.0").replace(b"test", b"1.0"), both(Used())),
    "an unknown part": (
        lines("", "8.png,cat,tset"),
        both(Refused(r'data\.csv, line 11: split "tset" of image 8 must be train, test or val')),
    ),
    "equal lines": (
        lines("0.png,dog,train", "./5.png,cat,test"),
        {
            "csv": Told(r"2 of 10 lines name an image again, left out; the first: .*line 10, after .*line 2"),
            "multi_label_csv": Told(
                r"2 of 10 lines name an image again, their labels joined; .*line 10, after .*line 2"
            ),
        },
    ),
    "an image under another path": (
        lines("link.png,dog,train"),
        {name: Told("1 of 9 lines name an image again, .*line 10, after .*line 2") for name in CSV},
    ),
    "an image in both parts": (
        lines("0.png,dog,test"),
        both(Told("1 of 5 test images are training images as well; the first: .*0.png", test=5)),
    ),
    "an image in both parts under another path": (
        lines("link.png,dog,test"),
        both(Told("1 of 5 test images are training .*: .*link.png, which is .*0.png", test=5)),
    ),
    "label sets in the long form": (
        lines("0.png,cat,train", "1.png,dog,train"),
        {
            "csv": Refused(
                r'data\.csv, line 10: .*0\.png has the label "cat", and the label "dog" in .*, line 2; '
                "an image with several labels is one for multi_label_csv"
            ),
            "multi_label_csv": Told("2 of 10 lines name an image again, their labels joined"),
        },
    ),
    "another label in the other part": (
        lines("0.png,cat,test"),
        {
            "csv": Refused(r'line 10: .*0\.png has the label "cat", and the label "dog" in .*line 2'),
            "multi_label_csv": Told(
                ("1 of 5 test images are training images", "1 of 9 images come again with another label"),
                test=5,
            ),
        },
    ),
    "labels joined by semicolons": (
        lines("8.png,cat;dog,train", "9.png,cat;dog,train", "10.png,dog;cat,test"),
        {
            "csv": Refused('class "dog;cat" has test images, but no training image'),
            "multi_label_csv": Used(train=6, test=5),
        },
    ),
    "labels joined by semicolons in both parts": (
        lines("8.png,cat;dog,train", "9.png,cat;dog,train", "10.png,cat;dog,test"),
        {
            "csv": Told(
                '3 labels are others joined by ;, the first: "cat;dog" in .*line 10; multi_label_csv reads',
                train=6,
                test=5,
                names=("cat", "cat;dog", "dog"),
            ),
            "multi_label_csv": Used(train=6, test=5),
        },
    ),
    "a name in two Unicode forms": (
        lines(f"8.png,{E_APART},train", f"9.png,{E_COMPOSED},train", f"10.png,{E_COMPOSED},test"),
        both(Used(train=6, test=5, names=("cat", "dog", E_COMPOSED))),
    ),
    "a class without test image": (
        lines("8.png,bird,train", "9.png,bird,train"),
        {
            "csv": Told('class "bird" has no test image; no accuracy', train=6, names=("bird", "cat", "dog")),
            "multi_label_csv": Told(
                'class "bird" has no test image; no average precision', train=6, names=("bird", "cat", "dog")
            ),
        },
    ),
    "a class without training image": (
        lines("8.png,bird,test"),
        {
            "csv": Refused('class "bird" has test images, but no training image; .* data.classes'),
            "multi_label_csv": Refused(r'data\.csv, line 10: unknown class "bird"; no training image has it'),
        },
    ),
    "a missing image": (
        lines("99.png,cat,train"),
        both(Refused(r"data\.csv, line 10: .*99\.png: the image cannot be read: there is no such file")),
    ),
    "an empty image": (
        lines("empty.png,cat,train"),
        both(Refused(r"data\.csv, line 10: .*empty\.png: the image cannot be read: it is empty")),
    ),
    "a folder for an image": (
        lines("folder,cat,train"),
        both(Refused(r"data\.csv, line 10: .*folder: the image cannot be read: it is not a file")),
    ),
    "a path of 5000 characters": (
        lines("x" * 5000 + ",cat,train"),
        both(Refused(r"data\.csv, line 10: .*the image cannot be read: there is no such file")),
    ),
    "NUL in a path": (
        lines("8\0.png,cat,train"),
        both(Refused(r"data\.csv, line 10: this is not a CSV file in UTF-8: it holds a NUL byte")),
    ),
    "a cell that is too long": (
        lines(f"8.png,cat,train,{'x' * 131073}", header="path,label,split,note"),
        both(Refused(r"data\.csv, line 10: a cell is longer than 131072 characters")),
    ),
    "a quote that is not closed": (
        lines('8.png,cat,train,"5 inch', "9.png,cat,train,", header="path,label,split,note"),
        both(Refused(r"data\.csv, line 11: a quote is not closed")),
    ),
    "a quote that a later line closes": (
        lines('8.png,cat,train,"5 inch', '9.png,cat,train,"6 inch', header="path,label,split,note"),
        both(Refused(r"data\.csv, line 11: a comma must follow a cell's closing quote")),
    ),
    "a label with a line break": (
        lines('8.png,"cat\nbig",train'),
        both(Refused(r"data\.csv, line 11: the label holds a line break")),
    ),
    "a note with a line break": (
        lines('8.png,cat,train,"one\ntwo"', header="path,label,split,note"),
        both(Used(train=5)),
    ),
    "labels in Latin-1": (
        lines() + b"8.png,\xe9t\xe9,train\n",
        both(Refused(r"data\.csv, line 10: this is not a CSV file in UTF-8: it holds the byte 0xe9")),
    ),
    "labels in Latin-1 behind a mark of the byte order": (
        b"\xef\xbb\xbf" + lines() + b"8.png,\xe9t\xe9,train\n",
        both(Refused(r"data\.csv, line 10: this is not a CSV file in UTF-8: it holds the byte 0xe9")),
    ),
    "UTF-16": (
        lines().decode().encode("utf-16"),
        both(Refused(r"data\.csv, line 1: this is not a CSV file in UTF-8: it holds a NUL byte")),
    ),
    "UTF-16 without a mark": (
        lines().decode().encode("utf-16-be"),
        both(Refused(r"data\.csv, line 1: this is not a CSV file in UTF-8: it holds a NUL byte")),
    ),
    "semicolons": (
        lines().replace(b",", b";"),
        both(Refused(r'data\.csv: there is no column "path" .*; the file is separated by semicolons')),
    ),
    "tabs": (
        lines().replace(b",", b"\t"),
        both(Refused(r'data\.csv: there is no column "path" .*; the file is separated by tabs')),
    ),
    "a second line of columns": (
        lines(LINES[0], "8.png,cat,train"),
        both(Refused(r'data\.csv, line 10: split "split" of image 8 must be train, test or val')),
    ),
    "nothing": (
        b"",
        both(Refused(r'data\.csv: there is no column "path" in the first line, which holds: nothing')),
    ),
}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for number in range(11):
        Image.new("L", (6, 5), 20 * number).save(folder / f"{number}.png")
    (folder / "link.png").symlink_to("0.png")
    (folder / "empty.png").touch()
    (folder / "damaged.png").write_bytes(b"not an image")
    Image.new("L", (6, 6)).save(folder / "large.png")
    (folder / "folder").mkdir()
    return folder


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("oddity", "reader", "outcome"), cells({name: row for name, (_, row) in CSV_FILES.items()})
)
def test_a_csv_file(oddity: str, reader: str, outcome: Outcome, images: Path, tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_bytes(CSV_FILES[oddity][0])
    check(reader, {"path": str(tmp_path / "data.csv"), "root": str(images)}, outcome)


# ------------------------------------------------------------------------------------------------ npz files

NPZ = ("npz", "multi_label_npz")
LABELS = np.arange(8) % 2
SPLIT = np.arange(8) // 4


def pixels(count: int = 8, *shape: int) -> np.ndarray:
    """Images uint8 [n, 5, 6] of which no two are equal."""
    return np.random.default_rng(0).integers(0, 256, (count, *(shape or (5, 6))), dtype=np.uint8)


def whole(multi_label: bool, **changed: Any) -> dict[str, Any]:
    """The arrays of a good file, with changes; None leaves one out, a function makes it of the good one."""
    labels = np.eye(2, dtype=np.int64)[LABELS] if multi_label else LABELS
    arrays = {"images": pixels(), "labels": labels, "split": SPLIT, "names": np.array(["dog", "cat"])}
    arrays |= {key: value(arrays[key]) if callable(value) else value for key, value in changed.items()}
    return {key: value for key, value in arrays.items() if value is not None}


def two(outcome: Outcome) -> dict[str, Outcome]:
    return dict.fromkeys(NPZ, outcome)


def jpeg(files: Sequence[bytes]) -> dict[str, Any]:
    ends = np.cumsum([0, *map(len, files)])
    return {"images": None, "jpeg": np.frombuffer(b"".join(files), np.uint8), "offsets": ends}


def png(shade: int) -> bytes:
    file = io.BytesIO()
    Image.new("L", (6, 5), 20 * shade).save(file, "PNG")
    return file.getvalue()


#: What the good names are in each reader: npz sorts by its integers, and so does the other.
GOOD = Used(names=("dog", "cat"))
PAIRS = [("red", "u1"), ("green", "u1")]

NPZ_FILES: dict[str, tuple[dict[str, Any], dict[str, Outcome]]] = {
    "as it should be": ({}, two(GOOD)),
    "Fortran's order": ({"images": np.asfortranarray}, two(GOOD)),
    "big-endian labels": ({"labels": lambda a: a.astype(">i8"), "split": SPLIT.astype(">i4")}, two(GOOD)),
    "a split of floating point": ({"split": SPLIT.astype(float)}, two(GOOD)),
    "a split of other numbers": (
        {"split": SPLIT / 2},
        two(Refused(r'data\.npz: split "0\.5" of image 4 must be train, test or val \(or 0, 1\)')),
    ),
    "names in bytes": ({"names": np.array([b"dog", b"cat"])}, two(GOOD)),
    "names in another encoding": (
        {"names": np.array([b"d\xe9g", b"cat"])},
        two(Refused(r"data\.npz: names holds b'd\\xe9g', which is not text in UTF-8")),
    ),
    "one name": (
        {"names": np.array("dog")},
        two(Refused(r"names must be text, one for each class, got <U3 \[\]")),
    ),
    "names of numbers": ({"names": np.array([0.5, 1.5])}, two(Refused("names must be text, .* got float64"))),
    "a name in two Unicode forms": (
        {"names": np.array([E_COMPOSED, E_APART])},
        two(Told('1 names are those of several classes; the first: "\u00e9"', names=(E_COMPOSED,) * 2)),
    ),
    "no pixels": (
        {"images": np.zeros((8, 0, 0), np.uint8)},
        two(Refused(r"data\.npz: images must hold a pixel or more, got uint8 \[8, 0, 0\]")),
    ),
    "no image": (
        {"images": np.zeros((0, 5, 6), np.uint8), "labels": lambda a: a[:0], "split": None},
        two(Refused(r"data\.npz: images must hold a pixel or more, got uint8 \[0, 5, 6\]")),
    ),
    "one number for images": (
        {"images": np.uint8(3)},
        two(Refused(r"images must be uint8 .*, got uint8 \[\]")),
    ),
    "channels in front": (
        {"images": pixels(8, 3, 5, 6)},
        two(Refused(r"images must be uint8 .*, got uint8 \[8, 3, 5, 6\]; the channels stand last")),
    ),
    "floating point": ({"images": pixels() / 255}, two(Refused("images must be uint8 .*, got float64"))),
    "other integers": (
        {"images": pixels().astype(np.int64)},
        two(Refused("images must be uint8 .*, got int64")),
    ),
    "16 bits": ({"images": pixels().astype(np.uint16)}, two(Refused("images must be uint8 .*, got uint16"))),
    "pixels of named parts": (
        {"images": np.zeros((8, 5, 6), PAIRS)},
        two(Refused(r"images must be uint8 .*, got \[\('red', 'u1'\), \('green', 'u1'\)\]")),
    ),
    "labels of named parts": (
        {"labels": lambda a: np.zeros(a.shape, PAIRS)},
        {
            "npz": Refused("labels must be one integer or text per image, got .*red"),
            "multi_label_npz": Refused(r"labels must be 0 or 1, \[8, classes\]; got .*red"),
        },
    ),
    "a split of named parts": ({"split": np.zeros(8, PAIRS)}, two(Refused(r'split "\(0, 0\)" of image 0'))),
    "a split in another encoding": (
        {"split": np.array([b"tr\xe4in"] * 8)},
        two(Refused(r'split "tr\\xe4in" of image 0 must be train, test or val')),
    ),
    "objects": ({"labels": lambda a: a.astype(object)}, two(Refused("it holds pickled objects"))),
    "objects that are not read": ({"notes": np.array([None, {}], dtype=object)}, two(GOOD)),
    "labels in another encoding": (
        {"labels": np.array([b"\xe9t\xe9", b"cat"] * 4), "names": None},
        {
            "npz": Refused(r"the label b'\\xe9t\\xe9' is not text in UTF-8"),
            "multi_label_npz": Refused(r"labels must be 0 or 1, \[8, classes\]; got \|S3 \[8\]"),
        },
    ),
    "labels in two Unicode forms": (
        {"labels": np.array([E_COMPOSED, "cat", E_APART, "cat"] * 2), "names": None},
        {
            "npz": Used(names=("cat", E_COMPOSED)),
            "multi_label_npz": Refused("labels must be 0 or 1"),
        },
    ),
    "labels beyond 0 and 1": (
        {"labels": lambda a: a * 2},
        {
            "npz": Refused("label 2 has no name; there are names for 0..1"),
            "multi_label_npz": Refused("labels must be 0 or 1, .*; got the value 2"),
        },
    ),
    "labels without a class": (
        {"labels": np.zeros((8, 0), int), "names": None},
        {
            "npz": Refused(r"labels must be one value for each of the 8 images, got shape \[8, 0\]"),
            "multi_label_npz": Refused(r"labels must be 0 or 1, \[8, classes\]; got int64 \[8, 0\]"),
        },
    ),
    "labels that are NaN": (
        {"labels": lambda a: np.full(a.shape, np.nan)},
        {
            "npz": Refused("labels must be one integer or text per image, got float64"),
            "multi_label_npz": Refused("labels must be 0 or 1, .*; got the value nan"),
        },
    ),
    "equal images": (
        {"images": lambda a: a[[0, 1, 0, 3, 4, 5, 6, 7]]},
        two(
            Told(
                "1 of 8 images come again with the same label; the first: image 2, which is image 0",
                names=GOOD.names,
            )
        ),
    ),
    "an image with two labels": (
        {"images": lambda a: a[[0, 0, 2, 3, 4, 5, 6, 7]]},
        two(
            Told(
                "1 of 8 images come again with another label; the first: image 1, which is image 0",
                names=GOOD.names,
            )
        ),
    ),
    "images in both parts": (
        {"images": lambda a: a[[0, 1, 2, 3, 0, 1, 6, 7]]},
        two(
            Told(
                "2 of 4 test images are training images as well; the first: image 4, which is image 0",
                names=GOOD.names,
            )
        ),
    ),
    "encoded images in both parts": (
        jpeg([png(i % 7) for i in range(8)]),
        two(
            Told(
                (
                    "1 of 4 test images are training images as well; the first: image 7, which is image 0",
                    "1 of 8 images come again with another label; the first: image 7, which is image 0",
                ),
                names=GOOD.names,
            )
        ),
    ),
    "an encoded image of no bytes": (
        jpeg([b"" if i == 3 else png(i) for i in range(8)]),
        two(Refused(r"data\.npz, image 3: the image cannot be read: it is empty")),
    ),
    "images and encoded images": (
        jpeg([png(i) for i in range(8)]) | {"images": pixels()},
        two(Refused(r"data\.npz: it holds images and jpeg; drop one of them")),
    ),
    "names of arrays that differ in case": (
        {"Split": SPLIT},
        two(Refused(r"data\.npz: there are two arrays split; keep one of them")),
    ),
    "other names of arrays": (
        {"x": pixels(), "images": None},
        two(Refused("it must hold labels, and images .*; it holds labels, names, split, x")),
    ),
    "names of arrays in capitals": (
        {"Images": pixels(), "images": None},
        two(GOOD),
    ),
    "a class without image": (
        {
            "names": np.array(["dog", "cat", "bird"]),
            "labels": lambda a: np.pad(a, ((0, 0), (0, 1))) if a.ndim == 2 else a,
        },
        {
            "npz": GOOD,
            "multi_label_npz": Told('class "bird" has no image; left out', names=GOOD.names),
        },
    ),
    "no label among test images": (
        {"labels": lambda a: a * (SPLIT == 0)[(...,) + (None,) * (a.ndim - 1)]},
        {
            "npz": Told('class "cat" has no test image; no accuracy', names=GOOD.names),
            "multi_label_npz": Refused("no test image has a label"),
        },
    ),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("oddity", "reader", "outcome"), cells({name: row for name, (_, row) in NPZ_FILES.items()})
)
def test_an_npz_file(oddity: str, reader: str, outcome: Outcome, tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", **whole(reader == "multi_label_npz", **NPZ_FILES[oddity][0]))
    check(reader, {"path": str(tmp_path / "data.npz")}, outcome)


def parts(**changed: Any) -> dict[str, Any]:
    hot = np.eye(2, dtype=np.int64)[LABELS]
    images = pixels()
    arrays = {
        "train_images": images[:4],
        "train_targets": hot[:4],
        "test_images": images[4:],
        "test_targets": hot[4:],
    }
    arrays |= {key: value(arrays[key]) if callable(value) else value for key, value in changed.items()}
    return arrays


TWO_PARTS: dict[str, tuple[dict[str, Any], Outcome]] = {
    "as it should be": (parts(), Used(names=("0", "1"))),
    "colours": (
        parts(train_images=pixels(8, 5, 6, 3)[:4], test_images=pixels(8, 5, 6, 3)[4:]),
        Used(names=("0", "1")),
    ),
    "float": (parts(train_images=lambda a: a / 255), Used(names=("0", "1"))),
    "float of two bytes": (
        parts(train_images=lambda a: (a / 255).astype(np.float16)),
        Used(names=("0", "1")),
    ),
    "big-endian float": (parts(train_images=lambda a: (a / 255).astype(">f4")), Used(names=("0", "1"))),
    "float up to 255": (
        parts(train_images=lambda a: a.astype(np.float32)),
        Refused(r"train_images must be uint8, or float in \[0, 1\], got \d+ to 2\d\d"),
    ),
    "float below 0": (
        parts(test_images=lambda a: a / 64 - 2),
        Refused(r"test_images must be uint8, or float in \[0, 1\], got -\d.* to "),
    ),
    "NaN": (
        parts(test_images=lambda a: np.where(a == a.max(), np.nan, a / 255)),
        Refused(r"test_images must be uint8, or float in \[0, 1\], got nan to nan"),
    ),
    "infinity": (
        parts(test_images=lambda a: np.where(a == a.max(), np.inf, a / 255)),
        Refused(r"test_images must be uint8, or float in \[0, 1\], got .* to inf"),
    ),
    "other integers": (
        parts(train_images=lambda a: a.astype(np.int64)),
        Refused(r"train_images must be .*, uint8 or float in \[0, 1\], got int64 \[4, 5, 6\]"),
    ),
    "16 bits": (parts(train_images=lambda a: a.astype(np.uint16)), Refused("got uint16")),
    "complex numbers": (parts(train_images=lambda a: a * 1j), Refused("got complex128")),
    "truth values": (parts(train_images=lambda a: a > 127), Refused("got bool")),
    "one number": (parts(train_images=np.uint8(3)), Refused(r"train_images must be .*, got uint8 \[\]")),
    "no pixels": (
        parts(train_images=np.zeros((4, 0, 0), np.uint8)),
        Refused(r"train_images must hold a pixel or more, got uint8 \[4, 0, 0\]"),
    ),
    "no image": (
        parts(train_images=lambda a: a[:0], train_targets=lambda a: a[:0]),
        Refused(r"train_images must hold a pixel or more, got uint8 \[0, 5, 6\]"),
    ),
    "channels in front": (
        parts(train_images=pixels(4, 3, 5, 6)),
        Refused(r"train_images must be .*, got uint8 \[4, 3, 5, 6\]; the channels stand last"),
    ),
    "images in both parts": (
        parts(test_images=pixels()[:4]),
        Told(
            "4 of 4 test images are training images as well; .*: image 0 of part 2, which is .* 0 of part 1",
            names=("0", "1"),
        ),
    ),
    "arrays of the other form": (
        parts() | {"images": pixels()},
        Refused("holds the array images beside train_images and test_images"),
    ),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("oddity", TWO_PARTS)
def test_an_npz_file_of_two_parts(oddity: str, tmp_path: Path) -> None:
    arrays, outcome = TWO_PARTS[oddity]
    np.savez(tmp_path / "data.npz", **arrays)
    check("multi_label_npz", {"path": str(tmp_path / "data.npz")}, outcome)


def rewrite(path: Path, key: str, content: Callable[[bytes], bytes]) -> None:
    """Other bytes for an array of an npz file, with their true checksum."""
    with zipfile.ZipFile(path) as file:
        entries = {entry: file.read(entry) for entry in file.namelist()}
    entries[key] = content(entries[key])
    with zipfile.ZipFile(path, "w") as file:
        for entry, held in entries.items():
            file.writestr(entry, held)


HUGE = repr((2**50,) + (5, 6))


@pytest.mark.parametrize("reader", NPZ)
@pytest.mark.parametrize(
    ("damage", "line"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:300]), "it is no whole .npz file"),
        (lambda path: path.write_bytes(b""), "it is no whole .npz file"),
        (
            lambda path: path.write_bytes(path.read_bytes().replace(b"\x93NUMPY", b"\x93NUMBY", 1)),
            "it is damaged",
        ),
        (lambda path: rewrite(path, "labels.npy", lambda held: b"cat, dog"), "labels is not an array"),
        (lambda path: rewrite(path, "labels.npy", lambda held: held[:-1]), "it is damaged"),
        (
            lambda path: rewrite(path, "images.npy", lambda held: held.replace(b"(8, 5, 6)", HUGE.encode())),
            "memory is short for the array images: Unable to allocate",
        ),
    ],
)
def test_a_damaged_npz_file_is_one_line(
    reader: str, damage: Callable[[Path], Any], line: str, tmp_path: Path
) -> None:
    path = tmp_path / "data.npz"
    np.savez(path, **whole(reader == "multi_label_npz"))
    damage(path)
    check(reader, {"path": str(path)}, Refused(rf"data\.npz: .*{line}"))


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("reader", NPZ)
def test_an_array_that_an_npz_file_holds_twice_is_one_line(reader: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", **whole(reader == "multi_label_npz"))
    with zipfile.ZipFile(tmp_path / "data.npz", "a") as file:
        file.writestr("labels.npy", file.read("labels.npy"))
    check(
        reader, {"path": str(tmp_path / "data.npz")}, Refused("there are two arrays labels; keep one of them")
    )


# -------------------------------------------------------------------------------------- files of two parts


def annotations(**changed: Any) -> dict[str, Any]:
    """A file of instances: images 0 to 3, cats and dogs in turn."""
    held = {
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
        "images": [{"id": i, "file_name": f"{i}.png"} for i in range(4)],
        "annotations": [{"image_id": i, "category_id": 1 + i % 2} for i in range(4)],
    }
    return held | {key: value(held[key]) if callable(value) else value for key, value in changed.items()}


def entry(key: str, number: int, **changed: Any) -> dict[str, Callable[[Any], Any]]:
    """One entry of a list in another form."""
    return {key: lambda held: [e | changed if i == number else e for i, e in enumerate(held)]}


def more(key: str, *entries: Any) -> dict[str, Callable[[Any], Any]]:
    return {key: lambda held: [*held, *entries]}


LINE = r"train\.json, "
COCO_FILES: dict[str, tuple[Any, Outcome]] = {
    "as it should be": (annotations(), Used()),
    "a crowd": (annotations(**entry("annotations", 0, iscrowd=1, bbox=[0, 0, 0, 0])), Used()),
    "ids as text": (
        annotations(
            images=lambda a: [e | {"id": str(e["id"])} for e in a],
            annotations=lambda a: [e | {"image_id": float(e["image_id"])} for e in a],
        ),
        Used(),
    ),
    "an image without annotation": (
        annotations(**more("images", {"id": 9, "file_name": "9.png"})),
        Used(train=5),
    ),
    "equal annotations": (annotations(annotations=lambda a: a + a), Used()),
    "equal ids of images": (
        annotations(**entry("images", 1, id=0)),
        Refused(LINE + r"images\[1\]: the id 0 is that of another image, too"),
    ),
    "equal ids of categories": (
        annotations(**entry("categories", 1, id=1)),
        Refused(LINE + r"categories\[1\]: the id 1 is that of another category, too"),
    ),
    "equal names of categories": (
        annotations(**entry("categories", 1, name="cat")),
        Refused(r'train\.json: categories 1 and 2 are both called "cat"'),
    ),
    "a group called as its class": (annotations(**more("categories", {"id": 0, "name": "cat"})), Used()),
    "a name in two Unicode forms": (
        annotations(
            categories=[{"id": 1, "name": E_APART}, {"id": 2, "name": E_COMPOSED}],
        ),
        Refused(r'train\.json: categories 1 and 2 are both called "\u00e9"'),
    ),
    "a file name twice": (
        annotations(**entry("images", 2, file_name="./0.png")),
        Told(
            (
                "1 of 8 entries name an image again, their labels joined; the first: .*0.png",
                'class "cat" has one training image only',
            ),
            train=3,
        ),
    ),
    "an annotation of no image": (
        annotations(**entry("annotations", 3, image_id=7)),
        Refused(LINE + r"annotations\[3\]: an annotation names image 7, which the file does not list"),
    ),
    "an annotation of no category": (
        annotations(**entry("annotations", 3, category_id=7)),
        Refused(LINE + r"annotations\[3\]: an annotation names category 7, which the file does not list"),
    ),
    "an id with a fraction": (
        annotations(**entry("images", 1, id=1.5)),
        Refused(LINE + r"images\[1\]: id must be an integer, got 1.5"),
    ),
    "an id of no number": (
        annotations(**entry("images", 1, id="one")),
        Refused(LINE + r'images\[1\]: id must be an integer, got "one"'),
    ),
    "an infinite id": (
        annotations(**entry("annotations", 1, category_id=float("inf"))),
        Refused(LINE + r"annotations\[1\]: category_id must be an integer, got Infinity"),
    ),
    "a true id": (
        annotations(**entry("images", 1, id=True)),
        Refused(LINE + r"images\[1\]: id must be an integer, got true"),
    ),
    "no id": (
        annotations(categories=[{"name": "cat"}]),
        Refused(LINE + r"categories\[0\]: there is no id; it holds name"),
    ),
    "no name": (
        annotations(**entry("categories", 1, name=None)),
        Refused(LINE + r"categories\[1\]: name must be text in one line, got null"),
    ),
    "a name of two lines": (
        annotations(**entry("categories", 1, name="dog\nbig")),
        Refused(LINE + r"categories\[1\]: name must be text in one line"),
    ),
    "half a character": (
        annotations(**entry("categories", 1, name="\ud800")),
        Refused(LINE + r"categories\[1\]: name must be text in one line"),
    ),
    "NUL in a file name": (
        annotations(**entry("images", 1, file_name="\0.png")),
        Refused(LINE + r"images\[1\]: file_name must be text in one line"),
    ),
    "a file name that leads out": (
        annotations(**entry("images", 1, file_name="../train.json")),
        Refused(LINE + r"images\[1\]: the file name \.\./train\.json leads out of the folder of images"),
    ),
    "a file name from the root": (
        annotations(**entry("images", 1, file_name="/etc/hosts")),
        Refused(LINE + r"images\[1\]: the file name /etc/hosts leads out of the folder of images"),
    ),
    "an entry that is a number": (
        annotations(images=[3]),
        Refused(LINE + r"images\[0\] must be an object, not a number"),
    ),
    "a key twice": (
        json.dumps(annotations()).replace('"id": 3', '"id": 2, "id": 3').encode(),
        Refused(r'train\.json is not a COCO file of instances: "id" stands twice in an object'),
    ),
    "images that are no list": (
        annotations(images={"0": "0.png"}),
        Refused(r"train\.json: images must be a list, not an object"),
    ),
    "no list of categories": (
        {"images": [], "annotations": []},
        Refused(
            r"train\.json is not a COCO file of instances: it has no categories; it holds annotations, images"
        ),
    ),
    "a list": (
        [1],
        Refused(r"train\.json is not a COCO file of instances: it must hold an object, not a list"),
    ),
    "no JSON": (b"{", Refused(r"train\.json is not a COCO file of instances")),
    "Latin-1": (b'{"\xe9": 1}', Refused(r"train\.json is not a COCO file of instances")),
    "brackets upon brackets": (
        b"[" * 100_000,
        Refused(r"train\.json is not a COCO file of instances: brackets stand too deep"),
    ),
    "a number of 5000 digits": (b"9" * 5000, Refused(r"train\.json is not a COCO file of instances")),
    "a mark of the byte order": (b"\xef\xbb\xbf" + json.dumps(annotations()).encode(), Used()),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("oddity", COCO_FILES)
def test_a_coco_file(oddity: str, images: Path, tmp_path: Path) -> None:
    train, outcome = COCO_FILES[oddity]
    test = annotations(images=[{"id": i, "file_name": f"{4 + i}.png"} for i in range(4)])
    (tmp_path / "train.json").write_bytes(train if isinstance(train, bytes) else json.dumps(train).encode())
    (tmp_path / "test.json").write_text(json.dumps(test))
    check("coco", coco_arguments(tmp_path, images), outcome)


def coco_arguments(folder: Path, images: Path) -> dict[str, Any]:
    return {
        "path": str(folder),
        "train_annotations": "train.json",
        "test_annotations": "test.json",
        "train_images": str(images),
        "test_images": str(images),
    }


CATS = ["0 1", "1 -1", "2  1", "3 -1"]
VOC_FILES: dict[str, tuple[bytes, Outcome]] = {
    "as it should be": (b"\n".join(map(str.encode, CATS)), Used()),
    "line ends of Windows, empty lines": ("\r\n".join([*CATS, "", ""]).encode(), Used()),
    "a mark of the byte order": (b"\xef\xbb\xbf" + "\n".join(CATS).encode(), Used()),
    "equal lines": (
        "\n".join([*CATS, CATS[0]]).encode(),
        Told(r"cat_trainval\.txt: 1 of 5 lines repeat an earlier one; the first: line 5"),
    ),
    "an image with two flags": (
        "\n".join([*CATS, "0 -1"]).encode(),
        Refused(r"cat_trainval\.txt, line 5: the image 0 has -1, and 1 above"),
    ),
    "a missing cell": (
        "\n".join([*CATS[:3], "3"]).encode(),
        Refused(r"cat_trainval\.txt, line 4: .* got '3'"),
    ),
    "surplus cells": ("\n".join([*CATS[:3], "3 1 1"]).encode(), Refused(r"line 4: .* got '3 1 1'")),
    "another flag": ("\n".join([*CATS[:3], "3 5"]).encode(), Refused(r"line 4: .* 1, 0 or -1, got '3 5'")),
    "a flag that is a word": ("\n".join([*CATS[:3], "3 yes"]).encode(), Refused(r"line 4: .* got '3 yes'")),
    "another image": (
        "\n".join([*CATS[:3], "9 1"]).encode(),
        Refused(r"dog_trainval\.txt lists other images than the file of class cat: 3 is in one of them"),
    ),
    "nothing": (b"", Refused(r"dog_trainval\.txt lists other images than the file of class cat: 0 is")),
    "an image that leads out": (
        "\n".join([*CATS[:3], "../3 1"]).encode(),
        Refused(r"cat_trainval\.txt, line 4: the image \.\./3 leads out of the folder JPEGImages"),
    ),
    "Latin-1": (b"\xe9 1", Refused(r"cat_trainval\.txt: this is not a text file in UTF-8")),
    "NUL": (b"0\0 1", Refused(r"cat_trainval\.txt, line 1: every line must be an image and 1, 0 or -1")),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("oddity", VOC_FILES)
def test_a_voc_file(oddity: str, images: Path, tmp_path: Path) -> None:
    held, outcome = VOC_FILES[oddity]
    write_voc(tmp_path, images, ROWS)
    (tmp_path / "ImageSets" / "Main" / "._cat_trainval.txt").write_bytes(b"\0\xff")
    (tmp_path / "ImageSets" / "Main" / "cat_trainval.txt").write_bytes(held)
    check("voc2007", {"path": str(tmp_path)}, outcome)


# ------------------------------------------------------------------------ one scene, written for every reader


@dataclass(frozen=True)
class Row:
    """An image of the folder of images, its labels, and its part."""

    image: str
    labels: tuple[str, ...]
    part: str


ROWS = [Row(str(i), (("cat", "dog")[i % 2],), "test" if i > 3 else "train") for i in range(8)]


def write_csv(folder: Path, images: Path, rows: Sequence[Row]) -> dict[str, Any]:
    held = ["path,label,split"] + [f"{row.image}.png,{';'.join(row.labels)},{row.part}" for row in rows]
    (folder / "data.csv").write_text("\n".join(held))
    return {"path": str(folder / "data.csv"), "root": str(images)}


def write_npz(folder: Path, images: Path, rows: Sequence[Row], multi_label: bool) -> dict[str, Any]:
    names = sorted({name for row in rows for name in row.labels})
    hot = np.array([[name in row.labels for name in names] for row in rows], dtype=np.int64)
    files = [(images / f"{row.image}.png").read_bytes() for row in rows]
    arrays = jpeg(files) | {"labels": hot if multi_label else hot.argmax(1), "names": np.array(names)}
    del arrays["images"]
    np.savez(folder / "data.npz", **arrays, split=np.array([row.part for row in rows]))
    return {"path": str(folder / "data.npz")}


def write_coco(folder: Path, images: Path, rows: Sequence[Row]) -> dict[str, Any]:
    names = sorted({name for row in rows for name in row.labels})
    for part in ("train", "test"):
        some = [row for row in rows if row.part == part]
        held = {
            "categories": [{"id": c, "name": name} for c, name in enumerate(names)],
            "images": [{"id": i, "file_name": f"{row.image}.png"} for i, row in enumerate(some)],
            "annotations": [
                {"image_id": i, "category_id": names.index(name)}
                for i, row in enumerate(some)
                for name in row.labels
            ],
        }
        (folder / f"{part}.json").write_text(json.dumps(held))
    return coco_arguments(folder, images)


def write_voc(folder: Path, images: Path, rows: Sequence[Row]) -> dict[str, Any]:
    (folder / "ImageSets" / "Main").mkdir(parents=True)
    (folder / "JPEGImages").mkdir()
    for name in {row.image for row in rows}:
        if (images / f"{name}.png").exists():
            (folder / "JPEGImages" / f"{name}.jpg").symlink_to((images / f"{name}.png").resolve())
    for name in {name for row in rows for name in row.labels}:
        for part, file in (("train", "trainval"), ("test", "test")):
            held = [f"{row.image} {1 if name in row.labels else -1}" for row in rows if row.part == part]
            (folder / "ImageSets" / "Main" / f"{name}_{file}.txt").write_text("\n".join(held))
    return {"path": str(folder)}


def write_folders(folder: Path, images: Path, rows: Sequence[Row]) -> dict[str, Any]:
    for number, row in enumerate(rows):
        place = folder / row.part / row.labels[0]
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{number}.png").symlink_to((images / f"{row.image}.png").resolve())
    return {"path": str(folder)}


def linked(folder: Path, images: Path, image: str) -> str:
    """A link to an image of the folder of images; its name."""
    folder.mkdir(parents=True, exist_ok=True)
    place = folder / f"{image}.png"
    if not place.is_symlink():
        place.symlink_to((images / f"{image}.png").resolve())
    return place.name


def write_lists(folder: Path, images: Path, rows: Sequence[Row]) -> dict[str, Any]:
    for part in ("train", "test"):
        some = [row for row in rows if row.part == part]
        names = [f"{row.labels[0]}/{linked(folder / row.labels[0], images, row.image)}\n" for row in some]
        (folder / f"{part}.txt").write_text("".join(names))
    return {"path": str(folder), "lists": (str(folder / "train.txt"), str(folder / "test.txt"))}


def write_cub200(folder: Path, images: Path, rows: Sequence[Row]) -> dict[str, Any]:
    names = sorted({row.labels[0] for row in rows})
    held = [
        (linked(folder / "images", images, row.image), names.index(row.labels[0]), row.part == "test")
        for row in rows
    ]
    cub200_tables(folder, held, names)
    return {"path": str(folder)}


def write_cars(folder: Path, images: Path, rows: Sequence[Row]) -> dict[str, Any]:
    names = sorted({row.labels[0] for row in rows})
    folder = folder / "stanford_cars"
    held = [
        (
            linked(folder / f"cars_{row.part}", images, row.image),
            names.index(row.labels[0]),
            row.part == "test",
        )
        for row in rows
    ]
    stanford_cars_tables(folder, held, names)
    return {"path": str(folder)}


def write_mit67(folder: Path, images: Path, rows: Sequence[Row]) -> dict[str, Any]:
    lines: dict[str, list[str]] = {"train": [], "test": []}
    for row in rows:
        place = folder / "Images" / row.labels[0]
        lines[row.part].append(f"{row.labels[0]}/{linked(place, images, row.image)}")
    for part, held in lines.items():
        write_lines(folder / f"{part.title()}Images.txt", held)
    return {"path": str(folder)}


def write_domainnet(folder: Path, images: Path, rows: Sequence[Row]) -> dict[str, Any]:
    names = sorted({row.labels[0] for row in rows})
    lines: dict[str, list[str]] = {"train": [], "test": []}
    for row in rows:
        (name,) = row.labels
        file = linked(folder / "real" / name, images, row.image)
        lines[row.part].append(f"real/{name}/{file} {names.index(name)}")
    for part, held in lines.items():
        write_lines(folder / f"real_{part}.txt", held)
    return {"path": str(folder), "domains": ["real"]}


READERS: dict[str, Callable[[Path, Path, Sequence[Row]], dict[str, Any]]] = {
    "csv": write_csv,
    "multi_label_csv": write_csv,
    "npz": lambda *scene: write_npz(*scene, multi_label=False),
    "multi_label_npz": lambda *scene: write_npz(*scene, multi_label=True),
    "coco": write_coco,
    "voc2007": write_voc,
    "imagefolder": write_folders,
    "imagefolder, lists": write_lists,
    "cub200": write_cub200,
    "stanford_cars": write_cars,
    "mit67": write_mit67,
    "domainnet": write_domainnet,
}
#: Each image is a link below the folder of the data set.
LINKED = ("imagefolder", "imagefolder, lists", "cub200", "stanford_cars")
#: Readers that answer as another does, and what they answer otherwise.
ALIKE = {"mit67": "imagefolder, lists", "domainnet": "cub200"}

ONE_LABEL = NotThere("an image has one label")
SHARED = Told(r"1 of 5 test images are training images as well; the first: .*0", test=5)
ANOTHER = r"images come again with another label; the first: "
NO_FILE = r"the image cannot be read: there is no such file; .*on_bad_image=skip"
EMPTY = r"the image cannot be read: it is empty; .*on_bad_image=skip"
IN_FILE = NotThere("images stand in the file")
SKIPPED = Told(r"1 of 9 images are left out; the first: .*: the image cannot be read: ")

SCENES: dict[str, tuple[list[Row], dict[str, Any], dict[str, Outcome]]] = {
    "as it should be": (ROWS, {}, dict.fromkeys(READERS, Used())),
    "an image in both parts": (
        [*ROWS, Row("0", ("cat",), "test")],
        {},
        dict.fromkeys(READERS, SHARED)
        | {
            "imagefolder, lists": Refused(
                r"test\.txt, line 5: cat/0\.png is a training image, too \(.*line 1\)"
            )
        },
    ),
    "an image in both parts by a link": (
        [*ROWS, Row("link", ("cat",), "test")],
        {},
        dict.fromkeys(READERS, Told("1 of 5 test images are training images as well", test=5)),
    ),
    "an image twice": (
        [*ROWS, Row("0", ("cat",), "train")],
        {},
        {
            "csv": Told("1 of 9 lines name an image again, left out"),
            "multi_label_csv": Told("1 of 9 lines name an image again, their labels joined"),
            "npz": Told("1 of 9 images come again with the same label; .*image 8, which is image 0", train=5),
            "multi_label_npz": Told("1 of 9 images come again with the same label", train=5),
            "coco": Told("1 of 9 entries name an image again, their labels joined"),
            "voc2007": Told(
                (r"cat_trainval\.txt: 1 of 5 lines repeat an earlier one", r"dog_trainval\.txt: 1 of 5 lines")
            ),
            **dict.fromkeys(LINKED, Told("1 of 9 images come again with the same label", train=5)),
        },
    ),
    "an image with two labels in two rows": (
        [*ROWS, Row("0", ("dog",), "train")],
        {},
        {
            "csv": Refused('line 10: .*0.png has the label "dog", and the label "cat" in .*line 2'),
            "multi_label_csv": Told("1 of 9 lines name an image again, their labels joined"),
            "npz": Told(f"1 of 9 {ANOTHER}image 8, which is image 0", train=5),
            "multi_label_npz": Told(f"1 of 9 {ANOTHER}image 8, which is image 0", train=5),
            "coco": Told("1 of 9 entries name an image again, their labels joined"),
            "voc2007": Refused(r"cat_trainval\.txt, line 5: the image 0 has -1, and 1 above"),
            "imagefolder": Told(f"1 of 9 {ANOTHER}.*8.png, which is .*0.png", train=5),
            "imagefolder, lists": Told(f"1 of 9 {ANOTHER}.*dog/0.png, which is .*cat/0.png", train=5),
            "cub200": Told(f"1 of 9 {ANOTHER}.*0.png", train=5),
            "stanford_cars": Told(f"1 of 9 {ANOTHER}.*0.png", train=5),
        },
    ),
    "a test label that no training image has": (
        [*ROWS, Row("8", ("bird",), "test")],
        {},
        dict.fromkeys(
            READERS,
            Refused('class "bird" has test images, but no training image; .*data.classes, which lists'),
        )
        | {"multi_label_csv": Refused('line 10: unknown class "bird"; no training image has it')},
    ),
    "such a label, left out": (
        [*ROWS, Row("8", ("bird",), "test")],
        {"classes": ["cat", "dog"]},
        dict.fromkeys(READERS, Used()) | {"multi_label_csv": Refused('line 10: unknown class "bird"')},
    ),
    "no test image has a label": (
        [Row(row.image, row.labels if row.part == "train" else (), row.part) for row in ROWS],
        {},
        {
            "csv": Refused("line 6: the label is missing"),
            "multi_label_csv": Refused("no test image has a label"),
            "npz": ONE_LABEL,
            "multi_label_npz": Refused("no test image has a label"),
            "coco": Refused("no test image has a label"),
            "voc2007": Refused("no test image has a label"),
            **dict.fromkeys(LINKED, ONE_LABEL),
        },
    ),
    "no training image has a label": (
        [Row(row.image, row.labels if row.part == "test" else (), row.part) for row in ROWS],
        {},
        {
            "csv": Refused("line 2: the label is missing"),
            "multi_label_csv": Refused('line 6: unknown class "cat"; no training image has it'),
            "npz": ONE_LABEL,
            "multi_label_npz": Refused("no training image has a label"),
            "coco": Refused("no training image has a label"),
            "voc2007": Refused("no training image has a label"),
            **dict.fromkeys(LINKED, ONE_LABEL),
        },
    ),
    "a missing image": (
        [*ROWS, Row("99", ("cat",), "train")],
        {},
        dict.fromkeys(READERS, Refused(NO_FILE))
        | dict.fromkeys(NPZ, IN_FILE)
        | dict.fromkeys(
            LINKED, Refused("the image cannot be read: it is a link to a file that is not there; ")
        ),
    ),
    "a missing image, skipped": (
        [*ROWS, Row("99", ("cat",), "train")],
        {"on_bad_image": "skip"},
        dict.fromkeys(READERS, SKIPPED) | dict.fromkeys(NPZ, IN_FILE),
    ),
    "an empty image": ([*ROWS, Row("empty", ("cat",), "train")], {}, dict.fromkeys(READERS, Refused(EMPTY))),
    "an empty image, skipped": (
        [*ROWS, Row("empty", ("cat",), "train")],
        {"on_bad_image": "skip"},
        dict.fromkeys(READERS, SKIPPED),
    ),
    "a damaged image, skipped": (
        [*ROWS, Row("damaged", ("cat",), "train")],
        {"on_bad_image": "skip"},
        dict.fromkeys(READERS, SKIPPED),
    ),
    "an image of too many pixels, skipped": (
        [*ROWS, Row("large", ("cat",), "train")],
        {"on_bad_image": "skip", "max_pixels": 30},
        dict.fromkeys(READERS, Told(r"1 of 9 images are left out; .* 6 x 6 = 36 pixels; max_pixels is 30")),
    ),
    "a name in two Unicode forms": (
        [
            *ROWS,
            Row("8", (E_APART,), "train"),
            Row("9", (E_APART,), "train"),
            Row("10", (E_COMPOSED,), "test"),
        ],
        {},
        dict.fromkeys(READERS, Used(train=6, test=5, names=("cat", "dog", E_COMPOSED)))
        | {
            "npz": NotThere("labels are numbers; see the table of npz files"),
            "multi_label_npz": NotThere("labels are numbers; see the table of npz files"),
            "voc2007": Refused(r'two files \*_trainval\.txt are those of the class "\u00e9"'),
            "coco": Used(train=6, test=5, names=("cat", "dog", E_COMPOSED)),
            "cub200": Refused('class "\u00e9" has test images, but no training image'),
            "stanford_cars": Refused('class "\u00e9" has test images, but no training image'),
        },
    ),
    "a class chosen in the other Unicode form": (
        [*ROWS, Row("8", (E_APART,), "train"), Row("9", (E_APART,), "train"), Row("10", (E_APART,), "test")],
        {"classes": ["cat", E_COMPOSED]},
        dict.fromkeys(READERS, Used(train=4, test=3, names=("cat", E_COMPOSED))),
    ),
    "one class left": (ROWS, {"classes": ["dog"]}, dict.fromkeys(READERS, Used(2, 2, ("dog",)))),
    "a class of 5000 digits": (
        ROWS,
        {"classes": "9" * 5000},
        dict.fromkeys(READERS, Refused(r"data\.classes: there is no class \"999")),
    ),
    "no image that can be read": (
        [Row("damaged", ("cat",), "train"), Row("empty", ("cat",), "test")],
        {"on_bad_image": "skip"},
        dict.fromkeys(READERS, Refused("there is no image"))
        | {"stanford_cars": NotThere("torchvision reads tables of two rows or more")},
    ),
    "a class that is not there": (
        ROWS,
        {"classes": ["dgo"]},
        dict.fromkeys(READERS, Refused(r'data\.classes: there is no class "dgo"; did you mean "dog"')),
    ),
}
for scene in SCENES.values():
    scene[2].update({reader: scene[2][other] for reader, other in ALIKE.items()})
SCENES["an image in both parts"][2]["mit67"] = Refused(
    r"TestImages\.txt, line 5: cat/0\.png is a training image, too \(.*TrainImages\.txt, line 1\)"
)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("oddity", "reader", "outcome"), cells({name: row for name, (_, _, row) in SCENES.items()})
)
def test_a_scene(oddity: str, reader: str, outcome: Outcome, images: Path, tmp_path: Path) -> None:
    rows, arguments, _ = SCENES[oddity]
    check(reader, READERS[reader](tmp_path, images, rows) | arguments, outcome)


@pytest.mark.parametrize(
    ("table", "readers"),
    [(CSV_FILES, CSV), (NPZ_FILES, NPZ), (SCENES, tuple(READERS))],
    ids=["csv", "npz", "scenes"],
)
def test_no_cell_is_missing(table: dict[str, tuple], readers: tuple[str, ...]) -> None:
    assert {name: set(row[-1]) for name, row in table.items()} == {name: set(readers) for name in table}
