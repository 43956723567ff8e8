"""JSON files with a checksum over what they say."""

import json

import pytest

from clprompt.errors import CheckpointError
from clprompt.system.documents import FORMAT, checksum, parse_lines, read_json, write_json

VALUES = {"name": "größer", "numbers": [1, 0.1, 1e-300, None, True], "cost": {"seconds": 1.5, "steps": 3}}


def test_a_document_gives_back_what_it_was_given(tmp_path):
    write_json(tmp_path / "a.json", VALUES)
    assert read_json(tmp_path / "a.json") == VALUES


def test_nan_becomes_null(tmp_path):
    write_json(tmp_path / "a.json", {"a": float("nan")})
    assert read_json(tmp_path / "a.json") == {"a": None}


def test_every_flipped_bit_is_told_or_changes_nothing(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {key: value for key, value in VALUES.items() if key != "cost"})
    expected, data = read_json(path), path.read_bytes()
    silent = []
    for position in range(len(data)):
        for bit in range(8):
            changed = bytearray(data)
            changed[position] ^= 1 << bit
            path.write_bytes(changed)
            try:
                same = {key: value for key, value in read_json(path).items() if key in expected} == expected
            except CheckpointError as error:
                same = "\n" not in str(error)
            if not same:
                silent.append((position, bit))
    assert silent == []


def test_a_document_without_a_checksum_is_read_as_it_is(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps(VALUES))
    assert read_json(tmp_path / "a.json") == VALUES


def test_a_document_without_a_format_is_of_the_first(tmp_path):
    write_json(tmp_path / "a.json", VALUES)
    held = json.loads((tmp_path / "a.json").read_text())
    assert held.pop("format") == FORMAT
    (tmp_path / "a.json").write_text(json.dumps({k: v for k, v in held.items() if k != "checksum"}))
    assert read_json(tmp_path / "a.json") == VALUES


@pytest.mark.parametrize("number", [FORMAT + 1, 0, "1", None])
def test_a_document_of_a_later_format_is_refused_in_one_line(tmp_path, number):
    (tmp_path / "a.json").write_text(json.dumps({"format": number, **VALUES}))
    with pytest.raises(CheckpointError, match=rf"this one reads formats up to {FORMAT}$"):
        read_json(tmp_path / "a.json")


def test_measured_times_do_not_change_a_checksum():
    slower = VALUES | {"cost": {"seconds": 9.0, "steps": 3}}
    assert checksum(slower) == checksum(VALUES)
    assert checksum(VALUES | {"cost": {"seconds": 1.5, "steps": 4}}) != checksum(VALUES)


@pytest.mark.parametrize("text", ["", "{", "[1]", "null", "[" * 100_000, '{"a":' * 100_000, "\x00"])
def test_a_file_that_holds_no_object_is_one_line(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"a\.json cannot be read: ") as caught:
        read_json(tmp_path / "a.json")
    assert "\n" not in str(caught.value)


def test_lines_that_are_no_objects_are_told_by_their_number():
    with pytest.raises(ValueError, match="line 2 is no JSON object"):
        parse_lines(b'{"a": 1}\n[1]\n')
    with pytest.raises(ValueError, match="line 1 is no JSON"):
        parse_lines(b"[" * 100_000)
