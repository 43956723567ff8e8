"""Queries of training images, and features of what trains no prompt, kept while an experience is trained on.

A method reads and fills a :data:`clprompt.prompting.model.Cache` of a batch, in training as in evaluation.
Evaluation's batches never change; here an epoch draws other ones, so that what is kept is kept by sample.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from clprompt.errors import ConfigError
from clprompt.prompting.model import Cache, PromptModel
from clprompt.prompting.plugin import Samples
from clprompt.seeding import preserved_rng
from clprompt.training.precision import autocast
from clprompt.training.settings import Training

#: The most that is kept of an experience's images in training, as between evaluations: 350 000 images of 768
#: float32 numbers. Of more images nothing is kept.
LIMIT_BYTES = 2**30


def check_clean_query(model: PromptModel, training: Training, *, online: bool) -> None:
    """Refuse ``training.clean_query`` where it has no meaning.

    Args:
        model: the method.
        training: its settings.
        online: the stream does not tell of experiences.

    Raises:
        ConfigError: in one line.
    """
    if not training.clean_query:
        return
    if not model.chooses_by_query:
        raise ConfigError(
            f"training.clean_query must be false: {type(model).__name__} chooses no prompts by a query"
        )
    if online:
        raise ConfigError(
            "training.clean_query must be false for an online stream, each of whose batches is seen once"
        )
    for name in ("mixup", "cutmix"):
        if getattr(training, name):
            raise ConfigError(
                f"training.clean_query must be false where training.{name} is on: "
                "a mixed image has two clean ones"
            )


class KeptRows:
    """What was computed of some samples, by name and row.

    Args:
        count: n, how many samples there are.
        limit_bytes: what takes more is not kept; None for no limit.
    """

    def __init__(self, count: int, limit_bytes: int | None = LIMIT_BYTES) -> None:
        self.count = count
        self.limit_bytes = limit_bytes
        self._tables: dict[str, Tensor] = {}  # [n, ...] each
        self._known: dict[str, Tensor] = {}  # which rows of it were computed, boolean [n]

    def read(self, rows: Sequence[int]) -> Cache:
        """The values of samples, [B, ...] each: those that are known of all of them."""
        index = torch.as_tensor(rows)
        names = [name for name, known in self._known.items() if bool(known[index].all())]
        return {name: self._tables[name][index.to(self._tables[name].device)] for name in names}

    def add(self, rows: Sequence[int], values: Cache) -> None:
        """Keep values of samples, [B or more, ...] each, as far as there is room."""
        index = torch.as_tensor(rows)
        for name, value in values.items():
            if name not in self._tables:
                if not self._fits(value):
                    continue
                self._tables[name] = value.new_zeros(self.count, *value.shape[1:])
                self._known[name] = torch.zeros(self.count, dtype=torch.bool)
            if not bool(self._known[name][index].all()):
                self._tables[name][index.to(value.device)] = value[: len(index)]
                self._known[name][index] = True

    def misses(self, rows: Sequence[int]) -> bool:
        """Whether something that is kept of others is not known of all of these."""
        index = torch.as_tensor(rows)
        return not all(bool(known[index].all()) for known in self._known.values())

    def _fits(self, value: Tensor) -> bool:
        if self.limit_bytes is None:
            return True
        held = sum(table.numel() * table.element_size() for table in self._tables.values())
        return held + self.count * math.prod(value.shape[1:]) * value.element_size() <= self.limit_bytes


class Keeping:
    """Keeps what epochs over an experience ask of the frozen backbone, where that changes no bit.

    A row of a matrix product may be rounded otherwise in a batch of another size, and, with several threads
    or on other hardware, in another place of the batch. So a value is computed in full batches and read in
    full batches alone, and nothing is kept unless a batch that is moved on by one row gives the same bits:
    then a step has the bits that it would have without, and so has one of a run that was resumed, which
    computes everything anew. One thread on a CPU passes, several often do not.

    Args:
        model: the method.
        count: how many samples an epoch visits.
        batch_size: the largest of its batches.
        precision: see :class:`clprompt.training.Engine`.
        moves: what a run found out of batches of each size, shared by its experiences: whether rows change
            their bits with their place.
    """

    def __init__(
        self, model: PromptModel, count: int, batch_size: int, precision: str, moves: dict[int, bool]
    ) -> None:
        self.model = model
        self.size = min(batch_size, count)
        self.precision = precision
        self.moves = moves
        self.rows = KeptRows(count)

    def cache(self, rows: Sequence[int]) -> Cache | None:
        """What is known of a batch, for a step to read and fill; None where nothing is kept of it."""
        if self.moves.get(self.size) or len(rows) != self.size:
            return None
        return self.rows.read(rows)

    def add(self, images: Tensor, rows: Sequence[int], cache: Cache | None) -> None:
        """Take in what a step filled.

        Args:
            images: of the step, [B, 3, H, W].
            rows: their samples.
            cache: what :meth:`cache` gave for it.
        """
        if cache is not None:
            if self.size not in self.moves and cache:
                self.moves[self.size] = not _stays(cache, len(images)) or not self._same_elsewhere(
                    images, cache
                )
            if not self.moves.get(self.size):
                self.rows.add(rows, cache)
        elif self.moves.get(self.size) is False and self.rows.misses(rows):
            images = self.model.placed(images)
            repeated = images.repeat(-(-self.size // len(images)), 1, 1, 1)[: self.size]
            self.rows.add(rows, self._asked(repeated))

    def _same_elsewhere(self, images: Tensor, cache: Cache) -> bool:
        """Whether each image has the bits of ``cache`` in the next place of the batch, too."""
        moved = self._asked(self.model.placed(images).roll(1, 0))
        return moved.keys() == cache.keys() and all(
            torch.equal(moved[name].roll(-1, 0), value) for name, value in cache.items()
        )

    @torch.no_grad()
    def _asked(self, images: Tensor) -> Cache:
        """What a step fills for these images, which is no step: buffers that count calls do not count it."""
        cache: Cache = {}
        with autocast(self.model.device, self.precision), preserved_rng(), _preserved_buffers(self.model):
            self.model.encode(images, cache)
        return cache


class CleanQueries:
    """The queries of an experience's images under the evaluation transform, whatever training shows.

    They are computed once, in batches of the samples' order that are the same whenever a run is resumed.

    Args:
        model: the method.
        samples: streams the images of an epoch, in the order of the data set.
        count: how many there are.
        precision: see :class:`clprompt.training.Engine`.
    """

    @torch.no_grad()
    def __init__(self, model: PromptModel, samples: Samples, count: int, precision: str) -> None:
        self.rows = KeptRows(count, limit_bytes=None)
        start = 0
        for images, _ in samples():
            cache: Cache = {}
            with autocast(model.device, precision):
                model.keep_query(images, cache)
            self.rows.add(range(start, start + len(images)), cache)
            start += len(images)

    def cache(self, rows: Sequence[int]) -> Cache:
        """The values of a batch."""
        return self.rows.read(rows)

    def add(self, images: Tensor, rows: Sequence[int], cache: Cache | None) -> None:
        """Nothing: all is known."""


def keeping(
    model: PromptModel,
    training: Training,
    samples: Callable[[], Samples],
    *,
    count: int,
    epochs: int,
    is_random: bool,
    precision: str,
    moves: dict[int, bool],
) -> Keeping | CleanQueries | None:
    """What is kept while an experience is trained on; None for nothing.

    Args:
        model: the method.
        training: its settings.
        samples: gives the stream of the experience's images under the evaluation transform.
        count: see :class:`Keeping`.
        epochs: over these samples.
        is_random: the training transform draws random numbers, so that no image is seen twice.
        precision: see :class:`Keeping`.
        moves: see :class:`Keeping`.
    """
    if model.stopped or not count:
        return None
    if training.clean_query:
        return CleanQueries(model, samples(), count, precision)
    if is_random or epochs < 2 or training.mixup or training.cutmix:
        return None
    return Keeping(model, count, training.train_mb_size, precision, moves)


def _stays(cache: Cache, count: int) -> bool:
    """Whether these are values by sample that no training changes."""
    return all(len(value) == count and not value.requires_grad for value in cache.values())


@contextmanager
def _preserved_buffers(model: PromptModel) -> Iterator[None]:
    """Inside, buffers are copies; those of before, which a backward pass may need, come back as they were."""
    held = dict(model.named_buffers())

    def put(values: Mapping[str, Tensor]) -> None:
        for name, value in values.items():
            path, _, own = name.rpartition(".")
            setattr(model.get_submodule(path), own, value)

    put({name: buffer.clone() for name, buffer in held.items()})
    try:
        yield
    finally:
        put(held)


def is_random(dataset: Any) -> bool:
    """Whether the transform of a data set draws random numbers; one that does not say so may."""
    return bool(getattr(dataset, "random_transform", True))
