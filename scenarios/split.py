"""Split: the class-incremental stream. Every class occurs in exactly one experience."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np

from clprompt import schema
from clprompt.data.plan import Plan, class_ids, group_indices
from clprompt.errors import ConfigError
from clprompt.registry import scenarios
from clprompt.scenarios._class_orders import class_order as resolve_order
from clprompt.scenarios._long_tail import Imbalance, LongTail, long_tailed
from clprompt.schema import FilePath, at_least
from clprompt.seeding import derive


@scenarios.register("split")
@schema.checked
def plan(
    targets: np.ndarray | Sequence[Any],
    *,
    seed: int = 0,
    experiences: Annotated[int, at_least(1)] = 10,
    base_classes: Annotated[int, at_least(0)] = 0,
    classes_per_experience: list[Annotated[int, at_least(1)]] | None = None,
    class_order: list[Annotated[int, at_least(0)] | str] | FilePath | None = None,
    shuffle: bool = True,
    long_tail: LongTail | None = None,
    imbalance: Imbalance | None = None,
    class_names: Sequence[str] | None = None,
) -> Plan:
    """Class-incremental: every class in exactly one experience; a remainder goes to the first ones.

    Args:
        targets: class ids 0..C-1 of the training samples, [n].
        seed: decides the class order when ``shuffle`` is on and no ``class_order`` is given.
        experiences: T, the number of experiences.
        base_classes: classes of the first experience ("Bk" protocols); 0: the same share as the others.
        classes_per_experience: explicit class counts instead of ``experiences`` and ``base_classes``.
        class_order: a permutation of the class ids or names; the name of a published one: "numpy-1993"
            (numpy's draw for that seed), "icarl-cifar100"; "alphabetical", by class name; or a file of all
            class ids or class names (.txt with one a line, .json, .yaml, .npy).
        shuffle: draw the class order from the seed; False keeps the order of the ids.
        long_tail: "ordered" (class sizes fall along the stream), "shuffled" (places in the tail are drawn) or
            "by_class_id"; None uses all samples.
        imbalance: the largest class of a long tail over the smallest; None for 100.
        class_names: by class id, for a file of class names; a run gives those of its data.

    Returns:
        The plan; an experience's indices are sorted by class id (the engine shuffles while training).

    Raises:
        ConfigError: counts that do not fit the number of classes, an order that is no permutation, an
            imbalance that leaves a class without a sample.
    """
    targets, count = class_ids(targets)
    sizes = _sizes(count, experiences, base_classes, classes_per_experience)
    if class_order is not None:
        order = resolve_order(class_order, count, class_names)
    elif shuffle:
        order = np.random.default_rng(derive(seed, "class order")).permutation(count).tolist()
    else:
        order = list(range(count))
    bounds = np.cumsum([0, *sizes])
    groups = [tuple(int(c) for c in order[a:b]) for a, b in itertools.pairwise(bounds)]
    keep, left_out = long_tailed(targets, order, long_tail, imbalance, seed)
    indices = tuple(keep[index] for index in group_indices(targets[keep], groups, count))
    return Plan(indices, tuple(groups), count, left_out=left_out)


def _sizes(count: int, experiences: int, base: int, explicit: Sequence[int] | None) -> list[int]:
    if explicit is not None:
        if sum(explicit) != count:
            raise ConfigError(
                f"scenario.classes_per_experience must add up to the {count} classes "
                f"of the data, got {list(explicit)}"
            )
        return list(explicit)
    if experiences > count:
        raise ConfigError(
            f"scenario.experiences must be 1..{count}, as the data has {count} classes, got {experiences}"
        )
    if base and base + experiences - 1 > count:
        raise ConfigError(
            f"scenario.base_classes must leave a class for each of the other {experiences - 1} experiences "
            f"of {count} classes, got {base}"
        )
    rest, parts = (count - base, experiences - 1) if base else (count, experiences)
    share = [rest // parts + (i < rest % parts) for i in range(parts)] if parts else []
    if base and not parts and base != count:
        raise ConfigError(
            f"scenario.base_classes is {base}, but a single experience holds all {count} classes"
        )
    return [base, *share] if base else share
