"""What a data set is known by: the same wherever it lies, another as soon as a file or a pixel is another."""

from __future__ import annotations

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
from clprompt.data.sets.csv import csv_file, multi_label_csv
from clprompt.data.sets.cub200 import cub200
from clprompt.data.sets.digits import digits
from clprompt.data.sets.imagefolder import imagefolder
from clprompt.data.sets.mosaic import mosaic
from clprompt.data.sets.npz import multi_label_npz, npz
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
    "mosaic": (
        in_npz,
        lambda root: mosaic(source={"name": "npz", "path": str(root / "data.npz")}, train_images=4),
    ),
}
readers = pytest.mark.parametrize("reader", READERS)


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
