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
    """Cosine similarity of every query with every key: [B, D], [S, D] -> [B, S]; 0 for a zero vector, never NaN.

    In float32 at least, so that 16-bit rounding does not change selections.
    """
    dtype = torch.promote_types(query.dtype, torch.float32)
    with torch.autocast(query.device.type, enabled=False):
        return F.normalize(query.to(dtype), dim=-1) @ F.normalize(keys.to(dtype), dim=-1).T


def match(similarity: Tensor, top_k: int) -> Tensor:
    """Per sample, the ``top_k`` most similar slots: [B, S] -> [B, top_k], falling similarity, ties to the lower index.

    Always per sample: a vote over the batch would make a prediction depend on its batch companions.
    """
    return similarity.sort(dim=1, descending=True, stable=True).indices[:, :top_k]


def chosen_similarity(similarity: Tensor, chosen: Tensor) -> Tensor:
    """The pull term R: similarity of query and chosen keys, summed over k and averaged over the batch, a scalar.

    Source: Wang et al. 2022 (L2P), the second term of eq. 5.
    """
    return similarity.gather(1, chosen).sum(1).mean()
