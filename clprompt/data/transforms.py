"""From an image to what a backbone takes: channels, size, augmentation, normalisation."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as F

from clprompt.data.corruption import corrupted
from clprompt.data.images import as_read, read_image
from clprompt.data.views import Augment, Interpolation, TestResize
from clprompt.errors import ConfigError, DataError
from clprompt.inputs import Corruption, TakesImages


@dataclass(frozen=True)
class Transform:
    """Image -> tensor [channels, H, W], in parts: what is the same every time, what varies, normalisation.

    Attributes:
        fixed: image -> uint8 or float32 tensor; its result may be kept between epochs.
        varied: that tensor -> uint8 or float32 pixels of the backbone's size.
        normalise: pixels -> what the backbone takes.
        random: whether ``varied`` draws random numbers (from torch's global state).
    """

    fixed: Callable[[Any], Tensor]
    varied: Callable[[Tensor], Tensor]
    normalise: Normalise
    random: bool

    def rest(self, fixed: Tensor) -> Tensor:
        """What follows ``fixed``."""
        return self.normalise(self.varied(fixed))

    def __call__(self, image: Any) -> Tensor:
        """[channels, H, W], float32.

        Args:
            image: a path, or the bytes of a file, read by :func:`clprompt.data.images.read_image`; an image
                of Pillow's, made upright and 8 bits deep as that makes it; an array [H, W] or [H, W,
                channels]; or a tensor [channels, H, W], uint8 or float in [0, 1].

        Raises:
            DataError: a file that cannot be read, or a shape that is no image's.
        """
        return self.rest(self.fixed(image))


def make_transform(
    backbone: TakesImages,
    augment: Augment = "none",
    *,
    crop_scale: tuple[float, float] = (0.08, 1.0),
    crop_interpolation: Interpolation = None,
) -> Transform:
    """Image -> tensor [channels, H, W] as the backbone expects it; :class:`Transform` says what it takes.

    Images of 8 bits are resized in 8 bits, as timm does it: the weights have seen nothing else, and it is
    several times as fast as in floating point.

    Args:
        backbone: says which images it takes: a backbone, or an :class:`clprompt.inputs.ImageSpec` by itself;
            where its ``inputs.corrupt`` says so they are drawn otherwise before anything else.
        augment: how training images are varied.

            - "none": not at all; the image gets the backbone's size as its ``inputs.test_resize`` says, see
              :class:`clprompt.data.Views`.
            - "standard": random resized crop, horizontal flip.
            - "crop": resized as for "none", a random crop in place of the centre, horizontal flip.
            - "padded-crop": as "none", a random crop with 4 pixels of padding, horizontal flip.
            - "autoaugment-cifar", "autoaugment-imagenet": that AutoAugment policy, then as "padded-crop".
        crop_scale: smallest and largest share of the area that the crop of "standard" takes.
        crop_interpolation: how that crop is resized; None as all images.

    Raises:
        ConfigError: an unknown augmentation, a backbone with neither 1 nor 3 channels, or one whose images
            are normalised as a data set says that is not known here.

    Source: AutoAugment, Cubuk et al., CVPR 2019.
    """
    spec = backbone.inputs
    if spec.channels not in (1, 3):
        raise ConfigError(f"images have 1 or 3 channels, the backbone takes {spec.channels}")
    if spec.awaits_data:
        raise ConfigError(
            "backbone.normalise=dataset: the mean and deviation of the data set are not known here; "
            "inputs_for(bundle, backbone) gives the images, backbone.with_inputs(...) takes them"
        )
    how: dict[str, Any] = {
        "interpolation": InterpolationMode(spec.interpolation),
        "antialias": spec.antialias,
    }
    fit, normalise = _Fit(spec.size, spec.test_resize, **how), Normalise(spec.mean, spec.std)
    if augment == "none":
        return Transform(_Pixels(spec.channels, fit, spec.corrupt), _same, normalise, random=False)
    if augment == "standard":
        if crop_interpolation is not None:
            how["interpolation"] = InterpolationMode(crop_interpolation)
        crop = [v2.RandomResizedCrop(spec.size, crop_scale, **how), v2.RandomHorizontalFlip()]
        return Transform(
            _Pixels(spec.channels, corrupt=spec.corrupt), v2.Compose(crop), normalise, random=True
        )
    if augment in ("crop", "padded-crop"):
        resized, cut = (
            (fit.scaled, v2.RandomCrop(spec.size))
            if augment == "crop"
            else (fit, v2.RandomCrop(spec.size, padding=4))
        )
        cropped = v2.Compose([cut, v2.RandomHorizontalFlip()])
        return Transform(_Pixels(spec.channels, resized, spec.corrupt), cropped, normalise, random=True)
    if augment in get_args(Augment):
        policy = v2.AutoAugmentPolicy("cifar10" if augment == "autoaugment-cifar" else "imagenet")
        chain = [
            v2.ToDtype(torch.uint8, scale=True),  # the policies count in 256 levels
            v2.AutoAugment(policy),
            fit,
            v2.RandomCrop(spec.size, padding=4),
            v2.RandomHorizontalFlip(),
        ]
        pixels = _Pixels(spec.channels, corrupt=spec.corrupt)
        return Transform(pixels, v2.Compose(chain), normalise, random=True)
    raise ConfigError(f'data.augment must be one of {", ".join(get_args(Augment))}, got "{augment}"')


@dataclass(frozen=True)
class _Fit:
    """Bring an image to a size; see :class:`clprompt.data.Views` for the ways."""

    size: tuple[int, int]
    resize: TestResize
    interpolation: InterpolationMode
    antialias: bool

    def __call__(self, image: Tensor) -> Tensor:
        image = self.scaled(image)
        return image if tuple(image.shape[-2:]) == self.size else F.center_crop(image, list(self.size))

    def scaled(self, image: Tensor) -> Tensor:
        """The image before its centre is kept."""
        height, width = image.shape[-2:]
        scale = max(self.size[0] / height, self.size[1] / width)
        cover = [max(self.size[0], round(height * scale)), max(self.size[1], round(width * scale))]
        if self.resize is not None:
            cover = list(self.size) if self.resize == "squash" else [self.resize]
        elif cover == [height, width]:
            return image
        return F.resize(image, cover, interpolation=self.interpolation, antialias=self.antialias)


@dataclass(frozen=True)
class _Pixels:
    """An image of any kind -> uint8 or float32 [channels, H, W], drawn otherwise and resized if asked for."""

    channels: int
    fit: Callable[[Tensor], Tensor] | None = None
    corrupt: Corruption | None = None

    def __call__(self, image: Any) -> Tensor:
        if isinstance(image, str | os.PathLike | bytes):
            image = read_image(image)
        elif isinstance(image, Image.Image):
            image = as_read(image)
        tensor = image if isinstance(image, Tensor) else F.to_image(image)
        tensor = tensor.as_subclass(Tensor)  # torchvision's own class would dispatch every operation twice
        if tensor.ndim == 2:
            tensor = tensor[None]
        if tensor.dtype not in (torch.uint8, torch.float32):
            tensor = F.to_dtype(tensor, torch.float32, scale=True)
        channels = len(tensor) if tensor.ndim == 3 else 0
        if channels not in (1, 3, 4):
            raise DataError(f"an image has shape {list(tensor.shape)}; it must be [1, 3 or 4 channels, H, W]")
        if channels == 4:
            tensor, channels = tensor[:3], 3  # transparency is dropped
        if channels == 3 and self.channels == 1:
            tensor = F.rgb_to_grayscale(tensor)
        if self.corrupt is not None:
            tensor = corrupted(tensor, self.corrupt)
        if self.fit is not None:
            tensor = self.fit(tensor)
        if channels == 1 and self.channels == 3:
            tensor = tensor.expand(3, -1, -1)
        if self.fit is not None:
            return tensor.contiguous()
        # what is still to be resized stays as a decoder gives it, channels last: twice as fast
        return tensor.permute(1, 2, 0).contiguous().permute(2, 0, 1)


def _same(image: Tensor) -> Tensor:
    return image


class Normalise:
    """uint8, or float32 in [0, 1] -> (pixel - mean) / std, always a new float32 tensor.

    On any device; every operation is rounded once, so that all give the same bits.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        self.constants = tuple(mean), tuple(std)
        self.mean = torch.tensor(mean, dtype=torch.float32)[:, None, None]
        self.std = torch.tensor(std, dtype=torch.float32)[:, None, None]

    def __call__(self, image: Tensor) -> Tensor:
        if image.dtype == torch.uint8:  # scaling the constants saves a pass over the pixels
            mean, std = (
                (values * 255).to(image.device, non_blocking=True) for values in (self.mean, self.std)
            )
            return image.contiguous().to(torch.float32).sub_(mean).div_(std)
        return image.sub(self.mean).div_(self.std)
