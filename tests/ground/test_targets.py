"""What may stand for a class: refusals in one line, and no state changed by one."""

import numpy as np
import pytest
import torch

from clprompt.errors import ProtocolError
from clprompt.targets import MOST_CLASSES, check_ids, checked_classes, checked_targets

LABELS = torch.tensor([0, 1, 2])
WRONG_TARGETS = {
    "a list": [0, 1],
    "an array": np.array([0, 1]),
    "a number": 3,
    "a text": "cat",
    "nothing": None,
    "a scalar": torch.tensor(1),
    "three dimensions": torch.zeros(2, 2, 2, dtype=torch.int64),
    "floats": LABELS.float(),
    "nan": torch.tensor([float("nan")]),
    "booleans": LABELS > 0,
    "complex numbers": LABELS * 1j,
    "half a label": torch.full((3, 2), 0.5),
    "a label set of nan": torch.full((3, 2), float("nan")),
    "a label set of twos": torch.full((3, 2), 2),
    "a complex label set": torch.zeros(3, 2) * 1j,
}
WRONG_CLASSES = {
    "a number": 5,
    "a text": "12",
    "bytes": b"12",
    "nothing": None,
    "a mapping": {1: "cat"},
    "a scalar": torch.tensor(5),
    "two dimensions": np.array([[5]]),
    "a list of lists": [[0, 1]],
    "words": ["cat"],
    "whole floats": [1.0],
    "an array of floats": np.array([1.0]),
    "a tensor of floats": torch.tensor([1.0]),
    "booleans": [True],
    "a tensor of booleans": torch.tensor([True]),
    "a negative one": [3, -3],
    "one too many": [MOST_CLASSES],
    "one that no integer type holds": [10**30],
}


@pytest.mark.parametrize("what", WRONG_TARGETS)
def test_what_is_no_target_is_refused_in_one_line(what):
    with pytest.raises(ProtocolError, match=r"\A(targets|multi-hot targets|labels) must [^\n]*got [^\n]*\Z"):
        checked_targets(WRONG_TARGETS[what])


@pytest.mark.parametrize("kind", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64])
def test_labels_of_any_integer_type_are_the_same_labels(kind):
    labels = checked_targets(LABELS.to(kind))
    assert labels.dtype == torch.int64
    assert torch.equal(labels, LABELS)


def test_label_sets_stay_as_they_are():
    hot = torch.eye(3)
    assert checked_targets(hot) is hot


@pytest.mark.parametrize("what", WRONG_CLASSES)
def test_what_is_no_class_is_refused_in_one_line(what):
    with pytest.raises(ProtocolError, match=r"\A(classes|a class id|labels) must [^\n]*got [^\n]*\Z"):
        checked_classes(WRONG_CLASSES[what])


@pytest.mark.parametrize(
    "classes", [[4, 2, 2], (2, 4), {2, 4}, np.array([2, 4]), torch.tensor([4, 2]), iter([2, np.int64(4)])]
)
def test_classes_come_ascending_and_once_from_whatever_holds_them(classes):
    assert checked_classes(classes) == [2, 4]


def test_the_largest_class_that_is_allowed_is_said():
    with pytest.raises(ProtocolError, match="labels must be below 1000000, got 1000000000000"):
        check_ids([10**12])
