"""How image files are read: what becomes of those that cannot be, and what every data set takes for it."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from clprompt import schema
from clprompt.data.images import MAX_PIXELS, ImageFiles, MaxPixels, looks_whole, reason_of, unreadable
from clprompt.errors import DataError, tell

OnBadImage = Literal["error", "skip"]
#: Of more files beginnings and ends are not looked at: ten thousand of a local disk take half a second.
_LOOKED_AT, _THREADS = 200_000, 16
HINT = "; mend or remove it, or set data.on_bad_image=skip"


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How images are read; the arguments of the same names of every data set that has them.

    Attributes:
        on_bad_image: "error" names an image that cannot be read: of files before anything is trained, if its
            beginning or end shows it, else when it is met; "skip" reads all at the start and leaves it out.
        max_pixels: an encoded image with more pixels cannot be read.
        cache: keep prepared images in memory.
    """

    on_bad_image: OnBadImage = "error"
    max_pixels: MaxPixels = MAX_PIXELS
    cache: bool = True

    def __post_init__(self) -> None:
        schema.check_fields(self, "data")


def takes_reading(
    *, but: Collection[str] = (), **defaults: Any
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorate a data set's function: the fields of :class:`Reading` are among its arguments.

    The function has an argument ``reading``, by which it gets them; the fields stand in its place.

    Args:
        but: fields that mean nothing to the data set.
        **defaults: the data set's own: ``on_bad_image="skip"``.
    """
    return schema.takes(Reading, "reading", but=but, defaults=defaults)


def readable(name: str, load: Callable[[int], Any], count: int, on_bad_image: OnBadImage) -> np.ndarray:
    """The indices of the images to use, int64 [n].

    Args:
        name: of the data set; messages begin with it.
        load: index -> image.
        count: how many images there are.
        on_bad_image: "error" uses all of them; "skip" decodes all and leaves out those that cannot be read.
    """
    everything = np.arange(count)
    if on_bad_image == "error":
        return everything
    bad = unreadable(load, everything)
    if bad:
        first = next(iter(bad.values())).removesuffix(HINT)
        tell(f"{name}: {len(bad)} of {count} images are left out; the first: {first}")
    return np.setdiff1d(everything, list(bad))


def readable_files(
    name: str, paths: Sequence[str], reading: Reading, places: Sequence[str] | None = None
) -> tuple[ImageFiles, np.ndarray]:
    """A loader of image files, and the indices of those to use, int64 [n].

    Args:
        name: of the data set; messages begin with it.
        paths: of the files.
        reading: how they are read.
        places: where each path is listed, such as "data.csv, line 3", for messages.

    Raises:
        DataError: a file is missing or empty; what shows without decoding is told before anything trains.
    """
    if reading.on_bad_image == "error":
        for position, path in enumerate(paths):
            try:
                status = os.stat(path)
                problem = "" if status.st_size else "it is empty"
                if not stat.S_ISREG(status.st_mode):
                    problem = "it is not a file"
            except (OSError, ValueError) as error:
                problem = reason_of(error, path)
            if problem:
                place = "" if places is None else f"{places[position]}: "
                raise DataError(f"{place}{path}: the image cannot be read: {problem}{HINT}")
    load = ImageFiles(list(paths), HINT, reading.max_pixels)
    if reading.on_bad_image == "error" and len(paths) <= _LOOKED_AT:
        with ThreadPoolExecutor(_THREADS) as pool:  # a disk or a server may be far away
            whole = list(pool.map(looks_whole, paths))
        bad = unreadable(load, np.flatnonzero(np.logical_not(whole)))
        for position, message in bad.items():
            place = "" if places is None else f"{places[position]}: "
            raise DataError(f"{place}{message}")
    return load, readable(name, load, len(paths), reading.on_bad_image)
