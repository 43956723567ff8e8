"""Class orders from files: what they hold decides, and what is wrong with one is one line."""

import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clprompt.data.plan import Plan
from clprompt.errors import ConfigError
from clprompt.scenarios import multi_label, split

NAMES = ("ant", "bee", "cow", "dog", "café")
ORDER = [3, 0, 4, 1, 2]


def of_split(**arguments: Any) -> Plan:
    return split.plan(np.arange(10) % 5, experiences=2, **arguments)


def of_multi_label(**arguments: Any) -> Plan:
    return multi_label.plan(np.eye(5, dtype=int), classes_per_experience=3, **arguments)


STREAMS = pytest.mark.parametrize("stream", [of_split, of_multi_label])


def npy(values: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, values)
    return file.getvalue()


FILES: dict[str, bytes] = {
    "ids.txt": b"3\n0\n4\n1\n2\n",
    "windows.txt": b"\xef\xbb\xbf3\r\n0\r\n4\r\n1\r\n2\r\n\r\n",
    "names.txt": "dog\nant\ncafe\u0301\nbee\ncow".encode(),
    "ids.json": json.dumps(ORDER).encode(),
    "names.json": json.dumps([NAMES[c] for c in ORDER]).encode(),
    "ids.yaml": b"- 3\n- 0\n- 4\n- 1\n- 2\n",
    "names.yml": "[dog, ant, café, bee, cow]".encode(),
    "ids.npy": npy(np.array(ORDER)),
    "names.npy": npy(np.array([NAMES[c] for c in ORDER])),
}


@STREAMS
@pytest.mark.parametrize("name", FILES)
def test_a_file_gives_the_order_that_it_holds(stream: Any, name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(FILES[name])
    found = stream(class_order=str(path), class_names=NAMES)
    assert [c for group in found.classes for c in group] == ORDER
    assert found.fingerprint() == stream(class_order=ORDER).fingerprint()


def test_a_path_is_that_of_the_folder_one_stands_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "orders").mkdir()
    for name in ("order.txt", "orders/mine"):
        (tmp_path / name).write_bytes(FILES["ids.txt"])
    monkeypatch.chdir(tmp_path)
    for name in ("order.txt", "orders/mine"):
        assert of_split(class_order=name).fingerprint() == of_split(class_order=ORDER).fingerprint()


@STREAMS
def test_the_alphabetical_order_is_that_of_the_names(stream: Any) -> None:
    found = stream(class_order="alphabetical", class_names=["dog", "Ant", "bee", "ant", "cow"])
    assert [c for group in found.classes for c in group] == [1, 3, 2, 4, 0]


def test_an_order_by_name_needs_the_names() -> None:
    with pytest.raises(ConfigError, match="alphabetical: the names of the classes are not known here"):
        of_split(class_order="alphabetical")


BROKEN: dict[str, tuple[bytes | None, str]] = {
    "none.txt": (None, "there is no file .*none.txt"),
    "twice.txt": (
        b"3\n0\n3\n1\n2\n",
        "twice.txt, line 3: class 3 is there twice; .* the 5 classes once",
    ),
    "missing.txt": (b"3\n0\n4\n1\n", "missing.txt: class 2 is missing"),
    "empty.txt": (b"", "empty.txt: class 0 and 4 more are missing"),
    "many.json": (b"[0, 1, 2, 3, 4, 5]", "many.json, entry 6: there is no class 5"),
    "negative.json": (b"[0, 1, 2, 3, -1]", "entry 5: there is no class -1"),
    "unknown.txt": (b"dog\nant\nbe\ncow\ncaf", 'line 3: there is no class "be"; did you mean "bee"?'),
    "twice.json": (b'["dog", "ant", "dog", "bee", "cow"]', "entry 3: class 3 is there twice"),
    "blank.txt": (b"3\n\n0\n4\n1\n2\n", "cannot be read: line 2 is empty"),
    "mapping.json": (b'{"order": [0]}', "must hold a list of class ids or names"),
    "float.json": (b"[0, 1.0, 2, 3, 4]", "entry 2 is neither an integer nor text"),
    "bool.yaml": (b"[0, yes, 2, 3, 4]", "entry 2 is neither an integer nor text"),
    "half.json": (b"[0, 1,", "half.json cannot be read: it is broken"),
    "half.yaml": (b"[0, 1,", "half.yaml cannot be read: it is broken"),
    "latin.txt": (b"dog\nant\ncaf\xe9", "line 3 is no text in UTF-8"),
    "table.npy": (npy(np.eye(5, dtype=int)), "must hold a list"),
    "floats.npy": (npy(np.arange(5.0)), "entry 1 is neither an integer nor text"),
    "half.npy": (npy(np.arange(5))[:-4], "no whole .npy file"),
    "objects.npy": (npy(np.array([None, 3])), "no whole .npy file"),
    "nul\0.txt": (None, "cannot be read"),
    "large.txt": (b"0\n" * 2**23 + b"1", "too large for a class order"),
}


@STREAMS
@pytest.mark.parametrize("name", BROKEN)
def test_a_file_that_is_no_order_is_one_line(stream: Any, name: str, tmp_path: Path) -> None:
    content, message = BROKEN[name]
    path = f"{tmp_path}/{name}"
    if content is not None:
        Path(path).write_bytes(content)
    with pytest.raises(ConfigError, match=f"^scenario.class_order: .*{message}") as told:
        stream(class_order=path, class_names=NAMES)
    assert "\n" not in str(told.value)


def test_a_folder_or_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.txt")
    for path, kind in ((tmp_path / "pipe.txt", "a pipe"), (tmp_path, "a folder")):
        with pytest.raises(ConfigError, match=f"cannot be read: it is {kind}"):
            of_split(class_order=str(path))


def test_names_that_nobody_knows_or_that_two_classes_have_are_told(tmp_path: Path) -> None:
    path = tmp_path / "names.txt"
    path.write_bytes(FILES["names.txt"])
    with pytest.raises(ConfigError, match=r'line 1: "dog" is no class id, and the names .* are not known'):
        of_split(class_order=str(path))
    with pytest.raises(ConfigError, match='line 2: 2 classes are called "ant", write class ids'):
        of_split(class_order=str(path), class_names=["ant", "ant", "cow", "dog", "café"])


@STREAMS
@pytest.mark.parametrize("as_text", [False, True])
def test_a_list_of_names_gives_their_order(stream: Any, as_text: bool) -> None:
    names = [NAMES[c] for c in ORDER]
    found = stream(class_order=",".join(names) if as_text else names, class_names=NAMES)
    assert found.fingerprint() == stream(class_order=ORDER).fingerprint()


def test_a_name_of_no_class_in_a_list_is_told_with_its_place() -> None:
    with pytest.raises(ConfigError, match='class_order, entry 2: there is no class "elk"') as told:
        of_split(class_order=["dog", "elk", "ant", "bee", "cow"], class_names=NAMES)
    assert "\n" not in str(told.value)


@STREAMS
def test_a_list_says_what_keeps_it_from_being_an_order(stream: Any) -> None:
    for order, problem in (([0, 1, 1, 2, 3], "class 1 is there twice"), ([0, 1], "class 2 and 2 more are")):
        with pytest.raises(ConfigError, match=f"permutation of the class ids 0..4: {problem}"):
            stream(class_order=order)
