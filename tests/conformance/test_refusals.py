"""Every argument of every strategy, scenario, data set and plug-in refuses a bad value in one line."""

from __future__ import annotations

import math
import types
import typing
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Union

import numpy as np
import pytest

from clprompt import registry, schema
from clprompt.errors import ClpromptError
from clprompt.registry import Registry
from clprompt.schema import Bound, Length

#: What the caller provides, and is no key of a configuration.
PROVIDED = {
    "strategy": ("backbone", "seed"),
    "scenario": ("targets", "seed", "class_names", "domains", "domain_names"),
}


class Nothing:
    """A value of a type that no argument takes."""

    def __str__(self) -> str:
        return "Nothing"


def members(hint: Any) -> list[Any]:
    """What a hint allows, one kind of value after the other."""
    if typing.get_origin(hint) in (Union, types.UnionType):
        return [kind for member in typing.get_args(hint) for kind in members(member)]
    return [hint]


def out_of_bounds(hint: Any) -> Iterator[Any]:
    """Values of the right type just outside each bound; NaN and infinity for floats; an unknown word."""
    constraints = typing.get_args(hint)[1:] if typing.get_origin(hint) is Annotated else ()
    plain = typing.get_args(hint)[0] if constraints else hint
    kinds = [kind for member in members(plain) for kind in [typing.get_origin(member) or member]]
    for constraint in constraints:
        if isinstance(constraint, Length):
            yield [] if kinds[0] is not str else ""
        if not isinstance(constraint, Bound):
            continue
        down = constraint.relation in ("at least", "above")
        if constraint.relation in ("above", "below"):
            yield constraint.limit
        elif int in kinds:
            yield int(constraint.limit) + (-1 if down else 1)
        else:
            yield math.nextafter(constraint.limit, -math.inf if down else math.inf)
    if float in kinds:
        yield from (math.nan, math.inf, -math.inf)
    for member in members(plain):
        origin, inner = typing.get_origin(member), typing.get_args(member)
        if origin is Literal and all(isinstance(choice, str) for choice in inner):
            yield f"no {inner[0]}"
        if origin is Literal and all(isinstance(choice, int) for choice in inner):
            yield max(inner) + 1
        if origin in (list, tuple) and inner:
            yield [Nothing()]
            yield from ([value] for kind in members(inner[0]) for value in out_of_bounds(kind))


def bad_values(hint: Any) -> list[Any]:
    """At least one value that a hint does not allow: of a wrong type, and just outside of what it names."""
    return [Nothing(), *(value for member in members(hint) for value in out_of_bounds(member))]


def cases() -> list[Any]:
    every = []
    for known in (registry.strategies, registry.scenarios, registry.datasets, registry.plugins):
        for name in known.names():
            arguments, _ = schema.parameters(known.get(name).target, PROVIDED.get(known.kind, ()))
            for key, parameter in arguments.items():
                every.append(pytest.param(known, name, key, parameter.hint, id=f"{known.kind}-{name}-{key}"))
    return every


@pytest.mark.parametrize(("known", "name", "key", "hint"), cases())
def test_a_bad_value_is_one_line_in_a_configuration(known: Registry, name: str, key: str, hint: Any) -> None:
    target = known.get(name).target
    for value in bad_values(hint):
        with pytest.raises(ClpromptError) as caught:
            schema.arguments(target, {key: value}, "section", PROVIDED.get(known.kind, ()))
        assert str(caught.value).startswith(f"section.{key} must be "), value
        assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def provided() -> dict[str, dict[str, Any]]:
    import timm

    from clprompt import FrozenViT

    vit = timm.create_model(
        "vit_tiny_patch16_224", img_size=16, patch_size=8, embed_dim=16, depth=2, num_heads=2, num_classes=0
    )
    return {
        "strategy": {"backbone": FrozenViT(vit)},
        "scenario": {"targets": np.repeat(np.arange(4), 5)},
        "multi_label": {"targets": np.eye(4, dtype=np.int64)},
        "domain": {"targets": np.repeat(np.arange(4), 5), "domains": np.arange(20) % 2},
    }


@pytest.mark.parametrize(("known", "name", "key", "hint"), cases())
def test_a_bad_value_from_python_is_one_line(
    known: Registry, name: str, key: str, hint: Any, provided: dict[str, dict[str, Any]]
) -> None:
    target = known.get(name).target
    given = provided.get(name, provided.get(known.kind, {}))
    needed = {
        other: "nowhere"  # no file is read before a bad value is refused
        for other, parameter in schema.parameters(target, PROVIDED.get(known.kind, ()))[0].items()
        if parameter.required and other != key
    }
    for value in bad_values(hint):
        with pytest.raises(ClpromptError) as caught:
            target(**given, **needed, **{key: value})
        assert key in str(caught.value), value
        assert "\n" not in str(caught.value)


def test_a_bad_value_is_made_for_each_kind_of_constraint() -> None:
    hint = Annotated[float, schema.above(0), schema.at_most(1)] | Literal["auto"] | None
    _, *values = bad_values(hint)
    assert values[:2] == [0, math.nextafter(1, 2)]
    assert [str(value) for value in values[2:]] == ["nan", "inf", "-inf", "no auto"]
    assert bad_values(list[Annotated[int, schema.at_least(1)]])[2] == [0]
