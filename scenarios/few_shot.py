"""Few-shot class-incremental: a base experience with all its images, then few images of new classes."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np

from clprompt import schema
from clprompt.data.plan import Plan, class_ids, group_indices
from clprompt.data.selection import ranks
from clprompt.errors import ConfigError
from clprompt.registry import scenarios
from clprompt.scenarios._class_orders import class_order as resolve_order
from clprompt.schema import FilePath, at_least
from clprompt.seeding import derive


@scenarios.register("few_shot", paper="Tao et al., CVPR 2020 (TOPIC), arXiv 2004.10956", year=2020)
@schema.checked
def plan(
    targets: np.ndarray | Sequence[Any],
    *,
    seed: int = 0,
    base_classes: Annotated[int, at_least(1)] = 60,
    ways: Annotated[int, at_least(1)] = 5,
    shots: Annotated[int, at_least(1)] = 5,
    class_order: list[Annotated[int, at_least(0)] | str] | FilePath | None = None,
    shuffle: bool = True,
    class_names: Sequence[str] | None = None,
) -> Plan:
    """Few-shot class-incremental: base classes with all their images, then N new classes of K images each.

    Published protocols (Tao et al. 2020): CIFAR-100 and miniImageNet 60 base classes and 8 experiences of 5
    ways and 5 shots; CUB-200 100 base classes and 10 experiences of 10 ways and 5 shots. They keep the
    classes in the order of their ids (``shuffle: false``) and publish lists of the shots; here the seed draws
    them, and a smaller number of shots keeps some of those of a larger one. The metrics tell base from novel
    classes and give the harmonic mean of both.

    Args:
        targets: class ids 0..C-1 of the training samples, [n].
        seed: decides the shots, and the class order when ``shuffle`` is on and no ``class_order`` is given.
        base_classes: classes of the first experience, which keeps all its images.
        ways: N, new classes in each further experience; they must share out the classes that are left.
        shots: K, training images of each of those classes; the others take no part.
        class_order: as for `split`.
        shuffle: draw the class order from the seed; False keeps the order of the ids.
        class_names: by class id, for a file of class names and for messages; a run gives those of its data.

    Returns:
        The plan; an experience's indices are sorted by class id (the engine shuffles while training).

    Raises:
        ConfigError: counts that do not fit the classes, more shots than a class has images, an order that is
            no permutation.
        DataError: targets that are no class ids.
    """
    targets, count = class_ids(targets)
    novel = count - base_classes
    if novel < 1:
        raise ConfigError(
            f"scenario.base_classes must be below the {count} classes of the data, so that some are novel, "
            f"got {base_classes}"
        )
    if novel % ways:
        fitting = [n for n in range(1, novel + 1) if novel % n == 0]
        raise ConfigError(
            f"scenario.ways must divide the {novel} classes beside the {base_classes} of "
            f"scenario.base_classes ({', '.join(map(str, fitting))}), got {ways}"
        )
    if class_order is not None:
        order = resolve_order(class_order, count, class_names)
    elif shuffle:
        order = np.random.default_rng(derive(seed, "class order")).permutation(count).tolist()
    else:
        order = list(range(count))
    sizes = np.bincount(targets, minlength=count)
    poorest = min(order[base_classes:], key=lambda c: (sizes[c], c))
    if sizes[poorest] < shots:
        name = poorest if class_names is None else f'"{class_names[poorest]}"'
        raise ConfigError(
            f"scenario.shots must be at most {sizes[poorest]}, the training images of the novel class "
            f"{name}, got {shots}"
        )
    bounds = [0, *range(base_classes, count + 1, ways)]
    groups = [tuple(int(c) for c in order[a:b]) for a, b in itertools.pairwise(bounds)]
    is_shot = ranks(targets, seed, "shots") < shots
    first, *others = group_indices(targets, groups, count)
    indices = (first, *(index[is_shot[index]] for index in others))
    left_out = f"of each of the {novel} novel classes all but {shots}"
    return Plan(indices, tuple(groups), count, left_out=left_out, base_classes=groups[0])
