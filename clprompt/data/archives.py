"""Where published data sets come from, and the folder that their archives make, found wherever it was put."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from clprompt.data.folders import folders_in, split_part
from clprompt.errors import DataError


@dataclass(frozen=True)
class Archive:
    """What a data set is distributed as.

    Attributes:
        folder: the name of the folder that it makes, or the folders that lead to what is read, joined by "/".
        marks: what lies in that folder; each is a regular expression that one name or more must match.
        source: what to download and where, such as "imagenet-a.tar from https://...".
    """

    folder: str
    marks: tuple[str, ...]
    source: str

    def top(self, name: str, path: str) -> Path:
        """The folder of the data set: a path itself, or what the archive made in it.

        Args:
            name: of the data set; messages begin with it.
            path: that folder, or the one that holds it.

        Raises:
            DataError: there is no such folder; the message says what to download, or where it lies.
        """
        first = self.folder.partition("/")[0]
        inner = self.folder.removeprefix(first).removeprefix("/")
        places = [path, *(os.path.join(path, *words) for words in ([self.folder], [first, self.folder]))]
        if inner:
            places.append(os.path.join(path, inner))
        for place in map(Path, places):
            if self._is_top(place):
                above = Path(os.path.abspath(place)).parent
                if split_part(place.name) and self._is_top(above):
                    raise DataError(f"data set {name}: {place} is a part of it; give data.path={above}")
                return place
        wanted = (
            f"download {self.source}, unpack it, and give data.path the folder {self.folder} with its files, "
            "or the folder that holds that one"
        )
        if not os.path.isdir(path):
            what = f"{path} is a file" if os.path.exists(path) else f"there is no folder {path}"
            raise DataError(f"data set {name}: {what}; {wanted}")
        for place in (*Path(os.path.abspath(path)).parents[:2], *(Path(path, x) for x in folders_in(path))):
            if self._is_top(place):
                raise DataError(f"data set {name}: {path} is not its folder; give data.path={place}")
        for folder in places:
            if 0 < len(lacking := self._lacking(folder)) < len(self.marks):
                what = " and ".join(mark.replace("\\", "") for mark in lacking)
                raise DataError(f"data set {name}: {folder} lacks {what}; {wanted}")
        raise DataError(f"data set {name}: {path} is not its folder; {wanted}")

    def _is_top(self, folder: str | Path) -> bool:
        return not self._lacking(folder)

    def _lacking(self, folder: str | Path) -> list[str]:
        """The marks that nothing in a folder matches."""
        try:
            names = os.listdir(folder)
        except (OSError, ValueError):  # a NUL byte is no error of the system
            names = []
        return [mark for mark in self.marks if not any(re.fullmatch(mark, name) for name in names)]
