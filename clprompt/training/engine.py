"""The one training loop. The command line, ``clprompt.fit`` and the Avalanche strategy all run these steps.

The order of data, the augmentation and the learning rate are functions of the seed and the position in the
stream, so a run can be entered again at any batch: :meth:`Engine.state` holds the position, the method's
tensors and the optimizer's moments, and that is all.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Annotated, Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from clprompt import schema
from clprompt.data.loading import Epochs, Images, numbered, sample_stream, subset
from clprompt.errors import CheckpointError, Interrupted, ProtocolError
from clprompt.metrics.accuracy import Evaluation
from clprompt.metrics.label_sets import LabelSetEvaluation
from clprompt.prompting.model import Cache, PromptModel, Step, evaluating
from clprompt.prompting.plugin import Samples
from clprompt.schema import above, at_least
from clprompt.seeding import rng_state, set_rng_state
from clprompt.targets import is_label_sets, visible
from clprompt.training import optim
from clprompt.training.compiling import compile_where_asked
from clprompt.training.evaluation import Evaluator, Shown
from clprompt.training.finite import FiniteWatch
from clprompt.training.kept import CleanQueries, Keeping, check_clean_query, is_random, keeping
from clprompt.training.mixing import check_mixing, soften
from clprompt.training.online import marks, stretch
from clprompt.training.precision import autocast, gradient_scaler
from clprompt.training.processes import Processes, check_several
from clprompt.training.settings import Online, Training
from clprompt.training.steps import begin, check_stream, receive, train_step

#: Evaluation images that a model may look at after an experience.
_PROBED = 1024


class Listener(Protocol):
    """What the engine tells while it runs; a run folder's tracker is one.

    Who sets ``diagnostics`` to None is not told any, and a model that nobody listens to is not asked.
    """

    def record(self, record: Mapping[str, Any], /) -> None: ...

    def speed(self, step: int, images_per_second: float, /) -> None: ...

    @property
    def diagnostics(self) -> Callable[[int, Mapping[str, Any]], None] | None: ...


class ProgressLike(Protocol):
    """A progress display; whoever makes a run starts it, the engine tells the rest."""

    def turn(self, number: int, total: int, /) -> None: ...

    def start(self, description: str, total_experiences: int, /) -> None: ...

    def experience(self, index: int, total: int, /) -> None: ...

    def epoch(self, epoch: int, epochs: int, steps: int, /) -> None: ...

    def step(self) -> None: ...

    def evaluated(self, text: str, /) -> None: ...

    def message(self, text: str, /) -> None: ...


_Count = Annotated[int, at_least(0)]


@dataclass
class Position:
    """Where in the stream a run is: everything before has been done.

    Attributes:
        experience: that of the next batch to train on.
        epoch: its epoch.
        batch: its number within the epoch.
        step: optimizer steps made.
        samples: training samples received.
        evaluated: samples at the last periodic evaluation (online only).
    """

    experience: _Count = 0
    epoch: _Count = 0
    batch: _Count = 0
    step: _Count = 0
    samples: _Count = 0
    evaluated: _Count = 0

    def __str__(self) -> str:
        return f"experience {self.experience + 1}, epoch {self.epoch + 1}, batch {self.batch + 1}"


@dataclass(frozen=True)
class _Scaler:
    """What a gradient scaler remembers."""

    scale: Annotated[float, above(0)]
    growth_tracker: _Count


@dataclass(frozen=True)
class _State:
    """What :meth:`Engine.state` returns."""

    position: dict[str, Any]
    model: dict[str, Tensor]
    exposed: list[list[_Count]]
    rng: dict[str, Any]
    optimizer: dict[str, Any] | None
    is_ordered: bool = False  # a state from before there was such a stream goes on as it began
    scaler: dict[str, Any] | None = None  # of a precision that has none


class Engine:
    """Trains a model on a stream and evaluates it.

    Args:
        model: on the device where it shall train.
        train: training data under the training transform.
        indices: sample indices into ``train``, one array per experience.
        classes: the classes of each experience; needed for methods with boundaries.
        evaluator: evaluates after each experience; None for no evaluation.
        clean: the training data under the evaluation transform, for methods that look at it before training;
            ``train`` itself by default.
        training: the section of that name.
        online: the section of that name; None for training experience by experience.
        is_ordered: the indices of an experience are in their final order, for every epoch; a model that
            revisits earlier data shuffles them all the same.
        seed: decides data order and augmentation.
        precision: "float32", "bf16" or "fp16".
        listeners: get every record.
        progress: a display.
        checkpoint: called at every point from which the run may be resumed.
        stop: asked after each batch; a signal number has a checkpoint written and Interrupted raised.
        processes: those that train the same model together, each on a part of every batch; the main one
            alone tells listeners, ``checkpoint`` is called in all. ``stop`` must answer all of them alike.
            None for one alone.

    Raises:
        ProtocolError: online training of a method that needs boundaries.
        ConfigError: mixed images for a plug-in that counts, a stream that the method cannot finish, or a
            precision that the device does not have.
        ProcessError: from the loop, another process has ended, or holds another model.
    """

    def __init__(
        self,
        model: PromptModel,
        train: Images,
        indices: Sequence[np.ndarray],
        classes: Sequence[Sequence[int]],
        *,
        evaluator: Evaluator | None = None,
        clean: Images | None = None,
        training: Training | None = None,
        online: Online | None = None,
        is_ordered: bool = False,
        seed: int = 0,
        precision: str = "float32",
        listeners: Sequence[Listener] = (),
        progress: ProgressLike | None = None,
        checkpoint: Callable[[], None] | None = None,
        stop: Callable[[], int | None] = lambda: None,
        processes: Processes | None = None,
    ) -> None:
        if online is not None and model.boundaries == "required":
            raise ProtocolError(
                f"{type(model).__name__} needs experience boundaries, which an online stream does not show; "
                "use its boundary-free form (boundary_free=true) where it has one"
            )
        self.model = model
        self.train = train
        self.clean = train if clean is None else clean
        self.indices = indices
        self.classes = classes
        self.evaluator = evaluator
        self.training = training or Training()
        check_mixing(model, self.training, told=online is None)
        check_clean_query(model, self.training, online=online is not None)
        compile_where_asked(model, self.training)
        self.online = online
        self.is_ordered = is_ordered
        check_stream(model, classes, epochs=self.training.train_epochs, online=online is not None)
        self.seed = seed
        self.precision = precision
        self.scaler = gradient_scaler(model.device, precision)
        check_several(processes, self.training)
        if processes and not processes.is_main:
            listeners, progress = (), None
        self.listeners = listeners
        self.progress = progress
        self.checkpoint = checkpoint or (lambda: None)
        self.stop = stop
        self.processes = processes
        self.position = Position()
        self.optimizer: Optimizer | None = None
        self.watch = FiniteWatch(model)
        self._moves: dict[int, bool] = {}
        self._epochs: Epochs | None = None  # of the current experience
        self._saved = 0
        self._clock = time.perf_counter()
        self._since = 0

    # ------------------------------------------------------------------ the loop

    def run(self) -> None:
        """Train from the current position to the end of the stream."""
        while self.position.experience < len(self.indices):
            self.run_experience()

    def run_experience(self) -> None:
        """Train on the current experience from the current position, then evaluate."""
        at, online = self.position, self.online
        if self.model.revisits == "last" and at.experience + 1 < len(self.indices):
            at.experience += 1
            return
        size, cut = self.training.train_mb_size, self._is_cut()
        part = self._part()
        if self.progress:
            self.progress.experience(at.experience, len(self.indices))
        if at.epoch == 0 and at.batch == 0:
            self._begin()
        epochs = 1 if online else self.training.train_epochs
        if self.model.stopped:
            epochs = 0
            self._receive_untrained(part)
        steps = -(-len(part) // size)
        self.model.train()
        kept = self._keeping(len(part), epochs)
        for epoch in range(at.epoch, epochs):
            self.model.start_epoch(epoch, epochs)
            if self.progress:
                self.progress.epoch(epoch, epochs, steps)
            batches = self._batches(part, epoch, cut and self._shuffles())
            self._clock, self._since = time.perf_counter(), 0
            for rows, (images, targets, *_) in batches:
                cached = kept.cache(rows) if kept else None
                with self._encoding_part(min(size, len(part) - at.batch * size)):
                    self._train_batch(images, targets, epoch * steps + at.batch, epochs * steps, cached)
                if kept:
                    kept.add(images, rows, cached)
                at.batch += 1
                self._between_batches()
            at.epoch, at.batch = epoch + 1, 0
        self._epochs = None
        self.watch.check()
        with autocast(self.model.device, self.precision):  # plug-ins look at features as they are deployed
            self.model.end_experience(self._samples() if self._has_experiences() else None)
        self._evaluate("experience")
        self._tell(self.model.diagnostics)
        self._tell_of_images()
        at.experience, at.epoch, at.batch = at.experience + 1, 0, 0
        self._save()
        signal = self.stop()  # it may have come during the evaluation
        if signal is not None:
            raise Interrupted(signal)

    def _receive_untrained(self, part: np.ndarray) -> None:
        """Take in an experience on which nothing is trained."""
        receive(self.model, None, torch.as_tensor(sorted(self._arrived(self.classes))))
        self.position.samples += len(part)
        self.optimizer = None

    def _shuffles(self) -> bool:
        """Whether the samples of an experience are trained on in another order than they come in."""
        return not self.is_ordered or self.model.revisits != "never"

    def _is_cut(self) -> bool:
        """Whether the stream is trained on experience by experience."""
        return self.online is None or self.online.cut_at_sessions

    def _part(self) -> np.ndarray:
        """The samples of the current experience."""
        if self._is_cut():
            return self._arrived(self.indices)
        at, size = self.position.experience, self.training.train_mb_size
        return stretch(self.indices, at, size, self.seed, shuffle=self._shuffles())

    def _encoding_part(self, total: int) -> AbstractContextManager[None]:
        """Around a step on a batch of so many images, of which each process holds a part."""
        return self.model.encoding_part(self.processes.batch(total) if self.processes else None)

    def _batches(
        self, part: np.ndarray, epoch: int, shuffle: bool
    ) -> Iterable[tuple[Sequence[int], Sequence[Any]]]:
        """What is left of an epoch over these samples, batch by batch: places in ``part``, and the batch."""
        if self._epochs is None:
            self._epochs = Epochs(
                subset(self.train, part),
                seed=self.seed,
                experience=self.position.experience,
                batch_size=self.training.train_mb_size,
                workers=self.training.workers,
                shuffle=shuffle,
                pin_memory=self.model.device.type == "cuda",
                part=(self.processes.rank, self.processes.count) if self.processes else (0, 1),
            )
        return numbered(self._epochs.epoch(epoch, skip=self.position.batch))

    def _keeping(self, count: int, epochs: int) -> Keeping | CleanQueries | None:
        """What the epochs over an experience's samples keep; dropped with the experience, and never saved."""
        return keeping(
            self.model,
            self.training,
            self._samples,
            count=count,
            epochs=epochs,
            is_random=is_random(self.train),
            precision=self.precision,
            moves=self._moves,
        )

    def _arrived(self, parts: Sequence[Any]) -> np.ndarray:
        """What training may use now: the experience's part, or all so far for a model that revisits them."""
        now = self.position.experience
        first = now if self.model.revisits == "never" else 0
        return np.concatenate([np.asarray(part) for part in parts[first : now + 1]])

    def _has_experiences(self) -> bool:
        """Whether the loop has experiences, and somebody wants to know of them."""
        return self.online is None and self.model.wants_experiences()

    def _samples(self) -> Samples:
        """Streams what the experience trains on, with visible labels, under the evaluation transform."""
        clean = subset(self.clean, self._arrived(self.indices))
        classes, device = self._arrived(self.classes), self.model.device

        def samples() -> Iterator[tuple[Tensor, Tensor]]:
            for images, targets in sample_stream(clean, self.training.eval_mb_size, self.training.workers):
                yield self.model.placed(images), visible(targets.to(device), classes)

        return samples

    def _begin(self) -> None:
        begun = self._has_experiences() and begin(self.model, self._arrived(self.classes), self._samples())
        if begun:
            self._tell(self.model.opening_diagnostics)
        if self.processes:
            self.processes.check_same(self.model.method_state(), self.position.experience + 1)
        if self.optimizer is None or (begun and self.model.optimizer_reset == "experience"):
            self.optimizer = optim.build(self.model, self.training)
        else:
            optim.sync(self.optimizer, self.model)

    def _train_batch(
        self, images: Tensor, targets: Tensor, step: int, steps: int, cached: Cache | None
    ) -> None:
        at, received = self.position, images
        targets = self.model.whole(targets)
        images = self.model.placed(images)  # targets are looked at first, and travel later
        if is_label_sets(targets):  # the classes of an experience are not looked at otherwise
            targets = visible(targets, self._arrived(self.classes))
        receive(self.model, self.optimizer, targets)
        at.samples += len(targets)
        iterations = self.online.iterations if self.online else 1
        if iterations > 1 and not (self.training.mixup or self.training.cutmix):
            cached = {}  # of the very same images in each of them
        for iteration in range(iterations):
            lr = self.training.lr
            if self.optimizer is not None:
                lr = optim.set_learning_rate(
                    self.optimizer,
                    self.training.schedule,
                    step,
                    steps,
                    self.training.warmup,
                    epochs=1 if self.online else self.training.train_epochs,
                )
            where = (at.experience, step, iteration)
            mixed, soft = soften(
                images,
                targets,
                self.training,
                self.model.num_classes,
                self.seed,
                *where,
                part=self.model.part,
            )
            with self.watch.step(received, at.step + 1, at.experience + 1):
                result = train_step(
                    self.model,
                    self.optimizer,
                    mixed,
                    targets,
                    clip_grad=self.training.clip_grad,
                    precision=self.precision,
                    soft=soft,
                    cached=cached,
                    scaler=self.scaler,
                )
            self.watch.note(result, received, at.step + 1, at.experience + 1)
            self._stepped(result, targets, lr)
        self._since += len(targets)
        if self.progress:
            self.progress.step()

    def _stepped(self, result: Step, targets: Tensor, lr: float) -> None:
        """Count an optimizer step, and record it where its turn has come."""
        self.position.step += 1
        if (self.position.step - 1) % self.training.log_every == 0:
            self._log(result, targets, lr)

    def _between_batches(self) -> None:
        at, online = self.position, self.online
        if online and online.eval_every and at.samples > at.evaluated + online.eval_every:
            at.evaluated += online.eval_every
            self._evaluate("anytime")
        every = self.training.checkpoint_every
        if every and at.step - self._saved >= every:
            self._save()
        signal = self.stop()
        if signal is not None:
            self._save()
            raise Interrupted(signal)

    def _save(self) -> None:
        self.watch.check_state()  # a checkpoint never holds what a broken step left
        self._saved = self.position.step
        self.checkpoint()

    # ------------------------------------------------------------------ what is told

    def _evaluate(self, when: str) -> Evaluation | LabelSetEvaluation | None:
        self.watch.check()
        if self.evaluator is None:
            return None
        at = self.position
        beyond = when == "experience"
        if self.processes and not self.processes.is_main:
            self.evaluator.help(self.model, at.experience, beyond=beyond)
            return None
        evaluation = self.evaluator.run(self.model, at.experience, beyond=beyond)
        record = {
            "kind": "evaluation",
            "when": when,
            "step": at.step,
            "samples": at.samples,
            "experience": at.experience,
            **evaluation.record(),
            **(marks(when, at.evaluated) if self.online else {}),
        }
        if when == "anytime":
            for key in ("confusion", "group_names"):
                record.pop(key, None)
            record.get("trained_head", {}).pop("per_class", None)
        for listener in self.listeners:
            listener.record(record)
        self._clock, self._since = time.perf_counter(), 0
        return evaluation

    def _tell(self, ask: Callable[[], Mapping[str, Any]]) -> None:
        """What the model says of itself, to whoever listens; nobody is asked where nobody does."""
        listening = [listener.diagnostics for listener in self.listeners if listener.diagnostics is not None]
        values = ask() if listening else {}
        for diagnostics in listening if values else ():
            diagnostics(self.position.experience + 1, values)

    @torch.no_grad()
    def _tell_of_images(self) -> None:
        """What the model says of evaluation images; drawings are made, where they are, in eval mode too."""
        if self.evaluator is not None:
            shown = Shown(self.evaluator, _PROBED, self.model.placed)
            with evaluating(self.model):
                self._tell(lambda: self.model.probe(shown))

    def _log(self, result: Step, targets: Tensor, lr: float) -> None:
        at = self.position
        self.watch.check()
        accuracy = None
        if not is_label_sets(targets):
            accuracy = float((result.logits.argmax(1) == targets.to(result.logits.device)).float().mean())
        terms = {
            "loss": float(result.loss.detach()),
            **{name: float(value) for name, value in result.terms.items()},
        }
        record = {
            "kind": "train",
            "step": at.step,
            "samples": at.samples,
            "experience": at.experience,
            "epoch": at.epoch,
            "terms": terms,
            "accuracy": accuracy,
            "lr": lr,
        }
        seconds = time.perf_counter() - self._clock
        for listener in self.listeners:
            listener.record(record)
            if self._since and seconds > 0:
                listener.speed(at.step, self._since / seconds)
        self._clock, self._since = time.perf_counter(), 0

    # ------------------------------------------------------------------ state

    def state(self) -> dict[str, Any]:
        """Everything from which the run continues to the same bits, tensors and plain values only."""
        return {
            "position": dict(vars(self.position)),
            "model": {
                name: value.detach().cpu().clone() for name, value in self.model.method_state().items()
            },
            "optimizer": None
            if self.optimizer is None
            else optim.optimizer_state(self.optimizer, self.model),
            "exposed": list(self.evaluator.exposed) if self.evaluator else [],
            "rng": rng_state(),
            "is_ordered": self.is_ordered,
            **({} if self.scaler is None else {"scaler": _scaler_state(self.scaler)}),
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Continue from a saved state.

        Raises:
            ClpromptError: it is no state of an engine, or not of this stream and model.
            Exception: whatever torch and a method raise over tensors that are not theirs.
        """
        held = schema.held(_State, state, "engine")
        position = {**dict.fromkeys(vars(Position())), **held["position"]}  # null for what is missing
        self.is_ordered = held["is_ordered"]
        self.position = Position(**schema.held(Position, position, "engine.position"))
        self._check_position()
        self.model.load_state_dict(held["model"])
        for name, value in self.model.method_state().items():
            saved = held["model"][name]
            if (saved.dtype, saved.shape) != (value.dtype, value.shape):
                raise CheckpointError(
                    f"engine.model.{name} is {saved.dtype} {list(saved.shape)}, "
                    f"not {value.dtype} {list(value.shape)}"
                )
        self._epochs = None
        self.optimizer = None
        is_inside = bool(self.position.epoch or self.position.batch)
        fresh = optim.build(self.model, self.training)
        if held["optimizer"] is not None:
            self.optimizer = fresh
            if fresh is not None:
                trained = optim.names(fresh)
                optim.load_optimizer_state(fresh, self.model, held["optimizer"])
                if is_inside and optim.names(fresh) != trained:
                    raise CheckpointError("engine.optimizer.groups name other parameters than are trained")
        elif fresh is not None and is_inside:
            raise CheckpointError("engine.optimizer is null in the middle of an experience")
        if self.scaler is not None and held["scaler"] is not None:
            saved = schema.held(_Scaler, held["scaler"], "engine.scaler")
            self.scaler.load_state_dict(
                {
                    **self.scaler.state_dict(),
                    "scale": saved["scale"],
                    "_growth_tracker": saved["growth_tracker"],
                }
            )
        if self.evaluator:
            self._check_exposed(held["exposed"])
            self.evaluator.restore(held["exposed"])
        set_rng_state(state["rng"])
        self._saved = self.position.step

    def _check_position(self) -> None:
        """Refuse a position that no run on this stream reaches."""
        at = self.position
        if at.experience > len(self.indices):
            raise CheckpointError(
                f"engine.position.experience must be at most {len(self.indices)}, got {at.experience}"
            )
        if at.experience == len(self.indices):
            most = (0, 0)
        else:
            epochs = 1 if self.online else self.training.train_epochs
            most = (epochs - 1, -(-len(self._part()) // self.training.train_mb_size))
        for name, number, bound in zip(("epoch", "batch"), (at.epoch, at.batch), most, strict=True):
            if number > bound:
                raise CheckpointError(f"engine.position.{name} must be at most {bound} there, got {number}")

    def _check_exposed(self, exposed: Sequence[Sequence[int]]) -> None:
        """Refuse evaluations over classes that the model has not seen."""
        classes = [c for part in exposed for c in part]
        seen = np.flatnonzero(self.model.seen.cpu().numpy())
        if len(set(classes)) < len(classes) or not np.isin(classes, seen).all():
            raise CheckpointError(
                f"engine.exposed must hold classes that the model has seen, each once; "
                f"got {schema.show(exposed)}"
            )


def _scaler_state(scaler: torch.amp.GradScaler) -> dict[str, Any]:
    """What a gradient scaler remembers, as :class:`_Scaler` has it."""
    state = scaler.state_dict()
    return {"scale": state["scale"], "growth_tracker": state["_growth_tracker"]}
