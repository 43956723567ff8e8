"""YAML under limits: every string comes back as it is, and a hostile text is one line."""

from __future__ import annotations

import math
from typing import Any

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st
from nasty_text import NASTY
from omegaconf import OmegaConf

from clprompt import plain_yaml
from clprompt.plain_yaml import YamlError

texts = st.one_of(st.text(), st.lists(st.sampled_from(NASTY), max_size=4).map("".join))


def every_nasty_one(function: Any) -> Any:
    for text in NASTY:
        function = example(text)(function)
    return function


@every_nasty_one
@given(texts)
@settings(max_examples=60, deadline=None)
def test_every_text_is_read_as_it_was_written(text: str) -> None:
    values = {"key": text, "list": [text, {"inner": text}]}
    written = plain_yaml.write(values)
    assert plain_yaml.read(written) == values
    assert yaml.safe_load(written) == values


@every_nasty_one
@given(texts)
@settings(max_examples=60, deadline=None)
def test_every_text_survives_whether_interpolations_are_replaced_or_not(text: str) -> None:
    read = plain_yaml.read(plain_yaml.write({"key": text}, interpolated=True))
    assert plain_yaml.unescape(read) == {"key": text}
    if "${" in text:
        assert OmegaConf.to_container(OmegaConf.create(read), resolve=True) == {"key": text}


def test_an_interpolation_that_nobody_escaped_stands_for_itself() -> None:
    assert plain_yaml.unescape(["${x}", "\\\\${x}", "\\${x}"]) == ["${x}", "\\\\${x}", "${x}"]


@pytest.mark.parametrize("value", [0, -3, 10**30, 0.1, 1e-7, 1e300, -0.0, math.inf, None, True, [], {}, [[]]])
def test_every_plain_value_is_read_as_it_was_written(value: Any) -> None:
    read = plain_yaml.read(plain_yaml.write({"key": value}))
    assert repr(read) == repr({"key": value})


def test_what_is_not_plain_is_not_written() -> None:
    with pytest.raises(YamlError, match="no plain value: "):
        plain_yaml.write({"key": object()})


bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 30)
)
HOSTILE = {
    "brackets": ("a: " + "[" * 50_000, "more than 50 levels of nesting", 1),
    "braces": ("{a: " * 50_000, "more than 50 levels of nesting", 1),
    "indentation": ("".join(" " * n + "a:\n" for n in range(500)), "more than 50 levels of nesting", 50),
    "dashes": ("- " * 50_000, "more than 50 levels of nesting", 1),
    "laughs": (bomb, "more than 100000 values, aliases counted", 4),
    "merged laughs": (bomb.replace("[", "{<<: [").replace("]", "]}"), "", None),
    "circle": ("a: &a [1, *a]", "an alias stands inside its own anchor", 1),
    "twice": ("a: 1\nb: {c: 1, c: 2}", "found duplicate key c", 2),
    "tab": ("a: 1\n\tb: 2", "found character '\\t' that cannot start any token", 2),
    "nul": ("a: 1\nb: \x00", "the character #x0000 is not allowed", 2),
    "two documents": ("a: 1\n---\nb: 1", "but found another document", 2),
    "code": (
        "a: !!python/object/apply:os.system [x]",
        "the tag python/object/apply:os.system is not allowed",
        1,
    ),
    "bytes": ("a: 1\nb: !!binary aGk=", "the tag binary is not allowed", 2),
    "no number": ("a: !!int x", "x is no int", 1),
    "no bool": ("a: !!bool x", "x is no bool", 1),
    "half a number": ("a: 0x_", "0x_ is no int", 1),
    "many digits": ("a: " + "9" * 5000, "9" * 40 + " is no int", 1),
    "a list as a key": ("? [a]\n: 1", "found unhashable key", 1),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_text_is_one_line(name: str) -> None:
    text, problem, line = HOSTILE[name]
    with pytest.raises(YamlError) as caught:
        plain_yaml.read(text)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 200
    assert str(caught.value) == problem or not problem
    assert caught.value.line == line or not line


@pytest.mark.parametrize("text", ["# b", "#2", "/data/runs #2", "R&D", "a # b # c", "x #\ty", "a\n#b", "a b"])
def test_an_override_holds_no_comment(text: str) -> None:
    assert plain_yaml.read_override(text) == text


@pytest.mark.parametrize(
    ("text", "mark"),
    [
        ("[a, b #c\n]", "#"),
        ("'a' #b", "#"),
        ("{a: 1} # b", "#"),
        ("&R", "&"),
        ("&a x", "&"),
        ("--- x", "---"),
    ],
)
def test_an_override_that_yaml_would_cut_is_refused(text: str, mark: str) -> None:
    with pytest.raises(YamlError, match=f"^{mark} would be lost; text that holds it must stand in quotes$"):
        plain_yaml.read_override(text)
