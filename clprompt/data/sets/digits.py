"""scikit-learn's handwritten digits."""

from __future__ import annotations

import numpy as np
import torch

from clprompt import schema
from clprompt.data.bundle import DataBundle, takes_views
from clprompt.data.images import ImageArray, ImageSource
from clprompt.data.selection import Limit, Share, ranks
from clprompt.registry import datasets


@datasets.register("digits")
@schema.checked
@takes_views()
def digits(
    *,
    test_fraction: Share = 0.2,
    train_per_class: Limit | None = None,
    split_seed: int = 0,
) -> DataBundle:
    """scikit-learn's 1797 handwritten digits, 8x8, 10 classes; no download.

    Args:
        test_fraction: share of each class that is the test set.
        train_per_class: at most so many training images of each class.
        split_seed: decides which images those are; the test set is always the same.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    data = load_digits()
    images = torch.from_numpy(data.images).float().div(16)[:, None]  # (n, 1, 8, 8) in [0, 1]
    targets = data.target.astype(np.int64)
    train, test = train_test_split(
        np.arange(len(targets)), test_size=test_fraction, random_state=0, stratify=targets
    )

    if train_per_class is not None:
        train = train[ranks(targets[train], split_seed, "subset") < train_per_class]

    def part(indices: np.ndarray) -> ImageSource:
        indices = np.sort(indices)
        return ImageSource(ImageArray(images[torch.from_numpy(indices)]), targets[indices])

    return DataBundle(
        name="digits",
        train=part(train),
        test=part(test),
        class_names=[str(digit) for digit in range(10)],
    )
