"""The `memory` section of a configuration: the one way in which a run keeps images."""

from __future__ import annotations

import functools
import importlib
import inspect
import os
import re
import sys
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np

from clprompt import schema
from clprompt.errors import ConfigError
from clprompt.schema import above, at_least, at_most, below

if TYPE_CHECKING:
    from clprompt.prompting.model import PromptModel


class _NamesAFunction(type):
    """Says of a value whether it is a function, or names one as "module:function"."""

    def __instancecheck__(cls, value: Any) -> bool:
        if isinstance(value, str):
            return bool(re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*", value))
        return callable(value)


if TYPE_CHECKING:
    Factory = str | Callable[..., Any]
else:

    class Factory(metaclass=_NamesAFunction):
        """The type of a setting that is a user's own function: "module:function", or in Python itself."""

    Factory.__name__ = "module:function"  # what messages call it


def function_of(factory: Any, key: str) -> Callable[..., Any]:
    """The function that a setting is, or names; the current folder counts among the places of modules.

    Args:
        factory: the setting, a :class:`Factory`.
        key: its dotted key, for messages.

    Raises:
        ConfigError: no such module, or nothing of that name in it that can be called.
    """
    if not isinstance(factory, str):
        return factory  # type: ignore[no-any-return]
    module, _, name = factory.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        function = getattr(importlib.import_module(module), name)
    except Exception as error:  # whatever the module raises
        raise ConfigError(f"{key} {factory} cannot be imported: {type(error).__name__}: {error}") from error
    if not callable(function):
        raise ConfigError(f"{key} {factory} must be a function, got {type(function).__name__}")
    return function  # type: ignore[no-any-return]


Count = Annotated[int, at_least(1)]
#: Number format of a forward pass: 32 bits, or autocast to one of 16.
Precision = Literal["float32", "bf16", "fp16"]
#: How the learning rate goes within an experience, see :func:`clprompt.training.optim.set_learning_rate`.
Schedule = Literal["constant", "cosine", "cosine-coda"] | Factory


#: What fields of :class:`Training` are called elsewhere, for hints.
OTHER_NAMES = {
    "batch_size": "train_mb_size",
    "epochs": "train_epochs",
    "eval_batch_size": "eval_mb_size",
    "learning_rate": "lr",
    "num_workers": "workers",
}


@dataclass(frozen=True)
class Memory:
    """A memory of earlier images beside an online stream: not rehearsal-free, and the results say so.

    The run goes through Avalanche's replay plugin over its reservoir buffer: images of the memory join every
    training step, drawn afresh for each, and the reservoir is updated after each batch that arrived.
    """

    size: Count = 500
    """images in the reservoir"""
    batch_size: Count | None = None
    """how many of them join a training step; null for half of training.train_mb_size"""

    def __post_init__(self) -> None:
        schema.check_fields(self, "memory")

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

    def check_model(self, model: PromptModel, targets: Any) -> None:
        """Refuse a strategy or data that a memory does not serve.

        Raises:
            ConfigError: a strategy that trains nothing or revisits all images by itself, a plug-in that
                counts, or multi-hot targets.
        """
        if not model.trains or model.revisits != "never":
            raise ConfigError(
                f"memory is of no use to {type(model).__name__}, which "
                + ("trains nothing" if not model.trains else "trains on all images anyway")
            )
        if model.counts_received():
            raise ConfigError(
                "memory is refused: the method or a plug-in counts what is received, and images from it come "
                "again"
            )
        if np.ndim(targets) == 2:
            raise ConfigError("memory needs one label per image, got multi-hot targets")

    def __str__(self) -> str:
        return f"a reservoir of {self.size} images joins the training: this run is not rehearsal-free"


@dataclass(frozen=True)
class Training:
    """How a strategy is trained."""

    train_mb_size: Count = 32
    """samples per training step"""
    train_epochs: Annotated[int, at_least(0)] = 1
    """passes over each experience"""
    lr: Annotated[float, above(0)] = 0.005
    """learning rate"""
    optimizer: Literal["adam", "adamw", "sgd"] | Factory = "adam"
    """what takes the steps; a function of your own gets the parameter groups, lr= and weight_decay="""
    weight_decay: Annotated[float, at_least(0)] = 0.0
    """of the optimizer"""
    momentum: Annotated[float, at_least(0), below(1)] = 0.0
    """of sgd"""
    schedule: Schedule = "constant"
    """of the learning rate within an experience; "cosine" falls step by step, "cosine-coda" epoch by epoch;
    a function of your own gets step, steps and epochs, and returns the share of the full rate"""
    warmup: Annotated[float, at_least(0), below(1)] = 0.0
    """share of an experience's steps over which the learning rate rises to its full value"""
    clean_query: bool = False
    """whether an image's query is that of the image as evaluation shows it, however training varies it"""
    mixup: Annotated[float, at_least(0)] = 0.0
    """alpha of the beta distribution that images and labels of a batch are mixed by; 0 for none"""
    mixup_probability: Annotated[float, above(0), at_most(1)] = 1.0
    """share of batches that are mixed"""
    cutmix: Annotated[float, at_least(0)] = 0.0
    """alpha of the beta distribution of how much of an image a box of another one covers; 0 for none"""
    cutmix_probability: Annotated[float, above(0), at_most(1)] = 1.0
    """share of batches with such boxes; with mixup beside it the two shares are of different batches"""
    label_smoothing: Annotated[float, at_least(0), below(1)] = 0.0
    """share of a label that is spread over all classes that compete"""
    clip_grad: Annotated[float, above(0)] | None = None
    """largest norm of the gradient; null for no clipping"""
    eval_mb_size: Count = 128
    """samples per evaluation batch; it changes speed and memory, no result"""
    workers: Annotated[int, at_least(0)] = 0
    """processes that load images; 0 loads them in the training process"""
    compile: bool = False
    """have torch compile a training step's loss, anew whenever the model grows; equal up to rounding"""
    checkpoint_every: Count | None = None
    """training steps between checkpoints; null for one after each experience"""
    log_every: Count = 10
    """training steps between two records of the loss"""

    def __post_init__(self) -> None:
        schema.check_fields(self, "training")
        shares = self.mixup_probability, self.cutmix_probability
        if self.mixup and self.cutmix and sum(shares) > 1:
            raise ConfigError(
                "training.mixup_probability and training.cutmix_probability must be 1 or less together where "
                f"mixup and cutmix are both on, as a batch gets one of them; got {shares[0]} and {shares[1]}"
            )

    def notes(self) -> list[str]:
        """What whoever starts a run should know of these settings, in a sentence each."""
        if not self.clean_query:
            return []
        return [
            "training.clean_query=true: prompts are chosen by the image as evaluation shows it, which no "
            "paper does in training; figures are of another method"
        ]

    @property
    def moves_rate(self) -> bool:
        """Whether the learning rate changes within an experience."""
        return self.schedule != "constant" or self.warmup > 0


@dataclass(frozen=True)
class Online:
    """One pass over a stream without boundaries."""

    iterations: Count = 1
    """optimizer steps on each batch that arrives"""
    eval_every: Count | None = None
    """samples between two anytime evaluations; null for none"""
    cut_at_sessions: bool = True
    """whether a session's last batch is a short one; false lets batches run on over session ends"""

    def __post_init__(self) -> None:
        schema.check_fields(self, "online")


def takes_training(*, but: Collection[str] = ()) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorate a function with ``**fields``: its signature shows the fields of :class:`Training` as keywords.

    Args:
        but: fields that mean nothing to the function.

    Returns:
        The decorator; what it makes raises a TypeError for an unknown argument, as Python does.
    """
    keywords = schema.field_parameters(Training, but=but)

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
