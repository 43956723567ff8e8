"""Signatures as schemas: which keys there are, which values fit, what is said of one that does not."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Optional, Union

import numpy as np
import pytest
import torch

from clprompt import schema
from clprompt.errors import ConfigError
from clprompt.registry import Only, Registry
from clprompt.schema import above, at_least, at_most, below, not_empty

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


Count = Annotated[int, at_least(1)]
Share = Annotated[float, above(0), at_most(1)]


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        (1, Count),
        (1.0, Share),
        (1, Share),
        (None, Count | None),
        (None, Annotated[int | None, at_least(1)]),
        (0.0, Annotated[float, at_least(0), below(1)]),
        ([1, 2], tuple[Count, ...]),
        ("all", Count | Literal["all"]),
        (["a"], Annotated[list[str], not_empty]),
    ],
)
def test_a_value_within_its_bounds_is_taken(value: Any, hint: Any) -> None:
    assert schema.check(value, hint, "k") == value


@pytest.mark.parametrize(
    ("value", "hint", "message"),
    [
        (0, Count, "k must be at least 1, got 0"),
        (0, Count | None, "k must be at least 1, got 0"),
        (0, Annotated[int | None, at_least(1)], "k must be at least 1, got 0"),
        (0, Count | Literal["all"], "k must be at least 1, got 0"),
        (0, Share, "k must be above 0 and at most 1, got 0"),
        (1.5, Share, "k must be above 0 and at most 1, got 1.5"),
        (1, Annotated[float, at_least(0), below(1)], "k must be at least 0 and below 1, got 1"),
        (float("nan"), float, "k must be a finite number, got nan"),
        (float("-inf"), float | None, "k must be a finite number, got -inf"),
        (10**400, float, f"k must be a finite number, got 1{'0' * 76}..."),
        (float("inf"), Annotated[float, above(0)], "k must be a finite number above 0, got inf"),
        (float("nan"), Share, "k must be a finite number above 0 and at most 1, got nan"),
        ("a", Count, 'k must be int (at least 1), got "a"'),
        (True, Count, "k must be int (at least 1), got true"),
        ("a", Share | None, 'k must be float (above 0, at most 1) or null, got "a"'),
        ([1, 0], tuple[Count, ...], "k must be list of int (at least 1), got [1, 0]"),
        ([], Annotated[list[str], not_empty], "k must be not empty, got []"),
        ({"a": 0}, dict[str, Count], 'k must be mapping, got {"a": 0}'),
    ],
)
def test_a_value_out_of_bounds_is_told_with_the_bounds(value: Any, hint: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        schema.check(value, hint, "k")
    assert str(caught.value) == message


class Checked(Base):
    @schema.checked
    def __init__(
        self,
        backbone: Unknown,
        *,
        length: Count = 5,
        share: Share | None = None,
        layers: tuple[Annotated[int, at_least(0)], ...] = (0, 1),
        form: Literal["prefix", "fresh"] = "prefix",
    ) -> None:
        self.values = {"length": length, "share": share, "layers": layers, "form": form}


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("length", 0, "must be at least 1, got 0"),
        ("length", "5", 'must be int (at least 1), got "5"'),
        ("length", np.int64(0), "must be at least 1, got 0"),
        ("share", float("nan"), "must be a finite number above 0 and at most 1, got nan"),
        ("layers", [0, -1], "must be list of int (at least 0), got [0, -1]"),
        ("layers", np.array([0, -1]), "must be list of int (at least 0), got [0, -1]"),
        ("form", "prefx", 'must be one of "prefix", "fresh", got "prefx"; did you mean "prefix"?'),
    ],
)
def test_python_and_a_configuration_are_answered_in_the_same_words(key: str, value: Any, words: str) -> None:
    with pytest.raises(ConfigError) as from_python:
        Checked(None, **{key: value})
    with pytest.raises(ConfigError) as from_yaml:
        schema.arguments(Checked, {key: value}, "strategy", ["backbone"])
    assert str(from_python.value) == f"{key} {words}"
    assert str(from_yaml.value) == f"strategy.{key} {words}"


def test_text_in_place_of_a_list_is_for_configurations_alone() -> None:
    assert schema.arguments(Checked, {"layers": "0,1"}, "s", ["backbone"])["layers"] == [0, 1]
    with pytest.raises(ConfigError, match=r'layers must be list of int \(at least 0\), got "0,1"'):
        Checked(None, layers="0,1")  # type: ignore[arg-type]


@pytest.mark.parametrize("layers", [(0, 1), [0, 1], range(2), {0, 1}, np.arange(2), torch.arange(2)])
def test_what_python_passes_arrives_as_it_is(layers: Any) -> None:
    assert Checked(None, layers=layers).values["layers"] is layers


def test_a_number_of_numpy_counts_as_a_number() -> None:
    made = Checked(None, length=np.int64(3), share=np.float32(0.5), form=np.str_("fresh"))  # type: ignore[arg-type]
    assert made.values["length"] == 3


def test_a_checked_constructor_keeps_its_signature() -> None:
    assert list(inspect.signature(Checked).parameters) == ["backbone", "length", "share", "layers", "form"]
    assert schema.parameters(Checked, OWN)[0]["length"] == schema.Parameter(Count, 5)


@pytest.mark.parametrize("keywords", [{}, {"backbone": 1, "lenght": 3}])
def test_a_missing_or_unknown_argument_keeps_the_words_of_python(keywords: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match=r"Checked\.__init__\(\)"):
        Checked(**keywords)


def test_a_checked_function_is_answered_like_a_constructor() -> None:
    @schema.checked
    def stream(targets: Any, *, experiences: Count = 10, **rest: Any) -> tuple[Any, int, dict[str, Any]]:
        return targets, experiences, rest

    assert stream([1], experiences=2, more=3) == ([1], 2, {"more": 3})
    with pytest.raises(ConfigError, match=r"^experiences must be at least 1, got 0$"):
        stream([1], experiences=0)


@dataclass(frozen=True)
class Settings:
    rate: Annotated[float, above(0)] = 1.0
    sizes: tuple[Count, ...] = (1,)

    def __post_init__(self) -> None:
        schema.check_fields(self, "training")


def test_the_fields_of_a_dataclass_become_what_their_hints_want() -> None:
    settings = Settings(rate=2, sizes="1,2")  # type: ignore[arg-type]
    assert (settings.rate, settings.sizes) == (2.0, [1, 2])
    assert isinstance(settings.rate, float)


def test_a_field_out_of_bounds_is_told_by_its_dotted_name() -> None:
    with pytest.raises(ConfigError, match=r"^training\.rate must be above 0, got 0$"):
        Settings(rate=0)


methods = Registry("method")


@methods.register(
    "renamer",
    refused={"vote": Only(False, "companions would change a prediction")},
    renamed={"loss_mask": "mask", "mask": "mask_position", "size": "length"},
)
class Renamer(Base):
    @schema.checked
    def __init__(
        self,
        backbone: Unknown,
        *,
        length: Count = 5,
        mask: Literal["seen", "batch"] = "seen",
        mask_position: Literal["before", "after"] = "before",
    ) -> None: ...


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("vote", True, "vote is no argument: companions would change a prediction"),
        ("vote", False, "vote is no argument: companions would change a prediction"),
        ("size", 3, "size is now called length"),
        (
            "mask",
            "after",
            'mask must be one of "seen", "batch", got "after"; the former mask is now called mask_position',
        ),
    ],
)
def test_a_key_of_the_registry_s_lists_is_answered_by_one_line(key: str, value: Any, words: str) -> None:
    with pytest.raises(ConfigError) as from_python:
        Renamer(None, **{key: value})
    with pytest.raises(ConfigError) as from_yaml:
        schema.arguments(Renamer, {key: value}, "strategy", OWN)
    assert str(from_python.value) == words
    assert str(from_yaml.value) == f"strategy.{words}"


class OwnMask(Renamer):
    """Has an argument that the base called so once."""

    @schema.checked
    def __init__(self, backbone: Unknown, *, mask: bool = True, **others: Any) -> None:
        super().__init__(backbone, **others)


def test_a_subclass_s_own_argument_is_not_told_of_the_base_s_former_one() -> None:
    words = 'mask must be bool, got "seen"'
    with pytest.raises(ConfigError) as from_python:
        OwnMask(None, mask="seen")
    with pytest.raises(ConfigError) as from_yaml:
        schema.arguments(OwnMask, {"mask": "seen"}, "strategy", OWN)
    assert (str(from_python.value), str(from_yaml.value)) == (words, f"strategy.{words}")


def test_a_subclass_answers_the_base_s_other_former_arguments_as_the_base_does() -> None:
    with pytest.raises(ConfigError, match=r"^size is now called length$"):
        OwnMask(None, size=3)


@pytest.mark.parametrize(
    ("value", "left"), [(False, {"mask": "seen"}), (True, {"mask": "seen", "vote": True})]
)
def test_an_old_file_may_hold_the_one_value_of_a_refused_key(value: bool, left: dict[str, Any]) -> None:
    assert methods.get("renamer").of_today({"mask": "seen", "vote": value}, ["mask"]) == left


def test_a_former_key_of_an_old_file_gets_the_name_of_today() -> None:
    renamer = methods.get("renamer")
    assert renamer.of_today({"size": 3}, ["length"]) == {"length": 3}
    assert renamer.of_today({"size": 3, "length": 4}, ["length"]) == {"size": 3, "length": 4}
