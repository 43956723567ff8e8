"""PASCAL VOC 2007 with its label sets: multi-hot targets, uint8 [n, C]."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from clprompt import schema
from clprompt.data.bundle import DataBundle, image_files
from clprompt.data.images import ImageSource
from clprompt.data.transforms import Augment
from clprompt.errors import DataError
from clprompt.registry import datasets


@datasets.register("voc2007", paper="Everingham et al., IJCV 2010")
@schema.checked
def voc2007(
    *,
    path: str = "data/VOCdevkit/VOC2007",
    train: str = "trainval",
    test: str = "test",
    augment: Augment = "standard",
) -> DataBundle:
    """PASCAL VOC by its image-set files: 20 classes in alphabetical order; "difficult" objects are absent.

    Args:
        path: folder with ImageSets/Main and JPEGImages.
        train: name of the image set to train on.
        test: name of the image set to test on.
        augment: "none", "standard", "autoaugment-cifar" or "autoaugment-imagenet".
    """
    folder = Path(path) / "ImageSets" / "Main"
    suffix = f"_{train}.txt"
    names = sorted(file.name.removesuffix(suffix) for file in folder.glob(f"*{suffix}"))
    if not names:
        raise DataError(f"{folder} has no image sets *{suffix}")
    sources = {part: _read_voc(Path(path), names, part) for part in (train, test)}
    return DataBundle("voc2007", sources[train], sources[test], names, augment)


def _read_voc(root: Path, names: Sequence[str], part: str) -> ImageSource:
    order: list[str] = []
    columns = []
    for name in names:
        file = root / "ImageSets" / "Main" / f"{name}_{part}.txt"
        try:
            lines = [line.split() for line in file.read_text().splitlines() if line.strip()]
            flags = {image: int(flag) for image, flag in lines}
        except OSError as error:
            raise DataError(f"{file}: {error.strerror or error}") from error
        except ValueError as error:
            raise DataError(f"{file}: every line must be an image and 1, 0 or -1") from error
        order = order or list(flags)
        if set(order) != flags.keys():
            raise DataError(f"{file} lists other images than the file of class {names[0]}")
        columns.append([flags[image] == 1 for image in order])
    paths = [root / "JPEGImages" / f"{image}.jpg" for image in order]
    return image_files(paths, np.array(columns, dtype=np.uint8).T)
