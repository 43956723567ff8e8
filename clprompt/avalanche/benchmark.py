"""A plan and two data sets as an Avalanche benchmark."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch.utils.data import Dataset, Subset

from clprompt.data.loading import Images
from clprompt.data.plan import Plan, make_plan
from clprompt.targets import is_label_sets, visible

if TYPE_CHECKING:
    from avalanche.benchmarks import CLScenario


def to_avalanche(plan: Plan, train: Any, test: Any) -> CLScenario:
    """The Avalanche benchmark of a plan: one training and one test experience per experience of the plan.

    Args:
        plan: which training samples arrive when, and the class groups.
        train: a data set of (image, label) with ``targets``; our strategies tell their models of its
            ``names``, all names of each class by class id, where it has that attribute.
        test: another.

    Returns:
        A CLScenario whose experiences know their classes (``classes_in_this_experience``), all of
        them with task label 0.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*QP solver.*")
        from avalanche.benchmarks import benchmark_from_datasets, with_classes_timeline, with_task_labels
        from avalanche.benchmarks.utils import (
            ConstantSequence,
            as_classification_dataset,
            as_taskaware_classification_dataset,
        )
        from avalanche.benchmarks.utils.data_attribute import TaskLabels

    if is_label_sets(train.targets):
        return name_classes(_label_sets(plan, train, test), plan, train)

    def parts(dataset: Any, groups: Any) -> list[Any]:
        subsets = []
        for indices in groups:
            positions = [int(i) for i in indices]
            subset = Subset(dataset, positions)
            subset.targets = [int(dataset.targets[i]) for i in positions]  # type: ignore[attr-defined]
            # One task label for all samples: plugins such as LwF ask for it.
            labels = TaskLabels(ConstantSequence(0, len(positions)) if positions else [])
            labelled = as_classification_dataset(subset).update_data_attribute("targets_task_labels", labels)
            subsets.append(as_taskaware_classification_dataset(labelled))
        return subsets

    tested = plan.test_groups(test.targets, getattr(test, "domains", None))
    benchmark = benchmark_from_datasets(train=parts(train, plan.indices), test=parts(test, tested))
    made = with_task_labels(with_classes_timeline(benchmark))
    for experience in made.test_stream:
        if not len(experience.dataset):  # nothing new came, or no test image of it: Avalanche has no label
            experience.task_label, experience.task_labels = 0, [0]
    name_classes(made, plan, train)
    return keep_order(made) if plan.is_ordered else made


def name_classes(benchmark: CLScenario, plan: Plan, train: Any) -> CLScenario:
    """A benchmark whose training experiences know the names of the plan's classes, where the data do."""
    names = getattr(train, "names", None)
    if names is not None:
        for experience in benchmark.train_stream:
            experience.class_names = plan.named(names)
    return benchmark


def keep_order(benchmark: CLScenario) -> CLScenario:
    """A benchmark whose training data our strategies do not shuffle."""
    for experience in benchmark.train_stream:
        experience.is_ordered = True
    return benchmark


class _Shown(Dataset):
    """Some samples of a data set, their multi-hot targets restricted to some classes."""

    def __init__(self, dataset: Any, indices: Any, classes: Sequence[int]) -> None:
        self.dataset, self.indices, self.classes = dataset, [int(i) for i in indices], list(classes)
        self.random_transform = getattr(dataset, "random_transform", True)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: int) -> tuple[Any, ...]:
        image, target, *rest = self.dataset[self.indices[position]]
        return image, visible(target[None], self.classes)[0], *rest


def _label_sets(plan: Plan, train: Any, test: Any) -> CLScenario:
    """A multi-label stream: the data sets carry the visible labels as ``label_sets`` and have no ``targets``.

    Test experience t is the one set that is evaluated after experience t: images with a seen label.
    """
    from avalanche.benchmarks import benchmark_from_datasets
    from avalanche.benchmarks.utils import AvalancheDataset, DataAttribute

    def part(dataset: Any, indices: Any, classes: Sequence[int]) -> Any:
        hot = np.asarray(dataset.targets)[indices]
        sets = [[c for c in classes if row[c]] for row in hot]
        return AvalancheDataset(
            [_Shown(dataset, indices, classes)], data_attributes=[DataAttribute(sets, "label_sets")]
        )

    seen = [[c for group in plan.classes[: t + 1] for c in group] for t in range(len(plan))]
    made = benchmark_from_datasets(
        train=[part(train, i, c) for i, c in zip(plan.indices, plan.classes, strict=True)],
        test=[part(test, plan.seen_test(test.targets, t), seen[t]) for t in range(len(plan))],
    )
    for stream, groups in ((made.train_stream, plan.classes), (made.test_stream, seen)):
        for experience, classes in zip(stream, groups, strict=True):
            experience.classes_in_this_experience = list(classes)
    return made


def benchmark(name: str, train: Images, test: Images, *, seed: int = 0, **arguments: Any) -> CLScenario:
    """An Avalanche benchmark of a registered stream, e.g. ``benchmark("split", train, test, experiences=5)``.

    Args:
        name: a registered scenario; ``clprompt list scenarios`` shows them.
        train: a data set of (image, label) with ``targets`` (class ids 0..C-1), and with ``domains`` (ids
            0..D-1) for a stream that goes by them.
        test: another.
        seed: of the stream.
        **arguments: the stream's own.

    Raises:
        ConfigError, DataError: an unknown name, or arguments that do not fit the data.
    """
    known = {
        key: arguments.pop(key, getattr(train, key, None))
        for key in ("class_names", "domains", "domain_names")
    }
    plan = make_plan({"name": name, **arguments}, train.targets, seed=seed, **known)  # type: ignore[attr-defined]
    return to_avalanche(plan, train, test)
