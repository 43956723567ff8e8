"""Published data sets as their archives lay them out, but for the numbers and the pictures.

Each builder makes the archive's folder in ``root`` and returns the arguments of the data set that reads it.
"""

from __future__ import annotations

import functools
import hashlib
import io
import json
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torchvision
from PIL import Image

Arguments = dict[str, Any]


@functools.cache
def jpeg(shade: int, side: int = 8) -> bytes:
    """A grey picture; no two shades make equal files."""
    file = io.BytesIO()
    Image.new("RGB", (side, side), (shade, shade, 255 - shade)).save(file, "JPEG")
    return file.getvalue()


def pictures(folder: Path, names: Sequence[str]) -> list[Path]:
    """A picture under each name."""
    paths = [folder / name for name in names]
    for number, path in enumerate(paths):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(number % 256))
    return paths


def readme(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "README.txt").write_text("n01443537 goldfish\n")


def wnids(count: int) -> list[str]:
    """Names of class folders as ImageNet has them, sorted."""
    return [f"n{1_440_764 + 1009 * number:08d}" for number in range(count)]


def imagenet_r(root: Path, classes: int = 20, train: int = 2, test: int = 1) -> Arguments:
    """imagenet-r/ and, beside it, lists of the published form, whose labels follow no order of names."""
    folder = root / "imagenet-r"
    readme(folder)
    held: dict[str, list[tuple[str, int]]] = {"train": [], "test": []}
    for number, wnid in enumerate(wnids(classes)):
        names = [f"{wnid}/{'art' if i % 2 else 'toy'}_{i}.jpg" for i in range(train + test)]
        pictures(folder, names)
        label = (classes + 3 - number) % classes
        for name, part in zip(names, ["train"] * train + ["test"] * test, strict=True):
            held[part].append((f"data/imagenet-r/{name}", label))
    lists = []
    for part, rows in held.items():
        rows = [rows[row] for row in np.random.default_rng(0).permutation(len(rows))]
        lines = [
            "data:",
            *(f"- {path}" for path, _ in rows),
            "targets:",
            *(f"- {label}" for _, label in rows),
        ]
        lists.append(root / f"imagenet-r_{part}.yaml")
        lists[-1].write_text("\n".join([*lines, ""]))
    return {"path": str(folder), "lists": list(map(str, lists))}


def imagenet_a(root: Path, classes: int = 20, count: int = 3) -> Arguments:
    """imagenet-a/: class folders without a split."""
    names = [f"{wnid}/0.{index}_fox_{index}.jpg" for wnid in wnids(classes) for index in range(count)]
    pictures(root / "imagenet-a", names)
    readme(root / "imagenet-a")
    return {"path": str(root / "imagenet-a")}


def tiny_imagenet(root: Path, classes: int = 20, train: int = 2, val: int = 1) -> Arguments:
    """tiny-imagenet-200/: class folders to train, one folder to test and a table of its labels."""
    folder = root / "tiny-imagenet-200"
    names = wnids(classes)
    pictures(folder / "train", [f"{x}/images/{x}_{i}.JPEG" for x in names for i in range(train)])
    pictures(folder / "val" / "images", [f"val_{i}.JPEG" for i in range(val * classes)])
    pictures(folder / "test" / "images", [f"test_{i}.JPEG" for i in range(classes)])
    rows = [f"val_{i}.JPEG\t{names[i % classes]}\t0\t0\t7\t7\n" for i in range(val * classes)]
    (folder / "val" / "val_annotations.txt").write_text("".join(rows))
    (folder / "wnids.txt").write_text("\n".join(reversed(names)))
    return {"path": str(folder)}


def imagenet(root: Path, classes: int = 20, train: int = 2, val: int = 1) -> Arguments:
    """ILSVRC/ and LOC_val_solution.csv, as Kaggle distributes them: class folders to train alone."""
    folder = root / "ILSVRC" / "Data" / "CLS-LOC"
    names = wnids(classes)
    pictures(folder / "train", [f"{x}/{x}_{i}.JPEG" for x in names for i in range(train)])
    stems = [f"ILSVRC2012_val_{number:08d}" for number in range(1, val * classes + 1)]
    pictures(folder / "val", [f"{stem}.JPEG" for stem in stems])
    pictures(folder / "test", [f"ILSVRC2012_test_{number:08d}.JPEG" for number in range(1, classes + 1)])
    rows = [f"{stem},{names[i % classes]} 1 1 8 8 \n" for i, stem in enumerate(stems)]
    (root / "LOC_val_solution.csv").write_text("".join(["ImageId,PredictionString\n", *rows]))
    return {"path": str(folder)}


def cub200(root: Path, classes: int = 20, train: int = 2, test: int = 1) -> Arguments:
    """CUB_200_2011/: class folders, and files that give each image a number, a class and a part."""
    folder = root / "CUB_200_2011"
    names = [f"{number:03d}.Bird_{number}" for number in range(1, classes + 1)]
    rows = [
        (f"{name}/Bird_{index:04d}.jpg", label, index >= train)
        for label, name in enumerate(names)
        for index in range(train + test)
    ]
    pictures(folder / "images", [path for path, *_ in rows])
    cub200_tables(folder, rows, names)
    (root / "attributes.txt").write_text("1 has_bill_shape::curved_(up_or_down)\n")
    return {"path": str(folder)}


def cub200_tables(folder: Path, rows: Sequence[tuple[str, int, bool]], names: Sequence[str]) -> None:
    """The files beside images/: of each image its path, class and whether it is a test image."""
    files = {
        "images": [path for path, *_ in rows],
        "image_class_labels": [label + 1 for _, label, _ in rows],
        "train_test_split": [int(not is_test) for *_, is_test in rows],
        "classes": names,
    }
    for file, values in files.items():
        lines = [f"{number} {value}\n" for number, value in enumerate(values, start=1)]
        (folder / f"{file}.txt").write_text("".join(lines))


def stanford_cars(root: Path, classes: int = 20, train: int = 2, test: int = 1) -> Arguments:
    """stanford_cars/: one folder of images a part, and tables of MATLAB's."""
    folder = root / "stanford_cars"
    rows = [
        (f"{number + 1:05d}.jpg", number % classes, is_test)
        for is_test, count in ((False, train), (True, test))
        for number in range(count * classes)
    ]
    for part, wanted in (("cars_train", False), ("cars_test", True)):
        pictures(folder / part, [name for name, _, is_test in rows if is_test == wanted])
    stanford_cars_tables(folder, rows, [f"Make Car {number} 2012" for number in range(classes)])
    return {"path": str(folder)}


def stanford_cars_tables(folder: Path, rows: Sequence[tuple[str, int, bool]], names: Sequence[str]) -> None:
    """The tables beside cars_train/ and cars_test/; rows as those of CUB-200."""
    import scipy.io

    (folder / "devkit").mkdir(parents=True, exist_ok=True)
    columns = ["bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class", "fname"]
    for file, wanted in (("devkit/cars_train_annos.mat", False), ("cars_test_annos_withlabels.mat", True)):
        some = [(1, 1, 8, 8, label + 1, name) for name, label, is_test in rows if is_test == wanted]
        annotations = np.empty((1, len(some)), dtype=[(column, "O") for column in columns])
        for number, row in enumerate(some):
            annotations[0, number] = row
        scipy.io.savemat(folder / file, {"annotations": annotations})
    held = np.empty((1, len(names)), dtype=object)
    held[0] = list(names)
    scipy.io.savemat(folder / "devkit" / "cars_meta.mat", {"class_names": held})


def sorted_parts(root: Path, name: str, classes: Sequence[str], train: int = 2, test: int = 1) -> Arguments:
    """NAME/: train/ and test/ with class folders, as PILOT distributes its subsets."""
    for part, count in (("train", train), ("test", test)):
        pictures(root / name / part, [f"{label}/{part}_{i}.jpg" for label in classes for i in range(count)])
    return {"path": str(root / name)}


def write_lines(file: Path, lines: Sequence[str]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join([*lines, ""]))


def mit67(root: Path, classes: int = 20, train: int = 2, test: int = 1) -> Arguments:
    """MIT67/: Images/ with class folders, and the authors' two lists beside it."""
    folder = root / "MIT67"
    names = {
        part: [f"room_{c:02d}/{part}_{i} gallery.jpg" for i in range(count) for c in range(classes)]
        for part, count in (("Train", train), ("Test", test))
    }
    for part, images in names.items():
        pictures(folder / "Images", images)
        write_lines(folder / f"{part}Images.txt", images)
    pictures(folder / "Images", ["room_00/of no list.jpg"])
    return {"path": str(folder)}


def resisc45(root: Path, classes: int = 20, train: int = 2, test: int = 1) -> Arguments:
    """NWPU-RESISC45/: class folders and, beside it, torchgeo's lists of file names."""
    folder = root / "NWPU-RESISC45"
    labels = ["airplane", *(f"field_{c:02d}" for c in range(2, classes)), "wetland"]
    number = 0
    for part, count in (("train", train), ("val", 1), ("test", test)):
        images = [(label, f"{label}_{number + i:03d}.jpg") for i in range(count) for label in labels]
        pictures(folder, [f"{label}/{name}" for label, name in images])
        write_lines(root / f"resisc45-{part}.txt", [name for _, name in images])
        number += count
    return {"path": str(folder), "list_folder": str(root)}


STYLES = ("clipart", "infograph", "painting", "quickdraw", "real", "sketch")


def domainnet(
    root: Path,
    classes: int = 20,
    train: int = 2,
    test: int = 1,
    styles: Sequence[str] = STYLES,
    splits: str = "",
) -> Arguments:
    """DomainNet/: for each style a folder with class folders, and two lists with the classes' ids."""
    folder = root / "DomainNet"
    for style in styles:
        for part, count in (("train", train), ("test", test)):
            images = [
                (f"{style}/thing_{c:03d}/{part}_{i}.jpg", c) for i in range(count) for c in range(classes)
            ]
            pictures(folder, [name for name, _ in images])
            write_lines(
                folder / splits / f"{style}_{part}.txt", [f"{name} {c}" for name, c in reversed(images)]
            )
    return {"path": str(folder)}


def core50(root: Path, objects: Sequence[int] = (1, 2, 6), frames: int = 2) -> Arguments:
    """core50_128x128/: frames of each object in each of 11 sessions."""
    folder = root / "core50_128x128"
    for session in range(1, 12):
        for number in objects:
            names = [f"s{session}/o{number}/C_{session:02d}_{number:02d}_{i:03d}.png" for i in range(frames)]
            pictures(folder, names)
    return {"path": str(folder)}


def cifar100(root: Path, patch: pytest.MonkeyPatch, classes: int = 20) -> Arguments:
    """cifar-100-python/, an image a class in each part; torchvision is told the checksums of these files."""
    folder = root / "cifar-100-python"
    folder.mkdir(parents=True)
    kind = torchvision.datasets.CIFAR100
    for name, files in (("train", "train_list"), ("test", "test_list")):
        pixels = np.random.default_rng(len(name)).integers(0, 256, (classes, 3072), dtype=np.uint8)
        check = _pickled(folder / name, {"data": pixels, "fine_labels": list(range(classes))})
        patch.setattr(kind, files, [[name, check]])
    names = {"fine_label_names": [f"class {number:02d}" for number in range(classes)]}
    patch.setattr(kind, "meta", kind.meta | {"md5": _pickled(folder / "meta", names)})
    return {"path": str(root)}


def _pickled(path: Path, value: object) -> str:
    path.write_bytes(pickle.dumps(value))
    return hashlib.md5(path.read_bytes()).hexdigest()


def dtd(root: Path, classes: int = 4) -> Arguments:
    """dtd/dtd/ with images/, and labels/ of the first partition, an image a class in each part."""
    folder = root / "dtd" / "dtd"
    (folder / "labels").mkdir(parents=True)
    for part in ("train", "val", "test"):
        names = [f"texture{number}/texture{number}_{part}.jpg" for number in range(classes)]
        pictures(folder / "images", names)
        (folder / "labels" / f"{part}1.txt").write_text("\n".join(names) + "\n")
    return {"path": str(root)}


def coco(root: Path, images: int = 6) -> Arguments:
    """coco/ with ten categories on each image, which are on no other one."""
    folder = root / "coco"
    (folder / "annotations").mkdir(parents=True)
    categories = [{"id": 1 + number, "name": f"thing {number:02d}"} for number in range(10 * images)]
    for part in ("train2014", "val2014"):
        names = [f"COCO_{part}_{number:012d}.jpg" for number in range(images)]
        pictures(folder / part, names)
        held = {
            "images": [{"id": number, "file_name": name} for number, name in enumerate(names)],
            "annotations": [
                {"id": number, "image_id": number // 10, "category_id": 1 + number}
                for number in range(10 * images)
            ],
            "categories": categories,
        }
        (folder / "annotations" / f"instances_{part}.json").write_text(json.dumps(held))
    return {"path": str(folder)}


def voc2007(root: Path, images: int = 7) -> Arguments:
    """VOCdevkit/VOC2007/ with two classes on each image, which are on no other one."""
    folder = root / "VOCdevkit" / "VOC2007"
    sets = folder / "ImageSets" / "Main"
    sets.mkdir(parents=True)
    for part, first in (("trainval", 1), ("test", 1001)):
        numbers = [f"{first + number:06d}" for number in range(images)]
        pictures(folder / "JPEGImages", [f"{number}.jpg" for number in numbers])
        for c in range(2 * images):
            flags = [f"{number} {1 if c // 2 == row else -1:2d}\n" for row, number in enumerate(numbers)]
            (sets / f"class{c:02d}_{part}.txt").write_text("".join(flags))
    return {"path": str(folder)}
