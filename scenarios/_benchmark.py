"""A plan and two data sets as an Avalanche benchmark."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

from torch.utils.data import Subset

from clprompt import registry
from clprompt.loading import Images
from clprompt.scenarios._plan import Plan

if TYPE_CHECKING:
    from avalanche.benchmarks import CLScenario


def to_avalanche(plan: Plan, train: Any, test: Any) -> CLScenario:
    """The Avalanche benchmark of a plan: one training and one test experience per experience of the plan.

    Args:
        plan: which training samples arrive when, and the class groups.
        train, test: data sets of (image, label) with ``targets``.

    Returns:
        A CLScenario whose experiences know their classes (``classes_in_this_experience``); the task label is 0
        throughout.
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

    def parts(dataset: Any, groups: Any) -> list[Any]:
        found = []
        for indices in groups:
            chosen = [int(i) for i in indices]
            subset = Subset(dataset, chosen)
            subset.targets = [int(dataset.targets[i]) for i in chosen]  # type: ignore[attr-defined]
            # One task label for all samples: plugins such as LwF ask for it.
            labels = TaskLabels(ConstantSequence(0, len(chosen)))
            labelled = as_classification_dataset(subset).update_data_attribute("targets_task_labels", labels)
            found.append(as_taskaware_classification_dataset(labelled))
        return found

    benchmark = benchmark_from_datasets(
        train=parts(train, plan.indices), test=parts(test, plan.test_groups(test.targets))
    )
    return with_task_labels(with_classes_timeline(benchmark))


def benchmark(name: str, train: Images, test: Images, *, seed: int = 0, **arguments: Any) -> CLScenario:
    """An Avalanche benchmark of a registered stream, e.g. ``benchmark("split", train, test, experiences=5)``.

    Args:
        name: a registered scenario; ``clprompt list scenarios`` shows them.
        train, test: data sets of (image, label) with ``targets`` (class ids 0..C-1).
        seed: of the stream.
        **arguments: the stream's own.

    Raises:
        ConfigError, DataError: an unknown name, or arguments that do not fit the data.
    """
    entry = registry.scenarios.get(name)
    return to_avalanche(entry.target(train.targets, seed=seed, **arguments), train, test)  # type: ignore[attr-defined]
