"""Names of classes by class id, as a text tower reads them."""

from __future__ import annotations

import json
import operator
import re
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from clprompt.data.names import class_name
from clprompt.errors import ConfigError, ProtocolError, tell

_WORDNET_ID = re.compile(r"n\d{8}")
_NUMBER = re.compile(r"[+-]?\d+")


def as_text(name: str) -> str:
    """A class's name as text: ``_`` is a space, since tokenizers make it a token of its own."""
    return " ".join(class_name(name).replace("_", " ").split())


class ClassNames(nn.Module):
    """Names of classes by class id. They are state: a loaded model predicts with its own.

    All names are text as :func:`as_text` makes it. Several names of one class are synonyms, of which the
    first is shown. The state is the names of all classes as JSON, in one uint8 tensor.
    """

    def __init__(self) -> None:
        super().__init__()
        self._names: dict[int, list[str]] = {}
        self._has_told = False
        self.utf8: Tensor
        self.register_buffer("utf8", torch.zeros(0, dtype=torch.uint8))

    def add(
        self,
        names: Mapping[int, str | Sequence[str]],
        read: Callable[[Sequence[str]], Iterable[Hashable]] = iter,
    ) -> None:
        """Name further classes; a class that has the same names already stays as it is.

        Args:
            names: by class id; several are synonyms, the first is shown.
            read: texts -> what the text tower reads of each; its tokenizer may read two names alike.

        Raises:
            ConfigError: what is no class id or no name, a class that has other names, or two classes whose
                shown names are read alike: their text features would be equal.
        """
        added = {_class_id(c): _texts(c, given) for c, given in names.items()}
        for c, texts in added.items():
            if self._names.get(c, texts) != texts:
                raise ConfigError(f'class {c} is called "{self._names[c][0]}" already, got "{texts[0]}"')
        merged = dict(sorted({**self._names, **added}.items()))
        shown = [texts[0] for texts in merged.values()]
        check_read_apart(shown, read, [f"class {c}" for c in merged], "tell them apart (data.class_names)")
        self._tell_unlike_words(texts[0] for c, texts in added.items() if c not in self._names)
        self._names = merged
        stored = json.dumps({str(c): texts for c, texts in merged.items()}, ensure_ascii=False).encode()
        self.utf8 = torch.tensor(list(stored), dtype=torch.uint8, device=self.utf8.device)

    def shown(self, c: int) -> str:
        """The name of a class, the first of its synonyms.

        Raises:
            ProtocolError: it has none.
        """
        return self.all(c)[0]

    def all(self, c: int) -> list[str]:
        """All names of a class, the shown one first.

        Raises:
            ProtocolError: it has none.
        """
        if c not in self:
            raise ProtocolError(
                f"class {c} has no name; name it before it is trained: name_classes({{{c}: ...}})"
            )
        return list(self._names[int(c)])

    def called(self, name: str) -> list[str]:
        """All names of the class that is shown under this one; none where there is no such class."""
        return next((list(names) for names in self._names.values() if names[0] == name), [])

    def every(self) -> list[str]:
        """All names of all classes, by class id."""
        return [name for names in self._names.values() for name in names]

    def __contains__(self, c: int) -> bool:
        return int(c) in self._names

    def __len__(self) -> int:
        return len(self._names)

    def _tell_unlike_words(self, shown: Iterable[str]) -> None:
        """One notice about names that no text tower has learned to see in images."""
        unlike = [name for name in shown if _WORDNET_ID.fullmatch(name) or _NUMBER.fullmatch(name)]
        if unlike and not self._has_told:
            self._has_told = True
            tell(
                f"{len(unlike)} classes are named by a number or a WordNet id, the first "
                f'"{unlike[0]}", which says little to a text tower; name them in words (data.class_names)'
            )

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, metadata: Any, strict: bool, *reports: Any
    ) -> None:
        stored = state_dict.get(f"{prefix}utf8")
        if stored is not None:
            self.utf8 = torch.zeros_like(stored, device=self.utf8.device)  # of the size that is loaded
        super()._load_from_state_dict(state_dict, prefix, metadata, strict, *reports)
        if stored is None:
            return
        try:
            held = json.loads(bytes(self.utf8.tolist()) or "{}")
            self._names = {int(c): [str(name) for name in names] for c, names in held.items()}
        except (ValueError, AttributeError, TypeError) as error:
            reports[-1].append(f"{prefix}utf8 holds no names of classes: {error}")


def check_read_apart(
    texts: Sequence[str],
    read: Callable[[Sequence[str]], Iterable[Hashable]],
    whose: Sequence[str],
    hint: str,
) -> None:
    """Refuse texts that a text tower cannot tell apart.

    Args:
        texts: [n].
        read: see :meth:`ClassNames.add`.
        whose: what messages call each, [n].
        hint: what to do about it.

    Raises:
        ConfigError: two that are read alike.
    """
    met: dict[Hashable, int] = {}
    for position, key in enumerate(read(texts)):
        first = met.setdefault(key, position)
        if first != position:
            one, two = (f'{whose[at]} ("{texts[at]}")' for at in (first, position))
            raise ConfigError(f"{one} and {two} have the same text features; {hint}")


def _class_id(c: Any) -> int:
    try:
        number = operator.index(c)
    except TypeError:
        number = -1
    if number < 0:
        raise ConfigError(f"names are given by class id, 0 or more; got {c!r}")
    return number


def _texts(c: Any, given: Any) -> list[str]:
    names = [given] if isinstance(given, str) else given
    if not isinstance(names, Sequence) or not names or not all(isinstance(name, str) for name in names):
        raise ConfigError(f"class {c} must have a name, or a list of names; got {given!r}")
    texts = [as_text(name) for name in names]
    if not all(texts):
        raise ConfigError(f"class {c} has an empty name")
    return list(dict.fromkeys(texts))
