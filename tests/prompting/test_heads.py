"""Heads grow by rows; old rows, their moments and the order of arrival are of no consequence to one another."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from clprompt.prompting.heads import CosineHead, LinearHead
from clprompt.prompting.model import Cache, PromptModel
from clprompt.testing.bench import tiny_vit
from clprompt.training import optim

HEADS = [LinearHead, CosineHead]


class Probe(PromptModel):
    """A head on frozen features."""

    def __init__(self, head: type[LinearHead]) -> None:
        backbone = tiny_vit()
        super().__init__(backbone, mask="seen")
        self.head = head(backbone.width)

    def encode(self, images: Tensor, cached: Cache | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        return self.features(images, cached), {}


@pytest.mark.parametrize("kind", HEADS)
def test_rows_are_a_function_of_seed_and_class_id_whatever_the_order_of_growth(kind):
    at_once, step_by_step, other = kind(8, seed=3), kind(8, seed=3), kind(8, seed=4)
    at_once.grow(5)
    other.grow(5)
    assert [step_by_step.grow(count) for count in (2, 2, 5, 1)] == [True, False, True, False]
    assert torch.equal(at_once.weight, step_by_step.weight)
    assert not torch.equal(at_once.weight, other.weight)
    assert at_once.num_classes == 5


@pytest.mark.parametrize("kind", HEADS)
def test_growth_keeps_logits_of_old_classes(kind):
    head, features = kind(8), torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    head.grow(3)
    rows = {name: value.clone() for name, value in head.named_parameters() if value.dim()}  # a scale has none
    before = head(features)
    head.grow(7)
    assert all(torch.equal(dict(head.named_parameters())[name][:3], old) for name, old in rows.items())
    # not torch.equal: a matrix product of another width may round its last bit differently, depending on the processor
    torch.testing.assert_close(head(features)[:, :3], before)


@pytest.mark.parametrize("kind", HEADS)
def test_moments_of_old_rows_survive_growth_to_class_ids_with_gaps(kind):
    model = Probe(kind)
    images = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    model.observe(torch.tensor([0, 2, 2, 0]))
    optimizer = optim.build(model, lr=0.01)
    model.training_loss(images, torch.tensor([0, 2, 2, 0])).loss.backward()
    optimizer.step()
    old = optimizer.state[model.head.weight]["exp_avg"].clone()
    assert model.observe(torch.tensor([6]))
    optim.sync(optimizer, model)
    moments = optimizer.state[model.head.weight]["exp_avg"]
    assert moments.shape == model.head.weight.shape
    assert torch.equal(moments[:3], old)
    assert not moments[3:].any()
    logits = model(images)
    assert logits.shape == (4, 7)
    assert (logits[:, [1, 3, 4, 5]] == -torch.inf).all()


def test_a_cosine_head_reads_angles_alone_and_takes_zero_features():
    head = CosineHead(8, scale=10.0)
    head.grow(4)
    features = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(head(features), head(3 * features))
    assert head(features).abs().max() <= 10
    assert not head(torch.zeros(1, 8)).any()
    assert CosineHead(8, learn_scale=False).scale.requires_grad is False


def test_the_unused_bias_of_a_cosine_head_is_in_no_optimizer():
    model = Probe(CosineHead)
    model.observe(torch.tensor([0, 1]))
    assert set(model.trainable()) == {"head.weight", "head.scale"}
