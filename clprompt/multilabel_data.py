"""Multi-label data sets: mosaics of single-label images, and readers of CSV, .npz, COCO and VOC files.

Targets are multi-hot, uint8 [n, C]; class names are in alphabetical order where the file gives no other.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as transforms

from clprompt import schema
from clprompt.data import Augment, DataBundle, ImageSource
from clprompt.errors import ConfigError, DataError, nearest
from clprompt.images import ImageArray, ImageFiles
from clprompt.registry import datasets
from clprompt.seeding import derive

# ------------------------------------------------------------------------------------------------ mosaics


def make_mosaic(
    source: ImageSource,
    num_classes: int,
    *,
    grid: int,
    images: int,
    most: int,
    empty: float,
    seed: int,
    name: str,
) -> ImageSource:
    """Mosaics of a source's images: a grid of cells, some of them filled, the labels those of what they show.

    Which image stands where is a function of the seed; pixels are put together when an image is loaded.

    Args:
        source: single-label images, all of the shape of the first.
        num_classes: C.
        grid: cells a side. images: how many mosaics.
        most: cells that are filled at most; the number is drawn from 1..most.
        empty: share of mosaics without any image.
        seed, name: decide the draws.
    """
    rng = np.random.default_rng(derive(seed, "mosaic", name))
    cells = np.full((images, grid * grid), -1)
    for row in cells:
        count = 0 if rng.random() < empty else rng.integers(1, most + 1)
        row[rng.choice(grid * grid, count, replace=False)] = rng.integers(0, len(source), count)
    targets = np.zeros((images, num_classes), dtype=np.uint8)
    rows, _ = filled = np.nonzero(cells >= 0)
    targets[rows, source.targets[cells[filled]]] = 1
    return ImageSource(Mosaics(source.load, cells, _as_tensor(source.load(0))), targets, encoded=True)


@dataclass(frozen=True)
class Mosaics:
    """Index -> a mosaic, tensor [channels, grid * H, grid * W].

    Attributes:
        load: of the cells' images. first: an image [channels, H, W] whose shape every cell has.
        cells: index of the image in each cell, -1 for an empty one, [n, grid * grid].
    """

    load: Callable[[int], Any]
    cells: np.ndarray
    first: Tensor

    def __call__(self, index: int) -> Tensor:
        channels, high, wide = self.first.shape
        grid = math.isqrt(self.cells.shape[1])
        canvas = torch.zeros(channels, grid * high, grid * wide, dtype=self.first.dtype)
        for cell, chosen in enumerate(self.cells[index]):
            if chosen >= 0:
                image = _as_tensor(self.load(int(chosen)))
                if image.shape != self.first.shape:
                    image = transforms.resize(image.expand(channels, -1, -1), [high, wide], antialias=True)
                y, x = divmod(cell, grid)
                canvas[:, y * high : (y + 1) * high, x * wide : (x + 1) * wide] = image
        return canvas


def _as_tensor(image: Any) -> Tensor:
    return image if isinstance(image, Tensor) else v2.functional.pil_to_tensor(image)


@datasets.register("mosaic")
def mosaic(
    *,
    source: str | dict[str, Any] = "digits",
    grid: int = 2,
    train_images: int = 1500,
    test_images: int = 500,
    most: int | None = None,
    empty: float = 0.05,
    seed: int = 0,
    augment: Augment = "none",
) -> DataBundle:
    """Multi-label mosaics of any single-label data set: a grid of cells, each empty or with one of its images.

    Args:
        source: a registered data set: its name, or {name: ..., and its arguments}.
        grid: cells a side.
        train_images, test_images: how many mosaics; training and test images of the source do not mix.
        most: filled cells at most; null for all of them.
        empty: share of mosaics without any image, and so without labels.
        seed: decides the mosaics, whatever the seed of the run.
        augment: "none" or "standard".
    """
    if grid < 1 or train_images < 1 or test_images < 1:
        raise ConfigError("data.grid, data.train_images and data.test_images must be at least 1")
    most = grid * grid if most is None else most
    if not 1 <= most <= grid * grid:
        raise ConfigError(f"data.most must be 1..{grid * grid}, the cells of the grid, got {most}")
    if not 0 <= empty < 1:
        raise ConfigError(f"data.empty must be a share below 1, got {empty}")
    bundle = _source(source)
    if bundle.train.targets.ndim != 1:
        raise ConfigError(f"data.source must be a single-label data set; {bundle.name} is multi-label")
    parts = {
        name: make_mosaic(
            part,
            len(bundle.class_names),
            grid=grid,
            images=count,
            most=most,
            empty=empty,
            seed=seed,
            name=name,
        )
        for name, part, count in (("train", bundle.train, train_images), ("test", bundle.test, test_images))
    }
    return DataBundle(f"mosaics of {bundle.name}", parts["train"], parts["test"], bundle.class_names, augment)


def _source(section: str | dict[str, Any]) -> DataBundle:
    """The data set of a section inside a section."""
    given = {"name": section} if isinstance(section, str) else dict(section)
    if not isinstance(given.get("name"), str):
        raise ConfigError("data.source.name is missing: a data set's name")
    try:
        target = datasets.get(given.pop("name")).target
    except ConfigError as error:
        raise ConfigError(f"data.source.name: {error}") from None
    return target(**schema.arguments(target, given, "data.source"))


@datasets.register("digit_mosaics")
def digit_mosaics(
    *, train_images: int = 1500, test_images: int = 500, seed: int = 0, augment: Augment = "none"
) -> DataBundle:
    """2x2 mosaics of scikit-learn's digits, 16x16, none to four digits each, 10 classes; no download.

    Args:
        train_images, test_images: how many mosaics; a digit is in training mosaics or in test mosaics, never both.
        seed: decides the mosaics, whatever the seed of the run.
        augment: "none" or "standard".
    """
    return mosaic(train_images=train_images, test_images=test_images, seed=seed, augment=augment)


# ------------------------------------------------------------------------------------------------ files


def _image_source(paths: Sequence[Path], targets: np.ndarray) -> ImageSource:
    return ImageSource(ImageFiles([str(path) for path in paths]), targets, encoded=True)


def _multi_hot(
    labels: Sequence[Sequence[str]], names: Sequence[str], where: Callable[[int], str]
) -> np.ndarray:
    """Label names per sample -> uint8 [n, C]; ``where`` names a sample in the message about an unknown class."""
    column = {name: c for c, name in enumerate(names)}
    hot = np.zeros((len(labels), len(names)), dtype=np.uint8)
    for row, given in enumerate(labels):
        for name in given:
            if name not in column:
                raise DataError(f'{where(row)}: unknown class "{name}"{nearest(name, names)}')
            hot[row, column[name]] = 1
    return hot


@datasets.register("multi_label_csv")
def multi_label_csv(
    *,
    train: str,
    test: str,
    root: str | None = None,
    classes: list[str] | None = None,
    augment: Augment = "standard",
) -> DataBundle:
    """Own images from two CSV files with the header `path,label` and lines such as `a.jpg,cat;dog`.

    Args:
        train, test: the files; a line without labels is an image without labels.
        root: folder of relative paths; by default that of each file.
        classes: the class names in their order; null for all names of the training file, sorted.
        augment: "none" or "standard".
    """
    tables = {}
    for part, file in (("train", train), ("test", test)):
        paths, labels = _read_csv(Path(file), Path(root) if root else Path(file).parent)
        tables[part] = (Path(file), paths, labels)
    names = classes or sorted({name for given in tables["train"][2] for name in given})
    if not names:
        raise DataError(f"{train}: no line has a label")
    sources = {
        part: _image_source(
            paths,
            _multi_hot(labels, names, lambda row, file=file: f"{file}, line {row + 2}"),  # type: ignore[misc]
        )
        for part, (file, paths, labels) in tables.items()
    }
    return DataBundle(Path(train).stem, sources["train"], sources["test"], list(names), augment)


def _read_csv(file: Path, root: Path) -> tuple[list[Path], list[list[str]]]:
    try:
        with open(file, newline="", encoding="utf-8-sig") as stream:
            rows = list(csv.reader(stream))
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{file}: {getattr(error, 'strerror', None) or 'not a text file in UTF-8'}"
        ) from error
    if not rows or [cell.strip() for cell in rows[0]] != ["path", "label"]:
        raise DataError(f"{file}: the first line must be path,label")
    paths, labels = [], []
    for number, row in enumerate(rows[1:], start=2):
        if len(row) != 2:
            raise DataError(
                f"{file}, line {number}: must be a path and labels joined by ;, got {len(row)} cells"
            )
        paths.append(root / row[0].strip())
        labels.append([name.strip() for name in row[1].split(";") if name.strip()])
    missing = next((path for path in paths if not path.is_file()), None)
    if missing is not None:
        raise DataError(f"{file}: there is no image {missing}")
    if not paths:
        raise DataError(f"{file}: no image is listed")
    return paths, labels


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


@datasets.register("coco", paper="Lin et al., ECCV 2014")
def coco(
    *,
    path: str = "data/coco",
    train_annotations: str = "annotations/instances_train2014.json",
    test_annotations: str = "annotations/instances_val2014.json",
    train_images: str = "train2014",
    test_images: str = "val2014",
    augment: Augment = "standard",
) -> DataBundle:
    """COCO's images and its 80 object categories in alphabetical order; images without an object are kept, unlabelled.

    Args:
        path: folder that holds what the other arguments name, relative to it.
        train_annotations, test_annotations: JSON files of instances.
        train_images, test_images: folders of images.
        augment: "none" or "standard".
    """
    root, sources, names = Path(path), {}, None
    for part, file, folder in (
        ("train", train_annotations, train_images),
        ("test", test_annotations, test_images),
    ):
        sources[part], found = _read_coco(root / file, root / folder)
        if names is not None and found != names:
            raise DataError(f"{root / file} has other categories than {root / train_annotations}")
        names = found
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
    return _image_source([files[image] for image in order], hot), sorted_names


@datasets.register("voc2007", paper="Everingham et al., IJCV 2010")
def voc2007(
    *,
    path: str = "data/VOCdevkit/VOC2007",
    train: str = "trainval",
    test: str = "test",
    augment: Augment = "standard",
) -> DataBundle:
    """PASCAL VOC by its image-set files: 20 classes in alphabetical order; "difficult" objects count as absent.

    Args:
        path: folder with ImageSets/Main and JPEGImages.
        train, test: names of the image sets.
        augment: "none" or "standard".
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
    return _image_source(paths, np.array(columns, dtype=np.uint8).T)
