"""The evaluator: seen classes only, fixed batches, and a cache that changes no bit."""

import json
import math

import numpy as np
import pytest
import torch

from clprompt.errors import ClpromptError
from clprompt.prompting.step import Predictions
from clprompt.strategies.dualprompt import DualPromptModel
from clprompt.strategies.linear_probe import LinearProbeModel
from clprompt.testing.bench import CLASSES, ToyImages, tiny_vit
from clprompt.training.evaluation import Evaluator, Shown, evaluate

TEST = ToyImages(9, "test")
BACKBONE = tiny_vit(depth=3)
QUERY = 8 * BACKBONE.width * 4  # bytes of the queries of a batch of 8


def make_evaluator(**arguments):
    return Evaluator(TEST, TEST.targets, TEST.groups(), **{"batch_size": 8, **arguments})


class Counting(LinearProbeModel):
    """Counts for how many batches the queries were computed, and keeps what came in and went out."""

    def __init__(self, seen=(), **arguments):
        super().__init__(BACKBONE, boundary_free=True, **arguments)
        self.computed = 0
        self.batches, self.outputs = [], []
        self.see(seen)

    def see(self, classes):
        if len(classes):
            self.observe(torch.tensor(classes))

    def features(self, images, cached=None, **more):
        self.computed += cached is None or "features" not in cached
        return super().features(images, cached, **more)

    def forward(self, images, cached=None):
        self.batches.append(images)
        self.outputs.append(super().forward(images, cached))
        return self.outputs[-1]


def test_only_samples_of_seen_classes_are_evaluated():
    model = Counting([4, 1, 7])
    evaluation = make_evaluator().run(model)
    chosen = np.isin(TEST.targets, [4, 1, 7])
    images, targets = TEST.images[chosen], torch.from_numpy(TEST.targets[chosen])
    with torch.no_grad():
        right = model.eval()(images).argmax(1) == targets
    assert evaluation.accuracy == pytest.approx(right.double().mean().item())
    assert evaluation.groups[0] == pytest.approx(right[targets != 7].double().mean().item())
    assert evaluation.groups[1] == pytest.approx(right[targets == 7].double().mean().item())
    assert evaluation.groups[2] is None
    assert sum(evaluation.confusion.values()) == 27
    assert {target for target, _ in evaluation.confusion} == {1, 4, 7}
    assert {predicted for _, predicted in evaluation.confusion} <= {1, 4, 7}


def test_without_a_seen_class_there_is_nothing_to_evaluate():
    model = Counting()
    evaluation = make_evaluator().run(model)
    assert math.isnan(evaluation.accuracy)
    assert evaluation.groups == [None, None, None]
    assert model.batches == []


def test_the_record_is_plain_json_with_sorted_cells():
    record = make_evaluator().run(Counting([0, 1, 4, 5, 7, 10])).record()
    assert json.loads(json.dumps(record)) == record
    assert record["confusion"] == sorted(record["confusion"])
    assert sum(count for _, _, count in record["confusion"]) == 54


class TwoHeads(Counting):
    """Something else answers in place of its trained head: it takes every image for the last class."""

    def predictions(self, images, cached=None):
        trained = self(images, cached)
        other = torch.zeros_like(trained).masked_fill(~self.seen, -torch.inf)
        other[:, -1] = 1
        return Predictions(other, trained)


def test_both_heads_are_scored_in_one_walk():
    model, evaluator = TwoHeads([4, 1, 7]), make_evaluator()
    both = evaluator.run(model)
    assert len(model.batches) == 4
    alone = make_evaluator().run(Counting([4, 1, 7]))
    assert both.trained_head == alone
    assert both.accuracy == pytest.approx(9 / 27)
    assert both.groups == [0, 1, None]


def test_the_record_of_two_heads_is_that_of_one_and_the_figures_of_the_trained_one():
    record = make_evaluator().run(TwoHeads([4, 1, 7])).record()
    alone = make_evaluator().run(Counting([4, 1, 7])).record()
    trained = record.pop("trained_head")
    assert record.keys() == alone.keys()
    assert trained.keys() == {"accuracy", "groups", "per_class", "calibration_error"}
    for figure in ("accuracy", "groups", "calibration_error"):
        assert trained[figure] == alone[figure]
    assert [row[:2] for row in trained["per_class"]] == [[1, 9], [4, 9], [7, 9]]
    assert sum(right for *_, right in trained["per_class"]) == round(27 * alone["accuracy"])


def test_a_trained_head_that_is_not_finite_is_refused_where_another_answers():
    model = TwoHeads([4, 1, 7])
    model.head.bias.data[4] = torch.nan
    with pytest.raises(ClpromptError, match=r"nan"):
        make_evaluator().run(model)


@pytest.mark.parametrize("training", [True, False])
def test_the_model_s_mode_is_restored_also_after_an_error(training):
    model = Counting([1]).train(training)
    make_evaluator().run(model)
    assert model.training is training
    model.head = None
    with pytest.raises(AssertionError):
        make_evaluator().run(model)
    assert model.training is training


def trained_and_evaluated(evaluator):
    """All logits of evaluations between which a method with queries and prompts goes on training."""
    model = DualPromptModel(BACKBONE, g_layers=(0,), e_layers=(1, 2))
    model.logits_seen = []
    model.register_forward_hook(lambda m, i, logits: m.logits_seen.append(logits))
    train = ToyImages(4)
    for classes, indices in zip(CLASSES, train.groups(), strict=True):
        model.begin_experience(classes)
        optimizer = torch.optim.SGD(model.trainable().values(), lr=0.1)
        targets = torch.from_numpy(train.targets[indices])
        model.observe(targets)
        model.training_loss(train.images[indices], targets).loss.backward()
        optimizer.step()
        evaluator.run(model)
        evaluator.run(model)
    return model.logits_seen


def test_the_cache_changes_no_bit():
    without = trained_and_evaluated(make_evaluator(cache_bytes=0))
    for limit in (2**30, 3 * QUERY, 1):
        cached = trained_and_evaluated(make_evaluator(cache_bytes=limit))
        assert len(cached) == len(without) == 2 * (3 + 5 + 7)
        assert all(torch.equal(a, b) for a, b in zip(cached, without, strict=True))


def test_what_is_kept_is_not_computed_again():
    model, evaluator = Counting([1, 4, 7]), make_evaluator()
    evaluator.run(model)
    assert model.computed == 4  # 8, 8 and 2 of the first group with 6 of the second, and its other 3
    evaluator.run(model)
    assert model.computed == 4
    model.see([0, 5])
    evaluator.run(model)
    assert model.computed == 4 + 3  # the last one has grown, and two are new
    assert len(evaluator._kept) == 6


def test_nothing_is_kept_when_the_cache_is_off():
    model, evaluator = Counting([1, 4]), make_evaluator(cache_bytes=0)
    evaluator.run(model)
    evaluator.run(model)
    assert model.computed == 6


def test_no_more_is_kept_than_the_limit_allows():
    model, evaluator = Counting([0, 1, 4, 5, 7, 10]), make_evaluator(cache_bytes=3 * QUERY - 1)
    evaluator.run(model)
    assert model.computed == 7
    evaluator.run(model)
    assert model.computed == 7 + 4  # two batches of eight are kept, and the one of six


class Hoarding(Counting):
    """Keeps more for every batch in each evaluation."""

    def forward(self, images, cached=None):
        cached[f"more {len(cached)}"] = torch.zeros(QUERY // 4)
        return super().forward(images, cached)


def test_the_limit_holds_for_a_model_that_keeps_more_and_more():
    model, evaluator = Hoarding([0, 1, 4, 5, 7, 10]), make_evaluator(cache_bytes=12 * QUERY)
    for _ in range(14):
        evaluator.run(model)
        kept = [value.nbytes for cache in evaluator._kept.values() for value in cache.values()]
        assert sum(kept) == evaluator._kept_bytes <= 12 * QUERY
    assert kept


def test_images_keep_their_places_and_full_batches_never_change_when_classes_arrive_one_by_one():
    model, evaluator = Counting(), make_evaluator()
    before = []
    for classes in ([4], [7], [1, 10], [0], [5]):
        model.see(classes)
        model.batches = []
        evaluator.run(model)
        full = [batch for batch in before if len(batch) == 8]
        assert len(full) >= len(before) - 1
        assert all(torch.equal(a, b) for a, b in zip(full, model.batches, strict=False))
        images = torch.cat(model.batches)
        assert len(images) > sum(map(len, before))
        assert not before or torch.equal(images[: sum(map(len, before))], torch.cat(before))
        before = model.batches
    assert sum(map(len, before)) == len(TEST)


def test_an_evaluator_that_is_told_the_order_forms_the_same_batches():
    model, evaluator = Counting(), make_evaluator()
    for classes in ([10, 4], [7], [1]):
        model.see(classes)
        evaluator.run(model)
    assert evaluator.exposed == [[4, 10], [7], [1]]
    model.batches = []
    evaluator.run(model)
    other, fresh = make_evaluator(), Counting([4, 10, 7, 1])
    other.restore(evaluator.exposed)
    other.run(fresh)
    assert all(torch.equal(a, b) for a, b in zip(model.batches, fresh.batches, strict=True))
    assert all(
        torch.equal(a, b) for a, b in zip(model.outputs[-len(fresh.outputs) :], fresh.outputs, strict=True)
    )


def test_groups_that_come_in_turn_are_kept_as_well_and_change_no_figure():
    seen, evaluator = [[0, 4, 7], [1], [5, 10]], make_evaluator(in_turn=True)
    model = Counting()
    for experience, classes in enumerate(seen):
        model.see(classes)
        found = evaluator.run(model, experience)
        assert found == make_evaluator(in_turn=True, cache_bytes=0).run(model, experience)
        assert evaluator._kept.keys() == {tuple(b) for b in evaluator._batches(evaluator._evaluated()[0])}
        assert [group is not None for group in found.groups] == [n <= experience for n in range(3)]


def test_a_model_that_has_seen_less_starts_the_evaluator_afresh():
    evaluator = make_evaluator()
    evaluator.run(Counting([0, 1, 4]))
    fresh = Counting([4])
    assert sum(evaluator.run(fresh).confusion.values()) == 9
    assert fresh.computed == len(fresh.batches) == 2


def test_loader_processes_and_the_short_form_give_the_same_evaluation():
    model = Counting([0, 1, 4, 7])
    expected = make_evaluator().run(model)
    assert make_evaluator(workers=2).run(model) == expected
    short = evaluate(model, TEST)
    assert short.accuracy == expected.accuracy
    assert short.confusion == expected.confusion


def test_bf16_changes_the_logits_a_little():
    exact, rough = Counting([0, 1, 4]), Counting([0, 1, 4])
    make_evaluator().run(exact)
    make_evaluator(precision="bf16").run(rough)
    one, other = (torch.cat(m.outputs)[:, [0, 1, 4]].float() for m in (exact, rough))
    assert 0 < (one - other).abs().max() < 0.05


def test_a_glimpse_is_a_few_images_of_each_group_that_was_met():
    evaluator = make_evaluator()
    glimpse = Shown(evaluator, 1024, lambda images: images)
    assert glimpse.groups(4) == []
    evaluator.run(Counting([4, 1]))
    first = glimpse.groups(4)
    evaluator.run(Counting([4, 1, 7]))
    later = glimpse.groups(4)
    assert [part.shape[0] for part in later] == [4, 4]
    assert torch.equal(later[0], first[0])
    seven = TEST.images[np.flatnonzero(TEST.targets == 7)]
    assert all(any(torch.equal(image, other) for other in seven) for image in later[1])
    assert [part.shape[0] for part in glimpse.groups(99)] == [18, 9]
    assert sum(len(batch) for batch in glimpse()) == 27
