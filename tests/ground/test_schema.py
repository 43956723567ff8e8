"""Signatures as schemas: which keys there are, which values fit, what is said of one that does not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Optional, Union

import pytest

from clprompt import schema
from clprompt.errors import ConfigError

if TYPE_CHECKING:
    from nowhere import Unknown  # type: ignore[import-not-found]


@pytest.mark.parametrize(
    ("value", "hint", "expected"),
    [
        (3, int, 3),
        (3, float, 3.0),
        (2.5, float, 2.5),
        (True, bool, True),
        ("a", str, "a"),
        (None, type(None), None),
        (None, int | None, None),
        (4, Optional[int], 4),  # noqa: UP045
        (4, int | float, 4),
        (4, float | str, 4.0),
        ("x", Union[int, str], "x"),  # noqa: UP007
        ("adam", Literal["adam", "sgd"], "adam"),
        (1, Literal[1, "all"], 1),
        ([1, 2], list[int], [1, 2]),
        ([1, 2], list[float], [1.0, 2.0]),
        ([1, 2], tuple[int, ...], [1, 2]),
        ([1, "a"], tuple[int, str], [1, "a"]),
        ([], Sequence[int], []),
        ([[1], [2, 3]], list[list[int]], [[1], [2, 3]]),
        ("0,1,2", list[int], [0, 1, 2]),
        ("1e-3,2", list[float], [0.001, 2.0]),
        ("0,1", str | list[int], "0,1"),
        ("a,b", Sequence[str] | None, ["a", "b"]),
        ({"a": 1}, dict[str, float], {"a": 1.0}),
        ({"a": [1]}, Mapping[str, Any], {"a": [1]}),
        ("data", Path, "data"),
        ("data", str | Path, "data"),
        ({"any": [1, None]}, Any, {"any": [1, None]}),
        ([1], list, [1]),
    ],
)
def test_a_value_that_fits_is_taken_as_its_hint_wants_it(value: Any, hint: Any, expected: Any) -> None:
    found = schema.check(value, hint, "section.key")
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    ("value", "hint", "message"),
    [
        ("abc", int, 'k must be int, got "abc"'),
        (True, int, "k must be int, got true"),
        (1.0, int, "k must be int, got 1.0"),
        (True, float, "k must be float, got true"),
        ("1", float, 'k must be float, got "1"'),
        (1, bool, "k must be bool, got 1"),
        (2020, str, "k must be str, got 2020"),
        (None, int, "k must be int, got null"),
        ("a", int | None, 'k must be int or null, got "a"'),
        ("a", Optional[float], 'k must be float or null, got "a"'),  # noqa: UP045
        ([1], float, "k must be float, got [1]"),
        (3, list[int], "k must be list of int, got 3"),
        ([1, "a"], list[int], 'k must be list of int, got [1, "a"]'),
        ("0,x", tuple[int, ...], 'k must be list of int, got "0,x"'),
        ("[0,", list[int], 'k must be list of int, got "[0,"'),
        ([1], tuple[int, int], "k must be list of 2 values (int, int), got [1]"),
        ({"a": "b"}, dict[str, int], 'k must be mapping, got {"a": "b"}'),
        ([], dict, "k must be mapping, got []"),
        (3, Path, "k must be path, got 3"),
        ("sdg", Literal["adam", "sgd"], 'k must be one of "adam", "sgd", got "sdg"; did you mean "sgd"?'),
        (True, Literal[1, 2], "k must be one of 1, 2, got true"),
        ("x" * 200, int, f'k must be int, got "{"x" * 76}...'),
    ],
)
def test_a_value_that_does_not_fit_is_told_with_what_is_allowed(value: Any, hint: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        schema.check(value, hint, "k")
    assert str(caught.value) == message


class Base:
    def __init__(
        self, backbone: Unknown, *, seed: int = 0, length: int = 5, form: str = "prefix"
    ) -> None: ...


class Child(Base):
    def __init__(self, backbone: Unknown, *, layers: tuple[int, ...] = (0, 1), length: int = 8, **base: Any):
        super().__init__(backbone, length=length, **base)


class Closed(Base):
    def __init__(self, backbone: Unknown, *, seed: int = 0, rate: float = 1) -> None: ...


def folder(*, path: str, extra: Unknown = None, order: list[int] | None = None) -> None: ...


def passing_on(*, name_of_set: str = "x", **rest: Any) -> None: ...


OWN = ("backbone", "seed")


def test_a_constructor_that_passes_keywords_on_offers_those_of_its_base_too() -> None:
    assert schema.arguments(Child, {"form": "fresh"}, "strategy", OWN) == {
        "layers": [0, 1],
        "length": 8,
        "form": "fresh",
    }


def test_a_constructor_that_does_not_pass_keywords_on_hides_those_of_its_base() -> None:
    assert set(schema.parameters(Closed, OWN)[0]) == {"rate"}


@pytest.mark.parametrize(
    ("target", "given", "message"),
    [
        (
            Child,
            {"lenght": 3},
            'unknown key "s.lenght"; did you mean "length"?; allowed: form, layers, length',
        ),
        (Child, {"seed": 3}, 'unknown key "s.seed"; allowed: form, layers, length'),
        (Child, {"backbone": 3}, 'unknown key "s.backbone"; allowed: form, layers, length'),
        (Child, {"layers": "a"}, 's.layers must be list of int, got "a"'),
        (Closed, {"form": "prefix"}, 'unknown key "s.form"; allowed: rate'),
        (folder, {}, "s.path is missing; it must be str"),
        (folder, {"path": None}, "s.path must be str, got null"),
        (passing_on, {"name_of_set": 1}, "s.name_of_set must be str, got 1"),
        (passing_on, {"seed": 1}, 'unknown key "s.seed"; allowed: name_of_set'),
    ],
)
def test_arguments_that_do_not_fit_a_signature_are_refused(target: Any, given: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        schema.arguments(target, given, "s", OWN)
    assert str(caught.value) == message


def test_a_hint_for_type_checkers_only_leaves_its_argument_unchecked() -> None:
    assert schema.arguments(folder, {"path": "a", "extra": 7}, "data") == {
        "path": "a",
        "extra": 7,
        "order": None,
    }


def test_a_function_with_keywords_of_its_own_accepts_any_further_key() -> None:
    assert schema.arguments(passing_on, {"split": "train"}, "data") == {"name_of_set": "x", "split": "train"}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("1", 1),
        ("[a, 2]", ["a", 2]),
        ("null", None),
        ("", None),
        ("true", True),
        ("a b", "a b"),
    ],
)
def test_text_is_read_by_the_rules_of_omegaconf(text: str, value: Any) -> None:
    assert schema.parse(text) == value
