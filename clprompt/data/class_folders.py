"""Folders of images, one per class, with a split in folders, in lists, in a table of labels, or none."""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from clprompt.data.bundle import DataBundle, assemble
from clprompt.data.flat_labels import FILES, FlatLabels, flat_labels
from clprompt.data.folders import Photographs, folders_in, photographs, split_part
from clprompt.data.images import EXTENSIONS, Selected
from clprompt.data.lists import FoundImages, Lists, Published, listed_images
from clprompt.data.names import class_name
from clprompt.data.reading import Reading, readable_files
from clprompt.data.selection import Selection
from clprompt.errors import DataError, tell


def folder_bundle(
    name: str,
    root: Path,
    selection: Selection,
    reading: Reading,
    *,
    domain_folders: bool = False,
    lists: Lists | None = None,
    published: Sequence[Published] | None = None,
    order: Sequence[str] | None = None,
) -> DataBundle:
    """A data set of class folders.

    Args:
        name: of the data set; messages begin with it.
        root: the folder; see :func:`class_folders`.
        selection: which images are used.
        reading: how they are read.
        domain_folders: whether the class folders lie in a folder for each domain.
        lists: files that name the training and the test images; see :func:`listed_images`.
        published: lists that publications use; others are told.
        order: the names of all classes by id; sorted by default, or as the lists number them.

    Raises:
        DataError: see :func:`class_folders`, :func:`listed_images` and :func:`assemble`.
    """
    if lists is None:
        images = class_folders(name, root, domain_folders)
    else:
        images = listed_images(name, root, lists, published, domain_folders)
    if order is not None and images.names is None:
        order = list(dict.fromkeys(order))
        numbers = {label: number for number, label in enumerate(order)}
        if others := sorted(set(images.labels) - numbers.keys()):
            raise DataError(f"{name}: the class {others[0]} is not in its list of classes")
        labels = [numbers[label] for label in images.labels]
        images = replace(images, labels=labels, names=order)
    return found_bundle(name, images, selection, reading)


def found_bundle(
    name: str,
    images: FoundImages,
    selection: Selection,
    reading: Reading,
) -> DataBundle:
    """A data set of image files.

    Args:
        name: of the data set; messages begin with it.
        images: all of them, with their labels.
        selection: which images are used.
        reading: how they are read.

    Raises:
        DataError: see :func:`readable_files` and :func:`assemble`.
    """
    load, use = readable_files(name, images.paths, reading, images.places)
    return assemble(
        name,
        Selected(load, use),
        np.asarray(images.labels)[use],
        None if images.is_test is None else images.is_test[use],
        selection,
        cache=reading.cache,
        names=images.names,
        domains=None if images.domains is None else np.asarray(images.domains)[use],
    )


def class_folders(name: str, root: Path, domain_folders: bool = False) -> FoundImages:
    """The images of a folder of class folders, or of the parts of a split that hold such folders.

    Args:
        name: of the data set; messages begin with it.
        root: the folder.
        domain_folders: whether the class folders lie in a folder for each domain.

    Raises:
        DataError: half of a split, a class without an image, a folder that cannot be read.
    """
    split = _split(name, root)
    if domain_folders:
        return _domain_folders(name, root, split)
    return _class_folders(name, root) if split is None else _split_folders(name, root, split)


# ----------------------------------------------------------------------------------------------- the split


@dataclass(frozen=True)
class _Split:
    """Training and test folder of a data set, and the labels of the latter where it has no class folders."""

    train: Path
    test: Path
    labels: FlatLabels | None = None


def _split(name: str, root: Path) -> _Split | None:
    """The folders of a split, where they are there and hold folders: "train" may also be a class.

    Raises:
        DataError: half of a split, or two folders for one part.
    """
    names = folders_in(root)
    parts: dict[str, list[str]] = {"train": [], "test": [], "val": []}
    for folder in names:
        if (part := split_part(folder)) is not None:
            parts[part].append(folder)
    inner = {folder: folders_in(root / folder) for folder in itertools.chain(*parts.values())}
    if not any(inner.values()):
        if len(inner) == len(names) and parts["train"] and (parts["test"] or parts["val"]):
            raise DataError(
                f"{root}: {_joined(names)} hold no class folders; each class needs a folder of its images"
            )
        return None
    training = [name for name in parts["train"] if inner[name]]
    if not training:
        first = next(name for name in (*parts["test"], *parts["val"]) if inner[name])
        raise DataError(f"{root}: there is a folder {first}/ but no train/ beside it")
    train = root / _only(root, training, "training images")
    classes = inner[train.name]
    candidates = [*parts["test"], *parts["val"]]
    # Tiny ImageNet has images without labels in the one folder "images"
    flat = [name for name in candidates if not inner[name] or inner[name] == ["images"] != classes]
    sorted_ones = [name for name in candidates if name not in flat]
    labels = {name: flat_labels(root / name, root) for name in parts["val"] if name in flat}
    tests = [name for name in parts["test"] if name in sorted_ones]
    vals = [name for name in parts["val"] if name in sorted_ones or labels[name] is not None]
    if not tests and not vals:
        raise DataError(_without_test(root, train, candidates))
    test = _only(root, tests or vals, "test images")
    if others := [candidate for candidate in candidates if candidate != test]:
        why = "" if tests else ", as nothing says the classes of its images"
        tell(f"{name}: the test set is {test}/; {_joined(others)} beside it is left out{why}")
    flat_test = None if tests else labels.get(test)
    listed = "" if flat_test is None else str(flat_test.file.resolve())
    devkit = Path(listed).parts[len(root.resolve().parts) :][:1]  # a folder beside the split's
    others = [folder for folder in names if folder not in inner and folder not in devkit]
    if others:
        tell(f"{name}: beside {train.name}/ and {test}/, {_joined(others)} is left out")
    return _Split(train, root / test, flat_test)


def _only(root: Path, names: Sequence[str], what: str) -> str:
    if len(names) > 1:
        raise DataError(f"{root}: {_joined(names)} are all folders of {what}; keep one")
    return names[0]


def _without_test(root: Path, train: Path, others: Sequence[str]) -> str:
    way = f"give data.path={train} to have data.test_fraction of it as the test set"
    if not others:
        return f"{root}: there is {train.name}/ but neither test/ nor val/ beside it; add one, or {way}"
    return (
        f"{root}: there is {train.name}/ with class folders, but nothing says the classes of the images in "
        f"{_joined(others)}: sort them into class folders, add {' or '.join(FILES)}, or {way}"
    )


def _joined(names: Sequence[str]) -> str:
    return " and ".join(f"{name}/" for name in names)


# ------------------------------------------------------------------------------------------- class folders


def _class_folders(name: str, root: Path) -> FoundImages:
    """Every image below a folder's folders, sorted, and its class: the name of the folder."""
    labels = folders_in(root)
    if not labels:
        raise DataError(f"{root}: there is no class folder in it; each class needs a folder of its images")
    held = photographs([root / label for label in labels], [root])
    _check_classes(root, labels)
    inner: dict[int, dict[str, str]] = {}  # of each class, the folders in it that are called as parts are
    for below in held.below.folders:
        if below.parts and (part := split_part(below.parts[0])):
            inner.setdefault(below.root, {})[part] = below.parts[0]
    for number, parts in inner.items():
        if "train" in parts and len(parts) > 1:
            folder = root / labels[number]
            raise DataError(
                f"{folder}: it holds {_joined(list(parts.values()))}; if it is the data set, give "
                f"data.path={folder}; if it is a class, put the class folders into train/ and test/"
            )
    _check_held(name, [root / label for label in labels], held)
    return FoundImages(held.paths, [class_name(labels[number]) for number in held.roots])


def _split_folders(name: str, root: Path, split: _Split) -> FoundImages:
    """The images of the class folders in train/, and those of the test set behind them."""
    classes = {part: folders_in(part) for part in (split.train, split.test)}
    train = [split.train / label for label in classes[split.train]]
    if split.labels is None:
        test = [split.test / label for label in classes[split.test]]
        within = [root, split.train, split.test]
    else:
        test, within = [split.test], [root, split.train]
    held = photographs([*train, *test], within)
    _check_classes(split.train, classes[split.train])
    names = [class_name(folder.name) for folder in train]
    if split.labels is None:
        _check_classes(split.test, classes[split.test])
        names += [class_name(folder.name) for folder in test]
        _check_spelling(split, names[: len(train)], names[len(train) :])
    _check_held(name, [*train, *test], held)
    is_test = held.roots >= len(train)
    if split.labels is not None:
        held_labels = _flat_classes(name, split.labels, held, is_test, names)
    else:
        held_labels = [names[number] for number in held.roots]
    use = np.flatnonzero([label is not None for label in held_labels])
    return FoundImages(
        [held.paths[row] for row in use],
        [label for label in held_labels if label is not None],
        is_test[use],
    )


def _flat_classes(
    name: str, labels: FlatLabels, held: Photographs, is_test: np.ndarray, names: Sequence[str]
) -> list[str | None]:
    """The class of each image; None for test images of classes that are not trained.

    Raises:
        DataError: a test image that the file does not list, or none of a class that is trained.
    """
    classes: list[str | None] = []
    listed = 0
    trained = set(names)
    for path, number, test in zip(held.paths, held.roots, is_test, strict=True):
        if not test:
            classes.append(names[number])
            continue
        label = labels.classes.get(Path(path).stem)
        if label is None:
            raise DataError(f"{path}: {labels.file} does not say the class of this image")
        listed += 1
        classes.append(class_name(label) if class_name(label) in trained else None)
    if (absent := len(labels.classes) - listed) > 0:
        tell(f"{name}: {absent} of the {len(labels.classes)} images that {labels.file} lists are not there")
    if untrained := classes.count(None):
        if untrained == listed:
            raise DataError(f"{labels.file}: none of its classes has a folder of training images")
        tell(
            f"{name}: {untrained} of {listed} test images are left out: their classes have no training folder"
        )
    return classes


def _domain_folders(name: str, root: Path, split: _Split | None) -> FoundImages:
    """The images of the class folders in a folder for each domain, and those of the test set behind them.

    Raises:
        DataError: a domain without class folders, or with a split of its own; a test set without folders.
    """
    if split is not None and split.labels is not None:
        raise DataError(f"{split.test}: nothing says the domain of its images; give each domain a folder")
    parts = [root] if split is None else [split.train, split.test]
    folders: list[Path] = []
    counts, within = [], [root, *parts]
    for part in parts:
        domains = folders_in(part)
        if not domains:
            raise DataError(f"{part}: there is no domain folder in it, which would hold class folders")
        for domain in domains:
            labels = folders_in(part / domain)
            if not labels:
                raise DataError(
                    f"{part / domain}: there is no class folder in it; data.domain_folders wants "
                    "domain/class/image"
                )
            if "train" in map(split_part, labels):
                raise DataError(
                    f"{part / domain}: it holds {_joined(labels)}; put the domains into {root}/train and "
                    f"{root}/test instead"
                )
            _check_classes(part / domain, labels)
            folders += [part / domain / label for label in labels]
            within.append(part / domain)
        counts.append(len(folders))
    held = photographs(folders, within)
    names = [class_name(folder.name) for folder in folders]
    if split is not None:
        _check_spelling(split, names[: counts[0]], names[counts[0] :])
    _check_held(name, folders, held)
    return FoundImages(
        held.paths,
        [names[number] for number in held.roots],
        None if split is None else held.roots >= counts[0],
        domains=[class_name(folders[number].parent.name) for number in held.roots],
    )


# -------------------------------------------------------------------------------------------------- checks


def _check_classes(folder: Path, labels: Sequence[str]) -> None:
    """Say which class folders are one class, or look like one.

    Raises:
        DataError: a name that is not text.
    """
    for label in labels:
        if any("\ud800" <= mark <= "\udfff" for mark in label):
            raise DataError(f"{folder}: the name of a class folder, {os.fsencode(label)!r}, is not UTF-8")
    spellings: dict[str, dict[str, list[str]]] = {}
    for label in labels:
        spellings.setdefault(class_name(label).casefold(), {}).setdefault(class_name(label), []).append(label)
    for alike in spellings.values():
        if len(alike) > 1:
            listed = ", ".join(f'"{label}"' for label in alike)
            tell(f"{folder}: {listed} differ in letter case alone; they are {len(alike)} classes")
        for label, forms in alike.items():
            if len(forms) > 1:
                tell(f'{folder}: {len(forms)} folders are called "{label}", in two Unicode forms: one class')


def _check_spelling(split: _Split, train: Sequence[str], test: Sequence[str]) -> None:
    """Refuse a test class that is a training class but for its letter case."""
    close = {label.casefold(): label for label in train}
    for label in sorted(set(test) - set(train)):
        if (other := close.get(label.casefold())) is not None:
            raise DataError(f'{split.test}: class "{label}" is "{other}" in {split.train}; rename one')


def _check_held(name: str, roots: Sequence[Path], held: Photographs) -> None:
    """Say what is left out, and refuse a root without images."""
    for path, reason in held.below.closed:
        raise DataError(f"{path}: the folder cannot be read: {reason}")
    doubles: Mapping[str, str] = dict(held.below.doubles)
    for root in roots:
        if str(root) in doubles:
            raise DataError(f"{root}: this is the folder {doubles[str(root)]}, which is read already")
    held.tell(name)
    empty = np.setdiff1d(np.arange(len(roots)), held.roots)
    if empty.size:
        more = f"; left out for the extension are {held.counts_left_out()}" if held.left_out else ""
        raise DataError(f"{roots[empty[0]]}: the class folder holds no image ({', '.join(EXTENSIONS)}){more}")
