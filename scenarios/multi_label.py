"""Multi-label class-incremental stream: images come with every experience of whose classes they show one."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np

from clprompt import schema
from clprompt.data.plan import Plan
from clprompt.errors import ConfigError, DataError
from clprompt.registry import scenarios
from clprompt.scenarios._class_orders import class_order as resolve_order
from clprompt.schema import FilePath, above, at_least, below
from clprompt.seeding import derive


@dataclass(frozen=True)
class MultiLabelPlan(Plan):
    """A multi-label stream; an image may be in several experiences, each with its own labels only."""

    def describe(self, targets: np.ndarray) -> np.ndarray:
        """Visible labels per experience and class, [T, C]."""
        table = np.zeros((len(self), self.num_classes), dtype=np.int64)
        for row, (index, group) in enumerate(zip(self.indices, self.classes, strict=True)):
            table[row, list(group)] = np.asarray(targets)[index][:, list(group)].sum(0)
        return table

    def test_groups(self, targets: np.ndarray, domains: np.ndarray | None = None) -> tuple[np.ndarray, ...]:
        """Test images with a label that is new in each experience; an image may be in several groups."""
        return tuple(np.flatnonzero(np.asarray(targets)[:, list(g)].any(1)) for g in self.classes)

    def notes(self, train: np.ndarray, test: np.ndarray, domains: np.ndarray | None = None) -> list[str]:
        """What does not take part, in a sentence each."""
        sentences = []
        for name, targets in (("training", train), ("test", test)):
            empty = int((np.asarray(targets).sum(1) == 0).sum())
            if empty:
                sentences.append(f"{empty} of {len(targets)} {name} images have no label and take no part")
        return sentences


@scenarios.register("multi_label", paper="Dong et al., CVPR 2023 (KRT), for the protocol", year=2023)
@schema.checked
def plan(
    targets: np.ndarray | Sequence[Any],
    *,
    seed: int = 0,
    classes_per_experience: Annotated[int, at_least(1)] = 10,
    base_classes: Annotated[int, at_least(0)] = 0,
    class_order: list[Annotated[int, at_least(0)] | str] | FilePath | None = None,
    shuffle: bool = False,
    threshold: Annotated[float, above(0), below(1)] = 0.8,
    class_names: Sequence[str] | None = None,
) -> MultiLabelPlan:
    """Bx-Cy: x base classes first, then y new ones an experience; a remainder is a last, smaller experience.

    The training images of an experience are those with at least one of its labels; labels of past and future
    classes are hidden. An image comes with every experience that has one of its labels; without any, never.

    Args:
        targets: multi-hot 0/1 targets of the training images, [n, C].
        seed: decides the class order when ``shuffle`` is on.
        classes_per_experience: y.
        base_classes: x; 0: the first experience is like the others.
        class_order: a permutation of the class ids or names, the name of a published one, or a file; as for
            `split`.
        shuffle: draw the class order from the seed; False keeps that of the ids (as published: alphabetical).
        threshold: probability above which a label counts as predicted in CF1 and OF1; the ranking behind mAP
            does not need it.
        class_names: by class id, for a file of class names; a run gives those of its data.

    Raises:
        ConfigError: counts that do not fit, an order that is no permutation, a threshold outside (0, 1).
        DataError: targets that are not multi-hot, or an experience without a training image.
    """
    hot = check_multi_hot(targets)
    count = hot.shape[1]
    if classes_per_experience > count:
        raise ConfigError(f"scenario.classes_per_experience must be 1..{count}, got {classes_per_experience}")
    if base_classes > count:
        raise ConfigError(f"scenario.base_classes must be 0..{count}, got {base_classes}")
    order = list(range(count))
    if class_order is not None:
        order = resolve_order(class_order, count, class_names)
    elif shuffle:
        order = np.random.default_rng(derive(seed, "class order")).permutation(count).tolist()
    bounds = [0, *range(base_classes or classes_per_experience, count, classes_per_experience), count]
    groups = [tuple(int(c) for c in order[a:b]) for a, b in itertools.pairwise(bounds)]
    indices = tuple(np.flatnonzero(hot[:, list(group)].any(1)) for group in groups)
    for number, (group, index) in enumerate(zip(groups, indices, strict=True)):
        missing = [c for c in group if not hot[index, c].any()]
        if missing:
            what = "has no training image" if not len(index) else f"has none for class {missing[0]}"
            raise DataError(f"experience {number + 1} (classes {', '.join(map(str, group))}) {what}")
    return MultiLabelPlan(indices, tuple(groups), count, threshold=threshold)


def check_multi_hot(targets: Any) -> np.ndarray:
    """Targets as an array [n, C].

    Raises:
        DataError: not two axes, no sample or class, or values other than 0 and 1.
    """
    array = np.asarray(targets)
    if array.ndim != 2 or not array.size:
        raise DataError(
            "the multi_label scenario needs multi-hot targets, [samples, classes]; "
            f"got the shape {list(array.shape)}"
        )
    if not np.isin(array, (0, 1)).all():
        raise DataError(f"multi-hot targets must be 0 or 1, got {array[~np.isin(array, (0, 1))][0]}")
    return array
