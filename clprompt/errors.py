"""The mistakes that a user can make, each told in one line.

Everything that clprompt raises for a reason outside its own code is a `ClpromptError`; its `str()` is the
line that the command line prints. Any other exception is a bug of ours and keeps its traceback.
"""

from __future__ import annotations

import difflib
import linecache
import re
import traceback
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any


class ClpromptError(Exception):
    """Base class; `str(error)` is the one line that a user sees."""

    def __str__(self) -> str:
        return " ".join(super().__str__().splitlines())


class ConfigError(ClpromptError, ValueError):
    """An unknown key or name, a wrong type, a value out of range."""


class DataError(ClpromptError, ValueError):
    """Data that is missing, labels that do not fit, images that cannot be read."""


class BackboneError(ClpromptError, ValueError):
    """A vision transformer that is not supported, or a checkpoint that does not fit it."""


class CheckpointError(ClpromptError, RuntimeError):
    """A checkpoint that is missing, unsafe to load, or of another configuration."""


class ExportError(ClpromptError, RuntimeError):
    """A model that cannot be written in another form, or what that needs is not installed."""


class HubError(ClpromptError, RuntimeError):
    """A repository of models that cannot be found, reached or written, or holds no model of clprompt."""


class RunFolderError(ClpromptError, RuntimeError):
    """A folder that is locked, already complete, or not the folder of a run."""


class ProtocolError(ClpromptError, RuntimeError):
    """A model used in the wrong order: a label that was never observed, `begin_experience` left out."""


class ProcessError(ClpromptError, RuntimeError):
    """Another process of the same run has ended, or does not answer."""


class NotFiniteError(ProtocolError):
    """Numbers that are not finite reached something that counts them."""


class Interrupted(ClpromptError):
    """A run that was asked to stop and has written its checkpoint.

    Args:
        signal: number of the signal that stopped it, 2 (SIGINT) or 15 (SIGTERM).
        folders: run folders that `clprompt resume` continues.
        finished: results of the runs that were done before, where several were asked for.
        again: the words of the command that continues, where it is another than `clprompt resume`.
    """

    def __init__(
        self,
        signal: int,
        folders: Iterable[Path] = (),
        finished: Iterable[Any] = (),
        again: Sequence[str] = (),
    ) -> None:
        self.signal = int(signal)
        self.folders = [Path(folder) for folder in folders]
        self.finished = list(finished)
        self.again = list(again)
        names = " ".join(self.again or ["clprompt", "resume", *map(str, self.folders)])
        super().__init__(
            f"interrupted; continue with: {names}" if self.folders or self.again else "interrupted"
        )

    def __reduce__(self) -> tuple[type[Interrupted], tuple[int, list[Path], list[Any], list[str]]]:
        return type(self), (self.signal, self.folders, self.finished, self.again)


class RunsFailed(ClpromptError):
    """Some of several runs failed; the others went on and are complete.

    Args:
        failures: what was wrong, by run folder.
        finished: results of the others.
    """

    def __init__(self, failures: Mapping[Path, ClpromptError], finished: Iterable[Any] = ()) -> None:
        self.failures = dict(failures)
        self.finished = list(finished)
        alike: dict[str, list[str]] = {}
        for folder, error in failures.items():
            alike.setdefault(str(error).removeprefix(f"{folder}: "), []).append(str(folder))
        lines = [f"{', '.join(folders)}: {text}" for text, folders in alike.items()]
        total = len(self.failures) + len(self.finished)
        super().__init__(f"{len(self.failures)} of {total} runs failed; " + "; ".join(lines))

    def __reduce__(self) -> tuple[type[RunsFailed], tuple[dict[Path, ClpromptError], list[Any]]]:
        return type(self), (self.failures, self.finished)


def printable(text: str) -> str:
    """Text that a terminal shows and does not obey.

    Control characters, marks of direction and bytes that are no text become ``\\x1b``, ``\\u202e`` and so on.
    """
    return _OBEYED.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


# tab and line feed stay
_OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def nearest(name: str, allowed: Iterable[str]) -> str:
    """A hint for a mistyped name: '; did you mean "x"?', or '' when nothing is close.

    Case does not matter, and `-` equals `_`.
    """
    plain = {str(candidate).lower().replace("-", "_"): str(candidate) for candidate in allowed}
    close = difflib.get_close_matches(str(name).lower().replace("-", "_"), plain, n=1, cutoff=0.6)
    return f'; did you mean "{plain[close[0]]}"?' if close else ""


class DataWarning(UserWarning):
    """Something about data that a user should read although it stops nothing; one line."""


def tell(text: str) -> None:
    """Issue a :class:`DataWarning`."""
    warnings.warn(text, DataWarning, stacklevel=3)


def place(error: BaseException, *kinds: type) -> str:
    """The last line that an error came by of the files of some classes and of their packages.

    Args:
        error: with its traceback; what caused it is looked through, too.
        kinds: classes of an author's own; of clprompt's classes their files alone.

    Returns:
        As "methods.py, line 12: index = int(self.experience)"; "" where it came by none.
    """
    modules = {kind.__module__ for kind in kinds}
    packages = {module.partition(".")[0] for module in modules} - {"clprompt"}
    found = ""
    while error is not None:
        for frame, line in traceback.walk_tb(error.__traceback__):
            module = str(frame.f_globals.get("__name__"))
            if module in modules or module.partition(".")[0] in packages:
                file = frame.f_code.co_filename
                text = linecache.getline(file, line, frame.f_globals).strip()
                found = f"{Path(file).name}, line {line}" + f": {text}" * bool(text)
        error = error.__cause__  # type: ignore[assignment]
    return found
