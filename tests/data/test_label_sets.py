"""Multi-label data sets: mosaics and the readers of own and published files."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from clprompt import registry
from clprompt.data.sets.coco import coco
from clprompt.data.sets.csv import multi_label_csv
from clprompt.data.sets.mosaic import digit_mosaics, mosaic
from clprompt.data.sets.npz import multi_label_npz
from clprompt.data.sets.voc import voc2007
from clprompt.errors import ConfigError, DataError


def picture(path: Path, value: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 6), (value, 0, 0)).save(path)


def test_a_mosaic_has_the_labels_of_what_its_cells_show():
    bundle, digits = digit_mosaics(train_images=60, test_images=30), registry.datasets.get("digits").target()
    assert bundle.train.targets.shape == (60, 10)
    assert bundle.test.targets.shape == (30, 10)
    cells = bundle.train.load.cells
    assert ((cells >= 0).sum(1) <= 4).all()
    assert (bundle.train.targets.sum(1) == 0).any()  # some show nothing
    for index in range(10):
        image = bundle.train.load(index)
        assert image.shape == (1, 16, 16)
        shown = set()
        for cell, chosen in enumerate(cells[index]):
            y, x = divmod(cell, 2)
            part = image[:, 8 * y : 8 * y + 8, 8 * x : 8 * x + 8]
            if chosen < 0:
                assert not part.any()
            else:
                assert torch.equal(part, digits.train.load(int(chosen)))
                shown.add(int(digits.train.targets[chosen]))
        assert set(np.flatnonzero(bundle.train.targets[index])) == shown


def test_mosaics_follow_their_seed():
    first, again, other = (digit_mosaics(train_images=20, test_images=5, seed=seed) for seed in (0, 0, 1))
    assert (first.train.targets == again.train.targets).all()
    assert (first.train.targets != other.train.targets).any()


def test_mosaics_can_be_sent_to_another_process():
    first = digit_mosaics(train_images=20, test_images=5, seed=0)
    assert torch.equal(pickle.loads(pickle.dumps(first.train.load))(3), first.train.load(3))


def test_a_colour_image_among_grey_ones_is_a_grey_cell_of_a_mosaic(tmp_path):
    for number in range(4):
        Image.new("L" if number < 2 else "RGB", (8, 6), 50 * number).save(tmp_path / f"{number}.png")
    rows = "".join(
        f"{number}.png,{'ab'[number % 2]},{part}\n" for part in ("train", "test") for number in range(4)
    )
    source = {"name": "csv", "path": write(tmp_path / "all.csv", "path,label,split\n" + rows)}
    bundle = mosaic(source=source, train_images=12, test_images=2, empty=0.0)
    assert {bundle.train.load(index).shape for index in range(12)} == {(1, 12, 16)}


def test_any_grid_of_any_single_label_source_makes_a_mosaic():
    bundle = mosaic(grid=3, train_images=4, test_images=2, most=2, empty=0.0)
    assert bundle.train.load(0).shape == (1, 24, 24)
    assert bundle.train.targets.sum(1).max() <= 2
    with pytest.raises(ConfigError, match="cells of the grid"):
        mosaic(most=5)
    with pytest.raises(ConfigError, match="single-label"):
        mosaic(source="digit_mosaics")


def test_the_source_of_a_mosaic_is_not_drawn_by_itself():
    message = r"data\.source\.corrupt=blur would change nothing: .*; give data\.corrupt=blur"
    with pytest.raises(ConfigError, match=message):
        mosaic(source={"name": "digits", "corrupt": "blur"}, train_images=4, test_images=2)


def write(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def test_a_csv_of_paths_and_labels_is_a_data_set(tmp_path):
    for name in ("a", "b", "c"):
        picture(tmp_path / f"{name}.png")
    train = write(tmp_path / "train.csv", "path,label\na.png,dog;cat\nb.png,\n")
    test = write(tmp_path / "test.csv", "path,label\nc.png,cat\n")
    bundle = multi_label_csv(path=train, test_path=test)
    assert bundle.class_names == ["cat", "dog"]
    assert bundle.train.targets.tolist() == [[1, 1], [0, 0]]
    assert bundle.test.targets.tolist() == [[1, 0]]
    assert bundle.train.load(0).size == (8, 6)
    named = multi_label_csv(path=train, test_path=test, classes=["dog", "cat"])
    assert named.class_names == ["dog", "cat"]
    assert named.test.targets.tolist() == [[0, 1]]
    with pytest.raises(ConfigError, match='there is no class "cow"'):
        multi_label_csv(path=train, test_path=test, classes=["dog", "cat", "cow"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,label\na.png,dgo\n", 'test.csv, line 2: unknown class "dgo".*"dog"'),
        (
            "path,label\na.png,\na.png,cow\n",
            'test.csv, line 3: unknown class "cow"; no training image has it',
        ),
        (
            "image,label\na.png,dog\n",
            'test.csv: there is no column "path" in the first line, .*: image, label',
        ),
        (
            "path,label\na.png,dog,cat\n",
            "test.csv, line 2: there are more cells than columns; .* joined by ;",
        ),
        ("path,label\na.png\n", "test.csv, line 2: the label is missing; .* ends in a comma"),
        ("path,label\n,dog\n", "test.csv, line 2: the path is missing"),
        ("path,label\nnothing.png,dog\n", "nothing.png: the image cannot be read: there is no such file"),
        ("path,label\n", "test.csv: there is no image in it"),
    ],
)
def test_a_csv_with_a_mistake_is_refused_in_one_line(tmp_path, text, message):
    picture(tmp_path / "a.png")
    train = write(tmp_path / "train.csv", "path,label\na.png,dog;cat\n")
    with pytest.raises(DataError, match=message) as caught:
        multi_label_csv(path=train, test_path=write(tmp_path / "test.csv", text))
    assert "\n" not in str(caught.value)


def test_a_csv_without_any_label_is_refused(tmp_path):
    picture(tmp_path / "a.png")
    with pytest.raises(DataError, match="no line has a label"):
        multi_label_csv(path=write(tmp_path / "all.csv", "path,label\na.png,\na.png,\n"))


def arrays(**changed):
    held = {
        "train_images": np.zeros((3, 5, 5), dtype=np.uint8),
        "train_targets": np.eye(3, dtype=int),
        "test_images": np.zeros((2, 5, 5), dtype=np.uint8),
        "test_targets": np.ones((2, 3), dtype=int),
    }
    return {key: value for key, value in {**held, **changed}.items() if value is not None}


def test_an_npz_of_multi_hot_targets_is_a_data_set(tmp_path):
    np.savez(tmp_path / "mine.npz", **arrays(class_names=np.array(["a", "b", "c"])))
    bundle = multi_label_npz(path=str(tmp_path / "mine.npz"))
    assert bundle.class_names == ["a", "b", "c"]
    assert bundle.train.load(1).shape == (1, 5, 5)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"test_targets": None}, "has no array test_targets"),
        ({"train_targets": 2 * np.eye(3)}, "train_targets must be 0 or 1"),
        ({"test_targets": np.ones((2, 4))}, "has 3 classes, test_targets 4"),
        ({"class_names": np.array(["a"])}, "1 class names for 3 classes"),
        ({"train_images": np.zeros(3)}, r"must be \[n, H, W\]"),
        ({"split": np.zeros(5)}, "holds the array split beside train_images and test_images"),
    ],
)
def test_an_npz_with_a_mistake_is_refused_in_one_line(tmp_path, changed, message):
    np.savez(tmp_path / "mine.npz", **arrays(**changed))
    with pytest.raises(DataError, match=message) as caught:
        multi_label_npz(path=str(tmp_path / "mine.npz"))
    assert "\n" not in str(caught.value)


def test_coco_categories_are_sorted_by_name(tmp_path):
    held = {
        "categories": [{"id": 7, "name": "zebra"}, {"id": 9, "name": "ant"}],
        "images": [
            {"id": 2, "file_name": "two.jpg"},
            {"id": 1, "file_name": "one.jpg"},
            {"id": 3, "file_name": "three.jpg"},
        ],
        "annotations": [
            {"image_id": 1, "category_id": 7},
            {"image_id": 1, "category_id": 7},
            {"image_id": 3, "category_id": 9},
        ],
    }
    for part in ("train", "val"):
        (tmp_path / "annotations").mkdir(exist_ok=True)
        write(tmp_path / "annotations" / f"instances_{part}2014.json", json.dumps(held))
        for number in ("one", "two", "three"):
            picture(tmp_path / f"{part}2014" / f"{number}.jpg")
    bundle = coco(path=str(tmp_path))
    assert bundle.class_names == ["ant", "zebra"]
    assert bundle.train.targets.tolist() == [[0, 1], [0, 0], [1, 0]]
    assert bundle.train.load(0).size == (8, 6)
    held["annotations"].append({"image_id": 5, "category_id": 7})
    write(tmp_path / "annotations" / "instances_val2014.json", json.dumps(held))
    with pytest.raises(DataError, match="names image 5, which the file does not list"):
        coco(path=str(tmp_path))
    with pytest.raises(DataError, match="No such file"):
        coco(path=str(tmp_path / "elsewhere"))


def test_difficult_objects_of_voc_count_as_absent(tmp_path):
    folder = tmp_path / "ImageSets" / "Main"
    folder.mkdir(parents=True)
    for part in ("trainval", "test"):
        write(folder / f"dog_{part}.txt", "000001  1\n000002  0\n000003 -1\n")
        write(folder / f"cat_{part}.txt", "000001 -1\n000002  1\n000003 -1\n")
    for number in (1, 2, 3):
        picture(tmp_path / "JPEGImages" / f"00000{number}.jpg")
    bundle = voc2007(path=str(tmp_path))
    assert bundle.class_names == ["cat", "dog"]
    assert bundle.train.targets.tolist() == [[0, 1], [1, 0], [0, 0]]
    assert bundle.train.load(0).size == (8, 6)
    with pytest.raises(DataError, match="has no image sets"):
        voc2007(path=str(tmp_path / "elsewhere"))
