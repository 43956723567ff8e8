"""Class statistics under Avalanche's loop: the same sums as from the engine."""

from __future__ import annotations

from typing import Any

import pytest
from avalanche_runs import SETTINGS, shared_vit, strategy, stream, toy

from clprompt.data.plan import group_indices
from clprompt.prompting.build import construct
from clprompt.registry import strategies
from clprompt.scenarios import Plan
from clprompt.testing.asserts import bits, changed
from clprompt.testing.bench import CLASSES
from clprompt.training.fit import fit
from clprompt.training.settings import Training

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning:avalanche"),
    pytest.mark.filterwarnings("ignore::UserWarning:torch"),
]


def fitted(name: str, **arguments: Any) -> Any:
    """What the engine makes of the toy stream."""
    train, _ = toy()
    model = construct(strategies.get(name).target, shared_vit(), **arguments)
    plan = Plan(tuple(group_indices(train.targets, CLASSES, 11)), CLASSES, 11)
    fit(model, plan, train, training=Training(**SETTINGS))
    return model


@pytest.mark.parametrize("train_experiences", [None, 1])
def test_both_front_ends_train_and_count_to_the_same_bits(train_experiences: int | None) -> None:
    arguments = {"statistics": "lda", "train_experiences": train_experiences}
    made = strategy("dualprompt", **arguments)
    for experience in stream().train_stream:
        made.train(experience)
    assert not changed(bits(fitted("dualprompt", **arguments)), bits(made.model))
