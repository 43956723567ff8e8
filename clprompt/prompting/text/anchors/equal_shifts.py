"""RESTORE's anchor: prompts move images and texts equally far."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from clprompt import schema
from clprompt.prompting.text.anchors.adapters import AdaptedAnchor
from clprompt.prompting.text.anchors.anchor import of_labels
from clprompt.prompting.text.plugin import LiveText
from clprompt.schema import at_least, at_most


class EqualShifts(AdaptedAnchor):
    """Consistency of feature shifts: shift_weight mean((|f^ - f0^| - |t^_y - t0^_y|)^2), y an image's label.

    After the abstract: neither the norm nor the adapters ("surgery") of the paper were read. This form, with
    the adapters of :class:`Consistency`, is ours.

    Args:
        texts: of t0, see :class:`Anchor`.
        shift_weight: of the term.
        adapt_image: r of the images' adapter; 0 for none.
        adapt_text: r of the texts'; 0 for none.

    Source: Yang et al. 2024 (RESTORE), arXiv 2403.06136, abstract.
    """

    name = "equal_shifts"
    needs_label: ClassVar[bool] = True

    @schema.checked
    def __init__(
        self,
        *,
        texts: str | None = None,
        shift_weight: Annotated[float, at_least(0)] = 1.0,
        adapt_image: Annotated[float, at_least(0), at_most(1)] = 0.1,
        adapt_text: Annotated[float, at_least(0), at_most(1)] = 0.2,
    ) -> None:
        super().__init__(texts, adapt_image, adapt_text)
        self.shift_weight = shift_weight

    def text_terms(self, live: LiveText) -> Mapping[str, Tensor]:
        place, is_live = of_labels(live)  # a replayed image's row is a constant: it has no shift to compare
        image = torch.linalg.vector_norm(live.features - live.frozen(), dim=1)  # (B,)
        text = torch.linalg.vector_norm(live.rows - self.teacher(live.classes).to(live.rows), dim=1)[place]
        difference = (image - text).square() * is_live
        return self.named({"shift": (self.shift_weight, difference.sum() / is_live.sum().clamp(min=1))})
