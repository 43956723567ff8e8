"""Rotary positions: queries and keys of the patches are turned by their place in the image."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from timm.layers.pos_embed_sincos import apply_rot_embed_cat
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Rotary:
    """Rotary positions of the patches in one block: what turns their queries and keys.

    Args:
        embedding: sines and cosines of each patch, as timm has them, [n, 2 d] or [H, n, 2 d].
        start: the row of the first patch in the stream; the rows before it are not rotated.
        half: whether a number's partner is half a head away, not its neighbour.
    """

    embedding: Tensor
    start: int
    half: bool

    def __call__(self, heads: Tensor, first: int = 0) -> Tensor:
        """Rotate queries or keys [B, H, R, d], of which row 0 is row ``first`` of the stream.

        Only rows of patches are changed: neither those before them nor carried prompts behind them.
        """
        rows = heads.shape[2]
        begin = min(max(self.start - first, 0), rows)
        end = min(max(self.start + self.embedding.shape[-2] - first, 0), rows)
        if begin == end:
            return heads
        patch = begin + first - self.start
        embedding = self.embedding[..., patch : patch + end - begin, :]
        rotated = apply_rot_embed_cat(heads[:, :, begin:end], embedding, half=self.half).type_as(heads)
        return torch.cat([heads[:, :, :begin], rotated, heads[:, :, end:]], dim=2)
