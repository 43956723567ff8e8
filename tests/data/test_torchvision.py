"""torchvision's data sets by name: its own loading code reads small files in its own layouts."""

import csv
import hashlib
import json
import pickle
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
import torch
import torchvision
from PIL import Image

from clprompt.backbones.vit import FrozenViT
from clprompt.data import datasets_for
from clprompt.errors import ClpromptError, ConfigError, DataError, DataWarning
from clprompt.registry import datasets

Patch = pytest.MonkeyPatch


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: Patch) -> None:
    def refuse(*arguments: Any, **more: Any) -> None:
        raise OSError("there is no network in this test")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def image(path: Path, shade: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (9, 7), (shade,) * 3).save(path)


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def dumped(path: Path, value: Any) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(value))
    return md5(path)


# Each writes 2 classes with images of shades 0, 10, ... in training order and 100, 110, ... in test order,
# labelled 0, 1, 0, 1, ... Where torchvision checks checksums, it is told those of these files.


def cifar(root: Path, patch: Patch, kind: Any, folder: str, key: str, meta: str) -> None:
    for name, shade, lists in (("train", 0, "train_list"), ("test", 100, "test_list")):
        pixels = np.repeat((shade + 10 * np.arange(4, dtype=np.uint8))[:, None], 3072, 1)
        check = dumped(root / folder / name, {"data": pixels, key: [0, 1, 0, 1]})
        patch.setattr(kind, lists, [[name, check]])
    names = {"fine_label_names": ["apple", "bee"], "label_names": ["apple", "bee"]}
    patch.setattr(
        kind,
        "meta",
        kind.meta | {"filename": "meta", "md5": dumped(root / folder / "meta", names), "key": meta},
    )


def cifar10(root: Path, patch: Patch) -> None:
    kind = torchvision.datasets.CIFAR10
    cifar(root, patch, kind, "cifar-10-batches-py", "labels", "label_names")


def cifar100(root: Path, patch: Patch) -> None:
    kind = torchvision.datasets.CIFAR100
    cifar(root, patch, kind, "cifar-100-python", "fine_labels", "fine_label_names")


def svhn(root: Path, patch: Patch) -> None:
    checks = {}
    for part, shade in (("train", 0), ("test", 100)):
        path = root / f"{part}_32x32.mat"
        pixels = np.broadcast_to(shade + 10 * np.arange(4, dtype=np.uint8), (32, 32, 3, 4))
        scipy.io.savemat(path, {"X": pixels, "y": np.array([[10], [1], [10], [1]], np.uint8)})
        checks[part] = ["", path.name, md5(path)]
    patch.setattr(torchvision.datasets.SVHN, "split_list", checks)


def stl10(root: Path, patch: Patch) -> None:
    folder = root / "stl10_binary"
    folder.mkdir()
    for part, shade in (("train", 0), ("test", 100)):
        np.repeat(shade + 10 * np.arange(4, dtype=np.uint8), 3 * 96 * 96).tofile(folder / f"{part}_X.bin")
        np.array([1, 2, 1, 2], np.uint8).tofile(folder / f"{part}_y.bin")
        files = [[name, md5(folder / name)] for name in (f"{part}_X.bin", f"{part}_y.bin")]
        patch.setattr(torchvision.datasets.STL10, f"{part}_list", files)
    (folder / "class_names.txt").write_text("apple\nbee\n")


def flowers102(root: Path, patch: Patch) -> None:
    folder = root / "flowers-102"
    for number in range(8):
        image(folder / "jpg" / f"image_{number + 1:05d}.jpg", 10 * number if number < 4 else 60 + 10 * number)
    scipy.io.savemat(folder / "imagelabels.mat", {"labels": np.array([[1, 2] * 4], np.uint8)})
    ids = {"trnid": [[1, 2, 3, 4]], "tstid": [[5, 6, 7, 8]], "valid": [[1]]}
    scipy.io.savemat(folder / "setid.mat", {key: np.array(value) for key, value in ids.items()})
    kind = torchvision.datasets.Flowers102
    files = {
        "label": ("imagelabels.mat", md5(folder / "imagelabels.mat")),
        "setid": ("setid.mat", md5(folder / "setid.mat")),
    }
    patch.setattr(kind, "_file_dict", kind._file_dict | files)


def food101(root: Path, patch: Patch) -> None:
    folder = root / "food-101"
    (folder / "meta").mkdir(parents=True)
    for part, shade in (("train", 0), ("test", 100)):
        names = {name: [f"{name}/{part}{i}" for i in (c, c + 2)] for c, name in enumerate(("apple", "bee"))}
        (folder / "meta" / f"{part}.json").write_text(json.dumps(names))
        for i in range(4):
            image(folder / "images" / ("apple", "bee")[i % 2] / f"{part}{i}.jpg", shade + 10 * i)


def dtd(root: Path, patch: Patch) -> None:
    folder = root / "dtd" / "dtd"
    for part, shade in (("train", 0), ("test", 100)):
        names = [f"{('apple', 'bee')[i % 2]}/{part}{i}.jpg" for i in range(4)]
        (folder / "labels").mkdir(parents=True, exist_ok=True)
        (folder / "labels" / f"{part}1.txt").write_text("\n".join(names))
        for i, name in enumerate(names):
            image(folder / "images" / name, shade + 10 * i)


def oxford_pets(root: Path, patch: Patch) -> None:
    folder = root / "oxford-iiit-pet"
    (folder / "annotations").mkdir(parents=True)
    for part, shade in (("trainval", 0), ("test", 100)):
        names = [f"{('apple', 'bee')[i % 2]}_{part}{i}" for i in range(4)]
        lines = [f"{name} {1 + i % 2} 1 1\n" for i, name in enumerate(names)]
        (folder / "annotations" / f"{part}.txt").write_text("".join(lines))
        for i, name in enumerate(names):
            image(folder / "images" / f"{name}.jpg", shade + 10 * i)


def gtsrb(root: Path, patch: Patch) -> None:
    folder = root / "gtsrb"
    for i in range(4):
        image(folder / "GTSRB" / "Training" / f"{i % 2:05d}" / f"{i}.ppm", 10 * i)
        image(folder / "GTSRB" / "Final_Test" / "Images" / f"{i}.ppm", 100 + 10 * i)
    with open(folder / "GT-final_test.csv", "w", newline="") as file:
        csv.writer(file, delimiter=";").writerows(
            [["Filename", "ClassId"], *[[f"{i}.ppm", i % 2] for i in range(4)]]
        )


def fgvc_aircraft(root: Path, patch: Patch) -> None:
    folder = root / "fgvc-aircraft-2013b" / "data"
    for part, shade in (("trainval", 0), ("test", 100)):
        lines = [f"{part}{i} {('apple', 'bee')[i % 2]}\n" for i in range(4)]
        for i in range(4):
            image(folder / "images" / f"{part}{i}.jpg", shade + 10 * i)
        (folder / f"images_variant_{part}.txt").write_text("".join(lines))
    (folder / "variants.txt").write_text("apple\nbee\n")


def idx(path: Path, array: np.ndarray, kind: int = 8) -> None:
    """The format of MNIST: kind and shape, then the bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    header = [kind << 8 | array.ndim, *array.shape]
    path.write_bytes(np.array(header, ">i4").tobytes() + array.tobytes())


def mnist_files(folder: Path, train: str, test: str, first: int = 0) -> None:
    for part, shade in ((train, 0), (test, 100)):
        shades = shade + 10 * np.arange(4, dtype=np.uint8)
        idx(folder / f"{part}-images-idx3-ubyte", np.broadcast_to(shades[:, None, None], (4, 28, 28)))
        idx(folder / f"{part}-labels-idx1-ubyte", np.array([0, 1, 0, 1], np.uint8) + first)


def mnist(root: Path, patch: Patch) -> None:
    mnist_files(root / "MNIST" / "raw", "train", "t10k")


def fashion_mnist(root: Path, patch: Patch) -> None:
    mnist_files(root / "FashionMNIST" / "raw", "train", "t10k")


def kmnist(root: Path, patch: Patch) -> None:
    mnist_files(root / "KMNIST" / "raw", "train", "t10k")


def emnist(root: Path, patch: Patch) -> None:
    folder = root / "EMNIST" / "raw"
    mnist_files(folder, "emnist-balanced-train", "emnist-balanced-test")
    mnist_files(folder, "emnist-letters-train", "emnist-letters-test", first=1)


def qmnist(root: Path, patch: Patch) -> None:
    folder = root / "QMNIST" / "raw"
    mnist_files(folder, "qmnist-train", "qmnist-test")
    for part in ("train", "test"):
        facts = np.zeros((4, 8), ">i4")
        facts[:, 0] = [0, 1, 0, 1]
        facts[:, 1:] = 7  # who wrote it, and more
        idx(folder / f"qmnist-{part}-labels-idx2-int", facts, kind=12)


def caltech101(root: Path, patch: Patch) -> None:
    folder = root / "caltech101" / "101_ObjectCategories"
    for i in range(10):
        image(folder / ("apple", "bee")[i % 2] / f"image_{1 + i // 2:04d}.jpg", 10 * i)
    image(folder / "BACKGROUND_Google" / "image_0001.jpg", 255)


def sun397(root: Path, patch: Patch) -> None:
    folder = root / "SUN397"
    for i in range(10):
        image(folder / ("a/apple", "b/bee/outdoor")[i % 2] / f"sun_{i}.jpg", 10 * i)
    (folder / "ClassName.txt").write_text("/a/apple\n/b/bee/outdoor\n")


def eurosat(root: Path, patch: Patch) -> None:
    for i in range(10):
        image(root / "eurosat" / "2750" / ("apple", "bee")[i % 2] / f"{i}.jpg", 10 * i)


MNISTS = [mnist, fashion_mnist, kmnist, emnist, qmnist]
LAYOUTS = [
    *(cifar10, cifar100, svhn, stl10, flowers102, food101, dtd, oxford_pets, gtsrb, fgvc_aircraft),
    *MNISTS,
]
#: without a split: 10 images of the shades 0, 10, ..., labelled 0, 1, 0, 1, ...
UNSPLIT = [eurosat, caltech101, sun397]
ALL = [layout.__name__ for layout in [*LAYOUTS, *UNSPLIT]]
NAMES = {
    mnist: ["0 - zero", "1 - one"],
    fashion_mnist: ["T-shirt/top", "Trouser"],
    kmnist: ["o", "ki"],
    emnist: ["0", "1"],
    qmnist: ["0 - zero", "1 - one"],
    svhn: ["0", "1"],
    gtsrb: ["0", "1"],
    flowers102: ["pink primrose", "hard-leaved pocket orchid"],
    oxford_pets: ["Apple", "Bee"],
    sun397: ["apple", "bee/outdoor"],
}


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
def test_images_labels_and_names_are_torchvisions(
    layout: Callable, tmp_path: Path, monkeypatch: Patch
) -> None:
    layout(tmp_path, monkeypatch)
    bundle = datasets.get(layout.__name__).target(path=str(tmp_path))
    assert bundle.class_names == NAMES.get(layout, ["apple", "bee"])
    for part, shade in ((bundle.train, 0), (bundle.test, 100)):
        found = [
            (round(int(np.asarray(part.load(i)).flat[0]), -1), int(part.targets[i])) for i in range(len(part))
        ]
        assert sorted(found) == [(shade + 10 * i, i % 2) for i in range(4)]
    vit = FrozenViT("vit_tiny_patch16_224", img_size=16, patch_size=8, embed_dim=16, num_heads=2, depth=1)
    for dataset in datasets_for(bundle, vit):
        assert torch.stack([dataset[i][0] for i in range(4)]).shape == (4, 3, 16, 16)


@pytest.mark.parametrize(
    ("layout", "std"),
    [
        (cifar10, (0.2470, 0.2435, 0.2616)),
        (cifar100, (0.2675, 0.2565, 0.2761)),
        (svhn, (0.1980, 0.2010, 0.1970)),
        (mnist, (0.3081,)),
        (fashion_mnist, (0.3530,)),
        (dtd, (0.229, 0.224, 0.225)),
        (gtsrb, None),
    ],
)
def test_the_deviation_of_the_pixels_is_that_of_released_codes_or_none(
    layout: Callable, std: tuple[float, ...] | None, tmp_path: Path, monkeypatch: Patch
) -> None:
    layout(tmp_path, monkeypatch)
    published = datasets.get(layout.__name__).target(path=str(tmp_path)).normalisation
    assert (published and published.std) == std


@pytest.mark.parametrize("layout", [*LAYOUTS, *UNSPLIT], ids=lambda layout: layout.__name__)
def test_images_are_known_by_their_contents_wherever_they_lie(
    layout: Callable, tmp_path: Path, monkeypatch: Patch
) -> None:
    (tmp_path / "here").mkdir()
    layout(tmp_path / "here", monkeypatch)
    load = datasets.get(layout.__name__).target
    known = load(path=str(tmp_path / "here")).fingerprints
    (tmp_path / "here").rename(tmp_path / "there")
    assert "contents" in known["training images"]
    assert load(path=str(tmp_path / "there")).fingerprints == known


@pytest.mark.parametrize("layout", [cifar100, dtd], ids=lambda layout: layout.__name__)
@pytest.mark.filterwarnings("ignore:.*one training image only")
def test_classes_and_limits_select(layout: Callable, tmp_path: Path, monkeypatch: Patch) -> None:
    layout(tmp_path, monkeypatch)
    load = datasets.get(layout.__name__).target
    bundle = load(path=str(tmp_path), classes=["bee"], test_per_class=1)
    assert bundle.class_names == ["bee"]
    assert (len(bundle.train), len(bundle.test)) == (2, 1)
    assert round(int(np.asarray(bundle.train.load(0))[0, 0, 0]), -1) == 10
    with pytest.raises(ConfigError, match=r"data\.classes: 0-99 is not within the 2 classes 0-1"):
        load(path=str(tmp_path), classes="0-99")


@pytest.mark.parametrize("layout", UNSPLIT, ids=lambda layout: layout.__name__)
def test_a_set_without_a_split_gets_one(layout: Callable, tmp_path: Path, monkeypatch: Patch) -> None:
    layout(tmp_path, monkeypatch)
    bundle = datasets.get(layout.__name__).target(path=str(tmp_path), test_fraction=0.4)
    assert bundle.class_names == NAMES.get(layout, ["apple", "bee"])
    assert np.bincount(bundle.test.targets).tolist() == [2, 2]
    found = [
        (round(int(np.asarray(part.load(i)).flat[0]), -1), int(part.targets[i]))
        for part in (bundle.train, bundle.test)
        for i in range(len(part))
    ]
    assert sorted(found) == [(10 * i, i % 2) for i in range(10)]


@pytest.mark.parametrize(
    "layout",
    [each for each in [*LAYOUTS, *UNSPLIT] if each is not svhn],  # its files lie in no folder of their own
    ids=lambda layout: layout.__name__,
)
def test_the_path_may_be_torchvisions_own_folder(
    layout: Callable, tmp_path: Path, monkeypatch: Patch
) -> None:
    layout(tmp_path, monkeypatch)
    load = datasets.get(layout.__name__).target
    (own,) = tmp_path.iterdir()
    assert load(path=str(own)).fingerprints == load(path=str(tmp_path)).fingerprints


@pytest.mark.parametrize("layout", [*LAYOUTS, *UNSPLIT], ids=lambda layout: layout.__name__)
def test_a_set_that_lies_a_level_deeper_is_one_line_that_says_where(
    layout: Callable, tmp_path: Path, monkeypatch: Patch
) -> None:
    (tmp_path / "inner").mkdir()
    layout(tmp_path / "inner", monkeypatch)
    line = f"^data set {layout.__name__}: it lies one level deeper, in {tmp_path}/inner; give data.path="
    with pytest.raises(DataError, match=line):
        datasets.get(layout.__name__).target(path=str(tmp_path))


def test_an_archive_that_was_unpacked_into_its_own_folder_is_one_line(
    tmp_path: Path, monkeypatch: Patch
) -> None:
    (tmp_path / "SUN397").mkdir()
    sun397(tmp_path / "SUN397", monkeypatch)
    load = datasets.get("sun397").target
    with pytest.raises(DataError, match=f"one level deeper, in {tmp_path}/SUN397; give data.path="):
        load(path=str(tmp_path))
    assert len(load(path=str(tmp_path / "SUN397")).train) == 8


@pytest.mark.parametrize("place", ["SUN397", ".", "Partitions", "SUN397/Partitions"])
def test_a_partition_of_sun397_is_its_split(place: str, tmp_path: Path, monkeypatch: Patch) -> None:
    sun397(tmp_path, monkeypatch)
    (tmp_path / place).mkdir(exist_ok=True)
    for part, numbers in (("Training", [0, 2, 1, 3]), ("Testing", [4, 5])):
        lines = [f"/{('a/apple', 'b/bee/outdoor')[i % 2]}/sun_{i}.jpg\n" for i in numbers]
        (tmp_path / place / f"{part}_02.txt").write_text("".join(lines))
    load = datasets.get("sun397").target
    bundle = load(path=str(tmp_path), partition=2)
    shades = [
        [round(int(np.asarray(p.load(i)).flat[0]), -1) for i in range(len(p))]
        for p in (bundle.train, bundle.test)
    ]
    assert shades == [[0, 20, 10, 30], [40, 50]]
    assert bundle.train.targets.tolist() == [0, 0, 1, 1]
    with pytest.raises(
        DataError, match=r"there is no Training_01\.txt in .*/SUN397 or beside it; download Partit"
    ):
        load(path=str(tmp_path), partition=1)
    with open(tmp_path / place / "Testing_02.txt", "a") as file:
        file.write("/a/apple/sun_9.jpg\n")
    with pytest.raises(
        DataError, match=r"Testing_02\.txt, line 3: there is no image /a/apple/sun_9\.jpg in "
    ):
        load(path=str(tmp_path), partition=2)


def test_the_order_of_sun397_is_not_the_file_systems(tmp_path: Path, monkeypatch: Patch) -> None:
    sun397(tmp_path, monkeypatch)
    load = datasets.get("sun397").target
    known = load(path=str(tmp_path)).fingerprints
    listing = Path.rglob
    monkeypatch.setattr(Path, "rglob", lambda self, pattern: reversed(list(listing(self, pattern))))
    assert load(path=str(tmp_path)).fingerprints == known


def test_a_subset_of_emnist_has_names_of_its_own(tmp_path: Path, monkeypatch: Patch) -> None:
    emnist(tmp_path, monkeypatch)
    bundle = datasets.get("emnist").target(path=str(tmp_path), subset="letters")
    assert (bundle.class_names, bundle.train.targets.tolist()) == (["a", "b"], [0, 1, 0, 1])
    with pytest.raises(DataError, match=r"data set emnist: .*EMNIST is incomplete or damaged"):
        datasets.get("emnist").target(path=str(tmp_path), subset="digits")


# -------------------------------------------------------------------------------------- five of them in a row

FIVE = {"cifar10": cifar10, "mnist": mnist, "svhn": svhn, "fashion_mnist": fashion_mnist}


@pytest.fixture
def five(tmp_path: Path, monkeypatch: Patch) -> Path:
    """The five of 5-datasets, with two classes each; of notMNIST an image that cannot be read."""
    for layout in FIVE.values():
        layout(tmp_path, monkeypatch)
    for part, shade in (("Train", 0), ("Test", 100)):
        for i in range(4):
            image(tmp_path / "notMNIST" / part / "AB"[i % 2] / f"{i}.png", shade + 10 * i)
    (tmp_path / "notMNIST" / "Train" / "A" / "broken.png").write_bytes(b"junk")
    return tmp_path


@pytest.mark.filterwarnings("ignore:not_mnist. 1 of 9 images are left out")
@pytest.mark.parametrize("order", [None, ["svhn", "mnist", "cifar10", "not_mnist", "fashion_mnist"]])
def test_five_datasets_follow_one_another_with_their_own_splits(order: list | None, five: Path) -> None:
    bundle = datasets.get("five_datasets").target(
        path=str(five), **({} if order is None else {"order": order})
    )
    parts = order or ["cifar10", "mnist", "svhn", "not_mnist", "fashion_mnist"]
    names = {layout: NAMES.get(FIVE[layout], ["apple", "bee"]) for layout in FIVE} | {"not_mnist": ["A", "B"]}
    assert bundle.class_names == [f"{part} {name}" for part in parts for name in names[part]]
    for part, shade in ((bundle.train, 0), (bundle.test, 100)):
        found = [
            (round(int(np.asarray(part.load(i)).flat[0]), -1), int(part.targets[i])) for i in range(len(part))
        ]
        assert sorted(found) == sorted((shade + 10 * i, 2 * k + i % 2) for k in range(5) for i in range(4))
    assert "contents" in bundle.fingerprints["training images"]


def test_what_five_datasets_lack_is_one_line(five: Path) -> None:
    load = datasets.get("five_datasets").target
    with pytest.raises(DataError, match=r"broken\.png: the image cannot be read: .*data\.on_bad_image=skip"):
        [load(path=str(five), on_bad_image="error").train.load(i) for i in range(21)]
    (five / "notMNIST").rename(five / "other")
    with pytest.raises(
        DataError,
        match=r"there is no notMNIST/ with Train/ and Test/ in .*; download https://.*notMNIST\.zip",
    ):
        load(path=str(five))
    (five / "MNIST").rename(five / "more")
    with pytest.raises(DataError, match=r"data set mnist: .*/MNIST is not there; set data.download=true"):
        load(path=str(five))
    with pytest.raises(ConfigError, match=r"order must hold each of cifar10, .* once, got mnist, mnist"):
        load(path=str(five), order=["mnist", "mnist"])


@pytest.mark.parametrize("name", ALL)
def test_a_missing_folder_is_one_line_that_says_how_to_get_the_data(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError) as told:
        datasets.get(name).target(path=str(tmp_path / "data"))
    text = str(told.value)
    assert text.startswith(f"data set {name}: {tmp_path}/data/")
    assert "is not there; set data.download=true to get it, or data.path to the folder" in text
    assert "\n" not in text
    assert not (tmp_path / "data").exists()


def test_files_of_another_checksum_are_called_damaged(tmp_path: Path) -> None:
    dumped(tmp_path / "cifar-100-python" / "train", {})
    with pytest.raises(
        DataError, match=r"cifar-100-python is incomplete or damaged; set data\.download=true"
    ):
        datasets.get("cifar100").target(path=str(tmp_path))


def test_a_layout_that_breaks_off_is_one_line(tmp_path: Path, monkeypatch: Patch) -> None:
    food101(tmp_path, monkeypatch)
    (tmp_path / "food-101" / "meta" / "test.json").write_text("{")
    with pytest.raises(DataError, match=r"data set food101 in .*food-101 cannot be read: Expecting property"):
        datasets.get("food101").target(path=str(tmp_path))
    (tmp_path / "food-101" / "meta" / "test.json").unlink()
    with pytest.raises(DataError, match="food-101 is incomplete or damaged"):
        datasets.get("food101").target(path=str(tmp_path))


def test_a_download_that_fails_is_one_line(tmp_path: Path) -> None:
    for name in ("cifar100", "dtd", "eurosat"):
        with pytest.raises(
            ClpromptError, match=f"data set {name} could not be downloaded to .*no network"
        ) as told:
            datasets.get(name).target(path=str(tmp_path), download=True)
        assert "\n" not in str(told.value)


def test_what_is_there_is_not_downloaded_again(tmp_path: Path, monkeypatch: Patch) -> None:
    for layout in (dtd, sun397, caltech101):
        layout(tmp_path, monkeypatch)
        load = datasets.get(layout.__name__).target
        (own,) = tmp_path.iterdir()
        for path in (tmp_path, own):  # the network is closed
            assert len(load(path=str(path), download=True).test) > 0
        own.rename(tmp_path.parent / f"{tmp_path.name}-{own.name}")


def test_an_unreadable_image_is_one_line(tmp_path: Path, monkeypatch: Patch) -> None:
    dtd(tmp_path, monkeypatch)
    (tmp_path / "dtd" / "dtd" / "images" / "apple" / "train2.jpg").write_bytes(b"junk")
    bundle = datasets.get("dtd").target(path=str(tmp_path))
    with pytest.raises(DataError, match=r"dtd: image 2 cannot be read: .*train2\.jpg"):
        [bundle.train.load(i) for i in range(4)]


def test_a_class_that_the_test_set_lacks_is_told(tmp_path: Path, monkeypatch: Patch) -> None:
    oxford_pets(tmp_path, monkeypatch)
    listed = tmp_path / "oxford-iiit-pet" / "annotations" / "test.txt"
    listed.write_text("".join(line for line in listed.open() if line.startswith("apple")))
    with pytest.warns(DataWarning, match='oxford_pets: class "Bee" has no test image'):
        datasets.get("oxford_pets").target(path=str(tmp_path))
