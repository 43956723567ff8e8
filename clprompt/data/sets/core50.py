"""CORe50: videos of 50 things, each in 11 surroundings."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np

from clprompt import schema
from clprompt.data.archives import Archive
from clprompt.data.bundle import DataBundle, takes_views
from clprompt.data.class_folders import found_bundle
from clprompt.data.folders import folders_in, photographs
from clprompt.data.lists import FoundImages
from clprompt.data.reading import Reading, takes_reading
from clprompt.data.selection import Selection, takes_selection
from clprompt.errors import DataError
from clprompt.registry import datasets
from clprompt.schema import FilePath

_ARCHIVE = Archive(
    "core50_128x128",
    ("s1", "s11"),
    "core50_128x128.zip from http://bias.csr.unibo.it/maltoni/download/core50/core50_128x128.zip",
)
_CATEGORIES = (
    "plug_adapter",
    "mobile_phone",
    "scissor",
    "light_bulb",
    "can",
    "glass",
    "ball",
    "marker",
    "cup",
    "remote_control",
)
_EACH = 5  # objects of a category
_SESSIONS = range(1, 12)
_TEST = (3, 7, 10)


@datasets.register("core50", paper="Lomonaco & Maltoni, CoRL 2017", domains="its sessions")
@schema.checked
@takes_views()
@takes_selection(but=("test_fraction",))
@takes_reading()
def core50(
    *,
    path: FilePath = "data/core50_128x128",
    level: Literal["object", "category"] = "object",
    selection: Selection,
    reading: Reading,
) -> DataBundle:
    """CORe50: 50 objects in 11 sessions, which are its domains; sessions 3, 7 and 10 are the test set.

    164866 images, 128x128. No session is both trained and tested: the domains of the test set are new ones.

    Args:
        path: the folder core50_128x128, or the one that holds it; one of another size is read as well.
        level: what a class is: each object, or one of the 10 categories of 5 objects each.
        classes: the classes to keep: names, or class ids such as 0-19.
        train_per_class: at most so many training images of each class, of all sessions together.
        test_per_class: at most so many test images of each class, likewise.
        split_seed: decides which images those are.

    Raises:
        DataError: the data is not there, a session lacks an object that others have, or an image cannot
            be read.
    """
    top = _ARCHIVE.top("core50", path)
    images = _found(top, 1 if level == "object" else _EACH)
    return found_bundle("core50", images, selection, reading)


def _found(top: Path, each: int) -> FoundImages:
    """The images of all sessions; classes are so many objects each."""
    numbers = {f"o{number}": number for number in range(1, len(_CATEGORIES) * _EACH + 1)}
    held = {session: [x for x in folders_in(top / f"s{session}") if x in numbers] for session in _SESSIONS}
    objects = sorted(set().union(*held.values()), key=numbers.__getitem__)
    for session, there in held.items():
        if lacking := [x for x in objects if x not in there]:
            raise DataError(f"data set core50: {top / f's{session}'} lacks the object {lacking[0]}")
    if not objects:
        raise DataError(f"data set core50: {top / 's1'} holds no object, o1 to o{len(numbers)}")
    folders = [(session, x) for session in _SESSIONS for x in objects]
    below = photographs([top / f"s{session}" / x for session, x in folders])
    below.tell("core50")
    empty = np.setdiff1d(np.arange(len(folders)), below.roots)
    if empty.size:
        session, x = folders[empty[0]]
        raise DataError(f"{top / f's{session}' / x}: the folder holds no image")
    names = [f"{category}{n}" for category in _CATEGORIES for n in range(1, _EACH + 1)]
    sessions = np.array([session for session, _ in folders])[below.roots]
    return FoundImages(
        below.paths,
        np.array([(numbers[x] - 1) // each for _, x in folders])[below.roots],
        np.isin(sessions, _TEST),
        names=names if each == 1 else list(_CATEGORIES),
        domains=sessions,
    )
