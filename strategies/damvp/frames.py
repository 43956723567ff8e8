"""Pixel prompts: frames around images, kept as vectors, added to pixels or, exactly, to embedded patches."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from clprompt.backbones.vit import FrozenViT
from clprompt.errors import ConfigError, DataError, tell


def frame_size(channels: int, side: int, pad: int) -> int:
    """Numbers in a frame of thickness ``pad`` around a square image: 4 * channels * pad * (side - pad)."""
    return 4 * channels * pad * (side - pad)


def default_pad(side: int) -> int:
    """The published thickness, 30 of 224 pixels, in proportion."""
    return max(1, round(side * 30 / 224))


def check_frame(backbone: FrozenViT, pad: int | None) -> int:
    """The image side, for a frame that fits.

    Raises:
        ConfigError: non-square images, or a thickness that leaves them.
    """
    height, width = backbone.image_size
    if height != width:
        raise ConfigError(f"pixel prompts need square images, the backbone takes {height}x{width}")
    if pad is not None and not 0 < pad <= height // 2:
        raise ConfigError(f"pad must be 1..{height // 2} pixels for images of {height}, got {pad}")
    return height


def check_images(backbone: FrozenViT, images: Tensor) -> None:
    """Refuse images [B, channels, H, W] that a frame does not fit around.

    Raises:
        DataError: images of another size than the backbone's.
    """
    if tuple(images.shape[2:]) != backbone.image_size:
        got, wanted = (" x ".join(map(str, size)) for size in (images.shape[2:], backbone.image_size))
        raise DataError(f"the frames are made for images of {wanted}, got {got}")


def frame_places(channels: int, side: int, pad: int) -> Tensor:
    """Where each entry of a frame vector lies in a flattened [channels, side, side] image, int64 [F].

    Order: up and down (full width, they own the corners), left and right, each flattened.
    """
    places = torch.arange(channels * side * side).view(channels, side, side)
    inner = slice(pad, side - pad)
    parts = (places[:, :pad], places[:, side - pad :], places[:, inner, :pad], places[:, inner, side - pad :])
    return torch.cat([part.flatten() for part in parts])


def as_images(frames: Tensor, places: Tensor, channels: int, side: int) -> Tensor:
    """Frame vectors [K, F] -> images [K, channels, side, side], zero inside; the gradient is a gather."""
    flat = frames.new_zeros(len(frames), channels * side * side)
    return flat.index_copy(1, places, frames).view(-1, channels, side, side)


def patch_offsets(backbone: FrozenViT, framed: Tensor) -> Tensor:
    """What frames add to embedded patches, [K, n, D]; exactly 0 where a frame does not reach.

    Only for backbones with ``linear_patches``. The backward pass then runs the embedding's transpose for K
    frames instead of B images.
    """
    return backbone.patches(framed) - backbone.patches(torch.zeros_like(framed[:1]))


def framed_tokens(
    backbone: FrozenViT, images: Tensor, patches: Tensor | None, framed: Tensor, index: Tensor
) -> Tensor:
    """The tokens of images with a frame added to each, [B, N, D].

    Args:
        backbone: frozen.
        images: [B, channels, H, W].
        patches: their embedded patches, where the backbone has ``linear_patches``; None adds in pixels.
        framed: frames as images, [K, channels, H, W].
        index: which frame each image gets, int64 [B].
    """
    if patches is None:
        return backbone.embed(images + framed[index])
    return backbone.position(patches + patch_offsets(backbone, framed)[index])


class OffsetCache:
    """What frames add to embedded patches, kept for evaluation until a frame changes."""

    def __init__(self) -> None:
        self._key: tuple[Any, ...] = ()
        self._frames: list[Tensor] = []  # held, so that no other frame can take the place of one in memory
        self._offsets: Tensor | None = None

    @torch.no_grad()
    def of(self, backbone: FrozenViT, frames: list[Tensor], framed: Callable[[Tensor], Tensor]) -> Tensor:
        """The offsets [K, n, D] of all frames [F].

        Args:
            backbone: with ``linear_patches``.
            frames: parameters; a step in place counts up their version.
            framed: frame vectors [K, F] -> images.
        """
        if torch.compiler.is_compiling():  # what is traced lies nowhere in memory
            return patch_offsets(backbone, framed(torch.stack(frames)))
        device = frames[0].device.type
        key = (
            torch.is_autocast_enabled(device),
            torch.get_autocast_dtype(device),
            *((id(frame), frame._version, frame.data_ptr()) for frame in frames),
        )
        if self._offsets is None or key != self._key:
            self._key, self._frames = key, list(frames)
            self._offsets = patch_offsets(backbone, framed(torch.stack(frames)))
        return self._offsets

    def __deepcopy__(self, memo: Any) -> OffsetCache:
        return OffsetCache()  # a copy's frames are other tensors


def is_frame(path: str | Path) -> bool:
    """Whether a file holds a frame; False for what cannot be read."""
    try:
        with safe_open(str(path), "pt") as file:
            return "frame" in file.keys()  # noqa: SIM118
    except (SafetensorError, OSError):
        return False


def load_frame(path: str | Path, backbone: FrozenViT, pad: int) -> tuple[Tensor, Mapping[str, Any]]:
    """A meta-learnt frame [F] and its metadata; another backbone or normalisation is a warning.

    Raises:
        DataError: no such file, or not a frame.
        ConfigError: a frame of another image size or thickness.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"init_file: no file {path}")
    try:
        with safe_open(str(path), "pt") as file:
            frame, facts = file.get_tensor("frame"), json.loads((file.metadata() or {}).get("clprompt", "{}"))
    except (SafetensorError, json.JSONDecodeError, OSError) as error:
        raise DataError(f"init_file {path} holds no frame: {' '.join(str(error).split())}") from error
    side = backbone.image_size[0]
    sizes = (facts.get("side"), facts.get("pad"))
    if sizes != (side, pad) or frame.shape != (frame_size(backbone.in_chans, side, pad),):
        raise ConfigError(
            f"init_file {path} is a frame of {sizes[1]} pixels around images of {sizes[0]}, "
            f"not {pad} around {side}"
        )
    for name, expected in (
        ("backbone", backbone.source),
        ("mean", list(backbone.inputs.mean)),
        ("std", list(backbone.inputs.std)),
    ):
        if facts.get(name) != expected:
            tell(f"init_file {path} was made with {name} {facts.get(name)}, not {expected}")
    return frame, facts


def save_frame(
    path: str | Path, frame: Tensor, backbone: FrozenViT, pad: int, facts: Mapping[str, Any]
) -> None:
    """Write a frame [F] and what it was made with, atomically."""
    from safetensors.torch import save

    from clprompt.system.files import atomic_write

    whole = {
        "side": backbone.image_size[0],
        "pad": pad,
        "backbone": backbone.source,
        "mean": list(backbone.inputs.mean),
        "std": list(backbone.inputs.std),
        **facts,
    }
    data = save({"frame": frame.detach().cpu().contiguous()}, {"clprompt": json.dumps(whole)})
    atomic_write(path, data)
