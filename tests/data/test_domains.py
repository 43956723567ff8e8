"""Domains: where each image comes from, as the forms say it that images may have."""

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clprompt.data import DataBundle, ImageDataset
from clprompt.data.sets.csv import csv_file, multi_label_csv
from clprompt.data.sets.imagefolder import imagefolder
from clprompt.data.sets.npz import npz
from clprompt.errors import DataError, DataWarning

#: (class, domain, whether it is a test image) of each image; its number is its shade
ROWS = [("cat", "photo", 0), ("dog", "photo", 0), ("cat", "sketch", 0), ("dog", "Ölbild", 0)] * 2 + [
    ("cat", "photo", 1),
    ("dog", "sketch", 1),
]
pytestmark = pytest.mark.filterwarnings("ignore:.*one training image only", "ignore:.*no test image")


def picture(path: Path, shade: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (4, 4), 20 * shade).save(path)


def in_csv(folder: Path) -> DataBundle:
    lines = ["path,label,split,Domain"]
    for number, (label, domain, test) in enumerate(ROWS):
        picture(folder / f"{number}.png", number)
        lines.append(f"{number}.png,{label},{test},{domain}")
    (folder / "data.csv").write_text("\n".join(lines), encoding="utf-8")
    return csv_file(path=str(folder / "data.csv"))


def in_npz(folder: Path) -> DataBundle:
    labels, domains, split = (np.array(column) for column in zip(*ROWS, strict=True))
    images = np.tile(20 * np.arange(len(ROWS), dtype=np.uint8)[:, None, None], (1, 4, 4))
    np.savez(folder / "data.npz", images=images, labels=labels, split=split, domains=domains)
    return npz(path=str(folder / "data.npz"))


def in_folders(folder: Path) -> DataBundle:
    for number, (label, domain, test) in enumerate(ROWS):
        picture(folder / ("test" if test else "train") / domain / label / f"{number}.png", number)
    return imagefolder(path=str(folder), domain_folders=True)


every_form = pytest.mark.parametrize("form", [in_csv, in_npz, in_folders])


@every_form
def test_each_image_has_the_domain_that_its_form_says(
    form: Callable[[Path], DataBundle], tmp_path: Path
) -> None:
    bundle = form(tmp_path)
    assert bundle.domain_names == ["photo", "sketch", "Ölbild"]
    for part, which in ((bundle.train, 0), (bundle.test, 1)):
        assert part.domains is not None
        assert part.domains.dtype == np.int64
        found = [
            (
                int(np.asarray(part.load(i)).reshape(-1)[0]) // 20,
                bundle.class_names[part.targets[i]],
                bundle.domain_names[part.domains[i]],
            )
            for i in range(len(part))
        ]
        assert sorted(found) == [(n, *row[:2]) for n, row in enumerate(ROWS) if row[2] == which]


def test_a_domain_of_which_no_image_is_used_has_no_number(tmp_path: Path) -> None:
    in_csv(tmp_path)
    bundle = csv_file(path=str(tmp_path / "data.csv"), classes="cat")
    assert bundle.domain_names == ["photo", "sketch"]


def test_domains_change_no_image_and_no_draw(tmp_path: Path) -> None:
    in_csv(tmp_path)
    text = (tmp_path / "data.csv").read_text(encoding="utf-8").replace("split", "other")
    (tmp_path / "with.csv").write_text(text, encoding="utf-8")
    (tmp_path / "without.csv").write_text(text.replace("Domain", "another"), encoding="utf-8")
    bundles = [csv_file(path=str(tmp_path / name), train_per_class=2) for name in ("with.csv", "without.csv")]
    known = [bundle.train.fingerprint() for bundle in bundles]
    assert known[0].pop("domains")
    assert known[0] == known[1]
    assert bundles[1].domain_names is None


def test_a_line_without_domain_leaves_the_column_out_and_is_named(tmp_path: Path) -> None:
    in_csv(tmp_path)
    file = tmp_path / "data.csv"
    file.write_text(file.read_text(encoding="utf-8").replace("sketch", ""), encoding="utf-8")
    with pytest.warns(
        DataWarning, match="3 of 10 lines have no domain, the first: .*data.csv, line 4; the column"
    ):
        assert csv_file(path=str(file)).domain_names is None


def test_a_csv_file_of_label_sets_does_not_read_domains(tmp_path: Path) -> None:
    in_csv(tmp_path)
    assert multi_label_csv(path=str(tmp_path / "data.csv")).domain_names is None


def test_an_npz_file_needs_a_domain_for_each_image(tmp_path: Path) -> None:
    images, labels = np.zeros((4, 4, 4), np.uint8), np.arange(4) % 2
    np.savez(tmp_path / "data.npz", images=images, labels=labels, domains=labels[:3])
    with pytest.raises(
        DataError, match=r"domains must be one value for each of the 4 images, got shape \[3\]"
    ):
        npz(path=str(tmp_path / "data.npz"))


def test_domain_folders_without_a_split_have_test_images_drawn(tmp_path: Path) -> None:
    for number in range(20):
        picture(tmp_path / "ab"[number // 10] / "cd"[number % 2] / f"{number}.png", number % 12)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*come again.*|.*training images as well")
        bundle = imagefolder(path=str(tmp_path), domain_folders=True)
    assert (bundle.class_names, bundle.domain_names) == (["c", "d"], ["a", "b"])
    assert (len(bundle.train), len(bundle.test)) == (16, 4)


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        (["photo/1.png"], "photo: there is no class folder in it; data.domain_folders wants domain/class"),
        (
            ["photo/train/cat/1.png", "photo/test/cat/2.png"],
            "photo: it holds test/ and train/; put the domains",
        ),
        (["1.png"], "there is no domain folder in it"),
        (
            ["train/photo/cat/1.png", "val/2.png", "val/val_annotations.txt"],
            "val: nothing says the domain of its images",
        ),
    ],
)
def test_folders_that_are_not_of_domains_are_one_line(
    paths: Sequence[str], message: str, tmp_path: Path
) -> None:
    for number, path in enumerate(paths):
        if path.endswith(".txt"):
            (tmp_path / path).write_text("2.png\tcat\t0\t0\t0\t0\n")
        else:
            picture(tmp_path / path, number)
    with pytest.raises(DataError, match=message):
        imagefolder(path=str(tmp_path), domain_folders=True)


def test_a_data_set_for_training_knows_the_domains(tmp_path: Path) -> None:
    bundle = in_npz(tmp_path)
    data = ImageDataset(bundle.train, lambda image: image, random_transform=False)
    assert data.domains is bundle.train.domains
