"""Linear probe: a linear head on frozen features, trained one experience after the other."""

from __future__ import annotations

from torch import Tensor

from clprompt import schema
from clprompt.backbones.vit import FrozenViT
from clprompt.prompting.model import Cache, Encoded, Mask, PromptModel
from clprompt.registry import strategies


@strategies.register(
    "linear_probe", paper="sequential linear classifier", year=None, boundaries="required or unused"
)
class LinearProbeModel(PromptModel):
    """Sequential linear probe: only the head learns.

    With ``mask="experience"`` each experience trains its own rows and old rows stay as they were; with
    ``mask="seen"`` the head collapses towards the classes it saw last.

    Args:
        backbone: the frozen vision transformer.
        seed: where the initial rows come from.
        boundary_free: no experiences: nothing but the training mask changes.
        mask: which classes compete in training; None for "experience" ("seen" when boundary-free).
    """

    @schema.checked
    def __init__(
        self,
        backbone: FrozenViT,
        *,
        seed: int = 0,
        boundary_free: bool = False,
        mask: Mask | None = None,
    ) -> None:
        super().__init__(backbone, seed=seed, mask=mask, boundary_free=boundary_free)
        self.first_block = backbone.depth

    @property
    def features_stay(self) -> bool:
        return True

    def encode(self, images: Tensor, cached: Cache | None = None) -> Encoded:
        """The unprompted features; no gradient runs through any block."""
        return Encoded(self.features(images, cached))
