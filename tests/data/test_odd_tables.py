"""What other people's tables hold, in every reader: each cell of the tables below says what becomes of it.

A cell is ``Used`` (read, without a word), ``Told`` (read, and notes say what, with a number), ``Refused``
(one line that names the place), or ``NotThere`` (the reader's files cannot hold such a thing, and why). A
reader that is left out of a row is a failure.
"""

import re
import unicodedata
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from clprompt import registry
from clprompt.data import DataBundle
from clprompt.errors import ClpromptError, DataWarning

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
    read = registry.datasets.get(reader).target
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
    for pattern, note in zip((told,) if isinstance(told, str) else told, notes, strict=True):
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
    (folder / "folder").mkdir()
    return folder


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("oddity", "reader", "outcome"), cells({name: row for name, (_, row) in CSV_FILES.items()})
)
def test_a_csv_file(oddity: str, reader: str, outcome: Outcome, images: Path, tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_bytes(CSV_FILES[oddity][0])
    check(reader, {"path": str(tmp_path / "data.csv"), "root": str(images)}, outcome)


@pytest.mark.parametrize("oddity", CSV_FILES)
def test_no_cell_of_the_csv_table_is_missing(oddity: str) -> None:
    assert tuple(CSV_FILES[oddity][1]) == CSV
