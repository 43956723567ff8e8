"""Where the texts of a class come from: templates, descriptions, pairs; and how several become one row."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from clprompt import plain_yaml
from clprompt.errors import ConfigError, nearest, tell
from clprompt.plain_json import once_each
from clprompt.prompting.text.names import as_text
from clprompt.schema import show
from clprompt.system.files import read_text

#: How the features of several texts become one row: the mean of the normalised ones, or of the raw ones; the
#: mean is normalised either way.
Ensemble = Literal["normalised", "raw"]
#: Lists of templates that open_clip publishes, by name.
PUBLISHED = {
    "imagenet_7": "SIMPLE_IMAGENET_TEMPLATES",
    "imagenet_80": "OPENAI_IMAGENET_TEMPLATES",
}
_MARK = "{}"


def fill(template: str, name: str) -> str:
    """The template with a name in place of each {}; other braces stay as they are."""
    return template.replace(_MARK, name)


def check_template(template: str, where: str) -> None:
    """Refuse a template without {}, which would be the same text for every class.

    Raises:
        ConfigError: naming ``where``.
    """
    if _MARK not in template:
        raise ConfigError(f'{where} must hold {_MARK} in place of the class name, got "{template}"')


# ------------------------------------------------------------------------------------------ rows of texts


def ensemble_rows(features: Tensor, counts: Sequence[int], rule: Ensemble = "normalised") -> Tensor:
    """One normalised row for each class from the features of its texts.

    Args:
        features: of all texts, class by class, not normalised, [n, E].
        counts: texts of each class, C of them, each 1 or more.
        rule: see :data:`Ensemble`.

    Returns:
        [C, E].
    """
    parts = (F.normalize(features, dim=-1) if rule == "normalised" else features).split(list(counts))
    means = [part.mean(0) for part in parts]
    return F.normalize(torch.stack(means), dim=-1) if means else features.new_zeros(0, features.shape[-1])


def text_rows(text: Any, groups: Sequence[Sequence[str]], rule: Ensemble = "normalised") -> Tensor:
    """The normalised row of each group of texts, without gradient, [C, E].

    Args:
        text: the frozen text tower.
        groups: the texts of each class, one or more.
        rule: see :data:`Ensemble`.

    Raises:
        ConfigError: a text that does not fit the tower, with its length.
    """
    features = text.features([sentence for group in groups for sentence in group])
    return ensemble_rows(features, [len(group) for group in groups], rule)


def rows_one_by_one(text: Any, groups: Sequence[Sequence[str]], rule: Ensemble = "normalised") -> Tensor:
    """:func:`text_rows` of groups that are asked for in changing company.

    The tower keeps an answer for each list of texts: here one of each group, whatever stands beside it.
    """
    return torch.cat([text_rows(text, [group], rule) for group in groups])


def check_fit(text: Any, texts: Iterable[str], where: str) -> None:
    """Refuse texts that a tower does not take, before anything is computed.

    Args:
        text: the frozen text tower.
        texts: to be tried.
        where: they stand, for the message.

    Raises:
        ConfigError: naming ``where``, the text and its length.
    """
    try:
        text.tokens(list(dict.fromkeys(texts)))
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None


# --------------------------------------------------------------------------------------------------- files


def read_templates(source: str, key: str = "templates") -> list[str]:
    """Templates from a file, or those that open_clip publishes under a name.

    Args:
        source: ``imagenet_7``, ``imagenet_80``, or a file: a JSON or YAML list, or text with one a line.
        key: the argument, for messages.

    Raises:
        ConfigError: no such file or name, something else than a list of templates, or one without {}.
    """
    if source in PUBLISHED:
        return _published(source, key)
    templates = _read(source, key, f"; {key} is a file, or one of {', '.join(PUBLISHED)}")
    if not isinstance(templates, list):
        raise ConfigError(f"{key} {source} must hold a list of templates, got {_kind(templates)}")
    return _templates(templates, f"{key} {source}")


def read_descriptions(path: str, key: str = "descriptions") -> dict[str, list[str]]:
    """Sentences about classes from a JSON or YAML file, ``{name: [sentence, ...]}``, as CuPL's files are.

    Args:
        path: the file.
        key: the argument, for messages.

    Returns:
        The sentences by name, as :func:`clprompt.prompting.text.names.as_text` makes it text.

    Raises:
        ConfigError: no such file, another form, a name without sentences or two that are one as text.
    """
    return _descriptions(_read(path, key), f"{key} {path}")


def read_candidates(path: str, key: str = "candidates") -> list[str] | dict[str, list[str]]:
    """A list of templates, or sentences by name: what a search chooses from; see the two functions above.

    Raises:
        ConfigError: as they do.
    """
    if path in PUBLISHED:
        return _published(path, key)
    values = _read(path, key, f"; {key} is a file, or one of {', '.join(PUBLISHED)}")
    if isinstance(values, list):
        return _templates(values, f"{key} {path}")
    if isinstance(values, Mapping):
        return _descriptions(values, f"{key} {path}")
    raise ConfigError(
        f"{key} {path} must hold a list of templates, or sentences by class name, got {_kind(values)}"
    )


class ClassTexts:
    """The texts of any class: templates that take its name, or sentences about it.

    Args:
        source: a template with {}, a file of templates or of sentences by name, or a published list.
        key: the argument, for messages.

    Attributes:
        where: the argument and its value, for messages.
        templates: in use where there are no sentences.
        sentences: by name, as text; None for templates.

    Raises:
        ConfigError: as :func:`read_candidates` does.
    """

    def __init__(self, source: str, key: str) -> None:
        self.key, self.where = key, f"{key} {source}"
        self.from_file = _MARK not in source
        read = read_candidates(source, key) if self.from_file else [source]
        self.templates: list[str] = read if isinstance(read, list) else []
        self.sentences: dict[str, list[str]] | None = None if isinstance(read, list) else read

    def files_read(self) -> dict[str, Any]:
        """Templates, or sentences by name, that a file or a list gave, by the argument."""
        return {self.key: self.sentences or self.templates} if self.from_file else {}

    def of(self, name: str) -> list[str]:
        """The texts of a class."""
        if self.sentences is not None:
            return self.sentences[name]
        return [fill(template, name) for template in self.templates]

    def check(self, names: Iterable[str]) -> None:
        """Refuse names of classes without sentences.

        Raises:
            ConfigError: naming the class.
        """
        for name in names:
            if self.sentences is not None and name not in self.sentences:
                raise ConfigError(f'{self.where} says nothing of class "{name}"')


def read_pairs(path: str, key: str = "pairs") -> dict[tuple[str, str], list[str]]:
    """Sentences that tell two classes apart, from a JSON or YAML file: the form of FuDD's files.

    ``[{classes: [a, b], prompts: {a: [sentence, ...], b: [sentence, ...]}}, ...]``

    Args:
        path: the file.
        key: the argument, for messages.

    Returns:
        By (name, other name), both as text, the sentences about the first.

    Raises:
        ConfigError: no such file, another form, a pair of one class or one that comes twice.
    """
    entries = _read(path, key)
    if not isinstance(entries, list) or not entries:
        raise ConfigError(f"{key} {path} must hold a list of pairs, got {_kind(entries)}")
    sentences: dict[tuple[str, str], list[str]] = {}
    for number, entry in enumerate(entries, 1):
        where = f"{key} {path}, pair {number}"
        names = entry.get("classes") if isinstance(entry, Mapping) else None
        prompts = entry.get("prompts") if isinstance(entry, Mapping) else None
        if (
            not isinstance(names, list)
            or len(names) != 2
            or not all(isinstance(name, str) and as_text(name) for name in names)
            or not isinstance(prompts, Mapping)
        ):
            raise ConfigError(f"{where} must be {{classes: [a, b], prompts: {{a: [...], b: [...]}}}}")
        first, second = map(as_text, names)
        if first == second or (first, second) in sentences:
            what = "is of one class" if first == second else "comes twice"
            raise ConfigError(f'{where}: "{first}", "{second}" {what}')
        of_both = _descriptions(prompts, f"{where}, prompts")
        if set(of_both) != {first, second}:
            raise ConfigError(
                f'{where}: prompts must be of "{first}" and "{second}", '
                f"got {', '.join(map(show, of_both)) or 'none'}"
            )
        sentences[first, second], sentences[second, first] = of_both[first], of_both[second]
    return sentences


def tell_of_strangers(given: Iterable[str], names: Iterable[str], where: str) -> None:
    """One notice about names in a file that are no class's, with the nearest class.

    Args:
        given: names in the file.
        names: all names of all classes.
        where: the argument and the file.
    """
    names = list(names)
    strangers = [name for name in dict.fromkeys(given) if name not in set(names)]
    if strangers:
        more = f" and {len(strangers) - 1} more are no names of classes" if len(strangers) > 1 else ""
        what = more or " is no name of a class"
        tell(f'{where}: "{strangers[0]}"{what}{nearest(strangers[0], names)}')


def _published(name: str, key: str) -> list[str]:
    try:
        from open_clip import zero_shot_metadata
    except ImportError:
        raise ConfigError(
            f"{key}={name} is a list of open_clip's, which is not installed: pip install clprompt[clip]"
        ) from None
    return [template(_MARK) for template in getattr(zero_shot_metadata, PUBLISHED[name])]


def _read(path: str, key: str, hint: str = "") -> Any:
    """The value in a JSON file (.json), a YAML file, or the lines of a text file (.txt)."""
    try:
        content = read_text(path)
    except FileNotFoundError:
        close = nearest(path, PUBLISHED) if hint else ""
        raise ConfigError(f"{key}: there is no file {path}{hint}{close}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{key} {path}: not a text file in UTF-8") from None
    except (OSError, ValueError) as error:  # a path may hold a NUL
        raise ConfigError(f"{key} {path}: {getattr(error, 'strerror', None) or error}") from None
    kind = Path(path).suffix.lower()
    if kind == ".txt":
        return [line.strip() for line in content.splitlines() if line.strip()]
    try:
        if kind == ".json":  # YAML would take minutes for the large ones
            return json.loads(content, object_pairs_hook=once_each('the key "{}" stands there twice'))
        return plain_yaml.read(content)
    except plain_yaml.YamlError as error:
        at = f", line {error.line}" if error.line else ""
        raise ConfigError(f"{key} {path}{at}: {error}") from None
    except json.JSONDecodeError as error:
        raise ConfigError(f"{key} {path}, line {error.lineno}: no JSON: {error.msg}") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{key} {path}: no JSON: {error}") from None


def _templates(values: list[Any], where: str) -> list[str]:
    templates = _sentences(values, where, "template")
    for number, template in enumerate(templates, 1):
        check_template(template, f"{where}, template {number},")
    return templates


def _descriptions(values: Any, where: str) -> dict[str, list[str]]:
    if not isinstance(values, Mapping) or not values:
        raise ConfigError(f"{where} must hold sentences by class name, {{name: [...]}}, got {_kind(values)}")
    sentences: dict[str, list[str]] = {}
    for name, texts in values.items():
        if not isinstance(name, str) or not as_text(name):
            raise ConfigError(f"{where}: a class name must be text, got {show(name)}; put it in quotes")
        if as_text(name) in sentences:
            raise ConfigError(f'{where}: "{as_text(name)}" stands there twice')
        sentences[as_text(name)] = _sentences(texts, f'{where}, "{name}"', "sentence")
    return sentences


def _sentences(values: Any, where: str, what: str) -> list[str]:
    """A list of texts, none empty and none twice."""
    if not isinstance(values, list) or not values:
        raise ConfigError(f"{where} must be a list of {what}s, got {_kind(values)}")
    for number, value in enumerate(values, 1):
        if not isinstance(value, str) or not value.strip():
            raise ConfigError(f"{where}, {what} {number} must be text, got {show(value)}")
    return list(dict.fromkeys(value.strip() for value in values))


def _kind(value: Any) -> str:
    if value is None or value == [] or value == {}:
        return "nothing"
    kinds: dict[type, str] = {dict: "a mapping", list: "a list", str: "one text"}
    return kinds.get(type(value)) or show(value)
