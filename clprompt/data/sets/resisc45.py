"""NWPU-RESISC45: kinds of land use, from above."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from clprompt import schema
from clprompt.data.archives import Archive
from clprompt.data.bundle import DataBundle, takes_views
from clprompt.data.class_folders import class_folders, found_bundle
from clprompt.data.lists import FoundImages, numbered_lines
from clprompt.data.reading import Reading, takes_reading
from clprompt.data.selection import Selection, takes_selection
from clprompt.errors import DataError, tell
from clprompt.registry import datasets
from clprompt.schema import FilePath

_ARCHIVE = Archive(
    "NWPU-RESISC45",
    ("airplane", "wetland"),
    "NWPU-RESISC45.zip from https://hf.co/datasets/torchgeo/resisc45, or the authors' NWPU-RESISC45.rar",
)
#: The lists that torchgeo has beside the folder: names of files alone, as no two classes share one.
_LISTS = {part: f"resisc45-{part}.txt" for part in ("train", "val", "test")}


@datasets.register("resisc45", paper="Cheng et al., Proceedings of the IEEE 2017")
@schema.checked
@takes_views()
@takes_selection()
@takes_reading()
def resisc45(
    *,
    path: FilePath = "data/NWPU-RESISC45",
    list_folder: FilePath | None = None,
    selection: Selection,
    reading: Reading,
) -> DataBundle:
    """NWPU-RESISC45: 45 kinds of land use, 31500 satellite images, 256x256; no split of its own.

    Args:
        path: the folder NWPU-RESISC45, or the one that holds it.
        list_folder: the folder with resisc45-train.txt, resisc45-val.txt and resisc45-test.txt, the split of
            Neumann et al. 2019 (18900 + 6300 + 6300 images; those of val are left out); None to draw one.
        test_fraction: share of each class that is the test set, where there are no lists.
        split_seed: decides which images those are, and those of ``train_per_class`` and ``test_per_class``.
        classes: the classes to keep: names, or positions in their alphabetical order such as 0-19.
        train_per_class: at most so many training images of each class.
        test_per_class: at most so many test images of each class.

    Raises:
        DataError: the data is not there, a list names an image that is not there or is in both, or an image
            cannot be read.
    """
    images = class_folders("resisc45", _ARCHIVE.top("resisc45", path))
    if list_folder is not None:
        images = _listed(images, Path(list_folder))
    return found_bundle("resisc45", images, selection, reading)


def _listed(images: FoundImages, folder: Path) -> FoundImages:
    """The images of the training and the test list; those of the third are left out.

    Raises:
        DataError: a list that is missing or empty, names an image that is not there, or one again.
    """
    rows = {os.path.basename(path): row for row, path in enumerate(images.paths)}
    places: dict[str, str] = {}
    chosen: dict[str, list[int]] = {part: [] for part in _LISTS}
    for part, file in _LISTS.items():
        for place, name in numbered_lines(folder / file):
            if name not in rows:
                raise DataError(f"{place}: there is no image {name[:80]} in a class folder")
            if name in places:
                raise DataError(f"{place}: {name} is listed before, in {places[name]}")
            places[name] = place
            chosen[part].append(rows[name])
        if not chosen[part]:
            raise DataError(f"{folder / file}: there is no image in it")
    tell(f"resisc45: {len(chosen['val'])} validation images are left out, as there are test images")
    use = np.array([*chosen["train"], *chosen["test"]])
    return FoundImages(
        [images.paths[row] for row in use],
        [images.labels[row] for row in use],
        np.arange(len(use)) >= len(chosen["train"]),
        places=[places[os.path.basename(images.paths[row])] for row in use],
    )
