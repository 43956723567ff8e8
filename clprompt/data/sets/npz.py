"""Images in an npz file: with one label each (``npz``), or with a set of labels (``multi_label_npz``)."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clprompt import schema
from clprompt.data.bundle import DataBundle, assemble, assemble_sets, takes_views
from clprompt.data.images import ImageArray, ImageBytes, Joined, Selected
from clprompt.data.reading import HINT, OnBadImage, Reading, readable, takes_reading
from clprompt.data.selection import Selection, split_column, takes_selection
from clprompt.errors import DataError
from clprompt.registry import datasets
from clprompt.schema import FilePath


@datasets.register("npz", domains="an array domains")
@schema.checked
@takes_views()
@takes_selection()
@takes_reading()
def npz(
    *,
    path: FilePath = "data.npz",
    selection: Selection,
    reading: Reading,
) -> DataBundle:
    """One NumPy `.npz` file of raw images, or of encoded ones (JPEG, PNG, ...) put end to end.

    =========== ==================================================================================
    images      uint8 [n, H, W], [n, H, W, 1] or [n, H, W, 3]; or, instead of it, the next two
    jpeg        uint8 [bytes]: the files' bytes, one file after the other, of any format
    offsets     int64 [n + 1]: image i is jpeg[offsets[i] : offsets[i + 1]]
    labels      integers or text [n]
    split       optional, [n]: 0 (or "train") training, 1 (or "test", "val") test
    names       optional, text by integer label; `wnids` does as well
    domains     optional, integers or text [n]: where each image comes from, for streams by domain
    =========== ==================================================================================

    Args:
        path: the file.
        test_fraction: share of each class that is the test set, where there is no `split`.
        split_seed: decides which images those are, and those of ``train_per_class`` and ``test_per_class``.
        classes: the classes to keep: names, or positions in their order such as 0-19.
        train_per_class: at most so many training images of each class.
        test_per_class: at most so many test images of each class.

    Raises:
        DataError: a missing file or key, arrays that do not fit together, an image that cannot be read.
    """
    name = f"npz {path}"
    file = _open(path)
    images = _images(file, reading.max_pixels)
    for key in ("labels", "split", "domains"):
        _check_one_each(file, key, images)
    use, is_test = _use(name, file, images, reading.on_bad_image)
    return assemble(
        name,
        Selected(images.load, use),
        file.arrays["labels"][use],
        is_test,
        selection,
        cache=reading.cache,
        encoded=images.encoded,
        names=_names(file),
        domains=file.arrays["domains"][use] if "domains" in file.arrays else None,
    )


@datasets.register("multi_label_npz")
@schema.checked
@takes_views()
@takes_selection()
@takes_reading()
def multi_label_npz(
    *,
    path: FilePath = "data.npz",
    selection: Selection,
    reading: Reading,
) -> DataBundle:
    """The arrays of ``npz`` with a multi-hot set of labels for each image, or arrays for each part.

    ================ =============================================================================
    images, ...      images, or jpeg and offsets, and split, all as for ``npz``
    labels           0 or 1, [n, C]
    names            optional, text [C]; `class_names` and `wnids` do as well; 0..C-1 by default
    train_images     instead of images, labels and split: [n, H, W] or [n, H, W, 1, 3 or 4],
                     uint8, or float in [0, 1]; test_images likewise
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

    Raises:
        DataError: a missing file or key, arrays that do not fit together, an image that cannot be read.
    """
    name = f"multi_label_npz {path}"
    file = _open(path)
    is_test: np.ndarray | None
    if any(key in file.arrays for key in _PARTS):
        images, hot, is_test = _two_parts(file)
        use = np.arange(images.count)
    else:
        images = _images(file, reading.max_pixels)
        hot = _multi_hot(file, "labels", images.count)
        _check_one_each(file, "split", images)
        use, is_test = _use(name, file, images, reading.on_bad_image)
    names = _names(file, "class_names")
    if names is None:
        names = [str(c) for c in range(hot.shape[1])]
    if len(names) != hot.shape[1]:
        raise DataError(f"{path}: {len(names)} class names for {hot.shape[1]} classes")
    return assemble_sets(
        name,
        Selected(images.load, use),
        hot[use],
        is_test,
        selection,
        cache=reading.cache,
        encoded=images.encoded,
        names=names,
    )


# ---------------------------------------------------------------------------------------------- the arrays


@dataclass(frozen=True)
class _File:
    """What is read of a file.

    Attributes:
        path: of the file.
        arrays: those that have a meaning, by name.
        held: the names of all.
    """

    path: str
    arrays: dict[str, np.ndarray]
    held: str


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


_PARTS = ("train_images", "train_targets", "test_images", "test_targets")
_WHOLE = ("images", "jpeg", "offsets", "labels", "split", "domains")
_NAMES = ("names", "class_names", "wnids")


def _open(path: str) -> _File:
    if not os.path.isfile(path):
        raise DataError(f"data.path: there is no file {path}; it must be an .npz file of images and labels")
    if not os.access(path, os.R_OK):
        raise DataError(f"{path}: the file cannot be read: permission denied")
    if not zipfile.is_zipfile(path):
        raise DataError(f"{path}: the file cannot be read: it is no whole .npz file")
    arrays: dict[str, np.ndarray] = {}
    try:
        with np.load(path, allow_pickle=False) as file:
            for name in file.files:
                key = name.lower()
                if key in arrays:
                    raise DataError(f"{path}: there are two arrays {key}; keep one of them")
                if key in _PARTS + _WHOLE + _NAMES:
                    arrays[key] = _array(file, path, name)
            return _File(path, arrays, ", ".join(sorted(file.files)) or "nothing")
    except DataError:
        raise
    except Exception as error:  # zip, zlib and numpy each fail in their own way
        pickled = "allow_pickle" in str(error)
        reason = "it holds pickled objects, only arrays are read" if pickled else "it is damaged"
        raise DataError(f"{path}: the file cannot be read: {reason}") from error


def _array(file: Any, path: str, key: str) -> np.ndarray:
    try:
        array = file[key]
    except MemoryError as error:
        with file.zip.open(f"{key}.npy") as entry:
            while entry.read(2**20):  # to its end, where a checksum shows whether the size is a true one
                pass
        raise _memory_is_short(path, key, error) from error
    if not isinstance(array, np.ndarray):
        raise DataError(f"{path}: {key} is not an array")
    return array


def _memory_is_short(path: str, key: str, error: MemoryError) -> DataError:
    reason = str(error) or "less is free than it takes"
    return DataError(f"{path}: memory is short for the array {key}: {reason}")


def _images(file: _File, max_pixels: int) -> _Images:
    """Raw or encoded images, checked; that there are labels beside them is checked as well."""
    path, arrays = file.path, file.arrays
    if "labels" not in arrays or not ("images" in arrays or {"jpeg", "offsets"} <= arrays.keys()):
        raise DataError(f"{path}: it must hold labels, and images or jpeg and offsets; it holds {file.held}")
    if "jpeg" in arrays and "offsets" in arrays:
        if "images" in arrays:
            raise DataError(f"{path}: it holds images and jpeg; drop one of them")
        jpeg, offsets = arrays["jpeg"], arrays["offsets"]
        if jpeg.dtype != np.uint8 or jpeg.ndim != 1 or offsets.ndim != 1 or offsets.dtype.kind not in "iu":
            raise DataError(f"{path}: jpeg must be uint8 [bytes] and offsets integers [n + 1]")
        steps = np.diff(offsets.astype(np.int64))
        if len(offsets) < 2 or offsets[0] < 0 or offsets[-1] > len(jpeg) or (steps < 0).any():
            raise DataError(f"{path}: offsets must rise from 0 to the {len(jpeg)} bytes of jpeg")
        load = ImageBytes(path, jpeg, offsets.astype(np.int64), HINT, max_pixels)
        return _Images(load, len(offsets) - 1, True, "offsets")
    images = _pixels(file, "images", "uint8 [n, H, W] or [n, H, W, 1 or 3]", (1, 3), "u")
    return _Images(ImageArray(images), len(images), False, "images")


def _pixels(file: _File, key: str, form: str, channels: tuple[int, ...], kinds: str) -> Tensor:
    """Raw images, checked, [n, channels, H, W].

    Args:
        file: that holds them.
        key: of the array.
        form: what messages say that it must be.
        channels: the numbers of them that are allowed, last in the array.
        kinds: of numbers: "u" for uint8, "f" for floating point in [0, 1].
    """
    images = file.arrays[key]
    known = images.dtype == np.uint8 or (images.dtype.kind == "f" and "f" in kinds)
    if not known or not (images.ndim == 3 or (images.ndim == 4 and images.shape[3] in channels)):
        last = known and images.ndim == 4 and images.shape[1] in channels
        hint = "; the channels stand last" if last else ""
        raise DataError(f"{file.path}: {key} must be {form}, got {images.dtype} {list(images.shape)}{hint}")
    if not images.size:
        raise DataError(
            f"{file.path}: {key} must hold a pixel or more, got {images.dtype} {list(images.shape)}"
        )
    stacked = images[:, None] if images.ndim == 3 else np.moveaxis(images, -1, 1)  # (n, channels, H, W)
    if "f" not in kinds:
        return torch.from_numpy(stacked)
    least, most = float(images.min()), float(images.max())
    if images.dtype != np.uint8 and not (least >= 0 and most <= 1):  # NaN as well
        raise DataError(f"{file.path}: {key} must be uint8, or float in [0, 1], got {least:g} to {most:g}")
    try:
        dtype = np.uint8 if images.dtype == np.uint8 else np.float32
        return torch.from_numpy(np.ascontiguousarray(stacked, dtype=dtype))
    except MemoryError as error:
        raise _memory_is_short(file.path, key, error) from error


def _check_one_each(file: _File, key: str, images: _Images) -> None:
    if key in file.arrays and file.arrays[key].shape != (images.count,):
        raise DataError(
            f"{file.path}: {key} must be one value for each of the {images.count} {images.unit}, "
            f"got shape {list(file.arrays[key].shape)}"
        )


def _use(
    name: str, file: _File, images: _Images, on_bad_image: OnBadImage
) -> tuple[np.ndarray, np.ndarray | None]:
    """The indices of the images to use, and which of those are test images; None where nothing says so."""
    use = np.arange(images.count)
    if isinstance(images.load, ImageBytes):
        empty = np.flatnonzero(np.diff(images.load.offsets) == 0)
        if empty.size and on_bad_image == "error":
            raise DataError(f"{file.path}, image {empty[0]}: the image cannot be read: it is empty{HINT}")
        use = readable(name, images.load, images.count, on_bad_image)
    if "split" not in file.arrays:
        return use, None
    test, used = split_column(file.arrays["split"], file.path)
    use = use[used[use]]
    return use, test[use]


def _names(file: _File, *keys: str) -> list[str] | None:
    """Class names, from the first of some arrays that is there."""
    key = next((key for key in (*keys, "names", "wnids") if key in file.arrays), None)
    if key is None:
        return None
    names = file.arrays[key]
    if names.ndim != 1 or names.dtype.kind not in "USiu":
        raise DataError(
            f"{file.path}: {key} must be text, one for each class, got {names.dtype} {list(names.shape)}"
        )
    try:
        return [name.decode() if isinstance(name, bytes) else str(name) for name in names.tolist()]
    except UnicodeDecodeError as error:
        raise DataError(f"{file.path}: {key} holds {error.object!r}, which is not text in UTF-8") from error


# ------------------------------------------------------------------------------------- of label sets alone


def _multi_hot(file: _File, key: str, count: int) -> np.ndarray:
    targets = file.arrays[key]
    if targets.ndim != 2 or len(targets) != count or not targets.shape[1] or targets.dtype.kind not in "biuf":
        form = f"{targets.dtype} {list(targets.shape)}"
        raise DataError(f"{file.path}: {key} must be 0 or 1, [{count}, classes]; got {form}")
    other = targets[~np.isin(targets, (0, 1))]
    if other.size:
        raise DataError(f"{file.path}: {key} must be 0 or 1, [{count}, classes]; got the value {other[0]}")
    return targets.astype(np.uint8)


def _two_parts(file: _File) -> tuple[_Images, np.ndarray, np.ndarray]:
    """Training images and the test images behind them, their label sets [n, C], and which are test images."""
    for key in _PARTS:
        if key not in file.arrays:
            raise DataError(f"{file.path} has no array {key}; it has {file.held}")
    for key in _WHOLE:
        if key in file.arrays:
            raise DataError(
                f"{file.path} holds the array {key} beside train_images and test_images: "
                "drop it, or join those"
            )
    loads, hot = [], []
    for part in ("train", "test"):
        form = "[n, H, W] or [n, H, W, 1, 3 or 4], uint8 or float in [0, 1]"
        images = _pixels(file, f"{part}_images", form, (1, 3, 4), "uf")
        hot.append(_multi_hot(file, f"{part}_targets", len(images)))
        loads.append(ImageArray(images))
    train, test = hot
    if test.shape[1] != train.shape[1]:
        raise DataError(
            f"{file.path}: train_targets has {train.shape[1]} classes, test_targets {test.shape[1]}"
        )
    counts = (len(train), len(test))
    joined = _Images(Joined(loads, counts), sum(counts), False, "images")
    return joined, np.concatenate(hot), np.arange(joined.count) >= counts[0]
