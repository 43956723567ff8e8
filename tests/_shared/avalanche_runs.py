"""Avalanche strategies over tiny backbones, on a toy stream of three experiences."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Sequence
from typing import Any

from avalanche.benchmarks import CLScenario, nc_benchmark
from avalanche.benchmarks.utils import as_classification_dataset
from avalanche.evaluation.metrics import accuracy_metrics, loss_metrics
from avalanche.training.plugins import EvaluationPlugin
from small_methods import SMALL

from clprompt import FrozenViT
from clprompt.avalanche.strategy import PromptStrategy, make_strategy
from clprompt.data.plan import group_indices
from clprompt.registry import strategies
from clprompt.scenarios import Plan, to_avalanche
from clprompt.testing.bench import CLASSES, ToyImages, tiny_vit

SETTINGS: dict[str, Any] = {"train_mb_size": 8, "train_epochs": 2, "lr": 0.02}


@functools.cache
def shared_vit() -> FrozenViT:
    """One backbone for many strategies: its weights never change."""
    return tiny_vit()


def toy() -> tuple[ToyImages, ToyImages]:
    """Training and test images."""
    return ToyImages(12), ToyImages(6, "test")


def stream(images: tuple[ToyImages, ToyImages] | None = None) -> CLScenario:
    """Our benchmark of the toy images, or of others: three experiences of two classes."""
    train, test = images or toy()
    plan = Plan(tuple(group_indices(train.targets, CLASSES, 11)), CLASSES, 11)
    return to_avalanche(plan, train, test)


def avalanches_own(task_labels: bool) -> CLScenario:
    """Avalanche's own benchmark of the same experiences."""
    train, test = (as_classification_dataset(part) for part in toy())
    order = [c for group in CLASSES for c in group]
    return nc_benchmark(
        train, test, n_experiences=3, task_labels=task_labels, shuffle=False, fixed_class_order=order
    )


def figures() -> EvaluationPlugin:
    """Accuracy and loss of each experience and of the stream, shown nowhere."""
    return EvaluationPlugin(
        accuracy_metrics(experience=True, stream=True), loss_metrics(experience=True, stream=True), loggers=[]
    )


def strategy(
    name: str, plugins: Sequence[Any] = (), evaluator: Any = None, **arguments: Any
) -> PromptStrategy:
    """The Avalanche strategy of a registered method."""
    made = make_strategy(strategies.get(name).target)
    return made(
        backbone=arguments.pop("backbone", None) or shared_vit(),
        plugins=list(plugins),
        evaluator=evaluator or EvaluationPlugin(),
        **{**SETTINGS, **SMALL.get(name, {}), **arguments},
    )


def learner(
    name: str, plugins: Sequence[Any] = (), evaluator: Any = None, **arguments: Any
) -> PromptStrategy:
    """A strategy for a short run, all of whose classes share what can be shared."""
    shared = {"mask": "seen"} if "mask" in inspect.signature(strategies.get(name).target).parameters else {}
    settings = {"train_mb_size": 4, "train_epochs": 1, "eval_mb_size": 64, **shared}
    return strategy(name, plugins, evaluator, **{**settings, **arguments})


def trained(name: str, scenario: CLScenario | None = None, **arguments: Any) -> PromptStrategy:
    """The same after every experience of a stream."""
    made = strategy(name, **arguments)
    for experience in (scenario or stream()).train_stream:
        made.train(experience)
    return made
