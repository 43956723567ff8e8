"""Nearest class mean against the golden values; its sums are exact in any order and batch split."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from clprompt.errors import ConfigError, ProtocolError
from clprompt.strategies.ncm import NCMModel


def learned(base, *, batch: int = 6, order=None, epochs: int = 1, **arguments) -> NCMModel:
    model = NCMModel(base.backbone(), **arguments).train()
    images, labels = base["images"], base["online_labels"]
    order = torch.arange(6) if order is None else order
    for _ in range(epochs):
        for part in order.split(batch):
            model.observe(labels[part])
            model.training_loss(images[part], labels[part])
    model.observe(torch.tensor([9]))  # the golden file has ten columns; class 9 has no sample
    return model.eval()


def test_sums_counts_and_logits_are_the_golden_ones(baselines):
    model = learned(baselines)
    baselines.check(model.counts, "ncm.counts")
    assert model.sums.dtype == torch.float64
    baselines.check(model.sums.to(baselines.dtype), "ncm.sums", scaled=1e-5)
    means = model.sums / model.counts.clamp(min=1)[:, None]
    baselines.check(means.to(baselines.dtype), "ncm.means", scaled=1e-5)
    baselines.check(model(baselines["eval_images"]), "ncm.eval.logits_cosine")
    euclidean = learned(baselines, metric="euclidean")
    baselines.check(euclidean(baselines["eval_images"]), "ncm.eval.logits_euclidean", scaled=1e-5)


@pytest.mark.parametrize("batch", [1, 2, 4, 6])
def test_any_batch_split_and_order_give_the_same_means(exact, batch):
    whole = learned(exact)
    parts = learned(exact, batch=batch, order=torch.tensor([3, 5, 0, 1, 4, 2]))
    assert torch.equal(parts.counts, whole.counts)
    torch.testing.assert_close(parts.sums, whole.sums, rtol=0, atol=1e-12)


def test_further_epochs_scale_sums_and_counts_alike(exact):
    once, thrice = learned(exact), learned(exact, epochs=3, batch=2)
    assert torch.equal(thrice.counts, 3 * once.counts)
    torch.testing.assert_close(thrice(exact["eval_images"]), once(exact["eval_images"]), rtol=0, atol=1e-12)


def test_a_received_batch_counts_once_however_many_iterations_it_gets(exact):
    model = NCMModel(exact.backbone())
    model.observe(exact["online_labels"])
    for _ in range(3):
        step = model.training_loss(exact["images"], exact["online_labels"])
    assert int(model.counts.sum()) == 6
    assert not step.loss.requires_grad


def test_normalise_first_sums_unit_features(exact):
    model = learned(exact, normalise_first=True)
    unit = F.normalize(exact["query"], dim=1)
    sums = torch.zeros(10, 32).double().index_add_(0, exact["online_labels"], unit)
    torch.testing.assert_close(model.sums, sums, rtol=0, atol=1e-6)


def test_one_sample_makes_a_class_and_is_its_own_nearest_mean(exact):
    model = NCMModel(exact.backbone(), metric="euclidean")
    labels = torch.arange(6)
    model.observe(labels)
    model.training_loss(exact["images"], labels)
    assert torch.equal(model.eval()(exact["images"]).argmax(1), labels)


def test_classes_without_a_sample_are_never_predicted(exact):
    model = learned(exact)
    empty = model.counts == 0
    assert bool((model(exact["eval_images"])[:, empty] == float("-inf")).all())


def test_a_zero_feature_gives_no_nan(exact):
    model = learned(exact)
    assert torch.equal(model.logits(torch.zeros(1, 32)), torch.zeros(1, 10).double())


def test_prediction_does_not_depend_on_batch_companions(exact, per_sample):
    per_sample(learned(exact), exact["eval_images"])


def test_nothing_is_trained_and_no_boundary_is_asked_for(exact):
    model = learned(exact)
    assert model.trainable() == {}
    assert (model.trains, model.boundaries, model.rehearsal_free) == (False, "unused", True)
    assert model.state_size() == learned(exact, epochs=4).state_size()
    with pytest.raises(ProtocolError, match="never observed"):
        model.training_loss(exact["images"][:1], torch.tensor([11]))


def test_an_unknown_metric_is_refused_by_name(backbone):
    with pytest.raises(ConfigError, match='metric must be one of "cosine", "euclidean"'):
        NCMModel(backbone, metric="manhattan")
