"""Images in an npz file: with one label each, or with label sets."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from clprompt.data.bundle import (
    _HINT,
    Classes,
    DataBundle,
    OnBadImage,
    Selection,
    _readable,
    assemble,
    split_column,
)
from clprompt.data.images import ImageArray, ImageBytes, ImageSource, Selected
from clprompt.data.transforms import Augment
from clprompt.errors import DataError
from clprompt.registry import datasets

# ----------------------------------------------------------------------------------------------------- npz


@datasets.register("npz")
def npz(
    *,
    path: str = "data.npz",
    test_fraction: float = 0.2,
    split_seed: int = 0,
    classes: Classes | None = None,
    train_per_class: int | None = None,
    test_per_class: int | None = None,
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
        split_seed: decides which images those are, and those of the next two arguments.
        classes: the classes to keep: names, or positions in their order such as 0-19.
        train_per_class, test_per_class: at most so many images of each class.
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
    arrays = _arrays(path)
    name = f"npz {path}"
    labels = arrays["labels"]
    encoded = "jpeg" in arrays
    load: Callable[[int], Any]
    use = np.arange(len(labels))
    if encoded:
        load = ImageBytes(path, arrays["jpeg"], arrays["offsets"], _HINT)
        use = _readable(name, load, len(labels), on_bad_image)
    else:
        images = torch.from_numpy(arrays["images"])  # (n, H, W) or (n, H, W, C)
        load = ImageArray(images[:, None] if images.ndim == 3 else images.permute(0, 3, 1, 2))
    is_test = None
    if "split" in arrays:
        test, used = split_column(arrays["split"], path)
        use = use[used[use]]
        is_test = test[use]
    names = next((arrays[key].tolist() for key in ("names", "wnids") if key in arrays), None)
    return assemble(
        name,
        Selected(load, use),
        labels[use],
        is_test,
        selection,
        augment=augment,
        cache=cache,
        encoded=encoded,
        names=names,
    )


def _arrays(path: str) -> dict[str, np.ndarray]:
    """The arrays of a file, checked against one another."""
    if not os.path.isfile(path):
        raise DataError(f"data.path: there is no file {path}; it must be an .npz file of images and labels")
    if not zipfile.is_zipfile(path):
        raise DataError(f"{path}: the file cannot be read: it is no whole .npz file")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
    except Exception as error:  # zip, zlib and numpy each fail in their own way
        pickled = "allow_pickle" in str(error)
        reason = "it holds pickled objects, only arrays are read" if pickled else "it is damaged"
        raise DataError(f"{path}: the file cannot be read: {reason}") from error
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
        count, what = len(offsets) - 1, "offsets"
    else:
        arrays.pop("jpeg", None)
        images = arrays["images"]
        if images.dtype != np.uint8 or not (
            images.ndim == 3 or (images.ndim == 4 and images.shape[3] in (1, 3))
        ):
            raise DataError(
                f"{path}: images must be uint8 [n, H, W] or [n, H, W, 1 or 3], got {images.dtype} {list(images.shape)}"
            )
        count, what = len(images), "images"
    for key in ("labels", "split"):
        if key in arrays and arrays[key].shape != (count,):
            raise DataError(
                f"{path}: {key} must be one value for each of the {count} {what}, got shape {list(arrays[key].shape)}"
            )
    return arrays


@datasets.register("multi_label_npz")
def multi_label_npz(*, path: str, classes: list[str] | None = None, augment: Augment = "none") -> DataBundle:
    """Own images from one `.npz` file: train_images, train_targets, test_images, test_targets.

    Args:
        path: images are [n, H, W] or [n, H, W, channels], uint8 or float in [0, 1]; targets multi-hot 0/1, [n, C].
        classes: the class names; null for those in the file (`class_names`), or the numbers 0..C-1.
        augment: "none" or "standard".
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            held = {key: file[key] for key in file.files}
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path} is not an .npz file of plain arrays: {str(error).splitlines()[0]}"
        ) from error
    parts = {}
    for part in ("train", "test"):
        for key in (f"{part}_images", f"{part}_targets"):
            if key not in held:
                raise DataError(f"{path} has no array {key}; it has {', '.join(sorted(held)) or 'none'}")
        images, targets = held[f"{part}_images"], held[f"{part}_targets"]
        if targets.ndim != 2 or len(targets) != len(images) or not np.isin(targets, (0, 1)).all():
            raise DataError(
                f"{path}: {part}_targets must be 0 or 1, [{len(images)}, classes]; got {targets.shape}"
            )
        if images.ndim not in (3, 4):
            raise DataError(
                f"{path}: {part}_images must be [n, H, W] or [n, H, W, channels], got {images.shape}"
            )
        stacked = images[..., None] if images.ndim == 3 else images
        tensor = torch.from_numpy(np.ascontiguousarray(np.moveaxis(stacked, -1, 1)))
        tensor = tensor if tensor.dtype == torch.uint8 else tensor.float()
        parts[part] = ImageSource(ImageArray(tensor), targets.astype(np.uint8))
    count = parts["train"].targets.shape[1]
    if parts["test"].targets.shape[1] != count:
        raise DataError(
            f"{path}: train_targets has {count} classes, test_targets {parts['test'].targets.shape[1]}"
        )
    names = classes or [str(name) for name in held.get("class_names", range(count))]
    if len(names) != count:
        raise DataError(f"{path}: {len(names)} class names for {count} classes")
    return DataBundle(Path(path).stem, parts["train"], parts["test"], list(names), augment)
