"""Streaming LDA: linear discriminant analysis on frozen features; nothing is trained by gradient."""

from __future__ import annotations

from typing import Annotated

from clprompt import schema
from clprompt.backbones.vit import FrozenViT
from clprompt.prompting.closed_form import ClosedFormModel
from clprompt.prompting.statistics.heads import LDAHead
from clprompt.registry import strategies
from clprompt.schema import at_least, at_most


@strategies.register(
    "slda", paper="Hayes & Kanan, CVPRW 2020, arXiv 1909.01520", year=2020, boundaries="unused"
)
class SLDAModel(ClosedFormModel):
    """Streaming linear discriminant analysis (Hayes & Kanan, "Lifelong Machine Learning with Deep SLDA").

    Class counts, class sums and one second moment of frozen features, in float64; the classifier compares all
    classes under the covariance that they share. Neither order nor boundaries matter. Of label sets, where
    the negatives are hidden, each class is compared with all images.

    Where it departs from the paper:

    * The shrinkage of the covariance follows the sample count (the posterior under an inverse Wishart prior)
      and is large while there is little to estimate from; the paper's small fixed one is ``shrinkage``.
    * Sums in place of running means: the same solution, whatever the order.

    Args:
        backbone: the frozen vision transformer.
        seed: unused; there for the common constructor.
        shrinkage: of the covariance towards its mean variance, from 0 to 1; None for one that follows the
            sample count.
    """

    @schema.checked
    def __init__(
        self,
        backbone: FrozenViT,
        *,
        seed: int = 0,
        shrinkage: Annotated[float, at_least(0), at_most(1)] | None = None,
    ) -> None:
        super().__init__(backbone, LDAHead(backbone.width, shrinkage), seed=seed)

    @property
    def scores_are(self) -> str:
        return "log posteriors of a Gaussian for each class"
