"""From loaded labels to a data set: label maps, test splits, subsets, and what is wrong with them."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from clprompt.data.images import ImageFiles, ImageSource, Selected, unreadable
from clprompt.data.transforms import Augment
from clprompt.errors import ConfigError, DataError, nearest, tell
from clprompt.seeding import derive

#: What the ``classes`` argument of a data set may be.
Classes = str | list[int | str]


@dataclass(frozen=True)
class DataBundle:
    """A data set: training and test images, class names by class id, and how training images are augmented.

    Attributes:
        augment: see :func:`clprompt.data.transforms.make_transform`.
        cache: whether prepared images stay in memory between epochs and evaluations.
    """

    name: str
    train: ImageSource
    test: ImageSource
    class_names: list[str]
    augment: Augment = "none"
    cache: bool = True


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Which images of a data set are used; the arguments of the same names of every data set that has them.

    Attributes:
        classes: the classes to keep: names, or positions in the sorted class list; "0-19,25" is a list as well.
        train_per_class, test_per_class: at most so many images of each class, drawn by ``split_seed``; a smaller
            number keeps some of those that a larger one keeps.
        test_fraction: share of each class that is the test set, where the data has no split of its own.
        split_seed: decides both draws.

    Raises:
        ConfigError: a number out of range.
    """

    classes: Classes | None = None
    train_per_class: int | None = None
    test_per_class: int | None = None
    test_fraction: float = 0.2
    split_seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.test_fraction < 1:
            raise ConfigError(f"data.test_fraction must be between 0 and 1, got {self.test_fraction}")
        for key in ("train_per_class", "test_per_class"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise ConfigError(f"data.{key} must be at least 1, got {value}")


def assemble(
    name: str,
    load: Callable[[int], Any],
    labels: Sequence[Any] | np.ndarray,
    is_test: np.ndarray | None,
    selection: Selection,
    *,
    augment: Augment,
    cache: bool,
    encoded: bool = True,
    names: Sequence[str] | None = None,
) -> DataBundle:
    """A data set from all its images, training and test.

    Args:
        name: of the data set; messages begin with it.
        load: index -> image; see :class:`ImageSource`, as for ``encoded``.
        labels: one per image, integers or text, [n].
        is_test: which images are test images, bool [n]; None to draw them by ``selection``.
        selection: which images are used.
        augment, cache: see :class:`DataBundle`.
        names: class names by integer label; the labels themselves by default.

    Raises:
        DataError: no image, a class without training image, a class that is too small to be split.
        ConfigError: ``selection`` names classes that are not there.
    """
    if len(labels) == 0:
        raise DataError(f"{name}: there is no image")
    targets, class_names = class_ids(labels, names, name)
    keep = np.arange(len(targets))
    if selection.classes is not None:
        chosen = chosen_classes(selection.classes, class_names)
        class_names = [class_names[c] for c in chosen]
        keep = np.flatnonzero(np.isin(targets, chosen))
        targets = np.searchsorted(chosen, targets[keep])
    test = _draw_test(name, targets, class_names, selection) if is_test is None else is_test[keep]
    _check_split(name, targets, test, class_names)
    parts = []
    for which, limit in ((~test, selection.train_per_class), (test, selection.test_per_class)):
        where = np.flatnonzero(which)
        if limit is not None:
            where = where[_rank(targets[where], selection.split_seed, "subset") < limit]
        parts.append(ImageSource(Selected(load, keep[where]), targets[where], encoded))
    return DataBundle(name, parts[0], parts[1], class_names, augment, cache)


def class_ids(
    labels: Sequence[Any] | np.ndarray, names: Sequence[str] | None = None, name: str = "data"
) -> tuple[np.ndarray, list[str]]:
    """Arbitrary labels as class ids 0..C-1 and the name of each class.

    Classes are sorted: integers, and text that consists of integers, by value, other text by its characters.

    Args:
        labels: integers or text, [n].
        names: class names by integer label.
        name: of the data set, for messages.

    Returns:
        int64 [n], and C names.

    Raises:
        DataError: labels that are neither integers nor text, or beyond ``names``.
    """
    array = np.asarray(labels)
    if array.dtype.kind == "S":
        array = np.char.decode(array, "utf-8")
    if array.dtype.kind not in "iuU" or array.ndim != 1:
        raise DataError(
            f"{name}: labels must be one integer or text per image, got {array.dtype} {list(array.shape)}"
        )
    values, ids = np.unique(array, return_inverse=True)
    if array.dtype.kind == "U" and all(re.fullmatch(r"-?\d{1,18}", value) for value in values):
        order = np.argsort([int(value) for value in values], kind="stable")
        ids, values = np.argsort(order)[ids], values[order]
    if names is None or array.dtype.kind == "U":
        return ids.astype(np.int64), [str(value) for value in values]
    if values[0] < 0 or values[-1] >= len(names):
        wrong = values[0] if values[0] < 0 else values[-1]
        raise DataError(f"{name}: label {wrong} has no name; there are names for 0..{len(names) - 1}")
    return ids.astype(np.int64), [str(names[int(value)]) for value in values]


def chosen_classes(classes: Classes, class_names: Sequence[str]) -> np.ndarray:
    """The sorted class ids that a ``classes`` argument means, int64 [n].

    Raises:
        ConfigError: a class that is not there, or none at all.
    """
    words: list[int | str] = [*(classes.split(",") if isinstance(classes, str) else classes)]
    count = len(class_names)
    found: set[int] = set()
    for word in words:
        text = str(word).strip()
        span = re.fullmatch(r"(\d+)(?:\s*-\s*(\d+))?", text)
        if text in class_names and not isinstance(word, int):
            found.add(class_names.index(text))
        elif span:
            first, last = int(span[1]), int(span[2] or span[1])
            if first > last or last >= count:
                raise ConfigError(f"data.classes: {text} is not within the {count} classes 0-{count - 1}")
            found.update(range(first, last + 1))
        else:
            hint = nearest(text, class_names)
            raise ConfigError(f'data.classes: there is no class "{text}"{hint}')
    if not found:
        raise ConfigError("data.classes must name a class")
    return np.array(sorted(found), dtype=np.int64)


def split_column(values: Sequence[Any] | np.ndarray, name: str) -> tuple[np.ndarray, np.ndarray]:
    """What a column says about the split: text (train, test, val) or 0 and 1.

    Returns:
        Which images are test images, and which are used at all, both bool [n]: validation images are the test set
        where there is no other, and are left out where there is.

    Raises:
        DataError: another word.
    """
    words = {
        "train": "train",
        "training": "train",
        "0": "train",
        "1": "test",
        "test": "test",
        "testing": "test",
    }
    words |= dict.fromkeys(("val", "valid", "validation"), "val")
    parts = []
    for position, value in enumerate(values):
        text = value.decode() if isinstance(value, bytes) else str(value)
        part = words.get(text.strip().lower())
        if part is None:
            raise DataError(
                f'{name}: split "{text}" of image {position} must be train, test or val (or 0, 1)'
            )
        parts.append(part)
    array = np.array(parts)
    if not (array == "test").any():
        array[array == "val"] = "test"
    left = int((array == "val").sum())
    if left:
        tell(f"{name}: {left} validation images are left out, as there are test images")
    return array == "test", array != "val"


def _rank(targets: np.ndarray, seed: int, purpose: str) -> np.ndarray:
    """The place of each sample in a random order of its class, [n]; O(n log n)."""
    order = np.random.default_rng(derive(seed, purpose)).permutation(len(targets))
    order = order[np.argsort(targets[order], kind="stable")]
    sizes = np.bincount(targets)
    rank = np.empty(len(targets), dtype=np.int64)
    rank[order] = np.arange(len(targets)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return rank


def _draw_test(name: str, targets: np.ndarray, names: Sequence[str], selection: Selection) -> np.ndarray:
    sizes = np.bincount(targets, minlength=len(names))
    small = np.flatnonzero(sizes < 2)
    if small.size:
        more = f" (and {small.size - 1} more classes)" if small.size > 1 else ""
        raise DataError(
            f'{name}: class "{names[small[0]]}" has one image{more}; with no test set given, a class needs two, '
            "one to train and one to test"
        )
    share = np.clip(np.rint(sizes * selection.test_fraction), 1, sizes - 1)
    return _rank(targets, selection.split_seed, "test") < share[targets]


def _check_split(name: str, targets: np.ndarray, test: np.ndarray, names: Sequence[str]) -> None:
    train_sizes, test_sizes = (np.bincount(targets[part], minlength=len(names)) for part in (~test, test))
    for sizes, what in ((train_sizes, "training"), (test_sizes, "test")):
        if not sizes.any():
            raise DataError(f"{name}: there is no {what} image")
    untrained = np.flatnonzero(train_sizes == 0)
    if untrained.size:
        raise DataError(f"{name}: {_listed(names, untrained)} test images, but no training image")
    untested = np.flatnonzero(test_sizes == 0)
    if untested.size:
        tell(f"{name}: {_listed(names, untested)} no test image; no accuracy can be told for it")
    single = np.flatnonzero(train_sizes == 1)
    if single.size:
        tell(f"{name}: {_listed(names, single)} one training image only")


def _listed(names: Sequence[str], which: np.ndarray) -> str:
    if which.size == 1:
        return f'class "{names[which[0]]}" has'
    return f'{which.size} classes ("{names[which[0]]}", "{names[which[1]]}"{", ..." * (which.size > 2)}) have'


OnBadImage = Literal["error", "skip"]
_HINT = "; mend or remove it, or set data.on_bad_image=skip"


def _readable(name: str, load: Callable[[int], Any], count: int, on_bad_image: OnBadImage) -> np.ndarray:
    """The indices of the images to use, [n]."""
    if on_bad_image not in ("error", "skip"):
        raise ConfigError(f'data.on_bad_image must be error or skip, got "{on_bad_image}"')
    everything = np.arange(count)
    if on_bad_image == "error":
        return everything
    bad = unreadable(load, everything)
    if bad:
        first = next(iter(bad.values())).removesuffix(_HINT)
        tell(f"{name}: {len(bad)} of {count} images are left out; the first: {first}")
    return np.setdiff1d(everything, list(bad))


def _from_paths(
    name: str,
    paths: Sequence[str],
    labels: Sequence[Any],
    is_test: np.ndarray | None,
    selection: Selection,
    on_bad_image: OnBadImage,
    augment: Augment,
    cache: bool,
) -> DataBundle:
    if on_bad_image == "error":  # what can be seen without decoding is told before anything is trained
        for path in paths:
            try:
                problem = "" if os.path.getsize(path) else "it is empty"
            except OSError:
                problem = "there is no such file"
            if problem:
                raise DataError(f"{path}: the image cannot be read: {problem}{_HINT}")
    load = ImageFiles(list(paths), _HINT)
    use = _readable(name, load, len(paths), on_bad_image)
    return assemble(
        name,
        Selected(load, use),
        np.asarray(labels)[use],
        None if is_test is None else is_test[use],
        selection,
        augment=augment,
        cache=cache,
    )


# ------------------------------------------------------------------------------------------------ files


def _image_source(paths: Sequence[Path], targets: np.ndarray) -> ImageSource:
    return ImageSource(ImageFiles([str(path) for path in paths]), targets, encoded=True)


def _multi_hot(
    labels: Sequence[Sequence[str]], names: Sequence[str], where: Callable[[int], str]
) -> np.ndarray:
    """Label names per sample -> uint8 [n, C]; ``where`` names a sample in the message about an unknown class."""
    column = {name: c for c, name in enumerate(names)}
    hot = np.zeros((len(labels), len(names)), dtype=np.uint8)
    for row, given in enumerate(labels):
        for name in given:
            if name not in column:
                raise DataError(f'{where(row)}: unknown class "{name}"{nearest(name, names)}')
            hot[row, column[name]] = 1
    return hot
