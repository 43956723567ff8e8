"""DomainNet: photographs, sketches and four more styles of 345 kinds of things."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, get_args

import numpy as np

from clprompt import schema
from clprompt.data.archives import Archive
from clprompt.data.bundle import DataBundle, takes_views
from clprompt.data.class_folders import found_bundle
from clprompt.data.lists import FoundImages, numbered_lines
from clprompt.data.reading import Reading, takes_reading
from clprompt.data.selection import Selection, takes_selection
from clprompt.errors import DataError
from clprompt.registry import datasets
from clprompt.schema import FilePath, not_empty

Style = Literal["clipart", "infograph", "painting", "quickdraw", "real", "sketch"]


@datasets.register("domainnet", paper="Peng et al., ICCV 2019", domains="its six styles")
@schema.checked
@takes_views()
@takes_selection(but=("test_fraction",))
@takes_reading()
def domainnet(
    *,
    path: FilePath = "data/DomainNet",
    domains: Annotated[list[Style], not_empty] | None = None,
    selection: Selection,
    reading: Reading,
) -> DataBundle:
    """DomainNet: 345 classes in 6 styles, which are its domains; 409832 + 176743 images by the cleaned lists.

    Class ids are those of the lists.

    Args:
        path: the folder with clipart/, ..., sketch/ and clipart_train.txt, clipart_test.txt, ... (or
            splits/ with the lists), or the one that holds it as DomainNet.
        domains: the styles to read; all six by default.
        classes: the classes to keep: names, or class ids such as 0-19.
        train_per_class: at most so many training images of each class, of all styles together.
        test_per_class: at most so many test images of each class, likewise.
        split_seed: decides which images those are.

    Raises:
        DataError: the data is not there, a list has a line of another form or names an image that is not
            there, or an image cannot be read.
    """
    styles = list(dict.fromkeys(domains or get_args(Style)))
    archive = Archive(
        "DomainNet",
        tuple(styles),
        "the zip file of each domain and its cleaned lists for training and test from http://ai.bu.edu/M3SDA/",
    )
    images = _listed(archive.top("domainnet", path), styles)
    return found_bundle("domainnet", images, selection, reading)


def _listed(top: Path, styles: Sequence[str]) -> FoundImages:
    """The images of the lists of some styles, training images first in each.

    Raises:
        DataError: a list that is missing or empty, a line of another form, classes that contradict.
    """
    lines = [
        (style, is_test, place, line)
        for style in styles
        for is_test, part in enumerate(("train", "test"))
        for place, line in numbered_lines(_list_file(top, f"{style}_{part}.txt"))
    ]
    names: dict[int, str] = {}
    ids: dict[str, int] = {}
    paths = []
    for style, _, place, line in lines:
        match = re.fullmatch(r"([^/\0]+)/([^/\0]+)/([^/\0]+) (\d{1,9})", line)
        if match is None or match[1] != style or ".." in match.groups():
            raise DataError(
                f'{place}: it must be {style}/CLASS/IMAGE, a blank and the class id, got "{line[:80]}"'
            )
        name, label = match[2], int(match[4])
        if names.setdefault(label, name) != name:
            raise DataError(f"{place}: class {label} is {name}, and {names[label]} before")
        if ids.setdefault(name, label) != label:
            raise DataError(f"{place}: the class of {name} is {label}, and {ids[name]} before")
        paths.append(os.path.join(top, line.rpartition(" ")[0]))
    return FoundImages(
        paths,
        [int(line.rpartition(" ")[2]) for *_, line in lines],
        np.array([bool(is_test) for _, is_test, *_ in lines]),
        names=[names.get(label, str(label)) for label in range(max(names) + 1)],
        places=[place for *_, place, _ in lines],
        domains=[style for style, *_ in lines],
    )


def _list_file(top: Path, name: str) -> Path:
    """A list, in the folder of the images or in splits/ below it."""
    file = top / name
    return file if file.exists() else top / "splits" / name if (top / "splits" / name).exists() else file
