"""Data sets by name, and the items that training and evaluation read.

========================================= ==========================================================
digits, letters                           8x8 images that come with clprompt; no download
synthetic                                 generated coloured blobs, of any size and number
imagefolder, csv, npz                     your own images, see :mod:`clprompt.data_files`
cifar100, flowers102, ...                 torchvision's, see :mod:`clprompt.data_torchvision`
========================================= ==========================================================

A data set of your own is a function that returns a :class:`DataBundle`; its typed keyword arguments are the keys of
the configuration's ``data`` section:

    @datasets.register("mine")
    def mine(*, path: str = "data") -> DataBundle: ...
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from clprompt import data_files, data_torchvision  # noqa: F401 - they register their data sets
from clprompt.backbone import FrozenViT
from clprompt.data_bundle import DataBundle, Selection, assemble
from clprompt.errors import ConfigError
from clprompt.images import ImageArray, ImageCache, ImageSource
from clprompt.registry import datasets
from clprompt.seeding import derive
from clprompt.transforms import Augment, Transform, make_transform

__all__ = ["Augment", "DataBundle", "ImageDataset", "ImageSource", "datasets_for", "make_transform"]

#: What the prepared images of one data set (training, or test) may take in memory.
CACHE_BYTES = 2**30


class ImageDataset(Dataset):
    """A source under a transform: items are (image [3, H, W], label), or (image, multi-hot [C]).

    Args:
        source: images and labels.
        transform: image -> tensor.
        random_transform: whether the transform draws random numbers.
        cache_bytes: how much of what a :class:`Transform` computes the same way every time stays in memory: the
            resized image, or the decoded one before a random transform. It changes time, not a bit of any item.

    Attributes:
        targets: int64 [n], or multi-hot [n, C].
    """

    def __init__(
        self,
        source: ImageSource,
        transform: Callable[[Any], Tensor],
        *,
        random_transform: bool,
        cache_bytes: int = 0,
    ) -> None:
        self.source = source
        self.transform = transform
        self.targets = source.targets
        self.random_transform = random_transform
        # images that lie in memory need not be remembered unless they are resized
        worth_it = isinstance(transform, Transform) and (source.encoded or not transform.random)
        self._cache = ImageCache(len(source), cache_bytes) if worth_it and cache_bytes else None

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> tuple[Tensor, int | Tensor]:
        index = range(len(self.source))[index]
        target = self.targets[index]
        return self._image(index), torch.tensor(target) if target.ndim else int(target)

    def _image(self, index: int) -> Tensor:
        if self._cache is None:
            return self.transform(self.source.load(index))
        assert isinstance(self.transform, Transform)
        image = self._cache.get(index)
        if image is None:
            image = self.transform.fixed(self.source.load(index))
            self._cache.put(index, image)
        return self.transform.rest(image)


def datasets_for(bundle: DataBundle, backbone: FrozenViT) -> tuple[ImageDataset, ImageDataset, ImageDataset]:
    """The training set augmented, the training set under the evaluation transform, and the test set."""
    limit = CACHE_BYTES if bundle.cache else 0
    plain = make_transform(backbone)
    augmented = make_transform(backbone, bundle.augment)
    clean = ImageDataset(bundle.train, plain, random_transform=False, cache_bytes=limit)
    train = clean
    if augmented.random:
        train = ImageDataset(bundle.train, augmented, random_transform=True, cache_bytes=limit)
    return train, clean, ImageDataset(bundle.test, plain, random_transform=False, cache_bytes=limit)


# ------------------------------------------------------------------------------------ sets without any file


@datasets.register("digits")
def digits(*, test_fraction: float = 0.2, augment: Augment = "none") -> DataBundle:
    """scikit-learn's 1797 handwritten digits, 8x8, 10 classes; no download.

    Args:
        test_fraction: share of each class that is the test set.
        augment: "none", "standard", "autoaugment-cifar" or "autoaugment-imagenet".
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    if not 0 < test_fraction < 1:
        raise ConfigError(f"data.test_fraction must be between 0 and 1, got {test_fraction}")
    data = load_digits()
    images = torch.from_numpy(data.images).float().div(16)[:, None]  # (n, 1, 8, 8) in [0, 1]
    targets = data.target.astype(np.int64)
    train, test = train_test_split(
        np.arange(len(targets)), test_size=test_fraction, random_state=0, stratify=targets
    )

    def part(indices: np.ndarray) -> ImageSource:
        indices = np.sort(indices)
        return ImageSource(ImageArray(images[torch.from_numpy(indices)]), targets[indices])

    return DataBundle(
        name="digits",
        train=part(train),
        test=part(test),
        class_names=[str(digit) for digit in range(10)],
        augment=augment,
    )


@datasets.register("letters")
def letters(
    *,
    count: int = 3700,
    exclude: str | None = None,
    seed: int = 0,
    test_fraction: float = 0.2,
    augment: Augment = "none",
) -> DataBundle:
    """Letters drawn in the manner of the digits, 8x8, 37 classes; no download.

    Args:
        count: of all images; classes are of equal size.
        exclude: letters that are left out; null leaves out those with a digit's shape.
        seed: of the drawing, and of the choice of test images.
        test_fraction: share of each class that is the test set.
        augment: "none", "standard", "autoaugment-cifar" or "autoaugment-imagenet".
    """
    from clprompt.letters import LOOK_LIKE_DIGITS, render_letters

    selection = Selection(test_fraction=test_fraction, split_seed=seed)
    left_out = LOOK_LIKE_DIGITS if exclude is None else exclude
    images, labels, names = render_letters(count, seed=seed, exclude=left_out)
    load = ImageArray(torch.from_numpy(images)[:, None])
    return assemble(
        "letters",
        load,
        labels,
        None,
        selection,
        augment=augment,
        cache=True,
        encoded=False,
        names=names,
    )


@datasets.register("synthetic")
def synthetic(
    *,
    classes: int = 10,
    train_per_class: int = 20,
    test_per_class: int = 10,
    size: int = 32,
    channels: int = 3,
    noise: float = 0.1,
    seed: int = 0,
    augment: Augment = "none",
) -> DataBundle:
    """Generated images: one coloured blob per class on noise; tiny, for tests and first steps.

    Args:
        classes: how many.
        train_per_class, test_per_class: images of each class.
        size: height and width in pixels.
        channels: 1 or 3.
        noise: standard deviation of the pixels' noise, where 1 is the whole range.
        seed: of places, colours and noise.
        augment: "none", "standard", "autoaugment-cifar" or "autoaugment-imagenet".

    Raises:
        ConfigError: a number out of range.
    """
    least = {
        "classes": classes,
        "train_per_class": train_per_class,
        "test_per_class": test_per_class,
        "size": size,
    }
    for key, value in least.items():
        if value < 1:
            raise ConfigError(f"data.{key} must be at least 1, got {value}")
    if channels not in (1, 3):
        raise ConfigError(f"data.channels must be 1 or 3, got {channels}")
    if not 0 <= noise < math.inf:
        raise ConfigError(f"data.noise must be at least 0, got {noise}")
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
    return DataBundle("synthetic", train, source("test", test_per_class), names, augment)
