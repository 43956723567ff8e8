"""Labels and label sets: what may stand for a class, which classes occur in a batch, which are visible."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clprompt.errors import ProtocolError

#: Class ids are columns of a head: a larger one is no class but a mistake, and would take all memory.
MOST_CLASSES = 1_000_000


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


def as_index(ids: Sequence[int], device: torch.device) -> Tensor:
    """Ids as int64 [n] on a device, which nobody waits for."""
    return torch.tensor(list(ids), dtype=torch.int64).to(device, non_blocking=True)


def checked_targets(targets: Any) -> Tensor:
    """Labels [B] as int64, or multi-hot targets [B, C] as they are; how large labels are is not looked at.

    Entries of multi-hot targets are looked at in the host's memory alone: another device would be waited for.

    Raises:
        ProtocolError: anything else: no tensor, another number of dimensions, labels that are no integers,
            entries other than 0 and 1.
    """
    if not isinstance(targets, Tensor) or targets.ndim not in (1, 2):
        what = f"the shape {list(targets.shape)}" if isinstance(targets, Tensor) else type(targets).__name__
        raise ProtocolError(f"targets must be a tensor, labels [B] or multi-hot [B, C], got {what}")
    if targets.ndim == 2 and not targets.is_complex():
        if targets.device.type != "cpu":
            return targets
        wrong = (targets != 0) & (targets != 1)
        if bool(wrong.any()):
            raise ProtocolError(
                f"multi-hot targets must be 0 or 1, got {targets[wrong][0].item()} "
                f"in the shape {list(targets.shape)}"
            )
        return targets
    if targets.is_floating_point() or targets.is_complex() or targets.dtype == torch.bool:
        raise ProtocolError(f"labels must be integers, got {targets.dtype}")
    return targets.long()


def checked_classes(classes: Any) -> list[int]:
    """Class ids, ascending, each once; of a list, a set, an array [n] or a tensor [n].

    Raises:
        ProtocolError: something that holds no class ids, or one that :func:`check_ids` refuses.
    """
    try:
        if isinstance(classes, str | bytes | Mapping) or getattr(classes, "ndim", 1) != 1:
            raise TypeError
        members = list(classes)
    except TypeError:
        raise ProtocolError(f"classes must be a list of class ids, got {_short(classes)}") from None
    for member in members:
        try:
            if isinstance(member, bool) or (isinstance(member, Tensor) and member.dtype == torch.bool):
                raise TypeError
            operator.index(member)
        except TypeError:
            raise ProtocolError(f"a class id must be an integer, got {_short(member)}") from None
    ids = sorted({operator.index(member) for member in members})
    check_ids(ids)
    return ids


def check_ids(ids: Sequence[int]) -> None:
    """Refuse class ids, ascending, that no column of a head can have.

    Raises:
        ProtocolError: a negative one, or one of ``MOST_CLASSES`` or more.
    """
    if ids and ids[0] < 0:
        raise ProtocolError(f"labels must not be negative, got {ids[0]}")
    if ids and ids[-1] >= MOST_CLASSES:
        raise ProtocolError(
            f"labels must be below {MOST_CLASSES}, got {ids[-1]}: a class id is a column of the head; "
            "number the classes 0, 1, 2, ..."
        )


def _short(value: Any) -> str:
    """A value in one short line."""
    line = " ".join(repr(value).split())
    return line if len(line) <= 60 else f"{line[:57]}..."
