"""slda, ridge and ranpac: what the golden values leave open, by features put in behind a backbone."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from clprompt.errors import ConfigError, ProtocolError
from clprompt.prompting.closed_form import ClosedFormModel
from clprompt.prompting.model import Encoded
from clprompt.prompting.statistics.random_features import STRENGTHS, held_out_strength
from clprompt.strategies.ranpac import RanPACModel
from clprompt.strategies.ridge import RidgeModel
from clprompt.strategies.slda import SLDAModel
from clprompt.testing.asserts import bits, changed
from clprompt.testing.bench import tiny_vit

WIDTH, CLASSES = 12, (0, 2, 3, 5)  # 1 and 4 never come
METHODS: dict[str, Callable[..., ClosedFormModel]] = {
    "slda": SLDAModel,
    "ridge": RidgeModel,
    "ridge on random features": lambda backbone: RidgeModel(backbone, random_features=20),
    "ranpac": lambda backbone: RanPACModel(backbone, random_features=20, strength=1.0),
}


@cache
def backbone() -> Any:
    return tiny_vit(depth=1, width=WIDTH)


def samples(count: int = 60) -> tuple[Tensor, Tensor]:
    """Features [N, D] around a mean for each class, under one covariance, and labels [N]."""
    draw = torch.Generator().manual_seed(0)
    labels = torch.tensor(CLASSES).repeat(count // len(CLASSES))
    means = 3 * torch.randn(6, WIDTH, generator=draw, dtype=torch.float64)
    mixing = torch.randn(WIDTH, WIDTH, generator=draw, dtype=torch.float64)
    noise = torch.randn(len(labels), WIDTH, generator=draw, dtype=torch.float64)
    return means[labels] + noise @ mixing + 5, labels


def learned(model: Any, features: Tensor, labels: Tensor, batch: int = 7) -> Any:
    for part, targets in zip(features.split(batch), labels.split(batch), strict=True):
        model.observe(targets)
        model.received(part, targets)
    return model.eval()


def logits(model: ClosedFormModel, features: Tensor) -> Tensor:
    return model.classify(Encoded(features))


def close(actual: Tensor, expected: Tensor, tolerance: float = 1e-9) -> None:
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", METHODS)
def test_order_batches_and_experiences_do_not_matter(name):
    features, labels = samples()
    whole = learned(METHODS[name](backbone()), features, labels, batch=60)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(1))
    parts = METHODS[name](backbone())
    for cut in order.split(25):  # an experience each, with the same classes
        parts.begin_for_plugins(CLASSES)
        learned(parts.train(), features[cut], labels[cut], batch=4)
        parts.end_experience()
    close(parts.class_statistics.second, whole.class_statistics.second, 1e-12)
    close(logits(parts, features), logits(whole, features))


def test_float32_and_16_bit_features_are_summed_in_float64():
    features, labels = samples()
    for dtype in (torch.float32, torch.bfloat16):
        rounded = features.to(dtype)
        model = learned(SLDAModel(backbone()), rounded, labels)
        close(model.class_statistics.second, rounded.double().T @ rounded.double(), 1e-12)
        assert logits(model, rounded).dtype == torch.float32


@pytest.mark.parametrize("name", METHODS)
def test_a_class_that_is_observed_without_a_sample_leaves_all_logits_as_they_are(name):
    features, labels = samples()
    model = learned(METHODS[name](backbone()), features, labels)
    before = logits(model, features)
    model.observe(torch.tensor([8]))
    after = logits(model, features)
    close(after[:, :6], before, 1e-12)
    assert bool((after[:, 6:] == float("-inf")).all())
    assert model.predictable().nonzero().flatten().tolist() == list(CLASSES)


def test_differences_of_logits_are_unchanged_when_all_features_move():
    features, labels = samples()
    still, moved = (learned(SLDAModel(backbone()), features + by, labels) for by in (0, 30))
    differences = [
        given[:, list(CLASSES)].diff(dim=1)
        for given in (logits(still, features), logits(moved, features + 30))
    ]
    close(*differences, tolerance=1e-7)


def test_without_shrinkage_any_invertible_map_and_with_it_any_rotation_leaves_the_logits():
    features, labels = samples()
    drawn = torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    for matrix, shrinkage in ((drawn, 0.0), (torch.linalg.qr(drawn)[0], None)):
        given = [
            logits(learned(SLDAModel(backbone(), shrinkage=shrinkage), rows, labels), rows)
            for rows in (features, features @ matrix)
        ]
        close(*given, tolerance=1e-7)


@pytest.mark.parametrize("name", ["slda", "ridge"])
def test_a_common_factor_leaves_the_predictions(name):
    features, labels = samples()
    small, large = (learned(METHODS[name](backbone()), by * features, labels) for by in (1, 1000))
    assert torch.equal(logits(small, features).argmax(1), logits(large, 1000 * features).argmax(1))


def test_one_sample_a_class_ranks_as_the_euclidean_distance_does():
    features, labels = samples()
    model = learned(SLDAModel(backbone()), features[:4], labels[:4])
    distances = torch.cdist(features, features[:4])
    ranked = logits(model, features)[:, labels[:4]].argsort(1, descending=True)
    assert torch.equal(ranked, distances.argsort(1))


def test_a_single_sample_and_constant_features_are_nearest_mean():
    constant = learned(SLDAModel(backbone()), torch.ones(6, WIDTH) / 3, torch.tensor([0, 0, 0, 2, 2, 2]))
    alone = learned(SLDAModel(backbone()), torch.ones(1, WIDTH), torch.tensor([3]))
    assert logits(constant, torch.ones(1, WIDTH)).isfinite().sum() == 2
    assert logits(alone, torch.ones(1, WIDTH)).argmax().item() == 3


def test_a_shrinkage_of_0_on_a_singular_covariance_is_one_line():
    features, labels = samples()
    model = learned(SLDAModel(backbone(), shrinkage=0.0), features[:8], labels[:8])
    with pytest.raises(
        ConfigError, match=r"^a shrinkage of 0.0: the covariance of 12 features has no inverse"
    ):
        logits(model, features)


def test_hidden_labels_change_nothing():
    features, labels = samples()
    hot = F.one_hot(labels, 6)
    shown = hot * torch.tensor([1, 0, 1, 0, 0, 0])
    model = learned(SLDAModel(backbone()), features, shown)
    assert model.class_statistics.counts.tolist() == [15, 0, 15]
    assert int(model.class_statistics.number) == 60
    assert model.predictable().nonzero().flatten().tolist() == [0, 2]


def test_labels_after_label_sets_are_one_line():
    features, labels = samples()
    model = learned(SLDAModel(backbone()), features, F.one_hot(labels, 6))
    with pytest.raises(ProtocolError, match="were counted from multi-hot targets, got labels"):
        model.received(features, labels)


def test_further_epochs_of_an_experience_count_nothing():
    features, labels = samples()
    once, twice = SLDAModel(backbone()), SLDAModel(backbone())
    for model, epochs in ((once, 1), (twice, 2)):
        for _ in range(2):  # experiences
            for epoch in range(epochs):
                model.begin_epoch(epoch)
                learned(model, features, labels)
            model.end_experience()
    assert not changed(bits(once), bits(twice))
    assert int(once.class_statistics.counts.sum()) == 120


def test_the_state_holds_what_the_classes_and_the_width_say():
    features, labels = samples()
    sizes = {learned(SLDAModel(backbone()), features[:n], labels[:n]).state_size() for n in (8, 60)}
    bare = SLDAModel(backbone())
    bare.observe(torch.tensor([5]))
    assert sizes == {bare.state_size()}
    assert SLDAModel(backbone()).max_state_size(10) is None
    statistics = sum(value.numel() for value in bare.class_statistics.state_dict().values())
    assert statistics == 6 + 6 * WIDTH + WIDTH**2 + 1 + WIDTH


def test_random_features_are_a_function_of_the_seed_and_no_state():
    first, again, other = (RidgeModel(backbone(), seed=s, random_features=20) for s in (0, 0, 1))
    drawn = [model.on_statistics.random_features.projection for model in (first, again, other)]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    assert not [name for name in first.state_dict() if "projection" in name]
    assert first.on_statistics.random_features.half().projection.dtype == torch.float64


def test_too_many_random_features_are_refused_with_their_bytes():
    with pytest.raises(ConfigError, match="80,000,000,000 bytes"):
        RidgeModel(backbone(), random_features=100_000)


# ------------------------------------------------------------------------------------------------ held out


def direct(features: Tensor, targets: Tensor, seed: int) -> list[float]:
    """Squared errors of every strength, solved one by one."""
    from clprompt.seeding import generator

    order = torch.randperm(len(features), generator=generator(seed, "held out"))
    cut, rows, hot = int(0.8 * len(order)), features[order], F.one_hot(targets[order]).double()
    identity = torch.eye(features.shape[1], dtype=torch.float64)
    return [
        float(
            (
                rows[cut:]
                @ torch.linalg.solve(
                    rows[:cut].T @ rows[:cut] + strength * identity, rows[:cut].T @ hot[:cut]
                )
                - hot[cut:]
            )
            .square()
            .mean()
        )
        for strength in STRENGTHS
    ]


@pytest.mark.parametrize("count", [12, 60], ids=["fewer samples than features", "more"])
def test_the_held_out_strength_is_the_best_of_solving_for_each(count):
    features, labels = samples()
    features, labels = features[:count], labels[:count]
    errors = direct(features, labels, seed=3)
    chosen = held_out_strength(features, labels, lambda rows: rows, seed=3)
    assert chosen == STRENGTHS[min(range(len(errors)), key=errors.__getitem__)]
    assert chosen not in (STRENGTHS[0], STRENGTHS[-1])


def test_a_sample_by_itself_has_nothing_to_hold_out():
    features, labels = samples()
    assert held_out_strength(features[:1], labels[:1], lambda rows: rows, seed=0) is None


def images_of(count: int) -> tuple[Tensor, Tensor]:
    labels = torch.tensor([0, 1]).repeat(count)[:count]
    noise = torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    return noise + labels[:, None, None, None], labels


def experienced(count: int, ended: bool = True) -> tuple[RanPACModel, Tensor]:
    model = RanPACModel(backbone(), random_features=20)
    images, labels = images_of(count)
    model.begin_experience([0, 1])
    model.observe(labels)
    model.training_loss(images, labels)
    model.end_experience((lambda: iter([(images, labels)])) if ended else None)
    return model.eval(), images


@pytest.mark.parametrize("count", [1, 2, 10])
def test_an_experience_of_any_size_is_learned_from(count):
    model, images = experienced(count)
    assert model(images)[:, : min(count, 2)].isfinite().all()
    assert (float(model.on_statistics.held_out.chosen) in STRENGTHS) == (count > 1)


def test_an_experience_without_its_samples_is_one_line_at_the_first_prediction():
    model, images = experienced(10, ended=False)
    with pytest.raises(
        ProtocolError, match=r"^RanPACModel chooses its strength .* call end_experience\(samples\)"
    ):
        model(images)


def test_a_fixed_strength_needs_no_experiences():
    assert RanPACModel(backbone(), random_features=20, strength=1.0).boundaries == "unused"
    assert RanPACModel(backbone(), random_features=20).boundaries == "required"
