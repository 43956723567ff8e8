"""Labels and label sets: which classes occur in a batch, and which of them are visible."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor


def is_label_sets(targets: Any) -> bool:
    """Whether these are multi-hot targets [n, C] rather than labels [n]; of tensors, arrays or lists."""
    return np.ndim(targets) == 2


def visible(targets: Tensor, classes: Sequence[int] | np.ndarray) -> Tensor:
    """Multi-hot targets [B, C] with the labels of all other classes hidden; labels [B] as they are."""
    if not is_label_sets(targets):
        return targets
    shown = torch.zeros_like(targets)
    shown[:, list(classes)] = targets[:, list(classes)]
    return shown


def classes_in(targets: Tensor) -> list[int]:
    """The class ids that occur in labels [B] or multi-hot targets [B, C], sorted."""
    if not is_label_sets(targets):
        return [int(c) for c in targets.unique().tolist()]
    return [int(c) for c in present(targets).tolist()]


def present(targets: Tensor) -> Tensor:
    """The classes that occur in multi-hot targets [B, C]."""
    return (targets > 0).any(0).nonzero().flatten()
