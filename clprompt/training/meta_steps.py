"""Meta-learning over several sources: the batches of a meta-step and the loop, which can stop at any step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from clprompt.data.loading import training_batches
from clprompt.data.sources import Material
from clprompt.errors import Interrupted
from clprompt.seeding import derive
from clprompt.system.progress import Progress
from clprompt.system.unfinished import Unfinished


class MetaLearner(Protocol):
    """What is learnt by meta-steps.

    Attributes:
        step: meta-steps that were made.
        steps: those to make.
        per_epoch: those of a pass over the shortest source.
    """

    step: int
    steps: int
    per_epoch: int

    def batches(self) -> Iterator[list[Any]]:
        """What :func:`batches` gives."""

    def meta_step(self, together: Sequence[Any]) -> None:
        """Learn from a batch of each source, and count the step."""

    def state(self) -> dict[str, Any]:
        """All that it takes to go on to the same bits."""

    def load_state(self, saved: Mapping[str, Any]) -> None:
        """Put back what :meth:`state` gave."""


def shortest(materials: Sequence[Material], batch_size: int) -> int:
    """Meta-steps of a pass over the shortest source."""
    return min(-(-len(material.train) // batch_size) for material in materials)


def batches(
    learner: MetaLearner, materials: Sequence[Material], *, seed: int, batch_size: int, workers: int
) -> Iterator[list[Any]]:
    """One batch per source and meta-step, from the current step on; a function of seed and step alone.

    Args:
        learner: which counts the steps.
        materials: the sources; the shortest ends an epoch.
        seed: of the meta-init.
        batch_size: images of each source.
        workers: loader processes.
    """
    while learner.step < learner.steps:
        epoch, skip = divmod(learner.step, learner.per_epoch)
        loaders = [
            training_batches(
                material.train,
                seed=derive(seed, "meta-init"),
                experience=number,
                epoch=epoch,
                batch_size=batch_size,
                workers=workers,
                skip=skip,
            )
            for number, material in enumerate(materials)
        ]
        for together in zip(*loaders, strict=False):
            yield list(together)
            if learner.step >= learner.steps:
                return


def go_on(learner: MetaLearner, unfinished: Unfinished, progress: Progress) -> bool:
    """Continue from the checkpoint; False where there is none."""
    if unfinished.saved is None:
        return False
    learner.load_state(unfinished.saved)
    progress.message(f"{unfinished.folder}: continued after {learner.step} of {learner.steps} meta-steps")
    return True


def learn(
    learner: MetaLearner,
    unfinished: Unfinished,
    progress: Progress,
    stop: Callable[[], int | None],
    *,
    checkpoint_every: int,
) -> None:
    """Make the meta-steps that are left.

    Args:
        learner: at its first step, or where it went on.
        unfinished: where checkpoints are written.
        progress: a display, started.
        stop: asked after every step; a signal's number ends the work.
        checkpoint_every: steps between checkpoints.

    Raises:
        Interrupted: a signal stopped it; its checkpoint is written.
    """
    epochs = -(-learner.steps // learner.per_epoch)
    progress.experience(0, 1)
    shown = -1
    for together in learner.batches():
        epoch = learner.step // learner.per_epoch
        if epoch != shown:
            shown = epoch
            left = min(learner.per_epoch * (epoch + 1), learner.steps) - learner.step
            progress.epoch(epoch, epochs, left)
        learner.meta_step(together)
        progress.step()
        asked = stop()
        if asked is not None or learner.step % checkpoint_every == 0:
            unfinished.save(learner.state())
        if asked is not None:
            raise Interrupted(asked)
