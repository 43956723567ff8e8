"""Which images of a data set are used: its classes, its test set, and limits per class.

Labels are class ids [n]; label sets are multi-hot [n, C]. The arguments mean the same for both.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np

from clprompt import schema
from clprompt.data.names import class_name
from clprompt.errors import ConfigError, DataError, nearest, tell
from clprompt.schema import above, at_least, below
from clprompt.seeding import derive

#: What the ``classes`` argument of a data set may be.
Classes = str | list[int | str]
#: A part of something, neither nothing nor all of it.
Share = Annotated[float, above(0), below(1)]
#: How many images of a class at most.
Limit = Annotated[int, at_least(1)]


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Which images of a data set are used; the arguments of the same names of every data set that has them.

    Attributes:
        test_fraction: share of each class that is the test set, where the data has no split of its own; of
            label sets, the share of all images.
        split_seed: decides which images those are, and those of ``train_per_class`` and ``test_per_class``.
        classes: the classes to keep: names, or positions in the sorted class list; "0-19,25" is a list as
            well. Label sets lose their labels of other classes, and keep the order of this list.
        train_per_class: at most so many training images of each class, drawn by ``split_seed``; a smaller
            number keeps some of those that a larger one keeps. An image with several labels is kept where one
            of them has room for it; an image without a label is not.
        test_per_class: the same for test images.

    Raises:
        ConfigError: a number out of range.
    """

    test_fraction: Share = 0.2
    split_seed: int = 0
    classes: Classes | None = None
    train_per_class: Limit | None = None
    test_per_class: Limit | None = None

    def __post_init__(self) -> None:
        schema.check_fields(self, "data")


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """What is tested on in place of the test set; an argument of every data set.

    Attributes:
        validation: share of each class's training images (of label sets, of all) that takes the place of the
            test set, which is not looked at: to choose a learning rate on. The same images every time.
    """

    validation: Share | None = None

    def __post_init__(self) -> None:
        schema.check_fields(self, "data")


def takes_selection(*, but: Collection[str] = ()) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorate a data set's function: the fields of :class:`Selection` are among its arguments.

    The function has an argument ``selection``, by which it gets them; the fields stand in its place.

    Args:
        but: fields that mean nothing to the data set; ``test_fraction`` where it has a split of its own.
    """
    return schema.takes(Selection, "selection", but=but)


# ------------------------------------------------------------------------------------- classes and splits


def listed_classes(classes: Classes, class_names: Sequence[str]) -> list[int]:
    """The class ids that a ``classes`` argument means, in its order, each once.

    Raises:
        ConfigError: a class that is not there, or none at all.
    """
    words: list[int | str] = [*(classes.split(",") if isinstance(classes, str) else classes)]
    class_names = [class_name(name) for name in class_names]
    count = len(class_names)
    ids: dict[int, None] = {}
    for word in words:
        text = class_name(str(word).strip())
        span = re.fullmatch(r"(\d{1,18})(?:\s*-\s*(\d{1,18}))?", text)
        if text in class_names and not isinstance(word, int):
            ids[class_names.index(text)] = None
        elif span:
            first, last = int(span[1]), int(span[2] or span[1])
            if first > last or last >= count:
                raise ConfigError(f"data.classes: {text} is not within the {count} classes 0-{count - 1}")
            ids |= dict.fromkeys(range(first, last + 1))
        else:
            hint = nearest(text, class_names)
            raise ConfigError(f'data.classes: there is no class "{text}"{hint}')
    if not ids:
        raise ConfigError("data.classes must name a class")
    return list(ids)


def chosen_classes(classes: Classes, class_names: Sequence[str]) -> np.ndarray:
    """The sorted class ids that a ``classes`` argument means, int64 [n]; errors as :func:`listed_classes`."""
    return np.array(sorted(listed_classes(classes, class_names)), dtype=np.int64)


def split_column(
    values: Sequence[Any] | np.ndarray, name: str, places: Sequence[str] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """What a column says about the split: text (train, test, val) or 0 and 1.

    Args:
        values: of each image, [n].
        name: of the data set; messages begin with it.
        places: of each image, such as "data.csv, line 3", for messages.

    Returns:
        Which images are test images, and which are used at all, both bool [n]: validation images are the test
        set where there is no other, and are left out where there is.

    Raises:
        DataError: another word.
    """
    words = {
        "train": "train",
        "training": "train",
        "0": "train",
        "0.0": "train",  # a column of 0 and 1 that has been floating point
        "1": "test",
        "1.0": "test",
        "test": "test",
        "testing": "test",
    }
    words |= dict.fromkeys(("val", "valid", "validation"), "val")
    parts = []
    for position, value in enumerate(values):
        text = value.decode(errors="backslashreplace") if isinstance(value, bytes) else str(value)
        part = words.get(text.strip().lower())
        if part is None:
            place = f"{name}: split" if places is None else f"{places[position]}: split"
            raise DataError(f'{place} "{text}" of image {position} must be train, test or val (or 0, 1)')
        parts.append(part)
    array = np.array(parts)
    if not (array == "test").any():
        array[array == "val"] = "test"
    left = int((array == "val").sum())
    if left:
        tell(f"{name}: {left} validation images are left out, as there are test images")
    return array == "test", array != "val"


# ------------------------------------------------------------------------------------------- random draws


def ranks(targets: np.ndarray, seed: int, purpose: str) -> np.ndarray:
    """The place of each sample in a random order of its class; O(n log n) for labels, O(n C) for label sets.

    Args:
        targets: class ids [n], or multi-hot 0/1 [n, C].
        seed: decides the order.
        purpose: what the order is for; each purpose has an order of its own.

    Returns:
        int64 [n]; of a label set the first of its places, and beyond any limit where it is empty.
    """
    order = np.random.default_rng(derive(seed, purpose)).permutation(len(targets))
    places = np.empty(len(targets), dtype=np.int64)
    if targets.ndim == 2:
        shown = targets[order] > 0  # (n, C)
        before = np.cumsum(shown, axis=0, dtype=np.int64) - 1  # images of that class that come earlier
        places[order] = np.where(shown, before, np.iinfo(np.int64).max).min(1)
        return places
    order = order[np.argsort(targets[order], kind="stable")]
    sizes = np.bincount(targets)
    places[order] = np.arange(len(targets)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return places


def drawn_test(name: str, targets: np.ndarray, names: Sequence[str], selection: Selection) -> np.ndarray:
    """The test images of labels [n] that come without a split, bool [n]: a share of each class.

    Raises:
        DataError: a class with a single image.
    """
    sizes = np.bincount(targets, minlength=len(names))
    small = np.flatnonzero(sizes < 2)
    if small.size:
        more = f" (and {small.size - 1} more classes)" if small.size > 1 else ""
        raise DataError(
            f'{name}: class "{names[small[0]]}" has one image{more}; with no test set given, a class '
            "needs two, one to train and one to test"
        )
    share = np.clip(np.rint(sizes * selection.test_fraction), 1, sizes - 1)
    return ranks(targets, selection.split_seed, "test") < share[targets]


def drawn_test_of_sets(name: str, hot: np.ndarray, selection: Selection) -> np.ndarray:
    """The test images of label sets [n, C] that come without a split, bool [n]: a share of all images.

    One image of each class stays in the training set, whatever the share.

    Raises:
        DataError: every image is the only one of a class.
    """
    order = np.random.default_rng(derive(selection.split_seed, "test")).permutation(len(hot))
    spare = order[ranks(hot, selection.split_seed, "test")[order] > 0]  # not the first of any of its classes
    if not spare.size:
        raise DataError(
            f"{name}: every image is needed to train some class; with no test set given, "
            "some class needs two images"
        )
    test = np.zeros(len(hot), dtype=bool)
    test[spare[: max(1, round(len(hot) * selection.test_fraction))]] = True
    return test
