"""Images before any transform: where they come from, how a file is decoded, what stays in memory."""

from __future__ import annotations

import errno
import io
import mmap
import multiprocessing
import os
import stat
import struct
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Annotated, Any, BinaryIO

import numpy as np
import torch
from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageFile,
    ImageOps,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    UnidentifiedImageError,
    WebPImagePlugin,
)
from torch import Tensor

from clprompt.data import fingerprint as fingerprints
from clprompt.data.fingerprint import Fingerprint
from clprompt.errors import DataError, tell
from clprompt.schema import at_least


@dataclass(frozen=True)
class ImageSource:
    """Images and labels before any transform.

    Attributes:
        load: index -> PIL image, or tensor [channels, H, W] (uint8, or float in [0, 1]).
        targets: class ids 0..C-1, int64 [n]; or multi-hot 0/1, [n, C].
        encoded: whether ``load`` decodes a file, so that its result is worth remembering.
        domains: where each image comes from (photographs, sketches, a camera, ...), domain ids 0..D-1, int64
            [n]; None where the data do not say.
    """

    load: Callable[[int], Any]
    targets: np.ndarray
    encoded: bool = False
    domains: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.targets)

    def fingerprint(self) -> Fingerprint:
        """What its images and labels are known by; see :mod:`clprompt.data.fingerprint`."""
        return {
            "number": len(self),
            "labels": fingerprints.checksum([self.targets.astype(np.int64)]),
            **({} if self.domains is None else {"domains": fingerprints.checksum([self.domains])}),
            **fingerprints.of_images(self.load, np.arange(len(self))),
        }

    def files(self) -> list[str] | None:
        """The path of each image's file; None where images are no files of their own."""
        return files_of(self.load, np.arange(len(self)))


def files_of(load: Callable[[int], Any], indices: np.ndarray) -> list[str] | None:
    """The paths that a loader reads these images from; None where it has no method ``files(indices)``."""
    method = getattr(load, "files", None)
    return method(indices) if callable(method) else None


# ----------------------------------------------------------------------------------------------- decoding

#: The kinds of images that are read, by Pillow's names, with the endings of their files. What an image is
#: shows in its first bytes; Pillow has more decoders, among them one that starts a PostScript interpreter.
FORMATS = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "PNG": (".png",),
    "WEBP": (".webp",),
    "BMP": (".bmp",),
    "GIF": (".gif",),
    "TIFF": (".tif", ".tiff"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
}
EXTENSIONS = tuple(ending for endings in FORMATS.values() for ending in endings)

_PLUGINS = (  # importing them registers their decoders with Pillow
    JpegImagePlugin,
    PngImagePlugin,
    WebPImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    TiffImagePlugin,
    PpmImagePlugin,
)

#: How many pixels an image may have: as many as Pillow takes without a warning, a quarter of a GiB in RGB.
MAX_PIXELS = 89_478_485
#: What the ``max_pixels`` argument of a data set may be.
MaxPixels = Annotated[int, at_least(1)]


class UnreadableImage(DataError):
    """An image that cannot be decoded; the message names it."""

    def __init__(self, text: str) -> None:
        # a DataLoader's worker sends its traceback as the message of an exception of the same class
        super().__init__(text.rsplit(f"{__name__}.UnreadableImage: ", 1)[-1].strip())


def read_image(
    data: str | os.PathLike[str] | bytes, name: str | None = None, *, max_pixels: int = MAX_PIXELS
) -> Image.Image:
    """Decode an image as a classifier wants it: upright, 8 bits, grey ("L") or "RGB".

    EXIF rotation is applied; palettes, CMYK and other colour spaces become RGB; transparency is dropped. Of
    16 bits the upper 8 are kept (grey: divided by 257), or the lower 8, with a :class:`DataWarning`, where
    the image holds no value above 255.

    Args:
        data: a path, or the bytes of a file; of one of the kinds in ``FORMATS``.
        name: what messages call the image; its path by default.
        max_pixels: a file of a few bytes may ask for any number; more are refused before they are decoded.

    Raises:
        UnreadableImage: missing, empty, truncated, too large or no image.
    """
    name = name or ("an image" if isinstance(data, bytes) else str(data))
    try:
        if isinstance(data, bytes):
            return _decode(io.BytesIO(data), len(data), max_pixels)
        facts = os.stat(data)
        if not stat.S_ISREG(facts.st_mode):  # reading a pipe would wait for a writer
            raise ValueError("it is not a file")
        with open(data, "rb") as file:
            return _decode(file, facts.st_size, max_pixels)
    except Exception as error:  # decoders of broken files raise whatever their code runs into
        raise UnreadableImage(f"{name}: the image cannot be read: {reason_of(error, data)}") from error


def as_read(image: Image.Image) -> Image.Image:
    """An image that Pillow has opened, as :func:`read_image` gives it: upright, 8 bits, grey ("L") or "RGB".

    The one difference: of colours with 16 bits Pillow has kept the upper 8, and the lower ones are gone.

    Args:
        image: of any mode but floating-point numbers; it is not changed.

    Raises:
        DataError: its pixels are floating-point numbers.
    """
    # without an orientation exif_transpose would copy the image
    return _plain(ImageOps.exif_transpose(image) if image.getexif().get(_ORIENTATION, 1) != 1 else image)


_ORIENTATION = 0x0112


def _decode(file: BinaryIO, size: int, max_pixels: int) -> Image.Image:
    if size == 0:
        raise ValueError("it is empty")
    with _open(file) as image:
        width, height = image.size
        if width * height > max_pixels:
            raise ValueError(
                f"it has {width} x {height} = {width * height} pixels; max_pixels is {max_pixels}"
            )
        swapped = _swapped(image)
        upright = ImageOps.exif_transpose(image)
    if swapped is None or not _is_black(upright):
        return _plain(upright)
    file.seek(0)
    with _open(file) as image:  # colour whose upper bytes are all 0
        image.tile = swapped
        low = ImageOps.exif_transpose(image)
    if not _is_black(low):
        _tell_depth()
    return _plain(low)


def _open(file: BinaryIO) -> ImageFile.ImageFile:
    """`Image.open` of the kinds in ``FORMATS``, without its limit, which is the whole process's and warns."""
    prefix = file.read(16)
    for kind in FORMATS:
        make, accepts = Image.OPEN[kind]
        if accepts is None or accepts(prefix) is True:
            file.seek(0)
            try:
                return make(file, "")
            except (SyntaxError, IndexError, TypeError, struct.error):
                continue
    raise UnidentifiedImageError


def _is_black(image: Image.Image) -> bool:
    """Whether all colours, of an image that has more than one, are 0 everywhere."""
    extrema: Any = image.getextrema()  # lowest and highest of each band
    return not any(high for _, high in extrema[:3])


def is_image(prefix: bytes) -> bool:
    """Whether a file that begins with these 16 bytes is an image of a kind that is read."""
    checks = [Image.OPEN[kind][1] for kind in FORMATS if kind not in ("PPM", "BMP")]  # text may begin so
    return any(accepts is not None and accepts(prefix) is True for accepts in checks)


#: By how a file begins, what it has at its end; behind it cameras and archives may write more.
_ENDS = {b"\xff\xd8\xff": b"\xff\xd9", b"\x89PNG": b"IEND"}
_TAIL = 4096


def looks_whole(path: str | os.PathLike[str]) -> bool:
    """Whether a file begins as an image does, and ends so where its kind shows it; it is not decoded.

    A file that does not may be an image all the same. Nothing is said of how many pixels it has.
    """
    try:
        with open(path, "rb") as file:
            prefix = file.read(16)
            end = next((end for begin, end in _ENDS.items() if prefix.startswith(begin)), b"")
            file.seek(0, os.SEEK_END)
            file.seek(max(file.tell() - _TAIL, 0))
            return is_image(prefix) and end in file.read()
    except OSError:
        return False


def _plain(image: Image.Image) -> Image.Image:
    mode = image.mode
    if mode in ("L", "RGB"):
        return image
    if mode == "F":
        raise DataError("its pixels are floating-point numbers; store 8 or 16 bits")
    if mode == "I" or mode.startswith("I;16"):
        values = np.asarray(image).clip(0, 65535).astype(np.uint32)
        if not 0 < values.max() <= 255:
            values = values // 257
        else:
            _tell_depth()
        return Image.fromarray(values.astype(np.uint8))
    if mode in ("1", "LA", "La"):
        return image.convert("L")
    if mode in ("P", "PA"):  # Pillow warns when a transparent palette loses its transparency in one step
        image = image.convert("RGBA")
    return image.convert("RGB")


# ---- 16 bits that hold 8

_OTHER_ORDER = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}


def _swapped(image: ImageFile.ImageFile) -> list[Any] | None:
    """The tiles of an image with 16 bits a colour, to be read with bytes in the other order; None for others.

    Pillow keeps the upper byte of such colours, and with the other order the lower one.
    """
    tiles = []
    for kind, extents, offset, arguments in image.tile:
        words = [arguments] if isinstance(arguments, str) else list(arguments or ())
        raw = str(words[0]) if words else ""
        if raw[:-1] not in ("RGB;16", "RGBA;16", "RGBX;16"):
            return None
        words[0] = raw[:-1] + _OTHER_ORDER[raw[-1]]
        tiles.append((kind, extents, offset, words[0] if isinstance(arguments, str) else tuple(words)))
    return tiles or None


_depth_told = mmap.mmap(-1, 1)  # shared with forked loader processes: one of them speaks, once


def _tell_depth() -> None:
    if multiprocessing.parent_process() is not None:
        if _depth_told[0]:
            return
        _depth_told[0] = 1
    tell("an image of 16 bits holds no value above 255: it, and others like it, are read as images of 8 bits")


def reason_of(error: Exception, data: str | os.PathLike[str] | bytes) -> str:
    """Why an image could not be read, as the end of a sentence."""
    missing = (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG)
    if (isinstance(error, OSError) and error.errno in missing) or "embedded null" in str(error):
        broken = not isinstance(data, bytes) and os.path.islink(data)
        return "it is a link to a file that is not there" if broken else "there is no such file"
    if isinstance(error, UnidentifiedImageError):
        return f"it is not an image ({', '.join(FORMATS)}), or damaged at its beginning"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split())[:200] or type(error).__name__


# Loaders are classes, not closures: where loader processes are not forked, data sets are pickled.


@dataclass(frozen=True)
class ImageFiles:
    """Index -> the decoded image of a path."""

    paths: Sequence[str]
    hint: str = ""
    max_pixels: int = MAX_PIXELS

    def __call__(self, index: int) -> Image.Image:
        try:
            return read_image(self.paths[index], max_pixels=self.max_pixels)
        except UnreadableImage as error:
            raise UnreadableImage(f"{error}{self.hint}") from error

    def fingerprint(self, indices: np.ndarray) -> Fingerprint:
        return fingerprints.of_files(self.files(indices))

    def files(self, indices: np.ndarray) -> list[str]:
        return [str(self.paths[index]) for index in indices]


@dataclass(frozen=True)
class ImageBytes:
    """Index -> the decoded image of one file's bytes in a long array of many.

    Attributes:
        name: of the whole, for messages.
        data: uint8 [bytes].
        offsets: where each file begins, and the end, int64 [n + 1].
        hint: what messages about a bad image end with.
        max_pixels: see :func:`read_image`.
    """

    name: str
    data: np.ndarray
    offsets: np.ndarray
    hint: str = ""
    max_pixels: int = MAX_PIXELS

    def __call__(self, index: int) -> Image.Image:
        raw = self.data[self.offsets[index] : self.offsets[index + 1]].tobytes()
        try:
            return read_image(raw, f"{self.name}, image {index}", max_pixels=self.max_pixels)
        except UnreadableImage as error:
            raise UnreadableImage(f"{error}{self.hint}") from error

    def fingerprint(self, indices: np.ndarray) -> Fingerprint:
        files = (self.data[self.offsets[index] : self.offsets[index + 1]] for index in indices)
        return {"contents": fingerprints.checksum(files)}


@dataclass(frozen=True)
class ImageArray:
    """Index -> tensor [channels, H, W] of an array [n, channels, H, W] that lies in memory."""

    images: Tensor

    def __call__(self, index: int) -> Tensor:
        return self.images[index]

    def fingerprint(self, indices: np.ndarray) -> Fingerprint:
        return fingerprints.of_rows(lambda rows: self.images[torch.from_numpy(rows)].numpy(), indices)


@dataclass(frozen=True)
class Selected:
    """Some of the images of another loader."""

    load: Callable[[int], Any]
    indices: np.ndarray

    def __call__(self, index: int) -> Any:
        return self.load(int(self.indices[index]))

    def fingerprint(self, indices: np.ndarray) -> Fingerprint:
        return fingerprints.of_images(self.load, self.indices[indices])

    def files(self, indices: np.ndarray) -> list[str] | None:
        return files_of(self.load, self.indices[indices])


@dataclass(frozen=True)
class Joined:
    """The images of several loaders, one after the other.

    Attributes:
        loads: index -> image, of each part.
        counts: how many images each part has.
    """

    loads: Sequence[Callable[[int], Any]]
    counts: Sequence[int]

    def __call__(self, index: int) -> Any:
        position = index
        for load, count in zip(self.loads, self.counts, strict=True):
            if position < count:
                return load(position)
            position -= count
        raise IndexError(index)

    def places(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The part that holds each image, and the image's position there, int64 [n] each."""
        ends = np.cumsum(self.counts)
        part_of = np.searchsorted(ends, indices, side="right")
        return part_of, indices - (ends - self.counts)[part_of]

    def fingerprint(self, indices: np.ndarray) -> Fingerprint:
        part_of, positions = self.places(indices)
        parts = [
            fingerprints.of_images(load, positions[part_of == number])
            for number, load in enumerate(self.loads)
        ]
        order = {"order": fingerprints.checksum([part_of.astype(np.int64)])}
        return fingerprints.joined(parts) | order


def unreadable(load: Callable[[int], Any], indices: Sequence[int] | np.ndarray) -> dict[int, str]:
    """Decode all these images, in threads, and say which cannot be: index -> message."""

    def attempt(index: int) -> str | None:
        try:
            load(index)
        except UnreadableImage as error:
            return str(error)
        return None

    numbers = [int(index) for index in indices]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        messages = zip(numbers, pool.map(attempt, numbers), strict=True)
        return {index: message for index, message in messages if message is not None}


# ------------------------------------------------------------------------------------------------- memory


class ImageCache:
    """Images [channels, H, W] that stay in memory, each in a slot of its own.

    The memory is shared with forked loader processes, so that what a worker of one epoch has decoded is there
    for the next epoch's. Pages are taken as slots are filled. An image that is larger than its slot is not
    kept: a data set that does not fit costs its decoding every time, and no more memory than was allowed.

    Args:
        count: how many images there are.
        max_bytes: for all of them together.
    """

    _DTYPES = (torch.uint8, torch.float32)

    def __init__(self, count: int, max_bytes: int) -> None:
        self._slot = max_bytes // max(count, 1) // 64 * 64
        self._table: np.ndarray | None = None
        if self._slot:
            try:
                self._memory = mmap.mmap(-1, count * self._slot)
                shapes = mmap.mmap(-1, count * 16)
            except (OSError, MemoryError):  # a system that does not give so much: nothing is kept
                return
            self._table = np.frombuffer(shapes, np.int32).reshape(count, 4)  # kind, channels, height, width

    def get(self, index: int) -> Tensor | None:
        """The image of a slot, not to be written to; None where none is kept."""
        if self._table is None:
            return None
        kind, *shape = self._table[index].tolist()
        if not kind:
            return None
        channels, height, width = shape
        dtype = np.uint8 if kind <= 2 else np.float32
        values = np.frombuffer(self._memory, dtype, channels * height * width, index * self._slot)
        if kind % 2:
            return torch.from_numpy(values).view(channels, height, width)
        return torch.from_numpy(values).view(height, width, channels).permute(2, 0, 1)

    def put(self, index: int, image: Tensor) -> None:
        """Keep an image, uint8 or float32 [channels, H, W], if it fits; its order in memory is kept, too."""
        if self._table is None or image.nbytes > self._slot or image.dtype not in self._DTYPES:
            return
        channels_last = not image.is_contiguous()
        values = (image.permute(1, 2, 0) if channels_last else image).contiguous().view(-1).numpy()
        np.frombuffer(self._memory, values.dtype, values.size, index * self._slot)[:] = values
        self._table[index, 1:] = image.shape
        # last, as another process may be reading: 1, 2 for uint8 and 3, 4 for float32, even for channels last
        self._table[index, 0] = 2 * self._DTYPES.index(image.dtype) + 1 + channels_last

    def __getstate__(self) -> dict[str, Any]:
        return {"_slot": 0, "_table": None}  # a process that was not forked has memory of its own
