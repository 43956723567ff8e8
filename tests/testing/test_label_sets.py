"""check_strategy on multi-hot targets: what it finds, and what a method of one label per image owes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from clprompt import testing
from clprompt.backbones.attention import BlockPrompt
from clprompt.backbones.vit import FrozenViT
from clprompt.prompting.losses import SoftLabels
from clprompt.prompting.model import Cache, Encoded, PromptModel
from clprompt.prompting.prompts import uniform
from clprompt.testing.bench import Workbench
from clprompt.testing.label_sets import ScenesBench, ToyScenes


class Sound(PromptModel):
    """Breaks nothing: prompts in the last blocks."""

    def __init__(self, backbone: FrozenViT, *, seed: int = 0, length: int = 2) -> None:
        super().__init__(backbone, seed=seed)
        self.first_block = 3
        self.prompt = uniform(1, length, backbone.width, seed=seed, name="prompt")

    def encode(self, images: Tensor, cached: Cache | None = None) -> Encoded:
        stem = self.backbone.stem(images, 3)
        prompts = BlockPrompt("fresh", self.prompt)
        return Encoded(self.backbone.prompted(stem, lambda block, x: prompts, start=3))


class IgnoresLabels(Sound):
    def losses(
        self, encoded: Encoded, targets: Tensor, soft: SoftLabels | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        logits, terms = super().losses(encoded, targets, soft)
        return logits, {name: 0 * term for name, term in terms.items()}


class TakesAnyTargets(Sound):
    def check_targets(self, targets: Tensor) -> None:
        """Nothing is refused."""


def test_a_sound_method_passes_on_multi_hot_targets() -> None:
    testing.check_strategy(Sound, multi_label=True)


@pytest.mark.parametrize(
    ("broken", "name"),
    [(IgnoresLabels, "check_learning_in_map"), (TakesAnyTargets, "check_multi_label_refusals")],
)
def test_a_mistake_with_multi_hot_targets_is_found(broken: type[PromptModel], name: str) -> None:
    with pytest.raises(AssertionError, match=name) as caught:
        testing.check_strategy(broken, multi_label=True)
    assert "\n" not in str(caught.value)


class RefusesNothing(Sound):
    multi_label = False

    def check_targets(self, targets: Tensor) -> None:
        if targets.ndim == 1:
            super().check_targets(targets)


def test_a_method_of_one_label_per_image_must_refuse_multi_hot_targets() -> None:
    with pytest.raises(AssertionError, match="multi-hot targets where multi_label is False"):
        testing.check_refusals(Workbench(RefusesNothing))


def test_the_scenes_of_an_experience_have_one_of_its_labels() -> None:
    train, test = ToyScenes(4), ToyScenes(4, "test")
    bench = ScenesBench(Sound)
    for experience, group in enumerate(train.groups()):
        assert train.targets[group].any(1).all()
        _, targets = bench.batch(experience)
        assert targets.any(1).all()
    assert not torch.equal(train.images, test.images)
    assert set(train.targets.sum(1)) == {1, 2}
