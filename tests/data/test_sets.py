"""Transforms, the items that training reads, and the data sets that need no file."""

import dataclasses
import inspect
import pickle
import string
import sys
import typing
from typing import get_args

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from clprompt.backbones.vit import FrozenViT
from clprompt.data import DataBundle, ImageDataset, ImageSource, datasets_for, digits, letters, synthetic
from clprompt.data.loading import training_batches
from clprompt.data.transforms import make_transform
from clprompt.data.views import Augment
from clprompt.errors import ConfigError, DataError
from clprompt.registry import datasets
from clprompt.seeding import preserved_rng, rng_state

AUGMENTATIONS = get_args(Augment)
ALL_BUT_THREE = "".join(letter for letter in string.ascii_letters if letter not in "AOx")


def backbone(**arguments: object) -> FrozenViT:
    shape = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "num_heads": 2, "depth": 1}
    return FrozenViT("vit_tiny_patch16_224", **{**shape, **arguments})


def picture(height: int, width: int, channels: int = 3) -> np.ndarray:
    rng = np.random.default_rng(height * 1000 + width)
    small = Image.fromarray(rng.integers(0, 256, (4, 5, 3), dtype=np.uint8))
    image = small.resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(image if channels == 3 else image.convert("L"))


def items(dataset: ImageDataset, seed: int = 0) -> torch.Tensor:
    found = []
    for index in range(len(dataset)):
        with preserved_rng(seed + index):
            found.append(dataset[index][0])
    return torch.stack(found)


# ------------------------------------------------------------------------------------------------ transforms


def test_the_evaluation_transform_is_timms_own() -> None:
    vit = backbone()
    image = Image.fromarray(picture(40, 60))
    config = timm.data.resolve_model_data_config(vit.vit) | {"crop_pct": 1.0, "input_size": (3, 32, 32)}
    expected = timm.data.create_transform(**config)(image)
    # timm resizes with Pillow, which rounds a little differently
    assert torch.allclose(make_transform(vit)(image), expected, atol=1.01 / 255 / 0.5)


def test_pixels_are_normalised_by_the_backbones_constants() -> None:
    vit = backbone()
    black, white = (torch.full((3, 32, 32), value, dtype=torch.uint8) for value in (0, 255))
    mean, std = torch.tensor(vit.inputs.mean), torch.tensor(vit.inputs.std)
    assert torch.allclose(make_transform(vit)(black)[:, 0, 0], -mean / std)
    assert torch.allclose(make_transform(vit)(white)[:, 0, 0], (1 - mean) / std)


def test_a_transform_needs_no_backbone_only_its_specification() -> None:
    vit = backbone()
    image = torch.arange(3 * 40 * 60).reshape(3, 40, 60).to(torch.uint8)
    assert torch.equal(make_transform(vit.inputs)(image), make_transform(vit)(image))


@pytest.mark.parametrize("size", [(32, 32), (32, 64), (48, 16)])
@pytest.mark.parametrize("augment", AUGMENTATIONS)
def test_any_image_gets_the_backbones_size(size: tuple[int, int], augment: Augment) -> None:
    transform = make_transform(backbone(img_size=size), augment)
    for height, width in ((7, 9), (32, 32), (200, 31), (50, 300)):
        found = transform(Image.fromarray(picture(height, width)))
        assert found.shape == (3, *size)
        assert found.dtype == torch.float32


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("augment", AUGMENTATIONS)
def test_grey_colour_and_transparent_images_of_every_form_fit_any_backbone(
    channels: int, augment: Augment
) -> None:
    transform = make_transform(backbone(in_chans=channels), augment)
    colour, grey = picture(20, 24).copy(), picture(20, 24, channels=1).copy()
    forms = [
        Image.fromarray(colour),
        Image.fromarray(grey),
        colour,
        torch.from_numpy(grey),
        torch.from_numpy(grey)[None],
        torch.from_numpy(colour).permute(2, 0, 1),
        torch.from_numpy(np.dstack([colour, grey])).permute(2, 0, 1),
        torch.from_numpy(colour).permute(2, 0, 1) / 255,
        torch.from_numpy(colour).permute(2, 0, 1).double() / 255,
    ]
    for form in forms:
        with preserved_rng(0):
            found = transform(form)
        assert found.shape == (channels, 32, 32)
        assert found.isfinite().all()
    if augment == "none":
        assert torch.equal(transform(forms[0]), transform(forms[2]))
        assert torch.equal(transform(forms[1]), transform(forms[3]))
        assert torch.allclose(transform(forms[0]), transform(forms[7]), atol=0.05)


def test_an_image_is_not_distorted_but_cut_at_its_long_side() -> None:
    image = np.zeros((32, 64, 3), np.uint8)
    image[:, :16] = image[:, 48:] = 255  # the parts that lie outside
    found = make_transform(backbone())(Image.fromarray(image))
    assert torch.equal(found, make_transform(backbone())(torch.zeros(3, 32, 32, dtype=torch.uint8)))


def test_an_image_with_two_channels_is_refused() -> None:
    with pytest.raises(DataError, match=r"shape \[2, 8, 8\]; it must be \[1, 3 or 4 channels, H, W\]"):
        make_transform(backbone())(torch.zeros(2, 8, 8))


def test_what_no_transform_can_serve_is_refused() -> None:
    with pytest.raises(ConfigError, match=r'data\.augment must be one of none, standard, .*, got "fast"'):
        make_transform(backbone(), "fast")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="1 or 3 channels, the backbone takes 4"):
        make_transform(backbone(in_chans=4))


@pytest.mark.parametrize("augment", AUGMENTATIONS)
def test_an_augmentation_draws_from_the_seeded_state_only(augment: Augment) -> None:
    transform = make_transform(backbone(), augment)
    image = Image.fromarray(picture(40, 40))
    drawn = []
    for seed in (0, 0, 1, 2):
        with preserved_rng(seed):
            drawn.append(transform(image))
    assert torch.equal(drawn[0], drawn[1])
    assert transform.random == (augment != "none")
    assert any(not torch.equal(drawn[0], other) for other in drawn[2:]) == transform.random


# ------------------------------------------------------------------------------------------------ the items


def pictures(encoded: bool = True, side: int = 24) -> DataBundle:
    arrays = [picture(side, side + i % 3 * 8, channels=3 if i % 4 else 1) for i in range(12)]

    def load(index: int) -> Image.Image:
        load.count += 1
        return Image.fromarray(arrays[index])

    load.count = 0
    source = ImageSource(load, np.arange(12) % 3, encoded)
    return DataBundle("pictures", source, source, ["a", "b", "c"])


@pytest.mark.parametrize("augment", AUGMENTATIONS)
@pytest.mark.parametrize("channels", [1, 3])
def test_items_have_the_same_bits_with_and_without_the_cache(augment: Augment, channels: int) -> None:
    vit = backbone(in_chans=channels)
    bundle = dataclasses.replace(pictures(), augment=augment)
    cached, uncached = (
        datasets_for(dataclasses.replace(bundle, cache=cache), vit) for cache in (True, False)
    )
    for with_cache, without in zip(cached, uncached, strict=True):
        for _ in range(2):
            assert torch.equal(items(with_cache), items(without))


def test_a_cached_image_is_decoded_once_and_others_every_time() -> None:
    for augment in ("none", "standard"):
        for cache, encoded, times in (
            (True, True, 1),
            (False, True, 3),
            (True, False, 1 if augment == "none" else 3),
        ):
            bundle = dataclasses.replace(pictures(encoded), augment=augment, cache=cache)
            train = datasets_for(bundle, backbone())[0]
            for _ in range(3):
                items(train)
            assert bundle.train.load.count == 12 * times


def test_the_cache_stays_within_its_bytes() -> None:
    bundle = pictures()
    transform = make_transform(backbone())
    enough = 12 * 3 * 32 * 32
    for limit, times in ((enough, 1), (enough // 2, 2)):
        bundle.train.load.count = 0
        dataset = ImageDataset(bundle.train, transform, random_transform=False, cache_bytes=limit)
        assert torch.equal(items(dataset), items(dataset))
        assert bundle.train.load.count == 12 * times


def test_changing_an_item_in_place_leaves_the_next_one_alone() -> None:
    for bundle in (pictures(), digits()):
        train = datasets_for(bundle, backbone())[0]
        before = train[3][0].clone()
        train[3][0].zero_()
        assert torch.equal(train[3][0], before)


def test_loader_processes_give_the_same_bits_and_share_what_they_decode() -> None:
    bundle = pictures()
    train = datasets_for(bundle, backbone())[0]
    expected = [images for images, _ in training_batches(train, seed=0, experience=0, epoch=0, batch_size=5)]
    fresh = datasets_for(bundle, backbone())[0]
    for _ in range(2):
        bundle.train.load.count = 0
        loader = training_batches(fresh, seed=0, experience=0, epoch=0, batch_size=5, workers=2)
        for images, other in zip([images for images, _ in loader], expected, strict=True):
            assert torch.equal(images, other)
    items(fresh)  # decoded by the processes, not by this one
    assert bundle.train.load.count == 0


@pytest.mark.parametrize("make", [digits, synthetic])
def test_a_data_set_can_be_sent_to_another_process(make: object) -> None:
    train, clean, test = datasets_for(make(augment="standard"), backbone())
    for dataset in (train, clean, test):
        copy = pickle.loads(pickle.dumps(dataset))
        with preserved_rng(1):
            expected = dataset[5]
        with preserved_rng(1):
            found = copy[5]
        assert torch.equal(found[0], expected[0])
        assert found[1] == expected[1]


def test_indices_are_those_of_a_list() -> None:
    dataset = datasets_for(pictures(), backbone())[0]
    assert torch.equal(dataset[-1][0], dataset[11][0])
    assert torch.equal(dataset[np.int64(3)][0], dataset[3][0])
    with pytest.raises(IndexError):
        dataset[12]
    assert len(list(dataset)) == 12


def test_multi_hot_targets_come_with_their_images() -> None:
    targets = np.eye(12, 4, dtype=np.uint8)
    source = dataclasses.replace(pictures().train, targets=targets)
    dataset = ImageDataset(source, make_transform(backbone()), random_transform=False)
    assert dataset[2][1].tolist() == [0, 0, 1, 0]


def test_any_callable_will_do_as_a_transform() -> None:
    dataset = ImageDataset(
        pictures().train, lambda image: torch.ones(1), random_transform=False, cache_bytes=10**6
    )
    assert dataset[0] == (torch.ones(1), 0)


def test_without_augmentation_training_and_evaluation_see_the_same_images() -> None:
    train, clean, _ = datasets_for(pictures(), backbone())
    assert train is clean
    train, clean, test = datasets_for(dataclasses.replace(pictures(), augment="standard"), backbone())
    assert train.random_transform
    assert not clean.random_transform
    assert not test.random_transform
    assert torch.equal(items(clean), items(test))


# ---------------------------------------------------------------------------------------- sets without a file


def test_digits_are_split_within_each_class() -> None:
    bundle = digits(test_fraction=0.25)
    sizes = np.bincount(bundle.train.targets), np.bincount(bundle.test.targets)
    assert sum(sizes).sum() == 1797
    assert np.allclose(sizes[1] / sum(sizes), 0.25, atol=0.01)
    assert bundle.class_names == list("0123456789")
    assert bundle.train.load(0).shape == (1, 8, 8)


def test_letters_are_classes_of_equal_size_that_digits_do_not_have() -> None:
    bundle = letters(count=37 * 10)
    assert len(bundle.class_names) == 37
    assert not set(bundle.class_names) & set("OoIlSsZzBbgqGDQ")
    assert np.bincount(bundle.train.targets).tolist() == [8] * 37
    assert np.bincount(bundle.test.targets).tolist() == [2] * 37
    assert bundle.train.load(0).shape == (1, 8, 8)


def test_letters_can_be_left_out() -> None:
    bundle = letters(count=30, exclude=ALL_BUT_THREE)
    assert bundle.class_names == ["A", "O", "x"]


def test_synthetic_images_have_the_sizes_asked_for() -> None:
    bundle = synthetic(classes=7, train_per_class=6, test_per_class=4, size=12, channels=1)
    assert bundle.train.load(0).shape == (1, 12, 12)
    assert bundle.train.load(0).dtype == torch.uint8
    assert np.bincount(bundle.train.targets).tolist() == [6] * 7
    assert np.bincount(bundle.test.targets).tolist() == [4] * 7


def test_synthetic_classes_can_be_told_apart() -> None:
    bundle = synthetic()
    train, test = (
        torch.stack([part.load(i) for i in range(len(part))]).flatten(1).float()
        for part in (bundle.train, bundle.test)
    )
    means = torch.stack([train[bundle.train.targets == c].mean(0) for c in range(10)])
    nearest = torch.cdist(test, means).argmin(1)
    assert (nearest.numpy() == bundle.test.targets).mean() > 0.9


def test_the_seed_decides_synthetic_images() -> None:
    first, again, other = synthetic(seed=1), synthetic(seed=1), synthetic(seed=2)
    assert torch.equal(first.train.load(3), again.train.load(3))
    assert not torch.equal(first.train.load(3), other.train.load(3))


def test_making_images_leaves_the_global_state_alone() -> None:
    before = rng_state()
    synthetic(seed=1)
    letters(count=30, exclude=ALL_BUT_THREE)
    assert torch.equal(before["torch"], rng_state()["torch"])
    assert torch.equal(before["numpy"][1], rng_state()["numpy"][1])


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("digits", {"test_fraction": 1.0}, r"test_fraction must be above 0 and below 1, got 1\.0"),
        ("letters", {"test_fraction": 0.0}, r"test_fraction must be above 0 and below 1, got 0\.0"),
        ("letters", {"count": 0}, "count must be at least 1, got 0"),
        ("letters", {"count": 40}, "has one image .and 33 more classes"),
        ("synthetic", {"classes": 0}, "classes must be at least 1, got 0"),
        ("synthetic", {"size": -1}, "size must be at least 1, got -1"),
        ("synthetic", {"channels": 2}, "channels must be one of 1, 3, got 2"),
        ("synthetic", {"noise": float("nan")}, "noise must be a finite number at least 0, got nan"),
    ],
)
def test_a_wrong_argument_is_one_line(name: str, arguments: dict, message: str) -> None:
    with pytest.raises((ConfigError, DataError), match=message) as told:
        datasets.get(name).target(**arguments)
    assert "\n" not in str(told.value)


def test_without_hugging_faces_library_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ConfigError, match=r"needs Hugging Face's datasets: pip install 'clprompt\[hf\]'$"):
        datasets.get("hf").target(path="data")


def test_every_data_set_has_typed_keyword_arguments_with_defaults_and_a_summary() -> None:
    entries = [datasets.get(name) for name in datasets.names()]
    own = [entry for entry in entries if entry.module.startswith("clprompt.data.sets.")]
    assert len(own) == 46
    for entry in own:
        assert entry.summary.endswith((".", ";"))
        hints = typing.get_type_hints(entry.target)
        for argument in inspect.signature(entry.target).parameters.values():
            assert argument.kind is argument.KEYWORD_ONLY
            assert argument.default is not argument.empty
            assert argument.name in hints
            assert argument.name in (entry.target.__doc__ or "")
