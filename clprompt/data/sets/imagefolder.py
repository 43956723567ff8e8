"""Folders of images, one per class; beside ``csv`` and ``npz`` one of the forms that your images may have.

What they have in common, beside the arguments of :class:`clprompt.data.selection.Selection`: ``on_bad_image``
("error" stops at an image that cannot be read and names it; "skip" reads every image once at the start,
leaves those out, and says how many), ``augment`` (see :func:`clprompt.data.transforms.make_transform`) and
``cache`` (whether prepared images stay in memory, at most 1 GiB each for training and test set).
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from clprompt import schema
from clprompt.data.bundle import DataBundle, OnBadImage, assemble, readable_files
from clprompt.data.images import Selected
from clprompt.data.selection import Classes, Limit, Selection, Share
from clprompt.data.transforms import Augment
from clprompt.errors import DataError
from clprompt.registry import datasets

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pnm")


@datasets.register("imagefolder")
@schema.checked
def imagefolder(
    *,
    path: str = "data",
    test_fraction: Share = 0.2,
    split_seed: int = 0,
    classes: Classes | None = None,
    train_per_class: Limit | None = None,
    test_per_class: Limit | None = None,
    on_bad_image: OnBadImage = "error",
    augment: Augment = "none",
    cache: bool = True,
) -> DataBundle:
    """A folder with a folder of images per class, or with train/ and test/ (or val/) that hold such folders.

    Class names are the names of the folders; images may lie at any depth below them.

    Args:
        path: the folder.
        test_fraction: share of each class that is the test set, where there is no test/ or val/.
        split_seed: decides which images those are, and those of ``train_per_class`` and ``test_per_class``.
        classes: the classes to keep: names, or positions in their alphabetical order such as 0-19.
        train_per_class: at most so many training images of each class.
        test_per_class: at most so many test images of each class.
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
            f"data.path: there is no folder {path}; give the folder that holds one folder of images "
            "per class, or train/ and test/ with such folders"
        )
    is_test = None
    train, test = _split_folders(root)
    if train is None or test is None:
        paths, labels = _class_folders(root)
    else:
        (paths, labels), (more, more_labels) = _class_folders(train), _class_folders(test)
        is_test = np.arange(len(paths) + len(more)) >= len(paths)
        paths, labels = paths + more, labels + more_labels
    load, use = readable_files(name, paths, on_bad_image)
    return assemble(
        name,
        Selected(load, use),
        np.asarray(labels)[use],
        None if is_test is None else is_test[use],
        selection,
        augment=augment,
        cache=cache,
    )


def _split_folders(root: Path) -> tuple[Path | None, Path | None]:
    """train/ and test/ or val/, where they are there and hold folders: "train" may also be a class."""
    parts = [root / part for part in ("train", "test", "val", "valid", "validation") if _folders(root / part)]
    if not parts:
        return None, None
    if parts[0].name != "train":
        raise DataError(f"{root}: there is a folder {parts[0].name}/ but no train/ beside it")
    if len(parts) == 1:
        raise DataError(
            f"{root}: there is train/ but neither test/ nor val/ beside it; add one, or give data.path="
            f"{parts[0]} to have data.test_fraction of it as the test set"
        )
    return parts[0], parts[1]


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
