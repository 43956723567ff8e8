"""PRE's encoder: contexts that are learned through a small network."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clprompt.seeding import generator


class ContextEncoder(nn.Module):
    """v' = v + W2 ReLU(W1 v + b1) + b2, for each learned row v of a context.

    In the released code the networks of single rows, its default, are in no module: they are neither trained
    nor saved. Here they are both.

    Args:
        width: of a row, W.
        hidden: width between the two layers, h.
        networks: 1 for one that all rows share, or one for each row.
        seed: where the initial values come from.

    Source: Tran et al. 2023 (PRE), arXiv 2309.07760.
    """

    def __init__(self, width: int, hidden: int, networks: int, *, seed: int) -> None:
        super().__init__()
        self.w1 = _uniform(networks, hidden, width, bound=width**-0.5, seed=seed, name="w1")
        self.b1 = _uniform(networks, hidden, bound=width**-0.5, seed=seed, name="b1")
        self.w2 = _uniform(networks, width, hidden, bound=hidden**-0.5, seed=seed, name="w2")
        self.b2 = _uniform(networks, width, bound=hidden**-0.5, seed=seed, name="b2")

    def forward(self, context: Tensor) -> Tensor:
        """[..., n, W] -> the same shape."""
        n = slice(context.shape[-2])
        hidden = F.relu((self.w1[n] @ context[..., None]).squeeze(-1) + self.b1[n])  # (..., n, h)
        return context + (self.w2[n] @ hidden[..., None]).squeeze(-1) + self.b2[n]


def _uniform(*shape: int, bound: float, seed: int, name: str) -> nn.Parameter:
    """As a linear layer of torch starts."""
    values = torch.rand(*shape, generator=generator(seed, "encoder", name))
    return nn.Parameter((2 * values - 1) * bound)
