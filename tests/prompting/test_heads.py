"""Heads grow by rows; old rows, their moments and the order of arrival do not affect one another."""

from __future__ import annotations

import torch
from torch import Tensor

from clprompt.prompting.heads import LinearHead
from clprompt.prompting.model import Cache, Encoded, PromptModel
from clprompt.testing.bench import tiny_vit
from clprompt.training import optim


class Probe(PromptModel):
    """A head on frozen features."""

    def __init__(self) -> None:
        backbone = tiny_vit()
        super().__init__(backbone, mask="seen")
        self.head = LinearHead(backbone.width)

    def encode(self, images: Tensor, cached: Cache | None = None) -> Encoded:
        return Encoded(self.features(images, cached))


def test_rows_are_a_function_of_seed_and_class_id_whatever_the_order_of_growth():
    at_once, step_by_step, other = LinearHead(8, seed=3), LinearHead(8, seed=3), LinearHead(8, seed=4)
    at_once.grow(5)
    other.grow(5)
    assert [step_by_step.grow(count) for count in (2, 2, 5, 1)] == [True, False, True, False]
    assert torch.equal(at_once.weight, step_by_step.weight)
    assert not torch.equal(at_once.weight, other.weight)
    assert at_once.num_classes == 5


def test_growth_keeps_logits_of_old_classes():
    head, features = LinearHead(8), torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    head.grow(3)
    rows = {name: value.clone() for name, value in head.named_parameters()}
    before = head(features)
    head.grow(7)
    assert all(torch.equal(dict(head.named_parameters())[name][:3], old) for name, old in rows.items())
    # not torch.equal: on some processors a product of another width rounds its last bit differently
    torch.testing.assert_close(head(features)[:, :3], before)


def test_moments_of_old_rows_survive_growth_to_class_ids_with_gaps():
    model = Probe()
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
