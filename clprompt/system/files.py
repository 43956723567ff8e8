"""Files that survive a crash: atomic replacement, append-only logs, one lock per folder.

Standard library only, so that the command line may import it before anything heavy.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import stat
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from clprompt.errors import ClpromptError, RunFolderError

_TEMPORARY_PREFIX, _TEMPORARY_SUFFIX = ".clprompt-", ".tmp"


@contextlib.contextmanager
def one_line_errors(action: str) -> Iterator[None]:
    """Turn an `OSError` (disk full, no permission) into one line: `cannot <action>: <reason>`.

    Raises:
        ClpromptError: in place of any `OSError` from inside the block.
    """
    try:
        yield
    except OSError as error:
        raise ClpromptError(f"cannot {action}: {error.strerror or error}") from error


_KINDS = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFDIR: "a folder",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}


def open_regular(path: str | os.PathLike[str], flags: int = os.O_RDONLY) -> BinaryIO:
    """Open a file, and nothing else: a pipe would be waited for, a device has no end.

    Args:
        path: the file; links are followed.
        flags: as for `os.open`; what is opened for writing has no buffer.

    Raises:
        OSError: as of `open`, and for what is no regular file.
    """
    descriptor = os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    kind, writing = stat.S_IFMT(os.fstat(descriptor).st_mode), flags & os.O_WRONLY
    if kind != stat.S_IFREG and not (writing and kind == stat.S_IFCHR):  # a device takes what it is given
        os.close(descriptor)
        what = _KINDS.get(kind, "something else")
        raise OSError(errno.EINVAL, f"it is {what}, not a regular file", str(path))
    return open(descriptor, "ab", buffering=0) if writing else open(descriptor, "rb")  # type: ignore[return-value]


def read_bytes(path: str | os.PathLike[str], size: int = -1) -> bytes:
    """A regular file's content, or its first bytes.

    Raises:
        OSError: see :func:`open_regular`.
    """
    with open_regular(path) as file:
        return file.read(size if size < 0 else min(size, os.fstat(file.fileno()).st_size))


def read_text(path: str | os.PathLike[str]) -> str:
    """A regular file's content as UTF-8, line ends as `open` reads them.

    Raises:
        OSError: see :func:`open_regular`.
        UnicodeDecodeError: it is no UTF-8.
    """
    return read_bytes(path).decode("utf-8").replace("\r\n", "\n").replace("\r", "\n")


def plain_name(label: str) -> str:
    """A label as a part of a file's name: what is no letter, digit or one of "-_.=" becomes "-"."""
    return "".join(mark if mark.isalnum() or mark in "-_.=" else "-" for mark in label).strip("-.")


def fsync_folder(folder: str | os.PathLike[str]) -> None:
    """Make the names in a folder durable: a file's own fsync does not cover its directory entry."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network file systems have no fsync for folders
            raise
    finally:
        os.close(descriptor)


def atomic_write(path: str | os.PathLike[str], data: bytes | str | Callable[[BinaryIO], object]) -> None:
    """Write a file so that its name holds, at every moment, the old content or the new, and both whole.

    Args:
        path: the file to create or replace; its folder must exist.
        data: the content; text is written as UTF-8, a function is called with the open binary file.

    Raises:
        ClpromptError: the operating system refused (disk full, no permission).
        Exception: whatever else `data` raises, unchanged.

    After any error or interrupt the old file is still there and no temporary file is left.
    """
    path = Path(path)
    temporary = path.parent / f"{_TEMPORARY_PREFIX}{secrets.token_hex(8)}{_TEMPORARY_SUFFIX}"
    try:
        with one_line_errors(f"write {path}"):
            with open(temporary, "xb") as file:
                if callable(data):
                    data(file)
                else:
                    file.write(data.encode() if isinstance(data, str) else data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
            fsync_folder(path.parent)
    finally:
        # Gone already after a replacement; left over after any error or interrupt before it.
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def remove_temporaries(folder: str | os.PathLike[str]) -> None:
    """Remove what killed processes left of `atomic_write`; call it only as the folder's one writer."""
    for path in Path(folder).rglob(f"{_TEMPORARY_PREFIX}*{_TEMPORARY_SUFFIX}"):
        with contextlib.suppress(OSError):
            path.unlink()


class AppendOnlyFile:
    """A file that only grows, with a buffer of its own.

    Python's buffered files write on garbage collection, which would put bytes of an abandoned writer behind
    the end of a file that a resumed run has just cut. This one writes in `drain`, `sync` and `close` only,
    and always at the file's end.

    Args:
        path: created if it is missing, else continued.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._pending = bytearray()
        with one_line_errors(f"open {self.path}"):
            self._file = open_regular(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            fsync_folder(self.path.parent)

    def append(self, data: bytes) -> None:
        """Add bytes to the buffer."""
        self._pending += data

    @property
    def pending(self) -> int:
        """Bytes that wait in the buffer."""
        return len(self._pending)

    def drain(self) -> None:
        """Hand the buffer to the operating system."""
        with one_line_errors(f"write {self.path}"):
            while self._pending:
                written = self._file.write(self._pending)
                del self._pending[:written]

    def sync(self) -> int:
        """Make everything appended so far durable and return the file's size in bytes."""
        self.drain()
        with one_line_errors(f"write {self.path}"):
            os.fsync(self._file.fileno())
            return os.fstat(self._file.fileno()).st_size

    def close(self) -> None:
        """Drain and close; a second call does nothing."""
        if not self._file.closed:
            try:
                self.drain()
            finally:
                self._file.close()


class FolderLock:
    """One process per folder: an exclusive, non-blocking flock on `folder/lock`, as a context manager.

    The kernel gives the lock back when the process ends, however it ends. The file itself stays: removing it
    would let two processes hold locks on two files of that name.

    Args:
        folder: an existing folder.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self._descriptor: int | None = None

    def __enter__(self) -> FolderLock:
        """Take the lock.

        Raises:
            RunFolderError: somebody holds it, this process included, or the folder cannot be locked.
        """
        try:
            descriptor = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise RunFolderError(f"cannot lock {self.folder}: {error.strerror or error}") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            if isinstance(error, BlockingIOError):
                raise RunFolderError(f"{self.folder} is in use by another process") from error
            raise RunFolderError(f"cannot lock {self.folder}: {error.strerror or error}") from error
        self._descriptor = descriptor
        _held.add(self)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._close()

    def _close(self) -> None:
        _held.discard(self)
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def is_locked(folder: str | os.PathLike[str]) -> bool:
    """Whether a process holds the lock of a folder; nothing is written."""
    try:
        descriptor = os.open(Path(folder) / "lock", os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return isinstance(error, BlockingIOError)
    finally:
        os.close(descriptor)  # with it a lock of ours is gone
    return False


# A forked child (a data loader's worker) would share the lock until it ends too. Children close their copy at
# once, so that a killed run can be resumed while its orphaned workers are still on their way out.
_held: weakref.WeakSet[FolderLock] = weakref.WeakSet()


def _drop_locks_in_child() -> None:
    for lock in list(_held):
        lock._close()


os.register_at_fork(after_in_child=_drop_locks_in_child)
