"""Data sets that torchvision knows, by name. Nothing is downloaded unless ``download`` says so."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from clprompt import schema
from clprompt.data import normalisation
from clprompt.data.bundle import DataBundle, assemble, takes_views
from clprompt.data.fingerprint import Fingerprint, of_files, of_rows
from clprompt.data.images import Joined, UnreadableImage
from clprompt.data.normalisation import Normalisation
from clprompt.data.selection import Selection, takes_selection
from clprompt.errors import DataError
from clprompt.registry import datasets


@dataclass(frozen=True)
class _Set:
    """Where torchvision keeps a data set.

    Attributes:
        kind: the class in torchvision.datasets.
        folder: what it looks for below ``path``.
        train: the arguments that select the training images.
        test: the arguments that select the test images; None where there is only one part.
        summary: the first line of the documentation.
        normalisation: published mean and deviation of the pixels.
    """

    kind: str
    folder: str
    train: dict[str, Any]
    test: dict[str, Any] | None
    summary: str
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
    "eurosat": _Set(
        "EuroSAT", "eurosat", {}, None, "EuroSAT: 10 kinds of land use, 27000 images, 64x64, no split."
    ),
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
        return {}


def _open(name: str, path: str, download: bool, arguments: dict[str, Any]) -> Any:
    from torchvision import datasets as theirs

    layout = _SETS[name]
    try:
        return getattr(theirs, layout.kind)(path, download=download, **arguments)
    except ImportError:
        raise
    except Exception as error:  # network, disk, checksums and parsers each fail in their own way
        where = os.path.join(path, layout.folder)
        reason = " ".join(str(error).split())[:200]
        if download:
            text = f"data set {name} could not be downloaded to {path}: {reason}"
        elif "not found" in reason.lower() or isinstance(error, FileNotFoundError):
            condition = "is incomplete or damaged" if os.path.exists(where) else "is not there"
            text = (
                f"data set {name}: {where} {condition}; set data.download=true to get it, or data.path to "
                f"the folder that holds {layout.folder} as torchvision.datasets.{layout.kind} lays it out"
            )
        else:
            text = f"data set {name} in {where} cannot be read: {reason}"
        raise DataError(text) from error


def _labels(part: Any) -> np.ndarray:
    """Class ids without decoding an image; every set of torchvision keeps them in a place of its own."""
    for attribute in ("targets", "labels", "_labels"):
        if hasattr(part, attribute):
            return np.asarray(getattr(part, attribute), dtype=np.int64)
    return np.array([label for _, label in part._samples], dtype=np.int64)


def _bundle(name: str, path: str, download: bool, selection: Selection, cache: bool) -> DataBundle:
    layout = _SETS[name]
    parts = [_open(name, path, download, layout.train)]
    if layout.test is not None:
        parts.append(_open(name, path, download, layout.test))
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
        names=getattr(parts[0], "classes", None),
    )


_ARGUMENTS = """

    Args:
        path: the folder that torchvision's download made, or shall make.
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
        path: str = "data",
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
    if _set.test is not None:
        _register(_name)


@datasets.register("eurosat")
@schema.checked
@takes_views()
@takes_selection()
def eurosat(
    *,
    path: str = "data",
    download: bool = False,
    selection: Selection,
    cache: bool = True,
) -> DataBundle:
    """EuroSAT: 10 kinds of land use, 27000 satellite images, 64x64; test images are drawn from each class.

    Args:
        path: the folder that torchvision's download made, or shall make.
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
