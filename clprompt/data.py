"""Data sets by name, their transforms, and the images that clprompt carries itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import InterpolationMode, v2

from clprompt.backbone import FrozenViT
from clprompt.errors import ConfigError
from clprompt.registry import datasets

Augment = Literal["none", "standard"]


@dataclass(frozen=True)
class ImageSource:
    """Images and labels before any transform.

    Attributes:
        load: index -> PIL image, or tensor [channels, H, W] (uint8, or float in [0, 1]).
        targets: class ids 0..C-1, int64 [n]; or multi-hot 0/1, [n, C].
    """

    load: Callable[[int], Any]
    targets: np.ndarray

    def __len__(self) -> int:
        return len(self.targets)


@dataclass(frozen=True)
class DataBundle:
    """A data set: training and test images, class names by class id, and how training images are augmented."""

    name: str
    train: ImageSource
    test: ImageSource
    class_names: list[str]
    augment: Augment = "none"


class ImageDataset(Dataset):
    """A source under a transform: items are (image [3, H, W], label).

    Attributes:
        targets: int64 [n], or multi-hot [n, C].
        random_transform: whether the transform draws random numbers.
    """

    def __init__(self, source: ImageSource, transform: Callable[[Any], Tensor], *, random_transform: bool):
        self.source = source
        self.transform = transform
        self.targets = source.targets
        self.random_transform = random_transform

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> tuple[Tensor, int | Tensor]:
        target = self.targets[index]
        return self.transform(self.source.load(index)), torch.tensor(target) if target.ndim else int(target)


def make_transform(backbone: FrozenViT, augment: Augment = "none") -> v2.Compose:
    """Image -> tensor [channels, H, W] as the backbone expects it.

    Args:
        backbone: gives size, channels, interpolation, mean and standard deviation.
        augment: "none" (resize to the backbone's size) or "standard" (random resized crop, horizontal flip).
    """
    size = list(backbone.image_size)
    interpolation = InterpolationMode(backbone.interpolation)
    antialias = backbone.antialias
    if augment == "standard":
        resize: list[Any] = [
            v2.RandomResizedCrop(size, (0.08, 1.0), interpolation=interpolation, antialias=antialias),
            v2.RandomHorizontalFlip(),
        ]
    elif augment == "none":
        resize = [v2.Resize(size, interpolation=interpolation, antialias=antialias)]
    else:
        raise ConfigError(f'data.augment must be none or standard, got "{augment}"')
    channels = [v2.Grayscale(1)] if backbone.in_chans == 1 else [v2.RGB()]
    return v2.Compose(
        [
            v2.ToImage(),
            *channels,
            v2.ToDtype(torch.float32, scale=True),
            *resize,
            v2.Normalize(backbone.mean, backbone.std),
        ]
    )


def datasets_for(bundle: DataBundle, backbone: FrozenViT) -> tuple[ImageDataset, ImageDataset, ImageDataset]:
    """The training set augmented, the training set under the evaluation transform, and the test set."""
    plain = make_transform(backbone)
    augmented = make_transform(backbone, bundle.augment)
    return (
        ImageDataset(bundle.train, augmented, random_transform=bundle.augment != "none"),
        ImageDataset(bundle.train, plain, random_transform=False),
        ImageDataset(bundle.test, plain, random_transform=False),
    )


@datasets.register("digits")
def digits(*, test_fraction: float = 0.2, augment: Augment = "none") -> DataBundle:
    """scikit-learn's 1797 handwritten digits, 8x8, 10 classes; no download.

    Args:
        test_fraction: share of each class that is the test set.
        augment: "none" or "standard".
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
    return DataBundle(
        name="digits",
        train=_tensor_source(images, targets, np.sort(train)),
        test=_tensor_source(images, targets, np.sort(test)),
        class_names=[str(digit) for digit in range(10)],
        augment=augment,
    )


def _tensor_source(images: Tensor, targets: np.ndarray, indices: np.ndarray) -> ImageSource:
    chosen = images[torch.from_numpy(indices)]
    return ImageSource(load=lambda i: chosen[i], targets=targets[indices])
