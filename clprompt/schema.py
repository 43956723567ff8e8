"""What a configuration section may hold, read off the signature of what the section is passed to.

Typed keyword arguments with defaults *are* the schema: their names are the keys, their hints the types. A value
that comes out of `arguments` or `check` is plain YAML (None, bool, int, float, str, list, dict).
"""

from __future__ import annotations

import collections.abc
import inspect
import json
import os
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Union

from clprompt.errors import ConfigError, nearest

_SEQUENCES = (list, tuple, set, frozenset, collections.abc.Sequence, collections.abc.Iterable)
_NUMBERS = {bool: "bool", int: "int", float: "float", str: "str", type(None): "null"}


@dataclass(frozen=True)
class Parameter:
    """One key of a section: its type hint, and its default unless it is required."""

    hint: Any
    default: Any = None
    required: bool = False


# --------------------------------------------------------------------------------------------- signatures


def parameters(target: Callable[..., Any], skip: Iterable[str] = ()) -> tuple[dict[str, Parameter], bool]:
    """The configurable arguments of a class or function.

    Args:
        target: what the section's values are passed to as keyword arguments. A constructor that takes `**kwargs`
            passes them to its base class: the base's arguments count too.
        skip: arguments that the caller provides itself.

    Returns:
        The arguments by name, and whether any other key is accepted as well (a function with `**kwargs`).
    """
    found: dict[str, Parameter] = {}
    is_open = False
    for function in _constructors(target) if inspect.isclass(target) else [target]:
        signature = inspect.signature(function).parameters
        hints = _type_hints(function)
        for name, argument in signature.items():
            named = argument.kind in (argument.POSITIONAL_OR_KEYWORD, argument.KEYWORD_ONLY)
            if named and name != "self" and name not in skip and name not in found:
                required = argument.default is argument.empty
                found[name] = Parameter(
                    hints.get(name, Any), None if required else argument.default, required
                )
        is_open = any(argument.kind is argument.VAR_KEYWORD for argument in signature.values())
        if not is_open:
            break
    return found, is_open and not inspect.isclass(target)


def _constructors(cls: type) -> list[Callable[..., Any]]:
    own = [vars(base)["__init__"] for base in cls.__mro__ if "__init__" in vars(base)]
    return [function for function in own if inspect.isfunction(function)]


def _type_hints(function: Callable[..., Any]) -> dict[str, Any]:
    unknown: dict[str, Any] = {}
    while True:
        try:
            return typing.get_type_hints(function, localns=unknown)
        except NameError as error:  # a name imported for type checkers only: that argument is not checked
            if not error.name or error.name in unknown:
                return {}
            unknown[error.name] = Any


def arguments(
    target: Callable[..., Any],
    given: Mapping[str, Any],
    path: str,
    skip: Iterable[str] = (),
    also: Iterable[Callable[..., Any]] = (),
) -> dict[str, Any]:
    """The keyword arguments for `target`: those given, checked, then the defaults of the others.

    Args:
        target: a class or function; see `parameters`.
        given: the section's values, without its `name`.
        path: the section's name, for messages: "strategy".
        skip: arguments that the caller provides itself, which the section cannot set.
        also: further functions whose arguments stand in the same section, behind those of the target.

    Raises:
        ConfigError: an unknown key, a wrong type, or a required argument that is missing.
    """
    known, is_open = parameters(target, skip)
    for function in also:
        known |= parameters(function)[0]
    check_keys([key for key in given if not is_open or key in skip], known, path)
    checked: dict[str, Any] = {}
    for key, parameter in known.items():
        if key in given:
            checked[key] = check(given[key], parameter.hint, f"{path}.{key}")
        elif parameter.required:
            raise ConfigError(f"{path}.{key} is missing; it must be {describe(parameter.hint)}")
        elif _is_plain(parameter.default):
            checked[key] = _listed(parameter.default)
    return checked | {key: value for key, value in given.items() if key not in known}


def check_keys(given: Iterable[str], allowed: Iterable[str], path: str) -> None:
    """Raises `ConfigError` at the first key that is not allowed; `path` is "" at the top level."""
    allowed = sorted(allowed)
    for key in given:
        if key not in allowed:
            dotted = f"{path}.{key}" if path else str(key)
            hint = nearest(str(key), allowed)
            raise ConfigError(f'unknown key "{dotted}"{hint}; allowed: {", ".join(allowed) or "none"}')


# ------------------------------------------------------------------------------------------------- types


def check(value: Any, hint: Any, path: str) -> Any:
    """The value as its type hint wants it: an int becomes a float where a float is due, "0,1,2" a list.

    Args:
        value: plain YAML.
        hint: int, float, bool, str, None, Literal, unions, list/tuple/Sequence and dict of those, paths. Other
            classes are tested by `isinstance`; what cannot be tested is let through.
        path: the value's dotted key, for messages.

    Raises:
        ConfigError: the value is of another type.
    """
    try:
        return _convert(value, hint)
    except _MisfitError:
        choices = _choices(hint)
        close = nearest(value, choices) if isinstance(value, str) else ""
        raise ConfigError(f"{path} must be {describe(hint)}, got {show(value)}{close}") from None


def at_least(least: float, **values: float | None) -> None:
    """Raises `ConfigError` at the first value below `least`; None is no value."""
    for name, value in values.items():
        if value is not None and not value >= least:
            raise ConfigError(f"{name} must be at least {least}, got {value}")


def above_zero(**values: float | None) -> None:
    """Raises `ConfigError` at the first value that is not above 0; None is no value."""
    for name, value in values.items():
        if value is not None and not value > 0:
            raise ConfigError(f"{name} must be above 0, got {value}")


def parse(text: str) -> Any:
    """One YAML value from text by OmegaConf's rules (`1e-3` is a number); `ValueError` when it is not YAML."""
    import yaml
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        value = OmegaConf.to_container(OmegaConf.from_dotlist([f"x={text}"]), resolve=False)
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise ValueError(getattr(error, "problem", None) or str(error).splitlines()[0]) from None
    assert isinstance(value, dict)
    return value["x"]


class _MisfitError(Exception):
    pass


def _convert(value: Any, hint: Any) -> Any:
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any or hint is object or hint is inspect.Parameter.empty or isinstance(hint, typing.TypeVar):
        return value
    if origin is typing.Annotated:
        return _convert(value, inner[0])
    if origin in (Union, types.UnionType):
        return _convert_union(value, inner)
    if origin is Literal:
        if any(value == choice and type(value) is type(choice) for choice in inner):
            return value
        raise _MisfitError
    kind = origin or hint
    if kind in _SEQUENCES:
        return _convert_sequence(value, kind, inner)
    if kind in (dict, collections.abc.Mapping, collections.abc.MutableMapping):
        if not isinstance(value, Mapping):
            raise _MisfitError
        key_hint, value_hint = inner or (Any, Any)
        return {_convert(key, key_hint): _convert(item, value_hint) for key, item in value.items()}
    return _convert_plain(value, kind)


def _convert_plain(value: Any, kind: Any) -> Any:
    if kind is None or kind is type(None):
        fits = value is None
    elif kind is float:
        fits = isinstance(value, int | float) and not isinstance(value, bool)
        value = float(value) if fits else value
    elif kind is int:
        fits = isinstance(value, int) and not isinstance(value, bool)
    elif isinstance(kind, type) and issubclass(kind, os.PathLike):
        fits = isinstance(value, str | os.PathLike)
    else:
        fits = isinstance(value, kind) if isinstance(kind, type) else True
    if not fits:
        raise _MisfitError
    return value


def _convert_union(value: Any, members: tuple[Any, ...]) -> Any:
    # The exact type first: `int | float` leaves 3 an int, `str | list[int]` leaves "0,1" a string.
    for member in sorted(members, key=lambda member: type(value) is not member):
        try:
            return _convert(value, member)
        except _MisfitError:
            continue
    raise _MisfitError


def _convert_sequence(value: Any, kind: Any, inner: tuple[Any, ...]) -> list[Any]:
    if isinstance(value, str) and "," in value:  # an override without brackets: blocks=0,1,2
        try:
            value = parse(f"[{value}]")
        except ValueError:
            raise _MisfitError from None
    if not isinstance(value, list | tuple):
        raise _MisfitError
    if kind is tuple and inner and Ellipsis not in inner:
        if len(inner) != len(value):
            raise _MisfitError
        return [_convert(item, hint) for item, hint in zip(value, inner, strict=True)]
    return [_convert(item, inner[0] if inner else Any) for item in value]


def _choices(hint: Any) -> list[str]:
    inner = typing.get_args(hint)
    if typing.get_origin(hint) is Literal:
        return [choice for choice in inner if isinstance(choice, str)]
    return [choice for member in inner for choice in _choices(member)]


def describe(hint: Any) -> str:
    """A type hint in a user's words: 'int or null', 'list of int', 'one of "adam", "sgd"'."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return describe(inner[0])
    if origin in (Union, types.UnionType):
        ordered = sorted(inner, key=lambda member: member is type(None))
        return " or ".join(dict.fromkeys(describe(member) for member in ordered))
    if origin is Literal:
        return "one of " + ", ".join(show(choice) for choice in inner)
    kind = origin or hint
    if kind in _SEQUENCES:
        if kind is tuple and inner and Ellipsis not in inner:
            return f"list of {len(inner)} values ({', '.join(describe(item) for item in inner)})"
        return f"list of {describe(inner[0])}" if inner else "list"
    if kind is None or kind in _NUMBERS:
        return _NUMBERS[kind if kind is not None else type(None)]
    if isinstance(kind, type) and issubclass(kind, os.PathLike):
        return "path"
    if isinstance(kind, type) and issubclass(kind, collections.abc.Mapping):
        return "mapping"
    return getattr(kind, "__name__", str(kind))


def show(value: Any) -> str:
    """A value as YAML would write it on one line, shortened."""
    try:
        text = json.dumps(value, ensure_ascii=False, default=str)
    except (TypeError, ValueError):
        text = str(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(_is_plain(item) for item in value)
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_plain(item) for key, item in value.items())
    return value is None or isinstance(value, bool | int | float | str)


def _listed(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_listed(item) for item in value]
    if isinstance(value, dict):
        return {key: _listed(item) for key, item in value.items()}
    return value
