"""Generated coloured blobs, of any size and number."""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
import torch

from clprompt import schema
from clprompt.data.bundle import DataBundle, takes_views
from clprompt.data.images import ImageArray, ImageSource
from clprompt.registry import datasets
from clprompt.schema import at_least
from clprompt.seeding import derive


@datasets.register("synthetic")
@schema.checked
@takes_views()
def synthetic(
    *,
    classes: Annotated[int, at_least(1)] = 10,
    train_per_class: Annotated[int, at_least(1)] = 20,
    test_per_class: Annotated[int, at_least(1)] = 10,
    size: Annotated[int, at_least(1)] = 32,
    channels: Literal[1, 3] = 3,
    noise: Annotated[float, at_least(0)] = 0.1,
    seed: int = 0,
) -> DataBundle:
    """Generated images: one coloured blob per class on noise; tiny, for tests and first steps.

    Args:
        classes: how many.
        train_per_class: training images of each class.
        test_per_class: test images of each class.
        size: height and width in pixels.
        channels: 1 or 3.
        noise: standard deviation of the pixels' noise, where 1 is the whole range.
        seed: of places, colours and noise.

    Raises:
        ConfigError: a number out of range.
    """
    looks = np.random.default_rng(derive(seed, "looks"))
    centres = looks.uniform(0.25, 0.75, (classes, 2))
    colours = looks.uniform(0.2, 1.0, (classes, channels))

    def source(part: str, per_class: int) -> ImageSource:
        rng = np.random.default_rng(derive(seed, part))
        targets = np.arange(classes).repeat(per_class)
        centre = centres[targets] + rng.normal(0, 0.03, (len(targets), 2))  # [n, 2], in parts of the side
        grid = (np.arange(size) + 0.5) / size
        across = (grid - centre[:, :1]) ** 2  # (n, size)
        down = (grid - centre[:, 1:]) ** 2
        blob = np.exp(-(down[:, :, None] + across[:, None, :]) / 0.03)  # (n, size, size)
        images = blob[:, None] * colours[targets][:, :, None, None]
        images = (images + rng.normal(0, noise, images.shape)).clip(0, 1) * 255
        return ImageSource(ImageArray(torch.from_numpy(images.astype(np.uint8))), targets)

    names = [f"blob {c}" for c in range(classes)]
    train = source("train", train_per_class)
    return DataBundle("synthetic", train, source("test", test_per_class), names)
