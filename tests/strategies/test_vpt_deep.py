"""VPT-deep against the golden values, and what its definition promises."""

from __future__ import annotations

import math

import pytest
import torch

from clprompt.errors import ConfigError, ProtocolError
from clprompt.strategies.vpt_deep import VPTDeepModel
from clprompt.training import optim


def golden_model(base, **arguments) -> VPTDeepModel:
    return base.put(VPTDeepModel(base.backbone(), length=3, **arguments), {"prompts": base["vpt.prompt"]})


def test_logits_loss_and_gradients_are_the_golden_ones(baselines, gradients):
    model = golden_model(baselines)
    own = gradients(model, prompt=lambda: model.prompts.grad)
    step = baselines.check_step(model, "train", "vpt.train.", own)
    assert list(step.terms) == ["cross_entropy"]
    feature = model.eval().encode(baselines["eval_images"]).features
    baselines.check(model.logits(feature), "vpt.eval.logits")


def test_prediction_does_not_depend_on_batch_companions(exact, per_sample):
    per_sample(golden_model(exact), exact["eval_images"])


def test_without_prompted_blocks_it_is_the_linear_probe_on_frozen_features(exact):
    model = VPTDeepModel(exact.backbone(), layers=())
    feature = model.encode(exact["images"]).features
    exact.check(feature, "query")


def test_the_order_of_a_blocks_tokens_does_not_matter(exact):
    model, images = golden_model(exact).eval(), exact["eval_images"]
    before = model(images)
    model.prompts.data = model.prompts.data.flip(1)
    torch.testing.assert_close(model(images), before, rtol=0, atol=1e-12)


def test_blocks_before_the_first_prompted_one_run_without_gradient(exact):
    model = VPTDeepModel(exact.backbone(), layers=(2, 4), length=3).double().train()
    assert model.first_block == 2
    model.observe(exact["labels"])
    model.begin_experience([4, 5])
    model.double()
    given = {block: model.block_prompt(block, exact["images"]) for block in range(6)}
    assert [block for block, prompt in given.items() if prompt is not None] == [2, 4]
    assert torch.equal(given[4].tokens, model.prompts[1:2])
    model.training_loss(exact["images"], exact["labels"]).loss.backward()
    assert bool(model.prompts.grad.flatten(1).any(1).all())
    assert all(parameter.grad is None for parameter in model.backbone.parameters())


def test_initial_prompts_fill_the_range_that_the_patch_size_and_width_give(backbone):
    model = VPTDeepModel(backbone, length=50)
    bound = math.sqrt(6 / (3 * 8 * 8 + 32))
    assert 0.98 * bound < float(model.prompts.detach().abs().max()) <= bound
    assert torch.equal(model.prompts, VPTDeepModel(backbone, length=50).prompts)
    assert not torch.equal(model.prompts, VPTDeepModel(backbone, length=50, seed=1).prompts)


@pytest.mark.parametrize(("reset", "stays"), [(True, True), (False, False)])
def test_a_second_experience_moves_prompts_but_not_old_rows_of_the_head(exact, reset, stays):
    model = golden_model(exact).train()
    optimizer = optim.build(model, lr=0.01)
    for classes in ([4, 5], [6, 7]):
        model.begin_experience(classes)
        old_rows, prompts = model.head.weight[4:6].detach().clone(), model.prompts.detach().clone()
        if reset:
            optimizer = optim.build(model, lr=0.01)
        targets = torch.tensor(classes * 3)
        model.observe(targets)
        optimizer.zero_grad()
        model.training_loss(exact["images"], targets).loss.backward()
        optimizer.step()
    assert torch.equal(model.head.weight[4:6], old_rows) is stays
    assert not torch.equal(model.prompts, prompts)


@pytest.mark.parametrize("mask", [None, "seen", "batch", "none"])
def test_without_boundaries_it_trains_under_every_mask_but_that_of_an_experience(backbone, mask):
    model = VPTDeepModel(backbone, boundary_free=True, mask=mask)
    assert model.boundaries == "unused"
    model.observe(torch.tensor([0, 2, 4]))
    step = model.training_loss(torch.rand(2, 3, 32, 32), torch.tensor([2, 2]))
    step.loss.backward()
    assert step.loss.isfinite()
    moved = model.head.weight.grad.any(1).nonzero().flatten().tolist()
    assert moved == {"batch": [], "none": [0, 1, 2, 3, 4]}.get(mask, [0, 2, 4])


def test_it_says_where_a_first_experience_is_missing(backbone):
    model = VPTDeepModel(backbone)
    model.observe(torch.tensor([0]))
    with pytest.raises(ProtocolError, match="begin_experience"):
        model.training_loss(torch.rand(1, 3, 32, 32), torch.tensor([0]))


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"length": 0}, "length"),
        ({"layers": (0, 6)}, "layers: block 6"),
        ({"layers": (-1,)}, r"layers must be list of int \(at least 0\) or null, got \[-1\]"),
        ({"layers": (1, 1)}, "layers names a block twice"),
        ({"mask": "experience", "boundary_free": True}, "mask=experience"),
    ],
)
def test_bad_arguments_are_refused_by_name(backbone, arguments, named):
    with pytest.raises(ConfigError, match=named):
        VPTDeepModel(backbone, **arguments)
