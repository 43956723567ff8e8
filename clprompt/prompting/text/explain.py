"""Pictures of what image and text have to do with each other: patches and names, contexts and words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from clprompt.backbones.text import FrozenText
from clprompt.backbones.vit import FrozenViT

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Names that are drawn beside an image, the best first.
NAMES = 2


class NearWord(NamedTuple):
    """A word beside a context token.

    Attributes:
        word: as the tokenizer writes it.
        distance: Euclidean, between their embeddings.
    """

    word: str
    distance: float


@torch.no_grad()
def nearest_words(text: FrozenText, rows: Tensor, count: int = 5) -> list[list[NearWord]]:
    """The words whose token embeddings are nearest to each context row; start, end and padding left out.

    Args:
        text: the tower whose words they are.
        rows: context tokens without positions, [n, W].
        count: words of each row.
    """
    words = {token: text.tokenizer.word(token) for token in range(text.vocabulary)}
    known = torch.tensor([token for token, word in words.items() if word], device=rows.device)
    table = text.embed(known)  # (v, W)
    distances = torch.cdist(rows.to(table), table)
    nearest = distances.topk(min(count, len(known)), largest=False)
    return [
        [NearWord(words[int(known[at])] or "", float(far)) for at, far in zip(places, lengths, strict=True)]
        for places, lengths in zip(nearest.indices.tolist(), nearest.values.tolist(), strict=True)
    ]


@torch.no_grad()
def patch_similarity(backbone: FrozenViT, tokens: Tensor, rows: Tensor) -> Tensor:
    """Cosines of every patch of an image with text: [B, n, height, width] in patches.

    A tower that pools its class token was trained on that token alone: look at a map before it is trusted.

    Args:
        backbone: whose tokens they are.
        tokens: the stream behind the last block, [B, N, D].
        rows: normalised text features, [n, E].
    """
    height, width = (
        size // patch for size, patch in zip(backbone.image_size, backbone.patch_size, strict=True)
    )
    start = backbone.num_prefix_tokens
    patches = tokens[:, start : start + height * width]
    features = F.normalize(backbone.project(backbone.final(patches)), dim=-1)  # (B, h w, E)
    return (features @ rows.to(features).T).movedim(-1, 1).unflatten(-1, (height, width))


def draw_patches(
    images: NDArray[np.floating], maps: Sequence[NDArray[np.floating]], names: Sequence[Sequence[str]]
) -> Figure:
    """One row per image: itself, then the cosine of each of its patches with a name.

    Args:
        images: [B, H, W, 1 or 3], any range.
        maps: of each image, [n, height, width].
        names: of each image's maps, with what else stands above them.
    """
    from matplotlib.figure import Figure

    count, columns = len(images), 1 + max(map(len, maps), default=0)
    figure = Figure(figsize=(2.0 * columns + 0.6, 2.2 * count), layout="constrained")
    axes = figure.subplots(count, columns, squeeze=False)
    for row, (image, of_image) in enumerate(zip(images, maps, strict=True)):
        picture = image - image.min()
        shown = np.broadcast_to(picture / max(float(picture.max()), 1e-6), (*picture.shape[:2], 3))
        axes[row, 0].imshow(shown)
        low, high = float(of_image.min()), float(of_image.max())
        for column, (values, name) in enumerate(zip(of_image, names[row], strict=True), 1):
            drawn = axes[row, column].imshow(values, vmin=low, vmax=high, cmap="viridis")
            axes[row, column].set_title(name, fontsize=8)
        for empty in axes[row, 1 + len(of_image) :]:
            empty.axis("off")
        figure.colorbar(drawn, ax=axes[row, 1:].tolist(), fraction=0.05, label="cosine")
    for each in axes.flat:
        each.set_xticks([])
        each.set_yticks([])
    return figure


def draw_words(words: Sequence[Sequence[NearWord]]) -> Figure:
    """A table of the words nearest to each context token, with their distances."""
    from matplotlib.figure import Figure

    cells = [[f"{near.word} {near.distance:.2f}" for near in row] for row in words]
    columns = max(map(len, cells), default=0)
    figure = Figure(figsize=(1.4 * columns + 1.2, 0.32 * (len(cells) + 1) + 0.4), layout="constrained")
    axes = figure.add_subplot()
    axes.axis("off")
    axes.table(
        cells,
        rowLabels=[f"token {number}" for number in range(1, len(cells) + 1)],
        colLabels=[f"word {number}" for number in range(1, columns + 1)],
        loc="center",
        cellLoc="left",
    )
    axes.set_title("Words nearest to each context token, and how far they are", fontsize=9)
    return figure
