"""What a run says at its start of what is known to go wrong: the facts that it goes by, and the sentences."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from small_methods import SMALL, image_methods
from torch import Tensor

from clprompt import registry
from clprompt.backbones.attention import BlockPrompt
from clprompt.errors import DataWarning
from clprompt.experiment import notices
from clprompt.prompting.model import PromptModel
from clprompt.prompting.statistics import Statistics
from clprompt.testing.bench import SIDE, tiny_model

#: Every method that looks at images alone, and further forms with tokens in the sequence.
FORMS: list[tuple[str, dict[str, Any]]] = [
    *((name, SMALL.get(name, {})) for name in image_methods()),
    ("damvp", {"prompt": "token", "length": 7}),
    ("dualprompt", {"form": "fresh", "boundary_free": True, "pool_size": 3}),
    ("l2p", {"length": 2, "top_k": 3}),
    ("mvp", {"variant": "prefix"}),
    ("mvp", {"g_layers": (0, 2), "e_layers": (2, 3)}),
    ("vpt_deep", {"length": 3}),
    ("maple", {}),
]
#: Where not all prompts of a block are for every row of the image.
MASKED = {"tcpa", "prompt_cam"}


def images(classes: list[int]) -> tuple[Tensor, Tensor]:
    targets = torch.tensor(classes * 3)
    return torch.randn(len(targets), 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0)), targets


def begin(model: PromptModel, classes: list[int]) -> PromptModel:
    """Told of an experience, where it wants to know of any, and of its first batch."""
    if model.boundaries != "unused":
        model.begin_experience(classes, lambda: iter([images(classes)]))
    model.observe(images(classes)[1])
    return model.train()


def made(name: str, arguments: dict[str, Any]) -> PromptModel:
    return tiny_model(registry.strategies.get(name).target, **arguments)


class Counting:
    """Counts, block by block, the tokens that prompts put into the sequence."""

    def __init__(self) -> None:
        self.most = 0

    def __call__(self, prompts: Callable[..., Any], *_: Any) -> Callable[..., Any]:
        carried = 0

        def counted(block: int, x: Tensor) -> Any:
            nonlocal carried
            given = prompts(block, x)
            several: list[BlockPrompt] = given if isinstance(given, list) else [given] if given else []
            tokens = {
                kind: sum(p.tokens.shape[1] for p in several if p.kind == kind and p.tokens is not None)
                for kind in ("fresh", "carried")
            }
            carried += tokens["carried"]
            self.most = max(self.most, tokens["fresh"] + carried)
            return given

        return counted


@pytest.mark.parametrize(("name", "arguments"), FORMS)
def test_a_method_says_how_many_tokens_its_prompts_put_into_the_sequence(
    name: str, arguments: dict[str, Any]
) -> None:
    model = begin(made(name, arguments), [0, 1])
    model.backbone.around = counting = Counting()
    if model.trains:
        model.training_loss(*images([0, 1]))
    if name in MASKED:
        assert model.prompt_tokens <= counting.most
    else:
        assert model.prompt_tokens == counting.most


@pytest.mark.parametrize(("name", "arguments"), [form for form in FORMS if form[0] != "joint"])
def test_a_method_says_whether_an_experience_of_one_class_trains_nothing(
    name: str, arguments: dict[str, Any]
) -> None:
    model = begin(made(name, arguments), [0, 1])
    if not model.trains:
        assert not model.needs_two_classes
        return
    if model.boundaries != "unused":
        model.training_loss(*images([0, 1]))
        model.end_experience(lambda: iter([images([0, 1])]))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        begin(model, [2])
        model.observe(images([2])[1])
    lines = [
        str(w.message) for w in told if w.category is DataWarning and "is alone in exp" in str(w.message)
    ]
    assert len(lines) == (model.needs_two_classes and model.is_open)
    terms = model.training_loss(*images([2])).terms
    # a pull of keys goes on all the same
    losses = {key: float(value.detach()) for key, value in terms.items()}
    base = losses.get("cross_entropy", sum(losses.values()))
    assert (base == 0.0) == model.needs_two_classes, losses


def test_a_class_that_is_alone_is_told_of_unless_others_compete_or_statistics_answer() -> None:
    for arguments, classes, received in (({"mask": "seen"}, [2], [2]), ({}, [2, 3], [2]), ({}, [2], [0, 2])):
        model = begin(made("vpt_deep", arguments), [0, 1])
        model.begin_experience(classes)
        model.observe(torch.tensor(received))
        assert not model.told_of_one_class, (arguments, classes, received)
    model = begin(made("vpt_deep", {}).plug(Statistics("ncm")), [0, 1])
    model.begin_experience([2], lambda: iter([images([2])]))
    model.observe(torch.tensor([2]))
    assert not model.told_of_one_class


def test_a_known_backbone_without_its_weights_is_told() -> None:
    timms = {"name": "vit_tiny_patch16_224", "pretrained": False, "checkpoint": None}
    (sentence,) = notices.random_weights(timms)
    assert sentence.startswith(
        "the weights of backbone vit_tiny_patch16_224 are random; backbone.pretrained=true"
    )
    for other in ({"pretrained": True}, {"checkpoint": "w.pth"}, {"depth": 2}, {"name": "vit_letters"}):
        assert notices.random_weights(timms | other) == []


def test_experiences_of_one_class_are_told_with_what_helps() -> None:
    model = made("vpt_deep", {})
    (sentence,) = notices.one_class_experiences(model, [[0, 1], [2], [3]])
    assert sentence.startswith("2 of 3 experiences have one class")
    assert sentence.endswith('with strategy.mask=seen (in Python: mask="seen") all classes seen compete')
    assert notices.one_class_experiences(model, [[0, 1], [2, 3]]) == []
    assert notices.one_class_experiences(made("vpt_deep", {"mask": "seen"}), [[0, 1], [2]]) == []


def test_few_test_images_of_classes_that_are_trained_are_told() -> None:
    targets = np.repeat([0, 1, 2, 3], [40, 6, 19, 2])
    (sentence,) = notices.few_test_images(targets, [[0, 1], [2]])
    assert sentence.startswith(
        "2 of 3 classes have fewer than 20 test images, the fewest 6: there a single image is worth 16.7"
    )
    assert notices.few_test_images(targets, [[0]]) == []


def test_prompts_that_outweigh_a_short_sequence_are_told_with_their_share() -> None:
    (sentence,) = notices.many_prompt_tokens(made("vpt_deep", {"length": 10}))
    assert sentence.startswith("10 prompt tokens stand beside 16 of the image")
    assert sentence.endswith("in proportion, 1 in all")
    assert notices.many_prompt_tokens(made("vpt_deep", {"length": 4})) == []
    assert notices.many_prompt_tokens(made("dualprompt", {})) == []
