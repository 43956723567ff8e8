"""FlyPrompt: which expert is trained and chosen, what its averages follow, and what the heads agree on."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from clprompt.backbones.vit import FrozenViT
from clprompt.errors import ConfigError
from clprompt.seeding import preserved_rng
from clprompt.strategies.flyprompt import FlyPromptModel
from clprompt.training import optim
from clprompt.training.steps import receive, train_step

TINY = {"img_size": 8, "patch_size": 4, "embed_dim": 16, "depth": 3, "num_heads": 2, "num_classes": 0}
#: Without boundaries: three experts, the next after 12 images.
FREE = {"boundary_free": True, "experts": 3, "samples_per_expert": 12}


def build(**arguments: Any) -> FlyPromptModel:
    chosen = {"layers": (0, 2), "length": 2, "random_features": 24, "decays": (0.5, 0.9), **arguments}
    with preserved_rng(0):
        backbone = FrozenViT(VisionTransformer(**TINY))
    return FlyPromptModel(backbone, **chosen).double()


def batch(number: int, size: int = 6, classes: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(number)
    images = torch.randn(size, 3, 8, 8, generator=generator, dtype=torch.float64)
    return images, torch.randint(0, classes, (size,), generator=generator)


def train(model: FlyPromptModel, batches: int, iterations: int = 2) -> list[tuple[Tensor, Tensor]]:
    """Train on so many batches; the head as it was after each step."""
    optimizer = optim.build(model.train(), lr=0.05, empty=True)
    heads = []
    for number in range(batches):
        images, targets = batch(number)
        receive(model, optimizer, targets)
        for _ in range(iterations):
            train_step(model, optimizer, images, targets)
            heads.append((model.head.weight.detach().clone(), model.head.bias.detach().clone()))
    return heads


def experience(model: FlyPromptModel, classes: tuple[int, ...]) -> None:
    """One experience of two batches of those classes."""
    model.begin_experience(classes)
    optimizer = optim.build(model.train(), lr=0.05)
    for number in range(2):
        images, labels = batch(10 * classes[0] + number)
        targets = torch.tensor(classes)[labels % len(classes)]
        receive(model, optimizer, targets)
        train_step(model, optimizer, images + classes[0], targets)
    model.end_experience()


@pytest.fixture(scope="module")
def streamed() -> FlyPromptModel:
    """Trained without boundaries on 30 images, each batch three times: the third expert has six of them."""
    model = build(**FREE)
    train(model, 5, iterations=3)
    return model.eval()


@pytest.fixture(scope="module")
def told() -> FlyPromptModel:
    """Trained on two experiences."""
    model = build()
    experience(model, (0, 1))
    experience(model, (2, 3))
    return model.eval()


# ------------------------------------------------------------------------------------------------- experts


def test_without_boundaries_the_next_expert_begins_after_so_many_received_images(streamed):
    assert streamed.boundaries == "unused"
    assert int(streamed.expert) == 2
    assert streamed.router.counts.tolist() == [12, 12, 6]


def test_a_run_without_boundaries_says_when_experts_begin(streamed, told):
    assert streamed.notes() == ["the next of 3 experts begins after every 12 received images"]
    assert told.notes() == []


def test_no_expert_begins_after_the_last_one():
    model = build(**{**FREE, "experts": 2})
    train(model, 5, iterations=1)
    assert model.router.counts.tolist() == [12, 18]


def test_a_batch_of_many_images_may_bring_more_than_one_expert():
    model = build(**{**FREE, "samples_per_expert": 2})
    train(model, 2, iterations=1)
    assert model.router.counts.tolist() == [6, 0, 6]


def test_every_experience_has_an_expert_of_its_own(told):
    assert told.boundaries == "required"
    assert (len(told.prompts), told.router.counts.tolist()) == (2, [12, 12])


def test_a_second_epoch_counts_no_image_again():
    model = build()
    model.begin_experience((0, 1, 2, 3))
    for epoch in range(3):
        model.begin_epoch(epoch)
        train(model, 2, iterations=1)
    assert model.router.counts.tolist() == [12]


def test_a_new_expert_starts_from_the_mean_of_the_older_ones():
    model = build()
    experience(model, (0, 1))
    experience(model, (2, 3))
    older = torch.stack(list(model.prompts)).detach().clone()
    model.begin_experience((4, 5))
    torch.testing.assert_close(model.prompts[2].detach(), older.mean(0))


def test_only_the_newest_expert_is_trained():
    model = build()
    experience(model, (0, 1))
    first = model.prompts[0].detach().clone()
    experience(model, (2, 3))
    assert [prompt.requires_grad for prompt in model.prompts] == [False, True]
    assert torch.equal(model.prompts[0], first)
    assert not torch.equal(model.prompts[1], first)


def test_without_boundaries_the_optimizer_goes_on_to_the_next_expert():
    model = build(**FREE)
    first = [prompt.detach().clone() for prompt in model.prompts]
    optimizer = optim.build(model.train(), lr=0.05)
    moved = []
    for number in range(4):
        images, targets = batch(number)
        receive(model, optimizer, targets)
        before = [prompt.detach().clone() for prompt in model.prompts]
        train_step(model, optimizer, images, targets)
        after = zip(before, model.prompts, strict=True)
        moved.append([not torch.equal(one, other) for one, other in after])
    assert moved == [[True, False, False]] * 2 + [[False, True, False]] * 2
    torch.testing.assert_close(before[2], first[2])


# -------------------------------------------------------------------------------------------------- router


@pytest.mark.parametrize("random_features", [None, 24])
@pytest.mark.parametrize("scale", ["relative", "absolute"])
def test_the_router_is_the_ridge_regression_from_all_images_to_their_experts(random_features, scale):
    model = build(**FREE, random_features=random_features, strength=0.7, strength_scale=scale)
    train(model, 5)
    images = torch.cat([batch(number)[0] for number in range(5)])
    expert = F.one_hot(torch.tensor([0] * 12 + [1] * 12 + [2] * 6), 3).double()
    features = model.backbone.features(images)
    if random_features:
        features = F.relu(features @ model.random_features.projection)
    second = features.T @ features
    strength = 0.7 * (second.diagonal().mean() if scale == "relative" else 1.0)
    weight = torch.linalg.inv(second + strength * torch.eye(len(second))) @ features.T @ expert
    assert torch.equal(model.eval().route(model.backbone.features(images)), (features @ weight).argmax(1))


def test_an_expert_that_was_trained_on_nothing_is_never_chosen():
    model = build(**FREE)
    train(model, 2)
    assert model.eval().route(-model.backbone.features(batch(9)[0])).tolist() == [0] * 6


def test_the_random_features_are_a_function_of_the_seed_and_no_state(told):
    again = build()
    again.load_state_dict(told.method_state())
    images, _ = batch(3)
    assert torch.equal(again.eval()(images), told(images))
    assert not any("random_features" in name for name in told.method_state())
    assert not torch.equal(
        build(seed=1).expand(images[:, 0, :2].flatten(1)), told.expand(images[:, 0, :2].flatten(1))
    )


def test_an_image_is_encoded_with_the_prompts_of_its_own_expert(told):
    images = torch.cat([batch(0)[0], batch(20)[0] + 2])
    encoded = told.encode(images)
    experts = encoded.details.experts
    assert set(experts.tolist()) == {0, 1}
    for index in range(2):
        only = copy.deepcopy(told)
        only.route = lambda query, index=index: torch.full((len(query),), index)
        own = only.encode(images).features[experts == index]
        torch.testing.assert_close(encoded.features[experts == index], own)


# ------------------------------------------------------------------------------------------------- averages


def test_the_averages_follow_the_head_after_each_step():
    model = build(boundary_free=True)
    model.observe(torch.arange(4))
    expected = [[model.head.weight.detach().clone(), model.head.bias.detach().clone()] for _ in range(2)]
    for head in train(model, 3):
        for average, decay in zip(expected, (0.5, 0.9), strict=True):
            average[:] = [decay * old + (1 - decay) * new for old, new in zip(average, head, strict=True)]
    weight, bias = model.averages()
    torch.testing.assert_close(weight[0], torch.stack([weight for weight, _ in expected]))
    torch.testing.assert_close(bias[0], torch.stack([bias for _, bias in expected]))


def test_a_new_expert_s_averages_start_from_the_head_and_the_older_one_s_stay(told):
    model = build()
    experience(model, (0, 1))
    weight, _ = model.averages()
    model.begin_experience((2, 3))
    model.observe(torch.tensor([2, 3]))
    later, _ = model.averages()
    torch.testing.assert_close(later[0, :, :2], weight[0])
    assert torch.equal(later[1], model.head.weight.detach().expand(2, -1, -1))


# ------------------------------------------------------------------------------------------------- ensemble


def heads(model: FlyPromptModel, images: Tensor) -> Tensor:
    """The probabilities of the head and of the averages of each image's expert, [B, H, C], one by one."""
    encoded = model.encode(images)
    weight, bias = model.averages()
    rows = []
    for feature, expert in zip(encoded.features, encoded.details.experts.tolist(), strict=True):
        logits = [
            model.head(feature),
            *(w @ feature + b for w, b in zip(weight[expert], bias[expert], strict=True)),
        ]
        rows.append(torch.stack([row.masked_fill(~model.seen, -torch.inf).softmax(0) for row in logits]))
    return torch.stack(rows)


@pytest.mark.parametrize("ensemble", ["largest", "mean", "least_entropy"])
def test_the_logits_are_what_the_heads_agree_on(streamed, ensemble):
    model = copy.deepcopy(streamed)
    model.ensemble = ensemble
    images, _ = batch(7)
    shares = heads(model, images)
    if ensemble == "least_entropy":
        surest = torch.special.entr(shares).sum(2).argmin(1)
        expected = shares[torch.arange(6), surest]
    else:
        expected = shares.amax(1) if ensemble == "largest" else shares.mean(1)
    torch.testing.assert_close(model(images).exp(), expected)


def test_without_averages_the_head_alone_predicts():
    model = build(decays=(), boundary_free=True)
    train(model, 2)
    images, _ = batch(7)
    with torch.no_grad():
        alone = model.eval().logits(model.encode(images).features).log_softmax(1)
        torch.testing.assert_close(model(images), alone)


# ------------------------------------------------------------------------------------------------ arguments


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"decays": (0.9, 1.0)}, r"decays .*at least 0.*below 1"),
        ({"samples_per_expert": 0}, "samples_per_expert must be at least 1, got 0"),
        ({"layers": (0, 3)}, "block 3 is not among 0..2"),
        ({"random_features": 100_000}, "80,000,000,000 bytes"),
        ({"mask": "experience", "boundary_free": True}, "mask=experience needs experiences"),
    ],
)
def test_an_argument_that_does_not_fit_is_one_clear_line(arguments, words):
    with pytest.raises(ConfigError, match=words) as caught:
        build(**arguments)
    assert "\n" not in str(caught.value)
