"""What a run predicted last, image by image: what a paired comparison of two runs needs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class LastPredictions:
    """The answers of the last evaluation.

    Attributes:
        images: indices into the test set, ascending, int32 [n].
        targets: class ids int32 [n]; of label sets 0/1 uint8 [n, C] over ``classes``.
        outputs: predicted class ids int32 [n]; of label sets scores (logits) float32 [n, C].
        trained_head: the same as ``outputs`` of the trained head, where something else answered; else None.
        classes: of label sets the class ids of the columns, int32 [C]; else None.
        test_set: checksum of the fingerprint of the test set, uint8 [32]; None where nobody knows it.
    """

    images: NDArray[Any]
    targets: NDArray[Any]
    outputs: NDArray[Any]
    trained_head: NDArray[Any] | None = None
    classes: NDArray[Any] | None = None
    test_set: NDArray[Any] | None = None
