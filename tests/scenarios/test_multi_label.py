"""The multi-label protocol: which images and which labels an experience shows."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clprompt.errors import ConfigError, DataError
from clprompt.scenarios.multi_label import plan
from clprompt.targets import visible

FILE = Path(__file__).parents[1] / "golden" / "multilane_metrics.npz"


@pytest.mark.parametrize(("name", "base", "step"), [("B0", 0, 4), ("B10", 10, 2)])
def test_images_and_classes_of_every_step_are_the_golden_ones(name, base, step):
    with np.load(FILE) as file:
        golden = {
            key.removeprefix(f"protocol.{name}."): file[key]
            for key in file.files
            if f"protocol.{name}." in key
        }
    found = plan(golden["train_labels"], base_classes=base, classes_per_experience=step)
    assert len(found) == sum(key.endswith(".classes") for key in golden)
    for task in range(len(found)):
        assert list(found.classes[task]) == golden[f"task{task}.classes"].tolist()
        assert found.indices[task].tolist() == golden[f"task{task}.train_indices"].tolist()
        assert (
            found.seen_test(golden["val_labels"], task).tolist()
            == golden[f"task{task}.val_seen_indices"].tolist()
        )
    empty = (golden["train_labels"].sum(1) == 0).sum()
    assert any(
        f"{empty} of 60 training images have no label" in note
        for note in found.notes(golden["train_labels"], golden["val_labels"])
    )


def hot(seed: int, samples: int = 80, classes: int = 11) -> np.ndarray:
    return (np.random.default_rng(seed).random((samples, classes)) < 0.2).astype(np.uint8)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 11), st.integers(0, 11), st.booleans())
def test_every_label_is_shown_once(seed, step, base, shuffle):
    targets = hot(seed)
    targets[:11] = np.eye(11)
    found = plan(targets, seed=seed, classes_per_experience=step, base_classes=base, shuffle=shuffle)
    assert sorted(c for group in found.classes for c in group) == list(range(11))
    assert all(len(group) == step for group in found.classes[1:-1])
    shown = np.zeros_like(targets, dtype=int)
    for task, index in enumerate(found.indices):
        part = visible(torch.from_numpy(targets[index]), found.classes[task]).numpy()
        assert part.any(1).all()
        np.add.at(shown, index, part)
    assert (shown == targets).all()
    assert (found.describe(targets).sum(0) == targets.sum(0)).all()


def test_a_remainder_is_a_smaller_last_experience():
    targets = np.eye(11, dtype=int)
    assert [len(group) for group in plan(targets, classes_per_experience=4).classes] == [4, 4, 3]
    assert [len(group) for group in plan(targets, classes_per_experience=4, base_classes=5).classes] == [
        5,
        4,
        2,
    ]


def test_the_order_is_that_of_the_ids_or_seeded_or_given():
    targets = np.eye(6, dtype=int)

    def flat(**arguments):
        return [c for g in plan(targets, classes_per_experience=2, **arguments).classes for c in g]

    assert flat() == list(range(6))
    assert flat(class_order=[5, 3, 1, 0, 2, 4]) == [5, 3, 1, 0, 2, 4]
    assert flat(shuffle=True, seed=1) == flat(shuffle=True, seed=1) != flat(shuffle=True, seed=2)


@pytest.mark.parametrize(
    ("targets", "arguments", "error", "text"),
    [
        (np.arange(4), {}, DataError, "multi-hot targets"),
        (np.full((4, 3), 2), {}, DataError, "must be 0 or 1, got 2"),
        (np.eye(4), {"classes_per_experience": 5}, ConfigError, "must be 1..4"),
        (
            np.eye(4),
            {"classes_per_experience": 2, "base_classes": -1},
            ConfigError,
            "base_classes must be at least 0, got -1",
        ),
        (np.eye(4), {"classes_per_experience": 2, "base_classes": 5}, ConfigError, "must be 0..4"),
        (np.eye(4), {"classes_per_experience": 2, "class_order": [0, 1, 1, 2]}, ConfigError, "permutation"),
        (
            np.eye(4),
            {"classes_per_experience": 2, "threshold": 1.0},
            ConfigError,
            "above 0 and below 1, got 1.0",
        ),
        (np.eye(4)[:2], {"classes_per_experience": 2}, DataError, "experience 2 .* has no training image"),
        (np.eye(4)[:3], {"classes_per_experience": 2}, DataError, "experience 2 .* has none for class 3"),
    ],
)
def test_mistakes_are_told_in_one_line(targets, arguments, error, text):
    with pytest.raises(error, match=text) as caught:
        plan(targets, **arguments)
    assert "\n" not in str(caught.value)
