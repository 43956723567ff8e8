import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from clprompt.metrics import accuracy as metrics
from clprompt.metrics.accuracy import Evaluation

NAN = float("nan")

# Group 1 falls and recovers a little, group 2 improves, group 3 is new.
R = np.array([[0.9, NAN, NAN], [0.5, 0.6, NAN], [0.6, 0.8, 1.0]])


def evaluation(experience, groups, accuracy=0.5, when="experience", **more):
    return {
        "kind": "evaluation",
        "step": 10 * experience,
        "samples": 100 * experience,
        "experience": experience,
        "when": when,
        "accuracy": accuracy,
        "groups": groups,
        **more,
    }


def records_of(matrix):
    return [
        evaluation(i, [None if np.isnan(value) else value for value in row]) for i, row in enumerate(matrix)
    ]


def test_the_accuracy_matrix_comes_from_the_evaluations_at_the_end_of_experiences():
    records = [
        {"kind": "train", "step": 1, "experience": 0, "terms": {"loss": 1.0}},
        evaluation(0, [0.1, None], when="anytime"),
        evaluation(0, [0.9, None]),
        evaluation(1, [0.2, 0.3], when="anytime"),
        evaluation(1, [0.5, 0.6]),
    ]
    np.testing.assert_equal(metrics.accuracy_matrix(records), [[0.9, NAN], [0.5, 0.6]])


def test_rows_of_experiences_that_are_still_to_come_are_nan():
    matrix = metrics.accuracy_matrix([evaluation(0, [0.9, None, None])])
    np.testing.assert_equal(matrix, [[0.9, NAN, NAN], [NAN] * 3, [NAN] * 3])


def test_the_last_of_several_evaluations_of_an_experience_counts():
    np.testing.assert_equal(metrics.accuracy_matrix([evaluation(0, [0.1]), evaluation(0, [0.7])]), [[0.7]])


def test_a_run_without_evaluations_has_an_empty_matrix_and_nothing_but_nan():
    assert metrics.accuracy_matrix([]).shape == (0, 0)
    assert all(np.isnan(value) for value in metrics.summarise([]).values())
    assert metrics.forgetting_curve(np.empty((0, 0))).shape == (0,)
    assert metrics.group_forgetting(np.empty((0, 0))).shape == (0,)


def test_records_that_do_not_fit_together_are_refused():
    with pytest.raises(ValueError, match="reports 2 class groups, others 1"):
        metrics.accuracy_matrix([evaluation(0, [0.9]), evaluation(1, [0.9, 0.8])])
    with pytest.raises(ValueError, match="experience 1 was reported, but there are 1 class groups"):
        metrics.accuracy_matrix([evaluation(1, [0.9])])
    with pytest.raises(ValueError, match=r"square.*\[2, 3\]"):
        metrics.forgetting(np.zeros((2, 3)))


def test_the_metrics_of_three_groups_by_hand():
    assert metrics.average_accuracy(R) == pytest.approx((0.6 + 0.8 + 1.0) / 3)
    np.testing.assert_allclose(metrics.accuracy_curve(R), [0.9, 0.55, 0.8])
    assert metrics.average_incremental_accuracy(R) == pytest.approx((0.9 + 0.55 + 0.8) / 3)
    np.testing.assert_allclose(metrics.group_forgetting(R), [0.9 - 0.6, 0.6 - 0.8, NAN])
    assert metrics.forgetting(R) == pytest.approx((0.3 - 0.2) / 2)
    np.testing.assert_allclose(metrics.forgetting_curve(R), [NAN, 0.4, 0.05])
    assert metrics.backward_transfer(R) == pytest.approx((-0.3 + 0.2) / 2)


def test_forgetting_starts_from_the_best_day_and_not_from_the_first():
    matrix = [[0.5, NAN, NAN], [0.9, 0.5, NAN], [0.4, 0.5, 0.5]]
    assert metrics.forgetting(matrix) == pytest.approx((0.5 + 0.0) / 2)
    assert metrics.backward_transfer(matrix) == pytest.approx((-0.1 + 0.0) / 2)


def test_forgetting_is_negative_when_old_groups_end_better_than_ever():
    assert metrics.forgetting([[0.5, NAN], [0.8, 0.9]]) == pytest.approx(-0.3)


def test_nonnegative_forgetting_counts_a_group_that_ended_better_than_ever_as_0():
    assert metrics.nonnegative_forgetting(R) == pytest.approx((0.3 + 0.0) / 2)
    assert metrics.nonnegative_forgetting([[0.5, NAN], [0.8, 0.9]]) == 0
    assert np.isnan(metrics.nonnegative_forgetting([[0.7]]))


def test_nonnegative_forgetting_is_the_maximum_over_all_experiences_less_the_last():
    draw = np.random.default_rng(0)
    for size in (2, 3, 7):
        matrix = np.where(np.tri(size) > 0, draw.random((size, size)), NAN)
        table = np.nan_to_num(matrix)  # a class that was not learnt yet is never right
        expected = np.mean([table[:, j].max() - table[-1, j] for j in range(size - 1)])
        assert metrics.nonnegative_forgetting(matrix) == pytest.approx(expected)


def test_incremental_accuracy_by_samples_weighs_groups_by_their_test_samples():
    # groups of 10 and of 30 test samples: 9 right of 10, then 5 of 10 and 27 of 30
    first = Evaluation(0.9, [0.9, None], Counter({(0, 0): 9, (0, 1): 1}))
    second = Evaluation(0.8, [0.5, 0.9], Counter({(0, 0): 5, (0, 1): 5, (1, 1): 27, (1, 0): 3}))
    records = [
        {"kind": "evaluation", "when": "experience", "experience": i} | result.record()
        for i, result in enumerate((first, second))
    ]
    records.insert(1, {**records[0], "when": "anytime", "accuracy": 0.1})
    summary = metrics.summarise(records)
    assert summary["average_incremental_accuracy"] == pytest.approx((0.9 + 0.7) / 2)
    assert summary["average_incremental_accuracy_by_samples"] == pytest.approx((0.9 + 0.8) / 2)
    assert metrics.online_metrics(records)["A_avg"] == summary["average_incremental_accuracy_by_samples"]


def test_one_experience_has_an_accuracy_but_no_forgetting():
    assert metrics.average_accuracy([[0.7]]) == metrics.average_incremental_accuracy([[0.7]]) == 0.7
    assert np.isnan(metrics.forgetting([[0.7]]))
    assert np.isnan(metrics.backward_transfer([[0.7]]))
    np.testing.assert_equal(metrics.forgetting_curve([[0.7]]), [NAN])


@pytest.mark.filterwarnings("error")
def test_a_group_without_classes_counts_in_no_mean():
    matrix = [[0.9, NAN, NAN], [0.5, NAN, NAN], [0.6, NAN, 1.0]]
    assert metrics.average_accuracy(matrix) == pytest.approx(0.8)
    np.testing.assert_allclose(metrics.accuracy_curve(matrix), [0.9, 0.5, 0.8])
    assert metrics.forgetting(matrix) == pytest.approx(0.3)
    assert metrics.backward_transfer(matrix) == pytest.approx(-0.3)
    assert np.isnan(metrics.average_accuracy(np.full((2, 2), NAN)))
    assert np.isnan(metrics.average_incremental_accuracy(np.full((2, 2), NAN)))


def test_a_group_that_is_first_measured_at_the_end_has_nothing_to_forget():
    assert metrics.forgetting([[0.9, NAN, NAN], [0.5, NAN, NAN], [0.6, 0.8, 1.0]]) == pytest.approx(0.3)


def test_the_summary_has_the_names_of_the_results_file():
    records = records_of(R)
    records[-1]["accuracy"] = 0.77
    assert metrics.summarise(records) == pytest.approx(
        {
            "average_accuracy": 0.8,
            "average_incremental_accuracy": 0.75,
            "average_incremental_accuracy_by_samples": (0.5 + 0.5 + 0.77) / 3,
            "forgetting": 0.05,
            "nonnegative_forgetting": 0.15,
            "backward_transfer": -0.05,
            "last_accuracy": 0.77,
        }
    )
    assert all(type(value) is float for value in metrics.summarise(records).values())


def test_the_last_accuracy_is_that_of_the_last_evaluation_of_either_kind():
    records = [evaluation(0, [0.9], accuracy=0.9), evaluation(0, [0.4], accuracy=0.4, when="anytime")]
    assert metrics.summarise(records)["last_accuracy"] == 0.4
    assert metrics.summarise(records)["average_accuracy"] == 0.9


def test_a_run_that_is_not_over_is_summarised_up_to_where_it_is():
    summary = metrics.summarise(records_of(R)[:2])
    assert summary["average_accuracy"] == pytest.approx(0.55)
    assert summary["forgetting"] == pytest.approx(0.4)


def test_confusion_counts_add_up_by_true_class_in_rows():
    matrix = metrics.confusion_matrix([[0, 0, 3], [0, 2, 1], [2, 2, 4], [0, 2, 1]], 3)
    np.testing.assert_array_equal(matrix, [[3, 0, 2], [0, 0, 0], [0, 0, 4]])
    assert matrix.dtype == np.int64


def test_the_accuracy_of_a_class_without_samples_is_nan():
    accuracy = metrics.per_class_accuracy([[0, 0, 3], [0, 2, 1], [2, 1, 4]], 3)
    np.testing.assert_equal(accuracy, [0.75, NAN, 0.0])


@pytest.mark.parametrize("triplet", [[3, 0, 1], [0, 3, 1], [-1, 0, 1], [0, 0, -1]])
def test_a_confusion_entry_out_of_range_is_refused(triplet):
    with pytest.raises(ValueError, match="bad entry"):
        metrics.confusion_matrix([triplet], 3)


def matrices(fewest=1):
    """Lower triangles of accuracies, as a class-incremental run fills them."""
    return st.integers(fewest, 7).flatmap(
        lambda n: arrays(np.float64, (n, n), elements=st.floats(0, 1, width=32)).map(
            lambda a: np.where(np.tri(n, dtype=bool), a, NAN)
        )
    )


@given(matrices())
def test_the_matrix_survives_the_way_through_records(matrix):
    np.testing.assert_array_equal(metrics.accuracy_matrix(records_of(matrix)), matrix)


@given(matrices())
def test_curves_end_in_the_final_metrics(matrix):
    assert metrics.accuracy_curve(matrix)[-1] == pytest.approx(metrics.average_accuracy(matrix))
    assert metrics.forgetting_curve(matrix)[-1] == pytest.approx(metrics.forgetting(matrix), nan_ok=True)


@given(matrices(fewest=2))
def test_a_group_cannot_have_lost_less_than_since_it_was_learnt(matrix):
    assert metrics.forgetting(matrix) >= -metrics.backward_transfer(matrix) - 1e-12
    assert -1 <= metrics.forgetting(matrix) <= 1


@given(matrices(fewest=2), st.floats(-1, 1))
def test_forgetting_does_not_change_when_every_accuracy_shifts(matrix, shift):
    assert metrics.forgetting(matrix + shift) == pytest.approx(metrics.forgetting(matrix))
    assert metrics.average_accuracy(matrix + shift) == pytest.approx(metrics.average_accuracy(matrix) + shift)


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4), st.integers(0, 50))))
def test_class_accuracies_weighted_by_samples_give_the_overall_accuracy(triplets):
    counts = metrics.confusion_matrix(triplets, 5)
    accuracy = metrics.per_class_accuracy(triplets, 5)
    correct = sum(count for target, predicted, count in triplets if target == predicted)
    assert np.nansum(accuracy * counts.sum(axis=1)) == pytest.approx(correct)


def test_the_module_needs_numpy_only():
    code = (
        "import sys, clprompt.metrics.accuracy; "
        "print({'torch', 'matplotlib', 'tensorboard'} & set(sys.modules))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert ran.stdout == "set()\n", ran.stderr
