"""Avalanche's data sets, layer by layer: whether training shows other images each time."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch.utils.data import Subset

from clprompt.training.kept import is_random

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", message=".*QP solver.*")
    from avalanche.benchmarks.utils import AvalancheDataset
    from avalanche.benchmarks.utils.flat_data import FlatData


def _layers(dataset: Any) -> Iterator[Any]:
    """A data set and those that it is made of."""
    yield dataset
    below: Sequence[Any] = ()
    if isinstance(dataset, AvalancheDataset):
        below = [dataset._flat_data]
    elif isinstance(dataset, FlatData):
        below = dataset._datasets
    elif type(dataset) is Subset:
        below = [dataset.dataset]
    for part in below:
        yield from _layers(part)


def _transforms(dataset: Any) -> list[Mapping[str, Any]]:
    """Avalanche's transforms of a data set by the group, all that there are."""
    groups = (getattr(dataset, f"{kind}transform_groups", None) for kind in ("_", "_frozen_"))
    return [group.transform_groups for group in groups if group is not None]


def varies(dataset: Any) -> bool:
    """Whether training images may be other ones each time: what a transform of a user's does is not known."""
    layers = list(_layers(dataset))
    if any(group.get("train") is not None for layer in layers for group in _transforms(layer)):
        return True
    wrapped = (AvalancheDataset, FlatData)
    leaves = (layer for layer in layers if not isinstance(layer, wrapped) and type(layer) is not Subset)
    return any(map(is_random, leaves))


def has_evaluation_transform(dataset: Any) -> bool:
    """Whether evaluation shows the images of a data set otherwise than training."""
    groups = [group for layer in _layers(dataset) for group in _transforms(layer)]
    return any(group.get("eval") is not group.get("train") for group in groups)
