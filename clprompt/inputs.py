"""What images a frozen tower takes: the same facts for the backbone, the transforms and ``model.json``."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, get_args

#: How images are drawn otherwise, see :func:`clprompt.data.corruption.corrupted`.
Corruption = Literal["edges", "inverted", "blur", "low-contrast", "grey-noise"]


@dataclass(frozen=True)
class ImageSpec:
    """Images as a backbone's weights have seen them.

    Args:
        size: (height, width) in pixels.
        channels: colour channels.
        interpolation: how images are resized, in torchvision's words ("bicubic", "bilinear", ...).
        antialias: whether resizing to a smaller size smooths.
        mean: subtracted from pixels in [0, 1], one per channel; nan where a data set is still to tell.
        std: divided by, one per channel.
        test_resize: how an image that is not varied gets the size, see :class:`clprompt.data.Views`.
        corrupt: how images are drawn otherwise before anything else, see :class:`clprompt.data.Views`.

    Raises:
        ValueError: another number of means or deviations than of channels; fewer pixels to resize to than
            the size has; an unknown way to draw.
    """

    size: tuple[int, int]
    channels: int
    interpolation: str
    antialias: bool
    mean: tuple[float, ...]
    std: tuple[float, ...]
    test_resize: int | Literal["squash"] | None = None
    corrupt: Corruption | None = None

    def __post_init__(self) -> None:
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != self.channels:
                raise ValueError(
                    f"{name} must have one value per channel ({self.channels}), got {len(values)}"
                )
        if isinstance(self.test_resize, int) and self.test_resize < max(self.size):
            raise ValueError(
                f"test_resize must be at least {max(self.size)}, the image size of the backbone, "
                f"got {self.test_resize}"
            )

        kinds = get_args(Corruption)
        if self.corrupt not in (None, *kinds):
            raise ValueError(f'corrupt must be one of {", ".join(kinds)} or null, got "{self.corrupt}"')

    @property
    def inputs(self) -> ImageSpec:
        """Itself, so that a transform takes a specification as it takes whatever has one."""
        return self

    @property
    def awaits_data(self) -> bool:
        """Whether mean and deviation are a data set's that is not known yet: no image can be shown so far."""
        return any(map(math.isnan, (*self.mean, *self.std)))

    def normalised(self, mean: Sequence[float], std: Sequence[float]) -> ImageSpec:
        """This specification with another normalisation; see :func:`per_channel`."""
        return replace(self, mean=per_channel(mean, self.channels), std=per_channel(std, self.channels))

    def facts(self) -> dict[str, Any]:
        """What ``model.json`` holds under ``transform``."""
        facts = {
            "image_size": list(self.size),
            "channels": self.channels,
            "interpolation": self.interpolation,
            "antialias": self.antialias,
            "mean": list(self.mean),
            "std": list(self.std),
        }
        # without them the facts are those of runs from before there was a choice
        chosen = {"test_resize": self.test_resize, "corrupt": self.corrupt}
        return facts | {key: value for key, value in chosen.items() if value is not None}

    def updated(self, facts: Mapping[str, Any]) -> ImageSpec:
        """This specification with what :meth:`facts` once said of drawing, resizing and normalisation.

        Size and channels stay: they follow from the weights. A fact that is not there stays, too.
        """
        chosen = ("interpolation", "antialias", "test_resize", "corrupt")
        values = {key: facts[key] for key in chosen if key in facts}
        values |= {key: tuple(facts[key]) for key in ("mean", "std") if key in facts}
        return replace(self, **values)


def per_channel(values: Sequence[float], channels: int) -> tuple[float, ...]:
    """Normalisation constants for another number of channels than they were made for: their mean repeated."""
    if len(values) != channels:
        values = [sum(values) / len(values)] * channels
    return tuple(float(value) for value in values)


class TakesImages(Protocol):
    """Whatever says which images it takes: an :class:`ImageSpec`, or a backbone that holds one."""

    @property
    def inputs(self) -> ImageSpec:
        """The images."""
