"""Classification losses with one face for integer labels and multi-hot targets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor


def mask_logits(logits: Tensor, allowed: Tensor | None) -> Tensor:
    """-inf where a class is not allowed: [B, C] and boolean [C] or [B, C]; None allows all."""
    return logits if allowed is None else logits.masked_fill(~allowed, float("-inf"))


def classification_loss(
    logits: Tensor,
    targets: Tensor,
    allowed: Tensor | None = None,
    *,
    reduction: Literal["mean", "none"] = "mean",
    multi_label: Literal["bce", "asymmetric"] = "bce",
    mean: Literal["all", "active"] = "all",
) -> Tensor:
    """Cross-entropy for labels, binary cross-entropy for multi-hot targets, over the allowed classes only.

    Args:
        logits: [B, C], unmasked.
        targets: integer labels [B], or multi-hot 0/1 [B, C']; columns that one of the two lacks count as 0.
        allowed: boolean [C], None for all; others get no probability (labels) or are left out (multi-hot).
        reduction: "mean" over the batch, or "none" for one value per sample [B].
        multi_label: for multi-hot targets, binary cross-entropy or :func:`asymmetric_loss`.
        mean: for multi-hot targets, the mean over "all" columns of targets or logits, whichever are more,
            with the left-out ones at zero (the mean over the allowed columns times their share, so that a
            step's gradient does not depend on how many are hidden), or over the "active", allowed ones.

    Returns:
        A scalar, or [B].
    """
    # Under autocast the head runs in 16 bits; a sum over classes wants more.
    logits = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
    if targets.ndim == 1:
        return F.cross_entropy(mask_logits(logits, allowed), targets, reduction=reduction)
    columns = max(logits.shape[1], targets.shape[1])
    # pad, or cut: hidden classes
    targets = F.pad(targets.to(logits.dtype), (0, logits.shape[1] - targets.shape[1]))
    counted: int | Tensor = logits.shape[1]
    hidden = None
    if allowed is not None and _shape_follows(allowed):
        logits, targets = logits[:, allowed], targets[:, allowed]
        counted = logits.shape[1]
    elif allowed is not None:
        hidden, counted = ~allowed, allowed.sum()
        logits = logits.masked_fill(hidden, 0)
    if multi_label == "asymmetric":
        values = asymmetric_loss(logits, targets)
    else:
        values = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    if hidden is not None:
        values = values.masked_fill(hidden, 0)
    if mean == "active":
        counted = counted.clamp(min=1) if isinstance(counted, Tensor) else max(counted, 1)
        per_sample = values.sum(1) / counted
    else:
        per_sample = values.sum(1) / columns
    return per_sample.mean() if reduction == "mean" else per_sample


def _shape_follows(allowed: Tensor) -> bool:
    """Whether columns are picked, so that a shape follows from values: a device would be waited for."""
    return allowed.device.type == "cpu" and not torch.compiler.is_compiling()


def asymmetric_loss(
    logits: Tensor, targets: Tensor, *, gamma_pos: float = 0.0, gamma_neg: float = 4.0, clip: float = 0.05
) -> Tensor:
    """Binary cross-entropy that plays easy negatives down, entry by entry: [B, C], 0/1 [B, C] -> [B, C].

    Args:
        gamma_pos: focusing exponent of positives; 0 for none.
        gamma_neg: that of negatives.
        clip: negatives with a probability below it cost nothing.

    Source: Ridnik et al. 2021 (asymmetric loss), eq. 7.
    """
    positive = -F.logsigmoid(logits) * torch.sigmoid(-logits) ** gamma_pos
    shifted = (torch.sigmoid(logits) - clip).clamp(min=0)
    negative = -torch.log1p(-shifted) * shifted**gamma_neg
    return torch.where(targets > 0, positive, negative)


@dataclass(frozen=True, eq=False)
class SoftLabels:
    """What a step trains towards in place of its labels.

    Attributes:
        labels: [B], or a distribution over all classes [B, C].
        smoothing: how much of it is spread over the classes that compete.
    """

    labels: Tensor
    smoothing: float

    def loss(self, logits: Tensor, allowed: Tensor | None) -> Tensor:
        """Cross-entropy over the allowed classes [C] (None: all), logits [B, C] -> scalar."""
        labels = self.labels
        if labels.ndim == 1:
            labels = F.one_hot(labels, logits.shape[1]).to(logits.dtype)
        if allowed is None:
            return F.cross_entropy(logits.float(), labels.float(), label_smoothing=self.smoothing)
        # smoothing reaches no class that does not compete
        if _shape_follows(allowed):
            logits, labels = logits[:, allowed], labels[:, allowed]
            return F.cross_entropy(logits.float(), labels.float(), label_smoothing=self.smoothing)
        shares = (1 - self.smoothing) * labels.float() + self.smoothing / allowed.sum()
        likely = mask_logits(logits.float(), allowed).log_softmax(1)
        return -(shares * likely).masked_fill(~allowed, 0).sum(1).mean()
