"""A YAML file, read, with dotted overrides laid over it and interpolations resolved; no key is known here."""

from __future__ import annotations

import importlib.resources
import typing
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from clprompt import plain_yaml, schema
from clprompt.errors import ConfigError, nearest
from clprompt.system.files import read_bytes

#: The key of a configuration that names another one, over which it lies.
BASE = "base"


def read(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file, interpolations as they are written.

    Raises:
        ConfigError: the file is missing, empty, broken (with the line), or holds no mapping.
    """
    try:
        data = read_bytes(path)
        text = data.decode()
    except FileNotFoundError:
        raise ConfigError(f"{path}: there is no such file") from None
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path}, line {line}: not a text file in UTF-8") from None
    except (OSError, ValueError) as error:  # a path may hold a NUL
        raise ConfigError(f"{path}: {getattr(error, 'strerror', None) or error}") from None
    try:
        values = plain_yaml.read(text)
    except plain_yaml.YamlError as error:
        where = f", line {error.line}" if error.line else ""
        raise ConfigError(f"{path}{where}: {error}") from None
    if values is None:
        raise ConfigError(f"{path}: the file is empty; it must hold the sections of an experiment")
    if not isinstance(values, dict):
        kind = "a list" if isinstance(values, list) else "a single value"
        raise ConfigError(f"{path}: must hold a mapping of sections, not {kind}")
    return values


def read_based(
    path: Path, overrides: Sequence[str], sections: Container[str]
) -> tuple[dict[str, Any], list[Path], list[str]]:
    """What `read` gives, laid over the file that its key `base` names, if it names one.

    Args:
        path: of the file; a base that is not where one stands is looked for beside it.
        overrides: of which `base=FILE` counts here.
        sections: see `lay`.

    Returns:
        The values; the files, the base behind; the other overrides.

    Raises:
        ConfigError: see `read`; a base with a base of its own.
    """
    values = read(path)
    given = [text for text in overrides if text.partition("=")[0].strip() == BASE]
    rest = [text for text in overrides if text not in given]
    named = [values.pop(BASE, None), *(text.partition("=")[2].strip() or None for text in given)]
    base = schema.check(named[-1], str | None, BASE)
    if base is None:
        return values, [path], rest
    beside = path.parent / base
    try:
        below = find(str(beside) if not Path(base).exists() and beside.exists() else base)
        under = read(below)
    except ConfigError as error:
        raise ConfigError(f"{path}: {BASE}: {error}") from None
    if under.get(BASE) is not None:
        raise ConfigError(f"{path}: {BASE}: {below} has a base itself; one level is allowed")
    lay(values, over=under, sections=sections)
    return under, [path, below], rest


def lay(layer: Mapping[str, Any], *, over: dict[str, Any], sections: Container[str]) -> None:
    """Replace values by those of a layer; of a section without a name, the keys that the layer has.

    Args:
        layer: what lies above.
        over: gets new sections, its own are left as they are.
        sections: keys whose value may be a bare string, short for {name: string}.
    """
    for key, value in layer.items():
        below = over.get(key)
        if isinstance(below, str) and key in sections:
            below = {"name": below}
        if isinstance(value, dict) and isinstance(below, dict) and "name" not in value:
            value = {**below, **value}
        over[key] = value


def read_written(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file that `write` made; nothing in it is replaced, wherever it comes from.

    Raises:
        ConfigError: see `read`.
    """
    return typing.cast(dict[str, Any], plain_yaml.unescape(read(path)))


def write(values: Mapping[str, Any]) -> str:
    """Plain values as the YAML text of a file that `read_written`, and `read` with `resolve`, read back.

    Raises:
        ConfigError: a value is not plain.
    """
    try:
        return plain_yaml.write(dict(values), interpolated=True)
    except plain_yaml.YamlError as error:
        raise ConfigError(f"the configuration cannot be written: {error}") from None


def resolve(raw: dict[str, Any], path: Path) -> dict[str, Any]:
    """The values with every `${...}` replaced.

    Raises:
        ConfigError: an interpolation that leads nowhere, or a `???` that nobody replaced.
    """
    texts = dict(_texts(raw))
    for key, text in texts.items():
        if text == "???":
            raise ConfigError(f"{key} has no value in {path}; set it with {key}=...")
    if not any("${" in text for text in texts.values()):
        return raw
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        values = OmegaConf.to_container(OmegaConf.create(raw), resolve=True)
    except (OmegaConfBaseException, RecursionError) as error:
        place = getattr(error, "full_key", None)
        raise ConfigError(f"{path}: {f'{place}: ' if place else ''}{_first_line(error)}") from None
    return typing.cast(dict[str, Any], _replaced(raw, values))


def _texts(values: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """All text among nested values, by dotted key."""
    if isinstance(values, dict | list):
        for key, value in values.items() if isinstance(values, dict) else enumerate(values):
            yield from _texts(value, f"{path}.{key}".lstrip("."))
    elif isinstance(values, str):
        yield path, values


def _replaced(raw: Any, values: Any) -> Any:
    """`values` where `raw` holds an interpolation, `raw` elsewhere: text that is none stays as it is."""
    if isinstance(raw, dict):
        return {key: _replaced(value, values[key]) for key, value in raw.items()}
    if isinstance(raw, list):
        return [_replaced(value, other) for value, other in zip(raw, values, strict=True)]
    return values if isinstance(raw, str) and "${" in raw else raw


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def apply(raw: dict[str, Any], overrides: Sequence[str], sections: Container[str] = ()) -> None:
    """Lay overrides over the raw values, in place: replacements of whole keys first, then dotted keys.

    Args:
        raw: what `read` returned.
        overrides: `key=value` and `section.key=value`; `compare.0.lr=1` addresses an item of a list.
        sections: keys whose value may be a bare string, short for {name: string}.

    Raises:
        ConfigError: an override that is none, that is not YAML, or that goes through something without keys.
    """
    parsed: list[tuple[list[str], Any]] = []
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals or not all(key.strip().split(".")):
            raise ConfigError(f"{schema.show(text)} is not an override; write key=value or section.key=value")
        try:
            parsed.append((key.strip().replace("[", ".").replace("]", "").split("."), schema.parse(value)))
        except ValueError as error:
            raise ConfigError(f"the override {schema.show(text)} is not valid YAML: {error}") from None
        if len(parsed[-1][0]) > plain_yaml.DEPTH:
            raise ConfigError(f'"{text[:40]}..." names a key of more than {plain_yaml.DEPTH} levels')
    for keys, value in sorted(parsed, key=lambda pair: len(pair[0]) > 1):
        _set(raw, keys, value, sections)


def _set(values: dict[str, Any], keys: list[str], value: Any, sections: Container[str]) -> None:
    path = ".".join(keys)
    inner: Any = values
    for depth, key in enumerate(keys):
        at: Any = key
        if isinstance(inner, list):
            if not key.isdigit() or int(key) >= len(inner):
                allowed = f"0 to {len(inner) - 1}" if inner else "none, it is empty"
                raise ConfigError(
                    f'"{path}": {".".join(keys[:depth])} is a list; allowed positions: {allowed}'
                )
            at = int(key)
        elif not isinstance(inner, dict):
            raise ConfigError(
                f'"{path}": {".".join(keys[:depth])} is a value ({schema.show(inner)}), not a section'
            )
        if depth == len(keys) - 1:
            inner[at] = value
            return
        into_list = keys[depth + 1].isdigit()
        if isinstance(inner, dict) and inner.get(at) is None:
            inner[at] = [] if into_list else {}
        elif into_list and isinstance(inner[at], str):
            inner[at] = [item.strip() for item in inner[at].split(",")]  # a list without brackets
        elif isinstance(inner[at], str) and (at in sections or isinstance(inner, list)):
            inner[at] = {"name": inner[at]}  # the short form of a section, about to get arguments
        inner = inner[at]


def flat(values: Any, path: str = "") -> dict[str, Any]:
    """Nested plain values by dotted keys; a list of mappings by position, any other list as a whole."""
    items: Iterable[tuple[Any, Any]] | None = None
    if isinstance(values, Mapping):
        items = values.items()
    elif isinstance(values, list | tuple) and any(isinstance(item, Mapping) for item in values):
        items = enumerate(values)
    if items is None or (path and not values):
        return {path: list(values) if isinstance(values, tuple) else values}
    return {
        key: value for name, item in items for key, value in flat(item, f"{path}.{name}".lstrip(".")).items()
    }


def difference(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """The dotted keys whose values differ, or that only one of the two has; sorted."""
    first, second = flat(a), flat(b)
    absent = object()
    return sorted(key for key in {*first, *second} if first.get(key, absent) != second.get(key, absent))


def find(name: str, kind: str = "configuration") -> Path:
    """The file of a packaged configuration, study, ... (`-` equals `_`), or the path that `name` is."""
    packaged = {path.stem.replace("-", "_"): path for path in _packaged(kind)}
    file = packaged.get(name.replace("-", "_"))
    if file is not None:
        return file
    if name.endswith((".yaml", ".yml")) or "/" in name or "\\" in name:
        return Path(name)
    names = [path.stem for path in packaged.values()]
    hint = nearest(name, names) or (
        f"; did you mean the file {name}.yaml?" if Path(f"{name}.yaml").exists() else ""
    )
    raise ConfigError(
        f'no {kind} is called "{name}"{hint}; known: {", ".join(names) or "none"}, or a path to a .yaml file'
    )


def _packaged(kind: str = "configuration") -> list[Path]:
    home = Path(str(importlib.resources.files("clprompt.configs")))
    folders = {"configuration": "", "study": "studies", "table of the literature": "reported"}
    return sorted((home / folders.get(kind, kind)).glob("*.yaml"))


# -------------------------------------------------------------------------------------------- showing


def names(kind: str = "configuration") -> list[tuple[str, str]]:
    """The packaged configurations, or studies, and the first comment line of each."""
    entries = []
    for path in _packaged(kind):
        lines = path.read_text(encoding="utf-8").splitlines()
        comment = next((line.lstrip("# ").rstrip() for line in lines if line.startswith("#")), "")
        entries.append((path.stem, comment))
    return entries
