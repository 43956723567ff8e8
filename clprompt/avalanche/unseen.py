"""Evaluation of samples whose class was never seen: what Avalanche's metrics are given for them.

Avalanche evaluates experiences to come, too, and its metrics take numbers only. A class that was never seen
has probability 0, so its samples count as wrong and cost the most that a sample can: they are never the best
of anything, and no mean is diluted by them.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from clprompt.prompting.losses import classification_loss
from clprompt.targets import is_label_sets

#: The most that one sample costs in evaluation: torch's BCELoss bounds a logarithm by it, too.
LARGEST_LOSS = 100.0


def known(targets: Tensor, predictable: Tensor) -> Tensor:
    """Boolean [B]: whether a label [B] is of a class that can be predicted, boolean [C]."""
    if not len(predictable):
        return torch.zeros_like(targets, dtype=torch.bool)
    inside = targets.clamp(0, len(predictable) - 1)
    return predictable[inside] & (inside == targets)


def rank_last(logits: Tensor, targets: Tensor, predictable: Tensor) -> Tensor:
    """Logits [B, C], -inf for unseen classes, in which no metric finds an unseen label by chance.

    Among equal logits a metric takes the first ones, so in an evaluation before any training all samples of
    class 0 would be right, and a top-k accuracy would find every class in the first k columns. Rows of seen
    classes are not touched; there are columns for all labels of the batch, which torchmetrics asks for.
    """
    unseen = ~known(targets, predictable)
    if not bool(unseen.any()):
        return logits
    columns = max(2, int(targets.max()) + 1)
    logits = F.pad(logits, (0, max(columns - logits.shape[1], 0)), value=float("-inf"))
    lowest = logits[unseen].clamp(min=torch.finfo(logits.dtype).min)
    is_label = torch.arange(logits.shape[1], device=logits.device) == targets[unseen, None]
    return logits.index_put((unseen,), lowest.masked_fill(is_label, float("-inf")))


def evaluation_loss(logits: Tensor, targets: Tensor, seen: Tensor) -> Tensor:
    """Mean loss of a batch, a sample of an unseen class at ``LARGEST_LOSS``, which no other exceeds.

    Args:
        logits: [B, C], -inf for unseen classes.
        targets: labels [B], or multi-hot [B, C'], of which only seen classes count.
        seen: boolean [C].
    """
    if is_label_sets(targets):
        if not bool(seen.any()):
            return logits.new_full((), LARGEST_LOSS)
        return classification_loss(logits, targets, seen)
    has_value = known(targets, seen)
    losses = classification_loss(logits[has_value], targets[has_value], reduction="none")
    if bool(has_value.all()) and not bool((losses > LARGEST_LOSS).any()):
        return classification_loss(logits, targets)
    bounded = losses.new_full((len(targets),), LARGEST_LOSS)
    bounded[has_value] = losses.clamp(max=LARGEST_LOSS)
    return bounded.mean()
