"""Mosaics: label sets composed from the images of a single-label data set."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor

from clprompt import schema
from clprompt.data.bundle import DataBundle, takes_views
from clprompt.data.fingerprint import Fingerprint, checksum, of_images
from clprompt.data.images import ImageSource
from clprompt.errors import ConfigError
from clprompt.registry import datasets
from clprompt.schema import at_least, below
from clprompt.seeding import derive
from clprompt.targets import is_label_sets


def make_mosaic(
    source: ImageSource,
    num_classes: int,
    *,
    grid: int,
    images: int,
    most: int,
    empty: float,
    seed: int,
    name: str,
) -> ImageSource:
    """Mosaics of a source's images: a grid of cells, some of them filled, the labels those of what they show.

    Which image stands where is a function of the seed; pixels are put together when an image is loaded.

    Args:
        source: single-label images, all of the shape of the first.
        num_classes: C.
        grid: cells a side.
        images: how many mosaics.
        most: cells that are filled at most; the number is drawn from 1..most.
        empty: share of mosaics without any image.
        seed: decides the draws, together with the name.
        name: of the part, "train" or "test".
    """
    rng = np.random.default_rng(derive(seed, "mosaic", name))
    cells = np.full((images, grid * grid), -1)
    for row in cells:
        count = 0 if rng.random() < empty else rng.integers(1, most + 1)
        row[rng.choice(grid * grid, count, replace=False)] = rng.integers(0, len(source), count)
    targets = np.zeros((images, num_classes), dtype=np.uint8)
    rows, _ = filled = np.nonzero(cells >= 0)
    targets[rows, source.targets[cells[filled]]] = 1
    return ImageSource(Mosaics(source.load, cells, _as_tensor(source.load(0))), targets, encoded=True)


@dataclass(frozen=True)
class Mosaics:
    """Index -> a mosaic, tensor [channels, grid * H, grid * W].

    Attributes:
        load: of the cells' images.
        cells: index of the image in each cell, -1 for an empty one, [n, grid * grid].
        first: an image [channels, H, W] whose shape every cell has.
    """

    load: Callable[[int], Any]
    cells: np.ndarray
    first: Tensor

    def __call__(self, index: int) -> Tensor:
        from torchvision.transforms.v2 import functional as transforms  # it takes seconds to import

        channels, high, wide = self.first.shape
        grid = math.isqrt(self.cells.shape[1])
        canvas = torch.zeros(channels, grid * high, grid * wide, dtype=self.first.dtype)
        for cell, number in enumerate(self.cells[index]):
            if number >= 0:
                image = _as_tensor(self.load(int(number)))
                if len(image) == 3 and channels == 1:  # a colour image among grey ones
                    image = transforms.rgb_to_grayscale(image)
                if image.shape != self.first.shape:
                    image = transforms.resize(image.expand(channels, -1, -1), [high, wide], antialias=True)
                y, x = divmod(cell, grid)
                canvas[:, y * high : (y + 1) * high, x * wide : (x + 1) * wide] = image
        return canvas

    def fingerprint(self, indices: np.ndarray) -> Fingerprint:
        cells = self.cells[indices]
        images = of_images(self.load, np.unique(cells[cells >= 0]))
        return images | {"cells": checksum([cells.astype(np.int64)])}


def _as_tensor(image: Any) -> Tensor:
    from torchvision.transforms.v2 import functional as transforms

    return image if isinstance(image, Tensor) else transforms.pil_to_tensor(image)


@datasets.register("mosaic")
@schema.checked
@takes_views()
def mosaic(
    *,
    source: str | dict[str, Any] = "digits",
    grid: Annotated[int, at_least(1)] = 2,
    train_images: Annotated[int, at_least(1)] = 1500,
    test_images: Annotated[int, at_least(1)] = 500,
    most: Annotated[int, at_least(1)] | None = None,
    empty: Annotated[float, at_least(0), below(1)] = 0.05,
    seed: int = 0,
) -> DataBundle:
    """Multi-label mosaics of any single-label data set: a grid of cells, each empty or one of its images.

    Args:
        source: a registered data set: its name, or {name: ..., and its arguments}.
        grid: cells a side.
        train_images: how many mosaics of training images of the source.
        test_images: how many mosaics of test images of the source.
        most: filled cells at most; null for all of them.
        empty: share of mosaics without any image, and so without labels.
        seed: decides the mosaics, whatever the seed of the run.
    """
    most = grid * grid if most is None else most
    if most > grid * grid:
        raise ConfigError(f"data.most must be 1..{grid * grid}, the cells of the grid, got {most}")
    bundle = _source(source)
    if is_label_sets(bundle.train.targets):
        raise ConfigError(f"data.source must be a single-label data set; {bundle.name} is multi-label")
    parts = {
        name: make_mosaic(
            part,
            len(bundle.class_names),
            grid=grid,
            images=count,
            most=most,
            empty=empty,
            seed=seed,
            name=name,
        )
        for name, part, count in (("train", bundle.train, train_images), ("test", bundle.test, test_images))
    }
    return DataBundle(
        f"mosaics of {bundle.name}",
        parts["train"],
        parts["test"],
        bundle.class_names,
        own_names=bundle.own_names,
        synonyms=bundle.synonyms,
    )


def _source(section: str | dict[str, Any]) -> DataBundle:
    """The data set of a section inside a section."""
    arguments = {"name": section} if isinstance(section, str) else dict(section)
    if not isinstance(arguments.get("name"), str):
        raise ConfigError("data.source.name is missing: a data set's name")
    try:
        target = datasets.get(arguments.pop("name")).target
    except ConfigError as error:
        raise ConfigError(f"data.source.name: {error}") from None
    bundle = target(**schema.arguments(target, arguments, "data.source"))
    if bundle.views.corrupt is not None:
        raise ConfigError(
            f"data.source.corrupt={bundle.views.corrupt} would change nothing: a mosaic is drawn as a whole; "
            f"give data.corrupt={bundle.views.corrupt}"
        )
    return bundle


@datasets.register("digit_mosaics")
@schema.checked
@takes_views()
def digit_mosaics(
    *,
    train_images: Annotated[int, at_least(1)] = 1500,
    test_images: Annotated[int, at_least(1)] = 500,
    seed: int = 0,
) -> DataBundle:
    """2x2 mosaics of scikit-learn's digits, 16x16, none to four digits each, 10 classes; no download.

    Args:
        train_images: how many mosaics; a digit is in training mosaics or in test mosaics, never both.
        test_images: how many mosaics of test digits.
        seed: decides the mosaics, whatever the seed of the run.
    """
    return mosaic(train_images=train_images, test_images=test_images, seed=seed)
