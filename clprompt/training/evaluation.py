"""The evaluator: fixed test sets, walked in fixed batches, with what never changes kept between evaluations.

It walks and caches; a :class:`clprompt.metrics.measure.Measure` groups samples by class and scores them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from clprompt.data.loading import Images, fixed_batches
from clprompt.data.plan import Plan
from clprompt.metrics.accuracy import Evaluation
from clprompt.metrics.label_sets import LabelSetEvaluation
from clprompt.metrics.last import LastPredictions
from clprompt.metrics.measure import Measure, measure_of
from clprompt.metrics.retrieval import check_retrieval
from clprompt.prompting.model import Cache, PromptModel, evaluating
from clprompt.prompting.text.model import TextModel
from clprompt.training.by_name import ByName
from clprompt.training.embeddings import Embeddings
from clprompt.training.finite import check_logits, check_state
from clprompt.training.precision import autocast
from clprompt.training.processes import Processes

_Held = TypeVar("_Held")


class _Walked(NamedTuple):
    """What an evaluation saw.

    Attributes:
        seen: ids of the seen classes.
        order: sample indices, [n].
        numbers: of each one's group, [n].
        logits: of each batch, (b, C), and those of the trained head, where another answered.
        by_name: with the scores by name, where they are asked for.
        embeddings: with those of all images, where they are asked for.
    """

    seen: np.ndarray
    order: np.ndarray
    numbers: np.ndarray
    logits: list[tuple[np.ndarray, np.ndarray | None]]
    by_name: ByName | None
    embeddings: Embeddings | None


class Evaluator:
    """Evaluates a model on a fixed test set, on the samples of seen classes only.

    The samples of classes that have newly been seen join behind those that are there, a sample with several
    labels when the first of them is seen, and batches are cut from that order, whatever groups they span. So
    a full batch never changes, and a value that was kept of it is, bit for bit, the one that would be
    computed again; a last batch that has grown is another one, and nothing is kept of the shorter one.

    Args:
        test: (image, target) items under the evaluation transform.
        targets: the targets of ``test``: labels [n], or multi-hot [n, C].
        groups: test indices per class group; a measure of one set of samples does without.
        measure: what is measured; by default accuracy for labels and mAP for multi-hot targets.
        batch_size: samples per forward, at most.
        workers: loader processes.
        precision: "float32", "bf16" or "fp16".
        cache_bytes: how much a model may keep between evaluations; 0 switches the cache off.
        in_turn: group number t is evaluated from experience t on, and not before; needs to be told the
            experience.
        retrieval: search among embeddings, too, where an evaluation is asked for all of its figures.
        processes: those that share the batches out; the main one calls :meth:`run` and the others
            :meth:`help`. None for one alone.

    Attributes:
        last: what the last evaluation predicted, image by image; None before there was one.

    Raises:
        DataError: targets that the measure is not defined on, or in which retrieval finds nothing.
    """

    def __init__(
        self,
        test: Images,
        targets: np.ndarray,
        groups: Sequence[np.ndarray] = (),
        *,
        measure: Measure | None = None,
        batch_size: int = 128,
        workers: int = 0,
        precision: str = "float32",
        cache_bytes: int = 2**30,
        in_turn: bool = False,
        retrieval: bool = False,
        processes: Processes | None = None,
    ) -> None:
        self.test = test
        self.processes = processes
        self.measure = measure or measure_of(targets)
        self.targets = self.measure.checked(targets)
        self.workers = workers
        self.precision = precision
        self.cache_bytes = cache_bytes
        self.groups = [np.asarray(group) for group in groups]
        self.batch_size = batch_size
        self.in_turn = in_turn
        self.retrieval = retrieval
        self._notes: list[str] = []
        if retrieval:
            note = check_retrieval(self.targets, self.groups)
            self._notes += [] if note is None else [note]
        self.last: LastPredictions | None = None
        #: The classes by the evaluation that met them first, in order: what a checkpoint has to keep.
        self.exposed: list[list[int]] = []
        self.restore([])

    def notes(self) -> list[str]:
        """What whoever starts a run should know of its evaluations, in a sentence each."""
        return list(self._notes)

    def restore(self, exposed: Sequence[Sequence[int]]) -> None:
        """Order the samples of classes that were seen in this order; forgets everything else."""
        self.exposed = []
        # number of the class group, or of the evaluation that met the samples first; sample indices
        self._joined: list[tuple[int, np.ndarray]] = []
        self._kept: dict[Hashable, Cache] = {}  # by the indices of a batch
        self._kept_bytes = 0
        self._last: int | None = None  # the experience of the last evaluation; None: all groups have come
        for classes in exposed:
            self._expose(list(classes))

    def _expose(self, classes: list[int]) -> None:
        """Let the samples join that show one of these classes and none of those before."""
        before = [c for earlier in self.exposed for c in earlier]
        joins = self.measure.shows(self.targets, classes) & ~self.measure.shows(self.targets, before)  # (n,)
        if self.measure.by_group:
            self._joined += ((number, group[joins[group]]) for number, group in enumerate(self.groups))
        else:
            self._joined.append((len(self.exposed), np.flatnonzero(joins)))
        self.exposed.append(classes)

    def _follow(self, seen: np.ndarray) -> None:
        """Bring the samples in line with the seen classes."""
        met = np.array([c for classes in self.exposed for c in classes], dtype=np.int64)
        if not np.isin(met, seen).all():  # another model, which has seen less
            self.restore([])
            met = met[:0]
        new = np.setdiff1d(seen, met)
        if new.size:
            self._expose(new.tolist())

    def _evaluated(self) -> tuple[np.ndarray, np.ndarray]:
        """What an evaluation is over: sample indices in their order, and the number of each one's group."""
        parts = self._joined
        if self.in_turn and self._last is not None:
            parts = [part for part in parts if part[0] <= self._last]
        none = np.zeros(0, dtype=np.int64)
        order = np.concatenate([none, *(indices for _, indices in parts)])
        return order, np.concatenate([none, *(np.full(len(indices), number) for number, indices in parts)])

    def _batches(self, order: np.ndarray) -> list[list[int]]:
        """Sample indices, cut into batches."""
        return [order[at : at + self.batch_size].tolist() for at in range(0, len(order), self.batch_size)]

    def sample(self, limit: int) -> Iterator[Tensor]:
        """At most ``limit`` of the images that the last evaluation saw, evenly spaced, in batches."""
        order, _ = self._evaluated()
        batches = self._batches(order[:: max(1, -(-len(order) // limit))])
        for images, *_ in fixed_batches(self.test, batches, self.workers):
            yield images

    def few(self, count: int) -> list[Tensor]:
        """A few images of each class group that the last evaluation saw, evenly spread, always the same ones.

        An image with labels of several groups stands in the one that was seen first.
        """
        order, numbers = self._evaluated()
        parts = [np.sort(order[numbers == number]) for number in np.unique(numbers)]
        places = [np.linspace(0, len(part) - 1, min(count, len(part))).astype(int) for part in parts]
        batches = [part[np.unique(at)].tolist() for part, at in zip(parts, places, strict=True)]
        return [images for images, *_ in fixed_batches(self.test, batches)]

    @torch.no_grad()
    def run(
        self, model: PromptModel, experience: int | None = None, *, beyond: bool = False
    ) -> Evaluation | LabelSetEvaluation:
        """Evaluate on the samples of seen classes; the model's mode is restored afterwards.

        Where a plug-in answers in place of the trained head, that is scored too, in the same walk.

        Args:
            model: on its device.
            experience: the index of the current one, for groups that come in turn; None for all of them.
            beyond: what goes beyond the classes seen as well: score every class by its name, where it has
                one, and search among the embeddings of all images, where ``retrieval`` is on.

        Raises:
            ClpromptError: the method's state or a logit of a seen class is not finite.
        """
        self.last = None  # what was predicted before goes before more is
        walked = self._walk(model, experience, beyond)
        assert walked is not None, "in several processes the main one runs an evaluation"
        seen, order, numbers, logits, by_name, embeddings = walked
        groups = [np.flatnonzero(numbers == number) for number in range(len(self.groups))]
        targets, columns = self.targets[order], len(model.seen)
        scores = _stacked([predicted for predicted, _ in logits], columns)
        trained = [of_head for _, of_head in logits if of_head is not None]
        of_trained = _stacked(trained, columns) if trained else None
        self.last = self.measure.predictions(order, targets, seen, scores, of_trained)
        evaluation = self.measure.score(scores, targets, seen, groups)
        if by_name is not None:
            of_names = by_name.score(self.groups).record()
            evaluation = replace(evaluation, names=of_names)  # type: ignore[arg-type, call-arg]
        if embeddings is not None:
            searches = embeddings.search(seen, order)
            evaluation = replace(evaluation, retrieval=searches)  # type: ignore[arg-type, call-arg]
        if of_trained is None:
            return evaluation
        trained_head = self.measure.score(of_trained, targets, seen, groups)
        return replace(evaluation, trained_head=trained_head)  # type: ignore[arg-type]

    @torch.no_grad()
    def help(self, model: PromptModel, experience: int | None = None, *, beyond: bool = False) -> None:
        """Do this process's part of an evaluation that the main process runs; arguments as for it."""
        self._walk(model, experience, beyond)

    def _walk(self, model: PromptModel, experience: int | None, beyond: bool) -> _Walked | None:
        """Predict the samples of seen classes, each process some batches; None elsewhere than in main."""
        check_state(model, "no evaluation is recorded")
        seen = np.flatnonzero(model.seen.cpu().numpy())
        self._follow(seen)
        self._last = experience
        order, numbers = self._evaluated()
        batches, coming = self._batches(order), self._batches(self._coming(order))
        self._forget_others({*map(tuple, batches), *map(tuple, coming)})
        logits: dict[Hashable, tuple[np.ndarray, np.ndarray | None]] = {}
        with evaluating(model):
            with autocast(model.device, self.precision):
                by_name = self._by_name(model) if beyond else None
            embeddings = Embeddings(model, self.targets) if beyond and self.retrieval else None
            asked = {} if embeddings is None else {"embed": True}
            own = self._own(batches)
            pinned = model.device.type == "cuda"
            loaded = fixed_batches(self.test, own, self.workers, pin_memory=pinned)
            for batch, (images, *_) in zip(own, loaded, strict=True):
                images = model.placed(images)
                with self._walking(model, batch, by_name) as cache:
                    answer = model.predictions(images, cache, **asked)
                    if by_name is not None:
                        by_name.add(batch, images, cache)
                    if embeddings is not None:
                        embeddings.add(batch, images, cache, answer.embeddings)
                arrays: list[np.ndarray | None] = []
                for predicted in (answer.logits, answer.trained):
                    if predicted is not None:
                        check_logits(model, predicted, images, partial(_name, batch))
                    arrays.append(None if predicted is None else predicted.float().cpu().numpy())
                logits[tuple(batch)] = (arrays[0], arrays[1])  # type: ignore[assignment]
            later = self._own(coming) if by_name or embeddings else []
            loaded = fixed_batches(self.test, later, self.workers)
            for batch, (images, *_) in zip(later, loaded, strict=True):
                with self._walking(model, batch, by_name) as cache:
                    images = model.placed(images)
                    if by_name is not None:
                        by_name.add(batch, images, cache)
                    if embeddings is not None:
                        embeddings.add(batch, images, cache)
        gathered = self._gathered(logits, batches)
        if by_name is not None:
            by_name.batches = self._gathered(by_name.batches, batches + coming) or {}
        if embeddings is not None:
            embeddings.batches = self._gathered(embeddings.batches, batches + coming) or {}
        if gathered is None:
            return None
        return _Walked(seen, order, numbers, list(gathered.values()), by_name, embeddings)

    def _own(self, batches: Sequence[list[int]]) -> list[list[int]]:
        """The batches that this process has to do with."""
        if self.processes is None:
            return list(batches)
        return list(batches[self.processes.rank :: self.processes.count])

    def _gathered(
        self, held: dict[Hashable, _Held], batches: Sequence[Sequence[int]]
    ) -> dict[Hashable, _Held] | None:
        """What all processes hold of these batches, in order; None elsewhere than in the main one."""
        if self.processes is None:
            return held
        parts = self.processes.on_main(held)
        if parts is None:
            return None
        every = {key: value for part in parts for key, value in part.items()}
        return {key: every[key] for key in map(tuple, batches)}

    def _by_name(self, model: PromptModel) -> ByName | None:
        """What scores all classes by their names.

        None where no text tower reads names, a class of the test set has none, or groups are no class groups.
        """
        if not isinstance(model, TextModel) or not self.measure.by_group or self.in_turn:
            return None
        classes = np.unique(self.targets).tolist()
        if getattr(self.measure, "group_names", None) or not all(c in model.names for c in classes):
            return None
        return ByName(model, self.targets)

    def _coming(self, order: np.ndarray) -> np.ndarray:
        """The samples of groups that are still to come; the last group first, as those in front go first."""
        groups = np.concatenate([order[:0], *reversed(self.groups)])
        return groups[~np.isin(groups, order)]

    def _forget_others(self, keys: Collection[Hashable]) -> None:
        """Keep nothing of batches that are no more: one that has grown, or of classes that were to come."""
        for key in self._kept.keys() - keys:
            self._kept_bytes -= _size(self._kept.pop(key))

    @contextmanager
    def _walking(
        self, model: PromptModel, batch: Sequence[int], by_name: ByName | None
    ) -> Iterator[Cache | None]:
        """Around what is made of one batch, which is encoded once where names are scored beside."""
        once = nullcontext() if by_name is None else by_name.model.encoded_once()
        with self._keeping(tuple(batch)) as cache, autocast(model.device, self.precision), once:
            yield cache

    @contextmanager
    def _keeping(self, key: Hashable) -> Iterator[Cache | None]:
        """What was kept of a batch, for a model to read and fill; kept as far as there is room."""
        cache: Cache | None = self._kept.get(key, {}) if self.cache_bytes else None
        before = _size(cache)
        yield cache
        if cache is not None:
            if self._kept.pop(key, None) is not None:  # a model may add to what it kept
                self._kept_bytes -= before
            if self._kept_bytes + _size(cache) <= self.cache_bytes:
                self._kept[key] = cache
                self._kept_bytes += _size(cache)


@dataclass(frozen=True)
class Shown:
    """What the last evaluation saw, for a model to look at: ``sample`` and ``few``, placed for it."""

    evaluator: Evaluator
    limit: int
    placed: Callable[[Tensor], Tensor]

    def __call__(self) -> Iterator[Tensor]:
        return map(self.placed, self.evaluator.sample(self.limit))

    def groups(self, count: int) -> list[Tensor]:
        return list(map(self.placed, self.evaluator.few(count)))


def evaluate(
    model: PromptModel,
    test: Images,
    *,
    measure: Measure | None = None,
    batch_size: int = 128,
    precision: str = "float32",
) -> Evaluation | LabelSetEvaluation:
    """What a model is worth on the seen classes of a test set.

    Args:
        model: on the device where it shall be evaluated.
        test: (image, target) items under the evaluation transform, with ``targets``: labels [n], or multi-hot
            [n, C].
        measure: what is measured; by default accuracy for labels and mAP for multi-hot targets.
        batch_size: see :class:`Evaluator`.
        precision: see :class:`Evaluator`.

    Returns:
        ``accuracy`` of labels, ``scores`` (mAP, CF1, OF1 and others) of multi-hot targets; ``trained_head``
        is the same of the trained head where a plug-in answered in its place.
    """
    targets = np.asarray(test.targets)  # type: ignore[attr-defined]
    everything = [np.arange(len(targets))]
    arguments: dict[str, Any] = {"measure": measure, "batch_size": batch_size, "precision": precision}
    return Evaluator(test, targets, everything, cache_bytes=0, **arguments).run(model)


def evaluator_for(
    plan: Plan, test: Images, targets: np.ndarray, *, online: bool = False, **arguments: Any
) -> Evaluator:
    """The evaluator of a stream.

    Args:
        plan: the stream, with the groups of its metrics and, for multi-hot targets, its ``threshold``.
        test: (image, target) items under the evaluation transform, with ``domains`` [n] for groups that go
            by them.
        targets: the targets of ``test``, [n] or [n, C].
        online: the run is evaluated while its stream goes on.
        **arguments: see :class:`Evaluator`.
    """
    domains = getattr(test, "domains", None)
    measure = measure_of(
        targets,
        online,
        threshold=plan.threshold,
        group_names=plan.group_names(domains),
        base_classes=plan.base_classes,
    )
    groups = plan.test_groups(np.asarray(targets), domains) if measure.by_group else ()
    return Evaluator(test, targets, groups, measure=measure, in_turn=plan.in_turn, **arguments)


def _name(batch: Sequence[int], row: int) -> str:
    """Words for an image of a batch of the test set."""
    return f"test image {batch[row]}"


def _stacked(parts: Sequence[np.ndarray], classes: int) -> np.ndarray:
    """Logits [n, C] of batches [b, C]; a class that a batch does not know yet is unseen there."""
    logits = np.full(
        (sum(map(len, parts)), max([classes, *(part.shape[1] for part in parts)])), -np.inf, np.float32
    )
    start = 0
    for part in parts:
        logits[start : start + len(part), : part.shape[1]] = part
        start += len(part)
    return logits


def _size(cache: Cache | None) -> int:
    return sum(value.numel() * value.element_size() for value in (cache or {}).values())
