"""Names of classes reach a model through Avalanche's loop and through `clprompt.fit`."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import clprompt
from clprompt.avalanche.benchmark import to_avalanche
from clprompt.avalanche.online import to_online_avalanche
from clprompt.avalanche.strategy import PromptStrategy
from clprompt.backbones.build import make_backbone
from clprompt.data import ImageDataset, Plan, datasets_for, digits
from clprompt.data.bundle import plan_over
from clprompt.strategies.ncm import NCMModel

NUMBERS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
WORDS = {c: [word, f"a {c}"] for c, word in enumerate(NUMBERS)}


class Listening(NCMModel):
    """Keeps the names that it is told, and those that it knew when each batch came."""

    def __init__(self, backbone: object) -> None:
        super().__init__(backbone)  # type: ignore[arg-type]
        self.told: dict[int, object] = {}

    def name_classes(self, names: object) -> None:
        self.told.update(names)  # type: ignore[call-overload]

    def observe(self, targets: Tensor) -> bool:
        assert set(targets.tolist()) <= set(self.told)
        return super().observe(targets)


@pytest.fixture(scope="module")
def stream() -> tuple[Plan, ImageDataset, ImageDataset]:
    bundle = digits(class_names=WORDS, test_fraction=0.9)
    plan = plan_over(bundle, {"name": "split", "experiences": 2}, seed=0)
    train, _, test = datasets_for(bundle, make_backbone({"name": "vit_letters"}))
    return plan, train, test


@pytest.mark.parametrize("make", [to_avalanche, to_online_avalanche])
def test_a_strategy_tells_the_names_before_the_first_batch(
    make: Callable, stream: tuple[Plan, ImageDataset, ImageDataset]
) -> None:
    model = Listening(make_backbone({"name": "vit_letters"}))
    strategy = PromptStrategy(model=model, train_epochs=1, evaluator=None)
    strategy.train(make(*stream).train_stream[0])
    assert model.told == WORDS


def test_fit_tells_the_names_before_the_first_batch(stream: tuple[Plan, ImageDataset, ImageDataset]) -> None:
    plan, train, _ = stream
    model = Listening(make_backbone({"name": "vit_letters"}))
    clprompt.fit(model, plan, train)
    assert model.told == WORDS
    assert torch.equal(model.seen, torch.ones(10, dtype=torch.bool))
