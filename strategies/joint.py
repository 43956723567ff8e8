"""Joint: an upper line, trained on all data at once; no continual learner, as it goes back to old data."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import torch

from clprompt import schema
from clprompt.backbones.vit import FrozenViT
from clprompt.prompting.model import PromptModel
from clprompt.prompting.plugin import Samples
from clprompt.registry import strategies
from clprompt.schema import at_least
from clprompt.strategies.vpt_deep import VPTDeepModel


@strategies.register("joint", paper="joint training, an upper line", year=None, boundaries="required")
class JointModel(VPTDeepModel):
    """Joint training, for scale: a base model trained from its initial state on all data so far.

    It is not rehearsal-free: the loop hands it the data of earlier experiences again. All classes so far
    compete in training. Upper bounds in the literature fine-tune the whole backbone and are not comparable.

    Args:
        backbone: the frozen vision transformer.
        seed: where all initial values come from.
        base: trained is "vpt_deep" (prompts in every block, and the head) or "linear_probe" (the head alone).
        length: tokens per block of "vpt_deep".
        when: "last" trains once, after the last experience; no other is trained on or evaluated, so that
            metrics which need them are undefined. "each" starts anew and trains after every experience.
    """

    rehearsal_free: ClassVar[bool] = False
    # a plain upper line, from the same start each time: its prompts are offered for nothing
    prompt_sets = PromptModel.prompt_sets
    learned_prompts = PromptModel.learned_prompts

    @schema.checked
    def __init__(
        self,
        backbone: FrozenViT,
        *,
        seed: int = 0,
        base: Literal["vpt_deep", "linear_probe"] = "vpt_deep",
        length: Annotated[int, at_least(1)] = 10,
        when: Literal["last", "each"] = "last",
    ) -> None:
        # to this model an experience is all data so far, so its mask lets all classes so far compete
        super().__init__(backbone, seed=seed, length=length, layers=() if base == "linear_probe" else None)
        self.revisits = when
        self._arguments = {"seed": seed, "base": base, "length": length, "when": when}

    @torch.no_grad()
    def start_experience(self, index: int, samples: Samples | None) -> None:
        """Back to the initial state; the backbone is shared."""
        fresh = JointModel(self.backbone, **self._arguments)  # type: ignore[arg-type]
        fresh._grow(range(self.num_classes))
        parameters = self.own_parameters()
        for name, value in fresh.own_parameters().items():
            parameters[name].copy_(value)
