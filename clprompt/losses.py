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
    multi_label: Literal["bce", "asymmetric"] = "bce",
    mean: Literal["all", "active"] = "all",
) -> Tensor:
    """Cross-entropy for labels, binary cross-entropy for multi-hot targets, over the allowed classes only.

    Args:
        logits: [B, C], unmasked.
        targets: integer labels [B], or multi-hot 0/1 [B, C']; columns that one of the two lacks count as 0.
        allowed: boolean [C]; classes outside get no probability (labels) or are left out (multi-hot). None: all.
        reduction: "mean" over the batch, or "none" for one value per sample [B].
        multi_label: for multi-hot targets, binary cross-entropy or :func:`asymmetric_loss`.
        mean: for multi-hot targets, the mean over "all" columns of targets or logits, whichever are more, with the
            left-out ones at zero (the mean over the allowed columns times their share, so that a step's gradient does
            not depend on how many classes are hidden), or over the "active", allowed ones.

    Returns:
        A scalar, or [B].
    """
    # Under autocast the head runs in 16 bits; a sum over classes wants more.
    logits = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
    if targets.ndim == 1:
        return F.cross_entropy(mask_logits(logits, allowed), targets, reduction=reduction)
    columns = max(logits.shape[1], targets.shape[1])
    targets = F.pad(
        targets.to(logits.dtype), (0, logits.shape[1] - targets.shape[1])
    )  # or cut: hidden classes
    if allowed is not None:
        logits, targets = logits[:, allowed], targets[:, allowed]
    if mean == "active":
        columns = max(logits.shape[1], 1)
    if multi_label == "asymmetric":
        values = asymmetric_loss(logits, targets)
    else:
        values = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    per_sample = values.sum(1) / columns
    return per_sample.mean() if reduction == "mean" else per_sample


def asymmetric_loss(
    logits: Tensor, targets: Tensor, *, gamma_pos: float = 0.0, gamma_neg: float = 4.0, clip: float = 0.05
) -> Tensor:
    """Binary cross-entropy that plays easy negatives down, entry by entry: [B, C], 0/1 [B, C] -> [B, C].

    Args:
        gamma_pos, gamma_neg: focusing exponents of positives and negatives; 0 for none.
        clip: negatives with a probability below it cost nothing.

    Source: Ridnik et al. 2021 (asymmetric loss), eq. 7.
    """
    positive = -F.logsigmoid(logits) * torch.sigmoid(-logits) ** gamma_pos
    shifted = (torch.sigmoid(logits) - clip).clamp(min=0)
    negative = -torch.log1p(-shifted) * shifted**gamma_neg
    return torch.where(targets > 0, positive, negative)


def classes_in(targets: Tensor) -> list[int]:
    """The class ids that occur in labels [B] or multi-hot targets [B, C], sorted."""
    if targets.ndim == 1:
        return [int(c) for c in targets.unique().tolist()]
    return [int(c) for c in present(targets).tolist()]


def present(targets: Tensor) -> Tensor:
    """The classes that occur in multi-hot targets [B, C]."""
    return (targets > 0).any(0).nonzero().flatten()
