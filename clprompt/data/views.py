"""How images are shown to a model, as the keys of a configuration say it; what is done: `transforms`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from clprompt import schema
from clprompt.errors import ConfigError
from clprompt.inputs import Corruption
from clprompt.schema import above, at_least, at_most

Augment = Literal["none", "standard", "crop", "padded-crop", "autoaugment-cifar", "autoaugment-imagenet"]
#: A share of an image's area.
Area = Annotated[float, above(0), at_most(1)]
#: How an image that is not varied gets its size, see :class:`Views`.
TestResize = Annotated[int, at_least(1)] | Literal["squash"] | None
#: How pixels are found between pixels, in torchvision's words; None for what the weights have seen.
Interpolation = Literal["bilinear", "bicubic"] | None


@dataclass(frozen=True, kw_only=True)
class Views:
    """How images are shown to a model; the arguments of the same names of every data set that has them.

    Attributes:
        augment: how training images are varied, see :func:`clprompt.data.transforms.make_transform`.
        crop_scale: smallest and largest share of the area that a random crop of "standard" takes.
        test_resize: how an image gets the backbone's size wherever it is not varied: test images, training
            images that statistics are taken of, images of ``clprompt predict``. null scales it until it
            covers that size and keeps the centre; a number of pixels is what its shorter side is scaled to
            before the centre is kept; "squash" scales both sides, whatever becomes of their ratio.
        interpolation: how images are resized; null as those that the backbone's weights have seen.
        crop_interpolation: how the random crop of "standard" is resized; null as all images.
        corrupt: how all images are drawn otherwise, before anything else, a domain gap of photographs; see
            :func:`clprompt.data.corruption.corrupted`.

    Raises:
        ConfigError: a value of another kind or out of range.
    """

    augment: Augment = "none"
    crop_scale: tuple[Area, Area] = (0.08, 1.0)
    test_resize: TestResize = None
    interpolation: Interpolation = None
    crop_interpolation: Interpolation = None
    corrupt: Corruption | None = None

    def __post_init__(self) -> None:
        schema.check_fields(self, "data")
        low, high = self.crop_scale
        if low > high:
            raise ConfigError(
                f"data.crop_scale must be [smallest, largest share of the area], got [{low}, {high}]"
            )
        object.__setattr__(self, "crop_scale", (low, high))
