"""What makes token ids of texts: a tokenizer of whole words; those of published text towers."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, Protocol

from clprompt.errors import BackboneError, ConfigError


class Tokenizer(Protocol):
    """What a text tower asks of its tokenizer.

    Attributes:
        start_tokens: tokens before a text's first word, 1 or 0.
        padding: the id behind the end token.
    """

    @property
    def start_tokens(self) -> int: ...
    @property
    def padding(self) -> int: ...

    def encode(self, text: str) -> list[int]:
        """A text's ids, start and end token included, without padding, of any length."""
        ...

    def word(self, token: int) -> str | None:
        """What an id stands for in a text; None for start, end, padding and ids without a text."""
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
        self.words = list(words)
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

    def word(self, token: int) -> str | None:
        """The word of an id."""
        return self.words[token - 1] if 0 < token <= len(self.words) else None


def open_clip_package() -> Any:
    """The module ``open_clip``, imported when it is first needed.

    Raises:
        BackboneError: it is not installed.
    """
    try:
        import open_clip
    except ImportError as error:
        raise BackboneError(
            "image-text backbones of open_clip need its configurations and tokenizers: "
            f"pip install 'clprompt[clip]' ({error})"
        ) from error
    return open_clip


class BytePairs:
    """CLIP's tokenizer of byte pairs, which open_clip brings.

    Args:
        vocabulary: ids of the text tower.
        settings: open_clip's ``tokenizer_kwargs``.
        owner: the backbone, for messages.
    """

    start_tokens = 1
    padding = 0

    def __init__(self, vocabulary: int, settings: Mapping[str, Any], owner: str) -> None:
        self.vocabulary = vocabulary
        self.settings = dict(settings)
        self.owner = owner

    @cached_property
    def _tokenizer(self) -> Any:
        tokenizer = open_clip_package().SimpleTokenizer(**self.settings)
        if tokenizer.vocab_size > self.vocabulary:
            raise BackboneError(
                f"backbone {self.owner}: its text tower knows {self.vocabulary} tokens and CLIP's tokenizer "
                f"has {tokenizer.vocab_size}"
            )
        return tokenizer

    def encode(self, text: str) -> list[int]:
        """A text's ids."""
        return [
            self._tokenizer.sot_token_id,
            *self._tokenizer.encode(text),
            self._tokenizer.eot_token_id,
        ]

    def word(self, token: int) -> str | None:
        """What an id stands for."""
        ends = (self._tokenizer.sot_token_id, self._tokenizer.eot_token_id)
        known = 0 <= token < self._tokenizer.vocab_size and token not in ends
        return self._tokenizer.decode([token]).strip() or None if known else None


class HuggingFace:
    """A tokenizer of Hugging Face, as open_clip names it for SigLIP and others.

    Args:
        name: of the tokenizer.
        length: tokens of a text at most.
        settings: open_clip's ``tokenizer_kwargs``.
        owner: the backbone, for messages.
    """

    def __init__(self, name: str, length: int, settings: Mapping[str, Any], owner: str) -> None:
        self.name, self.length = name, length
        self.settings = dict(settings)
        self.owner = owner

    @cached_property
    def _tokenizer(self) -> Any:
        try:
            return open_clip_package().tokenizer.HFTokenizer(self.name, self.length, **self.settings)
        except (ImportError, OSError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            raise BackboneError(
                f"backbone {self.owner}: the tokenizer {self.name} of its text tower is not installed; it "
                f"needs pip install transformers sentencepiece, and its files ({reason})"
            ) from error

    @property
    def padding(self) -> int:
        """The id behind the end token."""
        return int(self._tokenizer.tokenizer.pad_token_id)

    @property
    def start_tokens(self) -> int:
        """Tokens before the first word: what an empty text has beside the end token."""
        return len(self.encode("")) - 1

    def encode(self, text: str) -> list[int]:
        """A text's ids, of any length: open_clip would cut them."""
        return list(self._tokenizer.tokenizer(self._tokenizer.clean_fn(text)).input_ids)

    def word(self, token: int) -> str | None:
        """What an id stands for."""
        return self._tokenizer.tokenizer.decode([token], skip_special_tokens=True).strip() or None
