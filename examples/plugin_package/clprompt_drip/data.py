"""A data set that is generated."""

from typing import Annotated

import numpy as np
import torch

from clprompt import at_least, checked
from clprompt.data import DataBundle, ImageArray, ImageSource


@checked
def stripes(
    *, classes: Annotated[int, at_least(2)] = 6, per_class: Annotated[int, at_least(1)] = 20
) -> DataBundle:
    """Stripes, each class at an angle of its own, 16x16, grey.

    Args:
        classes: how many.
        per_class: images of each class, in training and in the test set.
    """

    def part(seed: int) -> ImageSource:
        labels = np.arange(classes).repeat(per_class)
        phases = np.random.default_rng(seed).uniform(0, 2 * np.pi, len(labels))[:, None, None]
        angles = (np.pi * labels / classes)[:, None, None]
        down, across = np.mgrid[:16, :16]
        waves = np.sin(np.cos(angles) * across + np.sin(angles) * down + phases)  # (n, 16, 16)
        images = (127.5 * (waves + 1)).astype(np.uint8)[:, None]
        return ImageSource(ImageArray(torch.from_numpy(images)), labels)

    return DataBundle(
        name="stripes",
        train=part(0),
        test=part(1),
        class_names=[f"{180 * label // classes} degrees" for label in range(classes)],
    )
