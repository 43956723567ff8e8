"""The `memory` section of a configuration: the one way in which a run keeps images."""

from __future__ import annotations

import functools
import inspect
import math
import typing
from collections.abc import Callable, Collection
from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np

from clprompt import schema
from clprompt.errors import ConfigError


@dataclass(frozen=True)
class Memory:
    """A memory of earlier images beside an online stream: such a run is not rehearsal-free, and its results say so.

    The run goes through Avalanche's replay plugin over its reservoir buffer: images of the memory join every training
    step, drawn afresh for each, and the reservoir is updated after each batch that arrived.

    Args:
        size: images in the reservoir.
        batch_size: how many of them join a training step; null for half of training.train_mb_size.
    """

    size: int = 500
    batch_size: int | None = None

    def __post_init__(self) -> None:
        for key, kind in (("size", int), ("batch_size", int | None)):
            value = schema.check(getattr(self, key), kind, f"memory.{key}")
            if value is not None and value < 1:
                raise ConfigError(f"memory.{key} must be at least 1, got {value}")

    def check(self, online: Any, workers: int) -> None:
        """Refuse what a memory cannot go with.

        Raises:
            ConfigError: a run with boundaries, or loader processes.
        """
        if online is None:
            raise ConfigError("memory needs an online section: it changes after each batch that arrives")
        if workers:
            raise ConfigError(
                "training.workers must be 0 with a memory, whose loader is made anew for every batch; "
                f"got {workers}"
            )

    def check_model(self, model: Any, targets: Any) -> None:
        """Refuse a strategy or data that a memory does not serve.

        Raises:
            ConfigError: a strategy that trains nothing or revisits all images by itself, a plug-in that counts,
                or multi-hot targets.
        """
        if not model.trains or model.revisits != "never":
            raise ConfigError(
                f"memory is of no use to {type(model).__name__}, which "
                + ("trains nothing" if not model.trains else "trains on all images anyway")
            )
        if model.counts_received():
            raise ConfigError(
                "memory is refused: a plug-in counts what is received, and images from it come again"
            )
        if np.ndim(targets) == 2:
            raise ConfigError("memory needs one label per image, got multi-hot targets")

    def __str__(self) -> str:
        return f"a reservoir of {self.size} images joins the training: this run is not rehearsal-free"


@dataclass(frozen=True)
class Training:
    """How a strategy is trained.

    Args:
        train_mb_size: samples per training step.
        train_epochs: passes over each experience.
        lr: learning rate.
        optimizer: adam, adamw or sgd.
        weight_decay: of the optimizer.
        momentum: of sgd.
        schedule: of the learning rate within an experience.
        warmup: share of an experience's steps over which the learning rate rises to its full value.
        mixup: alpha of the beta distribution that images and labels of a batch are mixed by; 0 for none.
        mixup_probability: share of batches that are mixed.
        label_smoothing: share of a label that is spread over all classes that compete.
        clip_grad: largest norm of the gradient; null for no clipping.
        eval_mb_size: samples per evaluation batch; it changes speed and memory, no result.
        workers: processes that load images; 0 loads them in the training process.
        checkpoint_every: training steps between checkpoints; null for one after each experience.
        log_every: training steps between two records of the loss.
    """

    train_mb_size: int = 32
    train_epochs: int = 1
    lr: float = 0.005
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    weight_decay: float = 0.0
    momentum: float = 0.0
    schedule: Literal["constant", "cosine"] = "constant"
    warmup: float = 0.0
    mixup: float = 0.0
    mixup_probability: float = 1.0
    label_smoothing: float = 0.0
    clip_grad: float | None = None
    eval_mb_size: int = 128
    workers: int = 0
    checkpoint_every: int | None = None
    log_every: int = 10

    def __post_init__(self) -> None:
        _check_types(self, "training")
        for key in ("train_mb_size", "eval_mb_size", "checkpoint_every", "log_every"):
            _at_least(1, getattr(self, key), f"training.{key}")
        for key in ("train_epochs", "weight_decay", "momentum", "workers", "mixup", "label_smoothing"):
            _at_least(0, getattr(self, key), f"training.{key}")
        if not 0 <= self.warmup < 1:
            raise ConfigError(
                f"training.warmup must be a share of the steps, 0 or more and below 1, got {self.warmup}"
            )
        for key in ("momentum", "label_smoothing"):
            if getattr(self, key) >= 1:
                raise ConfigError(f"training.{key} must be below 1, got {getattr(self, key)}")
        if not 0 < self.mixup_probability <= 1:
            raise ConfigError(
                f"training.mixup_probability must be above 0 and at most 1, got {self.mixup_probability}"
            )
        for key in ("lr", "clip_grad"):
            value = getattr(self, key)
            if value is not None and not 0 < value < math.inf:
                raise ConfigError(f"training.{key} must be a finite number above 0, got {value}")


@dataclass(frozen=True)
class Online:
    """One pass over a stream without boundaries.

    Args:
        iterations: optimizer steps on each batch that arrives.
        eval_every: samples between two anytime evaluations; null for none.
        cut_at_sessions: whether a session's last batch is a short one; false lets batches run on over session ends.
    """

    iterations: int = 1
    eval_every: int | None = None
    cut_at_sessions: bool = True

    def __post_init__(self) -> None:
        _check_types(self, "online")
        _at_least(1, self.iterations, "online.iterations")
        _at_least(1, self.eval_every, "online.eval_every")


def _check_types(settings: Training | Online, path: str) -> None:
    hints = typing.get_type_hints(type(settings))
    for key, value in vars(settings).items():
        object.__setattr__(settings, key, schema.check(value, hints[key], f"{path}.{key}"))


def _at_least(least: int, value: float | None, path: str) -> None:
    if value is not None and not least <= value < math.inf:
        raise ConfigError(f"{path} must be at least {least}, got {value}")


def takes_training(*, but: Collection[str] = ()) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorate a function with ``**fields``: its signature shows the fields of :class:`Training` as keywords.

    Args:
        but: fields that mean nothing to the function.

    Returns:
        The decorator; what it makes raises a TypeError for an unknown argument, as Python does.
    """
    hints = typing.get_type_hints(Training)
    keywords = [
        inspect.Parameter(
            field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=hints[field.name]
        )
        for field in fields(Training)
        if field.name not in but
    ]

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        signature = inspect.signature(function)
        others = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
        shown = signature.replace(parameters=[*others, *keywords])

        @functools.wraps(function)
        def checked(*arguments: Any, **named: Any) -> Any:
            shown.bind(*arguments, **named)
            return function(*arguments, **named)

        checked.__signature__ = shown  # type: ignore[attr-defined]
        return checked

    return decorate
