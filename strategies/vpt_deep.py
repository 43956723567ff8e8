"""VPT-deep: prompt tokens that are new in every block, shared by all experiences."""

from __future__ import annotations

import math
from typing import Annotated

from torch import Tensor

from clprompt import schema
from clprompt.backbones.attention import BlockPrompt
from clprompt.backbones.vit import FrozenViT
from clprompt.prompting.model import Blocks, Cache, Encoded, Mask, PromptModel
from clprompt.prompting.plugin import LearnedPrompts, PromptSet
from clprompt.prompting.prompts import uniform
from clprompt.registry import strategies
from clprompt.schema import at_least


@strategies.register(
    "vpt_deep", paper="Jia et al., ECCV 2022, arXiv 2203.12119", year=2022, boundaries="required or unused"
)
class VPTDeepModel(PromptModel):
    """VPT-deep (Jia et al., "Visual Prompt Tuning"), trained one experience after the other.

    Every block gets learned tokens of its own beside the image's; their outputs are dropped. One set of
    prompts serves the whole stream: nothing is copied or frozen, so the prompts forget, while the mask keeps
    old rows of the head as they were.

    Where published descriptions and codes differ:

    * No prompt dropout (0.1 in the released code).
    * The released code trains the prompts on one task; that they are shared by all experiences, and the
      training mask, are ours.

    A method that wraps these prompts reads :meth:`block_prompt`, as :meth:`FrozenViT.run` does.

    Args:
        backbone: the frozen vision transformer.
        seed: where all initial values come from.
        length: P, tokens per block.
        layers: the prompted blocks; None for all.
        boundary_free: no experiences: nothing but the training mask changes.
        mask: which classes compete in training; None for "experience" ("seen" when boundary-free).
    """

    @schema.checked
    def __init__(
        self,
        backbone: FrozenViT,
        *,
        seed: int = 0,
        length: Annotated[int, at_least(1)] = 10,
        layers: Blocks | None = None,
        boundary_free: bool = False,
        mask: Mask | None = None,
    ) -> None:
        super().__init__(backbone, seed=seed, mask=mask, boundary_free=boundary_free)
        self.layers = backbone.check_layers("layers", range(backbone.depth) if layers is None else layers)
        self.first_block = min(self.layers, default=backbone.depth)
        fan = backbone.in_chans * math.prod(backbone.patch_size) + backbone.width  # of the patch projection
        shape = (len(self.layers), length, backbone.width)
        self.prompts = uniform(*shape, seed=seed, name="prompts", bound=math.sqrt(6 / fan))

    @property
    def prompt_tokens(self) -> int:
        return self.prompts.shape[1] if self.layers else 0

    def prompt_sets(self) -> dict[str, PromptSet]:
        return {"prompts": PromptSet(self.layers, self.prompts.shape[1], [self.prompts])}

    def learned_prompts(self) -> dict[str, LearnedPrompts]:
        if not self.layers:
            return {}
        axes, shape = ("blocks", "length"), tuple(self.prompts.shape)
        return {
            "prompts": LearnedPrompts(
                axes, shape, [self.prompts], blocks=self.layers, block_prompt=self._fresh
            )
        }

    @property
    def features_stay(self) -> bool:
        return not self.layers

    def encode(self, images: Tensor, cached: Cache | None = None) -> Encoded:
        if not self.layers:  # nothing but the head learns
            return Encoded(self.features(images, cached))
        stem = self.backbone.stem(images, self.first_block)
        return Encoded(self.backbone.prompted(stem, self.block_prompt, start=self.first_block))

    def block_prompt(self, block: int, x: Tensor) -> BlockPrompt | None:
        """The tokens of one block, [1, P, D]; None for a block without."""
        if block not in self.layers:
            return None
        return self._fresh(self.prompts, block)

    def _fresh(self, prompts: Tensor, block: int) -> BlockPrompt:
        """Of [blocks, P, D] what one block gets."""
        return BlockPrompt("fresh", prompts[self.layers.index(block)][None])
