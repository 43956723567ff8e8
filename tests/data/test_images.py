"""Decoding: every kind of file becomes upright 8-bit grey or RGB, or is named."""

import io
import multiprocessing
import os
import pickle
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from clprompt.data.images import ImageBytes, ImageCache, ImageFiles, UnreadableImage, read_image, unreadable
from clprompt.errors import DataError, DataWarning

GRADIENT = np.linspace(0, 255, 12 * 20).reshape(12, 20).astype(np.uint8)
COLOURS = np.stack([GRADIENT, GRADIENT[::-1], 255 - GRADIENT], axis=2)


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize(
    ("mode", "kind", "becomes"),
    [
        ("RGB", "PNG", "RGB"),
        ("L", "PNG", "L"),
        ("1", "PNG", "L"),
        ("LA", "PNG", "L"),
        ("RGBA", "PNG", "RGB"),
        ("P", "PNG", "RGB"),
        ("P", "GIF", "RGB"),
        ("CMYK", "JPEG", "RGB"),
        ("CMYK", "TIFF", "RGB"),
        ("YCbCr", "JPEG", "RGB"),
        ("I;16", "PNG", "L"),
        ("I;16", "TIFF", "L"),
        ("I", "TIFF", "L"),
    ],
)
def test_every_kind_of_image_becomes_grey_or_rgb(mode: str, kind: str, becomes: str) -> None:
    if mode.startswith("I"):
        dtype = np.uint16 if mode == "I;16" else np.int32
        image = Image.fromarray(GRADIENT.astype(dtype) * 257)
    else:
        image = Image.fromarray(COLOURS).convert(mode)
    found = read_image(encoded(image, kind))
    assert found.mode == becomes
    assert found.size == (20, 12)
    expected = image.convert(becomes) if not mode.startswith("I") else Image.fromarray(GRADIENT)
    lossy = 12 if kind == "JPEG" else 0
    difference = np.asarray(found).astype(int) - np.asarray(expected).astype(int)
    assert np.abs(difference).mean() <= lossy


def test_a_16_bit_image_keeps_black_grey_and_white() -> None:
    values = np.array([[0, 256, 32896, 65535]], dtype=np.uint16)
    assert np.asarray(read_image(encoded(Image.fromarray(values)))).tolist() == [[0, 0, 128, 255]]


def png(pixels: np.ndarray, kind: int, depth: int, size: tuple[int, int] | None = None) -> bytes:
    """A PNG of big-endian pixels [H, W, ...], which Pillow does not write with 16 bits a colour.

    Args:
        pixels: of the file.
        kind: 0 grey, 2 RGB, 6 RGBA.
        depth: 8 or 16.
        size: width and height that its header says, where they are others.
    """

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", *(size or (pixels.shape[1], pixels.shape[0])), depth, kind, 0, 0, 0)
    rows = b"".join(b"\0" + row.tobytes() for row in pixels.astype(">u2" if depth == 16 else "u1"))
    parts = {b"IHDR": header, b"IDAT": zlib.compress(rows), b"IEND": b""}
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(name, data) for name, data in parts.items())


def tiff(pixels: np.ndarray, order: str) -> bytes:
    """An RGB TIFF with 16 bits a colour, its bytes in the order "<" or ">"."""
    height, width = pixels.shape[:2]
    data = pixels.astype(f"{order}u2").tobytes()
    after = 10 + 12 * 9 + 4
    words = {256: width, 257: height, 259: 1, 262: 2, 277: 3, 278: height}  # kept as 16 bits
    longs = {258: (3, 3, after), 273: (4, 1, after + 6), 279: (4, 1, len(data))}  # type, count, value
    entries = {tag: struct.pack(f"{order}HHIHH", tag, 3, 1, value, 0) for tag, value in words.items()}
    entries |= {tag: struct.pack(f"{order}HHII", tag, *values) for tag, values in longs.items()}
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HIH", 42, 8, len(entries))
    body = b"".join(entries[tag] for tag in sorted(entries))
    return head + body + struct.pack(f"{order}IHHH", 0, 16, 16, 16) + data


def opaque(colours: np.ndarray, alpha: int) -> np.ndarray:
    return np.dstack([colours, np.full(colours.shape[:2], alpha)])


DEEP = {  # 8 bits and what 16 bits of the same hold -> a file
    "grey PNG": (GRADIENT, lambda values, top: png(values, 0, 16)),
    "colour PNG": (COLOURS, lambda values, top: png(values, 2, 16)),
    "transparent PNG": (COLOURS, lambda values, top: png(opaque(values, top), 6, 16)),
    "grey TIFF": (GRADIENT, lambda values, top: encoded(Image.fromarray(values.astype(np.uint16)), "TIFF")),
    "32-bit TIFF": (GRADIENT, lambda values, top: encoded(Image.fromarray(values.astype(np.int32)), "TIFF")),
    "colour TIFF": (COLOURS, lambda values, top: tiff(values, "<")),
    "Motorola TIFF": (COLOURS, lambda values, top: tiff(values, ">")),
    "PGM": (GRADIENT, lambda values, top: b"P5 20 12 65535\n" + values.astype(">u2").tobytes()),
}


@pytest.mark.parametrize("kind", DEEP)
def test_16_bits_that_hold_8_are_read_as_8_and_told(kind: str) -> None:
    values, make = DEEP[kind]
    with pytest.warns(DataWarning, match="16 bits holds no value above 255: it, and others like it") as told:
        found = read_image(make(values.astype(np.uint16), 255))
    assert len(told) == 1
    assert np.array_equal(np.asarray(found), values)


@pytest.mark.parametrize("factor", [257, 0])
@pytest.mark.parametrize("kind", DEEP)
def test_16_bits_that_are_full_or_black_are_read_without_a_word(
    kind: str, factor: int, recwarn: pytest.WarningsRecorder
) -> None:
    values, make = DEEP[kind]
    found = read_image(make(values.astype(np.uint16) * factor, 65535))
    assert np.array_equal(np.asarray(found), values * (factor > 0))
    assert not recwarn.list


def test_a_transparent_palette_is_converted_without_a_warning(recwarn: pytest.WarningsRecorder) -> None:
    image = Image.fromarray(COLOURS).quantize(8)
    found = read_image(encoded(image, transparency=bytes([0, 128, 255])))
    assert found.mode == "RGB"
    assert not recwarn.list


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_applied(orientation: int) -> None:
    turned = {  # what a camera stores, by its orientation tag, of the picture that shall be seen
        1: COLOURS,
        2: COLOURS[:, ::-1],
        3: COLOURS[::-1, ::-1],
        4: COLOURS[::-1],
        5: COLOURS.transpose(1, 0, 2),
        6: np.rot90(COLOURS),
        7: COLOURS[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(COLOURS, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    found = read_image(encoded(Image.fromarray(np.ascontiguousarray(turned)), exif=exif))
    assert np.array_equal(np.asarray(found), COLOURS)


def whole_jpeg() -> bytes:
    return encoded(Image.fromarray(np.tile(COLOURS, (8, 8, 1))), "JPEG", quality=95)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "it is empty"),
        (b"<html>not found</html>", "it is not an image"),
        (whole_jpeg()[:3000], "truncated"),
        (encoded(Image.fromarray(COLOURS))[:80], ""),
        (encoded(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF"), "floating-point"),
    ],
)
def test_an_image_that_cannot_be_read_is_named_in_one_line(
    content: bytes, reason: str, tmp_path: Path
) -> None:
    path = tmp_path / "cat.jpg"
    path.write_bytes(content)
    with pytest.raises(DataError) as told:
        read_image(path)
    assert str(told.value).startswith(f"{path}: the image cannot be read: ")
    assert reason in str(told.value)
    assert "\n" not in str(told.value)
    with pytest.raises(DataError, match=r"^many\.npz, image 0: the image cannot be read"):
        ImageBytes("many.npz", np.frombuffer(content, np.uint8), np.array([0, len(content)]))(0)


@pytest.mark.parametrize("kind", ["EPS", "TGA", "ICO", "PCX", "JPEG2000", "PDF", "SGI", "DDS"])
def test_images_of_other_kinds_reach_no_decoder_whatever_they_are_called(kind: str, tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(encoded(Image.fromarray(COLOURS), kind))
    with pytest.raises(
        UnreadableImage, match=r"x\.png: .* it is not an image \(JPEG, PNG, WEBP, BMP, GIF, TIFF"
    ):
        read_image(tmp_path / "x.png")


@pytest.mark.filterwarnings("error")
def test_an_image_of_too_many_pixels_is_refused_before_it_is_decoded() -> None:
    content = png(GRADIENT, 0, 8, size=(13312, 13312))
    with pytest.raises(
        UnreadableImage, match="it has 13312 x 13312 = 177209344 pixels; max_pixels is 89478485"
    ):
        read_image(content)
    with pytest.raises(UnreadableImage, match="truncated"):  # tried, and without Pillow's warning
        read_image(content, max_pixels=10**9)


def test_the_limit_of_pixels_is_kept_to_the_pixel(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(encoded(Image.fromarray(GRADIENT)))
    assert read_image(tmp_path / "x.png", max_pixels=240).size == (20, 12)
    with pytest.raises(UnreadableImage, match="240 pixels; max_pixels is 239"):
        ImageFiles([str(tmp_path / "x.png")], max_pixels=239)(0)


def test_what_is_not_a_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    for name in ("pipe.png", "folder.png"):
        with pytest.raises(UnreadableImage, match=f"{name}: the image cannot be read: it is not a file"):
            read_image(tmp_path / name)


def test_a_missing_image_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere\.png: the image cannot be read: there is no such file"):
        read_image(tmp_path / "nowhere.png")


def test_a_file_is_closed_after_reading(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    frames = [Image.fromarray(np.roll(COLOURS, shift, 0)) for shift in range(3)]
    for name in ("a.gif", "a.tiff"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
        first = read_image(tmp_path / name)
        (tmp_path / name).unlink()
        assert np.asarray(first).shape == (12, 20, 3)  # the pixels are there without the file
    assert not [warning for warning in recwarn.list if warning.category is ResourceWarning]


def test_all_unreadable_images_of_a_set_are_found(tmp_path: Path) -> None:
    paths = []
    for number in range(20):
        paths.append(str(tmp_path / f"{number}.png"))
        Path(paths[-1]).write_bytes(b"junk" if number % 7 == 3 else encoded(Image.fromarray(COLOURS)))
    bad = unreadable(ImageFiles(paths), range(20))
    assert list(bad) == [3, 10, 17]
    assert "10.png: the image cannot be read" in bad[10]


class OneBadImage(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> torch.Tensor:
        read_image(b"", "cat.jpg")
        return torch.zeros(1)


def test_the_message_of_a_loader_process_is_the_same_line() -> None:
    loader = torch.utils.data.DataLoader(OneBadImage(), num_workers=1)
    with pytest.raises(UnreadableImage) as told:
        list(loader)
    assert str(told.value) == "cat.jpg: the image cannot be read: it is empty"


# ------------------------------------------------------------------------------------------------ the cache


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize("channels_last", [False, True])
def test_a_kept_image_comes_back_with_the_same_bits_and_order(
    dtype: torch.dtype, channels_last: bool
) -> None:
    cache = ImageCache(3, 3 * 4096)
    image = (torch.rand(3, 5, 7) * 255).to(dtype)
    if channels_last:
        image = image.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    assert cache.get(1) is None
    cache.put(1, image)
    found = cache.get(1)
    assert found is not None
    assert torch.equal(found, image)
    assert found.dtype == dtype
    assert found.stride() == image.stride()
    assert cache.get(0) is None
    assert cache.get(2) is None


def test_what_does_not_fit_its_slot_is_not_kept() -> None:
    cache = ImageCache(10, 10 * 128)
    cache.put(0, torch.zeros(1, 8, 16, dtype=torch.uint8))
    cache.put(1, torch.zeros(1, 8, 17, dtype=torch.uint8))
    cache.put(2, torch.zeros(1, 8, 16))
    assert [cache.get(index) is not None for index in range(3)] == [True, False, False]


def test_a_cache_of_no_bytes_or_no_images_keeps_nothing() -> None:
    for cache in (ImageCache(10, 0), ImageCache(0, 1000), ImageCache(10, 100)):
        cache.put(0, torch.zeros(1, 8, 8, dtype=torch.uint8))
        assert cache.get(0) is None


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="needs fork")
def test_a_forked_process_shares_what_is_kept() -> None:
    cache = ImageCache(2, 2 * 4096)
    image = torch.arange(12, dtype=torch.uint8).view(3, 2, 2)
    child = multiprocessing.get_context("fork").Process(target=cache.put, args=(1, image))
    child.start()
    child.join()
    shared = cache.get(1)
    assert shared is not None
    assert torch.equal(shared, image)


def test_a_process_that_is_not_forked_starts_with_nothing_kept() -> None:
    cache = ImageCache(2, 2 * 4096)
    image = torch.arange(12, dtype=torch.uint8).view(3, 2, 2)
    cache.put(0, image)
    copied = pickle.loads(pickle.dumps(cache))
    copied.put(0, image)
    assert copied.get(0) is None
