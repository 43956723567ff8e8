"""Batches in a reproducible order: any batch of a run can be drawn again from (seed, experience, epoch)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from clprompt.seeding import derive, generator, preserved_rng


class Images(Protocol):
    """Anything with a length whose items start with (image [3, H, W], label or multi-hot target)."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


class _Seeded(Dataset):
    """A data set whose random augmentation is a function of (seed, experience, epoch, position)."""

    def __init__(self, dataset: Images, keys: tuple[int, int, int]) -> None:
        self.dataset = dataset
        self.keys = keys

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, position: int) -> tuple[Any, ...]:
        if not getattr(self.dataset, "random_transform", True):
            return tuple(self.dataset[position])
        seed, experience, epoch = self.keys
        # torchvision's transforms draw from the global state
        with preserved_rng(derive(seed, "augmentation", experience, epoch, position), devices=False):
            return tuple(self.dataset[position])


def _loader(
    dataset: Dataset, batches: Sequence[Sequence[int]], workers: int, seed: int, pin_memory: bool = False
) -> DataLoader:
    return DataLoader(
        dataset,
        pin_memory=pin_memory,
        batch_sampler=batches,  # type: ignore[arg-type]
        num_workers=workers,
        # without a generator of its own a DataLoader draws from the global random state
        generator=generator(seed, "loader"),
    )


def subset(dataset: Images, indices: Sequence[int] | np.ndarray) -> Subset:
    """The samples at these indices; says, as the data set does, whether its transform is random."""
    samples: Subset = Subset(dataset, [int(i) for i in indices])  # type: ignore[arg-type]
    samples.random_transform = getattr(dataset, "random_transform", True)  # type: ignore[attr-defined]
    return samples


def epoch_order(count: int, seed: int, experience: int, epoch: int) -> Tensor:
    """The order in which one epoch visits the samples of one experience, [count]."""
    return torch.randperm(count, generator=generator(seed, "order", experience, epoch))


def training_batches(
    dataset: Images,
    *,
    seed: int,
    experience: int,
    epoch: int,
    batch_size: int,
    workers: int = 0,
    skip: int = 0,
    shuffle: bool = True,
    drop_last: bool = False,
    pin_memory: bool = False,
) -> DataLoader:
    """The shuffled batches of one epoch of one experience.

    Args:
        dataset: the experience's training data; position = index into it.
        seed: with the next two it decides the order, and with the position every random transform.
        experience: which one.
        epoch: which one.
        batch_size: the last batch may be smaller.
        workers: loader processes; the result does not depend on them.
        skip: leave out so many batches at the start (entering an epoch in the middle).
        shuffle: False for data that comes in its final order.
        drop_last: leave out a last batch that is smaller.
        pin_memory: lay batches where a GPU fetches them from.

    Yields:
        (images [B, 3, H, W], targets [B] or [B, C], and whatever else the data set's items hold).
    """
    count = len(dataset)
    order = epoch_order(count, seed, experience, epoch).tolist() if shuffle else list(range(count))
    batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    if drop_last and batches and len(batches[-1]) < batch_size:
        batches.pop()
    return _loader(_Seeded(dataset, (seed, experience, epoch)), batches[skip:], workers, seed, pin_memory)


def numbered(loader: DataLoader) -> Iterator[tuple[Sequence[int], Any]]:
    """The batches of a loader of ours, each with the positions of its samples in the data set."""
    return zip(loader.batch_sampler, loader, strict=True)  # type: ignore[arg-type]


def fixed_batches(dataset: Images, batches: Sequence[Sequence[int]], workers: int = 0) -> DataLoader:
    """The given index lists as batches, in order, for evaluation."""
    return _loader(_Seeded(dataset, (0, 0, 0)), batches, workers, 0)


def sample_stream(dataset: Images, batch_size: int, workers: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
    """All samples once, in data set order, in batches: (images [B, 3, H, W], targets [B] or [B, C])."""
    indices = list(range(len(dataset)))
    batches = [indices[i : i + batch_size] for i in range(0, len(indices), batch_size)]
    for images, targets, *_ in fixed_batches(dataset, batches, workers):
        yield images, targets


def image_stream(dataset: Images, batch_size: int, workers: int = 0) -> Iterator[Tensor]:
    """All images once, in data set order, in batches [B, 3, H, W]."""
    return (images for images, _ in sample_stream(dataset, batch_size, workers))
