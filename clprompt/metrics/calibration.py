"""Whether a classifier is as often right as it is sure: expected calibration error, in plain numpy.

The figure of torchmetrics' ``multiclass_calibration_error`` (15 bins, l1), without its probabilities [n, C].

Source: Naeini et al. 2015 (Obtaining well calibrated probabilities using Bayesian binning), Guo et al. 2017
(On calibration of modern neural networks).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

_EDGES = np.linspace(0, 1, 16)  # of 15 bins, each with its lower edge; 1.0 is a bin by itself
_CHUNK = 1024  # rows whose softmax is held at a time
#: The metric of ``results.json``, with its title in tables.
CALIBRATION_METRICS = {"calibration_error": "calibration error"}


def calibration_error(logits: NDArray[Any], targets: NDArray[np.int64]) -> float | None:
    """The mean gap between confidence and accuracy over bins of confidence, as heavy as their samples.

    Args:
        logits: [n, C], -inf for classes that do not take part; the confidence of a sample is the largest of
            its softmax.
        targets: class ids, [n].

    Returns:
        in [0, 1]; None without a sample. One for which no class takes part yet is left out.
    """
    largest = logits.max(1, keepdims=True) if logits.size else logits[:, :0]
    known = (largest != -np.inf).any(1)  # nan stays, and shows
    if not known.all():
        logits, targets, largest = logits[known], targets[known], largest[known]
    if not len(logits):
        return None
    confidence = np.concatenate(
        [
            1 / np.exp(logits[at : at + _CHUNK] - largest[at : at + _CHUNK], dtype=np.float64).sum(1)
            for at in range(0, len(logits), _CHUNK)
        ]
    )
    gap = (logits.argmax(1) == targets) - confidence
    return float(np.abs(np.bincount(np.digitize(confidence, _EDGES), gap)).sum() / len(logits))


def summarise_calibration(records: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """The calibration error of the last evaluation that has one, by its name; {} of a run without."""
    last = [record["calibration_error"] for record in records if record.get("calibration_error") is not None]
    return {"calibration_error": float(last[-1])} if last else {}
