"""A stream that has an order of its own is trained in it, whoever runs it; others are shuffled."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from clprompt.avalanche.strategy import PromptStrategy
from clprompt.scenarios import si_blurry, to_avalanche, to_online_avalanche
from clprompt.strategies.linear_probe import LinearProbeModel
from clprompt.testing.asserts import bits, same_bits
from clprompt.testing.bench import tiny_vit
from clprompt.training.engine import Engine
from clprompt.training.fit import fit
from clprompt.training.settings import Online, Training

LABELS = np.tile(np.arange(6), 10)
BACKBONE = tiny_vit(depth=1)
TRAINING = Training(train_mb_size=8, lr=0.01)
PLAN = si_blurry.plan(LABELS, sessions=3, m=50, compat="reference")
STREAM = np.concatenate(PLAN.indices).tolist()


class Numbered:
    """Images whose pixels are their number."""

    random_transform = False
    targets = LABELS

    def __len__(self):
        return len(LABELS)

    def __getitem__(self, index):
        return torch.full((3, 16, 16), float(index)), int(LABELS[index])


class Remembers(LinearProbeModel):
    """Keeps the numbers of the images that it was trained on."""

    def __init__(self, backbone=BACKBONE, **arguments):
        super().__init__(backbone, boundary_free=True, **arguments)
        self.order = []

    def training_loss(self, images, targets, **named):
        self.order += images[:, 0, 0, 0].int().tolist()
        return super().training_loss(images, targets, **named)


def trained(plan, online=None, training=TRAINING):
    model = Remembers()
    fit(model, plan, Numbered(), training=training, online=online)
    return model


@pytest.mark.parametrize("online", [None, Online(), Online(cut_at_sessions=False)])
def test_the_released_stream_is_trained_in_its_own_order(online):
    assert trained(PLAN, online).order == STREAM


def test_every_epoch_of_an_experience_has_that_order():
    twice = [index for part in PLAN.indices for index in np.tile(part, 2).tolist()]
    assert trained(PLAN, training=replace(TRAINING, train_epochs=2)).order == twice


def test_a_stream_of_ours_is_shuffled_by_the_seed():
    plan = si_blurry.plan(LABELS, sessions=3)
    order = trained(plan).order
    assert order != np.concatenate(plan.indices).tolist()
    assert sorted(order) == list(range(60))


def test_a_model_that_goes_over_old_data_again_shuffles_it():
    model = Remembers()
    model.revisits = "each"
    fit(model, PLAN, Numbered(), training=TRAINING)
    assert model.order[: len(PLAN.indices[0])] != PLAN.indices[0].tolist()


@pytest.mark.filterwarnings("ignore::UserWarning:avalanche")
@pytest.mark.parametrize("make", [to_avalanche, to_online_avalanche])
def test_avalanche_trains_the_released_stream_to_the_same_bits(make):
    arguments = {"batch_size": 8} if make is to_online_avalanche else {}
    strategy = PromptStrategy(model=Remembers(), training=TRAINING, evaluator=None)
    for experience in make(PLAN, Numbered(), Numbered(), **arguments).train_stream:
        strategy.train(experience)
    expected = trained(PLAN)
    assert strategy.model.order == expected.order == STREAM
    assert same_bits(bits(strategy.model), bits(expected))


def test_a_run_that_was_saved_before_streams_had_an_order_goes_on_shuffled():
    shuffled, ordered = (
        Engine(Remembers(), Numbered(), PLAN.indices, PLAN.classes, training=TRAINING, is_ordered=is_ordered)
        for is_ordered in (False, True)
    )
    shuffled.run_experience()
    state = shuffled.state()
    del state["is_ordered"]
    ordered.load_state(state)
    assert not ordered.is_ordered
    shuffled.run()
    ordered.run()
    assert ordered.model.order == shuffled.model.order[len(PLAN.indices[0]) :]
