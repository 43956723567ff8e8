"""The photographs below folders: one walk for what trains and for what is predicted.

Names that begin with a dot and what systems put beside photographs are no part of a folder, at any depth;
each real folder is read once, whatever links lead to it; photographs of kinds that are not read are counted.
"""

from __future__ import annotations

import os
import re
import stat
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from clprompt.data.images import EXTENSIONS, is_image
from clprompt.errors import DataError, tell

#: Folders that a system makes: of a Mac's archives, of network disks, of Windows and of Linux file systems.
_SYSTEM_FOLDERS = {
    "__macosx",
    "@eadir",
    "#recycle",
    "$recycle.bin",
    "system volume information",
    "lost+found",
}
#: Files that make a folder that of a run: its drawings are no photographs.
_RUN_FILES = {"config.yaml", "run.log"}


def _endings(text: str) -> frozenset[str]:
    return frozenset(text.split())


#: Photographs and pictures that are not read.
_OTHER_PHOTOGRAPHS = _endings(
    """.heic .heif .hif .avif .jxl .jp2 .j2k .jpf .jpx .jpm .j2c .jif .jfi .jxr .wdp .apng .dib .raw .dng
    .cr2 .cr3 .crw .nef .nrw .arw .srf .sr2 .orf .rw2 .raf .pef .srw .x3f .3fr .iiq .rwl .mpo .psd .tga
    .exr .hdr .ico .icns .svg .eps .pcx .dcm"""
)
#: Files that lie beside photographs and are none; of another ending one file is looked into.
_OTHER_FILES = _endings(
    """.txt .csv .tsv .json .jsonl .xml .yaml .yml .md .rst .html .htm .pdf .db .ini .mat .npy .npz .pkl
    .pt .pth .h5 .hdf5 .parquet .arrow .py .ipynb .sh .log .zip .tar .gz .tgz .bz2 .xz .7z .rar .mp4 .mov
    .avi .mkv .webm .mp3 .wav .aae .thm .xmp .url .lnk .sqlite .lock .bak"""
)


@dataclass(frozen=True)
class Folder:
    """One real folder.

    Attributes:
        root: the position of the root that it lies below.
        path: of the folder.
        parts: the names that lead to it from its root.
        files: the names of what is in it and is no folder, sorted.
    """

    root: int
    path: str
    parts: tuple[str, ...]
    files: list[str]


@dataclass
class Walk:
    """What lies below some folders.

    Attributes:
        folders: by root, each before the folders in it, and those sorted by name.
        doubles: links, or roots, to a folder that is read already, or to one above: (path, that folder).
        closed: folders that the system does not let us read, and its reason.
        runs: folders of runs, which are left out.
    """

    folders: list[Folder] = field(default_factory=list)
    doubles: list[tuple[str, str]] = field(default_factory=list)
    closed: list[tuple[str, str]] = field(default_factory=list)
    runs: list[str] = field(default_factory=list)


def visible(name: str) -> bool:
    """Whether a file or folder of this name belongs to what a user has put into a folder."""
    return not name.startswith(".") and name.lower() not in _SYSTEM_FOLDERS


_SPLIT = re.compile(r"(?:(train)(?:ing)?|(test)(?:ing)?|(val)(?:id(?:ation)?)?)(?:[ _-]?set)?", re.IGNORECASE)


def split_part(name: str) -> str | None:
    """Whether a folder's name says train, test or val."""
    match = _SPLIT.fullmatch(name)
    return match and next(filter(None, match.groups())).lower()


def folders_in(folder: str | os.PathLike[str]) -> list[str]:
    """The names of the visible folders in a folder, sorted; none where it is no folder.

    Raises:
        DataError: it cannot be read.
    """
    if not os.path.isdir(folder):
        return []
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in entries if visible(entry.name) and _is_folder(entry))
    except OSError as error:
        raise DataError(f"{folder}: the folder cannot be read: {error.strerror or error}") from error


def walk(roots: Sequence[str | os.PathLike[str]], within: Iterable[str | os.PathLike[str]] = ()) -> Walk:
    """What lies below folders, each real folder once: real ones come before links that lead to them.

    Args:
        roots: the folders.
        within: folders that hold them; a link to one of those, or above, leads back and is not followed.
    """
    walker = _Walker()
    for folder in (*within, *(os.path.dirname(os.path.realpath(root)) for root in roots)):
        walker.add_above(os.path.realpath(folder))
    for linked in (False, True):
        for number, root in enumerate(roots):
            if os.path.islink(root) == linked:
                walker.read(number, os.fspath(root), ())
    while walker.links:
        number, path, parts = walker.links.popleft()
        target, here = os.path.realpath(path), os.path.realpath(os.path.dirname(path))
        if os.path.commonpath([target, here]) == target:  # leads back to where it lies
            walker.result.doubles.append((path, target))
        else:
            walker.read(number, path, parts)
    walker.result.folders.sort(key=lambda folder: (folder.root, folder.parts))
    return walker.result


class _Walker:
    """The state of one walk.

    Attributes:
        result: what has been read.
        links: links to folders that are still to be followed: (root, path, parts).
    """

    def __init__(self) -> None:
        self.result = Walk()
        self.links: deque[tuple[int, str, tuple[str, ...]]] = deque()
        self._paths: dict[tuple[int, int], str] = {}  # of what is read, by device and inode
        self._above: dict[tuple[int, int], str] = {}  # of the folders above the roots

    def add_above(self, folder: str) -> None:
        """Remember a real folder and all above it."""
        while folder not in self._above.values():
            facts = os.stat(folder)
            self._above[facts.st_dev, facts.st_ino] = folder
            folder = os.path.dirname(folder)

    def read(self, root: int, path: str, parts: tuple[str, ...]) -> None:
        """Read a folder and all real folders in it; a link in it waits."""
        stack = [(path, parts)]
        while stack:
            path, parts = stack.pop()
            try:
                facts = os.stat(path)
                key = (facts.st_dev, facts.st_ino)
                before = self._paths.get(key) or self._above.get(key)
                if before is not None:
                    self.result.doubles.append((path, before))
                    continue
                self._paths[key] = path
                with os.scandir(path) as entries:
                    held = sorted((entry for entry in entries if visible(entry.name)), key=lambda e: e.name)
            except OSError as error:
                self.result.closed.append((path, error.strerror or str(error)))
                continue
            if {entry.name for entry in held} >= _RUN_FILES:
                self.result.runs.append(path)
                continue
            here = Folder(root, path, parts, [])
            for entry in held:
                if not _is_folder(entry):
                    here.files.append(entry.name)
                elif entry.is_symlink():
                    self.links.append((root, entry.path, (*parts, entry.name)))
                else:
                    stack.append((entry.path, (*parts, entry.name)))
            self.result.folders.append(here)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


# ---------------------------------------------------------------------------------------------- photographs


@dataclass(frozen=True)
class Photographs:
    """The photographs below some folders.

    Attributes:
        paths: of the files, n of them, in the order of :attr:`Walk.folders`.
        roots: the position of the root that each lies below, int64 [n].
        left_out: how many of other kinds there are, by extension.
        below: the walk that found them.
    """

    paths: list[str]
    roots: np.ndarray
    left_out: Counter[str]
    below: Walk

    def tell(self, name: str) -> None:
        """Say what is left out, a line for each kind of reason; messages begin with a name."""
        if self.left_out:
            total = self.left_out.total()
            tell(
                f"{name}: {total} {'photograph is' if total == 1 else 'photographs are'} left out for the "
                f"extension ({self.counts_left_out()}); read are {', '.join(EXTENSIONS)}"
            )
        if self.below.doubles:
            link, folder = self.below.doubles[0]
            tell(
                f"{name}: links to folders that are read already, or hold them, are left out: "
                f"{len(self.below.doubles)}, the first: {link}, which is {folder}"
            )
        if self.below.runs:
            runs = self.below.runs
            tell(f"{name}: folders of runs are left out: {len(runs)}, the first: {runs[0]}")

    def counts_left_out(self) -> str:
        """How many photographs of which extension are left out: "4 .heic, 1 .avif"."""
        kinds = self.left_out.most_common()
        return ", ".join(f"{count} {ending or 'without one'}" for ending, count in kinds)


def photographs(
    roots: Sequence[str | os.PathLike[str]], within: Iterable[str | os.PathLike[str]] = ()
) -> Photographs:
    """The photographs below folders; arguments as for :func:`walk`."""
    below = walk(roots, within)
    paths: list[str] = []
    numbers: list[int] = []
    left_out: Counter[str] = Counter()
    is_photograph: dict[str, bool] = {}
    for folder in below.folders:
        for name in folder.files:
            path, ending = os.path.join(folder.path, name), os.path.splitext(name)[1].lower()
            if ending not in EXTENSIONS:
                if not ending or ending not in is_photograph:  # without one, each file may be anything
                    is_photograph[ending] = _is_photograph(path, ending)
                left_out[ending] += is_photograph[ending]
                continue
            paths.append(path)
            numbers.append(folder.root)
    return Photographs(paths, np.array(numbers, dtype=np.int64), +left_out, below)


def _is_photograph(path: str, ending: str) -> bool:
    if ending in _OTHER_PHOTOGRAPHS or ending in _OTHER_FILES:
        return ending in _OTHER_PHOTOGRAPHS
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            return False
        with open(path, "rb") as file:
            return is_image(file.read(16))
    except OSError:
        return False
