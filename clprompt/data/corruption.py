"""The same photographs drawn otherwise: domain gaps of a stated strength, a pure function of the pixels."""

from __future__ import annotations

import zlib
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from clprompt.inputs import Corruption
from clprompt.seeding import derive

#: Standard deviation of the blur, as a share of the shorter side: ImageNet-C's strongest, 6 of 224 pixels.
BLUR = 6 / 224
#: What is left of the distance to the mean: ImageNet-C's strongest.
CONTRAST = 0.05
#: Standard deviation of the noise, of pixels in [0, 1]: ImageNet-C's third, Tiny-ImageNet-C's strongest.
NOISE = 0.18


def corrupted(image: Tensor, kind: Corruption) -> Tensor:
    """An image drawn otherwise.

    - "edges": the grey image's Sobel gradients by their length, cut off at white; light lines on black.
    - "inverted": every channel's negative.
    - "blur": a Gaussian of a standard deviation of 6/224 of the shorter side.
    - "low-contrast": a twentieth of each pixel's distance to the mean of the grey image.
    - "grey-noise": the grey image, and Gaussian noise of a standard deviation of 0.18 on each pixel. It is
      drawn from the image's own pixels, so an image has the same noise wherever and whenever it is shown.

    Args:
        image: uint8, or float32 in [0, 1], [1 or 3 channels, H, W].
        kind: one of the above.

    Returns:
        uint8, of the same shape.

    Source: strengths of Gaussian blur, contrast and Gaussian noise are those of Hendrycks & Dietterich, ICLR
    2019 (their released code); kinds, and the blur's share of the side, are ours.
    """
    drawn = _DRAWINGS[kind](F.to_pil_image(F.to_dtype(image, torch.uint8, scale=True)))
    return F.pil_to_tensor(drawn).expand(len(image), -1, -1)


def _edges(picture: Image.Image) -> Image.Image:
    from scipy import ndimage  # is not loaded where no image is drawn so

    grey = np.asarray(picture.convert("L"), dtype=np.float64)
    length = np.sqrt(sum(ndimage.sobel(grey, axis, mode="nearest") ** 2 for axis in (0, 1)))
    return Image.fromarray(length.clip(0, 255).round().astype(np.uint8))


def _blur(picture: Image.Image) -> Image.Image:
    return picture.filter(ImageFilter.GaussianBlur(BLUR * min(picture.size)))


def _low_contrast(picture: Image.Image) -> Image.Image:
    return ImageEnhance.Contrast(picture).enhance(CONTRAST)


def _grey_noise(picture: Image.Image) -> Image.Image:
    grey = np.asarray(picture.convert("L"))
    rng = np.random.default_rng(derive(0, "grey-noise", zlib.crc32(grey.tobytes())))
    noisy = grey + 255 * NOISE * rng.standard_normal(grey.shape)
    return Image.fromarray(noisy.clip(0, 255).round().astype(np.uint8))


_DRAWINGS: dict[Corruption, Callable[[Image.Image], Image.Image]] = {
    "edges": _edges,
    "inverted": ImageOps.invert,
    "blur": _blur,
    "low-contrast": _low_contrast,
    "grey-noise": _grey_noise,
}
