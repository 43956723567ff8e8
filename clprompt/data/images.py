"""Images before any transform: where they come from, how a file is decoded, what stays in memory."""

from __future__ import annotations

import io
import mmap
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from clprompt.errors import DataError


@dataclass(frozen=True)
class ImageSource:
    """Images and labels before any transform.

    Attributes:
        load: index -> PIL image, or tensor [channels, H, W] (uint8, or float in [0, 1]).
        targets: class ids 0..C-1, int64 [n]; or multi-hot 0/1, [n, C].
        encoded: whether ``load`` decodes a file, so that its result is worth remembering.
    """

    load: Callable[[int], Any]
    targets: np.ndarray
    encoded: bool = False

    def __len__(self) -> int:
        return len(self.targets)


# ----------------------------------------------------------------------------------------------- decoding


class UnreadableImage(DataError):
    """An image that cannot be decoded; the message names it."""

    def __init__(self, text: str) -> None:
        # a DataLoader's worker sends its traceback as the message of an exception of the same class
        super().__init__(text.rsplit(f"{__name__}.UnreadableImage: ", 1)[-1].strip())


def read_image(data: str | os.PathLike[str] | bytes, name: str | None = None) -> Image.Image:
    """Decode an image as a classifier wants it: upright, 8 bits, grey ("L") or "RGB".

    EXIF rotation is applied; palettes, CMYK and other colour spaces become RGB; transparency is dropped; 16
    bits become 8 by dividing by 257.

    Args:
        data: a path, or the bytes of a file.
        name: what messages call the image; its path by default.

    Raises:
        UnreadableImage: missing, empty, truncated or no image.
    """
    name = name or ("an image" if isinstance(data, bytes) else str(data))
    size = len(data) if isinstance(data, bytes) else None
    try:
        if size is None:
            size = os.path.getsize(data)  # type: ignore[arg-type]
        if size == 0:
            raise ValueError("it is empty")
        with Image.open(io.BytesIO(data) if isinstance(data, bytes) else data) as image:
            return _plain(ImageOps.exif_transpose(image))
    except Exception as error:  # decoders of broken files raise whatever their code runs into
        raise UnreadableImage(f"{name}: the image cannot be read: {_reason(error)}") from error


def _plain(image: Image.Image) -> Image.Image:
    mode = image.mode
    if mode in ("L", "RGB"):
        return image
    if mode == "F":
        raise ValueError("its pixels are floating-point numbers; store 8 or 16 bits")
    if mode == "I" or mode.startswith("I;16"):
        values = np.asarray(image).clip(0, 65535).astype(np.uint32)
        return Image.fromarray((values // 257).astype(np.uint8))
    if mode in ("1", "LA", "La"):
        return image.convert("L")
    if mode in ("P", "PA"):  # Pillow warns when a transparent palette loses its transparency in one step
        image = image.convert("RGBA")
    return image.convert("RGB")


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    if isinstance(error, UnidentifiedImageError):
        return "it is not an image, or damaged at its beginning"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split())[:200] or type(error).__name__


# Loaders are classes, not closures: where loader processes are not forked, data sets are pickled.


@dataclass(frozen=True)
class ImageFiles:
    """Index -> the decoded image of a path."""

    paths: Sequence[str]
    hint: str = ""

    def __call__(self, index: int) -> Image.Image:
        try:
            return read_image(self.paths[index])
        except UnreadableImage as error:
            raise UnreadableImage(f"{error}{self.hint}") from error


@dataclass(frozen=True)
class ImageBytes:
    """Index -> the decoded image of one file's bytes in a long array of many.

    Attributes:
        name: of the whole, for messages.
        data: uint8 [bytes].
        offsets: where each file begins, and the end, int64 [n + 1].
        hint: what messages about a bad image end with.
    """

    name: str
    data: np.ndarray
    offsets: np.ndarray
    hint: str = ""

    def __call__(self, index: int) -> Image.Image:
        raw = self.data[self.offsets[index] : self.offsets[index + 1]].tobytes()
        try:
            return read_image(raw, f"{self.name}, image {index}")
        except UnreadableImage as error:
            raise UnreadableImage(f"{error}{self.hint}") from error


@dataclass(frozen=True)
class ImageArray:
    """Index -> tensor [channels, H, W] of an array [n, channels, H, W] that lies in memory."""

    images: Tensor

    def __call__(self, index: int) -> Tensor:
        return self.images[index]


@dataclass(frozen=True)
class Selected:
    """Some of the images of another loader."""

    load: Callable[[int], Any]
    indices: np.ndarray

    def __call__(self, index: int) -> Any:
        return self.load(int(self.indices[index]))


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
