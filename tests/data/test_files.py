"""Data sets from a user's files: folders, CSV, npz; what is read, and what is told when one is wrong."""

import io
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from clprompt.backbones.vit import FrozenViT
from clprompt.data import DataBundle, datasets_for
from clprompt.data.sets.csv import csv_file
from clprompt.data.sets.imagefolder import imagefolder
from clprompt.errors import ClpromptError, DataError, DataWarning


def image(shade: int, mode: str = "RGB") -> Image.Image:
    return Image.new("L", (10, 8), shade).convert(mode)


def jpeg(shade: int) -> bytes:
    file = io.BytesIO()
    image(shade).save(file, "JPEG", quality=100)
    return file.getvalue()


def write(path: Path, shade: int = 0, mode: str = "RGB") -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    image(shade, mode).save(path)
    return str(path)


def shades(part: object) -> list[int]:
    """The grey value of each image: what tells one from the other."""
    found = []
    for index in range(len(part)):
        loaded = part.load(index)
        loaded = loaded.permute(1, 2, 0).numpy() if isinstance(loaded, torch.Tensor) else np.asarray(loaded)
        found.append(int(loaded.reshape(-1)[0]))
    return found


def labelled(part: object, bundle: DataBundle) -> list[tuple[int, str]]:
    return [(shade, bundle.class_names[c]) for shade, c in zip(shades(part), part.targets, strict=True)]


def line(told: pytest.ExceptionInfo[BaseException]) -> str:
    text = str(told.value)
    assert "\n" not in text
    return text


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One folder per class: cat 6, dog 4, zebra 10 images; the shade is a running number."""
    number = 0
    for label, count in (("zebra", 10), ("cat", 6), ("dog", 4)):
        for index in range(count):
            write(tmp_path / label / f"{index}.png", number)
            number += 1
    return tmp_path


# ------------------------------------------------------------------------------------------------ imagefolder


def test_a_folder_of_class_folders_is_split_within_each_class(folder: Path) -> None:
    bundle = imagefolder(path=str(folder), test_fraction=0.3)
    assert bundle.class_names == ["cat", "dog", "zebra"]
    assert np.bincount(bundle.test.targets).tolist() == [2, 1, 3]
    assert sorted(shades(bundle.train) + shades(bundle.test)) == list(range(20))
    for shade, name in labelled(bundle.train, bundle) + labelled(bundle.test, bundle):
        assert name == ("zebra" if shade < 10 else "cat" if shade < 16 else "dog")


def test_the_split_is_decided_by_its_seed_alone(folder: Path) -> None:
    drawn = []
    for seed in (0, 0, 1):
        drawn.append(shades(imagefolder(path=str(folder), split_seed=seed).test))
    assert drawn[0] == drawn[1]
    assert drawn[0] != drawn[2]


@pytest.mark.parametrize("test", ["test", "val"])
def test_train_and_test_folders_are_the_split(test: str, tmp_path: Path) -> None:
    for part, shade in (("train", 0), (test, 100)):
        for label in ("b", "a"):
            for index in range(3):
                write(tmp_path / part / label / "deeper" / f"{index}.JPG", shade)
    bundle = imagefolder(path=str(tmp_path))
    assert bundle.class_names == ["a", "b"]
    assert shades(bundle.train) == [0] * 6
    assert shades(bundle.test) == [100] * 6
    assert bundle.test.targets.tolist() == [0, 0, 0, 1, 1, 1]


def test_train_and_val_may_also_be_classes(tmp_path: Path) -> None:
    for label in ("train", "bus"):
        for index in range(3):
            write(tmp_path / label / f"{index}.png")
    assert imagefolder(path=str(tmp_path)).class_names == ["bus", "train"]


def test_other_files_and_hidden_folders_are_left_alone(folder: Path) -> None:
    (folder / "README.txt").write_text("read me")
    (folder / "cat" / "Thumbs.db").write_bytes(b"x")
    (folder / "cat" / "._0.png").write_bytes(b"x")
    write(folder / ".cache" / "a.png")
    bundle = imagefolder(path=str(folder))
    assert bundle.class_names == ["cat", "dog", "zebra"]
    assert len(bundle.train) + len(bundle.test) == 20


@pytest.mark.parametrize(
    ("classes", "names"),
    [
        (["zebra", "cat"], ["cat", "zebra"]),
        ("dog,zebra", ["dog", "zebra"]),
        ("1-2", ["dog", "zebra"]),
        ("0,2", ["cat", "zebra"]),
        ([0, 1], ["cat", "dog"]),
    ],
)
def test_some_classes_can_be_chosen(classes: object, names: list[str], folder: Path) -> None:
    bundle = imagefolder(path=str(folder), classes=classes)
    assert bundle.class_names == names
    assert sorted(set(bundle.train.targets)) == list(range(len(names)))
    for shade, name in labelled(bundle.train, bundle):
        assert name == ("zebra" if shade < 10 else "cat" if shade < 16 else "dog")


def test_a_limit_per_class_keeps_some_of_what_a_higher_one_keeps(folder: Path) -> None:
    kept = [
        set(shades(imagefolder(path=str(folder), train_per_class=count).train)) for count in (1, 2, 3, 5, 100)
    ]
    assert [len(shown) for shown in kept] == [3, 6, 9, 13, 16]
    assert all(fewer < more for fewer, more in itertools.pairwise(kept))
    bundle = imagefolder(path=str(folder), test_per_class=1, train_per_class=2, classes="0,2")
    assert np.bincount(bundle.test.targets).tolist() == [1, 1]


@pytest.mark.parametrize("mode", ["L", "1", "CMYK", "RGBA", "P", "I;16"])
def test_images_of_every_kind_train_together(mode: str, folder: Path) -> None:
    odd = folder / "cat" / ("odd.tif" if mode == "CMYK" else "odd.png")
    if mode == "I;16":
        Image.fromarray(np.full((8, 10), 65535, np.uint16)).save(odd)
    else:
        image(255, mode).save(odd)
    bundle = imagefolder(path=str(folder))
    vit = FrozenViT("vit_tiny_patch16_224", img_size=16, patch_size=8, embed_dim=16, num_heads=2, depth=1)
    train, _, test = datasets_for(bundle, vit)
    found = [item[0] for dataset in (train, test) for item in dataset]
    assert {tuple(tensor.shape) for tensor in found} == {(3, 16, 16)}
    brightest = max(found, key=lambda tensor: tensor.mean())
    assert torch.allclose(
        brightest[:, 0, 0], (1 - torch.tensor(vit.inputs.mean)) / torch.tensor(vit.inputs.std)
    )


def test_labels_are_read_without_decoding_an_image(folder: Path) -> None:
    for path in folder.glob("*/*.png"):
        path.write_bytes(b"\x89PNG\r\n\x1a\n not an image IEND")
    assert len(imagefolder(path=str(folder)).train) == 16


def test_an_unreadable_image_is_named_when_it_is_loaded(folder: Path) -> None:
    (folder / "dog" / "1.png").write_bytes(b"\x89PNG\r\n\x1a\n not an image IEND")
    bundle = imagefolder(path=str(folder))
    with pytest.raises(DataError, match=r"dog/1\.png: .* set data\.on_bad_image=skip") as told:
        shades(bundle.train), shades(bundle.test)
    line(told)


def test_an_empty_file_is_named_before_anything_is_trained(folder: Path) -> None:
    (folder / "dog" / "1.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"dog/1\.png: the image cannot be read: it is empty; .*=skip"):
        imagefolder(path=str(folder))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_an_image_that_is_cut_or_none_is_named_before_anything_is_trained(folder: Path, kind: str) -> None:
    data = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(data, kind)
    path = folder / "dog" / "1.png"
    path.write_bytes(data.getvalue() + b"what a camera adds" * (kind != "WEBP"))
    assert len(imagefolder(path=str(folder)).train) == 16
    path.write_bytes(data.getvalue()[:-200] if kind != "WEBP" else data.getvalue()[1:])
    with pytest.raises(DataError, match=r"dog/1\.png: the image cannot be read: .*=skip"):
        imagefolder(path=str(folder))


def test_skip_leaves_unreadable_images_out_and_says_how_many(folder: Path) -> None:
    (folder / "dog" / "1.png").write_bytes(b"not an image")
    whole = (folder / "zebra" / "3.png").read_bytes()
    (folder / "zebra" / "3.png").write_bytes(whole[:45])
    (folder / "zebra" / "4.png").write_bytes(b"")
    with pytest.warns(DataWarning, match=r"3 of 20 images are left out; the first: .*dog/1\.png: .*") as told:
        bundle = imagefolder(path=str(folder), on_bad_image="skip")
    assert "on_bad_image" not in str(told[0].message)
    assert sorted(shades(bundle.train) + shades(bundle.test)) == sorted({*range(20)} - {3, 4, 17})


def test_skipping_may_leave_too_little(folder: Path) -> None:
    for index in range(3):
        (folder / "dog" / f"{index}.png").write_bytes(b"")
    with pytest.warns(DataWarning), pytest.raises(DataError, match='class "dog" has one image'):
        imagefolder(path=str(folder), on_bad_image="skip")


def test_a_class_of_one_image_is_refused_where_it_has_to_be_split(folder: Path) -> None:
    write(folder / "rare" / "0.png")
    with pytest.raises(
        DataError, match='class "rare" has one image; with no test set given, a class needs two'
    ):
        imagefolder(path=str(folder))


def test_what_a_given_split_lacks_is_told(tmp_path: Path) -> None:
    for index in range(3):
        write(tmp_path / "train" / "a" / f"{index}.png")
        write(tmp_path / "test" / "a" / f"{index}.png")
    write(tmp_path / "train" / "b" / "0.png")
    with pytest.warns(DataWarning) as told:
        bundle = imagefolder(path=str(tmp_path))
    assert [str(warning.message).removeprefix(f"imagefolder {tmp_path}: ") for warning in told] == [
        'class "b" has no test image; no accuracy can be told for it',
        'class "b" has one training image only',
    ]
    assert bundle.class_names == ["a", "b"]
    write(tmp_path / "test" / "c" / "0.png")
    with pytest.raises(DataError, match='class "c" has test images, but no training image'):
        imagefolder(path=str(tmp_path))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        ([], "there is no class folder"),
        (["0.png"], "there is no class folder"),
        (["a/0.png", "a/1.png", "b/notes.txt"], "b: the class folder holds no image"),
        (["train/a/0.png"], "there is train/ but neither test/ nor val/"),
        (["val/a/0.png"], "there is a folder val/ but no train/"),
    ],
)
def test_a_folder_of_another_layout_is_refused(make: list[str], message: str, tmp_path: Path) -> None:
    for name in make:
        write(tmp_path / name) if name.endswith("png") else (tmp_path / name).mkdir(parents=True)
    with pytest.raises(DataError, match=message) as told:
        imagefolder(path=str(tmp_path))
    assert str(tmp_path) in line(told)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"path": "nowhere"}, r"data\.path: there is no folder nowhere; give the folder"),
        ({"test_fraction": 0.0}, r"test_fraction must be above 0 and below 1, got 0\.0"),
        ({"train_per_class": 0}, "train_per_class must be at least 1, got 0"),
        ({"test_per_class": -1}, "test_per_class must be at least 1, got -1"),
        ({"classes": "0-3"}, r"data\.classes: 0-3 is not within the 3 classes 0-2"),
        ({"classes": [3]}, r"data\.classes: 3 is not within the 3 classes"),
        ({"classes": "2-1"}, r"data\.classes: 2-1 is not within"),
        ({"classes": ["cats"]}, r'data\.classes: there is no class "cats"; did you mean "cat"\?'),
        ({"classes": []}, r"data\.classes must name a class"),
        ({"classes": ""}, r'data\.classes: there is no class ""'),
        ({"on_bad_image": "ignore"}, 'on_bad_image must be one of "error", "skip", got "ignore"'),
        ({"max_pixels": 0}, "max_pixels must be at least 1, got 0"),
    ],
)
def test_a_wrong_argument_is_one_line(arguments: dict, message: str, folder: Path) -> None:
    with pytest.raises(ClpromptError, match=message) as told:
        imagefolder(**{"path": str(folder), "on_bad_image": "error", **arguments})
    line(told)


# ------------------------------------------------------------------------------------------------ csv


def table(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    return str(path)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for shade in range(8):
        write(tmp_path / "images" / f"{shade}.png", shade)
    return tmp_path


def test_a_split_column_is_the_split(images: Path) -> None:
    words = ["train", "Train", "test", "TEST", "training", "train", "test", "testing"]
    rows = "".join(f"images/{i}.png,{'ab'[i % 2]},{word},x\n" for i, word in enumerate(words))
    bundle = csv_file(path=table(images / "all.csv", "\ufeffpath, label, split, note\n" + rows))
    assert labelled(bundle.train, bundle) == [(0, "a"), (1, "b"), (4, "a"), (5, "b")]
    assert labelled(bundle.test, bundle) == [(2, "a"), (3, "b"), (6, "a"), (7, "b")]


def test_validation_rows_are_the_test_set_unless_there_is_another(images: Path) -> None:
    words = ["train"] * 4 + ["val"] * 4
    rows = [f"images/{i}.png,{'ab'[i % 2]},{word}\n" for i, word in enumerate(words)]
    path = table(images / "all.csv", "path,label,split\n" + "".join(rows))
    assert shades(csv_file(path=path).test) == [4, 5, 6, 7]
    rows[4:6] = [row.replace("val", "test") for row in rows[4:6]]
    table(images / "all.csv", "path,label,split\n" + "".join(rows))
    with pytest.warns(DataWarning, match="2 validation images are left out, as there are test images"):
        assert shades(csv_file(path=path).test) == [4, 5]


def test_a_second_file_is_the_test_set_and_paths_start_at_the_file_or_the_root(images: Path) -> None:
    train = table(
        images / "train.csv", "label,path\n" + "".join(f"{i % 2},images/{i}.png\n" for i in range(6))
    )
    (images / "lists").mkdir()
    test = table(images / "lists" / "test.csv", f"path,label\n../images/6.png,0\n{images}/images/7.png,1\n")
    bundle = csv_file(path=train, test_path=test)
    assert labelled(bundle.train, bundle) == [(i, str(i % 2)) for i in range(6)]
    assert labelled(bundle.test, bundle) == [(6, "0"), (7, "1")]
    table(images / "lists" / "test.csv", "path,label\nimages/6.png,0\nimages/7.png,1\n")
    assert shades(csv_file(path=train, test_path=test, root=str(images)).test) == [6, 7]


def test_without_a_split_test_images_are_drawn(images: Path) -> None:
    path = table(images / "all.csv", "path,label\n" + "".join(f"images/{i}.png,{i % 2}\n" for i in range(8)))
    bundle = csv_file(path=path, test_fraction=0.25)
    assert np.bincount(bundle.test.targets).tolist() == [1, 1]
    assert sorted(shades(bundle.train) + shades(bundle.test)) == list(range(8))


@pytest.mark.filterwarnings("ignore:.*one training image only")
def test_labels_that_are_numbers_are_sorted_as_numbers(images: Path) -> None:
    labels = [10, 2, 2, 10, 10, 2, -1, -1]
    rows = "".join(f"images/{i}.png,{label}\n" for i, label in enumerate(labels))
    bundle = csv_file(path=table(images / "all.csv", "path,label\n" + rows), test_fraction=0.5)
    assert bundle.class_names == ["-1", "2", "10"]
    assert all(name == str(labels[shade]) for shade, name in labelled(bundle.train, bundle))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", 'there is no column "path" in the first line, which holds: nothing'),
        ("file,label\na,b\n", 'there is no column "path" in the first line, which holds: file, label'),
        ("path,class\na,b\n", 'there is no column "label"'),
        ("path,label\n", "there is no image in it"),
        ("path,label\nimages/0.png,a\nimages/1.png,\n", "line 3: the label is missing"),
        ("path,label\nimages/0.png,a\nimages/1.png\n", "line 3: the label is missing"),
        ("path,label\n,a\n", "line 2: the path is missing"),
        ("path,label\nimages/99.png,a\n", "99.png: the image cannot be read: there is no such file"),
        ("path,label,split\nimages/0.png,a,tset\n", 'split "tset" of image 0 must be train, test or val'),
        ("path,label,split\nimages/0.png,a,\n", 'split "" of image 0 must be'),
        ("path,label,split\nimages/0.png,a,train\n", "there is no test image"),
        ("path,label,split\nimages/0.png,a,test\n", "there is no training image"),
        ("path,label\nimages/0.png,\u00e9\n", 'class "\u00e9" has one image'),
    ],
)
def test_a_wrong_csv_is_one_line(text: str, message: str, images: Path) -> None:
    with pytest.raises(DataError, match=message) as told:
        csv_file(path=table(images / "all.csv", text))
    line(told)


def test_missing_binary_or_doubly_split_csv_files_are_refused(images: Path) -> None:
    with pytest.raises(DataError, match=r"data\.path: there is no file nowhere\.csv; it must be a CSV file"):
        csv_file(path="nowhere.csv")
    path = table(images / "all.csv", "path,label,split\nimages/0.png,a,train\n")
    with pytest.raises(DataError, match=r"data\.test_path: there is no file"):
        csv_file(path=table(images / "b.csv", "path,label\nimages/0.png,a\n"), test_path="nowhere.csv")
    with pytest.raises(DataError, match=r"has a column split: drop data\.test_path, or the column"):
        csv_file(path=path, test_path=path)
    (images / "all.csv").write_bytes(b"path,label\n\xff\xfe\x00,b\n")
    with pytest.raises(DataError, match="this is not a CSV file in UTF-8"):
        csv_file(path=path)


def test_missing_files_of_a_csv_are_skipped_when_asked(images: Path) -> None:
    rows = "".join(f"images/{i}.png,{i % 2}\n" for i in range(9))
    path = table(images / "all.csv", "path,label\n" + rows)
    with pytest.warns(DataWarning, match="1 of 9 images are left out; the first: .*8.png"):
        bundle = csv_file(path=path, on_bad_image="skip")
    assert len(bundle.train) + len(bundle.test) == 8
