"""Formats of 16 bits, and what keeps gradients within the range of the smaller one."""

from __future__ import annotations

import pytest
import torch

from clprompt import registry
from clprompt.errors import ClpromptError, ConfigError
from clprompt.testing.asserts import same_bits
from clprompt.testing.bench import Workbench, through_file
from clprompt.training import optim
from clprompt.training.precision import gradient_scaler
from clprompt.training.steps import receive, train_step


@pytest.fixture(scope="module")
def bench() -> Workbench:
    return Workbench(registry.strategies.get("linear_probe").target)


def test_a_run_in_fp16_goes_on_to_the_same_bits_with_its_scaler(bench: Workbench) -> None:
    states: list[dict] = []

    def stop() -> None:
        states.append(through_file(engine.state()))

    model = bench.make()
    engine = bench.engine(model, online=False, experiences=1, train=bench.few, precision="fp16", stop=stop)
    engine.scaler.scale(torch.zeros(()))  # it begins with its first tensor
    engine.scaler.update(2.0**10)
    engine.run()
    middle = states[1]
    assert middle["scaler"] == {"scale": 2.0**10, "growth_tracker": 2}
    other = bench.make()
    again = bench.engine(other, online=False, experiences=1, train=bench.few, precision="fp16")
    again.load_state(middle)
    again.run()
    for name, value in model.method_state().items():
        assert same_bits(value, other.method_state()[name]), name
    assert again.scaler.get_scale() == engine.scaler.get_scale()


def test_a_gradient_that_overflows_in_fp16_moves_nothing(bench: Workbench) -> None:
    model, optimizer = bench.begun(experience=0)
    images, targets = bench.batch(0)
    receive(model, optimizer, targets)
    optimizer = optim.build(model, bench.training())
    scaler = gradient_scaler(torch.device("cpu"), "fp16")
    assert scaler is not None
    scaler.scale(torch.zeros(()))  # it begins with its first tensor
    scaler.update(3e38)
    before = model.method_state()["head.weight"].clone()
    train_step(model, optimizer, images, targets, precision="fp16", scaler=scaler)
    assert torch.equal(before, model.method_state()["head.weight"])
    assert scaler.get_scale() < 3e38


def test_a_state_whose_scale_is_no_number_is_refused(bench: Workbench) -> None:
    engine = bench.engine(bench.make(), precision="fp16")
    state = {**engine.state(), "scaler": {"scale": -1.0, "growth_tracker": 0}}
    with pytest.raises(ClpromptError, match=r"engine\.scaler\.scale must be above 0"):
        engine.load_state(state)


def test_a_precision_that_a_device_does_not_have_is_refused_in_one_line() -> None:
    with pytest.raises(ConfigError, match=r"^precision=fp16 is not there on meta") as refused:
        gradient_scaler(torch.device("meta"), "fp16")
    assert "\n" not in str(refused.value)


def test_float32_has_no_scaler(bench: Workbench) -> None:
    assert "scaler" not in bench.engine(bench.make()).state()
