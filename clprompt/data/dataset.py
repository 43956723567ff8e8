"""What training and evaluation read: a source of images under a transform."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from clprompt.data.bundle import DataBundle
from clprompt.data.images import ImageCache, ImageSource
from clprompt.data.transforms import Transform, make_transform
from clprompt.errors import ConfigError
from clprompt.inputs import ImageSpec, TakesImages

#: What the prepared images of one data set (training, or test) may take in memory.
CACHE_BYTES = 2**30


class ImageDataset(Dataset):
    """A source under a transform: items are (image [3, H, W], label), or (image, multi-hot [C]).

    Args:
        source: images and labels.
        transform: image -> tensor.
        random_transform: whether the transform draws random numbers.
        cache_bytes: how much of what a :class:`Transform` computes the same way every time stays in memory:
            the resized image, or the decoded one before a random transform. It changes time and no item.
        names: of each class by class id, the shown one first; None where nobody knows them.

    Attributes:
        targets: int64 [n], or multi-hot [n, C].
        domains: see :class:`ImageSource`.
        as_bytes: items of 8 bits are left to be normalised where they go, a quarter of the size.
    """

    def __init__(
        self,
        source: ImageSource,
        transform: Callable[[Any], Tensor],
        *,
        random_transform: bool,
        cache_bytes: int = 0,
        names: Mapping[int, Sequence[str]] | None = None,
    ) -> None:
        self.names = names
        self.source = source
        self.transform = transform
        self.targets = source.targets
        self.domains = source.domains
        self.random_transform = random_transform
        self.as_bytes = False
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
        transform = self.transform
        if not isinstance(transform, Transform):
            return transform(self.source.load(index))
        image = None if self._cache is None else self._cache.get(index)
        if image is None:
            image = transform.fixed(self.source.load(index))
            if self._cache is not None:
                self._cache.put(index, image)
        if not self.as_bytes:
            return transform.rest(image)
        pixels = transform.varied(image)
        return pixels.contiguous() if pixels.dtype == torch.uint8 else transform.normalise(pixels)

    @property
    def normalise(self) -> Callable[[Tensor], Tensor] | None:
        """What is still to be done with items of 8 bits; None where nothing is."""
        return self.transform.normalise if self.as_bytes and isinstance(self.transform, Transform) else None

    def send_bytes(self, backbone: TakesImages) -> None:
        """Leave normalisation to a model over this backbone, if it is the one that the transform makes."""
        spec = backbone.inputs
        made = self.transform.normalise.constants if isinstance(self.transform, Transform) else None
        self.as_bytes = made == (spec.mean, spec.std)


def inputs_for(bundle: DataBundle, backbone: TakesImages) -> ImageSpec:
    """The images that a backbone takes, shown as a data set wants it.

    Raises:
        ConfigError: images are resized to less than the backbone's size; they are to be normalised as the
            data set says, and it says nothing.
    """
    views = bundle.views
    try:
        inputs = replace(backbone.inputs, test_resize=views.test_resize, corrupt=views.corrupt)
        if views.interpolation is not None:
            inputs = replace(inputs, interpolation=views.interpolation)
    except ValueError as error:
        raise ConfigError(f"data.{error}") from None
    if not inputs.awaits_data:
        return inputs
    if bundle.normalisation is None:
        raise ConfigError(
            f"backbone.normalise=dataset: no published mean and deviation of {bundle.name} are known; use "
            "backbone (its weights' own) or unit (pixels in [0, 1])"
        )
    return inputs.normalised(bundle.normalisation.mean, bundle.normalisation.std)


def datasets_for(
    bundle: DataBundle, backbone: TakesImages
) -> tuple[ImageDataset, ImageDataset, ImageDataset]:
    """The training set augmented, the training set under the evaluation transform, and the test set.

    Raises:
        ConfigError: see :func:`inputs_for` and :func:`make_transform`.
    """
    limit = CACHE_BYTES if bundle.cache else 0
    inputs = inputs_for(bundle, backbone)
    plain = make_transform(inputs)
    views = bundle.views
    augmented = make_transform(
        inputs, views.augment, crop_scale=views.crop_scale, crop_interpolation=views.crop_interpolation
    )
    common: dict[str, Any] = {"cache_bytes": limit, "names": bundle.names()}
    clean = ImageDataset(bundle.train, plain, random_transform=False, **common)
    train = clean
    if augmented.random:
        train = ImageDataset(bundle.train, augmented, random_transform=True, **common)
    return train, clean, ImageDataset(bundle.test, plain, random_transform=False, **common)
