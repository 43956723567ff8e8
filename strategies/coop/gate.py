"""MoCoOp's gate: which groups of templates an image is compared with, and how groups are kept apart."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clprompt.seeding import generator

#: Groups that an image's text features are mixed from.
_CHOSEN = 2
#: What the gate's target adds to the groups nearest to the image, so that nearly all of it lies on them.
_RAISED = 10.0


class Gate(nn.Module):
    """A linear layer on an image's normalised features that weighs the contexts of G groups of templates.

    Args:
        width: of the features, E.
        groups: G, at least 2.
        seed: where the initial values come from.

    Source: Du et al. 2024 (MoCoOp), arXiv 2409.15664, and its released code.
    """

    def __init__(self, width: int, groups: int, *, seed: int) -> None:
        super().__init__()
        values = torch.rand(groups, width, generator=generator(seed, "gate"))
        self.weight = nn.Parameter((2 * values - 1) * width**-0.5)
        self.bias = nn.Parameter(torch.zeros(groups))

    def forward(self, features: Tensor) -> Tensor:
        """Unnormalised weights: [B, E] -> [B, G]."""
        with torch.autocast(features.device.type, enabled=False):
            wide = torch.promote_types(features.dtype, torch.float32)
            return F.linear(features.to(wide), self.weight.to(wide), self.bias.to(wide))

    def weights(self, features: Tensor) -> Tensor:
        """Weights of the groups, of which two are not 0 and sum to 1: [B, E] -> [B, G]."""
        scores = self(features)
        best = scores.topk(_CHOSEN, dim=1)
        return torch.zeros_like(scores).scatter(1, best.indices, best.values.softmax(1))


def group_loss(features: Tensor, prototypes: Tensor) -> Tensor:
    """Text-to-text cross-entropy: each group's contexts tell the classes by the group's own templates.

    Without the scale of the logits, as released.

    Args:
        features: of the classes in each group's context, normalised, [G, C, E].
        prototypes: mean features of the group's templates, normalised, [G, C, E].
    """
    logits = features @ prototypes.mT  # (G, C, C)
    return F.cross_entropy(
        logits.flatten(0, 1), torch.arange(logits.shape[1], device=logits.device).repeat(len(logits))
    )


def gate_loss(scores: Tensor, features: Tensor, prototypes: Tensor) -> Tensor:
    """Cross-entropy of the gate to the groups whose prototype of the label is nearest to the image.

    Args:
        scores: of the gate, [B, G].
        features: of the images, normalised, [B, E].
        prototypes: of each image's label in each group, normalised, [B, G, E].
    """
    nearness = (prototypes @ features[..., None]).squeeze(-1)  # (B, G)
    raised = nearness.scatter_add(
        1, nearness.topk(_CHOSEN, dim=1).indices, torch.full_like(nearness, _RAISED)
    )
    return F.cross_entropy(scores, raised.softmax(1))
