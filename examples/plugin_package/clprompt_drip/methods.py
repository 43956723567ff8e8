"""Two methods, small enough to be read at once."""

from typing import Annotated

import torch
from torch import Tensor, nn

from clprompt import BlockPrompt, Cache, Encoded, FrozenViT, PromptModel, at_least, checked, uniform


class InputPromptModel(PromptModel):
    """Prompts that join the sequence in front of the first block and are trained throughout.

    Args:
        backbone: the frozen vision transformer.
        seed: where all initial values come from.
        length: prompt tokens.
    """

    @checked
    def __init__(self, backbone: FrozenViT, *, seed: int = 0, length: Annotated[int, at_least(1)] = 4):
        super().__init__(backbone, seed=seed, mask="seen")
        self.prompt = uniform(1, length, backbone.width, seed=seed, name="prompt", bound=0.1)

    def encode(self, images: Tensor, cached: Cache | None = None) -> Encoded:
        def prompts(block: int, x: Tensor) -> BlockPrompt | None:
            return BlockPrompt("carried", self.prompt) if block == 0 else None

        return Encoded(self.backbone.prompted(self.backbone.embed(images), prompts))


class ScaledProbeModel(PromptModel):
    """A linear head on frozen features, each scaled by a learned factor.

    Args:
        backbone: the frozen vision transformer.
        seed: where all initial values come from.
    """

    @checked
    def __init__(self, backbone: FrozenViT, *, seed: int = 0):
        super().__init__(backbone, seed=seed, mask="seen")
        self.scale = nn.Parameter(torch.ones(backbone.width))

    def encode(self, images: Tensor, cached: Cache | None = None) -> Encoded:
        return Encoded(self.features(images, cached) * self.scale)
