"""The one prompted attention: a frozen timm block that also sees learned keys and values.

A method says what a block gets with :class:`BlockPrompt`; :func:`prompted_block` runs the block. Every way in
which published methods put prompts into a vision transformer is one of four kinds:

==========  ==================================================================================================
kind        how the prompt enters the block's attention
==========  ==================================================================================================
prefix      ``tokens`` and ``values`` are raw keys and values: no norm, no projection
            (DualPrompt, CODA-Prompt)
projected   ``tokens`` and ``values`` pass the frozen key and value projections, bias included, but no
            norm (MVP's prefix form)
fresh       ``tokens`` stand beside the image tokens in this block only: norm, projections; their outputs
            never exist (VPT-deep, TCPA, MVP's prompt form)
carried     ``tokens`` join the sequence here and stay in it (L2P)
==========  ==================================================================================================

Prompt columns always come after the stream's own columns; a softmax does not care about the order. Prompts
have no place in the image: where positions are rotary they are not rotated, whatever their
kind.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import singledispatch
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal, Protocol, overload

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:  # timm takes seconds to import, and only a built backbone needs it
    from clprompt.backbones.rotary import Rotary


class FrozenAttention(Protocol):
    """What :func:`project` and :func:`finish_attention` ask of an attention; timm's ``Attention`` has it.

    One that keeps its query, key and value layers otherwise registers its :func:`projections`.

    Attributes:
        num_heads: H.
        qkv: one linear layer, [..., D] -> [..., 3 * H * d].
        q_norm: of queries, per head.
        k_norm: of keys, per head.
        proj: the output projection, [..., H * d] -> [..., D].
    """

    num_heads: int
    qkv: Any
    q_norm: Any
    k_norm: Any
    proj: Any


class FrozenBlock(Protocol):
    """What prompts ask of a frozen pre-norm block; timm's ``Block`` has it.

    Three things: to project what enters its attention, to finish attention, and its MLP (:func:`project`,
    :func:`finish_attention`, :func:`residual_mlp`). A tower of other blocks needs these three; where it names
    its layers otherwise, it registers its own form of :func:`projections` and :func:`residual_mlp`.

    Attributes:
        norm1: before attention.
        attn: a :class:`FrozenAttention` (timm declares it as a plain module, hence no narrower type).
        ls1: layer scale of attention.
        norm2: before the MLP.
        mlp: token by token.
        ls2: layer scale of the MLP.
    """

    norm1: Any
    attn: Any
    ls1: Any
    norm2: Any
    mlp: Any
    ls2: Any


@dataclass(frozen=True, eq=False)
class BlockPrompt:
    """What one block gets beside its own tokens. Several may be given to the same block.

    Args:
        kind: "prefix", keys and values as they are; "projected", keys and values through the frozen
            projections; "fresh", tokens beside those of the image in this block alone; "carried", tokens that
            join the sequence here and stay. The table at the top of :mod:`clprompt.backbones.attention` says
            which method takes which.
        tokens: keys (prefix, projected) or tokens (fresh, carried), [1 or B, P, D]; None for no columns. D is
            the width of the residual stream (for ``prefix`` that of the attention: nearly always the same).
        values: [1 or B, P, D], for ``prefix`` and ``projected`` only.
        mask: boolean, [1 or B, 1, R, P], True where a row may look at a prompt column; R = the rows named by
            ``rows``. The stream's own columns are always visible. None: all visible. For ``carried`` the rows
            are those of the whole stream and the columns its last P, all carried tokens together, so that a
            block after the one where they joined may mask them again (with ``tokens=None``).
        rows: the rows of the stream that see these columns; None for all. Rows outside do not pay for them.
        zero_values: replace the values by zeros: the columns take attention mass and give nothing (the fused
            form of a mask that is applied after the softmax: the same prompt once with its mask, once with
            the complement and zero values).
        weight: scalar with gradient; what rows get from these columns, behind the softmax, is multiplied with
            it. None for 1; not for ``carried``.
        name: which set of the method's prompts these are, see ``PromptModel.prompt_sets``.
        slots: the slots of that set that the columns come from, in order, [1 or B, s]; None without a choice.
    """

    kind: Literal["prefix", "projected", "fresh", "carried"]
    tokens: Tensor | None
    values: Tensor | None = None
    mask: Tensor | None = None
    rows: slice | None = None
    zero_values: bool = False
    weight: Tensor | None = None
    name: str = "prompts"
    slots: Tensor | None = None

    def __post_init__(self) -> None:
        if self.kind not in ("prefix", "projected", "fresh", "carried"):
            raise ValueError(
                f'BlockPrompt kind must be prefix, projected, fresh or carried, got "{self.kind}"'
            )
        if (self.values is not None) != (self.kind in ("prefix", "projected")):
            raise ValueError(f"BlockPrompt values belong to prefix and projected prompts, not to {self.kind}")
        if self.kind == "carried" and (self.rows is not None or self.zero_values or self.weight is not None):
            raise ValueError(
                "carried prompts are part of the stream: use a mask, not rows, zero_values or weight"
            )
        if self.tokens is not None and self.tokens.ndim != 3:
            raise ValueError(f"BlockPrompt tokens must be [1 or B, P, D], got {list(self.tokens.shape)}")
        if self.mask is not None and (self.mask.dtype != torch.bool or self.mask.ndim != 4):
            # a float mask would be added to the scores, ones and all
            raise ValueError(
                "BlockPrompt mask must be boolean [1 or B, 1, R, P], "
                f"got {self.mask.dtype} {list(self.mask.shape)}"
            )


def split_heads(x: Tensor, attn: FrozenAttention) -> Tensor:
    """[b, P, H*d] -> [b, H, P, d]; heads are contiguous chunks of the last axis."""
    return x.reshape(x.shape[0], x.shape[1], attn.num_heads, -1).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """[b, H, N, d] -> [b, N, H*d]."""
    return x.transpose(1, 2).flatten(2)


@singledispatch
def projections(attn: Any, x: Tensor, first: int, last: int) -> Sequence[Tensor]:
    """Of (queries, keys, values) those numbered first..last-1, bias included, heads side by side.

    Args:
        attn: the block's frozen attention.
        x: what enters the projection, [b, P, D].
        first: 0 for queries, 1 for keys, 2 for values.
        last: one behind the last of them.

    Returns:
        [b, P, H * d] each.
    """
    width = attn.qkv.out_features // 3
    if (first, last) == (0, 3):
        return attn.qkv(x).split(width, dim=-1)
    weight = attn.qkv.weight[first * width : last * width]
    bias = None if attn.qkv.bias is None else attn.qkv.bias[first * width : last * width]
    return F.linear(x, weight, bias).split(width, dim=-1)


@overload
def project(attn: FrozenAttention, x: Tensor, which: Literal["q", "k", "v"]) -> Tensor: ...
@overload
def project(attn: FrozenAttention, x: Tensor, which: Literal["kv"]) -> tuple[Tensor, Tensor]: ...
def project(
    attn: FrozenAttention, x: Tensor, which: Literal["q", "k", "v", "kv"]
) -> Tensor | tuple[Tensor, Tensor]:
    """The block's own query, key or value projection with bias and q/k norm, split into heads; no positions.

    Args:
        attn: the block's frozen attention.
        x: what enters the projection (normalised tokens, or a method's own), [b, P, D].
        which: one of "q", "k", "v"; "kv" for both from one matrix product.

    Returns:
        [b, H, P, d], or a pair of them for "kv".
    """
    if which == "kv":
        key_part, value_part = projections(attn, x, 1, 3)
        return attn.k_norm(split_heads(key_part, attn)), split_heads(value_part, attn)
    number = "qkv".index(which)
    (part,) = projections(attn, x, number, number + 1)
    heads = split_heads(part, attn)
    if which == "q":
        return attn.q_norm(heads)
    return attn.k_norm(heads) if which == "k" else heads


def project_stream(attn: FrozenAttention, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values of all rows, without positions: [B, N, D] -> three of [B, H, N, d]."""
    query, keys, values = (split_heads(part, attn) for part in projections(attn, h, 0, 3))
    return attn.q_norm(query), attn.k_norm(keys), values


def finish_attention(attn: FrozenAttention, x: Tensor, heads: Tensor) -> Tensor:
    """What follows the weighted sum: merge, optional norm and gate, output projection.

    Args:
        x: the normalised tokens of the same rows, [b, R, D] (only a gated attention reads them).
        heads: [b, H, R, d].

    Returns:
        [b, R, D].
    """
    norm, gate = getattr(attn, "norm", None), getattr(attn, "gate", None)  # older timm has neither
    out = merge_heads(heads) if norm is None else norm(merge_heads(heads))
    if gate is not None:
        out = out * gate(x).sigmoid()
    return attn.proj(out)


@singledispatch
def residual_mlp(block: Any, x: Tensor, attended: Tensor) -> Tensor:
    """The rest of a pre-norm block: ``x + ls1(attended)``, then the MLP with its residual. [b, R, D] each."""
    x = x + block.ls1(attended)
    return x + block.ls2(block.mlp(block.norm2(x)))


def prompted_block(
    block: FrozenBlock,
    x: Tensor,
    prompts: Sequence[BlockPrompt] = (),
    rows: slice | None = None,
    rotary: Rotary | None = None,
) -> Tensor:
    """One frozen block with prompts, over fused scaled-dot-product attention.

    Args:
        block: a plain timm block; its weights are used and not changed.
        x: the stream that enters the block, [B, N, D].
        prompts: what this block gets; may be empty.
        rows: the rows of the stream (carried prompts that join here included) that the caller will read; only
            these get queries, projection and MLP. None for all.
        rotary: rotary positions of the patches in the stream; None where positions are in the stream alone.

    Returns:
        [B, R, D] for the R rows asked for.

    Source: for prefixes Wang et al. 2022 (DualPrompt), eq. 4; for fresh tokens Jia et al. 2022 (VPT), eq. 4.
    """
    x = _joined(x, prompts)
    start, stop, _ = (rows or slice(None)).indices(x.shape[1])
    h = block.norm1(x)
    attn: FrozenAttention = block.attn
    query, keys, values = _projected(attn, h, start, stop, rotary)
    if sum(p.kind == "carried" and p.mask is not None for p in prompts) > 1:
        raise ValueError(
            "give one mask over all carried tokens: each would be read as that of the last columns"
        )
    columns_or_none = [_columns(block, prompt, keys.dtype, x.shape[1]) for prompt in prompts]
    columns = [c for c in columns_or_none if c is not None]
    # rows with the same view of the prompts share one fused call; usually that is all of them
    cuts = sorted({start, stop} | {cut for c in columns for cut in (c.start, c.stop) if start < cut < stop})
    spans = list(pairwise(cuts))
    if len(spans) == 1:
        heads = _attend(query, keys, values, columns, start, stop)
    else:  # split, as a slice's backward pass would fill a whole gradient with zeros for each part
        pieces = query.split([b - a for a, b in spans], dim=2)
        parts = [
            _attend(piece, keys, values, columns, a, b) for piece, (a, b) in zip(pieces, spans, strict=True)
        ]
        heads = torch.cat(parts, dim=2)
    return residual_mlp(block, x[:, start:stop], finish_attention(attn, h[:, start:stop], heads))


@dataclass(frozen=True, eq=False)
class SpelledOut:
    """Attention of some rows of a prompted block, with its weights: to look at, or to change head by head.

    Attributes:
        block: whose.
        x: the rows that enter the block, [B, R, D].
        normed: behind its first norm, [B, R, D].
        weights: what each row takes from each column, [B, H, R, M]; they add up to 1.
        visible: boolean [1 or B, 1, R, M]: the columns that a row sees at all.
        values: of the columns, [B, H, M, d].
    """

    block: FrozenBlock
    x: Tensor
    normed: Tensor
    weights: Tensor
    visible: Tensor
    values: Tensor

    def finish(self, weights: Tensor) -> Tensor:
        """The rest of the block with weights of the caller's, [B, H, R, M] -> [B, R, D]."""
        attended = finish_attention(self.block.attn, self.normed, weights @ self.values)
        return residual_mlp(self.block, self.x, attended)


def spelled_out(
    block: FrozenBlock,
    x: Tensor,
    prompts: Sequence[BlockPrompt] = (),
    rows: slice | None = None,
    rotary: Rotary | None = None,
) -> SpelledOut:
    """What :func:`prompted_block` does to some rows, with the weights that a fused attention never shows.

    Args:
        block: a plain timm block.
        x: the stream that enters the block, [B, N, D].
        prompts: what this block gets; all ``rows`` have the same view of each.
        rows: of the stream, carried prompts that join here included; None for all.
        rotary: as for :func:`prompted_block`.
    """
    x = _joined(x, prompts)
    start, stop, _ = (rows or slice(None)).indices(x.shape[1])
    h = block.norm1(x)
    query, keys, values = _projected(block.attn, h, start, stop, rotary)
    columns_or_none = [_columns(block, prompt, keys.dtype, x.shape[1]) for prompt in prompts]
    columns = [c for c in columns_or_none if c is not None]
    keys, values, mask = _seen(query, keys, values, columns, start, stop)
    scores = query @ keys.mT * query.shape[-1] ** -0.5
    visible = torch.ones_like(scores[:1, :1], dtype=torch.bool) if mask is None else mask == 0
    weights = scores.masked_fill(~visible, float("-inf")).softmax(dim=-1)
    return SpelledOut(block, x[:, start:stop], h[:, start:stop], weights, visible, values)


def _joined(x: Tensor, prompts: Sequence[BlockPrompt]) -> Tensor:
    """The stream [B, N, D] and behind it the carried prompts that join here."""
    joining = [p.tokens for p in prompts if p.kind == "carried" and p.tokens is not None]
    if not joining:
        return x
    return torch.cat([x, *(tokens.to(x.dtype).expand(x.shape[0], -1, -1) for tokens in joining)], dim=1)


def _projected(
    attn: FrozenAttention, h: Tensor, start: int, stop: int, rotary: Rotary | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries of rows start..stop-1, keys and values of all, in their positions: three of [B, H, R, d]."""
    query: Tensor
    if (start, stop) == (0, h.shape[1]):
        query, keys, values = project_stream(attn, h)
    else:
        query = project(attn, h[:, start:stop], "q")
        keys, values = project(attn, h, "kv")
    return (query, keys, values) if rotary is None else (rotary(query, start), rotary(keys), values)


@dataclass(frozen=True, eq=False)
class _Columns:
    """A prompt as attention columns: keys, values [1|B, H, P, d]; None for a mask over the stream's alone."""

    keys: Any
    values: Any
    mask: Tensor | None  # bool [1|B, 1, stop - start, P]
    start: int
    stop: int


def _columns(block: FrozenBlock, prompt: BlockPrompt, dtype: torch.dtype, length: int) -> _Columns | None:
    start, stop, _ = (prompt.rows or slice(None)).indices(length)
    if prompt.mask is not None and prompt.mask.shape[2] != stop - start:
        raise ValueError(
            f"BlockPrompt mask has {prompt.mask.shape[2]} rows for {stop - start} rows of the stream"
        )
    if prompt.kind == "carried":
        return None if prompt.mask is None else _Columns(None, None, prompt.mask, start, stop)
    if prompt.tokens is None or prompt.tokens.shape[1] == 0:
        return None
    attn: FrozenAttention = block.attn
    keys: Tensor
    values: Tensor
    if prompt.kind == "prefix":
        assert prompt.values is not None
        keys, values = split_heads(prompt.tokens, attn), split_heads(prompt.values, attn)
    elif prompt.kind == "projected":
        assert prompt.values is not None
        keys, values = project(attn, prompt.tokens, "k"), project(attn, prompt.values, "v")
    elif prompt.zero_values:
        keys = values = project(attn, block.norm1(prompt.tokens), "k")
    else:
        keys, values = project(attn, block.norm1(prompt.tokens), "kv")
    if prompt.zero_values:
        values = torch.zeros_like(keys)
    if prompt.weight is not None:
        values = values * prompt.weight
    return _Columns(keys.to(dtype), values.to(dtype), prompt.mask, start, stop)


def _attend(query: Tensor, keys: Tensor, values: Tensor, columns: list[_Columns], a: int, b: int) -> Tensor:
    """Fused attention of rows a..b-1 over the stream's columns and the prompt columns that they see."""
    keys, values, mask = _seen(query, keys, values, columns, a, b)
    return F.scaled_dot_product_attention(query, keys, values, attn_mask=mask)


def _seen(
    query: Tensor, keys: Tensor, values: Tensor, columns: list[_Columns], a: int, b: int
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Keys and values of all columns that rows a..b-1 see some of, and what is added to scores, or None.

    The mask [1|B, 1, b - a, M] is 0 where a row sees a column and -inf where not: what fused attention would
    make of a boolean mask at every call, column by column. The stream's own columns are not written.
    """
    visible = [c for c in columns if c.start <= a and b <= c.stop]
    added = [c for c in visible if c.keys is not None]
    masks = [c.mask for c in visible if c.mask is not None]
    batch, _, length, _ = keys.shape
    mask = None
    if masks:
        total = length + sum(c.keys.shape[2] for c in added)
        mask = query.new_zeros(max(m.shape[0] for m in masks), 1, b - a, total)
        end = length
        for c in visible:
            if c.keys is not None:
                end += c.keys.shape[2]
            if c.mask is not None:  # carried: its columns are the last ones of the stream
                stop = length if c.keys is None else end
                hidden = ~c.mask[:, :, a - c.start : b - c.start]
                mask[..., stop - hidden.shape[-1] : stop].masked_fill_(hidden, float("-inf"))
    if added:
        keys = torch.cat([keys, *(c.keys.expand(batch, -1, -1, -1) for c in added)], dim=2)
        values = torch.cat([values, *(c.values.expand(batch, -1, -1, -1) for c in added)], dim=2)
    return keys, values, mask
