"""An outsider's method and data set that make resuming hard, and points at which their process ends itself.

Imported by name in processes of their own; never by pytest.
"""

from __future__ import annotations

import os
import random
import signal
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from clprompt.backbones import BlockPrompt, FrozenViT
from clprompt.data import Augment, DataBundle, ImageSource
from clprompt.prompting import (
    Boundaries,
    Cache,
    Encoded,
    PromptModel,
    Samples,
    SoftLabels,
    grow_rows,
    grown,
)
from clprompt.registry import datasets, strategies
from clprompt.seeding import generator

# ------------------------------------------------------------------ points, and what happens there

_armed: dict[tuple[str, int], int] = {}
_reached: Counter[str] = Counter()


def arm(points: str | None, number: int = signal.SIGKILL) -> None:
    """Send this process a signal at each of the points ``name:n, name:n``, the n-th time at ``name``."""
    _reached.clear()
    _armed.clear()
    for point in (points or "").split(", "):
        name, _, count = point.partition(":")
        _armed[name, int(count or 1)] = int(number)


def reach(name: str, before: Callable[[], object] | None = None) -> None:
    """A point. ``before`` is called just before the signal."""
    _reached[name] += 1
    if (name, _reached[name]) in _armed:
        if before is not None:
            before()
        os.kill(os.getpid(), _armed[name, _reached[name]])


def watch_files() -> None:
    """Points in every atomic write: ``sync checkpoint|figures|run``, ``replace FILE``, ``replaced FILE``."""
    fsync, replace = os.fsync, os.replace

    def watched_fsync(descriptor: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        if path.suffix == ".tmp":  # half of the file has arrived
            where = path.parent.name if path.parent.name in ("checkpoint", "figures") else "run"
            reach(f"sync {where}", lambda: os.truncate(path, path.stat().st_size // 2))
        fsync(descriptor)

    def watched_replace(source: Any, target: Any) -> None:
        reach(f"replace {Path(target).name}")
        replace(source, target)
        reach(f"replaced {Path(target).name}")

    os.fsync, os.replace = watched_fsync, watched_replace


register_optimizer_step_post_hook(lambda *_: reach("stepped"))


# ------------------------------------------------------------------ data


@datasets.register("crash_patterns")
def patterns(*, train: int = 12, test: int = 6, classes: int = 6, augment: Augment = "none") -> DataBundle:
    """Noisy patterns, uint8 [1, 16, 16]."""
    means = torch.randint(0, 256, (classes, 1, 16, 16), generator=generator(0, "means")).float()

    def source(count: int, name: str) -> ImageSource:
        targets = np.arange(classes).repeat(count)
        noise = torch.randn(len(targets), 1, 16, 16, generator=generator(0, name)) * 60
        images = (means[targets] + noise).clamp(0, 255).to(torch.uint8)
        return ImageSource(load=lambda i: images[i], targets=targets)

    names = [f"pattern {c}" for c in range(classes)]
    return DataBundle("crash_patterns", source(train, "train"), source(test, "test"), names, augment)


# ------------------------------------------------------------------ method


@strategies.register("crash_growing")
class GrowingModel(PromptModel):
    """Grows in every way, and draws from every global random state.

    Per experience a number of prompts that differs, and a gate of its own; those of old experiences are
    frozen. Per class a row in the head and one in ``shifts``. Prompts start from the experience's images plus
    global noise.
    """

    def __init__(self, backbone: FrozenViT, *, seed: int = 0, boundary_free: bool = False) -> None:
        super().__init__(backbone, seed=seed, mask="seen" if boundary_free else "experience")
        width = backbone.width
        self.shared = nn.Linear(width, width)  # initial values from the global state
        self.shifts = nn.Parameter(torch.zeros(0, width))
        self.prompts = nn.ParameterList()  # one [n, D] per experience, n differs
        self.gates = nn.ParameterDict()  # one [D] per experience, by its name
        self.steps: Tensor
        self.drawn: Tensor
        self.register_buffer("steps", torch.zeros(0, dtype=torch.int64))  # per class
        self.register_buffer("drawn", torch.zeros(3, dtype=torch.float64))  # of the three global states

    @property
    def boundaries(self) -> Boundaries:
        return "unused" if self.mask == "seen" else "required"

    def start_experience(self, index: int, samples: Samples | None) -> None:
        reach("begin")
        assert samples is not None
        mean = torch.zeros(())
        for batch, _ in samples():
            reach("looked")
            mean = mean + batch.double().mean().float()
        count = 1 + 2 * index % 3
        self.prompts.append(nn.Parameter(0.5 * torch.randn(count, self.backbone.width) + mean))
        self.gates[f"of_{index}"] = nn.Parameter(torch.full((self.backbone.width,), random.random()))
        reach("begun")

    def finish_experience(self) -> None:
        reach("end")

    def set_stage(self) -> None:
        for number, prompt in enumerate(self.prompts):
            prompt.requires_grad_(number == len(self.prompts) - 1)
            self.gates[f"of_{number}"].requires_grad_(number == len(self.prompts) - 1)

    def grow_classes(self, num_classes: int) -> None:
        missing = num_classes - self.shifts.shape[0]
        self.shifts = grown(self.shifts, torch.zeros(missing, self.backbone.width))
        grow_rows(self.steps, torch.zeros(missing))

    def resize_to(self, state: Mapping[str, Tensor]) -> None:
        super().resize_to(state)
        for number in range(sum(name.startswith("prompts.") for name in state)):
            if number >= len(self.prompts):
                self.prompts.append(nn.Parameter(torch.zeros_like(state[f"prompts.{number}"])))
                self.gates[f"of_{number}"] = nn.Parameter(torch.zeros(self.backbone.width))

    def encode(self, images: Tensor, cached: Cache | None = None) -> Encoded:
        if not self.training:
            reach("forward")
        stem, query = self.query(images, 1, cached)
        rows = list(self.prompts)

        def prompts(block: int, x: Tensor) -> list[BlockPrompt]:
            return [BlockPrompt("fresh", torch.cat(rows)[None])] if rows and block == 1 else []

        features = self.shared(self.backbone.prompted(stem, prompts, start=1)) + query
        for gate in self.gates.values():
            features = features * (1 + 0.1 * torch.tanh(gate))
        if self.training:
            draws = [float(torch.rand(())), np.random.rand(), random.random()]  # noqa: NPY002
            self.drawn += torch.tensor(draws, dtype=torch.float64)
            features = F.dropout(features * (0.9 + 0.1 * draws[1] + 0.1 * draws[2]), 0.2)
        return Encoded(features, {"pull": 0.1 * (features - query).square().mean()})

    def logits(self, features: Tensor) -> Tensor:
        return super().logits(features) + features @ self.shifts.T

    def param_groups(self) -> list[dict[str, Any]]:
        """A group with a rate of its own for each experience, in front of the common one."""
        own = {k: p for k, p in self.trainable().items() if k.startswith(("prompts.", "gates."))}
        rest = {k: p for k, p in self.trainable().items() if k not in own}
        number = len(self.prompts)
        return [
            {"name": f"experience {number}", "params": own, "lr": 0.02 / (1 + number)},
            {"name": "common", "params": rest},
        ]

    def losses(
        self, encoded: Encoded, targets: Tensor, soft: SoftLabels | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        reach("loss")
        self.steps += torch.bincount(targets, minlength=self.num_classes)
        return super().losses(encoded, targets, soft)

    def diagnostics(self) -> dict[str, Tensor]:
        return {"growing/drawn": self.drawn.sum(), "growing/shifts": self.shifts.detach()}


@strategies.register("crash_keeping")
class KeepingModel(GrowingModel):
    """The same with one optimizer for the whole stream."""

    optimizer_reset = "never"
