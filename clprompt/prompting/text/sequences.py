"""Texts with learned rows: where the rows stand, and how a text tower reads them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from clprompt.backbones.text import FrozenText
from clprompt.errors import ConfigError
from clprompt.targets import as_index


class Frame(NamedTuple):
    """Where learned rows stand: start token, ``before`` of them, words, name, the others, tail, end token.

    Attributes:
        before: learned rows in front of the name.
        words: ids of frozen words between those and the name.
        tail: what ends the text.
    """

    before: int
    words: tuple[int, ...] = ()
    tail: str = "."


class Names(NamedTuple):
    """Names of classes as token ids, with what ends the text.

    Attributes:
        ids: of name, tail and end token, padded behind it, int64 [C, S].
        stops: tokens of each name (and of its keywords), int64 [C].
        ends: column of each end token, int64 [C].
        needed: columns up to the last end token.
    """

    ids: Tensor
    stops: Tensor
    ends: Tensor
    needed: int


def word_ids(text: FrozenText, words: str) -> Tensor:
    """Ids of words alone, without start and end token, int64 [n]."""
    tokens = text.tokens([words])
    return tokens.ids[0, text.start_rows : tokens.longest - 1]


def initial_ids(text: FrozenText, init: str | None, length: int | None) -> tuple[int, ...]:
    """The ids of the words that learned rows start from; none without words.

    Raises:
        ConfigError: no words, or more rows than there are tokens.
    """
    if init is None:
        return ()
    ids = word_ids(text, init).tolist()
    if not ids:
        raise ConfigError(f'init must be words, got "{init}"')
    if length is not None and length > len(ids):
        raise ConfigError(f'length must be at most {len(ids)}, the tokens of init="{init}"; got {length}')
    return tuple(ids)


@torch.no_grad()
def initial_rows(text: FrozenText, ids: Tensor) -> Tensor:
    """Token embeddings for rows to start from, in 32 bits at least and on the CPU: [n] -> [n, W]."""
    rows = text.embed(ids.to(text.positional_embedding.device)).cpu()
    return rows.to(torch.promote_types(rows.dtype, torch.float32)).clone()


def name_ids(text: FrozenText, names: Sequence[str], tail: str) -> Names:
    """Tokenise names and what ends their texts: all that is not learned and differs between classes."""
    tokens = text.tokens([f"{name}{tail}" for name in names])
    stops = text.tokens(names).ends - text.start_rows
    ids = tokens.ids[:, text.start_rows :]
    ends = tokens.ends - text.start_rows
    return Names(ids, torch.minimum(stops, ends), ends, max(tokens.longest - text.start_rows, 0))


def prefix(text: FrozenText, frame: Frame, context: Tensor, head: Tensor | None = None) -> Tensor:
    """What stands before the name: [1, P, W], or [C, P, W] where each class has a context of its own.

    Args:
        text: the tower.
        frame: where the learned rows stand.
        context: learned rows, [n, W] or [C, n, W].
        head: rows between start token and context, [A, W]; None for none.
    """
    context = context if context.ndim == 3 else context[None]
    start = text.embed(text.tokens([""]).ids[:, : text.start_rows])  # (1, 0 or 1, W)
    parts = [start] if head is None else [start, head[None]]
    words = text.embed(as_index(frame.words, start.device))[None]
    count = len(context)
    rows = [*parts, context[:, : frame.before], words]
    return torch.cat([part.to(context.dtype).expand(count, -1, -1) for part in rows], dim=1)


def own(text: FrozenText, names: Names, after: Tensor) -> tuple[Tensor, Tensor]:
    """What each class has behind the prefix: its name, learned rows, tail and end token.

    Args:
        text: the tower.
        names: of the classes.
        after: learned rows behind the name, [k, W] or [C, k, W]; k may be 0.

    Returns:
        [C, S + k, W], and the column of each end token, [C].
    """
    words = text.embed(names.ids)
    count = after.shape[-2]
    if not count:
        return words, names.ends
    rows = torch.cat([after.expand(len(words), -1, -1), words.to(after.dtype)], dim=1)  # (C, k + S, W)
    column = torch.arange(rows.shape[1], device=rows.device)
    stop = names.stops[:, None]
    index = torch.where(
        column < stop, column + count, torch.where(column < stop + count, column - stop, column)
    )
    return rows.gather(1, index[..., None].expand_as(rows)), names.ends + count


def features(
    text: FrozenText,
    frame: Frame,
    names: Names,
    context: Tensor,
    head: Tensor | None = None,
    deep: Mapping[int, Tensor] | None = None,
) -> Tensor:
    """Text features of names in a context, not normalised, with gradient, [C, E].

    Args:
        text: the tower.
        frame: where the learned rows stand.
        names: of the classes.
        context: see :func:`prefix`.
        head: see :func:`prefix`.
        deep: {block: [n, W]}, what replaces the first n rows behind the start token before that block.
    """
    in_front = prefix(text, frame, context, head)
    after = context[..., frame.before :, :]
    behind, ends = own(text, names, after)
    return text.prompted(in_front, behind, ends, deep, names.needed + after.shape[-2])


def check_fit(text: FrozenText, names: Sequence[str], tokens: Names, rows: int) -> None:
    """Refuse a name that does not fit behind and between ``rows`` rows of start token, words and contexts.

    Raises:
        ConfigError: naming it, with the length of its text.
    """
    for name, end in zip(names, tokens.ends.tolist(), strict=True):
        if rows + end + 1 > text.length:
            raise ConfigError(
                f'the text of class name "{name}" is {rows + end + 1} tokens long with its context, '
                f"start and end included; this text tower takes at most {text.length}"
            )
