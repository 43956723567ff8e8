"""Class statistics under Avalanche's loop: the same sums as from the engine."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from avalanche.benchmarks.scenarios.online import split_online_stream
from avalanche.training.plugins import ReplayPlugin
from avalanche_runs import SETTINGS, figures, shared_vit, strategy, stream, toy

from clprompt.data.plan import group_indices
from clprompt.errors import ConfigError
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


def test_on_an_online_stream_a_received_batch_is_counted_once_over_its_iterations() -> None:
    made = strategy("vpt_deep", boundary_free=True, statistics="lda", train_epochs=3, train_mb_size=6)
    for experience in split_online_stream(stream().train_stream, experience_size=6, drop_last=False):
        made.train(experience)
    counts = made.model.statistics.classes.counts
    assert counts[counts > 0].tolist() == [12] * 6


def test_evaluations_inside_an_experience_are_of_the_trained_head_and_change_nothing() -> None:
    plain = strategy("dualprompt", statistics="lda")
    watched = strategy("dualprompt", evaluator=figures(), statistics="lda", eval_every=1)
    made = stream()
    for experience in made.train_stream[:2]:
        plain.train(experience)
        watched.train(experience, [made.test_stream[:1]])
    assert not changed(bits(plain.model), bits(watched.model))
    last = watched.evaluator.get_last_metrics()
    assert all(torch.isfinite(torch.tensor(v)) for k, v in last.items() if k.startswith("Loss"))


def test_a_replay_plugin_is_refused_in_one_line() -> None:
    with pytest.raises(ConfigError, match="statistics counts what is received") as caught:
        strategy("dualprompt", [ReplayPlugin(8)], statistics="lda")
    assert "\n" not in str(caught.value)


def test_training_that_ends_needs_a_stream_with_experiences() -> None:
    made = strategy("linear_probe", mask="seen", statistics="lda", train_experiences=1)
    online = list(split_online_stream(stream().train_stream, experience_size=6, drop_last=False))
    with pytest.raises(ConfigError, match="train_experiences needs to know") as caught:
        made.train(online[0])
    assert "\n" not in str(caught.value)
