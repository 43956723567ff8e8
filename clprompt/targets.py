"""Labels and label sets: which classes occur in a batch, and which of them are visible."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def visible(targets: Tensor, classes: Sequence[int] | np.ndarray) -> Tensor:
    """Multi-hot targets [B, C] with the labels of all other classes hidden; labels [B] as they are."""
    if targets.ndim == 1:
        return targets
    shown = torch.zeros_like(targets)
    shown[:, list(classes)] = targets[:, list(classes)]
    return shown


def classes_in(targets: Tensor) -> list[int]:
    """The class ids that occur in labels [B] or multi-hot targets [B, C], sorted."""
    if targets.ndim == 1:
        return [int(c) for c in targets.unique().tolist()]
    return [int(c) for c in present(targets).tolist()]


def present(targets: Tensor) -> Tensor:
    """The classes that occur in multi-hot targets [B, C]."""
    return (targets > 0).any(0).nonzero().flatten()
