"""`data.class_names`: what the classes of any data set are called."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_data import READERS

from clprompt import schema
from clprompt.data import DataBundle, assemble, takes_selection, takes_views
from clprompt.data.bundle import plan_over
from clprompt.data.class_names import read_names
from clprompt.data.selection import Selection
from clprompt.errors import DataError, DataWarning
from clprompt.registry import datasets

OWN = ["cat", "dog"]
WORDNET = ["n01440764", "n01443537"]


# ----------------------------------------------------------------------------------------------- every reader


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.filterwarnings("ignore::clprompt.errors.DataWarning")
def test_every_reader_shows_the_names_that_are_given(reader: str, tmp_path: Path) -> None:
    target, arguments = datasets.get(reader).target, READERS[reader](tmp_path)
    plain = target(**arguments)
    given: dict[str, Any] = {name: f"class {c}" for c, name in enumerate(plain.class_names)}
    given[plain.class_names[0]] = ["the first", "synonym 0"]
    bundle = target(**arguments, class_names=given)
    count = len(plain.class_names)
    assert bundle.class_names == ["the first", *(f"class {n}" for n in range(1, count))]
    assert bundle.own_names == plain.class_names == plain.own_names
    assert bundle.names()[0] == ["the first", "synonym 0"]
    assert np.array_equal(bundle.train.targets, plain.train.targets)


# ------------------------------------------------------------------------------------------------ of a bundle


@takes_views()
@takes_selection(but=("test_fraction",))
def mine(*, selection: Selection) -> DataBundle:
    """Mine."""
    labels = np.array(["cat", "dog", "eel"])[np.arange(12) % 3]
    return assemble("mine", lambda index: np.full((8, 8), index), labels, np.arange(12) > 5, selection)


NAMES = {"cat": "zebra", "dog": "yak", "eel": "x ray"}


def test_classes_and_streams_go_on_by_the_datas_own_names() -> None:
    bundle = mine(classes=["eel", "cat"], class_names={"cat": "zebra", "eel": "anaconda"})
    assert bundle.class_names == ["zebra", "anaconda"]
    stream = plan_over(bundle, {"name": "split", "experiences": 2, "class_order": "alphabetical"}, seed=0)
    assert stream.classes == ((0,), (1,))


def test_names_are_among_the_fingerprints_of_the_data() -> None:
    plain = mine().fingerprints
    named = mine(class_names=NAMES).fingerprints
    assert "synonyms" not in plain
    assert named["class names"] == ["zebra", "yak", "x ray"]
    other = mine(class_names=NAMES | {"cat": ["zebra", "horse"]}).fingerprints
    assert other["class names"] == named["class names"]
    assert other["synonyms"] != named["synonyms"]


def test_two_classes_with_one_shown_name_draw_a_notice() -> None:
    with pytest.warns(DataWarning, match='1 names are those of several classes; the first: "zebra"'):
        mine(class_names=NAMES | {"dog": "zebra"})


def test_a_section_of_a_configuration_takes_class_ids_as_keys() -> None:
    section = schema.plain({"class_names": {0: "zebra", 1: ["yak", "ox"]}}, "data")
    checked = schema.arguments(mine, section, "data")["class_names"]
    assert checked == {"0": "zebra", "1": ["yak", "ox"]}


# -------------------------------------------------------------------------------------------------- of a file


FILES = [
    ("names.txt", "a b\nc\n", OWN, [["a b"], ["c"]]),
    ("names.txt", "dog\tc\ncat\ta b\tsynonym\n", OWN, [["a b", "synonym"], ["c"]]),
    ("names.txt", "1\tc\n0\ta b\n", OWN, [["a b"], ["c"]]),
    (
        "LOC_synset_mapping.txt",
        "n01440764 tench, Tinca tinca\nn01443537 goldfish\n",
        WORDNET,
        [["tench", "Tinca tinca"], ["goldfish"]],
    ),
    ("names.yaml", "cat: a b\ndog: [c, d]\n", OWN, [["a b"], ["c", "d"]]),
    ("names.yml", "0: a b\n1: c\n", OWN, [["a b"], ["c"]]),
    ("names.yaml", "- a b\n- [c, d]\n", OWN, [["a b"], ["c", "d"]]),
    ("names.json", '["a b", ["c", "d"]]', OWN, [["a b"], ["c", "d"]]),
    ("names.json", '{"1": "c", "0": "a b"}', OWN, [["a b"], ["c"]]),
    ("names.json", '{"caf\\u00e9": "a"}', ["cafe\u0301"], [["a"]]),
    ("names.json", '{"3": "a", "5": "b"}', ["3", "5"], [["a"], ["b"]]),
    ("names.json", '{"0": "a", "1": "b"}', ["3", "5"], [["a"], ["b"]]),
    ("names.json", '{"1": "a", "2": "b"}', ["1", "2"], [["a"], ["b"]]),
]


@pytest.mark.parametrize(("name", "text", "own", "expected"), FILES)
def test_a_file_names_classes_by_id_or_by_their_own_names(
    name: str, text: str, own: list[str], expected: list[list[str]], tmp_path: Path
) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_names(str(tmp_path / name), own) == expected


WRONG = [
    ("a.json", '{"cat": "a"}', r'a.json: no name for class 1 \("dog"\)$'),
    ("a.json", '{"cat": "a", "Dog": "b"}', r'no name for class 1 \("dog"\); did you mean "Dog"\?'),
    ("a.json", "{}", r'no name for class 0 \("cat"\) \(and 1 more\)'),
    ("a.json", '{"0": "a"}', r'no name for class 1 \("dog"\)$'),
    ("a.json", '{"0": "a", "1": "b", "2": "c"}', "2 is not within the 2 classes 0-1"),
    ("a.json", json.dumps({"0": "a", "1": "b", "9" * 5000: "c"}), "9{60} is not within the 2 classes 0-1"),
    ("a.json", '["a"]', "a.json: 1 names for 2 classes"),
    ("a.json", '["a", "b", "c"]', "a.json: 3 names for 2 classes"),
    ("a.json", '["a", 7]', r'class 1 \("dog"\) must have a name, as text, or a list of names; got 7'),
    ("a.json", '["a", null]', r'class 1 \("dog"\) must have a name, .* got None'),
    ("a.json", '["a", []]', r'class 1 \("dog"\) must have a name, .* got \[\]'),
    ("a.json", '["a", " "]', r'class 1 \("dog"\) has an empty name'),
    ("a.json", '{"cat": "a", "cat": "b"}', 'class "cat" is named twice'),
    ("a.json", '{\n"cat"', "a.json, line 2: "),
    ("a.json", "[" * 100_000, "a.json: "),
    ("a.json", "3", "must hold a name for each class, as a mapping or a list; got 3"),
    ("a.yaml", "", "must hold a name for each class, .* got None"),
    ("a.yaml", "cat: a\ncat: b\n", "a.yaml, line 2: "),
    ("a.yaml", "no: a\n", "False must stand in quotes"),
    ("a.yaml", "0: a\n'0': b\n", 'class "0" is named twice'),
    ("a.yaml", "cat: [a", "a.yaml, line 1: "),
    ("a.txt", "", "a.txt: it is empty"),
    ("a.txt", "cat\ta\nb\n", "a.txt, line 2: the class, or the tab behind it, is missing, got 'b'"),
    ("a.txt", "a\n\ncat\tb\n", "a.txt, line 3: lines before have a name alone"),
    ("a.txt", "cat\ta\ncat\tb\n", 'a.txt, line 2: class "cat" is named twice'),
    ("a.txt", "a\n", "a.txt: 1 names for 2 classes"),
    ("a.txt", b"\xff\xfe", "a.txt: this is not text in UTF-8"),
]


@pytest.mark.parametrize(("name", "content", "said"), WRONG)
def test_a_wrong_file_is_one_line_that_names_it(
    name: str, content: str | bytes, said: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=said) as told:
        read_names(str(tmp_path / name), OWN)
    assert str(told.value).startswith("data.class_names: ")
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(("path", "said"), [("nowhere.json", "there is no such file"), (".", "not a file")])
def test_a_path_without_a_file_is_refused(path: str, said: str) -> None:
    with pytest.raises(DataError, match=rf"data\.class_names: {path}: .*{said}"):
        read_names(path, OWN)


def test_classes_that_the_data_do_not_have_draw_one_notice() -> None:
    given = {"cat": "a", "dog": "b", "eel": "c", "fox": "d"}
    with pytest.warns(DataWarning, match='the data do not have are left out: 2, the first "eel"'):
        assert read_names(given, OWN) == [["a"], ["b"]]
