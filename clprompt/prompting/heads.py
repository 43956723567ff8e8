"""Classifier heads that grow by rows while classes arrive."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clprompt.seeding import generator


def grow_rows(tensor: Tensor, rows: Tensor) -> None:
    """Append rows to a buffer in place."""
    tensor.data = torch.cat([tensor.data, rows.to(tensor)], dim=0)


def home_of_float64(device: torch.device) -> torch.device:
    """Where numbers of 64 bits go with what is on a device: the host's memory where it has none (mps)."""
    return torch.device("cpu") if device.type == "mps" else device


@torch.no_grad()
def count_in(counts: Tensor, members: Tensor) -> None:
    """Add to counts [K] how often each of 0..K-1 occurs in members [n], in place and without waiting."""
    members = members.to(counts.device, non_blocking=True)
    counts.scatter_add_(0, members, torch.ones_like(members, dtype=counts.dtype))


def grown(parameter: nn.Parameter, rows: Tensor) -> nn.Parameter:
    """A new parameter with rows appended.

    An optimizer's moments are carried over by name, in :func:`clprompt.training.optim.sync`.

    Not in place: autograd remembers a parameter's shape for as long as any graph that used it is alive.
    """
    longer = torch.cat([parameter.detach(), rows.to(parameter)], dim=0)
    return nn.Parameter(longer, requires_grad=parameter.requires_grad)


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
        self.weight = grown(self.weight, rows)
        self.bias = grown(self.bias, torch.zeros(len(missing)))
        return True

    def forward(self, features: Tensor) -> Tensor:
        """[B, D] -> [B, C]."""
        return F.linear(features, self.weight, self.bias)
