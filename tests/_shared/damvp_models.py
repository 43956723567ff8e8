"""Small DAM-VP models in float64 and what they see, for every test of the method."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from clprompt.backbones.vit import FrozenViT
from clprompt.prompting.build import construct
from clprompt.seeding import generator
from clprompt.strategies.damvp import DAMVPModel


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=generator(seed, "draw"), dtype=torch.float64)


def blobs(count: int, each: int = 20, seed: int = 0) -> Tensor:
    """[count * each, 16]: well separated groups."""
    centres = 20 * draw(count, 16, seed=seed)
    return (centres[:, None] + draw(count, each, 16, seed=seed + 1)).flatten(0, 1)


def build(backbone: FrozenViT, features: Tensor | None = None, **arguments: Any) -> DAMVPModel:
    model = construct(DAMVPModel, backbone, **{"pad": 4, **arguments}).double()
    assert isinstance(model, DAMVPModel)
    model.begin_experience([0, 1])
    model.observe(torch.tensor([0, 1]))
    if features is not None:
        model.fit_clusters(features)
    return model.double().eval()
