"""The `memory` section of a configuration: the one way in which a run keeps images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

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
            ConfigError: a strategy that trains nothing or revisits all images by itself, or multi-hot targets.
        """
        if not model.trains or model.revisits != "never":
            raise ConfigError(
                f"memory is of no use to {type(model).__name__}, which "
                + ("trains nothing" if not model.trains else "trains on all images anyway")
            )
        if np.ndim(targets) == 2:
            raise ConfigError("memory needs one label per image, got multi-hot targets")

    def __str__(self) -> str:
        return f"a reservoir of {self.size} images joins the training: this run is not rehearsal-free"
