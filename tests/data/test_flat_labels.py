"""Tiny ImageNet and ImageNet as their archives lay them out: a flat val/ with its labels in a file."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from PIL import Image

from clprompt.data import DataBundle
from clprompt.data.sets.imagefolder import imagefolder
from clprompt.errors import DataError

WNIDS = ("n01440764", "n02012849", "n02119789")  # tench, crane, kit fox: their ids in the devkit are 3, 2, 1


def write(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (4, 4)).save(path, "JPEG")


def read(root: Path) -> tuple[DataBundle, list[str]]:
    """The data set, and what is told beside that test/ has no labels."""
    with warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter("always")
        bundle = imagefolder(path=str(root))
    messages = [str(note.message).removeprefix(f"imagefolder {root}: ") for note in notes]
    told = "the test set is val/; test/ beside it is left out, as nothing says the classes of its images"
    assert messages[0] == told
    return bundle, messages[1:]


def test_classes(bundle: DataBundle) -> list[str]:
    return [bundle.class_names[target] for target in bundle.test.targets]


test_classes.__test__ = False


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """tiny-imagenet-200 as its archive holds it, but for the numbers."""
    for wnid in WNIDS:
        for index in range(2):
            write(tmp_path / "train" / wnid / "images" / f"{wnid}_{index}.JPEG")
        (tmp_path / "train" / wnid / f"{wnid}_boxes.txt").write_text(f"{wnid}_0.JPEG\t0\t0\t62\t62\n")
    lines = []
    for index in range(4):
        write(tmp_path / "val" / "images" / f"val_{index}.JPEG")
        write(tmp_path / "test" / "images" / f"test_{index}.JPEG")
        lines.append(f"val_{index}.JPEG\t{WNIDS[2 - index % 3]}\t0\t32\t44\t62\n")
    (tmp_path / "val" / "val_annotations.txt").write_text("".join(lines))
    (tmp_path / "wnids.txt").write_text("\n".join(reversed(WNIDS)))
    (tmp_path / "words.txt").write_text("n01440764\ttench, Tinca tinca\n")
    return tmp_path


def test_tiny_imagenet_is_read_as_its_archive_is(tiny: Path) -> None:
    bundle, told = read(tiny)
    assert not told
    assert bundle.class_names == list(WNIDS)
    assert bundle.train.targets.tolist() == [0, 0, 1, 1, 2, 2]
    assert test_classes(bundle) == [WNIDS[2], WNIDS[1], WNIDS[0], WNIDS[2]]


def test_images_that_a_list_names_and_are_not_there_are_told(tiny: Path) -> None:
    (tiny / "val" / "images" / "val_0.JPEG").unlink()
    bundle, told = read(tiny)
    assert told == [f"1 of the 4 images that {tiny}/val/val_annotations.txt lists are not there"]
    assert test_classes(bundle) == [WNIDS[1], WNIDS[0], WNIDS[2]]


@pytest.fixture(params=["", "ILSVRC/Data/CLS-LOC"])
def imagenet(tmp_path: Path, request: pytest.FixtureRequest) -> tuple[Path, Path]:
    """The folder of ImageNet and that of its archive: one and the same, and as Kaggle has it."""
    root = tmp_path / request.param
    for wnid in WNIDS:
        for index in range(2):
            write(root / "train" / wnid / f"{wnid}_{index}.JPEG")
    for number in range(1, 5):
        write(root / "val" / f"ILSVRC2012_val_{number:08d}.JPEG")
        write(root / "test" / f"ILSVRC2012_test_{number:08d}.JPEG")
    return root, tmp_path


def devkit(folder: Path, lines: str = "1\n2\n3\n1\n") -> Path:
    data = folder / "ILSVRC2012_devkit_t12" / "data"
    data.mkdir(parents=True)
    synsets = np.zeros((4, 1), dtype=[("ILSVRC2012_ID", "O"), ("WNID", "O"), ("num_children", "O")])
    for row, (number, wnid) in enumerate(zip((1, 2, 3, 1001), (*reversed(WNIDS), "n00001740"), strict=True)):
        synsets[row, 0] = (np.array([[number]]), wnid, np.array([[0]]))
    scipy.io.savemat(data / "meta.mat", {"synsets": synsets})
    (data / "ILSVRC2012_validation_ground_truth.txt").write_text(lines)
    return data


def test_the_labels_of_imagenets_devkit_are_in_the_devkits_order(imagenet: tuple[Path, Path]) -> None:
    root, archive = imagenet
    devkit(archive)
    bundle, told = read(root)
    assert not told
    assert bundle.class_names == list(WNIDS)
    assert test_classes(bundle) == [WNIDS[2], WNIDS[1], WNIDS[0], WNIDS[2]]


def test_the_devkits_ids_are_refused_without_its_table_of_classes(imagenet: tuple[Path, Path]) -> None:
    root, archive = imagenet
    table = devkit(archive) / "meta.mat"
    table.write_bytes(b"no table")
    with pytest.raises(DataError, match=r"meta\.mat is not the table of classes of ImageNet's devkit: "):
        read(root)
    table.unlink()
    with pytest.raises(
        DataError, match=r"order is not that of the class folders: meta\.mat, which the devkit"
    ):
        read(root)


def test_the_labels_of_kaggles_solution_are_read(imagenet: tuple[Path, Path]) -> None:
    root, archive = imagenet
    rows = [
        f"{WNIDS[1]} 1 2 3 4 {WNIDS[1]} 5 6 7 8 ",
        f"{WNIDS[0]} 1 2 3 4 ",
        f"{WNIDS[2]} 1 2 3 4",
        "n9 1 2 3 4",
    ]
    rows = [f"ILSVRC2012_val_{number:08d},{row}\n" for number, row in enumerate(rows, start=1)]
    (archive / "LOC_val_solution.csv").write_text("ImageId,PredictionString\n" + "".join(rows))
    bundle, told = read(root)
    assert told == ["1 of 4 test images are left out: their classes have no training folder"]
    assert test_classes(bundle) == [WNIDS[1], WNIDS[0], WNIDS[2]]


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        (
            "val/val_annotations.txt",
            "val_0.JPEG n01440764\n",
            "line 1: it must be a file's name, a tab and a class",
        ),
        (
            "val/val_annotations.txt",
            "\nval_0.JPEG\tx\nval_0.JPEG\ty\n",
            "line 3: val_0 is of class y, and of x",
        ),
        (
            "val/val_annotations.txt",
            "val_0.JPEG\tn01440764\n",
            r"val_1\.JPEG: .* does not say the class of this",
        ),
        ("val/val_annotations.txt", "val_0.JPEG\t\xff\n", "this is not text in UTF-8"),
        (
            "LOC_val_solution.csv",
            "ImageId,PredictionString\nval_0,n01440764 1 2\n",
            "line 2: it must be an ImageId",
        ),
        ("LOC_val_solution.csv", "val_0\n", "line 1: it must be an ImageId, a comma"),
        ("ILSVRC2012_validation_ground_truth.txt", "n01440764\n", "does not say the class of this image"),
    ],
)
def test_a_wrong_file_of_labels_is_one_line(file: str, content: str, message: str, tiny: Path) -> None:
    (tiny / "val" / "val_annotations.txt").unlink()
    (tiny / file).write_text(content, encoding="latin-1")
    with pytest.raises(DataError, match=message) as error:
        read(tiny)
    assert "\n" not in str(error.value)


def test_a_line_of_the_devkit_beyond_its_table_is_named(imagenet: tuple[Path, Path]) -> None:
    root, archive = imagenet
    devkit(archive, "1\n2000\n3\n1\n")
    with pytest.raises(
        DataError, match=r'ground_truth\.txt, line 2: there is no class "2000" in .*meta\.mat'
    ):
        read(root)


def test_a_flat_test_folder_without_labels_is_refused(tiny: Path) -> None:
    (tiny / "val" / "val_annotations.txt").unlink()
    with pytest.raises(
        DataError, match="nothing says the classes of the images in test/ and val/: sort them"
    ):
        read(tiny)
