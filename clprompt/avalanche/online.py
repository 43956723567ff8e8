"""A plan as an Avalanche stream of mini-batches that says nothing about its sessions."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from torch.utils.data import Subset

from clprompt import schema
from clprompt.avalanche.benchmark import keep_order, name_classes
from clprompt.data.loading import epoch_order
from clprompt.data.plan import Plan
from clprompt.schema import at_least

if TYPE_CHECKING:
    from avalanche.benchmarks import CLScenario


@schema.checked
def to_online_avalanche(
    plan: Plan,
    train: Any,
    test: Any,
    *,
    batch_size: Annotated[int, at_least(1)] = 64,
    cut_at_sessions: bool = True,
    seed: int = 0,
) -> CLScenario:
    """The Avalanche benchmark of a plan without boundaries: one training experience per batch that arrives.

    The experiences hold a data set and nothing else: no classes, no session. With a strategy's
    ``train_epochs`` as the iterations on each batch this is the online protocol, and a plugin that acts after
    each experience (a reservoir, say) acts after each batch.

    Args:
        plan: which samples arrive when.
        train: as for :func:`clprompt.avalanche.benchmark.to_avalanche`.
        test: another.
        batch_size: samples of an experience; a strategy's ``train_mb_size`` should be as large.
        cut_at_sessions: whether a session's last batch is a short one; False lets batches run on past it.
        seed: of the order within each session, the same as that of the engine; a plan may have its own.

    Returns:
        A CLScenario whose test stream has one experience, all test samples of the plan's classes.

    Raises:
        ConfigError: a batch size below 1.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*QP solver.*")
        from avalanche.benchmarks import benchmark_from_datasets
        from avalanche.benchmarks.utils import as_classification_dataset

    def part(dataset: Any, indices: np.ndarray) -> Any:
        positions = [int(i) for i in indices]
        subset = Subset(dataset, positions)
        subset.targets = [int(dataset.targets[i]) for i in positions]  # type: ignore[attr-defined]
        return as_classification_dataset(subset)

    sessions = [np.asarray(indices) for indices in plan.indices]
    if not plan.is_ordered:
        sessions = [
            indices[epoch_order(len(indices), seed, session, 0).numpy()]
            for session, indices in enumerate(sessions)
        ]
    runs = sessions if cut_at_sessions else [np.concatenate(sessions)]
    batches = [run[i : i + batch_size] for run in runs for i in range(0, len(run), batch_size)]
    tested = np.concatenate(plan.test_groups(np.asarray(test.targets), getattr(test, "domains", None)))
    made = benchmark_from_datasets(train=[part(train, batch) for batch in batches], test=[part(test, tested)])
    name_classes(made, plan, train)
    return keep_order(made) if plan.is_ordered else made
