"""Drift: old class statistics follow prompts that went on changing, and no image is kept for it.

Images of the experience that just ended have features under the prompts of before and of now. An affine map
between them moves the statistics of old classes; of sums it does so exactly.

Sources: that the drift of current images tells of that of old classes, Yu et al., CVPR 2020 (semantic drift
compensation), which moves each mean by a weighted mean of differences; a map in place of differences,
Gomez-Villa et al., ECCV 2024, arXiv 2407.08536 (learnable drift compensation). That it is affine, solved from
sums and drawn towards a shift of all features is ours: it moves the covariance with the means.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from clprompt.prompting.model import PromptModel
from clprompt.prompting.statistics.sums import ClassStatistics

#: What pulls the map towards a shift, relative to the mean variance of the features of before.
_STRENGTH = 1.0


class AffineMap(NamedTuple):
    """Features of before -> features of now: x P + q.

    Attributes:
        matrix: P, float64 [D, D].
        shift: q, float64 [D].
    """

    matrix: Tensor
    shift: Tensor


class Drift:
    """Sums over pairs of features, of before and of now, from which the map between them is solved.

    Args:
        statistics: of the features; they say the width and the device.
    """

    def __init__(self, statistics: ClassStatistics) -> None:
        self.number = 0
        self.square, self.product = (torch.zeros_like(statistics.second) for _ in range(2))
        self.before, self.now = (torch.zeros_like(statistics.total) for _ in range(2))

    def add(self, before: Tensor, now: Tensor) -> None:
        """Count a batch of images by their features of before and of now, [B, D] each."""
        before, now = before.to(self.square), now.to(self.square)
        self.number += len(before)
        self.before += before.sum(0)
        self.now += now.sum(0)
        self.square.addmm_(before.T, before)
        self.product.addmm_(before.T, now)

    def solve(self) -> AffineMap:
        """The map of least squares, drawn towards a shift."""
        number = max(self.number, 1)
        square = self.square - torch.outer(self.before, self.before) / number
        product = self.product - torch.outer(self.before, self.now) / number
        identity = torch.eye(len(square), dtype=square.dtype, device=square.device)
        mean_variance = square.trace() / len(square)
        if float(mean_variance) <= 1e-12 * float(self.square.trace()):  # equal features tell of a shift alone
            matrix = identity
        else:
            ridge = _STRENGTH * mean_variance * identity
            matrix = identity + torch.linalg.solve(square + ridge, product - square)
        return AffineMap(matrix, (self.now - self.before @ matrix) / number)


@torch.no_grad()
def move(statistics: ClassStatistics, drift: AffineMap) -> None:
    """Bring class statistics to where their features went."""
    matrix, shift = drift
    if statistics.has_label_sets:
        number, total = statistics.number.double(), statistics.total @ matrix
        statistics.total.copy_(total + number * shift)
    else:
        number, total = statistics.counts.sum().double(), statistics.sums.sum(0) @ matrix
    crossed = torch.outer(total, shift)
    second = matrix.T @ statistics.second @ matrix + crossed + crossed.T + number * torch.outer(shift, shift)
    sums = statistics.sums @ matrix + statistics.counts.double()[:, None] * shift
    statistics.replace(sums, second)


class Earlier(nn.Module):
    """What a method was when the last experience ended: a copy of its state, without its head.

    Args:
        model: a new one.
    """

    def __init__(self, model: PromptModel) -> None:
        super().__init__()
        shared = {id(model.backbone): model.backbone}
        self._blank = [copy.deepcopy(model, shared)]  # in a list: its state is none of ours

    def keep(self, model: PromptModel) -> None:
        """Take the copy, in place of the last one."""
        others = ("head.", *(f"{plugin.name}." for plugin in model.plugins))
        for name, value in model.method_state().items():
            if not name.startswith(others):
                self.register_buffer(_safe(name), value.detach().clone())

    def restore(self, model: PromptModel) -> PromptModel | None:
        """The method as it was, over the backbone of the model, in eval mode; None before the first copy."""
        if not self._buffers:
            return None
        earlier = copy.deepcopy(self._blank[0], {id(self._blank[0].backbone): model.backbone})
        earlier.load_state_dict({_plain(name): value for name, value in self._buffers.items()}, strict=False)
        return earlier.to(model.device).eval()

    def resize_to(self, state: Mapping[str, Tensor]) -> None:
        """Have the tensors of a saved state, and no others."""
        self._buffers.clear()
        for name, value in state.items():
            self.register_buffer(name, torch.zeros_like(value, device=self._blank[0].device))


def _safe(name: str) -> str:
    """A name for a buffer, which may hold no dot."""
    return name.replace(".", "/")


def _plain(name: str) -> str:
    return name.replace("/", ".")
