"""Multi-label metrics against the golden file and against the libraries whose conventions agree."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from clprompt.errors import DataError
from clprompt.metrics import accuracy
from clprompt.metrics import label_sets as ml

FILE = Path(__file__).parents[1] / "golden" / "multilane_metrics.npz"
CASES = ("basic", "empty_columns", "ties", "saturated", "seen_subset", "nothing_predicted", "thr_edge")
REFERENCE = ("saturated", "thr_edge")  # cases that only float32 probabilities reproduce


@pytest.fixture(scope="module")
def golden():
    with np.load(FILE) as file:
        return {key: file[key] for key in file.files}


def case(golden, name, **arguments):
    classes = golden.get(f"{name}.seen_classes")
    found = ml.multi_label_scores(
        golden[f"{name}.logits"],
        golden[f"{name}.targets"],
        None if classes is None else np.sort(classes),
        **arguments,
    )
    return found, classes


@pytest.mark.parametrize("strict", [False, True], ids=["float64", "strict reference"])
@pytest.mark.parametrize("name", CASES)
def test_metrics_are_the_golden_ones(golden, name, strict):
    if name in REFERENCE and not strict:
        pytest.skip("float64 keeps apart what float32 probabilities tie")
    found, classes = case(golden, name, strict_reference=strict)
    for key in ("mAP", "CF1", "OF1"):
        assert 100 * getattr(found, key) == pytest.approx(float(golden[f"{name}.{key}"]), abs=1e-4), key
    for key in ("OP", "OR"):
        assert getattr(found, key) == pytest.approx(float(golden[f"{name}.{key}"]), abs=1e-6), key
    for ours, key in ((found.f1, "F1"), (found.precision, "P"), (found.recall, "R")):
        np.testing.assert_allclose(ours, golden[f"{name}.{key}_per_class"], atol=1e-6)
    ap = golden[f"{name}.AP_per_class"] / 100
    np.testing.assert_allclose(found.ap, ap if classes is None else ap[np.sort(classes)], atol=1e-5)


@pytest.mark.parametrize("name", [name for name in CASES if name not in REFERENCE])
@pytest.mark.parametrize("threshold", [0.5, 0.8])
def test_both_definitions_of_cf1_at_both_usual_thresholds(golden, name, threshold):
    found, _ = case(golden, name, threshold=threshold)
    prefix = f"{name}.alt_thr{threshold * 100:.0f}"
    assert 100 * found.CF1_macro == pytest.approx(float(golden[f"{prefix}.CF1_macroPR"]), abs=1e-4)
    assert pytest.approx(float(golden[f"{prefix}.CF1_mean"]), abs=1e-4) == 100 * found.CF1
    assert pytest.approx(float(golden[f"{prefix}.OF1"]), abs=1e-4) == 100 * found.OF1


def test_float64_ranks_what_float32_probabilities_tie(golden):
    found, _ = case(golden, "saturated")
    assert 100 * found.mAP == pytest.approx(64.15, abs=0.01)


def test_torchmetrics_agrees_where_every_class_has_a_positive(golden):
    from torchmetrics.functional.classification import multilabel_average_precision, multilabel_f1_score

    logits, targets = torch.from_numpy(golden["basic.logits"]), torch.from_numpy(golden["basic.targets"])
    found, _ = case(golden, "basic")
    count = targets.shape[1]
    theirs = multilabel_average_precision(logits, targets, num_labels=count)
    assert found.mAP == pytest.approx(float(theirs), abs=1e-5)
    for ours, average in ((found.CF1, "macro"), (found.OF1, "micro")):
        theirs = multilabel_f1_score(logits, targets, num_labels=count, average=average, threshold=0.8)
        assert ours == pytest.approx(float(theirs), abs=1e-6)
    logits, targets = (
        torch.from_numpy(golden["empty_columns.logits"]),
        torch.from_numpy(golden["empty_columns.targets"]),
    )
    naive = 100 * float(multilabel_average_precision(logits, targets, num_labels=count))
    if naive > 60:
        pytest.skip("this torchmetrics leaves classes without a positive out, as we do")
    assert naive == pytest.approx(55.01, abs=0.01)


@pytest.mark.parametrize(
    ("logits", "targets", "text"),
    [
        (np.zeros((3, 2)), np.zeros((3, 2)), "no test image has a label"),
        (np.zeros((3, 2)), np.full((3, 2), 2), "must be 0 or 1"),
        (np.zeros((3, 2)), np.zeros((3, 1)), "must both be"),
    ],
)
def test_what_has_no_map_is_refused_in_a_line(logits, targets, text):
    with pytest.raises(DataError, match=text) as caught:
        ml.multi_label_scores(logits, targets)
    assert "\n" not in str(caught.value)


def record(experience, classes, ap, value):
    metrics = dict.fromkeys(ml.METRICS, value)
    return {
        "kind": "evaluation",
        "when": "experience",
        "experience": experience,
        "classes": classes,
        "ap": ap,
    } | metrics


def test_a_run_is_summed_up_by_last_and_average_map():
    records = [record(0, [0, 1], [0.5, None], 0.5), record(1, [0, 1, 2], [0.2, None, 0.4], 0.3)]
    summary = ml.summarise(records)
    assert summary["mAP_last"] == 0.3
    assert summary["mAP_average"] == pytest.approx(0.4)
    assert summary["CF1"] == 0.3
    np.testing.assert_allclose(ml.group_matrix(records, [[0, 1], [2]]), [[0.5, math.nan], [0.2, 0.4]])
    assert math.isnan(ml.summarise([])["mAP_last"])


def test_accuracy_of_a_multi_label_run_is_refused_in_a_line():
    with pytest.raises(DataError, match="not defined for a run on multi-hot targets"):
        accuracy.accuracy_matrix([record(0, [0], [0.5], 0.5)])
