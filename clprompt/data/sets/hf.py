"""Data sets of Hugging Face's library ``datasets``: local folders, and what its cache holds; no stream."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from clprompt import schema
from clprompt.data import fingerprint as fingerprints
from clprompt.data.bundle import DataBundle, assemble, takes_views
from clprompt.data.fingerprint import Fingerprint
from clprompt.data.folders import folders_in
from clprompt.data.images import Joined, Selected, UnreadableImage, read_image
from clprompt.data.reading import HINT, Reading, readable, takes_reading
from clprompt.data.selection import Selection, takes_selection
from clprompt.errors import ConfigError, DataError, nearest, tell
from clprompt.registry import datasets
from clprompt.schema import FilePath

#: What the test split may be called where ``test_split`` does not say; the first that is there is taken.
_TESTS = ("test", "validation", "valid", "val")
#: Files that ``save_to_disk`` writes: of several splits, of one.
_SAVED = ("dataset_dict.json", "state.json")


@datasets.register("hf", domains="data.domain names a column")
@schema.checked
@takes_views()
@takes_selection()
@takes_reading()
def hf(
    *,
    path: FilePath = "data",
    config: str | None = None,
    train_split: str = "train",
    test_split: str | None = None,
    image: str = "image",
    label: str = "label",
    domain: str | None = None,
    download: bool = False,
    selection: Selection,
    reading: Reading,
) -> DataBundle:
    """A data set of Hugging Face's library ``datasets`` (extra ``hf``): a local folder, or from its cache.

    Args:
        path: a folder that ``save_to_disk`` wrote, or one that ``load_dataset`` reads (Parquet files, class
            folders, ...); else a name on the Hub, such as ``org/name``, of which the cache has a copy.
        config: the configuration of a data set that has several.
        train_split: the split to train on.
        test_split: the split to test on; by default the one called test or, without it, validation. Without
            either, test images are drawn from each class.
        image: the column of images.
        label: the column of labels: class labels, integers or text.
        domain: the column that says where each image comes from, for streams that go by it.
        download: ask the Hub for what the cache does not have.
        test_fraction: share of each class that is the test set, where there is no split for it.
        split_seed: decides which images those are, and those of ``train_per_class`` and ``test_per_class``.
        classes: the classes to keep: names, or class ids such as 0-19.
        train_per_class: at most so many training images of each class.
        test_per_class: at most so many test images of each class.

    Raises:
        ConfigError: ``datasets`` is not installed; one split in both parts.
        DataError: no such folder, name, configuration, split or column; a column of another kind; an image
            that cannot be read.
    """
    name = f"hf {path}"
    splits = _splits(name, path, config, train_split, download)
    parts = [_part(name, splits, train_split, "train_split", image, reading.max_pixels)]
    if test_split is None:
        test_split = next((each for each in _TESTS if each in splits and each != train_split), None)
    if test_split is not None:
        if test_split == train_split:
            raise ConfigError(f"data.test_split must be another split than data.train_split, {train_split}")
        parts.append(_part(name, splits, test_split, "test_split", image, reading.max_pixels))
    used = [part.split for part in parts]
    if others := [each for each in splits if each not in used]:
        tell(f"{name}: of its splits {' and '.join(used)} are used; left out: {', '.join(others)}")
    counts = [len(part.images) for part in parts]
    labels, names = _labels(parts, label)
    load = Joined([part.images for part in parts], counts)
    use = readable(name, load, sum(counts), reading.on_bad_image)
    return assemble(
        name,
        Selected(load, use),
        labels[use],
        None if test_split is None else (np.arange(sum(counts)) >= counts[0])[use],
        selection,
        cache=reading.cache,
        names=names,
        domains=None if domain is None else _values(parts, domain, "domain")[use],
    )


# ------------------------------------------------------------------------------------------------ opening


def _splits(name: str, path: str, config: str | None, train_split: str, download: bool) -> dict[str, Any]:
    """Tables by the name of their split.

    Raises:
        ConfigError: the library is not installed.
        DataError: there is no such data set, or it cannot be read.
    """
    try:
        import datasets as library
    except ImportError:
        raise ConfigError("data=hf needs Hugging Face's datasets: pip install 'clprompt[hf]'") from None
    if os.path.isdir(path) and not _is_saved(path):
        for folder in folders_in(path):
            if _is_saved(os.path.join(path, folder)):
                inner = os.path.join(path, folder)
                raise DataError(f"{name}: the data set lies one level deeper; give data.path={inner}")
    try:
        with _hub(download):
            held = library.load_from_disk(path) if _is_saved(path) else library.load_dataset(path, config)
    except Exception as error:  # the library, Arrow and the Hub each fail in their own way
        reason = " ".join(str(error).split())[:300]
        if os.path.exists(path):
            raise DataError(f"{name}: the data set cannot be read: {reason}") from error
        where = "" if download else "; data.download=true asks the Hub"
        raise DataError(
            f"data.path: there is no folder {path}, and no data set of that name in the cache of datasets "
            f"({library.config.HF_DATASETS_CACHE}){where}: {reason}"
        ) from error
    return dict(held) if isinstance(held, dict) else {train_split: held}


def _is_saved(folder: str) -> bool:
    return any(os.path.isfile(os.path.join(folder, file)) for file in _SAVED)


@contextmanager
def _hub(asked: bool) -> Iterator[None]:
    """Nothing is asked of the Hub unless it may be; the environment's HF_HUB_OFFLINE still says no."""
    import datasets.config
    import huggingface_hub.constants

    if asked:
        yield
        return
    switches = [
        (module, key)
        for module in (datasets.config, huggingface_hub.constants)
        for key in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")
        if hasattr(module, key)
    ]
    before = [getattr(module, key) for module, key in switches]
    try:
        for module, key in switches:
            setattr(module, key, True)
        yield
    finally:
        for (module, key), value in zip(switches, before, strict=True):
            setattr(module, key, value)


# ------------------------------------------------------------------------------------------------ columns


@dataclass(frozen=True)
class _Images:
    """Index -> the decoded image of a row.

    Attributes:
        name: what messages call the split.
        rows: a table with the one column "image", each a path or the bytes of a file.
        max_pixels: see :func:`read_image`.
    """

    name: str
    rows: Any
    max_pixels: int

    def __len__(self) -> int:
        return len(self.rows)

    def __call__(self, index: int) -> Any:
        path, data = self._held(int(index))
        place = f"{self.name}, image {index}" if path is None or data is not None else path
        try:
            file = path if data is None and path else data or b""
            return read_image(file, place, max_pixels=self.max_pixels)
        except UnreadableImage as error:
            raise UnreadableImage(f"{error}{HINT}") from error

    def _held(self, index: int) -> tuple[str | None, bytes | None]:
        """The path and the bytes of a file, of which the library keeps one or both."""
        held = self.rows[index]["image"]
        return (None, None) if held is None else (held["path"], held["bytes"])

    def fingerprint(self, indices: np.ndarray) -> Fingerprint:
        if not len(self) or self._held(0)[1] is not None:
            return fingerprints.of_encoded(lambda index: self._held(index)[1] or b"", indices)
        return fingerprints.of_files([self._held(int(index))[0] or "" for index in indices])


@dataclass(frozen=True)
class _Part:
    """One split: its name, its images, and the table of its other columns."""

    split: str
    images: _Images
    table: Any


def _part(name: str, splits: Mapping[str, Any], split: str, key: str, image: str, max_pixels: int) -> _Part:
    """A split, by the argument ``key``, with its column of images as files that nobody has decoded.

    Raises:
        DataError: no such split, no such column, or one that holds no images.
    """
    from datasets import Image

    if split not in splits:
        hint = nearest(split, splits)
        raise DataError(f"{name}: there is no split {split}{hint}; it has {', '.join(splits)} (data.{key})")
    table = splits[split].with_format(None)
    place = f"{name}, split {split}"
    _check_column(place, table, image, "image")
    try:
        rows = table.select_columns([image]).rename_columns({image: "image"})
        rows = rows.cast_column("image", Image(decode=False))
    except Exception as error:  # Arrow refuses kinds in ways of its own
        raise DataError(
            f"{place}: the column {image} holds no images but {table.features[image]} (data.image)"
        ) from error
    return _Part(split, _Images(place, rows, max_pixels), table)


def _check_column(place: str, table: Any, column: str, key: str) -> None:
    if column not in table.column_names:
        hint = nearest(column, table.column_names)
        held = ", ".join(table.column_names)
        raise DataError(f'{place}: there is no column "{column}"{hint}; it has {held} (data.{key})')


def _values(parts: Sequence[_Part], column: str, key: str) -> np.ndarray:
    """What a column holds, of all parts, integers or text [n].

    Raises:
        DataError: no such column, one of another kind, or a row without a value.
    """
    values: list[Any] = []
    for part in parts:
        place = part.images.name
        _check_column(place, part.table, column, key)
        kind = part.table.features[column]
        if not re.fullmatch(r"u?int\d+|(large_)?string", str(getattr(kind, "dtype", ""))):
            text = " ".join(str(kind).split())[:80]
            what = "class labels, integers or text"
            raise DataError(f"{place}: the column {column} must hold {what}, not {text} (data.{key})")
        held = part.table[column][:]
        if None in held:
            raise DataError(f"{place}, row {held.index(None)}: the {key} is missing (data.{key}={column})")
        values += held
    return np.array(values)


def _labels(parts: Sequence[_Part], column: str) -> tuple[np.ndarray, list[str] | None]:
    """The label of every row [n], and the names of class labels.

    Raises:
        DataError: see :func:`_values`; splits whose class labels differ.
    """
    values = _values(parts, column, "label")
    names = [getattr(part.table.features[column], "names", None) for part in parts]
    if any(other != names[0] for other in names):
        splits = " and ".join(part.split for part in parts)
        raise DataError(
            f"{parts[0].images.name}: the splits {splits} name other classes in the column {column}"
        )
    return values, names[0]
