"""The sequential linear probe against the golden values, under every mask."""

from __future__ import annotations

import pytest
import torch

from clprompt.errors import ConfigError, ProtocolError
from clprompt.strategies.linear_probe import LinearProbeModel


@pytest.mark.parametrize("mask", ["experience", "seen", "batch", "none"])
def test_loss_and_gradients_are_the_golden_ones_under_every_mask(baselines, gradients, mask):
    model = baselines.put(LinearProbeModel(baselines.backbone(), mask=mask)).train()
    labels = baselines["labels" if mask == "experience" else "online_labels"]
    feature = model.encode(baselines["images"]).features
    baselines.check(model.logits(feature), "linear.logits")
    step = model.training_loss(baselines["images"], labels)
    baselines.check(step.loss, f"linear.{mask}.loss")
    step.loss.backward()
    baselines.check_gradients(f"linear.{mask}.grad.", gradients(model))
    feature = model.eval().encode(baselines["eval_images"]).features
    baselines.check(model.logits(feature), "linear.eval.logits")


@pytest.mark.parametrize(("mask", "moved"), [("experience", [4, 5]), ("seen", [0, 1, 2, 3, 4, 5])])
def test_rows_of_earlier_experiences_move_only_where_all_seen_classes_compete(exact, mask, moved):
    model = exact.put(LinearProbeModel(exact.backbone(), mask=mask)).train()
    model.training_loss(exact["images"], exact["labels"]).loss.backward()
    assert model.head.weight.grad.any(1).nonzero().flatten().tolist() == moved


def test_prediction_does_not_depend_on_batch_companions(exact, per_sample):
    per_sample(exact.put(LinearProbeModel(exact.backbone())), exact["eval_images"])


def test_only_the_head_is_trained_and_no_block_keeps_a_graph(exact):
    model = LinearProbeModel(exact.backbone())
    assert list(model.trainable()) == ["head.weight", "head.bias"]
    assert not model.train().encode(exact["images"])[0].requires_grad


def test_growth_keeps_the_logits_of_old_classes(backbone):
    model = LinearProbeModel(backbone, boundary_free=True).eval()
    images = torch.rand(3, 3, 32, 32)
    model.observe(torch.tensor([0, 1]))
    before = model(images)
    model.observe(torch.tensor([7]))
    after = model(images)
    assert after.shape == (3, 8)
    torch.testing.assert_close(after[:, :2], before, rtol=0, atol=1e-6)


def test_boundaries_are_required_by_the_mask_of_the_experience_alone(backbone):
    said = {
        mask: LinearProbeModel(backbone, mask=mask).boundaries for mask in ("experience", "seen", "batch")
    }
    assert said == {"experience": "required", "seen": "optional", "batch": "optional"}
    assert LinearProbeModel(backbone, boundary_free=True).boundaries == "unused"
    with pytest.raises(ConfigError, match="mask=experience"):
        LinearProbeModel(backbone, boundary_free=True, mask="experience")


def test_labels_never_observed_and_empty_batches_are_refused(backbone):
    model = LinearProbeModel(backbone, boundary_free=True)
    model.observe(torch.tensor([0, 2]))
    with pytest.raises(ProtocolError, match="label 1 was never observed"):
        model.training_loss(torch.rand(2, 3, 32, 32), torch.tensor([0, 1]))
    with pytest.raises(ProtocolError, match="empty batch"):
        model.training_loss(torch.rand(0, 3, 32, 32), torch.zeros(0, dtype=torch.long))
