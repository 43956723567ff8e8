"""YAML text and plain values (None, bool, int, float, str, list, dict), in both directions.

Read under limits, since a file may be anybody's, and written so that every string comes back as it is. The
rules are those of OmegaConf: YAML 1.1, where ``1e-3`` is a number and a date is text.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NoReturn

import yaml

DEPTH = 50  # levels of nesting: no configuration comes near, and no reader of its values runs out of stack
SIZE = 100_000  # values, after every alias is replaced by what it stands for


class YamlError(ValueError):
    """Text that is not YAML, or more than plain values; `str()` is one line without the place.

    Args:
        problem: what is wrong.
        line: where, counted from 1; None where nobody can say.
    """

    def __init__(self, problem: str, line: int | None = None) -> None:
        super().__init__(" ".join(problem.split()))
        self.line = line


def read(text: str) -> Any:
    """The one value of a YAML text; None for an empty one.

    Raises:
        YamlError: broken, of several documents, too deep or too large, with a key twice or a tag of its own.
    """
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            _measure(node, {}, set())
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise YamlError(f"the character #x{error.character:04x} is not allowed", line) from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problem = error.problem or error.context or "not YAML"
        raise YamlError(problem, mark.line + 1 if mark else None) from None


def read_override(text: str) -> Any:
    """The value of `key=VALUE`, a YAML text in which `#` is a character like any other.

    Raises:
        YamlError: see `read`; or YAML would drop a part of the text without a word (a comment beside or in a
            list, an anchor that nobody refers to, the mark of a document).
    """
    value = read(text)
    end, lost, is_plain, aliased = 0, "", True, False
    for token in yaml.scan(text, Loader=_Loader):
        if "#" in text[end : token.start_mark.index]:
            lost = lost or "#"
        end = token.end_mark.index
        if isinstance(token, yaml.AnchorToken):
            lost = lost or "&"
        if isinstance(token, yaml.DocumentStartToken | yaml.DocumentEndToken | yaml.DirectiveToken):
            lost = "---" if isinstance(token, yaml.DocumentStartToken) else text[: token.end_mark.index]
        aliased = aliased or isinstance(token, yaml.AliasToken)
        if not isinstance(token, yaml.StreamStartToken | yaml.StreamEndToken):
            is_plain = is_plain and isinstance(token, yaml.ScalarToken) and token.plain
    if lost == "#" and is_plain:
        return text.strip()  # a path, a name: nobody comments on a command line
    if lost and not (lost == "&" and aliased):
        raise YamlError(f"{lost} would be lost; text that holds it must stand in quotes")
    return value


def write(values: Any, *, interpolated: bool = False) -> str:
    """Plain values as YAML text from which `read` gives equal ones.

    Args:
        values: plain ones.
        interpolated: whether its reader replaces ``${...}``; text that holds such is escaped then.

    Raises:
        YamlError: a value that is not plain.
    """
    try:
        return yaml.dump(
            _map_text(values, escape) if interpolated else values,
            Dumper=_Dumper,
            default_flow_style=False,
            allow_unicode=True,
            sort_keys=False,
        )
    except yaml.representer.RepresenterError as error:
        raise YamlError(f"no plain value: {error.args[-1]!r}") from None


# ------------------------------------------------------------------------------------------ interpolations


def escape(text: str) -> str:
    r"""Text that OmegaConf's interpolation gives back as it is: ``\${x}`` for ``${x}``."""
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", text)


def unescape(values: Any) -> Any:
    r"""Values whose text is as before `escape`; ``${x}`` without a backslash stands for itself."""
    return _map_text(values, lambda text: re.sub(r"(\\*)\\\$\{", _unescaped, text))


def _unescaped(match: re.Match[str]) -> str:
    backslashes = match[1]
    return backslashes[: len(backslashes) // 2] + "${" if len(backslashes) % 2 == 0 else match[0]


def _map_text(values: Any, change: Callable[[str], str]) -> Any:
    if isinstance(values, dict):
        return {key: _map_text(value, change) for key, value in values.items()}
    if isinstance(values, list | tuple):
        return [_map_text(value, change) for value in values]
    return change(values) if isinstance(values, str) else values


# ----------------------------------------------------------------------------------------------- reading


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, with a limit to its recursion, and without anything but plain values."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        self.depth += 1
        if self.depth > DEPTH:
            mark = self.peek_event().start_mark
            raise yaml.composer.ComposerError(None, None, f"more than {DEPTH} levels of nesting", mark)
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1


_FLOAT = re.compile(
    r"""[-+]?[0-9]+(_[0-9]+)*\.[0-9_]*([eE][-+]?[0-9]+)?
    | [-+]?[0-9]+(_[0-9]+)*[eE][-+]?[0-9]+
    | \.[0-9]+(_[0-9]+)*([eE][-+][0-9]+)?
    | [-+]?[0-9]+(_[0-9]+)*(:[0-5]?[0-9])+\.[0-9_]*
    | [-+]?\.(inf|Inf|INF)
    | \.(nan|NaN|NAN)""",
    re.X,
)
_TAG = "tag:yaml.org,2002:"
_SCALARS = ("null", "bool", "int", "float", "str")
_PLAIN = (*_SCALARS, "seq", "map")


class _Whole:
    """A regular expression that PyYAML asks by `match`, and that must match to the end."""

    def __init__(self, expression: re.Pattern[str]) -> None:
        self.match = expression.fullmatch


def _constructor(tag: str) -> Callable[[Any, Any], Any]:
    construct = yaml.SafeLoader.yaml_constructors[tag]

    def constructor(loader: Any, node: Any) -> Any:
        try:
            return construct(loader, node)
        except (ValueError, KeyError, IndexError) as error:  # 0x_, !!bool perhaps, 5000 digits
            problem = f"{node.value[:40]} is no {tag.removeprefix(_TAG)}"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark) from error

    return constructor


def _unknown(loader: Any, node: Any) -> NoReturn:
    raise yaml.constructor.ConstructorError(
        None, None, f"the tag {node.tag.removeprefix(_TAG)} is not allowed", node.start_mark
    )


_Loader.yaml_constructors = {
    f"{_TAG}{kind}": yaml.SafeLoader.yaml_constructors[f"{_TAG}{kind}"] for kind in _PLAIN
} | {f"{_TAG}{kind}": _constructor(f"{_TAG}{kind}") for kind in _SCALARS}
_Loader.yaml_constructors[None] = _unknown
_Loader.yaml_implicit_resolvers = {  # a date and "=" are text, the float of YAML 1.1 needs a dot
    first: [pair for pair in pairs if pair[0].removeprefix(_TAG) not in ("timestamp", "value", "float")]
    for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(f"{_TAG}float", _Whole(_FLOAT), list("-+0123456789."))


def _measure(node: Any, sizes: dict[int, int], above: set[int]) -> int:
    """How many values a node stands for, aliases replaced; refuses too many, circles, and a key twice."""
    if id(node) in above:
        raise yaml.composer.ComposerError(
            None, None, "an alias stands inside its own anchor", node.start_mark
        )
    if isinstance(node, yaml.ScalarNode):
        return 1
    if id(node) in sizes:
        return sizes[id(node)]
    is_mapping = isinstance(node, yaml.MappingNode)
    keys: set[tuple[str, str]] = set()
    for key, _ in node.value if is_mapping else ():
        if isinstance(key, yaml.ScalarNode) and key.tag != f"{_TAG}merge":
            if (key.tag, key.value) in keys:
                problem = f"found duplicate key {key.value}"
                raise yaml.composer.ComposerError(None, None, problem, key.start_mark)
            keys.add((key.tag, key.value))
    above.add(id(node))
    size = 1
    for child in [part for pair in node.value for part in pair] if is_mapping else node.value:
        size += _measure(child, sizes, above)
        if size > SIZE:
            problem = f"more than {SIZE} values, aliases counted"
            raise yaml.composer.ComposerError(None, None, problem, child.start_mark)
    above.discard(id(node))
    sizes[id(node)] = size
    return size


# ----------------------------------------------------------------------------------------------- writing


class _Dumper(yaml.SafeDumper):
    """PyYAML's safe dumper; what reads as another type, here or by YAML 1.1, is quoted."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_text(dumper: yaml.SafeDumper, text: str) -> Any:
    # PyYAML writes the rarer line breaks into quotes as they are, from where they are read as "\n"
    style = '"' if any(mark in text for mark in "\n\x85\u2028\u2029") else None
    return dumper.represent_scalar(f"{_TAG}str", text, style)


_Dumper.add_representer(str, _represent_text)
_Dumper.add_implicit_resolver(f"{_TAG}float", _Whole(_FLOAT), list("-+0123456789."))
