"""Class statistics as a plug-in: a closed-form head that answers in place of any method's trained one.

The method trains as it would without; beside it the features that its head gets are summed by class, and in
evaluation a classifier that compares *all* classes seen is solved from the sums. The trained head's figures
are still there (:meth:`clprompt.prompting.model.PromptModel.predictions`), from the same run.

Where the loop tells of experiences, their images are counted at their end, once, in eval mode and under the
evaluation transform; elsewhere each received batch is, at its first iteration.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Annotated, Literal

import torch
from torch import Tensor

from clprompt import schema
from clprompt.errors import ConfigError, ProtocolError
from clprompt.prompting.heads import LinearHead, grow_rows
from clprompt.prompting.model import Cache, PromptModel, evaluating, has_trained_head
from clprompt.prompting.plugin import Frozen, Plugin, Samples, overrides
from clprompt.prompting.statistics.alignment import AlignedHead, Covariance, Recipes
from clprompt.prompting.statistics.drift import Drift, Earlier, move
from clprompt.prompting.statistics.heads import Ended, LDAHead, MeansHead, RidgeHead, StatisticsHead
from clprompt.prompting.statistics.sums import ClassStatistics
from clprompt.registry import plugins
from clprompt.schema import above, at_least, at_most

#: Closed-form heads, and the trained one after an alignment.
Form = Literal["lda", "ncm", "ridge", "align"]
#: Which features are counted and classified: the trained head's input, or the backbone's own.
Source = Literal["prompted", "frozen"]

_SCORES: dict[Form, str] = {
    "lda": "log posteriors of a Gaussian for each class",
    "ncm": "cosines to the class means",
    "ridge": "values of a ridge regression",
    "align": "logits of the trained head, aligned",
}


class Statistics(Plugin):
    """A head on class statistics, beside the trained one.

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
        covariance: of "align": each class has its own, "full" (None) or its "diagonal", or all have one,
            "shared".
        recipe: of "align": whose numbers, "slca" (None) or "hide".
        task_adaptive: for methods with prompts of each experience: an image is encoded under those of one
            experience: in counting its own; in evaluation that of the class which the same form of head
            ("lda" for "align") on the backbone's own features gives it (task-adaptive prediction,
            HiDe-Prompt). A class that comes again belongs to its newest experience.
        compensate_drift: move the statistics of old classes with the features of the experience's images,
            which need a copy of the method's state, :mod:`clprompt.prompting.statistics.drift`.

    Attributes:
        head: what predicts; its ``classes`` are the class statistics.
        router: what tells the experience of an image from the backbone's own features; None unless
            ``task_adaptive``.
        experiences: the newest experience of each class, int64 [C], -1 for none.
        ended: how many experiences were counted.

    Raises:
        ConfigError: a value out of range, or an argument of another form; when it is plugged, a method that
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
        covariance: Covariance | None = None,
        recipe: Recipes | None = None,
        task_adaptive: bool = False,
        compensate_drift: bool = False,
    ) -> None:
        super().__init__()
        given = {
            "statistics_shrinkage": (shrinkage, "lda"),
            "ridge_random_features": (random_features, "ridge"),
            "ridge_strength": (strength, "ridge"),
            "align_covariance": (covariance, "align"),
            "align_recipe": (recipe, "align"),
        }
        for key, (value, owner) in given.items():
            if value is not None and form != owner:
                raise ConfigError(f"{key} belongs to statistics={owner}, got statistics={form}")
        _check_together(form, features, covariance, random_features, task_adaptive, compensate_drift)
        self.form: Form = form
        self.source: Source = features
        self.shrinkage = shrinkage
        self.random_features = random_features
        self.strength = strength
        self.covariance: Covariance = covariance or "full"
        self.recipe: Recipes = recipe or "slca"
        self.task_adaptive = task_adaptive
        self.compensate_drift = compensate_drift
        self.head: StatisticsHead
        self.router: StatisticsHead | None = None
        self.earlier: Earlier | None = None
        self.experiences: Tensor
        self.ended: Tensor
        self.of_frozen: Tensor
        self.inside: Tensor
        self.uncounted: Tensor
        self.register_buffer("experiences", torch.zeros(0, dtype=torch.int64))
        self.register_buffer("ended", torch.tensor(0))
        # which features were counted: no shape tells
        self.register_buffer("of_frozen", torch.tensor(features == "frozen"))
        # between an experience's begin and its end, when its samples are counted
        self.register_buffer("inside", torch.tensor(False))
        self._is_inside = False
        # an experience ended without its samples
        self.register_buffer("uncounted", torch.tensor(False))

    def _made(self, form: Form, width: int, seed: int) -> StatisticsHead:
        if form == "ncm":
            return MeansHead(width)
        if form == "ridge":
            return RidgeHead(width, seed, self.random_features, self.strength)
        if form == "align":
            return AlignedHead(width, self.covariance, self.recipe)
        return LDAHead(width, self.shrinkage)

    def attach(self, model: PromptModel) -> None:
        method = type(model).__name__
        if not has_trained_head(type(model)):
            raise ConfigError(f"statistics={self.form}: {method} {_LACKING}")
        if self.source == "prompted" and not model.one_feature_space:
            raise ConfigError(
                f"statistics_features must be frozen for {method}, whose experiences have feature spaces of "
                "their own; got prompted"
            )
        if self.form == "align" and not isinstance(model.head, LinearHead):
            raise ConfigError(f"statistics=align: {method} has no linear head to align")
        if self.task_adaptive and not model.slot_per_experience:
            raise ConfigError(f"task_adaptive=true: {method} has no prompts for each experience")
        if self.compensate_drift and model.slot_per_experience:
            raise ConfigError(f"compensate_drift=true: {method} keeps the prompts of each experience")
        width, seed = model.feature_width, model.seed
        self.head = self._made(self.form, width, seed)
        told = self.head.needs_experiences or self.task_adaptive or self.compensate_drift
        self.needs_experiences = told
        if self.task_adaptive:
            self.router = self._made("lda" if self.form == "align" else self.form, width, seed)
        if self.compensate_drift:
            self._refuse_plugins_around(model)
            self.earlier = Earlier(model)

    def _refuse_plugins_around(self, model: PromptModel) -> None:
        """Refuse what changes with the prompts and is no part of their copy."""
        for plugin in model.plugins:
            if overrides(plugin, "around") or plugin.changes_features:
                raise ConfigError(
                    f"compensate_drift=true and {plugin.name} exclude each other: its state drifts as well"
                )

    @property
    def classes(self) -> ClassStatistics:
        """The class statistics."""
        return self.head.classes

    # ------------------------------------------------------------------ counting

    def begin_experience(self, classes: Sequence[int]) -> None:
        self.inside.fill_(True)
        self._is_inside = True

    def counts_now(self) -> bool:
        return not self._is_inside

    def received(self, features: Tensor, targets: Tensor, frozen: Frozen) -> None:
        if targets.ndim == 2 and (self.task_adaptive or not self.head.takes_label_sets):
            what = "task_adaptive=true" if self.task_adaptive else f"statistics={self.form}"
            raise ProtocolError(f"{what} needs one label per image, got multi-hot targets")
        if self._is_inside:
            return
        if self.needs_experiences:
            raise ProtocolError("statistics needs begin_experience(classes) before it is trained")
        self.head.add(features if self.source == "prompted" else frozen(), targets)

    @torch.no_grad()
    def end_experience(self, samples: Samples | None) -> None:
        if not self._is_inside:
            return
        if samples is None:
            self.uncounted.fill_(True)
        else:
            self._count(samples)
        self.inside.fill_(False)
        self._is_inside = False

    def _count(self, samples: Samples) -> None:
        """Count the images of an experience, in eval mode, and let follow what follows from them."""
        model: PromptModel = self.model
        counts = self.classes.counts.clone()
        heads = [self.head] if self.router is None else [self.head, self.router]
        parts: list[list[tuple[Tensor, Tensor]]] = [[] for _ in heads]
        with evaluating(model), self._moving_with(model) as drift:
            for images, targets in samples():
                cached: Cache = {}
                frozen = partial(model.features, images, cached)
                features = self._encoded(images, cached) if self.source == "prompted" else frozen()
                if drift is not None:
                    drift(images, cached, features)
                for head, part in zip(heads, parts, strict=True):
                    rows = features if head is self.head else frozen()
                    head.add(rows, targets)
                    if head.reads_samples:
                        part.append((rows.cpu(), targets.cpu()))
        ended = int(self.ended)
        self.experiences[(self.classes.counts > counts).to(self.experiences.device)] = ended
        for head, part in zip(heads, parts, strict=True):
            head.settle(Ended(ended, model.seed, part, self.experiences, model.head))
        self.ended += 1

    def _encoded(self, images: Tensor, cached: Cache) -> Tensor:
        """The features [B, D] of images of the experience that ends."""
        model: PromptModel = self.model
        if not self.task_adaptive:
            return model.encode(images, cached).features
        own = self.ended.expand(len(images)).to(images.device)
        return model.encode_under(images, own, cached).features

    @contextmanager
    def _moving_with(self, model: PromptModel) -> Iterator[Callable[[Tensor, Cache, Tensor], None] | None]:
        """Lets old statistics follow the drift of images, given with their features of now; None for none."""
        before = None
        if self.earlier is not None:
            self._refuse_plugins_around(model)
            before = self.earlier.restore(model)
        if before is None:
            yield None
        else:
            known, drift = self.head.classes, Drift(self.head.classes)

            def add(images: Tensor, cached: Cache, now: Tensor) -> None:
                drift.add(before.encode(images, cached).features, now)

            self.head.classes = known.empty()  # what is counted now has not drifted
            try:
                yield add
                move(known, drift.solve())
                known.merge(self.head.classes)
            finally:
                self.head.classes = known
        if self.earlier is not None:
            self.earlier.keep(model)

    # ------------------------------------------------------------------ predicting

    def route(self, frozen: Frozen) -> Tensor | None:
        if self.router is None or self._is_inside or not self.router.classes.counted:
            return None
        features = frozen()
        return self.experiences.to(features.device)[self.router.classify(features).argmax(1)]

    def logits(self, features: Tensor, frozen: Frozen) -> Tensor | None:
        """Logits of the head on statistics; the trained one answers inside an experience, and before any."""
        if self._is_inside:
            return None
        if not torch.compiler.is_compiling() and self.uncounted:
            raise ProtocolError(
                f"statistics={self.form} did not get the images of an experience: "
                "call end_experience(samples) at its end"
            )
        if not self.classes.counted:
            return None
        return self.head.classify(features if self.source == "prompted" else frozen())

    @property
    def scores_are(self) -> str:
        return f"{_SCORES[self.form]} (statistics={self.form})"

    def predicts_untrained(self) -> bool:
        return self.head.is_closed_form

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
        if self.head.is_closed_form:
            helps.append("statistics_features=frozen")
        return [
            f"statistics={self.form}: training goes on to change the features of earlier images, and what "
            "was counted of them stays as it was" + (f"; {' or '.join(helps)} helps" if helps else "")
        ]

    # ------------------------------------------------------------------ state

    def follow(self) -> None:
        self._is_inside = bool(self.inside)

    def grow_classes(self, num_classes: int) -> None:
        self.head.grow(num_classes)
        if self.router is not None:
            self.router.grow(num_classes)
        grow_rows(self.experiences, torch.full((num_classes - len(self.experiences),), -1))

    def resize_to(self, state: Mapping[str, Tensor]) -> None:
        """Refuse the state of another head, and sums of other features, whose shapes are the same."""
        if self.earlier is not None:
            prefix = "earlier."
            self.earlier.resize_to(
                {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
            )
        names = state.keys() ^ self.state_dict().keys()
        other = sorted({name.removeprefix("head.").split(".")[0] for name in names})
        if other:
            raise ProtocolError(
                f"the state is of another head than statistics={self.form} as it is here: they differ in "
                f"{', '.join(other)}"
            )
        theirs = ("prompted", "frozen")[bool(state["of_frozen"])]
        if theirs != self.source:
            raise ProtocolError(
                f"the state's class statistics are of {theirs} features, the model's of {self.source} ones"
            )


def _check_together(
    form: Form,
    features: Source,
    covariance: Covariance | None,
    random_features: int | None,
    task_adaptive: bool,
    compensate_drift: bool,
) -> None:
    """Refuse arguments that exclude each other."""
    prompted = {
        "statistics=align": form == "align",
        "task_adaptive=true": task_adaptive,
        "compensate_drift=true": compensate_drift,
    }
    for key in (key for key, used in prompted.items() if used and features == "frozen"):
        raise ConfigError(f"{key} is for prompted features; got statistics_features=frozen")
    if not compensate_drift:
        return
    if task_adaptive:
        raise ConfigError(
            "task_adaptive and compensate_drift exclude each other: prompts of an experience of its own do "
            "not drift"
        )
    if random_features is not None:
        raise ConfigError("compensate_drift and ridge_random_features exclude each other: no map is exact")
    if form == "align" and covariance != "shared":
        raise ConfigError(
            "compensate_drift with statistics=align needs align_covariance=shared, got "
            f"{covariance or 'full'}"
        )


_LACKING = "has no trained head in whose place class statistics could answer"


@plugins.register("statistics", serves=has_trained_head, lacking=_LACKING)
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
        covariance=align_covariance,
        recipe=align_recipe,
        task_adaptive=task_adaptive,
        compensate_drift=compensate_drift,
    )
