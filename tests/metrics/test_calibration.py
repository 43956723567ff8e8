"""Expected calibration error: held to torchmetrics, and to what it means in small cases."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchmetrics.functional.classification import multiclass_calibration_error

from clprompt.metrics.calibration import calibration_error, summarise_calibration
from clprompt.metrics.measure import LESS_IS_BETTER, Accuracy


@pytest.mark.parametrize("scale", [0.1, 1.0, 5.0])
@pytest.mark.parametrize("unseen", [0, 3])
def test_it_is_that_of_torchmetrics(scale: float, unseen: int) -> None:
    rng = np.random.default_rng(0)
    logits = (scale * rng.normal(size=(3000, 7))).astype(np.float32)
    targets = rng.integers(0, 7 - unseen, 3000)
    logits[np.arange(3000), targets] += scale
    logits[:, 7 - unseen :] = -np.inf
    expected = multiclass_calibration_error(
        torch.as_tensor(logits).double().softmax(1), torch.as_tensor(targets), 7, n_bins=15, norm="l1"
    )
    assert calibration_error(logits, targets) == pytest.approx(float(expected), abs=1e-6)


def test_who_is_sure_and_right_has_none_and_who_is_sure_and_wrong_has_all() -> None:
    logits = np.array([[900, 0, -np.inf]] * 4, dtype=np.float32)
    assert calibration_error(logits, np.zeros(4, dtype=np.int64)) == 0
    assert calibration_error(logits, np.ones(4, dtype=np.int64)) == 1
    assert calibration_error(logits, np.array([0, 0, 0, 1])) == 0.25
    assert calibration_error(logits[:0], np.zeros(0, dtype=np.int64)) is None


@pytest.mark.filterwarnings("error")
def test_an_image_for_which_no_class_takes_part_is_left_out_and_nan_is_not() -> None:
    logits = np.array([[900, 0], [-np.inf, -np.inf], [900, 0], [0, 900]], dtype=np.float32)
    assert calibration_error(logits, np.zeros(4, dtype=np.int64)) == pytest.approx(1 / 3)
    assert calibration_error(logits[1:2], np.zeros(1, dtype=np.int64)) is None
    assert calibration_error(logits[:, :0], np.zeros(4, dtype=np.int64)) is None
    logits[0] = np.nan
    assert np.isnan(calibration_error(logits, np.zeros(4, dtype=np.int64)))


def test_an_evaluation_has_it_last_and_so_has_its_trained_head() -> None:
    logits = np.array([[900, 0], [900, 0]], dtype=np.float32)
    evaluation = Accuracy().score(logits, np.array([0, 1]), np.array([0, 1]), [np.arange(2)])
    assert list(evaluation.record().items())[-1] == ("calibration_error", 0.5)
    assert evaluation.figures()["calibration_error"] == 0.5
    record = {"kind": "evaluation", "when": "experience", "experience": 0, **evaluation.record()}
    assert Accuracy().summarise([record])["calibration_error"] == 0.5
    assert Accuracy().scalars([record], record, [[0, 1]])["accuracy/calibration_error"] == 0.5
    assert "calibration_error" in LESS_IS_BETTER


def test_a_run_of_an_older_version_has_none() -> None:
    assert summarise_calibration([{"kind": "evaluation", "accuracy": 0.5}, {"kind": "train"}]) == {}
