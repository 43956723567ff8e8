"""Two models on the same test images, on numbers worked out by hand or by another library."""

import numpy as np
import pytest
from scipy import stats

from clprompt.metrics import paired
from clprompt.metrics.label_sets import average_precision


def rights(alone, other_alone, both, neither):
    """Which images each of two models has right, from the four counts."""
    right = np.repeat([True, False, True, False], [alone, other_alone, both, neither])
    other = np.repeat([False, True, True, False], [alone, other_alone, both, neither])
    return right, other


def test_mcnemar_is_the_two_sided_binomial_test_of_the_discordant_images():
    # 1 of 8 alone: 2 (1 + 8) / 2^8
    assert paired.mcnemar(*rights(1, 7, 50, 20)) == pytest.approx(18 / 256)


def test_mcnemar_does_not_depend_on_the_images_that_both_models_answer_alike():
    assert paired.mcnemar(*rights(3, 11, 0, 0)) == paired.mcnemar(*rights(3, 11, 1000, 500))


def test_mcnemar_is_the_same_the_other_way_round():
    right, other = rights(3, 11, 5, 5)
    assert paired.mcnemar(right, other) == paired.mcnemar(other, right)


def test_models_that_are_right_on_the_same_images_do_not_differ():
    assert paired.mcnemar(*rights(0, 0, 5, 5)) == 1


def test_seeds_are_compared_by_the_paired_t_test_and_by_their_signs():
    draw = np.random.default_rng(1)
    one, other = draw.normal(size=(2, 6))
    found = paired.over_seeds(one - other)
    expected = stats.ttest_rel(one, other)
    assert found.t == pytest.approx(expected.pvalue)
    assert (found.low, found.high) == pytest.approx(tuple(expected.confidence_interval(0.95)))
    assert found.error == pytest.approx((one - other).std(ddof=1) / 6**0.5)
    ahead = int((one > other).sum())
    assert found.sign == pytest.approx(stats.binomtest(ahead, 6).pvalue)


def test_seeds_that_do_not_differ_have_no_sign():
    assert paired.over_seeds([0.1, 0.2, 0.0]).sign == 0.5  # two of two
    assert paired.over_seeds([0.0, 0.0, 0.0]).sign == 1


@pytest.mark.parametrize("differences", [[0.2], [0.1, 0.1], [0.3 - 0.2, 0.1, 0.4 - 0.3]])
def test_differences_that_do_not_vary_have_no_t_test(differences):
    found = paired.over_seeds(differences)
    assert found.mean == pytest.approx(differences[0])
    assert np.isnan([found.low, found.high, found.t]).all()


def test_the_interval_of_a_mean_is_that_of_the_paired_bootstrap():
    draw = np.random.default_rng(0)
    right, other = draw.random((2, 400)) < [[0.6], [0.5]]
    low, high = paired.mean_interval(right.astype(float) - other)
    expected = stats.bootstrap(
        (right, other),
        lambda a, b, axis=-1: a.mean(axis) - b.mean(axis),
        paired=True,
        n_resamples=1000,
        method="percentile",
        random_state=np.random.default_rng(1),
    ).confidence_interval
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=0.015)


def test_an_interval_is_the_same_in_every_call():
    values = np.random.default_rng(0).normal(size=50)
    assert paired.mean_interval(values) == paired.mean_interval(values)


def test_equal_answers_differ_by_nothing():
    assert paired.mean_interval(np.zeros(9)) == (0, 0)


@pytest.mark.parametrize("images", [0, 1])
def test_fewer_than_two_images_have_no_interval(images):
    assert np.isnan(paired.mean_interval(np.ones(images))).all()
    assert np.isnan(paired.map_interval(np.ones((images, 2)), [np.ones((images, 2))], [])).all()


@pytest.fixture(name="sets", scope="module")
def _sets():
    """Targets [60, 5], one class without a positive, and scores of two models with many ties, [2, 60, 5]."""
    draw = np.random.default_rng(3)
    targets = (draw.random((60, 5)) < 0.2).astype(np.uint8)
    targets[:, 4] = 0
    scores = np.round(targets + draw.normal(size=(2, 60, 5)), 1)
    return targets, scores


def test_map_under_weights_is_that_of_the_repeated_images(sets):
    targets, scores = sets
    rows = np.random.default_rng(4).integers(0, 60, 60)
    weights = np.bincount(rows, minlength=60).astype(float)
    found = paired._Ranking(scores[0], targets).mean_average_precision(weights)
    assert found == pytest.approx(np.nanmean(average_precision(scores[0][rows], targets[rows])))


def test_the_interval_of_a_difference_in_map_holds_the_difference(sets):
    targets, (scores, others) = sets
    low, high = paired.map_interval(targets, [scores], [others])
    difference = np.nanmean(average_precision(scores, targets) - average_precision(others, targets))
    assert low < difference < high


def test_the_interval_of_several_seeds_is_that_of_their_mean_difference(sets):
    targets, (scores, others) = sets
    twice = paired.map_interval(targets, [scores, scores], [others, others])
    assert twice == pytest.approx(paired.map_interval(targets, [scores], [others]))
    assert paired.map_interval(targets, [scores, others], [others, scores]) == pytest.approx(
        (0, 0), abs=1e-12
    )
