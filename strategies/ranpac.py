"""RanPAC: ridge regression on random features, with a strength chosen in each experience."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor

from clprompt import schema
from clprompt.backbones.vit import FrozenViT
from clprompt.errors import ProtocolError
from clprompt.prompting.closed_form import ClosedFormModel
from clprompt.prompting.model import Boundaries, Encoded
from clprompt.prompting.plugin import Samples
from clprompt.prompting.statistics.heads import Ended, RidgeHead
from clprompt.registry import strategies
from clprompt.schema import above, at_least


@strategies.register(
    "ranpac", paper="McDonnell et al., NeurIPS 2023, arXiv 2307.02251", year=2023, boundaries="required"
)
class RanPACModel(ClosedFormModel):
    """RanPAC (McDonnell et al., "Random Projections and Pre-trained Models for Continual Learning").

    Frozen features are expanded to relu(x P) with a random P that never changes; class statistics of them
    give a ridge regression on one-hot targets.

    The strength of the ridge is chosen as in the released code: at the end of each experience, among
    10^-8, ..., 10^8, by the squared error on the last fifth of its samples in shuffled order, solved for on
    the other four. Old samples are gone, so the choice sees new classes only. It costs a second pass over the
    images, and features of one experience are held while it is made; none are kept. Before the first choice
    the relative strength of ``ridge`` stands in. ``strength`` fixes a relative one in its place, and then
    nothing needs experiences.

    Where the released code differs:

    * It adapts the backbone in the first experience, with adapters or scales. Here prompts do: any method
      with ``train_experiences: 1``, ``statistics: ridge``, ``ridge_random_features: 2000`` and
      ``ridge_strength: held_out`` is this one on the features of its prompts.
    * 10,000 random features (``random_features=10000``, 0.8 GB in float64); it computes in float32.
    * It counts images under the evaluation transform; here they are counted as they are received, which is
      the same where nothing is augmented.

    Args:
        backbone: the frozen vision transformer.
        seed: where the random features and the order of held-out samples come from.
        random_features: M; None for the features themselves.
        strength: "held_out", or a fixed one, relative to the mean diagonal of the second moment.
    """

    multi_label: ClassVar[bool] = False

    @schema.checked
    def __init__(
        self,
        backbone: FrozenViT,
        *,
        seed: int = 0,
        random_features: Annotated[int, at_least(1)] | None = 2000,
        strength: Annotated[float, above(0)] | Literal["held_out"] = "held_out",
    ) -> None:
        on_statistics = RidgeHead(backbone.width, seed, random_features, strength)
        super().__init__(backbone, on_statistics, seed=seed)
        self.untold: Tensor
        self.register_buffer("untold", torch.tensor(False))  # an experience ended without its samples

    @property
    def boundaries(self) -> Boundaries:
        return "required" if self.on_statistics.needs_experiences else "unused"

    @torch.no_grad()
    def end_experience(self, samples: Samples | None = None) -> None:
        if self.on_statistics.reads_samples and self.is_open:
            self.untold.fill_(samples is None)
            read = samples() if samples is not None else ()
            parts = [(self.features(images).cpu(), targets.cpu()) for images, targets in read]
            self.on_statistics.settle(Ended(self.experience_index, self.seed, parts))
        super().end_experience(samples)

    def classify(self, encoded: Encoded) -> Tensor:
        closed = not self.training and not self.is_open
        if closed and not torch.compiler.is_compiling() and bool(self.untold):
            raise ProtocolError(
                "RanPACModel chooses its strength from the samples of an experience: "
                "call end_experience(samples) at its end"
            )
        return super().classify(encoded)
