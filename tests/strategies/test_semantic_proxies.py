"""Semantic proxies: what is trained and frozen when, what states follow, and what answers."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from clprompt.backbones.vit import FrozenViT
from clprompt.errors import ConfigError, ProtocolError
from clprompt.seeding import preserved_rng
from clprompt.strategies.semantic_proxies import SemanticProxiesModel, proxy_loss
from clprompt.testing.asserts import same_bits
from clprompt.training import optim
from clprompt.training.steps import receive, train_step

TINY = {"img_size": 8, "patch_size": 4, "embed_dim": 16, "depth": 3, "num_heads": 2, "num_classes": 0}
FIRST, SECOND = (0, 1, 4), (2, 3)


def build(**arguments: Any) -> SemanticProxiesModel:
    chosen = {"length": 2, "class_length": 2, "class_layers": (0, 2), "width": 12, **arguments}
    with preserved_rng(0):
        backbone = FrozenViT(VisionTransformer(**TINY))
    return SemanticProxiesModel(backbone, **chosen).double()


def batch(number: int, classes: tuple[int, ...], size: int = 8) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(number)
    targets = torch.tensor(classes)[torch.randint(0, len(classes), (size,), generator=generator)]
    images = torch.randn(size, 3, 8, 8, generator=generator, dtype=torch.float64)
    return images + targets[:, None, None, None], targets


def samples(classes: tuple[int, ...], size: int = 20, at_once: int = 7) -> Iterator[tuple[Tensor, Tensor]]:
    """Each class's images, in batches."""
    images, targets = batch(99, classes, size)
    yield from zip(images.split(at_once), targets.split(at_once), strict=True)


def experience(model: SemanticProxiesModel, classes: tuple[int, ...], steps: int = 2) -> None:
    model.begin_experience(classes)
    optimizer = optim.build(model.train(), optimizer="adamw", weight_decay=0.1)
    for number in range(steps):
        images, targets = batch(number, classes)
        receive(model, optimizer, targets)
        train_step(model, optimizer, images, targets)
    model.end_experience(partial(samples, classes))
    model.eval()


def of_classes(model: SemanticProxiesModel, classes: tuple[int, ...]) -> dict[str, Tensor]:
    """All that is stored of these classes."""
    parts = {name: part[list(classes)].clone() for name, part in vars_of(model).items()}
    for c in classes:
        parts |= {f"prompts {c}": model.class_prompts[c].detach().clone()}
        parts |= {f"bias {c}": model.biases[c].detach().clone()}
    return parts


def vars_of(model: SemanticProxiesModel) -> dict[str, Tensor]:
    return {"states": model.states, "means": model.means, "counts": model.counts}


@pytest.fixture(scope="module")
def first() -> SemanticProxiesModel:
    """After the first experience."""
    model = build()
    experience(model, FIRST)
    return model


@pytest.fixture(scope="module")
def both(first: SemanticProxiesModel) -> SemanticProxiesModel:
    """The same after a second one."""
    model = copy.deepcopy(first)
    experience(model, SECOND)
    return model


@pytest.fixture
def open_one() -> SemanticProxiesModel:
    """Inside its first experience, in training mode."""
    model = build()
    model.begin_experience(FIRST)
    model.observe(torch.tensor(FIRST))
    return model.train()


# ------------------------------------------------------------------------------------ what stays as it was


def test_a_later_experience_leaves_all_that_is_stored_of_old_classes(first, both):
    before, after = of_classes(first, FIRST), of_classes(both, FIRST)
    assert [name for name in before if not same_bits(before[name], after[name])] == []


def test_a_later_experience_leaves_embeddings_by_default(first, both):
    images, _ = batch(7, FIRST)
    with torch.no_grad():
        assert torch.equal(first.encode(images).features, both.encode(images).features)


def test_a_later_experience_moves_embeddings_where_they_are_trained_throughout():
    model = build(freeze_embedding_after=None)
    experience(model, FIRST)
    images, _ = batch(7, FIRST)
    before = model.encode(images).features
    experience(model, SECOND)
    assert not torch.allclose(before, model.encode(images).features)


def test_a_later_experience_trains_the_prompts_and_free_parts_of_its_classes_alone(both):
    trained = {f"{part}.{c}" for part in ("class_prompts", "biases") for c in SECOND}
    assert set(both.trainable()) == trained


def test_without_boundaries_nothing_is_frozen():
    model = build(boundary_free=True)
    model.observe(torch.tensor(FIRST))
    assert set(model.trainable()) == set(model.own_parameters())


def test_images_of_old_classes_that_are_trained_on_leave_their_states(both):
    model = copy.deepcopy(both).train()
    model.begin_experience(SECOND)
    before = model.states.clone()
    model.training_loss(*batch(3, FIRST + SECOND, 12))
    assert torch.equal(model.states[list(FIRST)], before[list(FIRST)])
    assert not torch.equal(model.states[list(SECOND)], before[list(SECOND)])


# -------------------------------------------------------------------------------------- loss and states


def test_the_order_of_a_batch_matters_only_among_the_images_of_a_class(open_one):
    images, _ = batch(0, FIRST, 6)
    targets = torch.tensor([0, 1, 0, 4, 1, 1])
    losses, states = [], []
    #                            as it is       classes apart, each in turn     two images of class 1 swapped
    for order in ([0, 1, 2, 3, 4, 5], [3, 1, 4, 5, 0, 2], [0, 4, 2, 3, 1, 5]):
        model = copy.deepcopy(open_one)
        losses.append(model.training_loss(images[order], targets[order]).loss.detach())
        states.append(model.states)
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-12, atol=0)
    torch.testing.assert_close(states[1], states[0], rtol=0, atol=1e-13)
    assert (losses[2] - losses[0]).abs() > 1e-9
    assert (states[2][1] - states[0][1]).abs().max() > 1e-6


def test_classes_without_an_image_keep_their_states(open_one):
    before = open_one.states.clone()
    open_one.training_loss(*batch(0, (1,)))
    assert torch.equal(open_one.states[[0, 4]], before[[0, 4]])
    assert not torch.equal(open_one.states[1], before[1])


def test_states_have_unit_length(open_one, both):
    open_one.training_loss(*batch(0, FIRST))
    for states in (open_one.states, both.states):
        torch.testing.assert_close(states.norm(dim=1), torch.ones(len(states), dtype=torch.float64))


def test_the_first_part_of_anchor_is_a_mean_over_the_classes_of_the_batch_or_over_all():
    similarity = torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(3, 4)
    own = torch.tensor([[1, 0, 0, 0], [0, 0, 1, 0], [1, 0, 0, 0]], dtype=torch.bool)
    settings = {"loss": "anchor", "alpha": 2.0, "delta": 0.1}
    in_batch, _ = proxy_loss(similarity, own, positives="batch", **settings)
    of_all, _ = proxy_loss(similarity, own, positives="all", **settings)
    torch.testing.assert_close(in_batch, 2 * of_all)  # two of four classes


def test_a_batch_of_one_class_has_a_finite_loss_and_gradient_in_batch():
    model = build(form="in_batch")
    model.begin_experience(FIRST)
    model.observe(torch.tensor(FIRST))
    step = model.train().training_loss(*batch(0, (1,)))
    step.loss.backward()
    assert float(step.terms["negative"]) == 0
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_old_classes_compete_where_the_mask_says_seen():
    terms = {}
    for mask in ("seen", "experience"):
        model = build(mask=mask)
        experience(model, FIRST)
        model.begin_experience(SECOND)
        model.observe(torch.tensor(SECOND))
        terms[mask] = float(model.train().training_loss(*batch(0, SECOND)).terms["negative"])
    assert terms["seen"] != terms["experience"]


def test_free_parts_have_a_learning_rate_of_their_own(open_one):
    groups = {group["group"]: group["lr"] for group in optim.build(open_one, lr=0.001).param_groups}
    assert groups == {"all": 0.001, "biases": 0.05}


# ------------------------------------------------------------------------------------ ends of experiences


def test_the_end_of_an_experience_forms_states_whatever_the_last_batches_were(open_one):
    states = []
    for number in range(2):
        model = copy.deepcopy(open_one)
        with torch.no_grad():
            model.training_loss(*batch(number, FIRST))
        model.end_experience(partial(samples, FIRST))
        states.append(model.states)
    assert torch.equal(*states)


def test_states_and_means_do_not_depend_on_the_size_of_evaluation_batches(open_one):
    ends = []
    for at_once in (3, 20):
        model = copy.deepcopy(open_one)
        model.end_experience(partial(samples, FIRST, at_once=at_once))
        ends.append(model)
    for one, other in zip(*(vars_of(model).values() for model in ends), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-13)


def test_means_are_those_of_the_embeddings_of_each_class(both):
    for classes in (FIRST, SECOND):
        images, targets = batch(99, classes, 20)
        with torch.no_grad():
            embeddings = both.encode(images).features
        for c in classes:
            torch.testing.assert_close(both.means[c], embeddings[targets == c].mean(0))


def test_a_class_that_comes_again_is_averaged_over_both_experiences_once_embeddings_are_final(first):
    model = copy.deepcopy(first)
    experience(model, FIRST)
    assert model.counts.tolist() == [2 * count for count in first.counts.tolist()]
    torch.testing.assert_close(model.means, first.means)  # the same images


# ------------------------------------------------------------------------------------------------ answers


def test_class_means_answer_between_experiences_and_proxies_within_one(both):
    images, _ = batch(5, FIRST)
    with torch.no_grad():
        by_means = both(images)
        model = copy.deepcopy(both)
        model.classifier = "proxies"
        by_proxies = model(images)
        both.is_open = True
        within = both(images)
        both.is_open = False
        embeddings = both.encode(images).features
    unit = torch.nn.functional.normalize(both.means, dim=1)
    torch.testing.assert_close(by_means, 32 * embeddings @ unit.T)
    assert torch.equal(within, by_proxies)
    assert not torch.allclose(by_means, by_proxies)


def test_embeddings_are_kept_for_later_evaluations_once_they_are_final(first):
    images, _ = batch(5, FIRST)
    cache: dict[str, Tensor] = {}
    with torch.no_grad():
        first(images, cache)
        assert set(cache) == {"embedding"}
        throughout = build(freeze_embedding_after=None)
        experience(throughout, FIRST)
        throughout(images, cache := {})
    assert cache == {}


def test_states_are_saved(both):
    other = build()
    other.load_state_dict(both.method_state())
    assert torch.equal(other.states, both.states)


def test_means_without_the_samples_of_an_experience_are_refused_in_one_line(open_one):
    open_one.end_experience()
    with pytest.raises(ProtocolError, match=r"call end_experience\(samples\) at its end") as raised:
        open_one.eval()(batch(0, FIRST)[0])
    assert "\n" not in str(raised.value)


def test_means_without_experiences_are_refused():
    with pytest.raises(ConfigError, match="classifier=means needs experiences"):
        build(boundary_free=True, classifier="means")


def test_without_experiences_proxies_answer():
    assert build(boundary_free=True).classifier == "proxies"
    assert build().classifier == "means"
