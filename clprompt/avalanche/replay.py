"""A memory for any strategy on an online stream: Avalanche's replay over its reservoir, under our engine.

Nothing else in clprompt keeps an image. The engine stays what it is (data order, evaluations, records,
checkpoints); a :class:`PromptStrategy` with Avalanche's ``ReplayPlugin`` makes the steps on each batch.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Subset

from clprompt import schema
from clprompt.avalanche.strategy import PromptStrategy
from clprompt.data.loading import epoch_order
from clprompt.errors import CheckpointError
from clprompt.schema import at_least
from clprompt.training.engine import Engine
from clprompt.training.settings import Memory

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", message=".*QP solver.*")
    from avalanche.benchmarks import benchmark_from_datasets
    from avalanche.benchmarks.utils import DataAttribute, as_classification_dataset
    from avalanche.core import SupervisedPlugin
    from avalanche.training.plugins import ReplayPlugin
    from avalanche.training.storage_policy import ReservoirSamplingBuffer


class MemoryEngine(Engine):
    """The online loop with a reservoir of images; memory images join each of the iterations on a batch.

    A checkpoint holds which samples are in the reservoir, no image, so a resumed run ends with the same bits.

    Args:
        memory: its size, and how much of it joins a step.
        *arguments, **named: the engine's.

    Raises:
        ConfigError: what :meth:`clprompt.training.settings.Memory.check_model` refuses.
    """

    def __init__(self, *arguments: Any, memory: Memory, **named: Any) -> None:
        super().__init__(*arguments, **named)
        targets = np.asarray(self.train.targets)  # type: ignore[attr-defined]
        memory.check_model(self.model, targets)
        assert self.online is not None
        images: Any = self.train
        everything: Any = Subset(images, range(len(targets)))
        everything.targets = targets.tolist()
        self._data = as_classification_dataset(everything).update_data_attribute(
            "sample", DataAttribute(np.arange(len(targets)).tolist(), "sample")
        )
        size = self.training.train_mb_size
        self.reservoir = ReservoirSamplingBuffer(max_size=memory.size)
        replay = ReplayPlugin(
            memory.size,
            batch_size=size,
            batch_size_mem=memory.batch_size or max(size // 2, 1),
            storage_policy=self.reservoir,
        )
        self._at = (0, 1)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="No loggers specified")
            self.strategy = _Counted(
                model=self.model,
                seed=self.seed,
                training=replace(self.training, train_epochs=self.online.iterations, workers=0),
                precision=self.precision,  # type: ignore[arg-type]
                device=self.model.device,
                plugins=[replay, _StepListener(self)],
                evaluator=None,
            )
        self.strategy.engine = self
        self.watch = self.strategy.watch

    def _batches(
        self, part: np.ndarray, epoch: int, shuffle: bool
    ) -> Iterable[tuple[Sequence[int], Sequence[Any]]]:
        """The data sets of the batches that are left, in the engine's order."""
        at, size = self.position, self.training.train_mb_size
        order = (
            epoch_order(len(part), self.seed, at.experience, epoch) if shuffle else torch.arange(len(part))
        )
        for batch in order.split(size)[at.batch :]:
            yield batch.tolist(), (self._data.subset(np.asarray(part)[batch.numpy()].tolist()), None)

    def _train_batch(self, images: Any, targets: Tensor | None, step: int, steps: int, *_: Any) -> None:
        strategy = self.strategy
        assert self.optimizer is not None  # a memory is refused to what trains nothing
        strategy.optimizer, self._at = self.optimizer, (step, steps)
        self.position.samples += len(images)
        with warnings.catch_warnings(record=True) as caught:
            strategy.train(benchmark_from_datasets(train=[images]).train_stream[0])
        for (
            warning
        ) in caught:  # all but those of how Avalanche's plugins will be called one day, after each batch
            if not issubclass(warning.category, DeprecationWarning):
                warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
        self._hold(list(self.reservoir.buffer.sample))
        self._since += len(images)
        if self.progress:
            self.progress.step()

    def _hold(self, samples: list[int]) -> None:
        """The reservoir as one subset of the training data; Avalanche's nests one deeper with every batch."""
        self.reservoir.buffer = self._data.subset(samples)

    def state(self) -> dict[str, Any]:
        """As the engine's, with the samples in the reservoir and their weights."""
        held = torch.tensor(list(self.reservoir.buffer.sample) if len(self.reservoir.buffer) else [])
        weights = self.reservoir._buffer_weights.clone()
        seen = self.strategy.clock.train_exp_counter
        return {**super().state(), "memory": {"samples": held.long(), "weights": weights, "batches": seen}}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Continue from a saved state; errors as the engine's."""
        super().load_state(state)
        memory = schema.held(_Held, state.get("memory"), "engine.memory")
        samples, weights = memory["samples"].tolist(), memory["weights"]
        count = len(self._data)
        if len(samples) > self.reservoir.max_size or not all(0 <= sample < count for sample in samples):
            raise CheckpointError(
                f"engine.memory.samples must hold at most {self.reservoir.max_size} of the {count} samples"
            )
        if len(weights) != len(samples):
            raise CheckpointError(f"engine.memory has {len(weights)} weights for {len(samples)} samples")
        self._hold(samples)
        self.reservoir._buffer_weights = weights.clone()
        self.strategy.clock.train_exp_counter = memory["batches"]


@dataclass(frozen=True)
class _Held:
    """What a state holds of a memory."""

    samples: Tensor
    weights: Tensor
    batches: Annotated[int, at_least(0)]


class _Counted(PromptStrategy):
    """A strategy whose learning rate follows the engine's position; a batch is no experience of its own."""

    engine: MemoryEngine

    def _progress(self) -> tuple[int, int, int]:
        return *self.engine._at, 1

    def _place(self) -> tuple[int, int]:
        at = self.engine.position
        return at.step + 1, at.experience + 1


class _StepListener(SupervisedPlugin):
    """Tells the engine of each step that Avalanche made."""

    def __init__(self, engine: MemoryEngine) -> None:
        super().__init__()
        self._engine = engine

    def after_training_iteration(self, strategy: Any, *_: Any, **__: Any) -> None:
        rate = float(strategy.optimizer.param_groups[0]["lr"])
        self._engine._stepped(strategy._step, strategy.mb_y, rate)
