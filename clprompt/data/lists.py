"""Lists of images: which images of a folder train and which test, as publications write them down.

=============== ====================================================================================
.yaml, .yml     a mapping of ``data``, paths, and ``targets``, the label of each, which may be absent
any other       text: a path a line, and behind a blank, a tab or a comma its label, which may be absent
=============== ====================================================================================

Paths start wherever the machine that wrote them had its data: what leads to the user's folder is cut off.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from clprompt.data.folders import split_part
from clprompt.data.images import EXTENSIONS
from clprompt.data.names import class_name
from clprompt.errors import DataError, tell
from clprompt.schema import FilePath

#: What the ``lists`` argument of a data set may be: the files of the training and of the test images.
Lists = tuple[FilePath, FilePath]


@dataclass(frozen=True)
class Published:
    """A list that a publication's code comes with.

    Attributes:
        source: repository and path of the file.
        blob: what git calls its content (``git hash-object FILE``).
    """

    source: str
    blob: str


@dataclass(frozen=True)
class FoundImages:
    """Image files, n of them.

    Attributes:
        paths: of the files.
        labels: the class of each: the name of its folder, or a position in ``names``.
        is_test: which are test images, bool [n]; None where nothing says so.
        names: of the classes, where labels are integers.
        places: where each is listed, such as "train.txt, line 3".
        domains: the name of the domain folder of each; None where there are none.
    """

    paths: list[str]
    labels: Sequence[Any]
    is_test: np.ndarray | None = None
    names: list[str] | None = None
    places: list[str] | None = None
    domains: list[str] | None = None


def listed_images(
    name: str,
    root: str | os.PathLike[str],
    lists: Sequence[str],
    published: Sequence[Published] | None = None,
    domain_folders: bool = False,
) -> FoundImages:
    """The images that two lists name, below a folder of class folders.

    The class of an image is its folder: the first below ``root``, or the first in a folder of the split.
    Labels must agree with the folders; where they are integers, they decide the order of the classes.

    Args:
        name: of the data set; messages begin with it.
        root: the folder that the paths lie in.
        lists: the files of the training and of the test images.
        published: the published lists, in the same order; others are told.
        domain_folders: whether class folders lie in a folder for each domain.

    Raises:
        DataError: a file that is missing, empty or none of a list's forms; a path that is not below ``root``,
            or in no class folder; an image in both lists; labels that contradict the folders.
    """
    train, test = (_read(file) for file in lists)
    if published is not None:
        _check_published(name, (train, test), published)
    for one, other in ((train, test), (test, train)):
        if one.labels is None and other.labels is not None:
            raise DataError(f"{one.file}: it has no labels, and {other.file} has; give both in one form")
    places = [*train.places, *test.places]
    below = [*_below(train, root), *_below(test, root)]
    listed: dict[str, int] = {}
    for row, path in enumerate(below):
        first = listed.setdefault(path, row)
        if first < len(train.paths) <= row:
            raise DataError(f"{places[row]}: {path} is a training image, too ({places[first]})")
    domains, folders = _folders(below, places, root, domain_folders)
    labels: Sequence[Any] = folders
    names = None
    if train.labels is not None and test.labels is not None:
        labels, names = _numbered([*train.labels, *test.labels], folders, places)
    is_test = np.arange(len(below)) >= len(train.paths)
    return FoundImages([os.path.join(root, path) for path in below], labels, is_test, names, places, domains)


# ------------------------------------------------------------------------------------------------- reading


@dataclass(frozen=True)
class _List:
    """One file: the paths in it, their places and labels."""

    file: str
    blob: str
    paths: list[str]
    places: list[str]
    labels: list[int | str] | None


def _read(file: str) -> _List:
    if not os.path.isfile(file):
        what = "it is not a file" if os.path.exists(file) else "there is no such file"
        raise DataError(f"data.lists: {file}: {what}")
    content = _content(file)
    is_yaml = file.lower().endswith((".yaml", ".yml"))
    paths, places, labels = _of_yaml(file, content) if is_yaml else _of_lines(file, content)
    if not paths:
        raise DataError(f"data.lists: {file}: there is no image in it")
    blob = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
    return _List(file, blob, paths, places, labels)


def _content(file: str | os.PathLike[str]) -> bytes:
    try:
        with open(file, "rb") as stream:
            return stream.read()
    except (OSError, ValueError) as error:  # a NUL byte is no part of a path
        raise DataError(f"{file}: {getattr(error, 'strerror', None) or error}") from error


def text_of(file: str | os.PathLike[str]) -> str:
    """What a file of text in UTF-8 holds.

    Raises:
        DataError: it cannot be read.
    """
    return _text(file, _content(file))


def _text(file: str | os.PathLike[str], content: bytes) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: this is not text in UTF-8") from error


def numbered_lines(file: str | os.PathLike[str], content: bytes | None = None) -> Iterator[tuple[str, str]]:
    """The lines of a file that hold something, without the blanks around them, each with its place.

    Args:
        file: of text in UTF-8.
        content: what it holds, where that is known.

    Returns:
        Pairs such as ("train.txt, line 3", "a/0.jpg").

    Raises:
        DataError: it cannot be read.
    """
    text = text_of(file) if content is None else _text(file, content)
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            yield f"{file}, line {number}", line.strip()


_LINE = re.compile(rf"(.*(?:{'|'.join(map(re.escape, EXTENSIONS))}))(?:[ \t,]+(\S.*))?", re.IGNORECASE)


def _of_lines(file: str, content: bytes) -> tuple[list[str], list[str], list[int | str] | None]:
    paths: list[str] = []
    places: list[str] = []
    labels: list[int | str] = []
    for place, line in numbered_lines(file, content):
        match = _LINE.fullmatch(line)
        if match is None or "\0" in line:
            raise DataError(
                f"{place}: it must be the path of an image, and perhaps its label, got {line[:60]!r}"
            )
        if paths and bool(labels) != (match[2] is not None):
            what = "the label is missing" if labels else "lines before have no label"
            raise DataError(f"{place}: {what}")
        if match[2] is not None:
            labels.append(int(match[2]) if re.fullmatch(r"-?\d{1,18}", match[2]) else match[2])
        paths.append(match[1].strip())
        places.append(place)
    return paths, places, labels or None


def _of_yaml(file: str, content: bytes) -> tuple[list[str], list[str], list[int | str] | None]:
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # 24000 images: a second, and ten without it
    try:
        held = yaml.load(_text(file, content), Loader=loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or " ".join(str(error).split())[:200]
        raise DataError(f"data.lists: {file}{line}: this is not YAML: {problem}") from error
    if not isinstance(held, Mapping) or not isinstance(held.get("data"), list):
        raise DataError(f"data.lists: {file}: it must hold data, a list of paths, and perhaps targets")
    paths, targets = held["data"], held.get("targets")
    if targets is not None and (not isinstance(targets, list) or len(targets) != len(paths)):
        count = len(targets) if isinstance(targets, list) else "none"
        raise DataError(
            f"data.lists: {file}: of {len(paths)} data there must be as many targets, not {count}"
        )
    for position, path in enumerate(paths):
        if not isinstance(path, str) or "\0" in path:
            raise DataError(f"data.lists: {file}, data[{position}] must be a path, got {path!r:.60}")
    for position, label in enumerate(targets or []):
        if not isinstance(label, int | str) or isinstance(label, bool):
            place = f"data.lists: {file}, targets[{position}]"
            raise DataError(f"{place} must be an integer or text, got {label!r:.60}")
    return paths, [f"{file}, data[{position}]" for position in range(len(paths))], targets


def _check_published(name: str, lists: Sequence[_List], published: Sequence[Published]) -> None:
    known = {each.blob: part for each, part in zip(published, ("training", "test"), strict=True)}
    for each, part in zip(lists, ("training", "test"), strict=True):
        if known.get(each.blob, part) != part:
            other = known[each.blob]
            raise DataError(f"data.lists: {each.file} is the published list of {other} images, not of {part}")
    others = [each.file for each in lists if each.blob not in known]
    if others:
        sources = " and ".join(each.source for each in published)
        tell(
            f"{name}: {' and '.join(others)} {'is' if len(others) == 1 else 'are'} not the published "
            f"{'list' if len(others) == 1 else 'lists'} ({sources}); published figures are of those images"
        )


# --------------------------------------------------------------------------------------- places and classes

_PROBES = 100  # entries that are looked for before a list is called one of other images


def _below(listed: _List, root: str | os.PathLike[str]) -> list[str]:
    """The paths of a list as they start from ``root``; the same number of folders is cut off each."""
    parts = [_parts(path, place) for path, place in zip(listed.paths, listed.places, strict=True)]
    for words in parts[:_PROBES]:
        for cut in range(len(words)):
            if os.path.lexists(os.path.join(root, *words[cut:])):
                break
        else:
            continue
        break
    else:
        raise DataError(f"{listed.places[0]}: {listed.paths[0]} is not below {root}, nor are the others")
    for words, place in zip(parts, listed.places, strict=True):
        if len(words) <= cut or words[:cut] != parts[0][:cut]:
            start = "/".join(parts[0][:cut])
            raise DataError(f"{place}: {'/'.join(words)} does not begin with {start}/ as the others do")
    return ["/".join(words[cut:]) for words in parts]


def _parts(path: str, place: str) -> list[str]:
    parts = list(PurePosixPath(path if "/" in path else path.replace("\\", "/")).parts)
    if ".." in parts:
        raise DataError(f"{place}: {path} leads out of its folder")
    return parts


def _folders(
    paths: Sequence[str], places: Sequence[str], root: str | os.PathLike[str], with_domains: bool
) -> tuple[list[str] | None, list[str]]:
    """The domain folder of each path, where there are such, and the class folder."""
    found: list[list[str]] = []
    for path, place in zip(paths, places, strict=True):
        *folders, _ = path.split("/")
        if len(folders) > 1 + with_domains and split_part(folders[0]):
            folders = folders[1:]
        if len(folders) <= with_domains:
            missing = "no folder of a domain and a class" if with_domains else "no class folder"
            raise DataError(f"{place}: {path} lies in {missing} of {root}")
        found.append([class_name(folder) for folder in folders[: 1 + with_domains]])
    return [folders[0] for folders in found] if with_domains else None, [folders[-1] for folders in found]


def _numbered(
    labels: Sequence[int | str], folders: Sequence[str], places: Sequence[str]
) -> tuple[Sequence[Any], list[str] | None]:
    """Labels 0..C-1 in the lists' order, and the folder of each; folders alone where labels are text."""
    folder_of: dict[int | str, str] = {}
    label_of: dict[str, int | str] = {}
    for label, folder, place in zip(labels, folders, places, strict=True):
        if folder_of.setdefault(label, folder) != folder:
            raise DataError(
                f"{place}: the label {label} is that of {folder}/, and of {folder_of[label]}/ before"
            )
        if label_of.setdefault(folder, label) != label:
            raise DataError(f"{place}: the label of {folder}/ is {label}, and {label_of[folder]} before")
    if not all(isinstance(label, int) for label in folder_of):
        return folders, None
    order = {label: number for number, label in enumerate(sorted(folder_of))}  # type: ignore[type-var]
    return [order[label] for label in labels], [folder_of[label] for label in order]
