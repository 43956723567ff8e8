"""What makes token ids of texts: a tokenizer of whole words; those of published text towers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Protocol

from clprompt.errors import ConfigError


class Tokenizer(Protocol):
    """What a text tower asks of its tokenizer.

    Attributes:
        start_tokens: tokens before a text's first word, 1 or 0.
        padding: the id behind the end token.
    """

    start_tokens: int
    padding: int

    def encode(self, text: str) -> list[int]:
        """A text's ids, start and end token included, without padding, of any length."""
        ...


class WordTokenizer:
    """A token a word; words that it does not know are spelled, a token a character.

    Case does not count. A word is a run of letters and digits, or one other sign.

    Args:
        words: the known ones, characters among them; word i has id i + 1, start and end token the two after
            the last word's, padding 0.
    """

    start_tokens = 1
    padding = 0

    def __init__(self, words: Sequence[str]) -> None:
        self.ids = {word.lower(): index for index, word in enumerate(words, 1)}
        self.start, self.end = len(words) + 1, len(words) + 2

    @property
    def vocabulary(self) -> int:
        """Ids, start, end and padding included."""
        return self.end + 1

    def encode(self, text: str) -> list[int]:
        """A text's ids.

        Raises:
            ConfigError: a character of an unknown word that is no known one.
        """
        ids = [self.start]
        for word in re.findall(r"[^\W_]+|[^\w\s]|_", text.lower()):
            for part in [word] if word in self.ids else word:
                if part not in self.ids:
                    raise ConfigError(f'text "{text}": this text tower has no token for "{part}"')
                ids.append(self.ids[part])
        return [*ids, self.end]
