"""Ridge regression on frozen or random features, by sums; nothing is trained by gradient."""

from __future__ import annotations

from typing import Annotated

from clprompt import schema
from clprompt.backbones.vit import FrozenViT
from clprompt.prompting.closed_form import ClosedFormModel
from clprompt.prompting.statistics.heads import RidgeHead
from clprompt.registry import strategies
from clprompt.schema import above, at_least


@strategies.register(
    "ridge", paper="Zhuang et al., NeurIPS 2024 (GACL), arXiv 2403.15706", year=2024, boundaries="unused"
)
class RidgeModel(ClosedFormModel):
    """Analytic class-incremental learning (Zhuang et al., "GACL"): ridge regression on one-hot targets.

    GACL updates an inverse recursively; here the same solution follows from sums, whatever the order and the
    boundaries, also when classes return. Of label sets a hidden label counts as 0.

    Where the released code differs:

    * It is always over 5000 random features of a layer without bias (``random_features=5000``), which starts
      as torch does; here their weights are N(0, 1), or there are none.
    * Its strength is absolute, 100; here it is relative to the mean diagonal of the second moment, so that it
      does not change with the number of samples.
    * It counts a batch in each iteration; here it counts once.

    Args:
        backbone: the frozen vision transformer.
        seed: where the random features come from.
        random_features: M, of relu(x P) with a fixed P; None for the features x themselves.
        strength: of the ridge; None for 0.3, or 1 on random features.
    """

    @schema.checked
    def __init__(
        self,
        backbone: FrozenViT,
        *,
        seed: int = 0,
        random_features: Annotated[int, at_least(1)] | None = None,
        strength: Annotated[float, above(0)] | None = None,
    ) -> None:
        on_statistics = RidgeHead(backbone.width, seed, random_features, strength)
        super().__init__(backbone, on_statistics, seed=seed)
