"""Every strategy that takes the batch mask trains with it: classes outside the batch do not compete."""

from __future__ import annotations

import inspect
import typing
from functools import cache
from typing import Any

import pytest
import torch
from devices import DEVICE, as_in_a_run
from small_methods import image_methods
from torch import Tensor

from clprompt import registry
from clprompt.prompting.model import PromptModel
from clprompt.testing.bench import SIDE, tiny_vit

SEEN = [0, 1, 2, 3, 5]  # class 4 has columns and was never seen


def masked() -> list[str]:
    """The strategies that take ``mask: batch``."""
    return [name for name in image_methods() if "batch" in _words(_hints(name).get("mask"))]


def _hints(name: str) -> dict[str, Any]:
    return typing.get_type_hints(registry.strategies.get(name).target.__init__)


def _words(hint: Any) -> set[Any]:
    inner = typing.get_args(hint)
    return {hint} if not inner else set().union(*(_words(member) for member in inner))


@cache
def batch() -> tuple[Tensor, Tensor]:
    """Images of three of the classes seen."""
    images = torch.randn(8, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    return images.to(DEVICE), torch.tensor([0, 1, 1, 5, 0, 5, 5, 1], device=DEVICE)


def make(name: str, mask: str) -> PromptModel:
    """A model without boundaries that has seen all of ``SEEN``."""
    target = registry.strategies.get(name).target
    free = {"boundary_free": True} if "boundary_free" in inspect.signature(target).parameters else {}
    model = target(tiny_vit(), mask=mask, **free).to(DEVICE)
    assert model.boundaries == "unused"
    model.observe(torch.tensor(SEEN))
    return model


def step(model: PromptModel, outside: float) -> tuple[Tensor, Tensor]:
    """The loss, and the gradient on the head, with weights of that size for the classes outside the batch."""
    images, targets = batch()
    with torch.no_grad():
        model.head.weight.copy_(torch.randn(6, 32, generator=torch.Generator().manual_seed(1)) / 6)
        model.head.weight[[2, 3, 4]] *= outside
    loss = model.training_loss(images, targets).loss
    loss.backward()
    return loss.detach(), model.head.weight.grad


@pytest.mark.parametrize("name", masked())
def test_classes_outside_the_batch_compete_as_the_mask_says(name: str) -> None:
    losses, gradients = {}, {}
    with as_in_a_run():
        for mask in ("batch", "seen", "none"):
            results = [step(make(name, mask), outside) for outside in (1.0, 3.0)]
            losses[mask] = [loss for loss, _ in results]
            gradients[mask] = results[0][1]
    same = {mask: torch.equal(one, other) for mask, (one, other) in losses.items()}
    assert same == {"batch": True, "seen": False, "none": False}
    moved = {mask: gradient.abs().sum(1).nonzero().flatten().tolist() for mask, gradient in gradients.items()}
    assert moved == {"batch": [0, 1, 5], "seen": SEEN, "none": [0, 1, 2, 3, 4, 5]}


@pytest.mark.parametrize("name", masked())
def test_the_logits_that_a_step_shows_are_of_all_classes_seen_whatever_the_mask(name: str) -> None:
    model = make(name, "batch")
    images, targets = batch()
    with as_in_a_run():
        logits = model.training_loss(images, targets).logits
    assert logits.isfinite().all(0).nonzero().flatten().tolist() == SEEN


def test_the_strategies_that_take_the_batch_mask_are_these() -> None:
    methods = {"coda_prompt", "dualprompt", "flyprompt", "l2p", "linear_probe", "mvp", "tcpa", "vpt_deep"}
    assert set(masked()) == methods
