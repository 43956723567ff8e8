"""Feature coordinates as logits: no head, classes read the coordinates that are most active on noise."""

from __future__ import annotations

import torch
from torch import Tensor

from clprompt.backbones.vit import FrozenViT
from clprompt.seeding import generator


def noise_features(backbone: FrozenViT, seed: int) -> Tensor:
    """Features [512, D] of images of pure noise."""
    size = (512, backbone.in_chans, *backbone.image_size)
    noise = torch.randn(*size, generator=generator(seed, "noise"))
    weights = next(backbone.parameters())
    return torch.cat([backbone.features(part.to(weights)) for part in noise.split(64)])


def activity_rank(features: Tensor) -> Tensor:
    """Feature coordinates by falling (population) standard deviation: [n, D] -> int64 [D]."""
    return features.double().std(0, unbiased=False).argsort(descending=True)
