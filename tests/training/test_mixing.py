"""Mixup, CutMix and label smoothing: what a step trains towards, reproducibly, and who cannot."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torchvision.transforms import v2

from clprompt.errors import ConfigError, Interrupted, ProtocolError
from clprompt.prompting.losses import SoftLabels
from clprompt.seeding import derive, preserved_rng
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


def test_a_box_of_another_image_weighs_as_much_as_it_covers():
    boxes = 0
    for step in range(8):
        cut, soft = soften(IMAGES, TARGETS, Training(cutmix=1.0), 7, 0, 1, step)
        assert soft is not None
        own = (cut == IMAGES).all(1)  # [6, 16, 16]
        other = (cut == IMAGES.roll(1, 0)).all(1)
        assert bool((own ^ other).all())
        assert bool((own == own[0]).all())
        rows, columns = other[0].any(1), other[0].any(0)
        assert bool((other[0] == rows[:, None] & columns).all())  # one box
        hot, weight = F.one_hot(TARGETS, 7).float(), own[0].float().mean()
        torch.testing.assert_close(soft.labels, weight * hot + (1 - weight) * hot.roll(1, 0))
        boxes += bool(other.any())
        logits = torch.randn(6, 7)
        parts = [F.cross_entropy(logits, labels) for labels in (TARGETS, TARGETS.roll(1, 0))]
        torch.testing.assert_close(soft.loss(logits, None), weight * parts[0] + (1 - weight) * parts[1])
    assert boxes > 4


def test_a_batch_is_cut_or_mixed_and_never_both():
    both = Training(mixup=0.8, mixup_probability=0.25, cutmix=1.0, cutmix_probability=0.5)
    kinds = []
    for step in range(120):
        images, soft = soften(IMAGES, TARGETS, both, 7, 0, 0, step)
        assert soft is not None
        if soft.labels is TARGETS:
            assert images is IMAGES
            kinds.append("neither")
        else:
            cut = bool(((images == IMAGES) | (images == IMAGES.roll(1, 0))).all())
            kinds.append("cut" if cut else "mixed")
    assert {kind: round(kinds.count(kind) / 30) for kind in set(kinds)} == {
        "cut": 2,
        "mixed": 1,
        "neither": 1,
    }


def test_shares_of_batches_that_are_more_than_all_are_refused():
    words = (
        r"mixup_probability and training\.cutmix_probability must be 1 or less together .* got 0\.8 and 0\.5"
    )
    with pytest.raises(ConfigError, match=words) as told:
        Training(mixup=0.8, mixup_probability=0.8, cutmix=1.0, cutmix_probability=0.5)
    assert "\n" not in str(told.value)
    Training(mixup=0.8, cutmix_probability=0.5)


def test_cutmix_beside_mixup_leaves_the_draws_of_mixup_as_they_are_without_it():
    alone = Training(mixup=0.8)
    both = Training(mixup=0.8, mixup_probability=0.5, cutmix=1.0, cutmix_probability=0.5)
    for step in range(20):
        images, _ = soften(IMAGES, TARGETS, both, 7, 0, 0, step)
        if not bool(((images == IMAGES) | (images == IMAGES.roll(1, 0))).all()):
            with preserved_rng(derive(0, "mixup", 0, step)):
                torch.rand(1)
                expected, _ = v2.MixUp(alpha=0.8, num_classes=7)(IMAGES, TARGETS)
            assert torch.equal(images, expected)
            assert torch.equal(soften(IMAGES, TARGETS, alone, 7, 0, 0, step)[0], expected)


@pytest.mark.parametrize("mixed", ["mixup", "cutmix"])
def test_the_iterations_on_one_batch_are_mixed_differently(mixed):
    training = Training(**{mixed: 1.0})
    drawn = [soften(IMAGES, TARGETS, training, 7, 0, 2, 5, iteration)[0] for iteration in range(3)]
    assert not torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[1], drawn[2])


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
    settings = {"training": Training(**RECIPES["mixup"])}
    return Engine(model, train, train.groups(), CLASSES, **(settings | arguments))


RECIPES: dict[str, Any] = {
    "mixup": {"train_mb_size": 8, "train_epochs": 2, "mixup": 0.8, "label_smoothing": 0.1},
    "cutmix": {
        "train_mb_size": 8,
        "train_epochs": 2,
        "cutmix": 1.0,
        "cutmix_probability": 0.5,
        "schedule": "cosine-coda",
    },
}


@pytest.mark.parametrize("recipe", RECIPES)
def test_an_interrupted_run_with_mixed_images_continues_to_the_same_bits(recipe):
    training = Training(**RECIPES[recipe])
    whole = VPTDeepModel(tiny_vit())
    engine(whole, training=training).run()
    left = iter(range(7))
    stopped = engine(
        VPTDeepModel(tiny_vit()),
        training=training,
        stop=lambda: None if next(left, None) is not None else 2,
    )
    with pytest.raises(Interrupted):
        stopped.run()
    file = io.BytesIO()
    torch.save(stopped.state(), file)
    file.seek(0)
    resumed = VPTDeepModel(tiny_vit())
    second = engine(resumed, training=training)
    second.load_state(torch.load(file, weights_only=True))
    second.run()
    assert not changed(bits(whole), bits(resumed))
    plain = VPTDeepModel(tiny_vit())
    engine(plain, training=Training(train_mb_size=8, train_epochs=2)).run()
    assert changed(bits(whole), bits(plain))


@pytest.mark.parametrize("recipe", RECIPES)
def test_avalanche_mixes_as_the_engine_does(recipe):
    from clprompt.avalanche.strategy import PromptStrategy
    from clprompt.scenarios import Plan, to_avalanche

    train = ToyImages(10)
    model, other = VPTDeepModel(tiny_vit()), VPTDeepModel(tiny_vit())
    engine(model, training=Training(**RECIPES[recipe])).run()
    stream = to_avalanche(Plan(tuple(train.groups()), CLASSES, 11), train, ToyImages(2, "test"))
    strategy = PromptStrategy(model=other, **RECIPES[recipe], evaluator=None)
    for experience in stream.train_stream:
        strategy.train(experience)
    assert not changed(bits(model), bits(other))


@pytest.mark.parametrize("kind", [MVPModel, NCMModel])
def test_a_method_with_a_loss_of_its_own_refuses_soft_labels_in_one_line(kind):
    with pytest.raises(ProtocolError, match="loss of its own") as caught:
        engine(kind(tiny_vit()), online=Online()).run()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("training", [MIXED, Training(cutmix=1.0)], ids=["mixup", "cutmix"])
def test_multi_hot_targets_are_refused(training):
    with pytest.raises(ProtocolError, match="one label per image"):
        soften(IMAGES, F.one_hot(TARGETS), training, 7, 0)


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"mixup": -1.0}, "training.mixup must be at least 0"),
        ({"mixup_probability": 0.0}, "training.mixup_probability must be above 0"),
        ({"mixup_probability": 1.5}, "training.mixup_probability must be above 0"),
        ({"cutmix": -1.0}, "training.cutmix must be at least 0"),
        ({"cutmix": float("nan")}, "training.cutmix must be a finite number"),
        ({"cutmix_probability": 0.0}, "training.cutmix_probability must be above 0"),
        ({"cutmix_probability": 1.5}, "training.cutmix_probability must be above 0"),
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
