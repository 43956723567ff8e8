"""A trial in docs/results.md: a head, and through it prompts, trained against statistics of old classes.

    clprompt study statistics --import benchmarks.pseudo_features name=statistics-pseudo ... \
        "strategies={pseudo: {name: vpt_deep, length: 2, statistics: lda, mask: seen, pseudo_features: 1}}"

A plug-in with one key, ``pseudo_features``: beside each batch the trained head classifies features drawn for
the classes of earlier experiences, from the Gaussian of ``statistics: lda`` (a mean for each class, one
covariance for all). The value says how many: 1 is as many for an old class as the batch has for a current
one. It needs ``statistics: lda`` and ``mask: seen``, a linear head and float32. It did not pay, and so it is
no option of the library.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from clprompt.prompting.plugin import Plugin
from clprompt.prompting.statistics.closed_forms import covariance
from clprompt.prompting.step import Step
from clprompt.registry import plugins
from clprompt.seeding import generator


class PseudoFeatures(Plugin):
    """Cross-entropy of pseudo-features of old classes, among all classes seen."""

    name = "pseudo_features"

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share
        self.register_buffer("steps", torch.tensor(0))
        self.register_buffer("current", torch.tensor(0))  # a resumed run never begins its experience

    def begin_experience(self, classes: Sequence[int]) -> None:
        self.current.fill_(len(classes))

    def terms(self, step: Step, collected: Sequence[Any]) -> dict[str, Tensor]:
        self.steps += 1
        model = self.model
        statistics = model.statistics.head.classes
        old = statistics.seen.nonzero().flatten()
        if not len(old):
            return {}
        draws = generator(model.seed, "pseudo", int(self.steps))
        count = max(1, round(self.share * len(step.features) * len(old) / int(self.current)))
        labels = old[torch.randint(len(old), (count,), generator=draws)]
        factor = torch.linalg.cholesky(covariance(statistics))
        noise = torch.randn(count, statistics.width, generator=draws, dtype=torch.float64)
        rows = statistics.means()[labels] + noise @ factor.T
        logits = model.head(rows.float()).masked_fill(~model.seen, float("-inf"))
        return {"pseudo": F.cross_entropy(logits, labels) * count / len(step.features)}


@plugins.register("pseudo_features", serves=lambda model: True, lacking="")
def pseudo_features(*, pseudo_features: float | None = None) -> PseudoFeatures | None:
    """The short form."""
    return None if pseudo_features is None else PseudoFeatures(pseudo_features)
