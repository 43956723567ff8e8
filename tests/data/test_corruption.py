"""Photographs drawn otherwise: what each kind does, and that nothing but the pixels decides it."""

from __future__ import annotations

import dataclasses
from typing import get_args

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from clprompt.data import DataBundle, ImageDataset, ImageSource, Views, datasets_for
from clprompt.data.corruption import corrupted
from clprompt.data.loading import fixed_batches
from clprompt.data.transforms import make_transform
from clprompt.inputs import Corruption, ImageSpec
from clprompt.seeding import preserved_rng

KINDS = get_args(Corruption)
SPEC = ImageSpec((32, 32), 3, "bicubic", True, (0.0,) * 3, (1.0,) * 3)
PICTURES = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (4, 3, 40, 66), dtype=np.uint8))
PICTURE = PICTURES[0]


def grey(image: Tensor) -> Tensor:
    """[H, W], float64."""
    return F.rgb_to_grayscale(image)[0].double()


# ----------------------------------------------------------------------------------------------- what it does


def test_edges_are_light_where_brightness_changes_and_black_elsewhere() -> None:
    image = torch.zeros(3, 20, 30, dtype=torch.uint8)
    image[:, :, 10:] = 40
    drawn = corrupted(image, "edges")
    assert torch.equal(drawn[:, :, 9:11], torch.full((3, 20, 2), 160, dtype=torch.uint8))
    assert not drawn[:, :, :9].any()
    assert not drawn[:, :, 11:].any()


def test_a_strong_edge_is_white() -> None:
    image = torch.zeros(1, 6, 6, dtype=torch.uint8)
    image[:, 3:] = 255
    assert int(corrupted(image, "edges")[0, 3, 3]) == 255


def test_inverted_is_every_channels_negative() -> None:
    assert torch.equal(corrupted(PICTURE, "inverted"), 255 - PICTURE)


@pytest.mark.parametrize("side", [56, 224])
def test_a_blurred_line_spreads_by_its_share_of_the_shorter_side(side: int) -> None:
    image = torch.zeros(1, side, side + 10, dtype=torch.uint8)
    image[:, side // 2] = 255
    weights = corrupted(image, "blur")[0, :, 3].double()
    places = torch.arange(side) - side // 2
    variance = (weights * places**2).sum() / weights.sum()
    assert float(variance.sqrt()) == pytest.approx(6 / 224 * side, rel=0.1)


def test_low_contrast_leaves_a_twentieth_of_the_distance_to_the_mean() -> None:
    drawn = corrupted(PICTURE, "low-contrast").double()
    mean = grey(PICTURE).mean()
    assert (drawn - (mean + 0.05 * (PICTURE.double() - mean))).abs().max() <= 1.5


def test_grey_noise_is_noise_of_a_stated_deviation_on_the_grey_image() -> None:
    flat = torch.full((3, 64, 64), 128, dtype=torch.uint8)
    flat[0] += 20
    drawn = corrupted(flat, "grey-noise")
    assert torch.equal(drawn[0], drawn[2])
    noise = drawn[0].double() - grey(flat)
    assert float(noise.std()) == pytest.approx(0.18 * 255, rel=0.05)
    assert noise.mean().abs() < 3


def test_every_image_has_noise_of_its_own() -> None:
    first, second = (torch.full((1, 8, 8), value, dtype=torch.uint8) for value in (100, 101))
    difference = corrupted(first, "grey-noise").int() - corrupted(second, "grey-noise").int()
    assert difference.unique().numel() > 10


@pytest.mark.parametrize("kind", KINDS)
def test_shape_stays_and_floats_are_drawn_as_their_256_levels(kind: Corruption) -> None:
    for image in (PICTURE, PICTURE[:1], PICTURE[:, :1, :1], PICTURE.mT.contiguous().mT):
        drawn = corrupted(image, kind)
        assert drawn.shape == image.shape
        assert drawn.dtype == torch.uint8
        assert torch.equal(corrupted(F.to_dtype(image, torch.float32, scale=True), kind), drawn)
    assert torch.equal(drawn, corrupted(PICTURE, kind))  # however it lies in memory


# ------------------------------------------------------------------------------------------- in a data set


def three_parts(corrupt: str | None, augment: str = "none") -> tuple[ImageDataset, ...]:
    """Training, clean and test images of the same pictures."""
    source = ImageSource(lambda index: PICTURES[index % 4], np.zeros(5, dtype=np.int64))
    views = Views(corrupt=corrupt, augment=augment)  # type: ignore[arg-type]
    return datasets_for(DataBundle("five", source, source, ["a"], views), SPEC)


@pytest.mark.parametrize("kind", KINDS)
def test_training_clean_and_test_images_are_drawn_alike_before_they_are_resized(kind: Corruption) -> None:
    expected = make_transform(SPEC)(corrupted(PICTURE, kind))
    for seed, images in enumerate(three_parts(kind)):
        with preserved_rng(seed):
            before = torch.get_rng_state()
            assert torch.equal(images[0][0], expected)
            assert torch.equal(images[4][0], expected)  # the same picture at another place
            assert torch.equal(torch.get_rng_state(), before)


def test_a_worker_draws_the_same_images() -> None:
    _, clean, test = three_parts("grey-noise")
    ((here, _),) = fixed_batches(clean, [[3, 1, 0]])
    ((there, _),) = fixed_batches(test, [[3, 1, 0]], workers=1)
    assert torch.equal(here, there)


@pytest.mark.parametrize("augment", ["standard", "crop", "padded-crop", "autoaugment-cifar"])
def test_an_image_is_drawn_before_it_is_varied(augment: str) -> None:
    train, _, _ = three_parts("grey-noise", augment)
    with preserved_rng(1):
        expected = make_transform(SPEC, augment)(corrupted(PICTURE, "grey-noise"))  # type: ignore[arg-type]
    with preserved_rng(1):
        assert torch.equal(train[0][0], expected)


def test_a_grey_image_is_drawn_alike_for_grey_and_for_coloured_backbones() -> None:
    three = dataclasses.replace(SPEC, corrupt="low-contrast")
    one = dataclasses.replace(three, channels=1, mean=(0.0,), std=(1.0,))
    image = make_transform(one)(PICTURE)
    assert torch.equal(make_transform(three)(F.rgb_to_grayscale(PICTURE)), image.expand(3, -1, -1))


def test_a_specification_with_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ValueError, match=r'corrupt must be one of edges, .* or null, got "fog"'):
        dataclasses.replace(SPEC, corrupt="fog")  # type: ignore[arg-type]
