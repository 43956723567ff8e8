"""A training step waits for no device, tried on one that is not there.

Autograd's engine wants a driver, so gradients are put in by hand: without boolean indices on the way forward
there is none on the way back.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from absent_gpu import AbsentGPU, WaitsForDevice, is_there
from small_methods import takes_label_sets_its_own_way
from step_forms import forms
from torch import Tensor

from clprompt import registry
from clprompt.prompting.model import PromptModel
from clprompt.testing.bench import CLASSES, Workbench, tiny_model
from clprompt.testing.label_sets import ScenesBench
from clprompt.training import optim
from clprompt.training.finite import FiniteWatch
from clprompt.training.steps import receive, train_step_loss

pytestmark = pytest.mark.filterwarnings("ignore:.*CUDA is not available", "ignore:.*CPU")


@pytest.fixture(scope="module")
def labels() -> Workbench:
    return Workbench(registry.strategies.get("linear_probe").target)


@pytest.fixture(scope="module")
def label_sets() -> ScenesBench:
    return ScenesBench(registry.strategies.get("linear_probe").target)


def step_on(gpu: AbsentGPU, method: type[PromptModel], data: Workbench, **arguments: Any) -> None:
    """A training step of a method on the GPU, labels coming from the host."""
    model = tiny_model(method, **arguments).train()
    if model.boundaries == "required" or any(plugin.needs_experiences for plugin in model.plugins):
        model.begin_experience(CLASSES[0], data.samples(0))
    images, targets = data.batch(0)
    receive(model, None, targets)
    gpu.move(model)
    if model.backbone.text is not None:
        model.backbone.text._features.clear()  # as going to another device does
    optimizer, watch = optim.build(model, data.training()), FiniteWatch(model)
    with gpu:
        receive(model, optimizer, targets)
        step = train_step_loss(model, model.placed(images), targets)
        watch.note(step, images, 1, 1)
        assert is_there(step.loss)
        if optimizer is not None:
            for parameter in model.trainable().values():
                parameter.grad = torch.zeros_like(parameter)
            optim.clip(optimizer, 1.0)
            optimizer.step()


def check(name: str, data: Workbench, arguments: dict[str, Any]) -> None:
    method = registry.strategies.get(name).target
    if name != "damvp":
        step_on(AbsentGPU(), method, data, **arguments)
        return
    # what its images chose decides which of its parameters have a gradient
    with pytest.raises(WaitsForDevice, match="copy to the host"):
        step_on(AbsentGPU(), method, data, **arguments)


@pytest.mark.parametrize(("name", "arguments"), forms())
def test_a_training_step_waits_for_no_device(labels: Workbench, name: str, arguments: dict[str, Any]) -> None:
    check(name, labels, arguments)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        *(form for form in forms(further=False) if takes_label_sets_its_own_way(form.values[0])),
        pytest.param("multilane", {"loss": "asymmetric", "loss_mean": "active"}, id="asymmetric"),
        pytest.param("linear_probe", {"mask": "batch", "statistics": "lda"}, id="mask of the batch"),
    ],
)
def test_a_training_step_on_label_sets_waits_for_no_device(
    label_sets: ScenesBench, name: str, arguments: dict[str, Any]
) -> None:
    check(name, label_sets, arguments)


@pytest.mark.parametrize(
    "ask",
    [
        lambda x: x.sum().item(),
        lambda x: bool(x.any()),
        lambda x: x.tolist(),
        lambda x: x.cpu(),
        lambda x: x.nonzero(),
        lambda x: x.unique(),
        lambda x: x[x > 0],
        lambda x: x.long().bincount(),
        lambda x: x[[0]],
        lambda x: torch.tensor([0], device=x.device),
        lambda x: x.masked_fill_(x > 0, 0).index_put_((x > 0,), x.new_ones(())),
        lambda x: torch.ones(1).to(x.device),
    ],
)
def test_the_absent_gpu_refuses_whatever_waits(ask: Any) -> None:
    gpu = AbsentGPU()
    with gpu:
        there: Tensor = gpu.moved(torch.ones(4))
        with pytest.raises(WaitsForDevice):
            ask(there)
