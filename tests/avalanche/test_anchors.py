"""Anchors and averaged prompts under Avalanche's loop: what they need of an experience reaches them there."""

from __future__ import annotations

import pytest
from avalanche_runs import SETTINGS, strategy, stream, toy

from clprompt.data.plan import group_indices
from clprompt.prompting.build import construct
from clprompt.scenarios import Plan
from clprompt.strategies.coop.model import CoOpModel
from clprompt.testing.asserts import bits, changed
from clprompt.testing.bench import CLASSES, NAMES, tiny_backbone
from clprompt.training.fit import fit
from clprompt.training.settings import Training

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning:avalanche"),
    pytest.mark.filterwarnings("ignore::UserWarning:torch"),
]


def test_both_front_ends_anchor_and_average_to_the_same_bits() -> None:
    arguments = {"length": 4, "anchor": "direction", "trajectory": True}
    backbone, (train, _) = tiny_backbone(CoOpModel), toy()
    made = strategy("coop", backbone=backbone, **arguments)
    made.model.name_classes(NAMES)
    for experience in stream().train_stream:
        made.train(experience)
    model = construct(CoOpModel, backbone, **arguments)
    model.name_classes(NAMES)
    plan = Plan(tuple(group_indices(train.targets, CLASSES, 11)), CLASSES, 11)
    fit(model, plan, train, training=Training(**SETTINGS))
    assert model.direction.means.any()
    assert not changed(bits(model), bits(made.model))
