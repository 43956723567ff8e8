"""PromptSRC's anchors: text, images and predictions stay near those of the unprompted towers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar

from torch import Tensor

from clprompt import schema
from clprompt.prompting.text.anchors.anchor import Anchor, divergence
from clprompt.prompting.text.model import TextModel
from clprompt.prompting.text.plugin import LiveText
from clprompt.prompting.text.sources import Ensemble
from clprompt.schema import at_least


class SelfRegulation(Anchor):
    """Self-regulating constraints: three terms beside the cross-entropy, over the n live classes.

    text_weight mean|t^ - teacher| + image_weight mean|f^ - f0^|
    + logits_weight sum(p0 (log p0 - log p)) / (B n), p0 the softmax of s f0^ teacher^T

    The teacher is the mean of the raw features of all texts, normalised. As released, the last term is
    divided by images and classes, so that it shrinks with more classes.

    Args:
        texts: of the teacher, see :class:`Anchor`; published with 60 templates.
        text_weight: of the first term.
        image_weight: of the second, which is 0 where images are not prompted.
        logits_weight: of the third.

    Source: Khattak et al., ICCV 2023 (PromptSRC), arXiv 2307.06948, and its released code; its averaging of
    prompts is :class:`clprompt.prompting.text.trajectory.Trajectory`.
    """

    name = "self_regulation"
    rule: ClassVar[Ensemble] = "raw"

    @schema.checked
    def __init__(
        self,
        *,
        texts: str | None = None,
        text_weight: Annotated[float, at_least(0)] = 25.0,
        image_weight: Annotated[float, at_least(0)] = 10.0,
        logits_weight: Annotated[float, at_least(0)] = 1.0,
    ) -> None:
        super().__init__(texts)
        self.text_weight = text_weight
        self.image_weight = image_weight
        self.logits_weight = logits_weight

    def text_terms(self, live: LiveText) -> Mapping[str, Tensor]:
        teacher = self.teacher(live.classes).to(live.rows)
        frozen = live.frozen()
        unprompted = TextModel.similarity(self.model, frozen, teacher)
        return self.named(
            {
                "text": (self.text_weight, (live.rows - teacher).abs().mean()),
                "image": (self.image_weight, (live.features - frozen).abs().mean()),
                "logits": (self.logits_weight, divergence(live.logits, unprompted) / live.logits.numel()),
            }
        )
