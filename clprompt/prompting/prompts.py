"""Prompt pools: initial values, keys, and the matching of queries with keys."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clprompt.seeding import generator


def uniform(*shape: int, seed: int, name: str, index: int = 0, bound: float = 1.0) -> nn.Parameter:
    """A parameter drawn from U(-bound, bound) as a function of (seed, name, index) alone."""
    values = torch.rand(*shape, generator=generator(seed, name, index))
    return nn.Parameter((2 * values - 1) * bound)


def cosine(query: Tensor, keys: Tensor) -> Tensor:
    """Cosine similarity of queries with keys: [B, D], [S, D] -> [B, S]; 0 for a zero vector, never NaN.

    In float32 at least, so that 16-bit rounding does not change selections.
    """
    dtype = torch.promote_types(query.dtype, torch.float32)
    with torch.autocast(query.device.type, enabled=False):
        return F.normalize(query.to(dtype), dim=-1) @ F.normalize(keys.to(dtype), dim=-1).T


def match(similarity: Tensor, top_k: int) -> Tensor:
    """Per sample, the ``top_k`` most similar slots: [B, S] -> [B, top_k], by falling similarity.

    Ties go to the lower index. Always per sample: a vote over the batch would make a prediction depend on its
    batch companions.
    """
    return similarity.sort(dim=1, descending=True, stable=True).indices[:, :top_k]


def chosen_similarity(similarity: Tensor, chosen: Tensor) -> Tensor:
    """The pull term R: similarity of query and chosen keys, summed over k, averaged over the batch; a scalar.

    Source: Wang et al. 2022 (L2P), the second term of eq. 5.
    """
    return similarity.gather(1, chosen).sum(1).mean()


def token_choice(
    query: Tensor, keys: Tensor, top_k: int, *, ranked: Tensor | None = None, loss: bool = True
) -> tuple[Tensor, Tensor | None]:
    """What each token sees: the prompts with the nearest keys.

    Args:
        query: tokens, [B, R, D].
        keys: [S, D], or [B, S, D] where each image has its own.
        top_k: prompts that a token sees.
        ranked: [B, R, S], to choose by in place of the similarity.
        loss: False where nobody reads the matching loss.

    Returns:
        Visible prompts, boolean [B, R, S] with ``top_k`` in each row; the mean of 1 - cosine over the chosen.
    """
    dtype = torch.promote_types(query.dtype, torch.float32)
    with torch.autocast(query.device.type, enabled=False):  # 16-bit rounding would change choices
        query = query.to(dtype)
        # a token's ranking does not hang on its own norm, which the loss alone needs
        scores = query @ F.normalize(keys.to(dtype), dim=-1).mT  # (B, R, S)
        chosen = (scores.detach() if ranked is None else ranked).topk(top_k, dim=-1).indices
        visible = torch.zeros_like(scores, dtype=torch.bool).scatter(-1, chosen, True)
        if not loss:
            return visible, None
        norms = query.norm(dim=-1, keepdim=True).clamp_min(1e-12)
        return visible, 1 - (scores.gather(-1, chosen) / norms).mean()


def normed(keys: Tensor) -> Tensor:
    """Keys [..., D] of norm 1, in float32 at least, as 16-bit rounding would change choices."""
    return F.normalize(keys.to(torch.promote_types(keys.dtype, torch.float32)), dim=-1)


class Chooser(NamedTuple):
    """Tokens of a stream that choose among prompts of their own.

    Attributes:
        rows: the tokens.
        columns: the prompts.
        top_k: prompts that a token sees.
    """

    rows: slice
    columns: slice
    top_k: int


def choose(
    x: Tensor, keys: Tensor, choosers: Sequence[Chooser], *, loss: bool = True
) -> tuple[Tensor, Tensor | None]:
    """What each token of a stream sees: of its own prompts those with the nearest keys.

    All share one product with all keys. :func:`token_choice` is the same for one of them, step by step.

    Args:
        x: the stream, [B, N, D].
        keys: of norm 1, [S, D], or [B, S, D] where each image has its own.
        choosers: no two of them share rows.
        loss: False where nobody reads the matching loss.

    Returns:
        Visible prompts, boolean [B, N, S]; the sum over choosers of the mean of 1 - cosine over the chosen.
    """
    dtype = torch.promote_types(x.dtype, torch.float32)
    with torch.autocast(x.device.type, enabled=False):  # 16-bit rounding would change choices
        x, keys = x.to(dtype), keys.to(dtype)
        with torch.no_grad():
            scores = x @ keys.mT  # (B, N, S)
            visible = torch.zeros_like(scores, dtype=torch.bool)
            weights = torch.zeros_like(scores) if loss else None
            # a token's ranking does not hang on its own norm, which the loss alone needs
            norms = x.norm(dim=-1, keepdim=True).clamp_min(1e-12) if loss else None
            for rows, columns, top_k in choosers:
                chosen = scores[:, rows, columns].topk(top_k, dim=-1).indices
                visible[:, rows, columns].scatter_(-1, chosen, True)
                if weights is not None and norms is not None:
                    share = 1 / (norms[:, rows] * chosen.numel())
                    weights[:, rows, columns].scatter_(-1, chosen, share.expand_as(chosen))
        if weights is None:
            return visible, None
        return visible, len(choosers) - _Pulled.apply(x, keys, weights, scores, norms)


class _Pulled(torch.autograd.Function):
    """Cosines of tokens and keys under weights w / |x|, summed, with one product for each gradient.

    Step by step, autograd would keep and fill a tensor of the size of the stream for the norms, one for the
    scores and one for what was gathered from them.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, keys: Tensor, weights: Tensor, scores: Tensor, norms: Tensor) -> Tensor:
        cosines = (weights * scores).sum(-1, keepdim=True)  # (B, N, 1)
        ctx.save_for_backward(x, keys, weights, cosines / norms.square())
        return cosines.sum()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, keys, weights, radial = ctx.saved_tensors
        weights = weights * grad
        to_x = to_keys = None
        if ctx.needs_input_grad[0]:  # towards the keys, without what would only change the token's norm
            to_x = torch.baddbmm(x * (radial * -grad), weights, keys.expand(len(x), -1, -1))
        if ctx.needs_input_grad[1]:
            own = keys.ndim == 3
            to_keys = weights.mT @ x if own else weights.flatten(0, 1).T @ x.flatten(0, 1)
        return to_x, to_keys, None, None, None
