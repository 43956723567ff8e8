"""COCO with its label sets: multi-hot targets, uint8 [n, C]."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from clprompt import schema
from clprompt.data.bundle import DataBundle, image_files
from clprompt.data.images import ImageSource
from clprompt.data.transforms import Augment
from clprompt.errors import DataError
from clprompt.registry import datasets


@datasets.register("coco", paper="Lin et al., ECCV 2014")
@schema.checked
def coco(
    *,
    path: str = "data/coco",
    train_annotations: str = "annotations/instances_train2014.json",
    test_annotations: str = "annotations/instances_val2014.json",
    train_images: str = "train2014",
    test_images: str = "val2014",
    augment: Augment = "standard",
) -> DataBundle:
    """COCO's images and its 80 object categories in alphabetical order; images without an object are kept.

    Args:
        path: folder that holds what the other arguments name, relative to it.
        train_annotations: JSON file of instances.
        test_annotations: JSON file of instances of the same categories.
        train_images: folder of training images.
        test_images: folder of test images.
        augment: "none", "standard", "autoaugment-cifar" or "autoaugment-imagenet".
    """
    root, sources, names = Path(path), {}, None
    for part, file, folder in (
        ("train", train_annotations, train_images),
        ("test", test_annotations, test_images),
    ):
        sources[part], categories = _read_coco(root / file, root / folder)
        if names is not None and categories != names:
            raise DataError(f"{root / file} has other categories than {root / train_annotations}")
        names = categories
    return DataBundle("coco", sources["train"], sources["test"], names or [], augment)


def _read_coco(file: Path, folder: Path) -> tuple[ImageSource, list[str]]:
    try:
        held = json.loads(file.read_text(encoding="utf-8"))
        names = {int(entry["id"]): str(entry["name"]) for entry in held["categories"]}
        order = sorted(int(entry["id"]) for entry in held["images"])
        files = {int(entry["id"]): folder / entry["file_name"] for entry in held["images"]}
        pairs = [(int(entry["image_id"]), int(entry["category_id"])) for entry in held["annotations"]]
    except OSError as error:
        raise DataError(f"{file}: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{file} is not a COCO file of instances: {type(error).__name__} {error}") from error
    sorted_names = sorted(names.values())
    row = {image: number for number, image in enumerate(order)}
    column = {category: sorted_names.index(name) for category, name in names.items()}
    hot = np.zeros((len(order), len(names)), dtype=np.uint8)
    for image, category in pairs:
        if image not in row or category not in column:
            what = f"image {image}" if image not in row else f"category {category}"
            raise DataError(f"{file}: an annotation names {what}, which the file does not list")
        hot[row[image], column[category]] = 1
    return image_files([files[image] for image in order], hot), sorted_names
