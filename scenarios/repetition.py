"""Repetition: class-incremental, and classes come back after their first experience."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np

from clprompt import schema
from clprompt.data.plan import Plan, class_ids
from clprompt.errors import ConfigError
from clprompt.registry import scenarios
from clprompt.schema import above, at_least, at_most
from clprompt.seeding import derive

_TRIES = 1000  # redraws of what comes when before a stream with an empty experience is refused
_PROBABILITY = 0.2  # of a class to come back, where none is given


@dataclass(frozen=True)
class RepetitionPlan(Plan):
    """A stream with repetition: ``classes`` names a class in every experience in which it comes.

    The class groups of the metrics hold each class once, where it comes first. The samples of an experience
    are all different; those of two may share some.

    Attributes:
        size: samples of an experience, where its classes have as many.
    """

    size: int

    def notes(self, train: np.ndarray, *test: Any) -> list[str]:
        """What takes no part, what comes several times, and what is short of samples, in a sentence each."""
        sentences = super().notes(train, *test)
        _, times = np.unique(np.concatenate(self.indices), return_counts=True)
        if (times > 1).any():
            sentences.append(
                f"{(times > 1).sum()} of {len(train)} training images come several times, "
                f"at most {times.max()}"
            )
        short = [t + 1 for t, index in enumerate(self.indices) if len(index) < self.size]
        if short:
            sentences.append(
                f"in {len(short)} of {len(self)} experiences there are fewer than {self.size} images, as "
                f"their classes have no more; the first: experience {short[0]} with "
                f"{len(self.indices[short[0] - 1])}"
            )
        return sentences


@scenarios.register("repetition", paper="Hemati et al., CoLLAs 2023, arXiv 2301.11396", year=2023)
@schema.checked
def plan(
    targets: np.ndarray | Sequence[Any],
    *,
    seed: int = 0,
    experiences: Annotated[int, at_least(1)] = 10,
    probability: Annotated[float, at_least(0), at_most(1)] | None = None,
    first_occurrence: Annotated[float, above(0), at_most(1)] | None = None,
    samples_per_experience: Annotated[int, at_least(1)] | None = None,
    slots: Annotated[int, at_least(1)] | None = None,
) -> RepetitionPlan:
    """Class-incremental with repetition: classes come back, with a probability or by slots.

    By sampling (without ``slots``; the released ``cir_generator``): each class comes first in a drawn
    experience, and in every later one with ``probability``. The classes of an experience share its samples
    equally, and each draws its own afresh from all that it has: a sample may come again in a later
    experience, or never. What comes when is drawn again while an experience has no class (released: such an
    experience is left out).

    By ``slots`` (the released ``cir_slot_based``): each class is cut into equal parts, so that all
    experiences have that many parts, of different classes while there are enough of them. Every sample comes
    exactly once (released: the remainder of a class that its parts do not divide is lost).

    Args:
        targets: class ids 0..C-1 of the training samples, [n].
        seed: decides everything; the draws are others than those of the released code.
        experiences: T.
        probability: of a class to come back, in each experience after its first; None for 0.2.
        first_occurrence: of the geometric distribution over the experiences in which classes come first, the
            share of the first one ("geometric", p); None for the same chance in all ("uniform").
        samples_per_experience: None for n / T.
        slots: K, parts of classes in an experience; in place of the other three.

    Returns:
        The plan; an experience's indices are sorted by class id (the engine shuffles while training).

    Raises:
        ConfigError: slots that do not fit the classes or their samples, or beside what they replace; more
            classes in an experience than samples; draws that always leave an experience empty.
        DataError: targets that are no class ids.

    Source: Hemati et al., Class-Incremental Learning with Repetition, CoLLAs 2023 (arXiv 2301.11396), and its
    released code (HamedHemati/CIR).
    """
    targets, count = class_ids(targets)
    rng = np.random.default_rng(derive(seed, "repetition"))
    of_class = [rng.permutation(samples) for samples in _by_class(targets)]
    if slots is not None:
        others = {
            "probability": probability,
            "first_occurrence": first_occurrence,
            "samples_per_experience": samples_per_experience,
        }
        beside = [key for key, value in others.items() if value is not None]
        if beside:
            raise ConfigError(
                f"scenario.{beside[0]} has no meaning beside scenario.slots; leave one of them out"
            )
        parts = _slots(rng, of_class, experiences, slots)
        size, left_out = 0, ""
    else:
        size = samples_per_experience or len(targets) // experiences
        chance = _PROBABILITY if probability is None else probability
        table = _occurrences(rng, count, experiences, chance, first_occurrence)
        parts = _sampled(rng, of_class, table, size)
        left_out = "every experience draws its own"
    indices = tuple(_sorted(np.concatenate(part), targets) for part in parts)
    classes = tuple(tuple(np.unique(targets[index]).tolist()) for index in indices)
    return RepetitionPlan(indices, classes, count, size, left_out=left_out)


def _by_class(targets: np.ndarray) -> list[np.ndarray]:
    """The samples of each class, in data set order."""
    order = np.argsort(targets, kind="stable")
    return np.split(order, np.cumsum(np.bincount(targets))[:-1])


def _sorted(samples: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """By class id, in data set order within a class, as those of other streams."""
    return samples[np.lexsort((samples, targets[samples]))]


# ------------------------------------------------------------------------------------------------- sampling


def _occurrences(
    rng: np.random.Generator, count: int, experiences: int, probability: float, first: float | None
) -> np.ndarray:
    """Which classes come in which experience, bool [C, T]; every class and every experience has one."""
    at = np.arange(experiences)
    weights = np.ones(experiences) if first is None else (1 - first) ** at
    for _ in range(_TRIES):
        begins = rng.choice(experiences, count, p=weights / weights.sum())[:, None]  # (C, 1)
        comes = (at == begins) | ((at > begins) & (rng.random((count, experiences)) < probability))
        if comes.any(0).all():
            return comes
    raise ConfigError(
        f"scenario.experiences={experiences} of {count} classes with probability={probability:g}: in each of "
        f"{_TRIES} draws an experience was empty; take fewer experiences or a larger probability"
    )


def _sampled(
    rng: np.random.Generator, of_class: Sequence[np.ndarray], table: np.ndarray, size: int
) -> list[list[np.ndarray]]:
    """Samples of each class that comes, by experience; its classes share its size equally."""
    most = int(table.sum(0).max())
    if most > size:
        raise ConfigError(
            f"scenario.samples_per_experience must be at least {most}, the classes of experience "
            f"{int(table.sum(0).argmax()) + 1}, got {size}"
        )
    parts = []
    for comes in table.T:
        classes = rng.permutation(np.flatnonzero(comes))
        quotas = size // len(classes) + (np.arange(len(classes)) < size % len(classes))
        parts.append(
            [
                rng.choice(of_class[c], min(quota, len(of_class[c])), replace=False)
                for c, quota in zip(classes.tolist(), quotas.tolist(), strict=True)
            ]
        )
    return parts


# ---------------------------------------------------------------------------------------------------- slots


def _slots(
    rng: np.random.Generator, of_class: Sequence[np.ndarray], experiences: int, slots: int
) -> list[list[np.ndarray]]:
    """Parts of classes by experience, every sample in one of them."""
    count, total = len(of_class), experiences * slots
    if slots > count:
        raise ConfigError(f"scenario.slots must be 1..{count}, as the data has {count} classes, got {slots}")
    if total < count:
        raise ConfigError(
            f"scenario.slots must be at least {-(-count // experiences)}, so that {experiences} experiences "
            f"have a slot for each of the {count} classes, got {slots}"
        )
    pieces = np.full(count, total // count)
    pieces[rng.permutation(count)[: total % count]] += 1
    for c, samples in enumerate(of_class):
        if len(samples) < pieces[c]:
            raise ConfigError(
                f"scenario.slots={slots} in {experiences} experiences cuts class {c} into {pieces[c]} parts, "
                f"but it has {len(samples)} training images"
            )
    waiting = [np.array_split(samples, n) for samples, n in zip(of_class, pieces, strict=True)]
    parts: list[list[np.ndarray]] = [[] for _ in range(experiences)]
    # from the last experience on, as released: it is the first ones that may have several parts of a class
    for part in reversed(parts):
        left = np.array([c for c in range(count) if waiting[c]])
        if len(left) >= slots:
            part.extend(waiting[c].pop() for c in rng.choice(left, slots, replace=False))
            continue
        while len(part) < slots:
            c = rng.choice([c for c in range(count) if waiting[c]])
            part.append(waiting[c].pop())
    return parts
