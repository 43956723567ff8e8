"""The evaluator: fixed test sets, walked in fixed batches, with what never changes kept between evaluations."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clprompt.data.loading import Images, fixed_batches
from clprompt.errors import DataError
from clprompt.prompting.model import Cache, PromptModel
from clprompt.training.precision import autocast


@dataclass(frozen=True)
class Evaluation:
    """Accuracy on the test samples of seen classes.

    Attributes:
        accuracy: over samples; nan when no class was seen.
        groups: per class group; None where no class of the group was seen.
        confusion: (target, predicted) -> count.
    """

    accuracy: float
    groups: list[float | None]
    confusion: Counter[tuple[int, int]]

    def record(self) -> dict[str, Any]:
        """The JSON form, see :mod:`clprompt.tracking.tracker`."""
        cells = sorted([target, predicted, count] for (target, predicted), count in self.confusion.items())
        return {"accuracy": self.accuracy, "groups": self.groups, "confusion": cells}


class Evaluator:
    """Evaluates a model on class groups of a fixed test set, on the samples of seen classes only.

    The samples of classes that have newly been seen form batches of their own behind those that are there. Batches
    never change, so a cached value is, bit for bit, the one that would be computed again.

    Args:
        test: (image, label) items under the evaluation transform.
        targets: the labels of ``test``, [n].
        groups: test indices per class group.
        batch_size: samples per forward.
        workers: loader processes.
        precision: "float32" or "bf16".
        cache_bytes: how much a model may keep between evaluations; 0 switches the cache off.

    Raises:
        DataError: multi-hot targets, for which see :mod:`clprompt.training.label_set_evaluation`.
    """

    def __init__(
        self,
        test: Images,
        targets: np.ndarray,
        groups: Sequence[np.ndarray],
        *,
        batch_size: int = 128,
        workers: int = 0,
        precision: str = "float32",
        cache_bytes: int = 2**30,
    ) -> None:
        self.test = test
        self.targets = np.asarray(targets)
        if self.targets.ndim != 1:
            raise DataError(
                "accuracy is not defined on multi-hot targets; evaluate them by a MultiLabelEvaluator"
            )
        self.workers = workers
        self.precision = precision
        self.cache_bytes = cache_bytes
        self.groups = [np.asarray(group) for group in groups]
        self.batch_size = batch_size
        #: The classes by the evaluation that met them first, in order: what a checkpoint has to keep.
        self.exposed: list[list[int]] = []
        self.restore([])

    def restore(self, exposed: Sequence[Sequence[int]]) -> None:
        """Form the batches of classes that were seen in this order; forgets everything else."""
        self.exposed = []
        self._chunks: list[tuple[int, list[int]]] = []  # class group, sample indices
        self._kept: dict[int, Cache] = {}
        self._kept_bytes = 0
        for classes in exposed:
            self._expose(list(classes))

    def _expose(self, classes: list[int]) -> None:
        self.exposed.append(classes)
        for number, group in enumerate(self.groups):
            new = group[np.isin(self.targets[group], classes)]
            pieces = (new[i : i + self.batch_size].tolist() for i in range(0, len(new), self.batch_size))
            self._chunks += ((number, piece) for piece in pieces)

    def _follow(self, seen: np.ndarray) -> None:
        """Bring the batches in line with the seen classes."""
        known = np.array([c for classes in self.exposed for c in classes], dtype=np.int64)
        if not np.isin(known, seen).all():  # another model, which has seen less
            self.restore([])
            known = known[:0]
        new = np.setdiff1d(seen, known)
        if new.size:
            self._expose(new.tolist())

    def sample(self, limit: int) -> Iterator[Tensor]:
        """At most ``limit`` of the images that the last evaluation saw, evenly spaced, in batches."""
        order = [index for _, batch in self._chunks for index in batch]
        chosen = order[:: max(1, -(-len(order) // limit))]
        batches = [chosen[i : i + self.batch_size] for i in range(0, len(chosen), self.batch_size)]
        for images, *_ in fixed_batches(self.test, batches, self.workers):
            yield images

    def few(self, count: int) -> list[Tensor]:
        """A few images of each class group that the last evaluation saw, evenly spread, always the same ones."""
        known = [c for classes in self.exposed for c in classes]
        met = [group[np.isin(self.targets[group], known)] for group in self.groups if self.targets.ndim == 1]
        places = [np.linspace(0, len(group) - 1, min(count, len(group))).astype(int) for group in met]
        chosen = [group[np.unique(at)].tolist() for group, at in zip(met, places, strict=True) if len(group)]
        return [images for images, *_ in fixed_batches(self.test, chosen)]

    @torch.no_grad()
    def run(self, model: PromptModel) -> Evaluation:
        """Evaluate on the samples of seen classes; the model's mode is restored afterwards."""
        seen = np.flatnonzero(model.seen.cpu().numpy())
        self._follow(seen)
        batches = [batch for _, batch in self._chunks]
        device = model.seen.device
        was_training = model.training
        model.eval()
        confusion: Counter[tuple[int, int]] = Counter()
        hits = np.zeros((len(self.groups), 2), dtype=np.int64)  # right, all
        try:
            loader = fixed_batches(self.test, batches, self.workers)
            for key, ((group, batch), (images, *_)) in enumerate(zip(self._chunks, loader, strict=True)):
                predicted = self._logits(model, images.to(device), key).argmax(1).cpu().numpy()
                target = self.targets[batch]
                confusion.update(zip(target.tolist(), predicted.tolist(), strict=True))
                hits[group] += int((predicted == target).sum()), len(batch)
        finally:
            model.train(was_training)
        right, total = hits.sum(0)
        return Evaluation(
            accuracy=float(right / total) if total else float("nan"),
            groups=[float(r / n) if n else None for r, n in hits],
            confusion=confusion,
        )

    def _logits(self, model: PromptModel, images: Tensor, key: int) -> Tensor:
        cache: Cache | None = self._kept.get(key, {}) if self.cache_bytes else None
        before = _size(cache)
        with autocast(images.device, self.precision):
            logits = model(images, cache)
        if cache is not None:
            if self._kept.pop(key, None) is not None:  # a model may add to what it kept
                self._kept_bytes -= before
            if self._kept_bytes + _size(cache) <= self.cache_bytes:
                self._kept[key] = cache
                self._kept_bytes += _size(cache)
        return logits


@dataclass(frozen=True)
class Shown:
    """What the last evaluation saw, for a model to look at: ``sample`` and ``few`` on the model's device."""

    evaluator: Evaluator
    limit: int
    device: torch.device

    def __call__(self) -> Iterator[Tensor]:
        return (images.to(self.device) for images in self.evaluator.sample(self.limit))

    def groups(self, count: int) -> list[Tensor]:
        return [images.to(self.device) for images in self.evaluator.few(count)]


def evaluate(
    model: PromptModel, test: Images, *, batch_size: int = 128, precision: str = "float32"
) -> Evaluation:
    """Accuracy of a model on the seen classes of a test set.

    Args:
        model: on the device where it shall be evaluated.
        test: (image, label) items under the evaluation transform, with ``targets``.
        batch_size, precision: see :class:`Evaluator`.
    """
    targets = np.asarray(test.targets)  # type: ignore[attr-defined]
    everything = [np.arange(len(targets))]
    return Evaluator(
        test, targets, everything, batch_size=batch_size, precision=precision, cache_bytes=0
    ).run(model)


def _size(cache: Cache | None) -> int:
    return sum(value.numel() * value.element_size() for value in (cache or {}).values())
