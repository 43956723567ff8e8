"""Images in an npz file: with one label each (``npz``), or with a set of labels (``multi_label_npz``)."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from clprompt import schema
from clprompt.data.bundle import HINT, DataBundle, OnBadImage, assemble, assemble_sets, readable
from clprompt.data.images import ImageArray, ImageBytes, Joined, Selected
from clprompt.data.selection import Classes, Limit, Selection, Share, split_column
from clprompt.data.transforms import Augment
from clprompt.errors import DataError
from clprompt.registry import datasets


@datasets.register("npz")
@schema.checked
def npz(
    *,
    path: str = "data.npz",
    test_fraction: Share = 0.2,
    split_seed: int = 0,
    classes: Classes | None = None,
    train_per_class: Limit | None = None,
    test_per_class: Limit | None = None,
    on_bad_image: OnBadImage = "error",
    augment: Augment = "none",
    cache: bool = True,
) -> DataBundle:
    """One NumPy `.npz` file of raw images, or of encoded ones (JPEG, PNG, ...) put end to end.

    =========== ==================================================================================
    images      uint8 [n, H, W], [n, H, W, 1] or [n, H, W, 3]; or, instead of it, the next two
    jpeg        uint8 [bytes]: the files' bytes, one file after the other, of any format
    offsets     int64 [n + 1]: image i is jpeg[offsets[i] : offsets[i + 1]]
    labels      integers or text [n]
    split       optional, [n]: 0 (or "train") training, 1 (or "test", "val") test
    names       optional, text by integer label; `wnids` does as well
    =========== ==================================================================================

    Args:
        path: the file.
        test_fraction: share of each class that is the test set, where there is no `split`.
        split_seed: decides which images those are, and those of ``train_per_class`` and ``test_per_class``.
        classes: the classes to keep: names, or positions in their order such as 0-19.
        train_per_class: at most so many training images of each class.
        test_per_class: at most so many test images of each class.
        on_bad_image: "error" names an image that cannot be read; "skip" leaves it out.
        augment: "none", "standard", "autoaugment-cifar" or "autoaugment-imagenet".
        cache: keep prepared images in memory.

    Raises:
        DataError: a missing file or key, arrays that do not fit together, an image that cannot be read.
    """
    selection = Selection(
        classes=classes,
        train_per_class=train_per_class,
        test_per_class=test_per_class,
        test_fraction=test_fraction,
        split_seed=split_seed,
    )
    name = f"npz {path}"
    arrays = _open(path)
    images = _images(path, arrays)
    for key in ("labels", "split"):
        _check_one_each(path, arrays, key, images)
    use, is_test = _use(name, path, arrays, images, on_bad_image)
    return assemble(
        name,
        Selected(images.load, use),
        arrays["labels"][use],
        is_test,
        selection,
        augment=augment,
        cache=cache,
        encoded=images.encoded,
        names=_names(arrays),
    )


@datasets.register("multi_label_npz")
@schema.checked
def multi_label_npz(
    *,
    path: str = "data.npz",
    test_fraction: Share = 0.2,
    split_seed: int = 0,
    classes: Classes | None = None,
    train_per_class: Limit | None = None,
    test_per_class: Limit | None = None,
    on_bad_image: OnBadImage = "error",
    augment: Augment = "none",
    cache: bool = True,
) -> DataBundle:
    """The arrays of ``npz`` with a multi-hot set of labels for each image, or arrays for each part.

    ================ =============================================================================
    images, ...      images, or jpeg and offsets, and split, all as for ``npz``
    labels           0 or 1, [n, C]
    names            optional, text [C]; `class_names` and `wnids` do as well; 0..C-1 by default
    train_images     instead of images, labels and split: [n, H, W] or [n, H, W, channels], uint8,
                     or float in [0, 1]; test_images likewise
    train_targets    0 or 1, [n, C]; test_targets likewise
    ================ =============================================================================

    Without a split, test images are drawn from all, and one image of each class stays for training.

    Args:
        path: the file.
        test_fraction: share of the images that is the test set, where there is no split.
        split_seed: decides which images those are, and those of ``train_per_class`` and ``test_per_class``.
        classes: the classes to keep, in this order: names, or positions such as 0-19; other labels are
            dropped, and images that are left without one.
        train_per_class: at most so many training images of each class; an image is taken where one of its
            labels has room for it, images without labels are not.
        test_per_class: the same for test images.
        on_bad_image: "error" names an image that cannot be read; "skip" leaves it out.
        augment: "none", "standard", "autoaugment-cifar" or "autoaugment-imagenet".
        cache: keep prepared images in memory.

    Raises:
        DataError: a missing file or key, arrays that do not fit together, an image that cannot be read.
    """
    selection = Selection(
        classes=classes,
        train_per_class=train_per_class,
        test_per_class=test_per_class,
        test_fraction=test_fraction,
        split_seed=split_seed,
    )
    name = f"multi_label_npz {path}"
    arrays = _open(path)
    is_test: np.ndarray | None
    if any(key in arrays for key in _PARTS):
        images, hot, is_test = _two_parts(path, arrays)
        use = np.arange(images.count)
    else:
        images = _images(path, arrays)
        hot = _multi_hot(path, "labels", arrays["labels"], images.count)
        _check_one_each(path, arrays, "split", images)
        use, is_test = _use(name, path, arrays, images, on_bad_image)
    names = _names(arrays, "class_names")
    names = [str(name) for name in (range(hot.shape[1]) if names is None else names)]
    if len(names) != hot.shape[1]:
        raise DataError(f"{path}: {len(names)} class names for {hot.shape[1]} classes")
    return assemble_sets(
        name,
        Selected(images.load, use),
        hot[use],
        is_test,
        selection,
        augment=augment,
        cache=cache,
        encoded=images.encoded,
        names=names,
    )


# ---------------------------------------------------------------------------------------------- the arrays


@dataclass(frozen=True)
class _Images:
    """The images of a file.

    Attributes:
        load: index -> image.
        count: how many there are.
        encoded: whether ``load`` decodes.
        unit: what messages count.
    """

    load: Callable[[int], Any]
    count: int
    encoded: bool
    unit: str


def _open(path: str) -> dict[str, np.ndarray]:
    if not os.path.isfile(path):
        raise DataError(f"data.path: there is no file {path}; it must be an .npz file of images and labels")
    if not zipfile.is_zipfile(path):
        raise DataError(f"{path}: the file cannot be read: it is no whole .npz file")
    try:
        with np.load(path, allow_pickle=False) as file:
            return {key: file[key] for key in file.files}
    except Exception as error:  # zip, zlib and numpy each fail in their own way
        pickled = "allow_pickle" in str(error)
        reason = "it holds pickled objects, only arrays are read" if pickled else "it is damaged"
        raise DataError(f"{path}: the file cannot be read: {reason}") from error


def _images(path: str, arrays: Mapping[str, np.ndarray]) -> _Images:
    """Raw or encoded images, checked; that there are labels beside them is checked as well."""
    held = ", ".join(sorted(arrays)) or "nothing"
    if "labels" not in arrays or not ("images" in arrays or {"jpeg", "offsets"} <= arrays.keys()):
        raise DataError(f"{path}: it must hold labels, and images or jpeg and offsets; it holds {held}")
    if "jpeg" in arrays and "offsets" in arrays:
        jpeg, offsets = arrays["jpeg"], arrays["offsets"]
        if jpeg.dtype != np.uint8 or jpeg.ndim != 1 or offsets.ndim != 1 or offsets.dtype.kind not in "iu":
            raise DataError(f"{path}: jpeg must be uint8 [bytes] and offsets integers [n + 1]")
        steps = np.diff(offsets.astype(np.int64))
        if len(offsets) < 2 or offsets[0] < 0 or offsets[-1] > len(jpeg) or (steps < 0).any():
            raise DataError(f"{path}: offsets must rise from 0 to the {len(jpeg)} bytes of jpeg")
        return _Images(ImageBytes(path, jpeg, offsets, HINT), len(offsets) - 1, True, "offsets")
    images = arrays["images"]
    if images.dtype != np.uint8 or not (images.ndim == 3 or (images.ndim == 4 and images.shape[3] in (1, 3))):
        raise DataError(
            f"{path}: images must be uint8 [n, H, W] or [n, H, W, 1 or 3], "
            f"got {images.dtype} {list(images.shape)}"
        )
    tensor = torch.from_numpy(images)  # (n, H, W) or (n, H, W, C)
    tensor = tensor[:, None] if tensor.ndim == 3 else tensor.permute(0, 3, 1, 2)
    return _Images(ImageArray(tensor), len(images), False, "images")


def _check_one_each(path: str, arrays: Mapping[str, np.ndarray], key: str, images: _Images) -> None:
    if key in arrays and arrays[key].shape != (images.count,):
        raise DataError(
            f"{path}: {key} must be one value for each of the {images.count} {images.unit}, "
            f"got shape {list(arrays[key].shape)}"
        )


def _use(
    name: str, path: str, arrays: Mapping[str, np.ndarray], images: _Images, on_bad_image: OnBadImage
) -> tuple[np.ndarray, np.ndarray | None]:
    """The indices of the images to use, and which of those are test images; None where nothing says so."""
    use = np.arange(images.count)
    if images.encoded:
        use = readable(name, images.load, images.count, on_bad_image)
    if "split" not in arrays:
        return use, None
    test, used = split_column(arrays["split"], path)
    use = use[used[use]]
    return use, test[use]


def _names(arrays: Mapping[str, np.ndarray], *keys: str) -> list[str] | None:
    """Class names, from the first of some arrays that is there."""
    names = next((arrays[key] for key in (*keys, "names", "wnids") if key in arrays), None)
    return None if names is None else names.tolist()


# ------------------------------------------------------------------------------------- of label sets alone

_PARTS = ("train_images", "train_targets", "test_images", "test_targets")


def _multi_hot(path: str, key: str, targets: np.ndarray, count: int) -> np.ndarray:
    if targets.ndim != 2 or len(targets) != count or not np.isin(targets, (0, 1)).all():
        raise DataError(f"{path}: {key} must be 0 or 1, [{count}, classes]; got {targets.shape}")
    return targets.astype(np.uint8)


def _two_parts(path: str, arrays: Mapping[str, np.ndarray]) -> tuple[_Images, np.ndarray, np.ndarray]:
    """Training images and the test images behind them, their label sets [n, C], and which are test images."""
    for key in _PARTS:
        if key not in arrays:
            raise DataError(f"{path} has no array {key}; it has {', '.join(sorted(arrays))}")
    if "split" in arrays:
        raise DataError(f"{path} holds a split beside train_images and test_images: drop it, or join those")
    loads, hot = [], []
    for part in ("train", "test"):
        pixels = arrays[f"{part}_images"]
        hot.append(_multi_hot(path, f"{part}_targets", arrays[f"{part}_targets"], len(pixels)))
        if pixels.ndim not in (3, 4):
            raise DataError(
                f"{path}: {part}_images must be [n, H, W] or [n, H, W, channels], got {pixels.shape}"
            )
        stacked = pixels[..., None] if pixels.ndim == 3 else pixels
        tensor = torch.from_numpy(np.ascontiguousarray(np.moveaxis(stacked, -1, 1)))  # (n, channels, H, W)
        loads.append(ImageArray(tensor if tensor.dtype == torch.uint8 else tensor.float()))
    train, test = hot
    if test.shape[1] != train.shape[1]:
        raise DataError(f"{path}: train_targets has {train.shape[1]} classes, test_targets {test.shape[1]}")
    counts = (len(train), len(test))
    images = _Images(Joined(loads, counts), sum(counts), False, "images")
    return images, np.concatenate(hot), np.arange(images.count) >= counts[0]
