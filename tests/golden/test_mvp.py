"""The strategy itself, switched to what the released code does, against its outputs."""

import pytest
import torch
from devices import DEVICE
from torch import Tensor

from clprompt.prompting.losses import mask_logits
from clprompt.strategies.mvp import MVPModel
from clprompt.training import optim
from clprompt.training.precision import autocast

VARIANTS = {"pt": "prompt", "pf": "prefix"}
PARAMETERS = {  # ours -> the file's
    "keys": "key",
    "masks": "mask",
    "g_prompt": "g_prompts",
    "e_prompts": "e_prompts",
    "head.weight": "backbone.head.weight",
    "head.bias": "backbone.head.bias",
}
RELEASED = {"focal_weighting": "batch", "count_pairing": "cross"}


@pytest.fixture(params=[torch.float64, torch.float32], ids=["float64", "float32"])
def mvp(request, golden):
    return golden("mvp_forward", request.param)


def stored(mvp, variant: str, name: str, prefix: str = "") -> str:
    """The key of one of our parameters in the file."""
    key = PARAMETERS[name]
    if prefix:
        return f"{variant}.{prefix}.{key}"
    return f"{variant}.{key}" if key.endswith("prompts") else key


def build(mvp, variant: str, **arguments) -> MVPModel:
    model = MVPModel(
        mvp.backbone(),
        variant=VARIANTS[variant],
        pool_size=5,
        g_layers=tuple(mvp["pos_g"].tolist()),
        g_length=int(mvp["len_g"]),
        e_layers=tuple(mvp["pos_e"].tolist()),
        e_length=int(mvp["len_e"]),
        **{**RELEASED, **arguments},
    ).to(DEVICE, mvp.dtype)
    model.observe(torch.arange(10, device=DEVICE))
    model.seen.copy_(mvp["seen"] == 1)
    with torch.no_grad():
        for name, parameter in model.trainable().items():
            parameter.copy_(mvp[stored(mvp, variant, name)].reshape(parameter.shape))
        model.counts.copy_(mvp["count"])
    return model


def gradients(mvp, model: MVPModel, variant: str) -> dict[str, Tensor]:
    shapes = {name: mvp[stored(mvp, variant, name)].shape for name in PARAMETERS}
    return {name: p.grad.reshape(shapes[name]) for name, p in model.trainable().items()}


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_part_of_the_training_step(mvp, variant):
    model, labels = build(mvp, variant), mvp["labels"]
    feature, _, (chosen, distance) = model.encode(mvp["images"])
    mass = model.mass()
    mvp.check(model._query(mvp["images"], None)[1], "query")
    mvp.check(distance, "distance")
    mvp.check(chosen, "selected")
    mvp.check(feature, f"{variant}.feature")
    factors = model._factors(chosen)
    mvp.check(factors, f"{variant}.instance_mask")
    logits = mask_logits(model.logits(feature) * factors, model.seen)
    mvp.check(logits, f"{variant}.logits")
    mvp.check(model.compensation(feature, labels), f"{variant}.compensation")
    batch = model.batch_gradient(feature, logits, factors, labels)
    mvp.check(batch, f"{variant}.batch_grad")
    weights = model.focal_weights(feature, logits, factors, labels)
    mvp.check(weights, f"{variant}.focal_weight")
    mvp.check(((weights - 0.5) / 0.5).sqrt(), f"{variant}.ignore")
    mvp.check(model.key_loss(distance, chosen, mass), f"{variant}.similarity_loss")
    model.count_pairing = "own"
    mvp.check(model.key_loss(distance, chosen, mass), f"{variant}.similarity_loss_per_sample_count")


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_released_loss_its_logits_and_every_gradient(mvp, variant):
    model = build(mvp, variant)
    step = model.training_loss(mvp["images"], mvp["labels"])
    mvp.check(step.loss, f"{variant}.loss")
    mvp.check(step.logits, f"{variant}.logits")
    mvp.check(step.terms["keys"], f"{variant}.similarity_loss")
    mvp.check(model.counts.to(mvp.dtype), f"{variant}.count_after")
    step.loss.backward()
    for name, gradient in gradients(mvp, model, variant).items():
        mvp.check(gradient, stored(mvp, variant, name, "grad"))


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_losses_that_weigh_each_sample_and_count_its_own_slot(mvp, variant):
    step = build(mvp, variant, focal_weighting="per_sample").training_loss(mvp["images"], mvp["labels"])
    mvp.check(step.loss, f"{variant}.loss_per_sample_weight")
    step = build(mvp, variant, count_pairing="own").training_loss(mvp["images"], mvp["labels"])
    mvp.check(step.terms["keys"], f"{variant}.similarity_loss_per_sample_count")


ABLATIONS = {
    "no_mask": {"logit_mask": False},
    "no_contrastive": {"contrastive": False},
    "no_afs": {"feature_scaling": False},
    "no_gsf": {"focal": False},
    "last_layer": {"query": "last"},
    "plain": {"logit_mask": False, "contrastive": False, "feature_scaling": False, "focal": False},
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("ablation", ABLATIONS)
def test_each_part_can_be_switched_off(mvp, variant, ablation):
    model = build(mvp, variant, **ABLATIONS[ablation])
    step = model.training_loss(mvp["images"], mvp["labels"])
    mvp.check(step.loss, f"{variant}.ablation.{ablation}.loss")


@pytest.mark.parametrize("variant", VARIANTS)
def test_three_adam_steps_with_advancing_counts(mvp, variant):
    model = build(mvp, variant)
    optimizer = optim.build(model, optimizer="adam", lr=float(mvp["lr"]))
    losses, counts = [], []
    for _ in range(3):
        step = model.training_loss(mvp["images"], mvp["labels"])
        optimizer.zero_grad()
        step.loss.backward()
        optimizer.step()
        losses.append(step.loss.detach())
        counts.append(model.counts.clone())
    mvp.check(torch.stack(losses), f"{variant}.trace.loss")
    mvp.check(torch.stack(counts).to(mvp.dtype), f"{variant}.trace.count")
    for name, parameter in model.trainable().items():
        key = stored(mvp, variant, name, "trace")
        # Adam turns the rounding noise of a vanishing gradient into whole steps
        mvp.check(parameter.reshape(mvp[key].shape), key, scaled=None if mvp.dtype == torch.float64 else 2e-3)
    model.eval()
    model.seen.fill_(True)  # the file's are before the mask
    mvp.check(model(mvp["eval_images"]), f"{variant}.trace.eval_logits", scaled=1e-4)


@pytest.mark.parametrize("variant", VARIANTS)
def test_evaluation_weighs_by_counts_or_takes_the_nearest_key(mvp, variant):
    model = build(mvp, variant).eval()
    before = model.counts.clone()
    model.seen.fill_(True)
    mvp.check(model(mvp["eval_images"]), f"{variant}.eval_logits")
    assert torch.equal(model.counts, before)
    model.weighted_inference = False
    mvp.check(model.select(mvp["query"])[1], "selected_unweighted")


def test_under_bfloat16_losses_are_finite_and_selections_the_same(golden):
    mvp = golden("mvp_forward", torch.float32)
    model = build(mvp, "pt", **{"focal_weighting": "per_sample", "count_pairing": "own"})
    images = torch.cat([mvp["images"], mvp["eval_images"]]).repeat(8, 1, 1, 1)
    images = images + 0.1 * torch.randn(images.shape, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    exact = model.select(model._query(images, None)[1])[1]
    with autocast(images.device, "bf16"):
        rough = model.select(model._query(images, None)[1])[1]
        step = model.training_loss(mvp["images"], mvp["labels"])
    assert (exact == rough).float().mean() >= 0.97
    step.loss.backward()
    assert step.loss.dtype == torch.float32
    assert step.loss.isfinite()
    assert all(p.grad.isfinite().all() for p in model.trainable().values())
