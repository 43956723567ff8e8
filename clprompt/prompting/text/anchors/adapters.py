"""Small networks on the way from features to logits, for anchors that leave room beside the prompts."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clprompt.prompting.model import PromptModel
from clprompt.prompting.prompts import uniform
from clprompt.prompting.text.anchors.anchor import Anchor

#: Of the width between the two layers, how many make one of the features'.
_NARROWER = 4


class Adapter(nn.Module):
    """r ReLU(W2 ReLU(W1 f)) + (1 - r) f, without bias: a feature of twice the length comes out twice as long.

    Args:
        width: of the features, E; E / 4 between the two layers.
        ratio: r, from 0 to 1.
        seed: where the initial values come from.
        name: of the tower, which makes them its own.

    Source: Gao et al., IJCV 2024 (CLIP-Adapter), arXiv 2110.04544, in the form of CoPrompt's released code.
    """

    def __init__(self, width: int, ratio: float, *, seed: int, name: str) -> None:
        super().__init__()
        self.ratio = ratio
        hidden = max(1, width // _NARROWER)
        # as a linear layer of torch starts
        self.down = uniform(hidden, width, seed=seed, name=f"adapter {name}", index=0, bound=width**-0.5)
        self.up = uniform(width, hidden, seed=seed, name=f"adapter {name}", index=1, bound=hidden**-0.5)

    def forward(self, features: Tensor) -> Tensor:
        """[B, E] -> [B, E], in float32 at least."""
        with torch.autocast(features.device.type, enabled=False):
            features = features.to(torch.promote_types(features.dtype, torch.float32))
            hidden = F.linear(features, self.down.to(features)).relu()  # (B, E / 4)
            return self.ratio * F.linear(hidden, self.up.to(features)).relu() + (1 - self.ratio) * features


class AdaptedAnchor(Anchor):
    """An anchor with an adapter behind each tower, trained with the prompts and used ever after.

    That of the images is shared by all rows and goes on learning: kept rows do not follow it.

    Args:
        texts: see :class:`Anchor`.
        adapt_image: r of the images' adapter; 0 for none.
        adapt_text: r of the texts'; 0 for none.
    """

    def __init__(self, texts: str | None, adapt_image: float, adapt_text: float) -> None:
        super().__init__(texts)
        self.adapt_image = adapt_image
        self.adapt_text = adapt_text
        self.image: Any = None
        self.text: Any = None
        self.changes_features = adapt_image > 0

    def attach(self, model: PromptModel) -> None:
        super().attach(model)
        width = model.feature_width
        if self.adapt_image:
            self.image = Adapter(width, self.adapt_image, seed=model.seed, name=f"{self.name} image")
        if self.adapt_text:
            self.text = Adapter(width, self.adapt_text, seed=model.seed, name=f"{self.name} text")

    def adapt_images(self, features: Tensor) -> Tensor:
        return features if self.image is None else self.image(features)

    def adapt_rows(self, rows: Tensor) -> Tensor:
        # the adapter of a normalised feature is, normalised, that of the feature
        return rows if self.text is None else F.normalize(self.text(rows), dim=-1)
