"""`data.validation`: training images in place of the test set of any data set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_data import READERS

from clprompt.data import DataBundle, assemble, takes_selection, takes_views
from clprompt.data.images import ImageSource
from clprompt.data.selection import Selection
from clprompt.errors import ConfigError, DataError, DataWarning
from clprompt.registry import datasets


def pixels(source: ImageSource) -> list[bytes]:
    return [np.asarray(source.load(index)).tobytes() for index in range(len(source))]


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.filterwarnings("ignore::clprompt.errors.DataWarning")
def test_every_reader_tests_on_training_images_alone(reader: str, tmp_path: Path) -> None:
    target, arguments = datasets.get(reader).target, READERS[reader](tmp_path)
    plain, tuning, again = (target(**arguments, **more) for more in ({}, *2 * ({"validation": 0.4},)))
    assert len(tuning.test) > 0
    assert sorted([*pixels(tuning.train), *pixels(tuning.test)]) == sorted(pixels(plain.train))
    assert np.array_equal(again.test.targets, tuning.test.targets)
    assert pixels(again.test) == pixels(tuning.test)
    assert tuning.class_names == plain.class_names
    assert set(np.unique(tuning.train.targets)) == set(np.unique(plain.train.targets))


@takes_views()
@takes_selection(but=("test_fraction",))
def mine(*, selection: Selection) -> DataBundle:
    """Mine: ten cats, ten dogs and an eel, two domains; no test image can be loaded."""
    labels = np.array([*["cat"] * 10, *["dog"] * 10, "eel", "eel", "cat", "dog", "eel"])

    def load(index: int) -> np.ndarray:
        assert index < 22, "a test image is looked at"
        return np.full((8, 8), index, dtype=np.uint8)

    domains = np.arange(25) % 2
    return assemble("mine", load, labels, np.arange(25) > 21, selection, domains=domains)


def test_a_share_of_each_class_is_taken_with_its_domains_and_no_test_image_is_looked_at() -> None:
    with pytest.warns(
        DataWarning, match=r"mine: 7 training images are tested on .* data.validation=0.3 says"
    ):
        bundle = mine(validation=0.3)
    assert np.bincount(bundle.test.targets).tolist() == [3, 3, 1]
    assert np.bincount(bundle.train.targets).tolist() == [7, 7, 1]
    for source in (bundle.train, bundle.test):
        values = [int(source.load(index)[0, 0]) for index in range(len(source))]
        assert source.domains is not None
        assert source.domains.tolist() == [value % 2 for value in values]
    assert mine(validation=0.3).fingerprints["test images"] == bundle.fingerprints["test images"]


@pytest.mark.parametrize(
    ("more", "error", "says"),
    [
        ({"validation": 1.0}, ConfigError, "data.validation must be above 0 and below 1"),
        ({"validation": "half"}, ConfigError, "data.validation must be"),
        (
            {"validation": 0.3, "train_per_class": 1},
            DataError,
            'mine, data.validation: class "cat" has one image',
        ),
    ],
)
def test_what_cannot_be_held_out_is_refused(more: dict[str, Any], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        mine(**more)
