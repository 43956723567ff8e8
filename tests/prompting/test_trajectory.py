"""The average of prompts along an experience: what is averaged, when it is swapped in, and exact resume."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
import torch
from image_text import tiny_image_text

from clprompt.errors import ConfigError, Interrupted
from clprompt.prompting.build import construct
from clprompt.strategies.coop.model import CoOpModel
from clprompt.strategies.linear_probe import LinearProbeModel
from clprompt.strategies.maple.model import MaPLeModel
from clprompt.testing.asserts import bits, changed
from clprompt.testing.bench import Workbench, tiny_vit

NAMES = {0: "cat", 1: "dog", 2: "fish"}
EPOCHS = 4


def made(**arguments: Any) -> Any:
    model = construct(CoOpModel, tiny_image_text(), length=2, trajectory=True, **arguments)
    model.name_classes(NAMES)
    return model


def travel(model: Any, classes: list[int], ends: list[float]) -> None:
    """An experience in whose epochs all rows of the context go to these values."""
    model.begin_experience(classes)
    model.observe(torch.tensor(classes))
    for epoch, end in enumerate(ends):
        model.start_epoch(epoch, len(ends))
        with torch.no_grad():
            model.contexts[0].fill_(end)
    model.end_experience()


def weighted(ends: list[float], mean: float, std: float) -> float:
    weights = [math.exp(-((epoch - mean) ** 2) / (2 * std**2)) for epoch in range(1, len(ends) + 1)]
    return sum(w * end for w, end in zip(weights, ends, strict=True)) / sum(weights)


@pytest.mark.parametrize(("given", "mean", "std"), [({}, 3.0, 1.0), ({"mean": 1.0, "std": 2.0}, 1.0, 2.0)])
def test_an_experience_ends_with_the_weighted_mean_of_its_epochs(given, mean, std):
    model = made(**{f"trajectory_{key}": value for key, value in given.items()})
    travel(model, [0, 1], [1.0, 2.0, 4.0, 8.0])
    expected = weighted([1.0, 2.0, 4.0, 8.0], mean, std)
    torch.testing.assert_close(model.contexts[0], torch.full_like(model.contexts[0], expected))


def test_each_experience_has_an_average_of_its_own():
    model = made()
    travel(model, [0, 1], [1.0, 2.0])
    travel(model, [2], [5.0, 5.0, 5.0])
    torch.testing.assert_close(model.contexts[0], torch.full_like(model.contexts[0], 5.0))


def test_rows_are_stored_of_the_average():
    model = made()
    travel(model, [0, 1], [0.1, -0.2, 0.3])
    with torch.no_grad():
        torch.testing.assert_close(model.rows[:2], model.eval().live_class_rows([0, 1]))


def test_image_prompts_of_the_first_experience_are_stored_of_the_average():
    model = construct(MaPLeModel, tiny_image_text(), coupling="none", depth=2, init=None, trajectory=True)
    model.name_classes(NAMES)
    model.begin_experience([0, 1])
    model.observe(torch.tensor([0, 1]))
    ends = [1.0, 3.0]
    for epoch, end in enumerate(ends):
        model.start_epoch(epoch, 2)
        with torch.no_grad():
            for parameter in model.own_parameters().values():
                parameter.fill_(end)
    model.end_experience()
    expected = torch.full_like(model.stored_prompts, weighted(ends, 1.5, 1.0))
    torch.testing.assert_close(model.stored_prompts, expected)


def test_an_experience_without_epochs_leaves_the_prompts_as_they_are():
    model = made()
    before = model.contexts[0].detach().clone()
    travel(model, [0, 1], [])
    assert torch.equal(model.contexts[0], before)


def test_parameters_that_are_not_trained_are_left_alone():
    model = made()
    model.contexts[0].requires_grad_(False)
    travel(model, [0, 1], [1.0, 2.0])
    assert torch.equal(model.contexts[0], torch.full_like(model.contexts[0], 2.0))


def test_what_grows_amid_an_experience_is_averaged_from_its_first_value():
    model = made(class_specific=True)
    model.begin_experience([0, 1])
    model.start_epoch(0, 3)
    model.start_epoch(1, 3)
    model.observe(torch.tensor([2]))
    joined = model.contexts[0][2].detach().clone()
    model.start_epoch(2, 3)
    model.end_experience()
    torch.testing.assert_close(model.contexts[0][2], joined)


@pytest.fixture(scope="module")
def whole() -> tuple[Workbench, dict[str, Any]]:
    """A workbench, and the bits of a model that was trained there in one go."""
    bench = Workbench(CoOpModel, length=4, anchor="self_regulation", trajectory=True)
    model = bench.make()
    bench.run(model, epochs=EPOCHS, experiences=2, online=False, train=bench.few)
    return bench, bits(model)


# 18 images in batches of 8 are 3 steps an epoch: within an epoch, at the end of one, behind the last step
@pytest.mark.parametrize("steps", [4, 6, 12])
def test_a_run_that_is_resumed_amid_an_experience_has_the_same_bits(whole, steps):
    bench, expected = whole
    left = iter(range(steps - 1))
    settings = {"epochs": EPOCHS, "experiences": 2, "online": False, "train": bench.few}
    engine = bench.engine(bench.make(), stop=lambda: None if next(left, None) is not None else 2, **settings)
    with pytest.raises(Interrupted):
        engine.run()
    assert engine.position.step == steps
    model = bench.make()
    again = bench.engine(model, **settings)
    again.load_state(engine.state())
    again.run()
    assert not changed(expected, bits(model))


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a method without text": (
        {"method": LinearProbeModel},
        "trajectory=true: LinearProbeModel trains no texts",
    ),
    "no experiences": (
        {"boundary_free": True},
        "trajectory=true needs to know of experiences, of which CoOpModel is never told here",
    ),
    "a width of 0": ({"trajectory_std": 0.0}, "trajectory_std must be .*above 0.*got 0"),
    "a mean below 0": ({"trajectory_mean": -1.0}, "trajectory_mean must be .*at least 0.*got -1"),
    "a setting of none": (
        {"trajectory": False, "trajectory_mean": 3.0},
        "trajectory_mean belongs to trajectory, which is false",
    ),
}


@pytest.mark.parametrize(("arguments", "words"), REFUSED.values(), ids=REFUSED)
def test_what_has_no_trajectory_is_refused_in_one_line(arguments, words):
    arguments = {"trajectory": True} | arguments
    method = arguments.pop("method", CoOpModel)
    with pytest.raises(ConfigError, match=words) as caught:
        construct(method, tiny_image_text() if method.needs_text else tiny_vit(), **arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("mean", "std"), [(1000.0, 1.0), (1e200, 1.0), (1.5, 1e-200)])
def test_a_mean_that_leaves_no_epoch_a_weight_is_refused_before_any_is_trained(mean, std):
    model = made(trajectory_mean=mean, trajectory_std=std)
    model.begin_experience([0])
    said = re.escape(f"trajectory_mean={mean} is so far from all 3 epochs")
    with pytest.raises(ConfigError, match=said):
        model.start_epoch(0, 3)


def test_the_refusal_names_the_mean_that_was_meant():
    model = made(trajectory_std=0.001)
    model.begin_experience([0])
    with pytest.raises(ConfigError, match=r"trajectory_mean=1\.5 is so far from all 2 epochs"):
        model.start_epoch(0, 2)


@pytest.mark.parametrize(
    ("given", "expected"),
    [({"std": 1e200}, 3.75), ({"std": 1e-200, "mean": 2.0}, 2.0), ({"std": 5e-324, "mean": 2.0}, 2.0)],
)
def test_weights_of_any_width_are_numbers(given, expected):
    model = made(**{f"trajectory_{key}": value for key, value in given.items()})
    travel(model, [0, 1], [1.0, 2.0, 4.0, 8.0])
    torch.testing.assert_close(model.contexts[0], torch.full_like(model.contexts[0], expected))


def test_an_online_stream_has_no_epochs_to_average():
    with pytest.raises(ConfigError, match="trajectory needs to know where experiences begin and end"):
        made().check_online()
