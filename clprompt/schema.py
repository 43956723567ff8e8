"""What a configuration section may hold, read off the signature of what the section is passed to.

Typed keyword arguments with defaults *are* the schema: their names are the keys, their hints the types, and
what a value must keep to stands beside it:

    @schema.checked
    def __init__(
        self,
        *,
        length: Annotated[int, at_least(1)] = 5,
        share: Annotated[float, above(0), at_most(1)] = 0.5,
        form: Literal["prefix", "fresh"] = "prefix",
    ) -> None: ...

A configuration is checked by `arguments`, a call from Python by `checked`, both by `check`. Every float is
finite. What `arguments` and `check` return is plain YAML (None, bool, int, float, str, list, dict).
"""

from __future__ import annotations

import ast
import collections.abc
import dataclasses
import functools
import inspect
import itertools
import json
import math
import operator
import os
import re
import textwrap
import types
import typing
import weakref
from collections.abc import Callable, Collection, Iterable, Mapping, Sized
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeVar, Union

from clprompt.errors import ConfigError, nearest

F = TypeVar("F", bound=Callable[..., Any])

_SEQUENCES = (list, tuple, set, frozenset, collections.abc.Sequence, collections.abc.Iterable)
_NUMBERS = {bool: "bool", int: "int", float: "float", str: "str", type(None): "null"}


@dataclass(frozen=True)
class Parameter:
    """One key of a section: its type hint, and its default unless it is required."""

    hint: Any
    default: Any = None
    required: bool = False


# ------------------------------------------------------------------------------------------- constraints


@dataclass(frozen=True)
class Bound:
    """What numbers of an argument keep to, beside its type in `Annotated`; None and other kinds pass.

    Args:
        relation: how a number stands to the limit.
        limit: the number that it is compared with.
    """

    relation: Literal["at least", "above", "at most", "below"]
    limit: float

    def allows(self, value: Any) -> bool:
        """Whether a value keeps to the bound."""
        if isinstance(value, bool) or not isinstance(value, int | float):
            return True
        return bool(_RELATIONS[self.relation](value, self.limit))

    def __str__(self) -> str:
        return f"{self.relation} {self.limit}"


@dataclass(frozen=True)
class Length:
    """How many entries a list or mapping (characters a text) has at least, beside its type in `Annotated`."""

    least: int

    def allows(self, value: Any) -> bool:
        """Whether a value is long enough; one without a length is."""
        return not isinstance(value, Sized) or len(value) >= self.least

    def __str__(self) -> str:
        return "not empty" if self.least == 1 else f"of length {self.least} or more"


_RELATIONS = {"at least": operator.ge, "above": operator.gt, "at most": operator.le, "below": operator.lt}


def at_least(limit: float) -> Bound:
    """`Annotated[int, at_least(1)]`: 1 or more."""
    return Bound("at least", limit)


def above(limit: float) -> Bound:
    """`Annotated[float, above(0)]`: more than 0."""
    return Bound("above", limit)


def at_most(limit: float) -> Bound:
    """`Annotated[float, at_most(1)]`: 1 or less."""
    return Bound("at most", limit)


def below(limit: float) -> Bound:
    """`Annotated[float, below(1)]`: less than 1."""
    return Bound("below", limit)


#: `Annotated[list[str], not_empty]`: one entry or more.
not_empty = Length(1)

_PLACE = "leads to a file or folder"
#: Text that leads to a file or folder, or may: `path: FilePath = "data"`. A run keeps it as an absolute path.
FilePath = typing.Annotated[str, _PLACE]


def replace_paths(value: Any, hint: Any, replace: Callable[[str], str]) -> Any:
    """A checked value, what its hint says leads to files or folders replaced.

    Args:
        value: plain YAML, as `check` returns it.
        hint: of the argument; `FilePath` and `os.PathLike` lead to files, alone, in unions and in lists.
        replace: gives a path for a path.
    """
    is_union = typing.get_origin(hint) in (Union, types.UnionType)
    members = typing.get_args(hint) if is_union else (hint,)
    if isinstance(value, str):
        return replace(value) if any(map(_is_path, members)) else value
    if isinstance(value, list):
        for member in members:
            entries = typing.get_args(member)
            if entries and typing.get_origin(member) in _SEQUENCES:
                value = [replace_paths(entry, entries[0], replace) for entry in value]
    return value


def _is_path(hint: Any) -> bool:
    if typing.get_origin(hint) is typing.Annotated:
        return _PLACE in typing.get_args(hint)[1:]
    return isinstance(hint, type) and issubclass(hint, os.PathLike)


def checked(function: F) -> F:
    """A decorator that checks a call's arguments by their hints, types and constraints, and changes none.

    It stands at a constructor or a function whose arguments a configuration can set, so that callers from
    Python are answered as a configuration is, with the argument's bare name. Numbers of numpy, arrays and
    ranges count as the numbers and lists that they hold.

    Raises:
        ConfigError: in the call, an argument of another type, out of bounds, or refused by the registry.
    """
    signature = inspect.signature(function)
    is_open = any(argument.kind is argument.VAR_KEYWORD for argument in signature.parameters.values())
    is_method = next(iter(signature.parameters), "") == "self"
    hints: dict[str, Any] = {}

    @functools.wraps(function)
    def wrapper(*positional: Any, **named: Any) -> Any:
        owner = type(positional[0]) if is_method and positional else wrapper
        answers = argument_answers(owner)
        for name in named:
            if name not in signature.parameters and not is_open and name in answers:
                raise ConfigError(answers[name])
        try:
            bound = signature.bind(*positional, **named)
        except TypeError:
            return function(*positional, **named)  # Python's own words for what is missing or too much
        if not hints:
            hints.update(_type_hints(function))
        for name, value in bound.arguments.items():
            kind = signature.parameters[name].kind
            if name in hints and kind not in (
                inspect.Parameter.VAR_POSITIONAL,
                inspect.Parameter.VAR_KEYWORD,
            ):
                _checked_value(value, hints[name], name, answers.get(name), text=False)
        return function(*positional, **named)

    return typing.cast(F, wrapper)


def check_fields(settings: Any, path: str = "") -> None:
    """Check the fields of a dataclass by their hints, in its `__post_init__`; they become what `check` gives.

    Args:
        settings: an instance, frozen or not.
        path: the section's name, for messages; "" for the fields' bare names.

    Raises:
        ConfigError: a field of another type or out of bounds.
    """
    hints = _type_hints(type(settings))
    for field in dataclasses.fields(settings):
        value = check(getattr(settings, field.name), hints[field.name], _dotted(path, field.name))
        object.__setattr__(settings, field.name, value)


def field_parameters(
    settings: type, *, but: Collection[str] = (), defaults: Mapping[str, Any] | None = None
) -> list[inspect.Parameter]:
    """The fields of a dataclass as keyword parameters, for the signature of a function that takes them.

    Args:
        settings: the dataclass.
        but: fields that mean nothing to the function.
        defaults: those that the function has in place of the dataclass's.
    """
    hints = typing.get_type_hints(settings, include_extras=True)
    return [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=(defaults or {}).get(field.name, field.default),
            annotation=hints[field.name],
        )
        for field in dataclasses.fields(settings)
        if field.name not in but
    ]


def takes(
    settings: type,
    argument: str,
    *,
    but: Collection[str] = (),
    defaults: Mapping[str, Any] | None = None,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorate a function of keyword arguments: the fields of a dataclass are among them.

    Args:
        settings: the dataclass.
        argument: that of the function by which it gets them; the fields stand in its place.
        but: fields that mean nothing to the function.
        defaults: those that the function has in place of the dataclass's.
    """
    fields = field_parameters(settings, but=but, defaults=defaults)

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def taking(**named: Any) -> Any:
            chosen = {field.name: named.pop(field.name, field.default) for field in fields}
            return function(**{argument: settings(**chosen)}, **named)

        show_fields(taking, settings, fields, instead_of=argument)
        return taking

    return decorate


def show_fields(
    wrapper: Callable[..., Any],
    settings: type,
    fields: Collection[inspect.Parameter],
    *,
    instead_of: str | None = None,
    before: str | None = None,
) -> None:
    """Put the fields of a dataclass into a wrapper's signature, hints and documentation.

    Args:
        wrapper: made by `functools.wraps`; it gives the fields to what it wraps in some other way.
        settings: the dataclass; its docstring says under "Attributes" what the fields are.
        fields: those that the wrapper takes, see `field_parameters`.
        instead_of: the parameter of what is wrapped in whose place they stand.
        before: a parameter before which they stand where there is one; else they are the last.
    """
    signature = inspect.signature(wrapper)
    names = list(signature.parameters)
    at = next((number for number, name in enumerate(names) if name in (instead_of, before)), len(names))
    others = [parameter for name, parameter in signature.parameters.items() if name != instead_of]
    hints = {field.name: field.annotation for field in fields}
    shown = signature.replace(parameters=[*others[:at], *fields, *others[at:]])
    wrapper.__signature__ = shown  # type: ignore[attr-defined]
    kept = {name: hint for name, hint in wrapper.__annotations__.items() if name != instead_of}
    wrapper.__annotations__ = kept | hints
    texts = _said(inspect.getdoc(settings) or "")
    arguments, raises, errors = f"{inspect.getdoc(wrapper) or ''}\n".partition("\nRaises:\n")
    if "\nArgs:\n" not in arguments:
        arguments += "\nArgs:\n"
    for name, text in texts.items():
        if name in hints and f"\n    {name}: " not in arguments:
            arguments += f"    {name}: {text}"
    wrapper.__doc__ = arguments + raises + errors


# --------------------------------------------------------------------------------------------- signatures


def parameters(target: Callable[..., Any], skip: Iterable[str] = ()) -> tuple[dict[str, Parameter], bool]:
    """The configurable arguments of a class or function.

    Args:
        target: what the section's values are passed to as keyword arguments. A constructor that takes
            `**kwargs` passes them to its base class: the base's arguments count too.
        skip: arguments that the caller provides itself.

    Returns:
        The arguments by name, and whether any other key is accepted as well (a function with `**kwargs`).
    """
    configurable: dict[str, Parameter] = {}
    is_open = False
    for function in _constructors(target) if inspect.isclass(target) else [target]:
        signature = inspect.signature(function).parameters
        hints = _type_hints(function)
        for name, argument in signature.items():
            named = argument.kind in (argument.POSITIONAL_OR_KEYWORD, argument.KEYWORD_ONLY)
            if named and name != "self" and name not in skip and name not in configurable:
                required = argument.default is argument.empty
                configurable[name] = Parameter(
                    hints.get(name, Any), None if required else argument.default, required
                )
        is_open = any(argument.kind is argument.VAR_KEYWORD for argument in signature.values())
        if not is_open:
            break
    return configurable, is_open and not inspect.isclass(target)


class Described(NamedTuple):
    """One key of a section in a user's words.

    Attributes:
        name: the key.
        kind: its type and what its value keeps to, see `describe`.
        default: as YAML writes it on one line; None for a key that must be given.
        sentence: what the docstring says of it; "" where it says nothing.
    """

    name: str
    kind: str
    default: str | None
    sentence: str


#: What a docstring marks as code: ``name``, :func:`name`.
_ROLES = re.compile(r"(?::\w+:`~?|``)([^`]+)`+")


def described(target: Callable[..., Any], skip: Iterable[str] = ()) -> list[Described]:
    """The configurable arguments of a class or function, in its order, with what its documentation says.

    That of an argument stands under "Args" of a docstring (of a class, its constructor or their bases), or as
    text behind the field of a dataclass.

    Args:
        target: see `parameters`.
        skip: arguments that are not shown.
    """
    texts: dict[str, str] = {}
    for owner in target.__mro__ if inspect.isclass(target) else [target]:
        constructor = vars(owner).get("__init__") if inspect.isclass(owner) else None
        for documented in (owner, constructor):
            texts = _said(inspect.cleandoc(getattr(documented, "__doc__", None) or "")) | texts
        if dataclasses.is_dataclass(owner):
            texts = _said_behind_fields(owner) | texts
    return [
        Described(
            name,
            describe(parameter.hint),
            None if parameter.required else show(_listed(parameter.default)),
            one_line(texts.get(name, "")),
        )
        for name, parameter in parameters(target, skip)[0].items()
    ]


def one_line(documentation: str) -> str:
    """A paragraph of a docstring on one line, what it marks as code between single backticks."""
    return as_markdown(" ".join(documentation.split()))


def as_markdown(documentation: str) -> str:
    """A docstring with what it marks as code between single backticks."""
    return _ROLES.sub(r"`\1`", documentation)


def _said(docstring: str) -> dict[str, str]:
    """What a docstring says under "Args" or "Attributes", by name; lines as they stand."""
    sections = re.findall(r"^(?:Args|Attributes):\n((?:(?: {4}.*)?\n)+)", f"{docstring}\n", re.MULTILINE)
    entries = re.compile(r"^ {4}(\w+): (.+\n(?:(?: {5,}.+)?\n)*)", re.MULTILINE)
    return {name: text for section in sections for name, text in entries.findall(section)}


def _said_behind_fields(settings: Any) -> dict[str, str]:
    """The text behind each field of a dataclass, by name; none where its source is not at hand."""
    try:
        (body,) = ast.parse(textwrap.dedent(inspect.getsource(settings))).body
    except (OSError, SyntaxError):
        return {}
    assert isinstance(body, ast.ClassDef)
    return {
        field.target.id: text.value.value
        for field, text in itertools.pairwise(body.body)
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and isinstance(text, ast.Expr)
        and isinstance(text.value, ast.Constant)
        and isinstance(text.value.value, str)
    }


def _constructors(cls: type) -> list[Callable[..., Any]]:
    constructors = [vars(base)["__init__"] for base in cls.__mro__ if "__init__" in vars(base)]
    return [function for function in constructors if inspect.isfunction(function)]


#: (annotations, what they stand for): evaluating them is most of the time that reading a section takes.
_HINTS: weakref.WeakKeyDictionary[Any, tuple[Any, dict[str, Any]]] = weakref.WeakKeyDictionary()


def _type_hints(target: Callable[..., Any]) -> dict[str, Any]:
    annotations, hints = _HINTS.get(target, (None, {}))
    if annotations is not None and annotations is target.__annotations__:
        return hints
    unknown: dict[str, Any] = {}
    while True:
        try:
            hints = typing.get_type_hints(target, localns=unknown, include_extras=True)
            if not unknown:  # a name that is missing may be there later
                _HINTS[target] = (target.__annotations__, hints)
            return hints
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
    allowed, is_open = parameters(target, skip)
    for function in also:
        allowed |= parameters(function)[0]
    answers = argument_answers(target)
    for key in [key for key in given if key in answers]:  # former keys first, in the order of the file
        if key not in allowed:
            raise ConfigError(f"{path}.{answers[key]}")
        _checked_value(given[key], allowed[key].hint, _dotted(path, key), answers[key])
    check_keys([key for key in given if not is_open or key in skip], allowed, path)
    values: dict[str, Any] = {}
    for key, parameter in allowed.items():
        if key in given:
            values[key] = _checked_value(given[key], parameter.hint, _dotted(path, key), answers.get(key))
        elif parameter.required:
            raise ConfigError(f"{_dotted(path, key)} is missing; it must be {describe(parameter.hint)}")
        elif _is_plain(parameter.default):
            values[key] = _listed(parameter.default)
    return values | {key: value for key, value in given.items() if key not in allowed}


def held(target: Callable[..., Any], values: Any, path: str) -> dict[str, Any]:
    """`arguments` of what a file says: a newer version's keys, of which nobody knows, are left alone.

    Args:
        target: a class or function; see `parameters`.
        values: plain values, of any kind.
        path: what they are, for messages; "" for the keys' bare names.

    Raises:
        ConfigError: they are no mapping; a wrong type, or something that is missing.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(f"{path or 'it'} must be a mapping, got {show(values)}")
    allowed, _ = parameters(target)
    return arguments(target, {key: value for key, value in values.items() if key in allowed}, path)


def check_keys(
    given: Iterable[str], allowed: Iterable[str], path: str, other_names: Mapping[str, str] | None = None
) -> None:
    """Raise `ConfigError` at the first key that is not allowed.

    Args:
        given: the keys.
        allowed: those that there are.
        path: of the section; "" at the top level.
        other_names: what keys are called elsewhere, with their names here, for the message.
    """
    allowed = sorted(allowed)
    for key in given:
        if key not in allowed:
            hint = nearest(str(key), allowed)
            if other_names and other_names.get(key) in allowed:
                hint = f'; did you mean "{other_names[key]}"?'
            raise ConfigError(
                f'unknown key "{_dotted(path, key)}"{hint}; allowed: {", ".join(allowed) or "none"}'
            )


# ------------------------------------------------------------------------------------------------- types


def check(value: Any, hint: Any, path: str) -> Any:
    """The value as its type hint wants it: an int becomes a float where a float is due, "0,1,2" a list.

    Args:
        value: plain YAML.
        hint: int, float, bool, str, None, Literal, unions, list/tuple/Sequence and dict of those, paths, each
            with constraints where it stands in `Annotated`. Other classes are tested by `isinstance`; what
            cannot be tested is let through.
        path: the value's dotted key, for messages.

    Raises:
        ConfigError: the value is of another type, or breaks a constraint.
    """
    return _checked_value(value, hint, path)


def _checked_value(value: Any, hint: Any, path: str, answer: str | None = None, *, text: bool = True) -> Any:
    """`check`; `answer` is what the registry says of the key, `text` whether "0,1,2" may stand for a list."""
    try:
        return _convert(value, hint, text)
    except _MisfitError as misfit:
        choices = _choices(hint)
        close = nearest(value, choices) if isinstance(value, str) else ""
        allowed = misfit.allowed or describe(hint)
        former = f"; the former {answer}" if answer else ""
        raise ConfigError(f"{path} must be {allowed}, got {show(value)}{close}{former}") from None


def _dotted(path: str, key: Any) -> str:
    return f"{path}.{key}" if path else str(key)


def argument_answers(target: Any) -> Mapping[str, str]:
    """What the registry says of arguments that a class or function does not take (any more), by name.

    A subclass is answered as its bases are, except on the arguments of its own constructor: a base's former
    argument of that name has nothing to do with them.
    """
    answers: dict[str, str] = {}
    arguments: set[str] = set()  # of the constructors of classes further down
    for owner in target.__mro__ if inspect.isclass(target) else [target]:
        registered = getattr(owner, "__dict__", {}).get("argument_answers", {})
        answers = {name: line for name, line in registered.items() if name not in arguments} | answers
        constructor = vars(owner).get("__init__") if inspect.isclass(owner) else None
        if inspect.isfunction(constructor):
            arguments.update(inspect.signature(constructor).parameters)
    return answers


def parse(text: str) -> Any:
    """One YAML value from the text of an override, `#` included; `ValueError` if it is not YAML."""
    from clprompt import plain_yaml

    return plain_yaml.read_override(text)


class _MisfitError(Exception):
    """A value does not fit; `allowed` says what would where its type fits and a constraint does not."""

    def __init__(self, allowed: str = "") -> None:
        super().__init__(allowed)
        self.allowed = allowed


def _convert(value: Any, hint: Any, text: bool) -> Any:
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any or hint is object or hint is inspect.Parameter.empty or isinstance(hint, typing.TypeVar):
        return value
    if origin is typing.Annotated:
        return _convert_constrained(value, inner[0], _constraints(hint), text)
    if origin in (Union, types.UnionType):
        return _convert_union(value, inner, text)
    if origin is Literal:
        value = _number(value)
        if any(value == choice and type(value) is type(choice) for choice in inner):
            return value
        raise _MisfitError
    kind = origin or hint
    if kind in _SEQUENCES:
        return _convert_sequence(value, kind, inner, text)
    if kind in (dict, collections.abc.Mapping, collections.abc.MutableMapping):
        if not isinstance(value, Mapping):
            raise _MisfitError
        key_hint, value_hint = inner or (Any, Any)
        return {_within(key, key_hint, text): _within(item, value_hint, text) for key, item in value.items()}
    return _convert_plain(value, kind)


def _convert_plain(value: Any, kind: Any) -> Any:
    if kind in _NUMBERS:
        value = _number(value)
    if kind is None or kind is type(None):
        fits = value is None
    elif kind is float:
        fits = isinstance(value, int | float) and not isinstance(value, bool)
        value = _finite(value) if fits else value
    elif kind is int:
        fits = isinstance(value, int) and not isinstance(value, bool)
    elif isinstance(kind, type) and issubclass(kind, os.PathLike):
        fits = isinstance(value, str | os.PathLike)
    else:
        fits = _is_instance(value, kind)
    if not fits:
        raise _MisfitError
    return value


def _is_instance(value: Any, kind: Any) -> bool:
    try:
        return isinstance(value, kind)
    except TypeError:  # a protocol, a NewType: nothing to test by
        return True


def _finite(value: float) -> float:
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise _MisfitError("a finite number")
    return number


def _number(value: Any) -> Any:
    """A number or boolean of numpy or torch as Python's own."""
    return value.item() if getattr(value, "ndim", None) == 0 and hasattr(value, "item") else value


def _constraints(hint: Any) -> list[Bound | Length]:
    return [entry for entry in typing.get_args(hint)[1:] if isinstance(entry, Bound | Length)]


def _convert_constrained(value: Any, hint: Any, constraints: list[Bound | Length], text: bool) -> Any:
    allowed = " and ".join(map(str, constraints))
    try:
        converted = _convert(value, hint, text)
    except _MisfitError as misfit:
        raise _MisfitError(f"{misfit.allowed} {allowed}".strip() if misfit.allowed else "") from None
    if not all(constraint.allows(converted) for constraint in constraints):
        raise _MisfitError(allowed)
    return converted


def _convert_union(value: Any, members: tuple[Any, ...], text: bool) -> Any:
    # The exact type first: `int | float` leaves 3 an int, `str | list[int]` leaves "0,1" a string.
    misfits: list[str] = []
    for member in sorted(members, key=lambda member: type(value) is not _bare(member)):
        try:
            return _convert(value, member, text)
        except _MisfitError as misfit:
            misfits.extend([misfit.allowed] if misfit.allowed else [])
    raise _MisfitError(misfits[0] if len(misfits) == 1 else "")


def _bare(hint: Any) -> Any:
    """A hint without its constraints."""
    return typing.get_args(hint)[0] if typing.get_origin(hint) is typing.Annotated else hint


def _convert_sequence(value: Any, kind: Any, inner: tuple[Any, ...], text: bool) -> list[Any]:
    if text and isinstance(value, str) and "," in value:  # an override without brackets: blocks=0,1,2
        try:
            value = parse(f"[{value}]")
        except ValueError:
            raise _MisfitError from None
    if hasattr(value, "tolist"):  # an array
        value = value.tolist()
    if not isinstance(value, collections.abc.Collection) or isinstance(value, str | bytes | Mapping):
        raise _MisfitError
    if kind is tuple and inner and Ellipsis not in inner:
        if len(inner) != len(value):
            raise _MisfitError
        return [_within(item, hint, text) for item, hint in zip(value, inner, strict=True)]
    return [_within(item, inner[0] if inner else Any, text) for item in value]


def _within(value: Any, hint: Any, text: bool) -> Any:
    """`_convert` of an entry: what does not fit is told of the whole."""
    try:
        return _convert(value, hint, text)
    except _MisfitError:
        raise _MisfitError from None


def _choices(hint: Any) -> list[str]:
    inner = typing.get_args(hint)
    if typing.get_origin(hint) is Literal:
        return [choice for choice in inner if isinstance(choice, str)]
    return [choice for member in inner for choice in _choices(member)]


def describe(hint: Any) -> str:
    """A type hint in a user's words: 'int (at least 1) or null', 'list of int', 'one of "adam", "sgd"'."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        constraints = ", ".join(map(str, _constraints(hint)))
        return describe(inner[0]) + (f" ({constraints})" if constraints else "")
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
    value = _number(value)
    if isinstance(value, float):
        return str(value)  # "inf" and "nan" are no JSON
    try:
        text = json.dumps(value, ensure_ascii=False, default=_text)
    except (TypeError, ValueError):
        text = " ".join(str(value).split())
    except RecursionError:
        text = f"a {type(value).__name__} nested too deep"
    return text if len(text) <= 80 else text[:77] + "..."


def _text(value: Any) -> Any:
    return _listed(value.tolist()) if hasattr(value, "tolist") else " ".join(str(value).split())


def plain(value: Any, path: str, depth: int = 50) -> Any:
    """The value as plain YAML: tuples, sets and arrays as lists, paths as text, numpy's numbers as Python's.

    Whole numbers that are keys of a mapping become text.

    Args:
        value: of any kind.
        path: its dotted key, for messages.
        depth: levels of nesting that are allowed.

    Raises:
        ConfigError: something else is in it, or it is nested deeper.
    """
    value = _number(value)
    if hasattr(value, "tolist"):
        value = value.tolist()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if depth and isinstance(value, Mapping) and all(map(_is_key, value)):
        return {str(key): plain(item, _dotted(path, key), depth - 1) for key, item in value.items()}
    if depth and isinstance(value, list | tuple | set | frozenset):
        return [plain(item, f"{path}.{number}", depth - 1) for number, item in enumerate(value)]
    allowed = "null, a bool, a number, text, or a list or mapping of those"
    if not depth:
        raise ConfigError(f"{path} is nested too deep")
    raise ConfigError(f"{path} must be {allowed}, got {show(value)}")


def _is_key(key: Any) -> bool:
    """Text, or a whole number, which stands for its text."""
    return isinstance(key, str | int) and not isinstance(key, bool)


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
