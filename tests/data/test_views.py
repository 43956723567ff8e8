"""How images are shown to a model: the arguments that every data set has, and what they do."""

import dataclasses
import inspect

import numpy as np
import pytest
import torch
from torchvision.transforms import v2

from clprompt import schema
from clprompt.data import DataBundle, ImageSource, Selection, Views, assemble, datasets_for, digits
from clprompt.data.bundle import takes_views
from clprompt.data.dataset import inputs_for
from clprompt.data.selection import takes_selection
from clprompt.data.transforms import make_transform
from clprompt.errors import ConfigError
from clprompt.inputs import ImageSpec
from clprompt.registry import datasets
from clprompt.seeding import preserved_rng

SPEC = ImageSpec((32, 32), 3, "bicubic", True, (0.0,) * 3, (1.0,) * 3)
BICUBIC = {"interpolation": v2.InterpolationMode.BICUBIC, "antialias": True}
PICTURE = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 40, 66), dtype=np.uint8))


def shown(picture: torch.Tensor, **views: object) -> torch.Tensor:
    """The picture as a test image [3, 32, 32], in 256 levels."""
    source = ImageSource(lambda index: picture, np.zeros(1, dtype=np.int64))
    bundle = DataBundle("one", source, source, ["a"], Views(**views))  # type: ignore[arg-type]
    _, clean, test = datasets_for(bundle, SPEC)
    assert torch.equal(clean[0][0], test[0][0])
    return (test[0][0] * 255).round().to(torch.uint8)


# ------------------------------------------------------------------------------------------------ test_resize


@pytest.mark.parametrize("pixels", [32, 37])
@pytest.mark.parametrize("upright", [False, True])
def test_a_number_of_pixels_is_the_shorter_side_before_the_centre_is_kept(pixels: int, upright: bool) -> None:
    picture = PICTURE.mT if upright else PICTURE
    published = v2.Compose([v2.Resize(pixels, **BICUBIC), v2.CenterCrop(32)])
    assert torch.equal(shown(picture, test_resize=pixels), published(picture))


def test_squash_scales_both_sides_to_the_backbones_size() -> None:
    assert torch.equal(shown(PICTURE, test_resize="squash"), v2.Resize((32, 32), **BICUBIC)(PICTURE))


def test_fewer_pixels_than_the_backbone_takes_are_refused() -> None:
    message = r"data\.test_resize must be at least 32, the image size of the backbone, got 31"
    with pytest.raises(ConfigError, match=message):
        inputs_for(digits(test_resize=31), SPEC)


@pytest.mark.parametrize("test_resize", [36, "squash"])
def test_an_autoaugmented_image_gets_its_size_as_a_test_image_does(test_resize: object) -> None:
    spec = dataclasses.replace(SPEC, test_resize=test_resize)
    size = {
        36: v2.Compose([v2.Resize(36, **BICUBIC), v2.CenterCrop(32)]),
        "squash": v2.Resize((32, 32), **BICUBIC),
    }[test_resize]
    policy = v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10)
    chain = v2.Compose([policy, size, v2.RandomCrop(32, padding=4), v2.RandomHorizontalFlip()])
    for seed in range(3):
        with preserved_rng(seed):
            expected = chain(PICTURE)
        with preserved_rng(seed):
            image = make_transform(spec, "autoaugment-cifar")(PICTURE)
        assert torch.equal((image * 255).round().to(torch.uint8), expected)


@pytest.mark.parametrize(
    ("augment", "test_resize", "published"),
    [
        ("crop", 36, [v2.Resize(36, **BICUBIC), v2.RandomCrop(32)]),
        ("crop", None, [v2.Resize((32, 53), **BICUBIC), v2.RandomCrop(32)]),
        ("padded-crop", "squash", [v2.Resize((32, 32), **BICUBIC), v2.RandomCrop(32, padding=4)]),
    ],
)
def test_crops_at_random_are_those_of_released_codes(
    augment: str, test_resize: object, published: list[v2.Transform]
) -> None:
    spec = dataclasses.replace(SPEC, test_resize=test_resize)
    chain = v2.Compose([*published, v2.RandomHorizontalFlip()])
    for seed in range(3):
        with preserved_rng(seed):
            expected = chain(PICTURE)
        with preserved_rng(seed):
            image = make_transform(spec, augment)(PICTURE)  # type: ignore[arg-type]
        assert torch.equal((image * 255).round().to(torch.uint8), expected)


# ---------------------------------------------------------------------------------------------- interpolation


@pytest.mark.parametrize("word", ["bilinear", "bicubic"])
def test_interpolation_is_that_of_a_test_image(word: str) -> None:
    published = v2.Resize((32, 32), v2.InterpolationMode(word), antialias=True)
    assert torch.equal(shown(PICTURE, test_resize="squash", interpolation=word), published(PICTURE))


def test_interpolation_is_among_the_facts_of_a_run() -> None:
    assert inputs_for(digits(interpolation="bilinear"), SPEC).facts()["interpolation"] == "bilinear"
    assert inputs_for(digits(), SPEC).facts()["interpolation"] == "bicubic"


@pytest.mark.parametrize(
    ("views", "word"),
    [
        ({"crop_interpolation": "bilinear"}, "bilinear"),
        ({"interpolation": "bilinear"}, "bilinear"),
        ({"interpolation": "bilinear", "crop_interpolation": "bicubic"}, "bicubic"),
        ({}, "bicubic"),
    ],
)
def test_a_random_crop_is_resized_as_it_says_itself_or_as_all_images(
    views: dict[str, object], word: str
) -> None:
    crop = v2.RandomResizedCrop(32, (0.08, 1.0), interpolation=v2.InterpolationMode(word), antialias=True)
    source = ImageSource(lambda index: PICTURE, np.zeros(1, dtype=np.int64))
    bundle = DataBundle("one", source, source, ["a"], Views(augment="standard", **views))  # type: ignore[arg-type]
    with preserved_rng(3):
        expected = v2.Compose([crop, v2.RandomHorizontalFlip()])(PICTURE)
    with preserved_rng(3):
        image, _ = datasets_for(bundle, SPEC)[0][0]
    assert torch.equal((image * 255).round().to(torch.uint8), expected)


# ------------------------------------------------------------------------------------------------- crop_scale


def test_crop_scale_bounds_the_area_of_the_random_crop() -> None:
    whole = PICTURE[:, :, :40]
    both = [v2.Resize((32, 32), **BICUBIC)(each) for each in (whole, whole.flip(-1))]
    for seed in range(4):
        with preserved_rng(seed):
            image = make_transform(SPEC, "standard", crop_scale=(1.0, 1.0))(whole)
        assert any(torch.equal((image * 255).round().to(torch.uint8), each) for each in both)


def test_crop_scale_reaches_the_training_images_of_a_data_set() -> None:
    views = []
    for crop_scale in ([0.08, 1.0], [0.05, 1.0]):
        train, _, _ = datasets_for(digits(augment="standard", crop_scale=crop_scale), SPEC)
        with preserved_rng(1):
            views.append(train[0][0])
    assert not torch.equal(*views)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("crop_scale", [0.5, 0.2], r"data\.crop_scale must be \[smallest, largest share of the area\]"),
        ("crop_scale", [0.0, 1.0], r"crop_scale must be list of 2 values"),
        ("crop_scale", [0.1], r"crop_scale must be list of 2 values"),
        ("crop_scale", 0.1, r"crop_scale must be list of 2 values"),
        ("test_resize", 0, r"test_resize must be at least 1, got 0"),
        ("test_resize", "stretch", r'test_resize must be int \(at least 1\) or one of "squash" or null'),
        ("test_resize", True, r"test_resize must be int \(at least 1\)"),
        ("corrupt", "fog", r'corrupt must be one of "edges", .*"grey-noise" or null, got "fog"'),
        ("corrupt", 3, r'corrupt must be one of "edges", .*"grey-noise" or null, got 3'),
    ],
)
def test_a_wrong_view_is_one_line(key: str, value: object, message: str) -> None:
    for call in (digits, Views):
        with pytest.raises(ConfigError, match=message) as told:
            call(**{key: value})  # type: ignore[operator]
        assert "\n" not in str(told.value)


# ------------------------------------------------------------------------------------------------- decorators


@takes_views(augment="standard")
@takes_selection(but=("test_fraction",))
def mine(*, path: str = "data", selection: Selection, cache: bool = True) -> DataBundle:
    """Mine.

    Args:
        path: of the folder.

    Raises:
        DataError: never.
    """
    labels = np.arange(6) % 3
    return assemble(path, lambda index: PICTURE, labels, np.arange(6) > 2, selection, cache=cache)


def test_the_arguments_of_every_data_set_stand_in_the_signature_of_a_new_one() -> None:
    keys = "path split_seed classes train_per_class test_per_class augment crop_scale "
    keys += "test_resize interpolation crop_interpolation corrupt class_names validation cache"
    assert list(inspect.signature(mine).parameters) == keys.split()
    allowed, is_open = schema.parameters(mine)
    assert not is_open
    assert allowed["augment"].default == "standard"
    assert schema.arguments(mine, {"classes": "0,1"}, "data")["crop_scale"] == [0.08, 1.0]
    with pytest.raises(ConfigError, match=r"data\.test_per_class must be at least 1, got 0"):
        schema.arguments(mine, {"test_per_class": 0}, "data")


def test_the_arguments_of_every_data_set_are_documented_before_the_errors() -> None:
    document = mine.__doc__ or ""
    assert document.startswith("Mine.\n\nArgs:\n    path: of the folder.\n    split_seed: ")
    assert document.count("\n    crop_scale: ") == 1
    assert document.endswith("\n\nRaises:\n    DataError: never.\n")


def test_the_arguments_of_every_data_set_reach_the_bundle() -> None:
    bundle = mine(classes=[0, 2], crop_scale=[0.5, 1], test_resize="squash")
    assert bundle.class_names == ["0", "2"]
    assert bundle.views == Views(augment="standard", crop_scale=(0.5, 1.0), test_resize="squash")


def test_an_unknown_argument_of_a_decorated_data_set_is_pythons_error() -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'clases'"):
        mine(clases=[0])


def test_every_data_set_of_ours_takes_views() -> None:
    for name in datasets.names():
        entry = datasets.get(name)
        if entry.module.startswith("clprompt.data.sets."):
            keys = {"class_names"} | {field.name for field in dataclasses.fields(Views)}
            assert keys <= set(inspect.signature(entry.target).parameters)


# -------------------------------------------------------------------------------------- a loader of before


def test_a_bundle_takes_an_augmentation_by_itself() -> None:
    source = ImageSource(lambda index: PICTURE, np.zeros(1, dtype=np.int64))
    by_place = DataBundle("one", source, source, ["a"], "standard")
    by_name = DataBundle("one", source, source, ["a"], augment="standard")
    changed = dataclasses.replace(DataBundle("one", source, source, ["a"]), augment="standard")
    assert by_place.views == by_name.views == changed.views == Views(augment="standard")
    assert changed.augment == "standard"


def test_an_unknown_augmentation_of_a_bundle_is_one_line() -> None:
    source = ImageSource(lambda index: PICTURE, np.zeros(1, dtype=np.int64))
    with pytest.raises(ConfigError, match=r'data\.augment must be one of "none", .* got "heavy"'):
        DataBundle("one", source, source, ["a"], augment="heavy")  # type: ignore[arg-type]
