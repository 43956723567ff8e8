"""What tells the experience of an image: class statistics of the unprompted features."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clprompt.prompting.heads import count_in, grow_rows
from clprompt.prompting.statistics.closed_forms import handed_out
from clprompt.prompting.statistics.heads import LDAHead
from clprompt.prompting.statistics.sums import kept_exact

#: How experiences are compared: by all of their shares, by the nearest class alone, or not at all.
Gate = Literal["soft", "hard", "none"]
#: What an experience that was not chosen gets in place of its log share: finite, so that it ranks behind.
_BEHIND = -1e4


class Evidence(nn.Module, ABC):
    """Class statistics that say how likely each class is, by the unprompted features alone."""

    @property
    @abstractmethod
    def known(self) -> Tensor:
        """Boolean [C]: the classes with a sample."""

    @abstractmethod
    def grow(self, num_classes: int) -> None:
        """Have at least ``num_classes`` columns."""

    @abstractmethod
    def add(self, features: Tensor, targets: Tensor) -> None:
        """Count a batch of features [B, D] and labels [B]."""

    @abstractmethod
    def classify(self, features: Tensor) -> Tensor:
        """Logits [B, C] of features [B, D], in float32 at least; -inf for a class without a sample."""


class MeansEvidence(Evidence):
    """Cosines to the class means: sums in float64 and counts, so that neither order nor batches matter.

    Args:
        width: D, of the features.
        scale: what cosines are multiplied with.
    """

    def __init__(self, width: int, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.sums: Tensor
        self.counts: Tensor
        self.register_buffer("sums", torch.zeros(0, width, dtype=torch.float64))
        self.register_buffer("counts", torch.zeros(0, dtype=torch.int64))

    @property
    def known(self) -> Tensor:
        return self.counts > 0

    def grow(self, num_classes: int) -> None:
        missing = num_classes - len(self.counts)
        grow_rows(self.sums, torch.zeros(missing, self.sums.shape[1]))
        grow_rows(self.counts, torch.zeros(missing))

    @torch.no_grad()
    def add(self, features: Tensor, targets: Tensor) -> None:
        rows = features.to(self.sums)
        self.sums.index_add_(0, targets.to(rows.device), rows)
        count_in(self.counts, targets)

    def classify(self, features: Tensor) -> Tensor:
        unit = F.normalize(features.to(self.sums), dim=1)
        cosines = unit @ F.normalize(self.sums, dim=1).T  # the direction of a mean is that of its sum
        return handed_out((self.scale * cosines).masked_fill(~self.known, float("-inf")), features)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        return kept_exact(self, fn)


class LDAEvidence(Evidence):
    """Log posteriors of linear discriminant analysis.

    Args:
        width: D, of the features.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.head = LDAHead(width)

    @property
    def known(self) -> Tensor:
        return self.head.classes.seen

    def grow(self, num_classes: int) -> None:
        self.head.grow(num_classes)

    def add(self, features: Tensor, targets: Tensor) -> None:
        self.head.add(features, targets)

    def classify(self, features: Tensor) -> Tensor:
        return self.head.classify(features)


def gated(scores: Tensor, evidence: Tensor, sizes: Sequence[int], gate: Literal["soft", "hard"]) -> Tensor:
    """Scores that were never compared across experiences -> logits that are, [B, R].

    The log-softmax of the scores within each experience, plus what the evidence says of the experience: the
    log of its classes' share of a softmax over all classes ("soft"), or 0 for that of the likeliest class and
    a large negative number for the others ("hard").

    Args:
        scores: [B, R], the classes of an experience beside each other; -inf for one that is not seen.
        evidence: logits of the same classes [B, R]; -inf for one that is not seen.
        sizes: classes of each experience.
        gate: which.
    """
    if gate == "soft":
        likely = evidence.log_softmax(dim=1)
        of_experience = torch.stack([part.logsumexp(1) for part in likely.split(list(sizes), 1)], dim=1)
    else:
        best = torch.stack([part.amax(1) for part in evidence.split(list(sizes), 1)], dim=1).argmax(1)
        of_experience = scores.new_full((scores.shape[0], len(sizes)), _BEHIND)
        of_experience.scatter_(1, best[:, None], 0.0)
    parts = [
        part.log_softmax(dim=1) + of_experience[:, [number]]
        for number, part in enumerate(scores.split(list(sizes), 1))
    ]
    return torch.cat(parts, dim=1)
