"""NCM: nearest class mean on frozen features; nothing is trained by gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from clprompt import schema
from clprompt.backbones.vit import FrozenViT
from clprompt.prompting.closed_form import FrozenFeaturesModel
from clprompt.prompting.heads import count_in, grow_rows, home_of_float64
from clprompt.prompting.model import Encoded
from clprompt.registry import strategies


@strategies.register(
    "ncm",
    paper="Mensink et al., TPAMI 2013; Janson et al. 2022, arXiv 2210.04428",
    year=2013,
    boundaries="unused",
)
class NCMModel(FrozenFeaturesModel):
    """Nearest class mean: class sums of frozen features, and the nearest of their means predicts.

    Sums and counts are kept in float64 and int64, so the means do not depend on order or batch split. A
    received batch counts once, however many iterations are made over it.

    Args:
        backbone: the frozen vision transformer.
        seed: unused; there for the common constructor.
        metric: "cosine", logits = cos(q, mean), or "euclidean", logits = -|q - mean|^2.
        normalise_first: sum q / |q| instead of q.
    """

    multi_label: ClassVar[bool] = False

    @schema.checked
    def __init__(
        self,
        backbone: FrozenViT,
        *,
        seed: int = 0,
        metric: Literal["cosine", "euclidean"] = "cosine",
        normalise_first: bool = False,
    ) -> None:
        super().__init__(backbone, seed=seed)
        self.metric = metric
        self.normalise_first = normalise_first
        self.sums: Tensor
        self.counts: Tensor
        self.register_buffer("sums", torch.zeros(0, backbone.width, dtype=torch.float64))
        self.register_buffer("counts", torch.zeros(0, dtype=torch.int64))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """Sums stay in float64 where the rest goes to fewer bits: they would overflow."""
        sums = self.sums
        super()._apply(fn, recurse)
        self.sums = sums.to(home_of_float64(self.counts.device))
        return self

    def grow_classes(self, num_classes: int) -> None:
        missing = num_classes - self.counts.shape[0]
        grow_rows(self.sums, torch.zeros(missing, self.sums.shape[1]))
        grow_rows(self.counts, torch.zeros(missing))

    def logits(self, features: Tensor) -> Tensor:
        """Similarity to the class means, [B, D] -> [B, C]; in float64."""
        query = features.to(self.sums)
        if self.normalise_first:
            query = F.normalize(query, dim=-1)
        means = self.sums / self.counts.to(self.sums.device).clamp(min=1)[:, None]
        if self.metric == "cosine":
            return F.normalize(query, dim=-1) @ F.normalize(means, dim=-1).T
        # |q - m|^2 without forming [B, C, D]
        return 2 * query @ means.T - (means**2).sum(1) - (query**2).sum(1, keepdim=True)

    def classify(self, encoded: Encoded) -> Tensor:
        return self.logits(encoded.features).to(encoded.features)

    def predictable(self) -> Tensor:
        """Boolean [C]: the classes with a sample."""
        return self.counts > 0

    def received(self, features: Tensor, targets: Tensor) -> None:
        """Add a batch to the class sums."""
        rows = features.to(self.sums)
        rows = F.normalize(rows, dim=-1) if self.normalise_first else rows
        self.sums.index_add_(0, targets.to(rows.device), rows)
        count_in(self.counts, targets)
