"""Data sets that torchvision knows, by name. Nothing is downloaded unless ``download`` says so."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np

from clprompt import schema
from clprompt.data import normalisation
from clprompt.data.bundle import DataBundle, assemble, takes_views
from clprompt.data.fingerprint import Fingerprint, of_files, of_rows
from clprompt.data.folders import folders_in
from clprompt.data.images import Joined, Selected, UnreadableImage
from clprompt.data.lists import numbered_lines
from clprompt.data.normalisation import Normalisation
from clprompt.data.selection import Selection, takes_selection
from clprompt.errors import DataError
from clprompt.registry import datasets
from clprompt.schema import FilePath, at_least, at_most


@dataclass(frozen=True)
class _Set:
    """Where torchvision keeps a data set.

    Attributes:
        kind: the class in torchvision.datasets.
        folder: what it looks for below ``path``.
        train: the arguments that select the training images.
        test: the arguments that select the test images; None where there is only one part.
        summary: the first line of the documentation, of sets that have no arguments of their own.
        normalisation: published mean and deviation of the pixels.
    """

    kind: str
    folder: str
    train: dict[str, Any]
    test: dict[str, Any] | None
    summary: str = ""
    normalisation: Normalisation | None = None


_BOOL = ({"train": True}, {"train": False})
_SPLIT = ({"split": "train"}, {"split": "test"})
_SETS = {
    "cifar10": _Set(
        "CIFAR10",
        "cifar-10-batches-py",
        *_BOOL,
        "CIFAR-10: 10 classes, 50000 + 10000 images, 32x32.",
        normalisation.CIFAR10,
    ),
    "cifar100": _Set(
        "CIFAR100",
        "cifar-100-python",
        *_BOOL,
        "CIFAR-100: 100 classes, 50000 + 10000 images, 32x32.",
        normalisation.CIFAR100,
    ),
    "dtd": _Set(
        "DTD",
        "dtd",
        *_SPLIT,
        "Describable textures: 47 classes, 1880 + 1880 images (partition 1).",
        normalisation.IMAGENET,
    ),
    "flowers102": _Set(
        "Flowers102", "flowers-102", *_SPLIT, "Oxford flowers: 102 classes, 1020 + 6149 images."
    ),
    "food101": _Set("Food101", "food-101", *_SPLIT, "Food-101: 101 classes, 75750 + 25250 images."),
    "gtsrb": _Set("GTSRB", "gtsrb", *_SPLIT, "German traffic signs: 43 classes, 26640 + 12630 images."),
    "oxford_pets": _Set(
        "OxfordIIITPet",
        "oxford-iiit-pet",
        {"split": "trainval"},
        {"split": "test"},
        "Oxford-IIIT pets: 37 breeds of cats and dogs, 3680 + 3669 images.",
    ),
    "stl10": _Set("STL10", "stl10_binary", *_SPLIT, "STL-10: 10 classes, 5000 + 8000 images, 96x96."),
    "svhn": _Set(
        "SVHN",
        "train_32x32.mat",
        *_SPLIT,
        "Street view house numbers: 10 digits, 73257 + 26032 images.",
        normalisation.SVHN,
    ),
    "fgvc_aircraft": _Set(
        "FGVCAircraft",
        "fgvc-aircraft-2013b",
        {"split": "trainval"},
        {"split": "test"},
        "FGVC-Aircraft: 100 variants of aircraft, 6667 + 3333 images.",
    ),
    "mnist": _Set(
        "MNIST",
        "MNIST",
        *_BOOL,
        "MNIST: 10 handwritten digits, 60000 + 10000 images, 28x28.",
        normalisation.MNIST,
    ),
    "fashion_mnist": _Set(
        "FashionMNIST",
        "FashionMNIST",
        *_BOOL,
        "Fashion-MNIST: 10 kinds of clothing, 60000 + 10000 images, 28x28.",
        normalisation.FASHION_MNIST,
    ),
    "kmnist": _Set(
        "KMNIST", "KMNIST", *_BOOL, "Kuzushiji-MNIST: 10 cursive hiragana, 60000 + 10000 images, 28x28."
    ),
    "qmnist": _Set(
        "QMNIST", "QMNIST", *_BOOL, "QMNIST: MNIST and 50000 more test digits, 60000 + 60000 images, 28x28."
    ),
    "emnist": _Set("EMNIST", "EMNIST", *_BOOL),
    "eurosat": _Set("EuroSAT", "eurosat", {}, None),
    "caltech101": _Set("Caltech101", "caltech101", {}, None),
    "sun397": _Set("SUN397", "SUN397", {}, None),
}


@dataclass(frozen=True)
class _Images:
    """Index -> PIL image, over a training set and the test set behind it."""

    name: str
    parts: tuple[Any, ...]

    def __call__(self, index: int) -> Any:
        at = index
        for part in self.parts:
            if at < len(part):
                break
            at -= len(part)
        try:
            return part[at][0]
        except Exception as error:  # decoders of broken files raise whatever their code runs into
            text = " ".join(str(error).split())
            raise UnreadableImage(f"{self.name}: image {index} cannot be read: {text}") from error

    def fingerprint(self, indices: np.ndarray) -> Fingerprint:
        return Joined([_Part(part) for part in self.parts], list(map(len, self.parts))).fingerprint(indices)


@dataclass(frozen=True)
class _Part:
    """A data set of torchvision, as far as it tells where its images are."""

    images: Any

    def __call__(self, index: int) -> Any:
        return self.images[index][0]

    def fingerprint(self, indices: np.ndarray) -> Fingerprint:
        if hasattr(self.images, "data"):
            return of_rows(lambda rows: np.asarray(self.images.data[rows]), indices)
        for attribute in ("_image_files", "_images", "_samples", "samples"):
            if hasattr(self.images, attribute):
                listed = [getattr(self.images, attribute)[index] for index in indices]
                return of_files([str(item[0] if isinstance(item, tuple) else item) for item in listed])
        if hasattr(self.images, "categories"):
            return of_files([_caltech_file(self.images, index) for index in indices])
        return {}


def _caltech_file(images: Any, index: int) -> str:
    category, number = images.categories[images.y[index]], images.index[index]
    return os.path.join(images.root, "101_ObjectCategories", category, f"image_{number:04d}.jpg")


def _open(name: str, path: str, download: bool, arguments: dict[str, Any]) -> Any:
    """A part of a data set, from the folder that holds torchvision's, or from torchvision's itself."""
    layout = _SETS[name]
    above, here = os.path.split(os.path.abspath(path))
    places = [path, *([above] if here == layout.folder else [])]
    errors = []
    for place, fetch in [*((place, False) for place in places), *([(path, True)] if download else [])]:
        try:
            return _made(layout, place, fetch, arguments)
        except ImportError:
            raise
        except Exception as error:  # network, disk, checksums and parsers each fail in their own way
            errors.append(error)
    # of two places the one that has something there is the one that was meant
    folders = [os.path.join(place, layout.folder) for place in places]
    meant = next((number for number, folder in enumerate(folders) if os.path.exists(folder)), 0)
    where, cause = folders[meant], errors[-1 if download else meant]
    reason = " ".join(str(cause).split())[:200]
    if download:
        text = f"data set {name} could not be downloaded to {path}: {reason}"
    elif deeper := _deeper(layout, path, arguments):
        text = f"data set {name}: it lies one level deeper, in {deeper}; give data.path={deeper}"
    elif "not found" in reason.lower() or isinstance(cause, FileNotFoundError):
        condition = "is incomplete or damaged" if os.path.exists(where) else "is not there"
        text = (
            f"data set {name}: {where} {condition}; set data.download=true to get it, or data.path to "
            f"the folder that holds {layout.folder} as torchvision.datasets.{layout.kind} lays it out"
        )
    else:
        text = f"data set {name} in {where} cannot be read: {reason}"
    raise DataError(text) from cause


def _made(layout: _Set, place: str, download: bool, arguments: dict[str, Any]) -> Any:
    from torchvision import datasets as theirs

    where = os.path.join(place, layout.folder)
    if not download and not os.path.exists(where):  # Caltech101 would make the folder
        raise FileNotFoundError(where)
    return getattr(theirs, layout.kind)(place, download=download, **arguments)


def _deeper(layout: _Set, path: str, arguments: dict[str, Any]) -> str | None:
    """The folder in a path, or in torchvision's folder there, that can be read in its place."""
    tops = [path, os.path.join(path, layout.folder)]
    for place in (os.path.join(top, name) for top in tops for name in folders_in(top)):
        with contextlib.suppress(Exception):
            _made(layout, place, False, arguments)
            return place
    return None


def _labels(part: Any) -> np.ndarray:
    """Class ids without decoding an image; every set of torchvision keeps them in a place of its own."""
    for attribute in ("targets", "labels", "_labels", "y"):
        if hasattr(part, attribute):
            labels = np.asarray(getattr(part, attribute), dtype=np.int64)
            return labels[:, 0] if labels.ndim == 2 else labels  # QMNIST: the class, who wrote it, ...
    return np.array([label for _, label in part._samples], dtype=np.int64)


def _bundle(
    name: str, path: str, download: bool, selection: Selection, cache: bool, **arguments: Any
) -> DataBundle:
    layout = _SETS[name]
    parts = [_open(name, path, download, layout.train | arguments)]
    if layout.test is not None:
        parts.append(_open(name, path, download, layout.test | arguments))
    ids = [_labels(part) for part in parts]
    labels = np.concatenate(ids)
    return assemble(
        name,
        _Images(name, tuple(parts)),
        labels,
        None if layout.test is None else np.arange(len(labels)) >= len(ids[0]),
        selection,
        cache=cache,
        encoded=not hasattr(parts[0], "data"),  # the others lie in memory
        names=getattr(parts[0], "classes", getattr(parts[0], "categories", None)),
    )


_ARGUMENTS = """

    Args:
        path: the folder in which torchvision's download makes the data set's own folder, or that one.
        download: get the data where it is not there yet.
        classes: the classes to keep: names, or class ids such as 0-19.
        train_per_class: at most so many training images of each class.
        test_per_class: at most so many test images of each class.
        split_seed: decides which images those are.
        cache: keep prepared images in memory.

    Raises:
        DataError: the data is not there, or cannot be read.
    """


def _register(name: str) -> Callable[..., DataBundle]:
    def load(
        *,
        path: FilePath = "data",
        download: bool = False,
        selection: Selection,
        cache: bool = True,
    ) -> DataBundle:
        return _bundle(name, path, download, selection, cache)

    load.__name__ = load.__qualname__ = name
    load.__doc__ = _SETS[name].summary + _ARGUMENTS
    arguments = takes_views(normalisation=_SETS[name].normalisation)(
        takes_selection(but=("test_fraction",))(load)
    )
    return datasets.register(name)(schema.checked(arguments))


for _name, _set in _SETS.items():
    if _set.summary:
        _register(_name)


@datasets.register("emnist", paper="Cohen et al., IJCNN 2017")
@schema.checked
@takes_views()
@takes_selection(but=("test_fraction",))
def emnist(
    *,
    path: FilePath = "data",
    subset: Literal["balanced", "byclass", "bymerge", "letters", "digits", "mnist"] = "balanced",
    download: bool = False,
    selection: Selection,
    cache: bool = True,
) -> DataBundle:
    """EMNIST: handwritten letters and digits, 28x28; in its balanced subset 47 classes, 112800 + 18800.

    Images are as the files hold them, with rows and columns in each other's place.

    Args:
        path: the folder in which torchvision's download makes the data set's own folder, or that one.
        subset: which of the six data sets that EMNIST is.
        download: get the data where it is not there yet.
        classes: the classes to keep: names, or class ids such as 0-9.
        train_per_class: at most so many training images of each class.
        test_per_class: at most so many test images of each class.
        split_seed: decides which images those are.
        cache: keep prepared images in memory.

    Raises:
        DataError: the data is not there, or cannot be read.
    """
    return _bundle("emnist", path, download, selection, cache, split=subset)


@datasets.register("eurosat")
@schema.checked
@takes_views()
@takes_selection()
def eurosat(
    *,
    path: FilePath = "data",
    download: bool = False,
    selection: Selection,
    cache: bool = True,
) -> DataBundle:
    """EuroSAT: 10 kinds of land use, 27000 satellite images, 64x64; test images are drawn from each class.

    Args:
        path: the folder in which torchvision's download makes the data set's own folder, or that one.
        download: get the data where it is not there yet.
        test_fraction: share of each class that is the test set.
        classes: the classes to keep: names, or class ids such as 0-9.
        train_per_class: at most so many training images of each class.
        test_per_class: at most so many test images of each class.
        split_seed: decides which images those are, test images included.
        cache: keep prepared images in memory.

    Raises:
        DataError: the data is not there, or cannot be read.
    """
    return _bundle("eurosat", path, download, selection, cache)


@datasets.register("caltech101", paper="Fei-Fei et al., CVPR Workshops 2004")
@schema.checked
@takes_views()
@takes_selection()
def caltech101(
    *,
    path: FilePath = "data",
    download: bool = False,
    selection: Selection,
    cache: bool = True,
) -> DataBundle:
    """Caltech-101: 101 classes without the background's, 8677 images; test images are drawn from each class.

    Args:
        path: the folder in which torchvision's download makes the data set's own folder, or that one.
        download: get the data where it is not there yet.
        test_fraction: share of each class that is the test set.
        classes: the classes to keep: names, or class ids such as 0-9.
        train_per_class: at most so many training images of each class; 30 in many papers.
        test_per_class: at most so many test images of each class.
        split_seed: decides which images those are, test images included.
        cache: keep prepared images in memory.

    Raises:
        DataError: the data is not there, or cannot be read.
    """
    return _bundle("caltech101", path, download, selection, cache)


@datasets.register("sun397", paper="Xiao et al., CVPR 2010")
@schema.checked
@takes_views()
@takes_selection()
def sun397(
    *,
    path: FilePath = "data",
    partition: Annotated[int, at_least(1), at_most(10)] | None = None,
    download: bool = False,
    selection: Selection,
    cache: bool = True,
) -> DataBundle:
    """SUN397: 397 scenes, 108754 images; the authors' partitions, or test images drawn from each class.

    Args:
        path: the folder in which torchvision's download makes the data set's own folder, or that one.
        partition: one of the 10 of the authors (50 + 50 images of each class), by Training_01.txt and
            Testing_01.txt, ... of Partitions.zip, in SUN397/ or beside it; None to draw test images.
        download: get the data where it is not there yet; not the partitions.
        test_fraction: share of each class that is the test set, where there is no partition.
        classes: the classes to keep: names, or class ids such as 0-9.
        train_per_class: at most so many training images of each class.
        test_per_class: at most so many test images of each class.
        split_seed: decides which images those are, test images included.
        cache: keep prepared images in memory.

    Raises:
        DataError: the data is not there, or cannot be read; a partition names an image that is not there.
    """
    images = _open("sun397", path, download, {})
    # torchvision lists the files as the file system does
    order = sorted(range(len(images)), key=lambda row: images._image_files[row])
    images._image_files = [images._image_files[row] for row in order]
    labels = np.array([images._labels[row] for row in order], dtype=np.int64)
    rows, is_test = np.arange(len(labels)), None
    if partition is not None:
        rows, is_test = _partition(images._data_dir, images._image_files, partition)
    return assemble(
        "sun397",
        Selected(_Images("sun397", (images,)), rows),
        labels[rows],
        is_test,
        selection,
        cache=cache,
        names=images.classes,
    )


def _partition(top: Path, files: Sequence[Path], number: int) -> tuple[np.ndarray, np.ndarray]:
    """The images of a partition of SUN397: their rows [n], and which are test images, bool [n]."""
    row_of = {file.relative_to(top).as_posix(): row for row, file in enumerate(files)}
    places = [top, top.parent, top / "Partitions", top.parent / "Partitions"]
    rows: list[int] = []
    counts = []
    for name in (f"Training_{number:02d}.txt", f"Testing_{number:02d}.txt"):
        file = next((place / name for place in places if (place / name).is_file()), None)
        if file is None:
            raise DataError(
                f"data set sun397: there is no {name} in {top} or beside it; download Partitions.zip from "
                "https://vision.princeton.edu/projects/2010/SUN/download/Partitions.zip, or give "
                "data.partition=null to have test images drawn"
            )
        before = len(rows)
        for place, line in numbered_lines(file):
            row = row_of.get(line.strip("/"))
            if row is None:
                raise DataError(f"{place}: there is no image {line[:80]} in {top}")
            rows.append(row)
        counts.append(len(rows) - before)
    return np.array(rows), np.arange(len(rows)) >= counts[0]
