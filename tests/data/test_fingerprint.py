"""What a data set is known by: the same wherever it lies, another as soon as a file or a pixel is another."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from clprompt.data import DataBundle, ImageSource
from clprompt.data import fingerprint as fingerprints
from clprompt.data.sets.coco import coco
from clprompt.data.sets.core50 import core50
from clprompt.data.sets.csv import csv_file, multi_label_csv
from clprompt.data.sets.cub200 import cub200
from clprompt.data.sets.digits import digits
from clprompt.data.sets.domainnet import domainnet
from clprompt.data.sets.hf import hf
from clprompt.data.sets.imagefolder import imagefolder
from clprompt.data.sets.mit67 import mit67
from clprompt.data.sets.mosaic import mosaic
from clprompt.data.sets.npz import multi_label_npz, npz
from clprompt.data.sets.resisc45 import resisc45
from clprompt.data.sets.stanford_cars import stanford_cars
from clprompt.data.sets.synthetic import synthetic
from clprompt.data.sets.voc import voc2007
from tests._shared.archives import cub200_tables, stanford_cars_tables

COUNT, SIDE = 8, 6
PIXELS = np.random.default_rng(0).integers(0, 256, (COUNT, SIDE, SIDE), dtype=np.uint8)
HOT = np.tile(np.eye(2, dtype=np.uint8), (COUNT // 2, 1))
#: of each image its class, and whether it is a training image
LABELS, TRAINS = np.arange(COUNT) % 2, np.arange(COUNT) % 4 < 2


def picture(path: Path, number: int) -> None:
    """An image file without compression, so that other pixels leave its size alone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(PIXELS[number]).save(path, "BMP")


def in_folders(root: Path) -> None:
    for number in range(COUNT):
        part = "train" if TRAINS[number] else "test"
        picture(root / part / "ab"[LABELS[number]] / f"{number}.bmp", number)


def in_csv(root: Path) -> None:
    lines = ["path,label,split"]
    for number in range(COUNT):
        picture(root / "images" / f"{number}.bmp", number)
        lines.append(f"images/{number}.bmp,{'ab'[LABELS[number]]},{'train' if TRAINS[number] else 'test'}")
    (root / "data.csv").write_text("\n".join(lines) + "\n")


def in_npz(root: Path) -> None:
    np.savez(root / "data.npz", images=PIXELS, labels=LABELS, split=~TRAINS + 0)


def sets_in_npz(root: Path) -> None:
    np.savez(root / "data.npz", images=PIXELS, labels=HOT, split=~TRAINS + 0)


def encoded_in_npz(root: Path) -> None:
    for number in range(COUNT):
        picture(root / f"{number}.bmp", number)
    files = [(root / f"{number}.bmp").read_bytes() for number in range(COUNT)]
    data = np.frombuffer(b"".join(files), np.uint8)
    offsets = np.cumsum([0, *map(len, files)])
    np.savez(root / "data.npz", jpeg=data, offsets=offsets, labels=LABELS, split=~TRAINS + 0)


def two_parts_in_npz(root: Path) -> None:
    arrays: dict[str, Any] = {}
    for part, which in (("train", TRAINS), ("test", ~TRAINS)):
        arrays |= {f"{part}_images": PIXELS[which], f"{part}_targets": HOT[which]}
    np.savez(root / "data.npz", **arrays)


def in_coco(root: Path) -> None:
    for part, which in (("train", TRAINS), ("val", ~TRAINS)):
        held: dict[str, Any] = {"categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}]}
        numbers = np.flatnonzero(which).tolist()
        held["images"] = [{"id": number, "file_name": f"{number}.bmp"} for number in numbers]
        held["annotations"] = [{"image_id": n, "category_id": int(LABELS[n]) + 1} for n in numbers]
        for number in numbers:
            picture(root / f"{part}2014" / f"{number}.bmp", number)
        (root / "annotations").mkdir(exist_ok=True)
        (root / "annotations" / f"instances_{part}2014.json").write_text(json.dumps(held))


def in_voc(root: Path) -> None:
    sets = root / "ImageSets" / "Main"
    sets.mkdir(parents=True)
    for part, which in (("trainval", TRAINS), ("test", ~TRAINS)):
        for name, label in (("a", 0), ("b", 1)):
            lines = [f"{n} {1 if LABELS[n] == label else -1}" for n in np.flatnonzero(which)]
            (sets / f"{name}_{part}.txt").write_text("\n".join(lines) + "\n")
    for number in range(COUNT):
        picture(root / "JPEGImages" / f"{number}.jpg", number)


def in_lists(root: Path) -> None:
    for part, which in (("train", TRAINS), ("test", ~TRAINS)):
        paths = [f"images/{'ab'[LABELS[number]]}/{number}.bmp" for number in np.flatnonzero(which)]
        for path in paths:
            picture(root / path, int(Path(path).stem))
        (root / f"{part}.txt").write_text("\n".join(paths))


def _rows() -> list[tuple[str, int, bool]]:
    return [(f"{number}.bmp", int(LABELS[number]), not TRAINS[number]) for number in range(COUNT)]


def in_cub200(root: Path) -> None:
    for number in range(COUNT):
        picture(root / "images" / f"{number}.bmp", number)
    cub200_tables(root, _rows(), ["a", "b"])


def in_stanford_cars(root: Path) -> None:
    for number in range(COUNT):
        part = "cars_train" if TRAINS[number] else "cars_test"
        picture(root / "stanford_cars" / part / f"{number}.bmp", number)
    stanford_cars_tables(root / "stanford_cars", _rows(), ["a", "b"])


def in_mit67(root: Path) -> None:
    lines: dict[str, list[str]] = {"Train": [], "Test": []}
    for number in range(COUNT):
        name = f"{'ab'[LABELS[number]]}/{number}.jpg"
        picture(root / "Images" / name, number)
        lines["Train" if TRAINS[number] else "Test"].append(name)
    for part, names in lines.items():
        (root / f"{part}Images.txt").write_text("\n".join(names) + "\n")


def in_resisc45(root: Path) -> None:
    names: dict[str, list[str]] = {"train": [], "val": ["8.jpg"], "test": []}
    for number in range(COUNT):
        picture(root / ("airplane", "wetland")[LABELS[number]] / f"{number}.jpg", number)
        names["train" if TRAINS[number] else "test"].append(f"{number}.jpg")
    (root / "wetland" / "8.jpg").write_bytes(b"left out")
    for part, held in names.items():
        (root / f"resisc45-{part}.txt").write_text("\n".join(held) + "\n")


def in_domainnet(root: Path) -> None:
    lines: dict[str, list[str]] = {}
    for number in range(COUNT):
        style, part = ("real", "sketch")[number >= COUNT // 2], "train" if TRAINS[number] else "test"
        name = f"{style}/{'ab'[LABELS[number]]}/{number}.png"
        picture(root / name, number)
        lines.setdefault(f"{style}_{part}.txt", []).append(f"{name} {LABELS[number]}")
    for file, held in lines.items():
        (root / file).write_text("\n".join(held) + "\n")


def in_core50(root: Path) -> None:
    for session in range(1, 12):
        for thing in ("o1", "o2"):
            (root / f"s{session}" / thing).mkdir(parents=True)
            (root / f"s{session}" / thing / "filler.pgm").write_bytes(b"P5 1 1 255 0")
    for number in range(COUNT):
        session = 1 if TRAINS[number] else 3
        picture(root / f"s{session}" / f"o{LABELS[number] + 1}" / f"{number}.png", number)


def in_hf(root: Path) -> None:
    import datasets

    parts = {}
    for part, which in (("train", TRAINS), ("test", ~TRAINS)):
        rows = []
        for number in np.flatnonzero(which):
            picture(root / "image.bmp", number)
            rows.append({"bytes": (root / "image.bmp").read_bytes(), "path": None})
        held = {"image": rows, "label": LABELS[which].tolist()}
        parts[part] = datasets.Dataset.from_dict(held).cast_column("image", datasets.Image())
    datasets.DatasetDict(parts).save_to_disk(root / "saved")


Read = Callable[[Path], DataBundle]
#: every reader of files: what writes them, and what reads them from a folder
READERS: dict[str, tuple[Callable[[Path], None], Read]] = {
    "imagefolder": (in_folders, lambda root: imagefolder(path=str(root))),
    "imagefolder, lists": (
        in_lists,
        lambda root: imagefolder(
            path=str(root / "images"), lists=(str(root / "train.txt"), str(root / "test.txt"))
        ),
    ),
    "cub200": (in_cub200, lambda root: cub200(path=str(root))),
    "stanford_cars": (in_stanford_cars, lambda root: stanford_cars(path=str(root))),
    "csv": (in_csv, lambda root: csv_file(path=str(root / "data.csv"))),
    "multi_label_csv": (in_csv, lambda root: multi_label_csv(path=str(root / "data.csv"))),
    "npz": (in_npz, lambda root: npz(path=str(root / "data.npz"))),
    "npz, encoded": (encoded_in_npz, lambda root: npz(path=str(root / "data.npz"))),
    "multi_label_npz": (sets_in_npz, lambda root: multi_label_npz(path=str(root / "data.npz"))),
    "multi_label_npz, two parts": (
        two_parts_in_npz,
        lambda root: multi_label_npz(path=str(root / "data.npz")),
    ),
    "coco": (in_coco, lambda root: coco(path=str(root))),
    "voc2007": (in_voc, lambda root: voc2007(path=str(root))),
    "mit67": (in_mit67, lambda root: mit67(path=str(root))),
    "resisc45": (in_resisc45, lambda root: resisc45(path=str(root), list_folder=str(root))),
    "domainnet": (in_domainnet, lambda root: domainnet(path=str(root), domains=["real", "sketch"])),
    "core50": (in_core50, lambda root: core50(path=str(root))),
    "hf": (in_hf, lambda root: hf(path=str(root / "saved"))),
    "mosaic": (
        in_npz,
        lambda root: mosaic(source={"name": "npz", "path": str(root / "data.npz")}, train_images=4),
    ),
}
without_hf = pytest.mark.skipif(
    importlib.util.find_spec("datasets") is None,
    reason="datasets is not installed: pip install 'clprompt[hf]'",
)
readers = pytest.mark.parametrize(
    "reader", [pytest.param(name, marks=[without_hf] if name == "hf" else []) for name in READERS]
)
pytestmark = pytest.mark.filterwarnings("ignore:.*validation image")


def read(reader: str, root: Path) -> dict[str, Any]:
    return READERS[reader][1](root).fingerprints


def written(reader: str, root: Path) -> Path:
    root.mkdir(parents=True)
    READERS[reader][0](root)
    return root


@readers
def test_every_reader_gives_the_contents_of_its_images(reader: str, tmp_path: Path) -> None:
    known = read(reader, written(reader, tmp_path / "data"))
    for part in ("training images", "test images"):
        assert {"number", "labels", "contents"} <= known[part].keys()


@readers
def test_a_folder_that_was_moved_and_touched_is_known_again(reader: str, tmp_path: Path) -> None:
    before = read(reader, written(reader, tmp_path / "data"))
    shutil.move(tmp_path / "data", tmp_path / "another" / "place")
    for path in (tmp_path / "another").rglob("*"):
        os.utime(path, (0, 0))
    assert read(reader, tmp_path / "another" / "place") == before


@pytest.mark.parametrize(
    ("image", "part", "other"),
    [(0, "training images", "test images"), (COUNT - 1, "test images", "training images")],
)
@readers
def test_one_pixel_of_one_image_makes_another_of_its_part(
    reader: str, image: int, part: str, other: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = read(reader, written(reader, tmp_path / "data"))
    pixels = PIXELS.copy()
    pixels[image, 3, 3] ^= 1
    monkeypatch.setitem(globals(), "PIXELS", pixels)
    after = read(reader, written(reader, tmp_path / "other"))
    assert after[part]["contents"] != before[part]["contents"]
    assert after[other] == before[other]


@readers
def test_labels_that_changed_places_make_another(
    reader: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = read(reader, written(reader, tmp_path / "data"))
    swapped = LABELS.copy()
    swapped[:2] = swapped[1::-1]
    monkeypatch.setitem(globals(), "LABELS", swapped)
    monkeypatch.setitem(globals(), "HOT", np.eye(2, dtype=np.uint8)[swapped])
    assert read(reader, written(reader, tmp_path / "other")) != before


@pytest.mark.parametrize("make", [digits, synthetic, lambda: mosaic(train_images=4, test_images=4)])
def test_a_made_data_set_is_the_same_every_time(make: Callable[[], DataBundle]) -> None:
    first, second = make().fingerprints, make().fingerprints
    assert first == second
    assert "contents" in first["training images"]


def test_a_renamed_image_makes_another(tmp_path: Path) -> None:
    root = written("imagefolder", tmp_path / "data")
    before = read("imagefolder", root)
    (root / "train" / "a" / "0.bmp").rename(root / "train" / "a" / "00.bmp")
    after = read("imagefolder", root)
    different = {
        key for key, value in after["training images"].items() if value != before["training images"][key]
    }
    assert different == {"names"}


def test_of_many_files_names_and_sizes_of_all_count_and_the_contents_of_some(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fingerprints, "FILES", 3)
    monkeypatch.setattr(fingerprints, "ENDS", 4)
    paths = [tmp_path / f"{number}" for number in range(5)]
    for path in paths:
        path.write_bytes(bytes(20))

    def known_after(number: int, data: bytes) -> set[str]:
        before = fingerprints.of_files(list(map(str, paths)))
        paths[number].write_bytes(data)
        after = fingerprints.of_files(list(map(str, paths)))
        return {key for key in after if after[key] != before[key]}

    assert known_after(1, bytes(19)) == {"sizes"}  # not among the three
    assert known_after(2, bytes(10) + b"x" + bytes(9)) == set()  # neither at the beginning nor at the end
    assert known_after(2, bytes(19) + b"x") == {"contents"}
    assert known_after(4, b"x" + bytes(19)) == {"contents"}


def test_images_of_a_loader_of_ones_own_are_known_by_their_number_and_labels() -> None:
    source = ImageSource(lambda index: PIXELS[index], LABELS)
    assert source.fingerprint().keys() == {"number", "labels"}
