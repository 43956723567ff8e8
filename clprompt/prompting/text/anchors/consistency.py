"""CoPrompt's anchors: features agree with those of another view of the image and of another text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor

from clprompt import schema
from clprompt.prompting.text.anchors.adapters import AdaptedAnchor
from clprompt.prompting.text.plugin import LiveText
from clprompt.schema import at_least, at_most
from clprompt.seeding import generator

#: The least share of an image that a second view shows.
_LEAST = 0.5


class Consistency(AdaptedAnchor):
    """Consistency with the unprompted towers, over views that differ, and adapters behind both towers.

    image_weight mean(1 - cos(f, f0 of a second view)) + text_weight mean(1 - cos(t_c, another text of c))

    Of sentences by class name one is drawn for each class and step; several templates are averaged. Logits
    and terms are of adapted features.

    The second view is ours: the images of the batch, already augmented by the loader, are once more cropped
    to half their area or more, and mirrored half of the time (:func:`second_view`). The released code makes
    both views from the file.

    Args:
        texts: see :class:`Anchor`; published with sentences about each class by a language model.
        text_weight: lambda of the texts.
        image_weight: lambda of the images.
        adapt_image: r of the images' adapter; 0 for none.
        adapt_text: r of the texts'; 0 for none.

    Attributes:
        steps: made so far, from which views and sentences are drawn.

    Source: Roy and Etemad, ICLR 2024 (CoPrompt), arXiv 2306.01195, and its released code.
    """

    name = "consistency"

    @schema.checked
    def __init__(
        self,
        *,
        texts: str | None = None,
        text_weight: Annotated[float, at_least(0)] = 1.0,
        image_weight: Annotated[float, at_least(0)] = 1.0,
        adapt_image: Annotated[float, at_least(0), at_most(1)] = 0.1,
        adapt_text: Annotated[float, at_least(0), at_most(1)] = 0.2,
    ) -> None:
        super().__init__(texts, adapt_image, adapt_text)
        self.text_weight = text_weight
        self.image_weight = image_weight
        self.steps: Tensor
        self.register_buffer("steps", torch.tensor(0))
        self._step = 0  # the same on the host

    def follow(self) -> None:
        self._step = int(self.steps)

    def text_terms(self, live: LiveText) -> Mapping[str, Tensor]:
        drawn = generator(self.model.seed, self.name, self._step)
        self.steps += 1
        self._step += 1
        texts = self.other_texts(live.classes, drawn).to(live.rows)
        terms = {"text": (self.text_weight, 1 - (live.rows * texts).sum(1).mean())}
        if self.image_weight:  # a pass of the tower
            part = self.model.drawn_rows(len(live.images))
            own = self.model.features(second_view(live.images, drawn, *part))
            view = self.model.whole(own).to(live.features)
            terms["image"] = (self.image_weight, 1 - (live.features * view).sum(1).mean())
        return self.named(terms)

    @torch.no_grad()
    def other_texts(self, classes: Sequence[int], drawn: torch.Generator) -> Tensor:
        """Unprompted rows of classes, of one sentence each where there are sentences, [n, E]."""
        assert self.texts is not None
        if self.texts.sentences is None:
            return self.teacher(classes)
        rows = []
        for name in self.shown(classes):
            sentences = self.texts.of(name)
            which = int(torch.randint(len(sentences), (), generator=drawn))
            rows.append(self.model.text.features(sentences)[which])  # all at once: the tower keeps them
        return F.normalize(torch.stack(rows), dim=-1)


def second_view(
    images: Tensor, drawn: torch.Generator, total: int | None = None, own: slice = slice(None)
) -> Tensor:
    """Each image cropped to a random part of half its area or more, mirrored half of the time.

    Args:
        images: [B, 3, H, W].
        drawn: the random numbers.
        total: for how many images they are drawn; None for as many as there are.
        own: which of those these images are.

    Returns:
        [B, 3, H, W], between pixels by bilinear interpolation.
    """
    drawn_for = len(images) if total is None else total
    area, across, down, mirrored = torch.rand(4, drawn_for, generator=drawn)[:, own]
    side = (_LEAST + (1 - _LEAST) * area).sqrt()  # of 1
    scale = torch.where(mirrored < 0.5, -side, side)
    zero = torch.zeros_like(side)
    rows = [
        torch.stack([scale, zero, (1 - side) * (2 * across - 1)], dim=1),
        torch.stack([zero, side, (1 - side) * (2 * down - 1)], dim=1),
    ]
    moved = torch.stack(rows, dim=1).to(images.device, non_blocking=True)  # (B, 2, 3)
    grid = F.affine_grid(moved, list(images.shape), align_corners=False)
    view = F.grid_sample(images.float(), grid, padding_mode="border", align_corners=False)
    return view.to(images.dtype)
