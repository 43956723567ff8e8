"""Class statistics as a plug-in: a closed-form head that answers in place of any method's trained one.

The method trains as it would without; beside it the features that its head gets are summed by class, and in
evaluation a classifier that compares *all* classes seen is solved from the sums. The trained head's figures
are still there (:meth:`clprompt.prompting.model.PromptModel.predictions`), from the same run.

Where the loop tells of experiences, their images are counted at their end, once, in eval mode and under the
evaluation transform; elsewhere each received batch is, at its first iteration.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from clprompt import schema
from clprompt.errors import ConfigError, ProtocolError
from clprompt.prompting.heads import LinearHead, grow_rows
from clprompt.prompting.model import Cache, PromptModel
from clprompt.prompting.plugin import Frozen, Plugin, Samples, overrides
from clprompt.prompting.statistics.alignment import Alignment, Covariance, Recipes
from clprompt.prompting.statistics.closed_forms import LinearMap, cosine_means, handed_out, lda, ridge
from clprompt.prompting.statistics.drift import Drift, Earlier, move
from clprompt.prompting.statistics.random_features import HeldOutStrength, RandomFeatures
from clprompt.prompting.statistics.sums import ClassStatistics
from clprompt.registry import plugins
from clprompt.schema import above, at_least, at_most
from clprompt.seeding import derive

#: Closed-form heads, and the trained one after an alignment.
Form = Literal["lda", "ncm", "ridge", "align"]
#: Which features are counted and classified: the trained head's input, or the backbone's own.
Source = Literal["prompted", "frozen"]


class Statistics(Plugin):
    """A closed-form head on class statistics, beside the trained one.

    Args:
        form: "lda" (linear discriminant analysis), "ncm" (cosine to the class means), "ridge" (ridge
            regression on one-hot targets) or "align": no closed form, but the trained head, trained on with
            samples of a Gaussian for each class (:mod:`clprompt.prompting.statistics.alignment`).
        features: "prompted", the head's input, or "frozen", the backbone's own features: then every method
            predicts the same, and its prompts are idle.
        shrinkage: of "lda", see :func:`clprompt.prompting.statistics.closed_forms.covariance`; None for one
            that follows the sample count.
        random_features: of "ridge", M: it is over relu(x P) with a fixed random P; None for the features x.
        strength: of "ridge", relative to the mean diagonal, or "held_out": chosen at the end of each
            experience, as RanPAC does; None for 0.3, or 1 on random features.
        covariance: of "align": each class has its own, "full" or its "diagonal", or all have one, "shared".
        recipe: of "align": whose numbers, "slca" or "hide".
        task_adaptive: for methods with prompts of each experience: an image is encoded under those of one
            experience: in counting its own; in evaluation that of the class which the same form of head
            ("lda" for "align") on the backbone's own features gives it (task-adaptive prediction,
            HiDe-Prompt). A class that comes again belongs to its newest experience.
        compensate_drift: move the statistics of old classes with the features of the experience's images,
            which need a copy of the method's state, :mod:`clprompt.prompting.statistics.drift`.

    Attributes:
        classes: the class statistics.
        experiences: the newest experience of each class, int64 [C], -1 for none; with "align" and
            "task_adaptive" alone.
        ended: how many experiences were counted; there alone, too.

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
        covariance: Covariance = "full",
        recipe: Recipes = "slca",
        task_adaptive: bool = False,
        compensate_drift: bool = False,
    ) -> None:
        super().__init__()
        if shrinkage is not None and form != "lda":
            raise ConfigError(f"statistics_shrinkage belongs to statistics=lda, got statistics={form}")
        if features == "frozen" and (form == "align" or task_adaptive or compensate_drift):
            what = "statistics=align" if form == "align" else "task_adaptive" if task_adaptive else ""
            raise ConfigError(
                f"{what or 'compensate_drift'} is for prompted features; got statistics_features=frozen"
            )
        if compensate_drift and task_adaptive:
            raise ConfigError(
                "task_adaptive and compensate_drift exclude each other: prompts of an experience of its own "
                "do not drift"
            )
        if compensate_drift and random_features is not None:
            raise ConfigError(
                "compensate_drift and ridge_random_features exclude each other: no map is exact"
            )
        if compensate_drift and form == "align" and covariance != "shared":
            raise ConfigError(
                f"compensate_drift with statistics=align needs align_covariance=shared, got {covariance}"
            )
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
        self.covariance: Covariance = covariance
        self.recipe = recipe
        self.task_adaptive = task_adaptive
        self.compensate_drift = compensate_drift
        told = self.held_out is not None or task_adaptive or compensate_drift
        self.needs_experiences = form == "align" or told
        self.alignment: Alignment | None = None
        self.backbone_classes: ClassStatistics | None = None  # of its own features, which tell the experience
        self.earlier: Earlier | None = None
        self.classes: ClassStatistics
        self.of_frozen: Tensor
        self.inside: Tensor
        self.uncounted: Tensor
        # which features were counted: no shape tells
        self.register_buffer("of_frozen", torch.tensor(features == "frozen"))
        # between an experience's begin and its end, when its samples are counted
        self.register_buffer("inside", torch.tensor(False))
        # an experience ended without its samples
        self.register_buffer("uncounted", torch.tensor(False))

    def attach(self, model: PromptModel) -> None:
        if not answers_for(type(model)):
            raise ConfigError(f"statistics={self.form}: {type(model).__name__} {_LACKING}")
        if self.source == "prompted" and not model.one_feature_space:
            raise ConfigError(
                f"statistics_features must be frozen for {type(model).__name__}, whose experiences have "
                "feature spaces of their own; got prompted"
            )
        width = model.backbone.width
        if self.random_features is not None:
            self.projected = RandomFeatures(width, self.random_features, model.seed)
        self.classes = ClassStatistics(self.random_features or width)
        if self.form == "align":
            if not isinstance(model.head, LinearHead):
                raise ConfigError(f"statistics=align: {type(model).__name__} has no linear head to align")
            self.alignment = Alignment(width, self.covariance, self.recipe)
        if self.task_adaptive:
            if not model.slot_per_experience:
                raise ConfigError(
                    f"task_adaptive=true: {type(model).__name__} has no prompts for each experience"
                )
            self.backbone_classes = ClassStatistics(self.random_features or width)
        if self.compensate_drift:
            if model.slot_per_experience:
                raise ConfigError(
                    f"compensate_drift=true: {type(model).__name__} keeps the prompts of each experience"
                )
            self._refuse_plugins_around(model)
            self.earlier = Earlier(model)
        if self.form == "align" or self.task_adaptive:
            self.experiences: Tensor
            self.ended: Tensor
            self.register_buffer("experiences", torch.zeros(0, dtype=torch.int64))
            self.register_buffer("ended", torch.tensor(0))

    def _refuse_plugins_around(self, model: PromptModel) -> None:
        """Refuse what changes with the prompts and is no part of their copy."""
        for plugin in model.plugins:
            if overrides(plugin, "around"):
                raise ConfigError(
                    f"compensate_drift=true and {plugin.name} exclude each other: its state drifts as well"
                )

    # ------------------------------------------------------------------ counting

    def begin_experience(self, classes: Sequence[int]) -> None:
        self.inside.fill_(True)

    def counts_now(self) -> bool:
        return not bool(self.inside)

    def received(self, features: Tensor, targets: Tensor, frozen: Frozen) -> None:
        if targets.ndim == 2 and (self.form == "align" or self.task_adaptive):
            what = "statistics=align" if self.form == "align" else "task_adaptive=true"
            raise ProtocolError(f"{what} needs one label per image, got multi-hot targets")
        if self.inside:
            return
        if self.needs_experiences:
            raise ProtocolError("statistics needs begin_experience(classes) before it is trained")
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
        """Count the images of an experience, in eval mode, and let follow what follows from them."""
        model: PromptModel = self.model
        was_training = model.training
        model.eval()
        parts: list[tuple[Tensor, Tensor]] = []  # of this experience, for what is held out
        known, counts = self.classes, self.classes.counts.clone()
        before = self._earlier_model()
        drift = None if before is None else Drift(known.width, known.second.device)
        if before is not None:  # what is counted now has not drifted
            self.classes = ClassStatistics(known.width).to(known.counts.device)
            self.classes.grow(known.num_classes)
        try:
            for images, targets in samples():
                cached: Cache = {}
                frozen = partial(model.features, images, cached)
                features = self._encoded(images, cached) if self.source == "prompted" else frozen()
                if before is not None and drift is not None:
                    drift.add(before.encode(images, cached).features, features)
                self.count(features, targets, frozen)
                if self.held_out is not None:
                    parts.append((features.cpu(), targets.cpu()))
            if drift is not None:
                move(known, drift.solve())
                known.merge(self.classes)
        finally:
            self.classes = known
            model.train(was_training)
        if self.held_out is not None and parts:
            self.held_out.choose(parts, self.expand, derive(model.seed, "strength", int(model.experience)))
            self.classes.forget()
        self._follow_up(known.counts > counts)

    def _encoded(self, images: Tensor, cached: Cache) -> Tensor:
        """The features [B, D] of images of the experience that ends."""
        model: PromptModel = self.model
        if not self.task_adaptive:
            return model.encode(images, cached).features
        own = self.ended.expand(len(images)).to(images.device)
        return model.encode_under(images, own, cached).features

    def _earlier_model(self) -> PromptModel | None:
        """The method as it was when the last experience ended, where the drift since then is compensated."""
        if self.earlier is None:
            return None
        self._refuse_plugins_around(self.model)
        return self.earlier.restore(self.model)

    def _follow_up(self, classes: Tensor) -> None:
        """What is done once the samples of an experience, of these classes (bool [C]), were counted."""
        if self.earlier is not None:
            self.earlier.keep(self.model)
        if self.alignment is None and not self.task_adaptive:
            return
        ended = int(self.ended)
        self.experiences[classes.to(self.experiences.device)] = ended
        if self.alignment is not None:
            self.alignment.run(
                self.model.head, self.classes, self.experiences, seed=self.model.seed, experience=ended
            )
        self.ended += 1

    def count(self, features: Tensor, targets: Tensor, frozen: Frozen) -> None:
        """Count a batch, once."""
        self.classes.add(self.expand(features if self.source == "prompted" else frozen()), targets)
        if self.alignment is not None:
            self.alignment.add(features, targets)
        if self.backbone_classes is not None:
            self.backbone_classes.add(self.expand(frozen()), targets)

    def expand(self, features: Tensor) -> Tensor:
        """What is counted and classified, [B, D] -> [B, D], or [B, M] of random features."""
        return features.to(self.classes.second) if self.projected is None else self.projected(features)

    # ------------------------------------------------------------------ predicting

    def route(self, frozen: Frozen) -> Tensor | None:
        if self.backbone_classes is None or self.inside or not self.backbone_classes.seen.any():
            return None
        features = frozen()
        logits = self._classified(features, self.backbone_classes)
        return self.experiences.to(features.device)[logits.argmax(1)]

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
        if self.alignment is not None:
            return self.alignment.classify(features)
        return self._classified(features, self.classes)

    def _classified(self, features: Tensor, classes: ClassStatistics) -> Tensor:
        """By the closed form on class statistics."""
        head = classes.once(self.form, self._solve)
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
        try:
            return lda(classes, self.shrinkage)
        except ConfigError as error:
            raise ConfigError(f"statistics_shrinkage: {error}") from None

    def resize_to(self, state: Mapping[str, Tensor]) -> None:
        """Refuse the state of another head, and sums of other features, whose shapes are the same."""
        if self.earlier is not None:
            prefix = "earlier."
            self.earlier.resize_to(
                {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
            )
        other = sorted({name.split(".")[0] for name in state.keys() ^ self.state_dict().keys()})
        if other:
            raise ProtocolError(
                f"the state is of another head than statistics={self.form} as it is here: they differ in "
                f"{', '.join(other)}"
            )
        names = ("prompted", "frozen")
        theirs = names[bool(state["of_frozen"])]
        if theirs != self.source:
            raise ProtocolError(
                f"the state's class statistics are of {theirs} features, the model's of {self.source} ones"
            )

    def notes(self) -> list[str]:
        if self.source == "frozen":
            return [
                "statistics_features=frozen: every method predicts the same, what slda predicts where "
                "statistics=lda; its prompts are idle"
            ]
        model: PromptModel = self.model
        if model.features_stay or model.stops(1) or self.task_adaptive or self.compensate_drift:
            return []
        helps = ["task_adaptive=true"] if model.slot_per_experience else []
        if self.form != "align" and model.boundaries != "unused":
            helps.append("train_experiences=1")
            if not model.slot_per_experience and self.random_features is None:
                helps.append("compensate_drift=true")
        if self.form != "align":
            helps.append("statistics_features=frozen")
        return [
            f"statistics={self.form}: training goes on to change the features of earlier images, and what "
            "was counted of them stays as it was" + (f"; {' or '.join(helps)} helps" if helps else "")
        ]

    def predicts_untrained(self) -> bool:
        return self.form != "align"

    def grow_classes(self, num_classes: int) -> None:
        self.classes.grow(num_classes)
        if self.backbone_classes is not None:
            self.backbone_classes.grow(num_classes)
        if self.alignment is not None:
            self.alignment.grow(num_classes)
        if self.alignment is not None or self.task_adaptive:
            grow_rows(self.experiences, torch.full((num_classes - len(self.experiences),), -1))


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
    align_covariance: Covariance | None = None,
    align_recipe: Recipes | None = None,
    task_adaptive: bool = False,
    compensate_drift: bool = False,
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
        align_covariance: of the Gaussians of align: "full" (null), "diagonal" or "shared".
        align_recipe: whose numbers align takes: "slca" (null) or "hide".
        task_adaptive: whether images are classified under the prompts of one experience.
        compensate_drift: whether statistics of old classes are moved with prompts that go on changing.
    """
    aligns = {"align_covariance": align_covariance, "align_recipe": align_recipe}
    for key, value in aligns.items():
        if value is not None and statistics != "align":
            raise ConfigError(f"{key} belongs to statistics=align, got statistics={statistics or 'null'}")
    for key, used in {"task_adaptive": task_adaptive, "compensate_drift": compensate_drift}.items():
        if used and statistics is None:
            raise ConfigError(f"{key}=true needs statistics: lda, ncm, ridge or align; got null")
    if statistics is None:
        others = {
            "statistics_features": statistics_features == "frozen",
            "statistics_shrinkage": statistics_shrinkage is not None,
            "ridge_random_features": ridge_random_features is not None,
            "ridge_strength": ridge_strength is not None,
            "align_covariance": align_covariance is not None,
            "align_recipe": align_recipe is not None,
            "task_adaptive": task_adaptive,
            "compensate_drift": compensate_drift,
        }
        for key in (key for key, is_set in others.items() if is_set):
            raise ConfigError(f"{key} belongs to statistics, which is null")
        return None
    return Statistics(
        statistics,
        features=statistics_features,
        shrinkage=statistics_shrinkage,
        random_features=ridge_random_features,
        strength=ridge_strength,
        covariance=align_covariance or "full",
        recipe=align_recipe or "slca",
        task_adaptive=task_adaptive,
        compensate_drift=compensate_drift,
    )
