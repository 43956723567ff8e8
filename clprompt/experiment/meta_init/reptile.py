"""Reptile: prompts move towards the mean of copies, each trained for a few steps on one source.

Source: Nichol et al. 2018; for pixel prompts Huang et al. 2023 (DAM-VP).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from clprompt.data.loading import sample_stream
from clprompt.data.sources import Material
from clprompt.errors import DataError
from clprompt.experiment.meta_init.settings import MetaInit
from clprompt.prompting import prompt_file
from clprompt.prompting.model import PromptModel
from clprompt.seeding import derive, preserved_rng
from clprompt.training import meta_steps, optim
from clprompt.training.steps import begin, receive, train_step


class Reptile:
    """A meta-init under way: everything of it but the backbone and the data is in :meth:`state`.

    Each source has a model, whose head and whatever else is no prompt goes on learning from one meta-step to
    the next, and is not written.

    Args:
        settings: of the meta-init.
        models: one for each source, equal but for their classes.
        materials: the sources.
    """

    def __init__(
        self, settings: MetaInit, models: Sequence[PromptModel], materials: Sequence[Material]
    ) -> None:
        self.settings = settings
        self.models = list(models)
        self.materials = list(materials)
        self.per_epoch = meta_steps.shortest(materials, settings.training.train_mb_size)
        self.steps = settings.training.train_epochs * self.per_epoch
        if not self.per_epoch:
            raise DataError("no meta-step can be made: a source holds no image")
        self.step = 0
        self.losses: list[list[float]] = []  # per meta-step: the first and the last inner loss
        for model, material in zip(self.models, self.materials, strict=True):
            _begin(model, material, settings)
        self.prompts = {name: value.clone() for name, value in self._of(self.models[0]).items()}

    def _parameters(self, model: PromptModel) -> dict[str, nn.Parameter]:
        """The listed prompts of a model, those that a file would hold, by set and number."""
        return {
            f"{name} {number}": parameter
            for name, prompts in prompt_file.listed_prompts(model).items()
            for number, parameter in enumerate(
                prompts.parameters if prompts.added == "never" else prompts.parameters[-1:]
            )
        }

    def _of(self, model: PromptModel) -> dict[str, Tensor]:
        return {name: parameter.detach() for name, parameter in self._parameters(model).items()}

    def batches(self) -> Iterator[list[Any]]:
        """One batch per source and meta-step, see :func:`clprompt.training.meta_steps.batches`."""
        training = self.settings.training
        return meta_steps.batches(
            self,
            self.materials,
            seed=self.settings.seed,
            batch_size=training.train_mb_size,
            workers=training.workers,
        )

    def meta_step(self, together: Sequence[Any]) -> None:
        """Train copies of the prompts on a batch of each source, and move the prompts towards their mean."""
        moved = {name: torch.zeros_like(value) for name, value in self.prompts.items()}
        losses = []
        with preserved_rng(derive(self.settings.seed, "meta-step", self.step)):
            for model, (images, labels, *_) in zip(self.models, together, strict=True):
                losses.append(self._adapt(model, images, labels))
                for name, value in self._of(model).items():
                    moved[name] += value - self.prompts[name]
        size = self.settings.step_size or 0.5
        for name, value in self.prompts.items():
            value += size / len(self.models) * moved[name]
        self.losses.append(np.mean(losses, axis=0).tolist())
        self.step += 1

    def _adapt(self, model: PromptModel, images: Tensor, labels: Tensor) -> list[float]:
        """Train a copy of the prompts within a model; returns the first and the last loss."""
        training = self.settings.training
        with torch.no_grad():
            for name, parameter in self._parameters(model).items():
                parameter.copy_(self.prompts[name])
        model.train()
        optimizer = optim.build(model, training)
        images, labels = model.placed(images), labels.to(model.device)
        receive(model, optimizer, labels)
        if optimizer is not None:
            optim.set_learning_rate(
                optimizer,
                training.schedule,
                self.step,
                self.steps,
                training.warmup,
                epochs=training.train_epochs,
            )
        losses = []
        for _ in range(self.settings.inner_steps or 4):
            result = train_step(model, optimizer, images, labels, clip_grad=training.clip_grad)
            losses.append(float(result.loss.detach()))
        if not np.isfinite(losses).all():
            raise DataError(f"the loss is {losses[-1]} at meta-step {self.step + 1}; lower training.lr")
        return [losses[0], losses[-1]]

    def values(self) -> dict[str, Tensor]:
        """The prompts as a file holds them, [K, *form] by set."""
        sets: dict[str, list[Tensor]] = {}
        for name, value in self.prompts.items():
            sets.setdefault(name.rpartition(" ")[0], []).append(value.float().cpu())
        return {name: torch.stack(values) for name, values in sets.items()}

    def state(self) -> dict[str, Any]:
        """All that it takes to go on to the same bits."""
        return {
            "step": self.step,
            "losses": self.losses,
            "prompts": dict(self.prompts),
            "models": [
                {name: value.detach().cpu().clone() for name, value in model.method_state().items()}
                for model in self.models
            ],
        }

    def load_state(self, saved: Mapping[str, Any]) -> None:
        """Put back what :meth:`state` gave."""
        self.step, self.losses = saved["step"], saved["losses"]
        device = self.models[0].device
        self.prompts = {name: value.to(device) for name, value in saved["prompts"].items()}
        for model, state in zip(self.models, saved["models"], strict=True):
            model.load_state_dict(state)


def _begin(model: PromptModel, material: Material, settings: MetaInit) -> None:
    """Begin the one experience of a source."""

    def samples() -> Iterator[tuple[Tensor, Tensor]]:
        training = settings.training
        for images, targets in sample_stream(material.clean, training.eval_mb_size, training.workers):
            yield model.placed(images), targets.to(model.device)

    classes = list(range(len(material.class_names)))
    if model.wants_experiences():
        begin(model, classes, samples)
    receive(model, None, torch.tensor(classes))
