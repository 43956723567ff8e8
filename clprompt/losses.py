"""Classification losses with one face for integer labels and multi-hot targets."""

from __future__ import annotations

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
) -> Tensor:
    """Cross-entropy for labels, binary cross-entropy for multi-hot targets, over the allowed classes only.

    Args:
        logits: [B, C], unmasked.
        targets: integer labels [B], or multi-hot 0/1 [B, C'] with C' <= C (missing columns count as 0).
        allowed: boolean [C]; classes outside get no probability (labels) or are left out (multi-hot). None: all.
        reduction: "mean" over the batch, or "none" for one value per sample [B].

    Returns:
        A scalar, or [B]. The multi-hot value is the mean over all B*C entries with the left-out ones at zero, i.e.
        the mean over the allowed columns times their share of C, so that a step's gradient does not depend on how
        many classes are hidden.
    """
    # Under autocast the head runs in 16 bits; a sum over classes wants more.
    logits = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
    if targets.ndim == 1:
        return F.cross_entropy(mask_logits(logits, allowed), targets, reduction=reduction)
    columns = logits.shape[1]
    targets = F.pad(targets.to(logits.dtype), (0, columns - targets.shape[1]))
    if allowed is not None:
        logits, targets = logits[:, allowed], targets[:, allowed]
    per_sample = F.binary_cross_entropy_with_logits(logits, targets, reduction="none").sum(1) / columns
    return per_sample.mean() if reduction == "mean" else per_sample


def classes_in(targets: Tensor) -> list[int]:
    """The class ids that occur in labels [B] or multi-hot targets [B, C], sorted."""
    if targets.ndim == 1:
        return [int(c) for c in targets.unique().tolist()]
    return [int(c) for c in (targets > 0).any(0).nonzero().flatten().tolist()]
