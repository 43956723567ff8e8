"""Lanes: class tokens that run beside the frozen patch stream and read it through summaries.

A lane's selectors attend to the patches; what they gather are summaries, to which the lane's class token
attends beside its own key and learned prompts. :func:`lane_block` computes that without ever forming a
summary: the rows of a selector's attention add up to one, so keys and values of summaries are averages of
those of the frozen stream.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clprompt.backbones.attention import (
    BlockPrompt,
    FrozenBlock,
    finish_attention,
    project,
    project_stream,
    prompted_block,
    residual_mlp,
    split_heads,
)

#: Rows (lanes x images) of a group up to which a lane costs clearly less in a group of twice as many.
_FEW_ROWS = 80


def lane_groups(lanes: Iterable[int], count: int, size: int, batch: int) -> list[list[int]]:
    """The groups in which lanes are evaluated; one that is not full repeats the last lane.

    Where groups begin depends neither on how many lanes there are nor on which are asked for: all matrix
    products have the same shape whenever a lane is computed, and it the same bits. It does depend on the
    batch, as the shape of the products does anyway.

    Where ``size * batch`` is at most 80, groups hold ``2 * size`` lanes from the third on. The first two stay
    small, since whoever has few lanes pays for a whole group.

    Args:
        lanes: those asked for.
        count: all there are.
        size: lanes in a group.
        batch: images at once.
    """
    wanted = set(lanes)
    groups, start = [], 0
    while start < count:
        step = 2 * size if start >= 2 * size and size * batch <= _FEW_ROWS else size
        if wanted & set(range(start, start + step)):
            groups.append([min(lane, count - 1) for lane in range(start, start + step)])
        start += step
    return groups


def prompts_at(prompts: Tensor, block: int) -> Tensor | None:
    """Of prompts for the leading blocks [T, E, 2, P, D] those of one block, [T, 2, P, D]; None for none."""
    return prompts[:, block] if block < prompts.shape[1] and prompts.shape[3] else None


def selector_attention(selectors: Tensor, normed: Tensor) -> Tensor:
    """The selectors' attention over all tokens: [T, S, D] (scaled), [B, N, D] -> [B, T, S, N].

    One matrix product per image; fused attention refuses heads as wide as the model.
    """
    scores = selectors.flatten(0, 1) @ normed.mT  # (B, T * S, N)
    return scores.softmax(-1).unflatten(1, selectors.shape[:2])


def lane_block(
    block: FrozenBlock,
    cls: Tensor,
    selected: Tensor,
    normed: Tensor,
    keys: Tensor,
    values: Tensor,
    prompts: Tensor | None,
) -> Tensor:
    """One block of lanes, summaries never formed.

    Args:
        block: the frozen block.
        cls: the lanes' class tokens, [B, T, D].
        selected: the selectors' attention, [B, T, S, N].
        normed: the frozen stream's normalised tokens, [B, N, D].
        keys: of the frozen stream, [B, H, N, d].
        values: of the frozen stream, [B, H, N, d].
        prompts: raw keys and values, [T, 2, P, D]; None for none.

    Returns:
        The class tokens after the block, [B, T, D].

    Source: De Min et al. 2024, section 3; the order of the products is ours.
    """
    attn = block.attn
    normed_cls = block.norm1(cls)
    query, cls_key, cls_value = project_stream(attn, normed_cls)  # (B, H, T, d) each
    columns = [(query * cls_key).sum(-1, keepdim=True)]  # (B, H, T, 1)
    averages = isinstance(attn.k_norm, nn.Identity)  # keys of summaries are averages only if they are linear
    if averages:
        scores = (query @ keys.mT).transpose(1, 2)  # (B, T, H, N)
        columns.append((scores @ selected.mT).transpose(1, 2))  # (B, H, T, S)
    else:
        summary = (selected @ normed[:, None]).flatten(0, 1)  # (B * T, S, D)
        sum_key, sum_value = (part.unflatten(0, cls.shape[:2]) for part in project(attn, summary, "kv"))
        columns.append((query.transpose(1, 2)[:, :, :, None] @ sum_key.mT)[:, :, :, 0].transpose(1, 2))
    if prompts is not None:
        learned_key, learned_value = (split_heads(part, attn) for part in prompts.unbind(1))  # (T, H, P, d)
        columns.append(torch.einsum("bhtd,thpd->bhtp", query, learned_key.to(query.dtype)))
    weights = (torch.cat(columns, dim=-1) * query.shape[-1] ** -0.5).softmax(-1)  # (B, H, T, 1 + S + P)
    count = selected.shape[2]
    summary_weights = weights[..., 1 : 1 + count].transpose(1, 2)  # (B, T, H, S)
    if averages:
        heads = (summary_weights @ selected).transpose(1, 2) @ values  # (B, H, T, d)
    else:
        heads = (summary_weights[:, :, :, None] @ sum_value)[:, :, :, 0].transpose(1, 2)
    heads = heads + weights[..., :1] * cls_value
    if prompts is not None:
        heads = heads + torch.einsum(
            "bhtp,thpd->bhtd", weights[..., 1 + count :], learned_value.to(weights.dtype)
        )
    return residual_mlp(block, cls, finish_attention(attn, normed_cls, heads))


def merged_block(block: FrozenBlock, cls: Tensor, merged: Tensor, prompts: Tensor | None) -> Tensor:
    """One block of lanes over merged tokens [B, M, D], of which row 0 asks: cls [B, T, D] -> [B, T, D]."""
    attn = block.attn
    count = cls.shape[1]
    query = project(attn, merged[:, :1], "q")  # (B, H, 1, d), the same for all lanes
    keys, values = project(attn, merged, "kv")
    scores = (query @ keys.mT).expand(-1, -1, count, -1)  # (B, H, T, M)
    if prompts is None:
        heads = (scores * query.shape[-1] ** -0.5).softmax(-1) @ values
    else:
        learned_key, learned_value = (split_heads(part, attn) for part in prompts.unbind(1))  # (T, H, P, d)
        ask = query.expand(-1, -1, count, -1)
        columns = [scores, torch.einsum("bhtd,thpd->bhtp", ask, learned_key.to(query.dtype))]
        weights = (torch.cat(columns, dim=-1) * query.shape[-1] ** -0.5).softmax(-1)
        parts = weights.split([merged.shape[1], learned_key.shape[2]], dim=-1)
        heads = parts[0] @ values + torch.einsum("bhtp,thpd->bhtd", parts[1], learned_value.to(weights.dtype))
    return residual_mlp(block, cls, finish_attention(attn, merged[:, :1].expand(-1, count, -1), heads))


@torch.no_grad()
def merge_tokens(tokens: Tensor, most: int) -> Tensor:
    """Merge tokens pairwise, half of them a round, until there are at most ``most``: [B, N, D] -> [B, M, D].

    Rows in even places look for the most similar row in odd places; those with the best match are averaged
    into it. Row 0 is never merged and stays first.

    Source: Bolya et al. 2023 (token merging), section 3; counts start at one in every round.
    """
    while tokens.shape[1] > most and tokens.shape[1] > 2:
        count, width = tokens.shape[1:]
        half = min(count // 2, (count - 1) // 2)
        source, target = tokens[:, ::2], tokens[:, 1::2]
        scores = _cosines(source, target)  # (B, even, odd)
        scores[:, 0] = float("-inf")
        best, match = scores.max(dim=-1)
        order = best.argsort(dim=-1, descending=True)
        kept = order[:, half:].sort(dim=-1).values[..., None].expand(-1, -1, width)
        moved = order[:, :half]
        into = match.gather(1, moved)
        total = target.scatter_add(
            1, into[..., None].expand(-1, -1, width), source.gather(1, moved[..., None].expand(-1, -1, width))
        )
        sizes = torch.ones_like(total[..., 0]).scatter_add(
            1, into, torch.ones_like(best[:, :half]).to(total.dtype)
        )
        tokens = torch.cat([source.gather(1, kept), total / sizes[..., None]], dim=1)
    return tokens


def _cosines(first: Tensor, second: Tensor) -> Tensor:
    """[B, n, D], [B, m, D] -> cosine similarities [B, n, m]."""
    return F.normalize(first, dim=-1) @ F.normalize(second, dim=-1).mT


def summary_blocks(
    blocks: Sequence[FrozenBlock], cls: Tensor, selectors: Tensor, summary: Tensor, prompts: Tensor
) -> Tensor:
    """All blocks of lanes that summarise once and keep it: an ordinary prompted sequence of 1 + S tokens.

    Args:
        blocks: all blocks of the backbone.
        cls: the class tokens that enter block 0, [B, T, D].
        selectors: as they are learned, the residual of the summaries in block 0, [T, S, D].
        summary: what they gathered from block 0's normalised tokens, [B, T, S, D].
        prompts: raw keys and values for the leading blocks, [T, E, 2, P, D].

    Returns:
        The class tokens after the last block, [B, T, D].
    """
    batch, count = cls.shape[:2]
    block = blocks[0]
    stream = torch.cat([cls[:, :, None], selectors.expand(batch, -1, -1, -1)], dim=2).flatten(0, 1)
    normed = torch.cat([block.norm1(cls)[:, :, None], summary], dim=2).flatten(0, 1)  # (B * T, 1 + S, D)
    query, keys, values = project_stream(block.attn, normed)
    raw = prompts_at(prompts, 0)
    if raw is not None:
        learned = [split_heads(part.repeat(batch, 1, 1), block.attn).to(keys.dtype) for part in raw.unbind(1)]
        keys, values = torch.cat([keys, learned[0]], dim=2), torch.cat([values, learned[1]], dim=2)
    heads = F.scaled_dot_product_attention(query, keys, values)
    stream = residual_mlp(block, stream, finish_attention(block.attn, normed, heads))
    for index, block in enumerate(blocks[1:], start=1):
        raw = prompts_at(prompts, index)
        block_prompts = []
        if raw is not None:
            keys, values = (part.repeat(batch, 1, 1) for part in raw.unbind(1))
            block_prompts.append(BlockPrompt("prefix", keys, values))
        stream = prompted_block(
            block, stream, block_prompts, slice(0, 1) if index == len(blocks) - 1 else None
        )
    return stream[:, 0].unflatten(0, (batch, count))
