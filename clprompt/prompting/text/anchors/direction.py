"""DiSa's anchors: prompted images tell frozen texts apart as frozen images do learned ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from clprompt import schema
from clprompt.errors import ProtocolError
from clprompt.prompting.heads import grow_rows
from clprompt.prompting.model import PromptModel, evaluating
from clprompt.prompting.plugin import Samples
from clprompt.prompting.text.anchors.anchor import Anchor, divergence
from clprompt.prompting.text.model import TextModel
from clprompt.prompting.text.plugin import LiveText
from clprompt.schema import at_least


class Direction(Anchor):
    """Cross-interactive and directional regularisation, over the live classes.

    logits_weight KL(softmax s cos(f, t0) || softmax s cos(f0, t)) for each image, averaged over the batch
    + direction_weight mean(1 - cos(f, m_y)), m_y the mean of f0^ over the images of the label's class

    After the abstract: the formula of the second term and its weight, and the masking of patches in the
    first, were not read. This form, without masking, is ours. Means are taken when the experience of a class
    begins; they are features, no images are kept.

    Args:
        texts: of t0, see :class:`Anchor`.
        logits_weight: of the first term.
        direction_weight: of the second, which moves nothing where images are not prompted.

    Attributes:
        means: m, [C, E]; 0 for a class that was not met.

    Source: Alipour Talemi et al. 2025 (DiSa), arXiv 2505.19373, abstract.
    """

    name = "direction"
    needs_experiences = True
    needs_label: ClassVar[bool] = True

    @schema.checked
    def __init__(
        self,
        *,
        texts: str | None = None,
        logits_weight: Annotated[float, at_least(0)] = 1.0,
        direction_weight: Annotated[float, at_least(0)] = 1.0,
    ) -> None:
        super().__init__(texts)
        self.logits_weight = logits_weight
        self.direction_weight = direction_weight
        self.means: Tensor

    def attach(self, model: PromptModel) -> None:
        super().attach(model)
        self.register_buffer("means", torch.zeros(0, model.feature_width))
        self._shown: set[int] = set()  # classes with a mean, on the host

    def grow_classes(self, num_classes: int) -> None:
        missing = max(0, num_classes - len(self.means))
        grow_rows(self.means, torch.zeros(missing, self.means.shape[1]))

    def resize_to(self, state: Mapping[str, Tensor]) -> None:
        self.grow_classes(len(state["means"]))

    def follow(self) -> None:
        self._shown = set(self.means.any(1).nonzero().flatten().tolist())

    @torch.no_grad()
    def look(self, samples: Samples | None) -> None:
        """Take the means of the classes whose experience begins."""
        if samples is None:
            raise ProtocolError(
                f"anchor={self.name} takes the class means of an experience's images when it begins: "
                "call begin_experience(classes, samples)"
            )
        model: TextModel = self.model
        parts, labels = [], []
        with evaluating(model):
            for images, targets in samples():
                if targets.ndim != 1:
                    raise ProtocolError(
                        f"anchor={self.name} needs one label per image, got multi-hot targets"
                    )
                parts.append(model.features(images).to(self.means))
                labels.append(targets.to(self.means.device))
        label = torch.cat(labels)
        self.grow_classes(int(label.max()) + 1)
        # a product, as sums by index have no fixed order on a GPU
        hot = F.one_hot(label, len(self.means)).to(self.means)  # (N, C)
        count = hot.sum(0)
        means = (hot.T @ torch.cat(parts)) / count.clamp(min=1)[:, None]
        self.means[count > 0] = means[count > 0]
        self.follow()

    def text_terms(self, live: LiveText) -> Mapping[str, Tensor]:
        if self._shown.isdisjoint(live.classes):
            raise ProtocolError(f"anchor={self.name} has no class means: no experience showed these classes")
        means = self.means[live.targets].to(live.features)  # (B, E)
        is_known = means.any(1)
        frozen, teacher = live.frozen(), self.teacher(live.classes).to(live.rows)
        images = TextModel.similarity(self.model, live.features, teacher)
        texts = TextModel.similarity(self.model, frozen, live.rows)
        turned = (1 - F.cosine_similarity(live.features, means)) * is_known
        kept = turned.sum() / is_known.sum().clamp(min=1)
        return self.named(
            {
                "logits": (self.logits_weight, divergence(texts, images) / len(images)),
                "means": (self.direction_weight, kept),
            }
        )
