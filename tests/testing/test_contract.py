"""check_strategy finds what is wrong with a method: each model below breaks one promise of the contract."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clprompt import testing
from clprompt.backbones.attention import BlockPrompt
from clprompt.backbones.vit import FrozenViT
from clprompt.prompting.heads import LinearHead, grow_rows
from clprompt.prompting.losses import SoftLabels, mask_logits
from clprompt.prompting.model import Cache, Encoded, PromptModel, Step
from clprompt.prompting.prompts import uniform
from clprompt.testing import state
from clprompt.testing.asserts import same_bits
from clprompt.testing.bench import Workbench, tiny_vit


class Sound(PromptModel):
    """Breaks nothing: one prompt in the last blocks, chosen by key, that rests after the first experience."""

    first_block = 3

    def __init__(self, backbone: FrozenViT, *, seed: int = 0, length: int = 2) -> None:
        super().__init__(backbone, seed=seed, mask="experience")
        self.prompts = uniform(3, length, backbone.width, seed=seed, name="prompts")
        self.register_buffer("keys", uniform(3, backbone.width, seed=seed, name="keys").detach())
        self.register_buffer("steps", torch.tensor(0))

    def choose(self, similarity: Tensor) -> Tensor:
        return similarity.argmax(1)

    def encode(self, images: Tensor, cached: Cache | None = None) -> Encoded:
        stem, query = self.query(images, 3, cached)
        chosen = self.choose(query @ self.keys.T)
        given = self.prompts[chosen]  # (B, length, D)
        return Encoded(self.backbone.prompted(stem, lambda block, x: BlockPrompt("fresh", given), start=3))

    def count_step(self, encoded: Encoded) -> None:
        self.steps += 1

    def set_stage(self) -> None:
        self.prompts.requires_grad_(self.experience_index <= 0)


class LearnsNothing(Sound):
    def losses(
        self, encoded: Encoded, targets: Tensor, soft: SoftLabels | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        logits, terms = super().losses(encoded, targets, soft)
        return logits, {name: 0 * term for name, term in terms.items()}


class TrainsTheBackbone(Sound):
    def set_stage(self) -> None:
        self.backbone.blocks[4].requires_grad_(True)

    def trainable(self) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self.named_parameters() if p.requires_grad}


class LeavesOutItsPrompts(Sound):
    def param_groups(self) -> list[dict[str, Any]]:
        head = {name: p for name, p in self.trainable().items() if name.startswith("head.")}
        return [{"name": "head", "params": head}]


class TrainsByItself(Sound):
    def losses(
        self, encoded: Encoded, targets: Tensor, soft: SoftLabels | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        self.prompts.data += 1e-3
        return super().losses(encoded, targets, soft)


class ClaimsToTrainNothing(Sound):
    trains = False


class VotesOverTheBatch(Sound):
    def choose(self, similarity: Tensor) -> Tensor:
        return similarity.argmax(1).mode().values.expand(len(similarity))


class MixesTheBatchAxis(Sound):
    def choose(self, similarity: Tensor) -> Tensor:
        chosen = similarity.argmax(1)
        # even batches only, as in a well-known port
        return chosen.roll(1) if len(chosen) % 2 == 0 else chosen


class NormalisesOverTheBatch(Sound):
    def encode(self, images: Tensor, cached: Cache | None = None) -> Encoded:
        encoded = super().encode(images, cached)
        return encoded._replace(features=encoded.features - 0.1 * encoded.features.mean(0))


class DropsOut(Sound):
    def encode(self, images: Tensor, cached: Cache | None = None) -> Encoded:
        encoded = super().encode(images, cached)
        return encoded._replace(features=nn.functional.dropout(encoded.features, 0.1, self.training))


class DrawsFromNumpy(Sound):
    def __init__(self, backbone: FrozenViT, *, seed: int = 0) -> None:
        super().__init__(backbone, seed=seed)
        np.random.rand()  # noqa: NPY002


class ForgetsToSave(Sound):
    """A temperature outside the state."""

    temperature = 1.0

    def finish_experience(self) -> None:
        self.temperature += 1.0

    def logits(self, features: Tensor) -> Tensor:
        return super().logits(features) * self.temperature


class CountsInAnAttribute(Sound):
    """What comes later depends on a counter outside the state."""

    count = 0

    def losses(
        self, encoded: Encoded, targets: Tensor, soft: SoftLabels | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        self.count += 1
        logits, terms = super().losses(encoded, targets, soft)
        return logits, {name: term * (1 + 0.1 * self.count) for name, term in terms.items()}


class SetsTheStageOnlyWhenItBegins(Sound):
    def set_stage(self) -> None: ...

    def start_experience(self, index: int, samples: Any) -> None:
        self.prompts.requires_grad_(index <= 0)


class StartsItsHeadAnew(Sound):
    def grow_classes(self, num_classes: int) -> None:
        self.head = LinearHead(self.backbone.width, seed=num_classes)
        self.head.grow(num_classes)


class HidesItsGrowth(Sound):
    def observe(self, targets: Tensor) -> bool:
        super().observe(targets)
        return False


class PredictsUnseenClasses(Sound):
    def predictable(self) -> Tensor:
        return torch.ones_like(self.seen)


class KeepsTheGraph(Sound):
    def training_loss(self, images: Tensor, targets: Tensor, **named: Any) -> Step:
        step = super().training_loss(images, targets, **named)
        return step._replace(terms={"loss": step.loss})


class TakesAnyLabel(Sound):
    def check_targets(self, targets: Tensor) -> None: ...


class SaysItNeedsNoBoundaries(Sound):
    boundaries = "optional"

    def encode(self, images: Tensor, cached: Cache | None = None) -> Encoded:
        if self.training and not bool(self.open):
            raise RuntimeError("no experience is open")
        return super().encode(images, cached)


class KeepsImagesInItsState(Sound):
    def __init__(self, backbone: FrozenViT, *, seed: int = 0) -> None:
        super().__init__(backbone, seed=seed)
        self.register_buffer("memory", torch.zeros(0, 3, 16, 16))

    def encode(self, images: Tensor, cached: Cache | None = None) -> Encoded:
        if self.training:
            grow_rows(self.memory, images)
        return super().encode(images, cached)


class KeepsImagesInAList(Sound):
    def __init__(self, backbone: FrozenViT, *, seed: int = 0) -> None:
        super().__init__(backbone, seed=seed)
        self.memory: list[Tensor] = []

    def encode(self, images: Tensor, cached: Cache | None = None) -> Encoded:
        if self.training:
            self.memory.append(images[0].half())
        return super().encode(images, cached)


class KeepsTheLastImage(Sound):
    def __init__(self, backbone: FrozenViT, *, seed: int = 0) -> None:
        super().__init__(backbone, seed=seed)
        self.register_buffer("last", torch.zeros(3, 16, 16))

    def encode(self, images: Tensor, cached: Cache | None = None) -> Encoded:
        if self.training:
            self.last.copy_(images[-1])
        return super().encode(images, cached)


class KeepsAFeature(Sound):
    def __init__(self, backbone: FrozenViT, *, seed: int = 0) -> None:
        super().__init__(backbone, seed=seed)
        self.register_buffer("memory", torch.zeros(4, backbone.width, dtype=torch.float16))

    def encode(self, images: Tensor, cached: Cache | None = None) -> Encoded:
        if self.training:
            self.memory[2] = self.features(images)[0]
        return super().encode(images, cached)


class Rehearses(KeepsImagesInItsState):
    """Declares it, and does not write it down."""

    rehearsal_free = False


class IgnoresSoftLabels(Sound):
    def base_loss(self, logits: Tensor, targets: Tensor, soft: SoftLabels | None = None) -> Tensor:
        return super().base_loss(logits, targets)


class OverflowsInSixteenBits(Sound):
    def training_loss(self, images: Tensor, targets: Tensor, **named: Any) -> Step:
        step = super().training_loss(images, targets, **named)
        term = step.loss * (torch.inf if torch.is_autocast_enabled("cpu") else 1)
        return step._replace(terms={"loss": term.detach()})


class OverflowsWhenCast(Sound):
    def losses(
        self, encoded: Encoded, targets: Tensor, soft: SoftLabels | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        logits, terms = super().losses(encoded, targets, soft)
        large = torch.inf if logits.dtype == torch.float16 else 1
        return logits, {name: large * term for name, term in terms.items()}


class NeedsAClassToken(Sound):
    def encode(self, images: Tensor, cached: Cache | None = None) -> Encoded:
        assert self.backbone.num_prefix_tokens > 0
        return super().encode(images, cached)


class CountsInForward(Sound):
    def encode(self, images: Tensor, cached: Cache | None = None) -> Encoded:
        self.steps += 1
        return super().encode(images, cached)


class RemembersTheLastForward(Sound):
    """An evaluation between two steps changes the next one."""

    size = 0

    def encode(self, images: Tensor, cached: Cache | None = None) -> Encoded:
        encoded = super().encode(images, cached)
        feature, self.size = encoded.features * (1 + 0.01 * self.size), len(images)
        return encoded._replace(features=feature if self.training else feature.detach())


class CountsInBackward(Sound):
    def losses(
        self, encoded: Encoded, targets: Tensor, soft: SoftLabels | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        logits, terms = super().losses(encoded, targets, soft)
        logits.register_hook(lambda gradient: self.steps.add_(1) and None)
        return logits, terms


class CountsEverFaster(Sound):
    def count_step(self, encoded: Encoded) -> None:
        self.steps += self.steps
        super().count_step(encoded)


class CachesWhatItLearns(Sound):
    def forward(self, images: Tensor, cached: Cache | None = None) -> Tensor:
        if cached is None or "logits" not in cached:
            logits = super().forward(images)
            if cached is None:
                return logits
            cached["logits"] = logits
        columns = (0, self.num_classes - cached["logits"].shape[1])
        return mask_logits(F.pad(cached["logits"], columns).clamp(min=-99), self.predictable())


class KeepsWhatItTrains(Sound):
    def encode(self, images: Tensor, cached: Cache | None = None) -> Encoded:
        if cached is None or not self.training:
            return super().encode(images, cached)
        if "trained" in cached:
            return Encoded(cached["trained"])
        encoded = super().encode(images)
        cached["trained"] = encoded.features.detach()
        return encoded


class BeginsAgainAndAgain(Sound):
    def begin_experience(self, classes: Any, samples: Any = None) -> None:
        super().begin_experience(classes, samples)
        self.start_experience(int(self.experience), samples)

    def start_experience(self, index: int, samples: Any) -> None:
        self.steps += 100


class TakesAClassOnce(Sound):
    def begin_experience(self, classes: Any, samples: Any = None) -> None:
        if not bool(self.seen[[c for c in classes if c < self.num_classes]].any()):
            super().begin_experience(classes, samples)


class ReadsATrimmedRow(Sound):
    def encode(self, images: Tensor, cached: Cache | None = None) -> Encoded:
        encoded = super().encode(images, cached)
        return encoded._replace(features=encoded.features * (1 if self.backbone.trim_last_block else 2))


class PredictsPastItsPlugins(Sound):
    def forward(self, images: Tensor, cached: Cache | None = None) -> Tensor:
        return mask_logits(self.logits(self.encode(images, cached).features), self.seen)


class LearnsPastItsPlugins(Sound):
    def training_loss(
        self, images: Tensor, targets: Tensor, soft: SoftLabels | None = None, cached: Cache | None = None
    ) -> Step:
        logits = self.logits(self.encode(images).features)
        return Step(self.base_loss(logits, targets, soft), logits, {}, logits.detach())


class TakesPositionalArguments(Sound):
    def __init__(self, backbone: FrozenViT, length=2, *, seed: int = 0) -> None:
        super().__init__(backbone, seed=seed)


class KeepsItsPromptsInAList(Sound):
    def __init__(self, backbone: FrozenViT, *, seed: int = 0) -> None:
        super().__init__(backbone, seed=seed)
        del self.prompts
        self.slots = [uniform(2, backbone.width, seed=seed, name="prompts", index=slot) for slot in range(3)]

    @property
    def prompts(self) -> Tensor:
        return torch.stack(self.slots)

    def set_stage(self) -> None: ...


class ShiftsByAPlainTensor(Sound):
    def __init__(self, backbone: FrozenViT, *, seed: int = 0) -> None:
        super().__init__(backbone, seed=seed)
        self.shifts = {"features": torch.zeros(backbone.width)}

    def encode(self, images: Tensor, cached: Cache | None = None) -> Encoded:
        encoded = super().encode(images, cached)
        return encoded._replace(features=encoded.features + self.shifts["features"])


class DeclaresWhatItDoesNotUse(Sound):
    def __init__(self, backbone: FrozenViT, *, seed: int = 0) -> None:
        super().__init__(backbone, seed=seed)
        self.idle = uniform(3, seed=seed, name="idle")


class NeverTrainsItsPrompts(Sound):
    """Off by one."""

    def set_stage(self) -> None:
        self.prompts.requires_grad_(self.experience_index < 0)


class AddsUpATerm(Sound):
    def encode(self, images: Tensor, cached: Cache | None = None) -> Encoded:
        encoded = super().encode(images, cached)
        return encoded._replace(terms={"norm": encoded.features.square().sum()})


class ComparesImagesInATerm(Sound):
    def encode(self, images: Tensor, cached: Cache | None = None) -> Encoded:
        encoded = super().encode(images, cached)
        return encoded._replace(terms={"alike": (encoded.features @ encoded.features.T).square().mean()})


class HandsOnAMean(Sound):
    def encode(self, images: Tensor, cached: Cache | None = None) -> Encoded:
        encoded = super().encode(images, cached)
        return encoded._replace(details={"mean": encoded.features.mean(0)})


class GivesATensor(Sound):
    def encode(self, images: Tensor, cached: Cache | None = None) -> Tensor:  # type: ignore[override]
        return super().encode(images, cached).features


class GivesWideFeatures(Sound):
    def encode(self, images: Tensor, cached: Cache | None = None) -> Encoded:
        features = super().encode(images, cached).features
        return Encoded(torch.cat([features, features], 1))


class GivesDoubles(Sound):
    def encode(self, images: Tensor, cached: Cache | None = None) -> Encoded:
        return Encoded(super().encode(images, cached).features.double())


class AsksForTheExperience(Sound):
    def encode(self, images: Tensor, cached: Cache | None = None) -> Encoded:
        encoded = super().encode(images, cached)
        return encoded._replace(features=encoded.features * (1 + 0 * int(self.experience)))


class KeepsAPromptedFeature(Sound):
    def __init__(self, backbone: FrozenViT, *, seed: int = 0) -> None:
        super().__init__(backbone, seed=seed)
        self.register_buffer("kept", torch.zeros(4, backbone.width))

    def received(self, features: Tensor, targets: Tensor) -> None:
        self.kept[: len(features)] = features[:4]


class KnowsTwoClasses(Sound):
    def losses(
        self, encoded: Encoded, targets: Tensor, soft: SoftLabels | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        logits = self.classify(encoded)
        return logits, {"cross_entropy": F.cross_entropy(logits[:, :2], targets.clamp(max=1))}


class CountsStepsInAnAttribute(Sound):
    def __init__(self, backbone: FrozenViT, *, seed: int = 0) -> None:
        super().__init__(backbone, seed=seed)
        self.steps_made = 0

    def count_step(self, encoded: Encoded) -> None:
        self.steps_made += 1

    def logits(self, features: Tensor) -> Tensor:
        return super().logits(features) * (1 + 0.1 * self.steps_made)


class ForgetsItsClasses(Sound):
    def __init__(self, backbone: FrozenViT, *, seed: int = 0) -> None:
        super().__init__(backbone, seed=seed)
        self.register_buffer("shift", torch.zeros(2))

    def classify(self, encoded: Encoded) -> Tensor:
        return self.logits(encoded.features) + self.shift


class ForgetsToResize(Sound):
    def __init__(self, backbone: FrozenViT, *, seed: int = 0) -> None:
        super().__init__(backbone, seed=seed)
        self.added = nn.ParameterList()

    def start_experience(self, index: int, samples: Any) -> None:
        self.added.append(uniform(self.backbone.width, seed=self.seed, name="added", index=index))

    def encode(self, images: Tensor, cached: Cache | None = None) -> Encoded:
        encoded = super().encode(images, cached)
        return encoded._replace(features=encoded.features + sum(self.added))


BROKEN: list[tuple[type[PromptModel], Callable[[Workbench], None], str]] = [
    (LearnsNothing, testing.check_learning, "accuracy 0"),
    (TrainsTheBackbone, testing.check_frozen_backbone, "training changed"),
    (TrainsTheBackbone, testing.check_declared_parameters, "not the method's parameters"),
    (LeavesOutItsPrompts, testing.check_declared_parameters, "disagree on"),
    (ClaimsToTrainNothing, testing.check_declared_parameters, "trains is False"),
    (TrainsByItself, state.check_counting, "training_loss itself changed the parameters"),
    (VotesOverTheBatch, testing.check_batch_companions, "in a mixed batch of 8"),
    (VotesOverTheBatch, testing.check_batch_size, "in evaluation batches of 1 and of 2"),
    (MixesTheBatchAxis, testing.check_batch_companions, "in a mixed batch of 8"),
    (NormalisesOverTheBatch, testing.check_batch_companions, "in a mixed batch of 8"),
    (NormalisesOverTheBatch, testing.check_kinds_of_backbone, "alone and in a batch"),
    (DropsOut, state.check_determinism, "two runs with the same seed differ"),
    (DropsOut, state.check_random_states, "training changed the global random state of torch"),
    (
        DrawsFromNumpy,
        state.check_random_states,
        "the constructor changed the global random state of numpy",
    ),
    (ForgetsToSave, state.check_save_and_load, "gives other logits"),
    (CountsInAnAttribute, state.check_resume, "differs in"),
    (SetsTheStageOnlyWhenItBegins, state.check_save_and_load, "requires_grad differs for"),
    (StartsItsHeadAnew, state.check_growth, "before and after a new class was observed"),
    (HidesItsGrowth, state.check_growth, "observe returned False, but made new parameters"),
    (PredictsUnseenClasses, testing.check_unseen_classes, "are not -inf after experience 1"),
    (KeepsTheGraph, testing.check_unseen_classes, "detach them"),
    (TakesAnyLabel, testing.check_refusals, "label 2, never observed, was not refused"),
    (IgnoresSoftLabels, testing.check_soft_labels, "with labels as they are and with smoothed ones"),
    (TakesAnyLabel, testing.check_boundaries, "a step before begin_experience was not refused"),
    (SaysItNeedsNoBoundaries, testing.check_learning, "no experience is open"),
    (KeepsImagesInItsState, state.check_rehearsal, "the state holds"),
    (KeepsImagesInAList, state.check_rehearsal, "beside its state the model keeps"),
    (KeepsTheLastImage, state.check_rehearsal, "last holds an image"),
    (KeepsAFeature, state.check_rehearsal, "memory holds the features of an image"),
    (Rehearses, testing.check_declarations, "the class docstring does not say so"),
    (OverflowsInSixteenBits, testing.check_autocast, "loss is inf at step 1 under bf16 autocast"),
    (OverflowsWhenCast, testing.check_number_formats, "the loss is inf in experience 1 of torch.float16"),
    (NeedsAClassToken, testing.check_kinds_of_backbone, ""),
    (CountsInForward, testing.check_forward_changes_nothing, "forward in eval mode changed"),
    (RemembersTheLastForward, testing.check_forward_changes_nothing, "an evaluation between"),
    (CountsInBackward, state.check_counting, "backward changed"),
    (CountsEverFaster, state.check_counting, "in the first step on a batch and by"),
    (CachesWhatItLearns, testing.check_cache, "a cache filled earlier changes the logits"),
    (KeepsWhatItTrains, testing.check_cache, "what a step keeps changes the loss of a later one"),
    (TakesAClassOnce, testing.check_repeated_classes, ""),
    (BeginsAgainAndAgain, state.check_experiences, "a second begin_experience"),
    (ReadsATrimmedRow, testing.check_savings, "trim_last_block on and off"),
    (PredictsPastItsPlugins, testing.check_declarations, "forward is no method's own"),
    (LearnsPastItsPlugins, testing.check_declarations, "training_loss is no method's own"),
    (TakesPositionalArguments, testing.check_declarations, "length must be keyword-only"),
    (
        KeepsItsPromptsInAList,
        testing.check_everything_is_in_the_state,
        "self.slots[0] is a parameter that the model does not know of",
    ),
    (
        ShiftsByAPlainTensor,
        testing.check_everything_is_in_the_state,
        "self.shifts['features'] decides on the logits",
    ),
    (NeverTrainsItsPrompts, testing.check_declared_parameters, "trained in no experience: ['prompts']"),
    (AddsUpATerm, testing.check_encoded, "must be a mean over the images"),
    (ComparesImagesInATerm, testing.check_encoded, "what compares images belongs into losses"),
    (HandsOnAMean, testing.check_encoded, "each tensor needs a row for each image"),
    (
        GivesATensor,
        testing.check_encoded,
        "must return Encoded(features), it returned a value of type Tensor",
    ),
    (GivesWideFeatures, testing.check_encoded, "encode gave features [8, 64] of torch.float32; [8, 32]"),
    (
        GivesDoubles,
        testing.check_encoded,
        "encode gave features [8, 32] of torch.float64; [8, 32] of torch.float32",
    ),
    (
        AsksForTheExperience,
        testing.check_exportable,
        "(1 + 0 * int(self.experience)))) and can be neither exported",
    ),
    (KeepsAPromptedFeature, state.check_rehearsal, "kept holds the features of a training image"),
    (KnowsTwoClasses, testing.check_learning, "no image is found of the classes 4"),
    (CountsStepsInAnAttribute, state.check_save_and_load, "self.steps_made is 0, not "),
    (DeclaresWhatItDoesNotUse, testing.check_declared_parameters, "got no gradient in three steps: ['idle']"),
]


def test_a_sound_method_passes_every_check_and_each_is_told() -> None:
    told: list[str] = []
    testing.check_strategy(Sound, length=3, tell=told.append)
    assert [line.partition(":")[0] for line in told] == [check.__name__ for check in testing.CHECKS]
    assert "s. It learns above chance on a separable problem" in told[3]


@pytest.mark.parametrize(
    ("model_class", "check", "says"), BROKEN, ids=[f"{m.__name__}-{c.__name__[6:]}" for m, c, _ in BROKEN]
)
def test_a_broken_promise_is_found(
    model_class: type[PromptModel], check: Callable[[Workbench], None], says: str
) -> None:
    with pytest.raises((AssertionError, RuntimeError)) as caught:
        check(Workbench(model_class))
    assert says in str(caught.value)


def test_every_check_finds_something() -> None:
    assert {check for _, check, _ in BROKEN} == set(testing.CHECKS)


def test_the_sentence_names_the_method_its_arguments_and_the_check() -> None:
    with pytest.raises(
        AssertionError, match=r"^LearnsNothing\(length=3\): check_learning: accuracy 0\.\d+ after"
    ):
        testing.check_strategy(LearnsNothing, length=3)


def test_an_error_inside_a_method_becomes_a_sentence_too() -> None:
    with pytest.raises(AssertionError, match=r"check_declarations: TypeError: .*no_such_argument"):
        testing.check_strategy(Sound, no_such_argument=1)


@pytest.mark.parametrize(
    ("model_class", "check", "line", "hint"),
    [
        (
            ForgetsItsClasses,
            "check_everything_is_in_the_state",
            "return self.logits(encoded.features) + self.shift",
            "a tensor with an entry for each class grows in grow_classes",
        ),
        (
            ForgetsToResize,
            "check_save_and_load",
            "",
            "what experiences add must be there before a state is loaded: resize_to",
        ),
    ],
)
def test_an_error_inside_a_check_keeps_its_place_and_says_what_leads_on(
    model_class: type[PromptModel], check: str, line: str, hint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    checks = [each for each in testing.CHECKS if each.__name__ == check]
    monkeypatch.setattr("clprompt.testing.contract.CHECKS", checks)
    with pytest.raises(AssertionError) as caught:
        testing.check_strategy(model_class)
    text = str(caught.value)
    assert text.startswith(f"{model_class.__name__}(): {check}: RuntimeError: ")
    assert text.endswith(f"; {hint}")
    assert "\n" not in text
    if line:
        assert "(test_contract.py, line " in text
        assert line in text


def test_tiny_backbones_are_the_same_every_time() -> None:
    first, second = tiny_vit(), tiny_vit()
    assert same_bits(first.state_dict(), second.state_dict())


def test_a_tiny_backbone_leaves_the_random_state_alone() -> None:
    before = torch.get_rng_state()
    tiny_vit()
    assert torch.equal(before, torch.get_rng_state())
