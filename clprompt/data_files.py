"""Data sets from your own files: folders of classes, a CSV of paths and labels, or one `.npz`.

What the three have in common, beside the arguments of :class:`clprompt.data_bundle.Selection`: ``on_bad_image``
("error" stops at an image that cannot be read and names it; "skip" reads every image once at the start, leaves those
out, and says how many), ``augment`` (see :func:`clprompt.transforms.make_transform`) and ``cache`` (whether prepared
images stay in memory, at most 1 GiB each for training and test set).
"""

from __future__ import annotations

import csv
import os
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from clprompt.data_bundle import Classes, DataBundle, Selection, assemble, split_column
from clprompt.errors import ConfigError, DataError
from clprompt.images import ImageArray, ImageBytes, ImageFiles, Selected, tell, unreadable
from clprompt.registry import datasets
from clprompt.transforms import Augment

OnBadImage = Literal["error", "skip"]

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pnm")
_HINT = "; mend or remove it, or set data.on_bad_image=skip"


def _readable(name: str, load: Callable[[int], Any], count: int, on_bad_image: OnBadImage) -> np.ndarray:
    """The indices of the images to use, [n]."""
    if on_bad_image not in ("error", "skip"):
        raise ConfigError(f'data.on_bad_image must be error or skip, got "{on_bad_image}"')
    everything = np.arange(count)
    if on_bad_image == "error":
        return everything
    bad = unreadable(load, everything)
    if bad:
        first = next(iter(bad.values())).removesuffix(_HINT)
        tell(f"{name}: {len(bad)} of {count} images are left out; the first: {first}")
    return np.setdiff1d(everything, list(bad))


def _from_paths(
    name: str,
    paths: Sequence[str],
    labels: Sequence[Any],
    is_test: np.ndarray | None,
    selection: Selection,
    on_bad_image: OnBadImage,
    augment: Augment,
    cache: bool,
) -> DataBundle:
    if on_bad_image == "error":  # what can be seen without decoding is told before anything is trained
        for path in paths:
            try:
                problem = "" if os.path.getsize(path) else "it is empty"
            except OSError:
                problem = "there is no such file"
            if problem:
                raise DataError(f"{path}: the image cannot be read: {problem}{_HINT}")
    load = ImageFiles(list(paths), _HINT)
    use = _readable(name, load, len(paths), on_bad_image)
    return assemble(
        name,
        Selected(load, use),
        np.asarray(labels)[use],
        None if is_test is None else is_test[use],
        selection,
        augment=augment,
        cache=cache,
    )


# --------------------------------------------------------------------------------------------- imagefolder


@datasets.register("imagefolder")
def imagefolder(
    *,
    path: str = "data",
    test_fraction: float = 0.2,
    split_seed: int = 0,
    classes: Classes | None = None,
    train_per_class: int | None = None,
    test_per_class: int | None = None,
    on_bad_image: OnBadImage = "error",
    augment: Augment = "none",
    cache: bool = True,
) -> DataBundle:
    """A folder with one folder of images per class, or with train/ and test/ (or val/) that hold such folders.

    Class names are the names of the folders; images may lie at any depth below them.

    Args:
        path: the folder.
        test_fraction: share of each class that is the test set, where there is no test/ or val/.
        split_seed: decides which images those are, and those of the next two arguments.
        classes: the classes to keep: names, or positions in their alphabetical order such as 0-19.
        train_per_class, test_per_class: at most so many images of each class.
        on_bad_image: "error" names an image that cannot be read; "skip" leaves it out.
        augment: "none", "standard", "autoaugment-cifar" or "autoaugment-imagenet".
        cache: keep prepared images in memory.

    Raises:
        DataError: a missing or empty folder, a class that is too small, an image that cannot be read.
    """
    selection = Selection(
        classes=classes,
        train_per_class=train_per_class,
        test_per_class=test_per_class,
        test_fraction=test_fraction,
        split_seed=split_seed,
    )
    root = Path(path)
    name = f"imagefolder {path}"
    if not root.is_dir():
        raise DataError(
            f"data.path: there is no folder {path}; give the folder that holds one folder of images per class, or "
            "train/ and test/ with such folders"
        )
    train, test = _split_folders(root)
    if train is None:
        paths, labels = _class_folders(root)
        return _from_paths(name, paths, labels, None, selection, on_bad_image, augment, cache)
    assert test is not None
    (paths, labels), (more, more_labels) = _class_folders(train), _class_folders(test)
    is_test = np.arange(len(paths) + len(more)) >= len(paths)
    return _from_paths(
        name, [*paths, *more], [*labels, *more_labels], is_test, selection, on_bad_image, augment, cache
    )


def _split_folders(root: Path) -> tuple[Path | None, Path | None]:
    """train/ and test/ or val/, where the folder has them and they hold folders: "train" may also be a class."""
    found = [root / part for part in ("train", "test", "val", "valid", "validation") if _folders(root / part)]
    if not found:
        return None, None
    if found[0].name != "train":
        raise DataError(f"{root}: there is a folder {found[0].name}/ but no train/ beside it")
    if len(found) == 1:
        raise DataError(
            f"{root}: there is train/ but neither test/ nor val/ beside it; add one, or give data.path="
            f"{found[0]} to have data.test_fraction of it as the test set"
        )
    return found[0], found[1]


def _folders(folder: Path) -> list[str]:
    if not folder.is_dir():
        return []
    return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and entry.name[0] != ".")


def _class_folders(root: Path) -> tuple[list[str], list[str]]:
    """Every image below a folder's folders, sorted, and its class: the name of the folder."""
    paths: list[str] = []
    labels: list[str] = []
    for label in _folders(root):
        before = len(paths)
        for parent, folders, files in os.walk(root / label, followlinks=True):
            folders.sort()
            paths += [
                os.path.join(parent, file)
                for file in sorted(files)
                if file.lower().endswith(EXTENSIONS) and not file.startswith(".")
            ]
        if len(paths) == before:
            raise DataError(f"{root / label}: the class folder holds no image ({', '.join(EXTENSIONS)})")
        labels += [label] * (len(paths) - before)
    if not paths:
        raise DataError(f"{root}: there is no class folder in it; each class needs a folder of its images")
    return paths, labels


# ----------------------------------------------------------------------------------------------------- csv


@datasets.register("csv")
def csv_file(
    *,
    path: str = "data.csv",
    test_path: str | None = None,
    root: str | None = None,
    test_fraction: float = 0.2,
    split_seed: int = 0,
    classes: Classes | None = None,
    train_per_class: int | None = None,
    test_per_class: int | None = None,
    on_bad_image: OnBadImage = "error",
    augment: Augment = "none",
    cache: bool = True,
) -> DataBundle:
    """A CSV file with columns path and label, and a column split (train, test, val) or a second file for the test.

    Labels are any text; where all are integers they are sorted as such. Without a split of either kind, test images
    are drawn from each class.

    Args:
        path: the file.
        test_path: a second file of the same columns, which is the test set.
        root: the folder that relative image paths start from; each file's own folder by default.
        test_fraction: share of each class that is the test set, where the data has no split.
        split_seed: decides which images those are, and those of the next two arguments.
        classes: the classes to keep: names, or positions in their order such as 0-19.
        train_per_class, test_per_class: at most so many images of each class.
        on_bad_image: "error" names an image that cannot be read; "skip" leaves it out.
        augment: "none", "standard", "autoaugment-cifar" or "autoaugment-imagenet".
        cache: keep prepared images in memory.

    Raises:
        DataError: a missing file or column, an empty cell, an image that cannot be read.
    """
    selection = Selection(
        classes=classes,
        train_per_class=train_per_class,
        test_per_class=test_per_class,
        test_fraction=test_fraction,
        split_seed=split_seed,
    )
    name = f"csv {path}"
    paths, labels, parts = _rows(path, "data.path", root)
    is_test = None
    if test_path is not None:
        if parts is not None:
            raise DataError(f"{path} has a column split: drop data.test_path, or the column")
        more, more_labels, _ = _rows(test_path, "data.test_path", root)
        is_test = np.arange(len(paths) + len(more)) >= len(paths)
        paths, labels = [*paths, *more], [*labels, *more_labels]
    elif parts is not None:
        is_test, used = split_column(parts, path)
        where = np.flatnonzero(used)
        paths, labels, is_test = [paths[i] for i in where], [labels[i] for i in where], is_test[where]
    return _from_paths(name, paths, labels, is_test, selection, on_bad_image, augment, cache)


def _rows(path: str, key: str, root: str | None) -> tuple[list[str], list[str], list[str] | None]:
    """Image paths, labels, and the split column if there is one."""
    if not os.path.isfile(path):
        raise DataError(f"{key}: there is no file {path}; it must be a CSV file with columns path and label")
    start = os.path.dirname(path) if root is None else root
    paths, labels, parts = [], [], []
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, skipinitialspace=True)
            columns = [column.strip() for column in reader.fieldnames or ()]
            reader.fieldnames = columns
            for column in ("path", "label"):
                if column not in columns:
                    found = ", ".join(columns) or "nothing"
                    raise DataError(
                        f'{path}: there is no column "{column}" in the first line, which holds: {found}'
                    )
            for row in reader:
                for column in ("path", "label"):
                    if not (row[column] or "").strip():
                        raise DataError(f"{path}, line {reader.line_num}: the {column} is missing")
                paths.append(os.path.join(start, row["path"].strip()))
                labels.append(row["label"].strip())
                parts.append(row.get("split") or "")
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: this is not a CSV file in UTF-8: {error}") from error
    if not paths:
        raise DataError(f"{path}: there is no image in it, only the line of column names")
    return paths, labels, parts if "split" in columns else None


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
