"""``clprompt.fit``: a model trained on a whole stream in one call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from clprompt.data.loading import Images
from clprompt.data.plan import Plan
from clprompt.prompting.model import PromptModel
from clprompt.training.engine import Engine, Listener, ProgressLike
from clprompt.training.evaluation import evaluator_for
from clprompt.training.processes import started
from clprompt.training.settings import Online, Training


class _Collector:
    """Keeps the evaluation records of a fit."""

    diagnostics = None

    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []

    def record(self, record: Mapping[str, Any], /) -> None:
        if record["kind"] == "evaluation":
            self.records.append(dict(record))

    def speed(self, step: int, images_per_second: float, /) -> None: ...


def fit(
    model: PromptModel,
    plan: Plan,
    train: Images,
    test: Any = None,
    *,
    clean: Images | None = None,
    training: Training | None = None,
    online: Online | None = None,
    seed: int = 0,
    precision: str = "float32",
    retrieval: bool = False,
    listeners: Sequence[Listener] = (),
    progress: ProgressLike | None = None,
) -> list[dict[str, Any]]:
    """Train a model on a whole stream in one call; no run folder, no Avalanche.

    Where torch.distributed has a default group of several processes, they train one model together: each
    calls this with the same arguments, and the first gets the records and tells the listeners.

    Args:
        model: any PromptModel, on its device.
        plan: a stream, e.g. ``clprompt.scenarios.split.plan(train.targets, experiences=5)``.
        train: (image [3, H, W], label) items under the training transform. The model is told of ``names``,
            all names of each class by class id, where it has that attribute.
        test: items under the evaluation transform, with ``targets``; None for no evaluation.
        clean: see :class:`Engine`.
        training: see :class:`Engine`.
        online: see :class:`Engine`.
        seed: see :class:`Engine`.
        precision: see :class:`Engine`.
        retrieval: see :class:`clprompt.training.Evaluator`.
        listeners: see :class:`Engine`.
        progress: see :class:`Engine`.

    Returns:
        The evaluation records, one after each experience; :func:`clprompt.metrics.summarise` reads them.
    """
    training, processes = training or Training(), started()
    names = getattr(train, "names", None)
    if names is not None:
        model.name_classes(plan.named(names))
    evaluator = None
    if test is not None:
        evaluator = evaluator_for(
            plan,
            test,
            test.targets,
            online=online is not None,
            batch_size=training.eval_mb_size,
            precision=precision,
            retrieval=retrieval,
            processes=processes,
        )
    collector = _Collector()
    Engine(
        model,
        train,
        plan.indices,
        plan.classes,
        clean=clean,
        evaluator=evaluator,
        training=training,
        online=online,
        is_ordered=plan.is_ordered,
        seed=seed,
        precision=precision,
        listeners=[collector, *listeners],
        progress=progress,
        processes=processes,
    ).run()
    return collector.records
