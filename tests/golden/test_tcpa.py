"""The TCPA strategy against the reference: choices, logits, losses, gradients, optimizer steps."""

from __future__ import annotations

import pytest
import torch
from devices import DEVICE
from torch import Tensor

from clprompt.strategies.tcpa import TCPAModel

VARIANTS = {
    "code": {"fourier": "joint", "mask_position": "after"},
    "vpt_after": {"mask_position": "after"},
    "vpt_before": {},
    "joint_before": {"fourier": "joint"},
    "role_code": {"fourier": "joint", "mask_position": "after", "token_matching": False},
    "role_before": {"token_matching": False},
    "all_before": {"top_k_cls": 5, "top_k_image": 6},
    "random_code": {"fourier": "joint", "mask_position": "after", "random_epochs": 1},
    "detached_before": {"detach_query": True},
}
PARAMETERS = {
    "keys_cls": "keys.cls.0",
    "keys_image": "keys.image.0",
    "prompts_cls": "entries.cls.0",
    "prompts_image": "entries.image.0",
    "head.weight": "head.weight",
    "head.bias": "head.bias",
}


@pytest.fixture(params=[torch.float64, torch.float32], ids=["float64", "float32"])
def tcpa(request, golden):
    return golden("tcpa_forward", request.param)


class Recorded(TCPAModel):
    """Draws its warm-up choices from the file."""

    file = None

    def _draw(self, name: str, number: int, shape) -> Tensor:
        role = name.removeprefix("choice ")
        # the reference takes the first k of the ascending order
        return 1 - self.file[f"input.random_{role}"][number].reshape(shape)


def build(tcpa, variant: str, *, classes=range(10), **arguments) -> TCPAModel:
    settings = {
        "pool_cls": 5,
        "pool_image": 6,
        "top_k_cls": 2,
        "top_k_image": 3,
        "length_cls": 2,
        "random_epochs": 0,
        "prompts": "shared",
        "mask": "none",
        **VARIANTS[variant],
        **arguments,
    }
    model = Recorded(tcpa.backbone(), matching_weight=float(tcpa["config.weight"]), **settings)
    model.file = tcpa
    model.to(DEVICE, tcpa.dtype)
    model.begin_experience(classes)
    model.observe(torch.arange(10, device=DEVICE))
    model.to(tcpa.dtype)
    with torch.no_grad():
        for name, parameter in PARAMETERS.items():
            own = dict(model.named_parameters())
            if parameter in own:
                key = f"backbone.{name}" if name.startswith("head") else f"method.{name}"
                own[parameter].copy_(tcpa[key])
    if variant == "random_code":
        model.begin_epoch(0)
    return model


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_and_losses_of_every_variant(tcpa, variant):
    model = build(tcpa, variant).train()
    step = model.training_loss(tcpa["input.images"], tcpa["input.labels"])
    tcpa.check(step.logits, f"{variant}.logits")
    tcpa.check(step.terms["cross_entropy"], f"{variant}.ce")
    if f"{variant}.match" in tcpa:
        expected = tcpa["config.weight"] * tcpa[f"{variant}.match"]
        torch.testing.assert_close(step.terms["matching"], expected, rtol=1e-4, atol=1e-10)
        tcpa.check(step.loss, f"{variant}.loss")


@pytest.mark.parametrize("variant", [name for name in VARIANTS if name != "random_code"])
def test_evaluation_skips_work_and_gives_the_same_logits(tcpa, variant):
    model = build(tcpa, variant).eval()
    tcpa.check(model(tcpa["input.images"]), f"{variant}.logits")


def test_choices_equal_the_recorded_masks(tcpa):
    model = build(tcpa, "vpt_before")
    chosen = model.choices(tcpa["input.images"])
    masks = tcpa["vpt_before.mask"]  # (blocks, B, N, P), class columns first
    assert torch.equal(chosen["cls"].repeat_interleave(2, -1), masks[:, :, :1, :10])
    assert torch.equal(chosen["image"], masks[:, :, 1:, 10:])


@pytest.mark.parametrize("variant", ["code", "vpt_after", "vpt_before", "detached_before"])
def test_gradients(golden, variant):
    tcpa = golden("tcpa_forward")
    model = build(tcpa, variant).train()
    model.training_loss(tcpa["input.images"], tcpa["input.labels"]).loss.backward()
    own = dict(model.named_parameters())
    for name, parameter in PARAMETERS.items():
        if f"{variant}.grad.{name}" in tcpa:
            tcpa.check(own[parameter].grad, f"{variant}.grad.{name}")


def test_gradients_with_the_mask_of_the_task(golden):
    tcpa = golden("tcpa_forward")
    classes = tcpa["input.task_classes"].tolist()
    model = build(tcpa, "vpt_before", classes=classes, mask="experience", prompts="grow").train()
    step = model.training_loss(tcpa["input.images"], tcpa["input.labels"])
    tcpa.check(step.loss, "vpt_before.loss_task")
    step.loss.backward()
    own = dict(model.named_parameters())
    for name, parameter in PARAMETERS.items():
        tcpa.check(own[parameter].grad, f"vpt_before.grad_task.{name}")


@pytest.mark.parametrize("variant", ["code", "vpt_before"])
def test_three_adam_steps(golden, variant):
    tcpa = golden("tcpa_forward")
    model = build(tcpa, variant).train()
    optimizer = torch.optim.Adam(model.trainable().values(), lr=float(tcpa["config.lr"]))
    losses = []
    for _ in range(3):
        loss = model.training_loss(tcpa["input.images"], tcpa["input.labels"]).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    tcpa.check(torch.stack(losses), f"{variant}.adam3.losses")
    tcpa.check(model.eval()(tcpa["input.images"]), f"{variant}.adam3.logits")
    own = dict(model.named_parameters())
    for name, parameter in PARAMETERS.items():
        if f"{variant}.adam3.after.{name}" in tcpa:
            tcpa.check(own[parameter], f"{variant}.adam3.after.{name}")
