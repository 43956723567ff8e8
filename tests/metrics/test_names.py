"""Metrics of classifiers of names, on classes still to come."""

import numpy as np
import pytest
from golden_files import arrays

from clprompt.metrics.names import (
    base_new_harmonic_mean,
    score_names,
    summarise_names,
    transfer,
    zero_shot_curve,
)


@pytest.fixture(scope="module")
def golden():
    return arrays("clip")


def test_transfer_is_the_reference(golden):
    found = transfer(golden["metrics.accuracy"])
    assert np.allclose(found, golden["metrics.transfer"], atol=1e-12)
    assert np.isclose(found.mean(), golden["metrics.transfer_mean"], atol=1e-12)


def test_harmonic_mean_of_base_and_new_is_the_reference(golden):
    found = base_new_harmonic_mean(golden["metrics.accuracy"], golden["metrics.counts"])
    assert np.allclose(found, golden["metrics.base_new_H"], atol=1e-12)


def scored():
    logits = np.array(
        [[3.0, 1, 0, 0], [1, 2, 9, 0], [0, 0, 1, 2], [0, 9, 1, 2]]  # targets 0, 1 (seen), 2, 3 (to come)
    )
    groups = [np.array([0, 1]), np.array([2]), np.array([3])]
    return score_names(logits, -logits, np.arange(4), [0, 1], groups)


def test_each_accuracy_is_among_its_own_classes():
    names = scored()
    assert (names.base, names.new) == (1.0, 0.5)
    assert (names.base_of_all, names.new_of_all) == (0.5, 0.0)
    assert names.own == [None, 1.0, 1.0]
    assert names.zero_shot == [0.0, None, None]
    assert names.zero_shot_base == 0.0


def test_a_run_is_summarised_over_its_experiences():
    record = {"kind": "evaluation", "when": "experience", "experience": 0, "names": scored().record()}
    last = {
        **record["names"],
        "zero_shot": [0.5, 0.5, 0.8],
        "own": [None] * 3,
        "new": None,
        "new_of_all": None,
    }
    found = summarise_names([record, {**record, "experience": 2, "names": last}])
    assert found["transfer"] == pytest.approx(1.0)
    assert found["zero_shot"] == pytest.approx(0.6)
    assert found["base_new_H"] == pytest.approx(2 * 0.5 / 1.5)
    assert found["base_new_H_of_all"] == 0.0


def test_templates_alone_have_their_best_their_worst_and_a_spread():
    right = {"the {}": np.array([True, True, False, False]), "a {}": np.array([True, False, True, True])}
    groups = [np.array([0, 1]), np.array([2]), np.array([3])]
    names = score_names(np.eye(4), np.eye(4), np.arange(4), [0, 1, 2], groups, right)
    assert names.templates == {"the {}": 0.5, "a {}": 0.75}  # of the two groups seen
    record = {"kind": "evaluation", "when": "experience", "experience": 1, "names": names.record()}
    found = summarise_names([record])
    spread = [found[f"zero_shot_template_{key}"] for key in ("min", "max", "std")]
    assert spread == pytest.approx([0.5, 0.75, 0.25 / 2**0.5])
    assert not any("template" in key for key in summarise_names([{**record, "names": scored().record()}]))


def test_the_zero_shot_line_is_over_the_groups_seen():
    record = {"kind": "evaluation", "when": "experience", "names": scored().record()}
    later = {**scored().record(), "zero_shot": [0.5, 0.7, None]}
    curve = zero_shot_curve([{**record, "experience": 0}, {**record, "experience": 1, "names": later}])
    assert np.allclose(curve, [0.0, 0.6, np.nan], equal_nan=True)


def test_other_runs_have_none_of_these_metrics():
    records = [{"kind": "evaluation", "when": "experience", "experience": 0}]
    assert summarise_names(records) == {}
    assert zero_shot_curve(records) is None
