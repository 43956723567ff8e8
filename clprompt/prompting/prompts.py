"""Prompt pools: initial values, keys, and the matching of queries with keys."""

from __future__ import annotations

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
