"""Class statistics as a plug-in: a closed-form head that answers in place of any method's trained one.

The method trains as it would without; beside it the features that its head gets are summed by class, and in
evaluation a classifier that compares *all* classes seen is solved from the sums. The trained head's figures
are still there (:meth:`clprompt.prompting.model.PromptModel.predictions`), from the same run.

Where the loop tells of experiences, their images are counted at their end, once, in eval mode and under the
evaluation transform; elsewhere each received batch is, at its first iteration.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from clprompt import schema
from clprompt.errors import ConfigError, ProtocolError
from clprompt.prompting.model import Cache, PromptModel
from clprompt.prompting.plugin import Frozen, Plugin, Samples
from clprompt.prompting.statistics.closed_forms import LinearMap, cosine_means, handed_out, lda, ridge
from clprompt.prompting.statistics.random_features import HeldOutStrength, RandomFeatures
from clprompt.prompting.statistics.sums import ClassStatistics
from clprompt.registry import plugins
from clprompt.schema import above, at_least, at_most
from clprompt.seeding import derive

#: Closed-form heads.
Form = Literal["lda", "ncm", "ridge"]
#: Which features are counted and classified: the trained head's input, or the backbone's own.
Source = Literal["prompted", "frozen"]


class Statistics(Plugin):
    """A closed-form head on class statistics, beside the trained one.

    Args:
        form: "lda" (linear discriminant analysis), "ncm" (cosine to the class means) or "ridge" (ridge
            regression on one-hot targets).
        features: "prompted", the head's input, or "frozen", the backbone's own features: then every method
            predicts the same, and its prompts are idle.
        shrinkage: of "lda", see :func:`clprompt.prompting.statistics.closed_forms.covariance`; None for one
            that follows the sample count.
        random_features: of "ridge", M: it is over relu(x P) with a fixed random P; None for the features x.
        strength: of "ridge", relative to the mean diagonal, or "held_out": chosen at the end of each
            experience, as RanPAC does; None for 0.3, or 1 on random features.

    Attributes:
        classes: the class statistics.

    Raises:
        ConfigError: a value out of range, or a shrinkage of another form; when it is plugged, a method that
            it has no meaning for.
    """

    name = "statistics"
    counts_at_end = True

    @schema.checked
    def __init__(
        self,
        form: Form = "lda",
        *,
        features: Source = "prompted",
        shrinkage: Annotated[float, at_least(0), at_most(1)] | None = None,
        random_features: Annotated[int, at_least(1)] | None = None,
        strength: Annotated[float, above(0)] | Literal["held_out"] | None = None,
    ) -> None:
        super().__init__()
        if shrinkage is not None and form != "lda":
            raise ConfigError(f"statistics_shrinkage belongs to statistics=lda, got statistics={form}")
        self.form: Form = form
        self.source: Source = features
        self.shrinkage = shrinkage
        if form != "ridge" and (random_features or strength) is not None:
            raise ConfigError(
                f"ridge_random_features and ridge_strength belong to statistics=ridge, got statistics={form}"
            )
        self.random_features = random_features
        default = 0.3 if random_features is None else 1.0
        self.strength = strength if isinstance(strength, float) else default
        self.held_out = HeldOutStrength() if strength == "held_out" else None
        self.projected: RandomFeatures | None = None
        self.classes: ClassStatistics
        self.inside: Tensor
        self.uncounted: Tensor
        # between an experience's begin and its end, when its samples are counted
        self.register_buffer("inside", torch.tensor(False))
        # an experience ended without its samples
        self.register_buffer("uncounted", torch.tensor(False))

    def attach(self, model: PromptModel) -> None:
        if not answers_for(type(model)):
            raise ConfigError(f"statistics={self.form}: {type(model).__name__} {_LACKING}")
        width = model.backbone.width
        if self.random_features is not None:
            self.projected = RandomFeatures(width, self.random_features, model.seed)
        self.classes = ClassStatistics(self.random_features or width)

    # ------------------------------------------------------------------ counting

    def begin_experience(self, classes: Sequence[int]) -> None:
        self.inside.fill_(True)

    def received(self, features: Tensor, targets: Tensor, frozen: Frozen) -> None:
        if not self.inside:
            if self.held_out is not None:
                raise ProtocolError(
                    "ridge_strength=held_out needs begin_experience(classes), which an online stream does "
                    "not have; give a number"
                )
            self.count(features, targets, frozen)

    @torch.no_grad()
    def end_experience(self, samples: Samples | None) -> None:
        if not self.inside:
            return
        if samples is None:
            self.uncounted.fill_(True)
        else:
            self.count_all(samples)
        self.inside.fill_(False)

    def count_all(self, samples: Samples) -> None:
        """Count the images of an experience, in eval mode."""
        model: PromptModel = self.model
        was_training = model.training
        model.eval()
        parts: list[tuple[Tensor, Tensor]] = []  # of this experience, for what is held out
        try:
            for images, targets in samples():
                cached: Cache = {}
                frozen = partial(model.features, images, cached)
                features = model.encode(images, cached).features if self.source == "prompted" else frozen()
                self.count(features, targets, frozen)
                if self.held_out is not None:
                    parts.append((features.cpu(), targets.cpu()))
        finally:
            model.train(was_training)
        if self.held_out is not None and parts:
            self.held_out.choose(parts, self.expand, derive(model.seed, "strength", int(model.experience)))
            self.classes.forget()

    def count(self, features: Tensor, targets: Tensor, frozen: Frozen) -> None:
        """Count a batch, once."""
        self.classes.add(self.expand(features if self.source == "prompted" else frozen()), targets)

    def expand(self, features: Tensor) -> Tensor:
        """What is counted and classified, [B, D] -> [B, D], or [B, M] of random features."""
        return features.to(self.classes.second) if self.projected is None else self.projected(features)

    # ------------------------------------------------------------------ predicting

    def logits(self, features: Tensor, frozen: Frozen) -> Tensor | None:
        """Logits of the closed-form head; the trained one answers inside an experience, and before any."""
        if self.inside:
            return None
        if self.uncounted:
            raise ProtocolError(
                f"statistics={self.form} did not get the images of an experience: "
                "call end_experience(samples) at its end"
            )
        if not self.classes.seen.any():
            return None
        return self.classify(features if self.source == "prompted" else frozen())

    def classify(self, features: Tensor) -> Tensor:
        """Features [B, D] -> logits [B, C], -inf for a class without a sample."""
        head = self.classes.once(self.form, self._solve)
        if self.form == "ncm":
            return handed_out(head(F.normalize(features.double(), dim=1)), features)
        return handed_out(head(self.expand(features)), features)

    def _solve(self, classes: ClassStatistics) -> LinearMap:
        if self.form == "ncm":
            return cosine_means(classes)
        if self.form == "ridge":
            if self.held_out is not None:
                return self.held_out.solve(classes, self.strength)
            return ridge(classes, self.strength)
        return lda(classes, self.shrinkage)

    def predicts_untrained(self) -> bool:
        return True

    def grow_classes(self, num_classes: int) -> None:
        self.classes.grow(num_classes)


_LACKING = "has no trained head in whose place class statistics could answer"


def answers_for(method: type[PromptModel]) -> bool:
    """Whether a method has a trained head, of its own experience's images, to answer in place of."""
    return method.trains and method.rehearsal_free


@plugins.register("statistics", serves=answers_for, lacking=_LACKING)
@schema.checked
def statistics(
    *,
    statistics: Form | None = None,
    statistics_features: Source = "prompted",
    statistics_shrinkage: Annotated[float, at_least(0), at_most(1)] | None = None,
    ridge_random_features: Annotated[int, at_least(1)] | None = None,
    ridge_strength: Annotated[float, above(0)] | Literal["held_out"] | None = None,
) -> Statistics | None:
    """A closed-form head on class statistics predicts: the short form of :class:`Statistics`.

    Args:
        statistics: which head; null for the trained one.
        statistics_features: what is counted and classified, the head's input ("prompted") or the backbone's
            own features ("frozen").
        statistics_shrinkage: of the covariance of lda, from 0 to 1; null for one that follows the sample
            count.
        ridge_random_features: how many random features ridge is over; null for the features themselves.
        ridge_strength: of ridge, relative to the mean diagonal, or "held_out": chosen in each experience;
            null for 0.3, or 1 on random features.
    """
    if statistics is None:
        return None
    return Statistics(
        statistics,
        features=statistics_features,
        shrinkage=statistics_shrinkage,
        random_features=ridge_random_features,
        strength=ridge_strength,
    )
