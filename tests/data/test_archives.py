"""Published data sets by name: their archives are read as they are, wherever they were unpacked."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clprompt.data import DataBundle
from clprompt.errors import DataError, DataWarning
from clprompt.registry import datasets
from tests._shared import archives

Build = Callable[..., dict[str, Any]]

CLASSES = 4


def parts(name: str) -> Build:
    """Class folders in train/ and test/, whose names are numbers of one digit and of two."""
    return lambda root, classes, **counts: archives.sorted_parts(
        root, name, list(map(str, range(8, 8 + classes)))
    )


#: What builds each set.
SETS: dict[str, Build] = {
    "imagenet_r": archives.imagenet_r,
    "imagenet_a": archives.imagenet_a,
    "tiny_imagenet": archives.tiny_imagenet,
    "imagenet": archives.imagenet,
    "imagenet100": archives.imagenet,
    "cub200": archives.cub200,
    "stanford_cars": archives.stanford_cars,
    "objectnet": parts("objectnet"),
    "omnibenchmark": parts("omnibenchmark"),
    "vtab": parts("vtab-cil/vtab"),
    "mit67": archives.mit67,
    "resisc45": archives.resisc45,
}
every_set = pytest.mark.parametrize("name", SETS)
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*one training image only"),
    pytest.mark.filterwarnings("ignore:.*not the published lists"),
    pytest.mark.filterwarnings("ignore:.*beside it is left out"),
    pytest.mark.filterwarnings("ignore:.*validation images are left out"),
]


def build(name: str, root: Path) -> dict[str, Any]:
    return SETS[name](root, classes=CLASSES)


def read(name: str, **arguments: Any) -> DataBundle:
    return datasets.get(name).target(**arguments)


@every_set
def test_every_image_is_read_once_with_the_class_of_its_folder(name: str, tmp_path: Path) -> None:
    bundle = read(name, **build(name, tmp_path))
    assert len(bundle.class_names) == CLASSES
    assert (len(bundle.train), len(bundle.test)) == (2 * CLASSES, CLASSES)
    assert np.bincount(bundle.train.targets).tolist() == [2] * CLASSES
    assert np.bincount(bundle.test.targets).tolist() == [1] * CLASSES
    assert np.asarray(bundle.train.load(0)).shape == (8, 8, 3)


@pytest.mark.parametrize(
    ("name", "mean"),
    [
        ("imagenet_r", (0.485, 0.456, 0.406)),
        ("imagenet", (0.485, 0.456, 0.406)),
        ("imagenet100", (0.485, 0.456, 0.406)),
        ("cub200", (0.485, 0.456, 0.406)),
        ("tiny_imagenet", (0.4802, 0.4481, 0.3975)),
        ("imagenet_a", None),
    ],
)
def test_the_mean_of_the_pixels_is_that_of_released_codes_or_none(
    name: str, mean: tuple[float, ...] | None, tmp_path: Path
) -> None:
    published = read(name, **build(name, tmp_path)).normalisation
    assert (published and published.mean) == mean


@every_set
def test_the_folder_of_an_archive_is_found_in_the_one_that_holds_it(name: str, tmp_path: Path) -> None:
    known = read(name, **build(name, tmp_path / "data")).fingerprints
    arguments = build(name, tmp_path / "data")
    assert read(name, **{**arguments, "path": str(tmp_path / "data")}).fingerprints == known


@every_set
def test_a_missing_archive_is_one_line_that_says_what_to_download(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError) as error:
        read(name, path=str(tmp_path / "data"))
    text = str(error.value)
    line = rf"data set {name}: there is no folder .*/data; download .*http.*, unpack it, and give data\.path "
    assert re.match(line, text)
    assert "\n" not in text


@pytest.mark.parametrize("path", ["a\0b", "x" * 5000, "README.txt"])
def test_a_path_that_can_be_no_folder_is_one_line(path: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "README.txt").touch()
    what = "README.txt is a file" if path == "README.txt" else "there is no folder "
    mistaken("imagenet_a", f"data set imagenet_a: {what}", path=path)


@every_set
def test_another_folder_is_one_line_that_says_what_to_download(name: str, tmp_path: Path) -> None:
    (tmp_path / "data" / "other").mkdir(parents=True)
    with pytest.raises(
        DataError, match=rf"data set {name}: .*/data is not its folder; download .*http"
    ) as error:
        read(name, path=str(tmp_path / "data"))
    assert "\n" not in str(error.value)


@every_set
def test_a_folder_of_another_level_is_one_line_that_names_the_right_one(name: str, tmp_path: Path) -> None:
    mine = tmp_path / "data" / "mine"
    mine.parent.mkdir()
    Path(build(name, tmp_path / "unpacked")["path"]).rename(mine)
    inner = next(place for place in mine.iterdir() if place.is_dir())
    for path in (mine.parent, inner):
        with pytest.raises(DataError, match=rf"data set {name}: {path} is .*; give data\.path={mine}$"):
            read(name, path=str(path))


@every_set
def test_class_ids_are_those_that_released_code_gives(name: str, tmp_path: Path) -> None:
    wnids = archives.wnids(CLASSES)
    released = {
        "imagenet_r": [wnids[3 - label] for label in range(CLASSES)],  # the lists' own labels
        "tiny_imagenet": wnids[::-1],  # the order of wnids.txt
        "cub200": [f"{number:03d}.Bird_{number}" for number in range(1, CLASSES + 1)],
        "stanford_cars": [f"Make Car {number} 2012" for number in range(CLASSES)],
        "mit67": [f"room_{number:02d}" for number in range(CLASSES)],
        "resisc45": ["airplane", "field_02", "field_03", "wetland"],
        **{key: ["10", "11", "8", "9"] for key in ("objectnet", "omnibenchmark", "vtab")},  # as text
    }
    assert read(name, **build(name, tmp_path)).class_names == released.get(name, wnids)


@every_set
def test_limits_and_an_unreadable_image_are_as_everywhere(name: str, tmp_path: Path) -> None:
    arguments = build(name, tmp_path)
    bundle = read(name, **arguments, classes="0-2", train_per_class=1)
    assert (len(bundle.class_names), len(bundle.train), len(bundle.test)) == (3, 3, 3)
    broken = bundle.train.load.load.load.paths[0]
    Path(broken).write_bytes(b"")
    with pytest.raises(DataError, match=rf"{re.escape(broken)}: the image cannot be read: it is empty; "):
        read(name, **arguments)
    with pytest.warns(DataWarning, match=rf"{name}: 1 of 12 images are left out; the first: {broken}"):
        read(name, **arguments, on_bad_image="skip")


# ------------------------------------------------------------------------------------------ single archives


def mistaken(name: str, message: str, **arguments: Any) -> None:
    with pytest.raises(DataError, match=message) as error:
        read(name, **arguments)
    assert "\n" not in str(error.value)


def test_other_lists_than_the_published_ones_of_imagenet_r_are_told(tmp_path: Path) -> None:
    with pytest.warns(
        DataWarning, match="are not the published lists .GT-RIPL/CODA-Prompt, dataloaders/splits"
    ):
        read("imagenet_r", **archives.imagenet_r(tmp_path, CLASSES))


def test_imagenet_r_without_lists_draws_a_share_of_each_class(tmp_path: Path) -> None:
    path = archives.imagenet_r(tmp_path, CLASSES, train=9)["path"]
    bundle = read("imagenet_r", path=path, test_fraction=0.3)
    assert np.bincount(bundle.test.targets).tolist() == [3] * CLASSES
    assert bundle.class_names == archives.wnids(CLASSES)


@pytest.mark.parametrize("name", ["imagenet_r", "imagenet_a"])
def test_a_split_into_folders_is_read_as_it_is(name: str, tmp_path: Path) -> None:
    folder = name.replace("_", "-")
    arguments = archives.sorted_parts(tmp_path, folder, archives.wnids(CLASSES))
    bundle = read(name, **arguments)
    assert (len(bundle.train), len(bundle.test)) == (2 * CLASSES, CLASSES)
    mistaken(name, rf"train is a part of it; give data\.path=.*/{folder}$", path=f"{arguments['path']}/train")


def test_a_class_that_tiny_imagenet_lists_twice_counts_once(tmp_path: Path) -> None:
    arguments = archives.tiny_imagenet(tmp_path, CLASSES)
    names = [*archives.wnids(CLASSES), "n99999999", *archives.wnids(CLASSES)]
    (Path(arguments["path"]) / "wnids.txt").write_text("\n".join(names))
    assert read("tiny_imagenet", **arguments).class_names == archives.wnids(CLASSES)


def test_a_class_that_tiny_imagenet_does_not_list_is_one_line(tmp_path: Path) -> None:
    arguments = archives.tiny_imagenet(tmp_path, CLASSES)
    (Path(arguments["path"]) / "wnids.txt").write_text("\n".join(archives.wnids(CLASSES)[1:]))
    wrong = f"tiny_imagenet: the class {archives.wnids(1)[0]} is not in its list of classes"
    mistaken("tiny_imagenet", wrong, **arguments)


@pytest.fixture(scope="module")
def more_classes(tmp_path_factory: pytest.TempPathFactory) -> str:
    return archives.imagenet(tmp_path_factory.mktemp("imagenet"), 101, train=1)["path"]


def test_a_list_of_classes_makes_imagenet100(more_classes: str, tmp_path: Path) -> None:
    names = archives.wnids(101)
    (tmp_path / "imagenet100.txt").write_text("\n".join(f"{name} a word" for name in names[:0:-1]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", ".*(beside it is left out|one training image)")
        bundle = read("imagenet100", path=more_classes, class_list=str(tmp_path / "imagenet100.txt"))
    assert bundle.class_names == names[1:]
    assert (len(bundle.train), len(bundle.test)) == (100, 100)


def test_lists_of_images_make_imagenet100(tmp_path: Path) -> None:
    arguments = archives.imagenet(tmp_path, 3)
    names = archives.wnids(3)[1:]
    rows = [f"train/{name}/{name}_{i}.JPEG {1 - label}" for label, name in enumerate(names) for i in (0, 1)]
    for row, file in ((0, "train_100.txt"), (1, "val_100.txt")):
        (tmp_path / file).write_text("\n".join(rows[row::2]))
    lists = (str(tmp_path / "train_100.txt"), str(tmp_path / "val_100.txt"))
    bundle = read("imagenet100", **arguments, lists=lists)
    assert (bundle.class_names, len(bundle.train), len(bundle.test)) == (names[::-1], 2, 2)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            None,
            r"data\.class_list: .* holds 101 classes; give a file that names 100, such as imagenet100\.txt",
        ),
        ("", r"data\.class_list: .*list\.txt names no class"),
        ("n01440764\nn01440764 tench\n", r"list\.txt, line 2: the class n01440764 stands in .*, line 1, too"),
        ("\nn01440765\n", r'list\.txt, line 2: there is no folder .*/n01440765; did you mean "n01440764"\?'),
        ("\xff", r"list\.txt: this is not text in UTF-8"),
    ],
)
def test_a_wrong_list_of_classes_is_one_line(
    content: str | None, message: str, more_classes: str, tmp_path: Path
) -> None:
    arguments: dict[str, Any] = {"path": more_classes}
    if content is not None:
        (tmp_path / "list.txt").write_text(content, encoding="latin-1")
        arguments["class_list"] = str(tmp_path / "list.txt")
    mistaken("imagenet100", message, **arguments)


def test_a_missing_list_of_classes_is_one_line(more_classes: str) -> None:
    mistaken("imagenet100", r"no\.txt: No such file", path=more_classes, class_list="no.txt")


def test_a_list_of_classes_beside_lists_of_images_is_refused(more_classes: str) -> None:
    both = {"class_list": "a.txt", "lists": ("b.txt", "c.txt")}
    mistaken("imagenet100", r"data\.class_list: data\.lists says which images", path=more_classes, **both)


def test_a_list_of_other_than_a_hundred_classes_is_told(more_classes: str, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("n01440764\n")
    with pytest.warns(DataWarning, match=r"imagenet100: .*list\.txt names 1 classes, not 100"):
        read("imagenet100", path=more_classes, class_list=str(tmp_path / "list.txt"))


@pytest.mark.parametrize(
    ("file", "line", "message"),
    [
        (
            "images.txt",
            "1 001.Bird_1/other.jpg",
            r"images\.txt, line 13: the number 1 stands in .*line 1, too",
        ),
        ("images.txt", "13 ../secret.jpg", r"images\.txt, line 13: '\.\./secret\.jpg' leads out of images/"),
        (
            "images.txt",
            "13 001.Bird_1/9.jpg",
            r"/001\.Bird_1/9\.jpg: the image cannot be read: there is no such",
        ),
        (
            "images.txt",
            "001.Bird_1/9.jpg",
            r"line 13: it must be a number and the path of an image, got '001",
        ),
        ("classes.txt", "7", r"classes\.txt, line 5: it must be a number and the name of a class, got '7'"),
        (
            "image_class_labels.txt",
            "13 9",
            r"line 13: it must be a number and a class of classes\.txt, got '13 9'",
        ),
        ("image_class_labels.txt", "13 1", r"images\.txt: there is no image 13, which the other files have"),
        ("train_test_split.txt", "13 2", r"line 13: it must be a number and 0 or 1, got '13 2'"),
        ("train_test_split.txt", "13 1", r"images\.txt: there is no image 13, which the other files have"),
    ],
)
def test_a_wrong_line_of_cub200_is_one_line(file: str, line: str, message: str, tmp_path: Path) -> None:
    arguments = archives.cub200(tmp_path, CLASSES)
    with open(f"{arguments['path']}/{file}", "a") as stream:
        stream.write(f"{line}\n")
    if "cannot be read" in message:
        for other in ("image_class_labels.txt", "train_test_split.txt"):
            with open(f"{arguments['path']}/{other}", "a") as stream:
                stream.write("13 1\n")
    mistaken("cub200", message, **arguments)


def test_a_damaged_table_of_stanford_cars_is_one_line(tmp_path: Path) -> None:
    arguments = archives.stanford_cars(tmp_path, CLASSES)
    (Path(arguments["path"]) / "devkit" / "cars_meta.mat").write_bytes(b"no table")
    mistaken("stanford_cars", r"data set stanford_cars in .*: its tables cannot be read: ", **arguments)


def test_the_folder_of_stanford_cars_must_have_torchvisions_name(tmp_path: Path) -> None:
    top = Path(archives.stanford_cars(tmp_path, CLASSES)["path"]).rename(tmp_path / "cars")
    mistaken("stanford_cars", "/cars: torchvision wants it to be called stanford_cars", path=str(top))
