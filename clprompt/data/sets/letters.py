"""Letters drawn like scikit-learn's digits: a source of classes that are not digits.

Glyphs come from the fonts that matplotlib ships and from Pillow's default font: nothing is downloaded. A
glyph is thinned to its centre line, rotated, slanted and bent, and that line is followed by a pen of random
width; the result is cropped, drawn into a 32x32 bitmap and reduced to 8x8 by counting the set pixels of
every 4x4 block. That is how the digits of `sklearn.datasets.load_digits` were made from handwriting (their
description gives the procedure), so what is learned on these letters can be carried over to the digits. Of
the digits themselves only the overall amount of ink and their placement in the image were imitated.
"""

from __future__ import annotations

import functools
import string
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from clprompt import schema
from clprompt.data.bundle import DataBundle, assemble, takes_views
from clprompt.data.images import ImageArray
from clprompt.data.selection import Selection, Share
from clprompt.errors import ConfigError
from clprompt.registry import datasets
from clprompt.schema import at_least

LOOK_LIKE_DIGITS = "OoIlSsZzBbgqGDQ"
"""Letters with a digit's shape (0, 1, 5, 2, 8, 6, 9); with them the digits would not be new classes."""

_BITMAP = 32  # side of the binary drawing
_BLOCK = 4  # side of the blocks that are counted: 32 / 4 = 8
_CANVAS = 64  # side of the glyph's distance field
_GLYPH = 44  # the longer side of a glyph on that canvas
_FONT_SIZE = 8 * _GLYPH  # so large that every glyph is reduced to the canvas, never enlarged
_WAVES = 4  # cosine waves of the elastic deformation, per axis
# Images drawn at once, rounded up to whole rounds of the classes: bounds the memory, and gives each random
# stream its part of the images.
_CHUNK = 1024

# Fonts of symbols and of parts of formulas; some of them do have glyphs at the letters' code points.
_SYMBOL_FONTS = (
    "cmex",
    "cmsy",
    "STIXSiz",
    "STIXNonUni",
    "LastResort",
    "DejaVuSansDisplay",
    "DejaVuSerifDisplay",
)


@schema.checked
def render_letters(
    count: Annotated[int, at_least(1)],
    *,
    seed: Annotated[int, at_least(0)] = 0,
    exclude: str = LOOK_LIKE_DIGITS,
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Draw letters in the manner of scikit-learn's digits.

    Letters that look like digits (`O o I l S s Z z B b g q G D Q`) are left out unless `exclude` says
    otherwise. The two cases of a letter are two classes, although size is normalised away and `C c`,
    `K k`, `P p`, `U u`, `V v`, `W w`, `X x`, `Y y` look much the same: exclude one of each where that
    matters. Classes are balanced: every run of as many images as there are classes holds each class once.
    The result is a function of the arguments and of the installed fonts, and a larger `count` continues a
    smaller one. Global random states are neither read nor changed. It takes about 0.2 ms an image, after
    two seconds for the fonts.

    Args:
        count: number of images, at least 1.
        seed: seed of the drawing, at least 0.
        exclude: letters that are left out.

    Returns:
        images, float32 [count, 8, 8] in [0, 1], multiples of 1/16, ink is 1; labels, int64 [count]; the
        letter of every label, sorted ("A", ..., "y").

    Raises:
        ConfigError: `count` or `seed` is out of range; `exclude` holds something else than letters, or all.
    """
    unknown = sorted(set(exclude) - set(string.ascii_letters))
    if unknown:
        raise ConfigError(f"exclude: {''.join(unknown)!r} is not among the letters A-Z and a-z")
    classes = sorted(set(string.ascii_letters) - set(exclude))
    if not classes:
        raise ConfigError("exclude: leaves no letter to draw")
    images, labels, _ = render_glyphs("".join(classes), count, seed=seed)
    return images, labels, classes


class Strokes(NamedTuple):
    """How glyphs were drawn, one number each, [n].

    Attributes:
        pen: half the width of the line, in pixels of the 32x32 drawing.
        slant: horizontal shift over height; positive leans to the right, as most people write.
        width: of the glyph, in pixels of that drawing.
    """

    pen: np.ndarray
    slant: np.ndarray
    width: np.ndarray


def render_glyphs(characters: str, count: int, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray, Strokes]:
    """Draw characters, digits among them if asked, as :func:`render_letters` draws letters.

    Args:
        characters: the classes, each once.
        count: number of images, at least 1.
        seed: seed of the drawing, at least 0.

    Returns:
        images, float32 [count, 8, 8] in [0, 1]; labels, places in ``characters``, int64 [count]; how they
        were drawn.
    """
    fields = _distance_fields(characters)
    images, labels, strokes = [], [], []
    rounds = -(-_CHUNK // len(characters))
    size = rounds * len(characters)
    for chunk in range(-(-count // size)):
        # Every chunk is drawn whole, from a stream of its own: `count` does not change what comes first.
        rng = np.random.default_rng((seed, chunk))
        label = np.concatenate([rng.permutation(len(characters)) for _ in range(rounds)])
        font = rng.integers(fields.shape[1], size=size)
        drawn, how = _draw(fields, label, font, rng)
        images.append(drawn)
        labels.append(label)
        strokes.append(how)
    whole = Strokes(*(np.concatenate(values)[:count] for values in zip(*strokes, strict=True)))
    return np.concatenate(images)[:count], np.concatenate(labels)[:count].astype(np.int64), whole


def font_files(characters: str = "") -> list[Path]:
    """The fonts of matplotlib that have all Latin letters, sorted by name; symbol fonts are left out.

    Args:
        characters: others that they must have, too.
    """
    import matplotlib
    from matplotlib.ft2font import FT2Font

    needed = {ord(letter) for letter in string.ascii_letters + characters}
    return [
        path
        for path in sorted(Path(matplotlib.get_data_path(), "fonts", "ttf").glob("*.ttf"))
        if not path.name.startswith(_SYMBOL_FONTS) and needed <= set(FT2Font(str(path)).get_charmap())
    ]


@functools.lru_cache(maxsize=4)
def _distance_fields(characters: str) -> np.ndarray:
    """Distance to the centre line of every character in every font: what a pen of any width can follow.

    Type has thick and thin strokes, handwriting has one pen; so only the centre lines of the glyphs are kept.

    Returns:
        float32 [characters, fonts, 64, 64], in pixels of that canvas.
    """
    fonts: list[ImageFont.FreeTypeFont | ImageFont.ImageFont] = [
        ImageFont.truetype(str(path), _FONT_SIZE) for path in font_files(characters)
    ]
    fonts.append(ImageFont.load_default(_FONT_SIZE))
    shapes = np.stack([[_glyph(character, font) for font in fonts] for character in characters])
    return _distance_to(_thin(shapes))


def _thin(shapes: np.ndarray) -> np.ndarray:
    """Centre lines, one pixel wide, of shapes that do not touch the border: bool [..., S, S] -> the same.

    Source: Zhang and Suen, Communications of the ACM 27 (1984).
    """
    shapes = shapes.copy()
    # clockwise from the north
    around = [(-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1), (-1, -1)]
    changed = True
    while changed:
        changed = False
        for first in (True, False):
            ring = [np.roll(shapes, (-dy, -dx), (-2, -1)) for dy, dx in around]
            north, east, south, west = ring[0], ring[2], ring[4], ring[6]
            neighbours = np.sum(ring, axis=0, dtype=np.int8)
            entries = np.sum([~ring[k - 1] & ring[k] for k in range(8)], axis=0, dtype=np.int8)
            if first:
                open_side = ~(north & east & south) & ~(east & south & west)
            else:
                open_side = ~(north & east & west) & ~(north & south & west)
            removed = shapes & (neighbours >= 2) & (neighbours <= 6) & (entries == 1) & open_side
            shapes ^= removed
            changed |= bool(removed.any())
    return shapes


def _glyph(letter: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> np.ndarray:
    """A letter's shape, centred, its longer side `_GLYPH` pixels: bool [64, 64]."""
    left, top, right, bottom = font.getbbox(letter)
    image = Image.new("L", (int(right - left) + 4, int(bottom - top) + 4))
    ImageDraw.Draw(image).text((2 - left, 2 - top), letter, fill=255, font=font)
    image = image.crop(image.getbbox())
    scale = _GLYPH / max(image.size)
    image = image.resize([max(1, round(side * scale)) for side in image.size], Image.Resampling.BOX)
    canvas = Image.new("L", (_CANVAS, _CANVAS))
    canvas.paste(image, ((_CANVAS - image.width) // 2, (_CANVAS - image.height) // 2))
    return np.asarray(canvas) > 127


def _distance_to(mask: np.ndarray) -> np.ndarray:
    """Euclidean distance of every pixel to the nearest set pixel of its image.

    Args:
        mask: bool [..., S, S]; every image has a set pixel.

    Returns:
        float32 [..., S, S].

    Source: exact two-pass transform, Saito and Toriwaki, Pattern Recognition 27 (1994).
    """
    steps = np.arange(mask.shape[-1], dtype=np.float32)
    squares = (steps[:, None] - steps[None, :]) ** 2  # (S, S)
    result = np.where(mask, np.float32(0), np.float32(4 * mask.shape[-1] ** 2))
    for _ in range(2):  # along the columns, then along the rows of what that gave
        result = np.swapaxes(result, -1, -2)
        lowest = np.full_like(result, np.inf)
        for k in range(len(steps)):
            np.minimum(lowest, result[..., k, None] + squares[k], out=lowest)
        result = lowest
    return np.sqrt(result)


def _draw(
    fields: np.ndarray, letter: np.ndarray, font: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, Strokes]:
    """Draw one deformed image of each given glyph.

    Args:
        fields: distance fields, [L, F, 64, 64].
        letter: index of the letter, [n].
        font: index of the font, [n].
        rng: where the deformations come from.

    Returns:
        float32 [n, 8, 8] in [0, 1], and how they were drawn.
    """
    n = len(letter)
    # Affine: rotation, slant (more often to the right, as people write) and relative width.
    angle = rng.normal(0, 0.10, n)
    slant = rng.normal(0.10, 0.20, n)
    cos, sin, one, zero = np.cos(angle), np.sin(angle), np.ones(n), np.zeros(n)
    rotation = np.stack([np.stack([cos, -sin], -1), np.stack([sin, cos], -1)], -2)
    shear = np.stack([np.stack([one, slant], -1), np.stack([zero, one], -1)], -2)
    affine = rotation @ shear  # (n, 2, 2)
    # Elastic: a smooth displacement, a sum of cosine waves, the shorter the smaller.
    order = np.add.outer(np.arange(_WAVES), np.arange(_WAVES))
    waves = rng.normal(0, 1, (n, 2, _WAVES, _WAVES)) * (0.16 / np.maximum(order, 1) ** 1.2)
    waves[:, :, 0, 0] = 0  # a shift, which the crop would undo
    # Pen: half its width in the final bitmap, in pixels of the canvas (the glyph's height fills the bitmap).
    pen = rng.uniform(2.0, 4.0, n) * (_GLYPH / _BITMAP)

    def inked(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Whether there is ink at the grid of x [n, W] and y [n, H]: bool [n, H, W]."""
        steps = np.arange(_WAVES) * np.pi / 3.0
        across, along = np.cos((x[..., None] + 1.5) * steps), np.cos((y[..., None] + 1.5) * steps)
        bend = along[:, None] @ waves @ np.swapaxes(across, -1, -2)[:, None]  # (n, 2, H, W)
        points = np.stack(np.broadcast_arrays(x[:, None, :], y[:, :, None]), 1) + bend
        points = np.einsum("nij,njhw->nihw", affine, points) * (_GLYPH / 2) + (_CANVAS - 1) / 2
        return _sample(fields, letter, font, points) < pen[:, None, None]

    # Where the glyph came to lie, on a coarse grid that is larger than any glyph.
    grid = np.linspace(-1.5, 1.5, 49)
    coarse = inked(np.tile(grid, (n, 1)), np.tile(grid, (n, 1)))
    left, right = _extent(np.asarray(coarse.any(1)), grid)
    top, bottom = _extent(np.asarray(coarse.any(2)), grid)
    # The digits fill their bitmap from top to bottom; their width is their own, and seldom the whole.
    ratio = (right - left) / (bottom - top)
    width = np.clip(_BITMAP * ratio * rng.uniform(0.6, 0.95, n), 5, 26)
    height = rng.uniform(30.5, 33.5, n)
    pixels = np.arange(_BITMAP) + 0.5 - _BITMAP / 2
    shift = rng.normal(-0.5, 0.8, n)
    x = ((left + right) / 2)[:, None] + (pixels - shift[:, None]) * ((right - left) / width)[:, None]
    y = ((top + bottom) / 2)[:, None] + pixels * ((bottom - top) / height)[:, None]
    blocks = inked(x, y).reshape(n, _BITMAP // _BLOCK, _BLOCK, _BITMAP // _BLOCK, _BLOCK)
    images = blocks.sum((2, 4)).astype(np.float32) / _BLOCK**2
    return images, Strokes(pen / (_GLYPH / _BITMAP), slant, width)


def _extent(occupied: np.ndarray, grid: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First and last occupied place on a grid of equal steps: occupied bool [n, G] -> two arrays [n]."""
    half = (grid[1] - grid[0]) / 2
    return grid[occupied.argmax(1)] - half, grid[len(grid) - 1 - occupied[:, ::-1].argmax(1)] + half


def _sample(fields: np.ndarray, letter: np.ndarray, font: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Bilinear values of distance fields; beyond its canvas a field goes on with its border's value.

    Args:
        fields: [L, F, S, S].
        letter: [n].
        font: [n].
        points: x and y in pixels, [n, 2, H, W].

    Returns:
        [n, H, W].
    """
    points = np.clip(points, 0, _CANVAS - 1.001)
    whole = points.astype(np.intp)
    right, down = np.moveaxis(points - whole, 1, 0)
    start = ((letter * fields.shape[1] + font) * _CANVAS**2)[:, None, None]
    index = start + whole[:, 1] * _CANVAS + whole[:, 0]
    flat = fields.reshape(-1)
    upper = flat[index] * (1 - right) + flat[index + 1] * right
    lower = flat[index + _CANVAS] * (1 - right) + flat[index + _CANVAS + 1] * right
    return upper * (1 - down) + lower * down


@datasets.register("letters")
@schema.checked
@takes_views()
def letters(
    *,
    count: Annotated[int, at_least(1)] = 3700,
    exclude: str | None = None,
    seed: Annotated[int, at_least(0)] = 0,
    test_fraction: Share = 0.2,
) -> DataBundle:
    """Letters drawn in the manner of the digits, 8x8, 37 classes; no download.

    Args:
        count: of all images; classes are of equal size.
        exclude: letters that are left out; null leaves out those with a digit's shape.
        seed: of the drawing, and of the choice of test images.
        test_fraction: share of each class that is the test set.
    """
    selection = Selection(test_fraction=test_fraction, split_seed=seed)
    left_out = LOOK_LIKE_DIGITS if exclude is None else exclude
    images, labels, names = render_letters(count, seed=seed, exclude=left_out)
    load = ImageArray(torch.from_numpy(images)[:, None])
    return assemble(
        "letters",
        load,
        labels,
        None,
        selection,
        cache=True,
        encoded=False,
        names=names,
    )
