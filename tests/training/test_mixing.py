"""Mixup and label smoothing: what a step trains towards, reproducibly, and who cannot."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from clprompt.errors import ConfigError, Interrupted, ProtocolError
from clprompt.prompting.losses import SoftLabels
from clprompt.strategies.mvp import MVPModel
from clprompt.strategies.ncm import NCMModel
from clprompt.strategies.tcpa import TCPAModel
from clprompt.strategies.vpt_deep import VPTDeepModel
from clprompt.testing.asserts import bits, changed
from clprompt.testing.bench import CLASSES, ToyImages, tiny_vit
from clprompt.training.engine import Engine
from clprompt.training.mixing import soften
from clprompt.training.settings import Online, Training

IMAGES, TARGETS = torch.randn(6, 3, 16, 16), torch.tensor([4, 1, 1, 4, 1, 4])
MIXED = Training(mixup=0.8, mixup_probability=0.5, label_smoothing=0.1)


def test_images_and_labels_are_mixed_by_the_same_weights():
    mixed, soft = soften(IMAGES, TARGETS, Training(mixup=0.8), 7, 0, 1, 2)
    assert soft is not None
    assert soft.smoothing == 0
    hot = F.one_hot(TARGETS, 7).float()
    weight = ((mixed - IMAGES.roll(1, 0)) / (IMAGES - IMAGES.roll(1, 0))).median()
    assert 0 < weight < 1
    torch.testing.assert_close(mixed, weight * IMAGES + (1 - weight) * IMAGES.roll(1, 0), rtol=0, atol=1e-4)
    torch.testing.assert_close(soft.labels, weight * hot + (1 - weight) * hot.roll(1, 0), rtol=0, atol=1e-4)


def test_a_draw_is_a_function_of_the_position():
    drawn = [soften(IMAGES, TARGETS, MIXED, 7, 0, 0, step)[0] for step in range(40)]
    again = [soften(IMAGES, TARGETS, MIXED, 7, 0, 0, step)[0] for step in range(40)]
    assert all(map(torch.equal, drawn, again))
    plain = sum(torch.equal(images, IMAGES) for images in drawn)
    assert 8 <= plain <= 32  # half of the batches stay as they are


def test_a_draw_leaves_the_global_random_state_alone():
    before = torch.get_rng_state()
    for step in range(40):
        soften(IMAGES, TARGETS, MIXED, 7, 0, 0, step)
    assert torch.equal(torch.get_rng_state(), before)


def test_smoothing_spreads_over_the_classes_that_compete_and_no_others():
    logits, allowed = torch.randn(6, 7), torch.zeros(7, dtype=torch.bool)
    allowed[[1, 4, 5]] = True
    found = SoftLabels(TARGETS, 0.3).loss(logits, allowed)
    chance = logits[:, allowed].log_softmax(1)
    own = chance.gather(1, (TARGETS == 4).long()[:, None])[:, 0]
    torch.testing.assert_close(found, -(0.7 * own + 0.3 * chance.mean(1)).mean())
    assert found.isfinite()
    torch.testing.assert_close(SoftLabels(TARGETS, 0.0).loss(logits, None), F.cross_entropy(logits, TARGETS))


def engine(model: Any, **arguments: Any) -> Engine:
    train = ToyImages(10)
    settings = {"training": Training(train_mb_size=8, train_epochs=2, mixup=0.8, label_smoothing=0.1)}
    return Engine(model, train, train.groups(), CLASSES, **(settings | arguments))


def test_an_interrupted_run_with_mixup_continues_to_the_same_bits():
    whole = VPTDeepModel(tiny_vit())
    engine(whole).run()
    left = iter(range(7))
    stopped = engine(VPTDeepModel(tiny_vit()), stop=lambda: None if next(left, None) is not None else 2)
    with pytest.raises(Interrupted):
        stopped.run()
    file = io.BytesIO()
    torch.save(stopped.state(), file)
    file.seek(0)
    resumed = VPTDeepModel(tiny_vit())
    second = engine(resumed)
    second.load_state(torch.load(file, weights_only=True))
    second.run()
    assert not changed(bits(whole), bits(resumed))
    plain = VPTDeepModel(tiny_vit())
    engine(plain, training=Training(train_mb_size=8, train_epochs=2)).run()
    assert changed(bits(whole), bits(plain))


def test_avalanche_mixes_as_the_engine_does():
    from clprompt.avalanche.strategy import PromptStrategy
    from clprompt.scenarios import Plan, to_avalanche

    train = ToyImages(10)
    model, other = VPTDeepModel(tiny_vit()), VPTDeepModel(tiny_vit())
    engine(model).run()
    stream = to_avalanche(Plan(tuple(train.groups()), CLASSES, 11), train, ToyImages(2, "test"))
    strategy = PromptStrategy(
        model=other, train_mb_size=8, train_epochs=2, mixup=0.8, label_smoothing=0.1, evaluator=None
    )
    for experience in stream.train_stream:
        strategy.train(experience)
    assert not changed(bits(model), bits(other))


@pytest.mark.parametrize("kind", [MVPModel, NCMModel])
def test_a_method_with_a_loss_of_its_own_refuses_soft_labels_in_one_line(kind):
    with pytest.raises(ProtocolError, match="loss of its own") as caught:
        engine(kind(tiny_vit()), online=Online()).run()
    assert "\n" not in str(caught.value)


def test_multi_hot_targets_are_refused():
    with pytest.raises(ProtocolError, match="one label per image"):
        soften(IMAGES, F.one_hot(TARGETS), MIXED, 7, 0)


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"mixup": -1.0}, "training.mixup must be at least 0"),
        ({"mixup_probability": 0.0}, "training.mixup_probability must be above 0"),
        ({"mixup_probability": 1.5}, "training.mixup_probability must be above 0"),
        ({"label_smoothing": 1.0}, "training.label_smoothing must be at least 0 and below 1, got 1.0"),
        ({"label_smoothing": -0.1}, "training.label_smoothing must be at least 0"),
    ],
)
def test_settings_out_of_range_are_one_line(given, text):
    with pytest.raises(ConfigError, match=text):
        Training(**given)


def test_the_released_recipe_of_tcpa_trains_with_all_of_it_at_once():
    model = TCPAModel(
        tiny_vit(),
        prompts="shared",
        mask_position="after",
        fourier="joint",
        prompt_dropout=0.1,
        random_epochs=1,
    )
    recipe = Training(
        train_mb_size=8,
        train_epochs=3,
        lr=0.01,
        optimizer="adamw",
        weight_decay=0.1,
        schedule="cosine",
        warmup=0.2,
        mixup=0.8,
        mixup_probability=0.5,
        label_smoothing=0.1,
    )
    engine(model, training=recipe).run()
    assert all(bool(value.isfinite().all()) for value in model.method_state().values())


def test_without_settings_nothing_is_softened():
    images, soft = soften(IMAGES, TARGETS, Training(), 7, 0)
    assert images is IMAGES
    assert soft is None
