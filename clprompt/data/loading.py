"""Batches in a reproducible order: any batch of a run can be drawn again from (seed, experience, epoch)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset, default_collate

from clprompt.seeding import derive, generator, preserved_rng


class Images(Protocol):
    """Anything with a length whose items start with (image [3, H, W], label or multi-hot target)."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


class _Seeded(Dataset):
    """A data set whose random augmentation is a function of (seed, experience, epoch, position).

    Items are asked for by (epoch, position), as loader processes outlive an epoch.
    """

    def __init__(self, dataset: Images, seed: int, experience: int) -> None:
        self.dataset = dataset
        self.keys = seed, experience

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, where: tuple[int, int]) -> tuple[Any, ...]:
        epoch, position = where
        if not getattr(self.dataset, "random_transform", True):
            return tuple(self.dataset[position])
        seed, experience = self.keys
        # torchvision's transforms draw from the global state
        with preserved_rng(derive(seed, "augmentation", experience, epoch, position), devices=False):
            return tuple(self.dataset[position])


class _Planned:
    """The batches of an epoch, which are another one's later; each a list of (epoch, position)."""

    def __init__(self) -> None:
        self.batches: list[list[tuple[int, int]]] = []

    def plan(self, epoch: int, batches: Iterable[Sequence[int]]) -> None:
        """Have these batches of positions come next."""
        self.batches = [[(epoch, position) for position in batch] for batch in batches]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return iter(self.batches)


def _together(normalise: Callable[[Tensor], Tensor], items: Sequence[tuple[Any, ...]]) -> Any:
    """A batch of items whose images may be bytes; beside an image of more bits all are normalised here."""
    if len({item[0].dtype for item in items}) > 1:
        items = [(normalise(i[0]) if i[0].dtype == torch.uint8 else i[0], *i[1:]) for i in items]
    return default_collate(list(items))


def _loader(
    dataset: _Seeded,
    planned: _Planned,
    workers: int,
    seed: int,
    *,
    pin_memory: bool = False,
    is_lasting: bool = False,
) -> DataLoader:
    normalise = getattr(dataset.dataset, "normalise", None)
    return DataLoader(
        dataset,
        pin_memory=pin_memory,
        collate_fn=None if normalise is None else partial(_together, normalise),
        batch_sampler=planned,  # type: ignore[arg-type]
        num_workers=workers,
        persistent_workers=is_lasting and workers > 0,
        # without a generator of its own a DataLoader draws from the global random state
        generator=generator(seed, "loader"),
    )


def subset(dataset: Images, indices: Sequence[int] | np.ndarray) -> Subset:
    """The samples at these indices; says, as the data set does, whether its transform is random."""
    samples: Subset = Subset(dataset, [int(i) for i in indices])  # type: ignore[arg-type]
    samples.random_transform = getattr(dataset, "random_transform", True)  # type: ignore[attr-defined]
    samples.normalise = getattr(dataset, "normalise", None)  # type: ignore[attr-defined]
    return samples


def epoch_order(count: int, seed: int, experience: int, epoch: int) -> Tensor:
    """The order in which one epoch visits the samples of one experience, [count]."""
    return torch.randperm(count, generator=generator(seed, "order", experience, epoch))


def part_sizes(count: int, parts: int) -> list[int]:
    """How many rows of a batch of ``count`` each of so many parts gets, one behind the other."""
    return [count * (part + 1) // parts - count * part // parts for part in range(parts)]


def rows_of(count: int, part: int, parts: int) -> slice:
    """The rows of a batch of ``count`` that belong to one of so many parts; the first where it gets none."""
    sizes = part_sizes(count, parts)
    start = sum(sizes[:part])
    return slice(start, start + sizes[part]) if sizes[part] else slice(0, 1)


class Epochs:
    """The batches of an experience, epoch by epoch, from loader processes that live as long as this does.

    Args:
        dataset: see :func:`training_batches`.
        seed: see :func:`training_batches`.
        experience: see :func:`training_batches`.
        batch_size: see :func:`training_batches`.
        workers: see :func:`training_batches`.
        shuffle: see :func:`training_batches`.
        drop_last: see :func:`training_batches`.
        pin_memory: see :func:`training_batches`.
        part: (number, of how many): load that part of every batch alone, :func:`rows_of` it.
        is_lasting: False where there is one epoch.
    """

    def __init__(
        self,
        dataset: Images,
        *,
        seed: int,
        experience: int,
        batch_size: int,
        workers: int = 0,
        shuffle: bool = True,
        drop_last: bool = False,
        pin_memory: bool = False,
        part: tuple[int, int] = (0, 1),
        is_lasting: bool = True,
    ) -> None:
        self.seed = seed
        self.experience = experience
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.part = part
        self.count = len(dataset)
        self._planned = _Planned()
        self._loader = _loader(
            _Seeded(dataset, seed, experience),
            self._planned,
            workers,
            seed,
            pin_memory=pin_memory,
            is_lasting=is_lasting,
        )

    def epoch(self, epoch: int, skip: int = 0) -> DataLoader:
        """The batches of one epoch without the first ``skip``; those of another one come no more."""
        count, size = self.count, self.batch_size
        order = list(range(count))
        if self.shuffle:
            order = epoch_order(count, self.seed, self.experience, epoch).tolist()
        batches = [order[i : i + size] for i in range(0, count, size)]
        if self.drop_last and batches and len(batches[-1]) < size:
            batches.pop()
        self._planned.plan(epoch, [batch[rows_of(len(batch), *self.part)] for batch in batches[skip:]])
        return self._loader


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
    epochs = Epochs(
        dataset,
        seed=seed,
        experience=experience,
        batch_size=batch_size,
        workers=workers,
        shuffle=shuffle,
        drop_last=drop_last,
        pin_memory=pin_memory,
        is_lasting=False,
    )
    return epochs.epoch(epoch, skip)


def numbered(loader: DataLoader) -> Iterator[tuple[Sequence[int], Any]]:
    """The batches of a loader of ours, each with the positions of its samples in the data set."""
    places = ([position for _, position in batch] for batch in loader.batch_sampler)  # type: ignore[union-attr, misc]
    return zip(places, loader, strict=True)


def fixed_batches(
    dataset: Images, batches: Sequence[Sequence[int]], workers: int = 0, *, pin_memory: bool = False
) -> DataLoader:
    """The given index lists as batches, in order, for evaluation."""
    planned = _Planned()
    planned.plan(0, batches)
    return _loader(_Seeded(dataset, 0, 0), planned, workers, 0, pin_memory=pin_memory)


def sample_stream(dataset: Images, batch_size: int, workers: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
    """All samples once, in data set order, in batches: (images [B, 3, H, W], targets [B] or [B, C])."""
    indices = list(range(len(dataset)))
    batches = [indices[i : i + batch_size] for i in range(0, len(indices), batch_size)]
    for images, targets, *_ in fixed_batches(dataset, batches, workers):
        yield images, targets


def image_stream(dataset: Images, batch_size: int, workers: int = 0) -> Iterator[Tensor]:
    """All images once, in data set order, in batches [B, 3, H, W]."""
    return (images for images, _ in sample_stream(dataset, batch_size, workers))
