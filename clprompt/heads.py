"""Classifier heads that grow by rows while classes arrive."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clprompt.seeding import generator


def grow_rows(parameter: nn.Parameter | Tensor, rows: Tensor) -> None:
    """Append rows to a parameter or buffer in place, so that optimizers and other holders keep the same object.

    An optimizer's moments for it are padded by :func:`clprompt.optim.sync`.
    """
    parameter.data = torch.cat([parameter.data, rows.to(parameter)], dim=0)
    if isinstance(parameter, nn.Parameter):
        parameter.grad = None


class LinearHead(nn.Module):
    """A linear classifier, one row per class id; rows appear when :meth:`grow` is told of more classes.

    A row's initial value is a function of (seed, class id), whatever the order in which classes arrive.

    Args:
        width: D, the width of the features.
        seed: where the initial rows come from.
        init: "trunc_normal" (std 0.02, zero bias) or "zeros".
    """

    def __init__(
        self, width: int, *, seed: int = 0, init: Literal["trunc_normal", "zeros"] = "trunc_normal"
    ) -> None:
        super().__init__()
        self.seed = seed
        self.init = init
        self.weight = nn.Parameter(torch.zeros(0, width))
        self.bias = nn.Parameter(torch.zeros(0))

    @property
    def num_classes(self) -> int:
        """C, the number of rows."""
        return self.weight.shape[0]

    def grow(self, num_classes: int) -> bool:
        """Have at least ``num_classes`` rows; returns whether rows were added."""
        width = self.weight.shape[1]
        missing = range(self.num_classes, num_classes)
        if not missing:
            return False
        rows = torch.zeros(len(missing), width)
        if self.init == "trunc_normal":
            for row, class_id in zip(rows, missing, strict=True):
                nn.init.trunc_normal_(row, std=0.02, generator=generator(self.seed, "head", class_id))
        grow_rows(self.weight, rows)
        grow_rows(self.bias, torch.zeros(len(missing)))
        return True

    def forward(self, features: Tensor) -> Tensor:
        """[B, D] -> [B, C]."""
        return F.linear(features, self.weight, self.bias)
