"""What a run asks of torch, and what a user reads where the device cannot give it."""

from __future__ import annotations

import os
import signal

import pytest
import torch

from clprompt.errors import ConfigError, ProtocolError
from clprompt.system.runtime import reproducible, stop_signal

CPU = torch.device("cpu")


def settings() -> tuple[bool, ...]:
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.utils.deterministic.fill_uninitialized_memory,
        torch.backends.cudnn.benchmark,
    )


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_torch_is_left_as_it_was_found(kind):
    before = settings()
    with reproducible(torch.device(kind)):
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.is_deterministic_algorithms_warn_only_enabled() == (kind == "cpu")
    assert settings() == before


def test_a_run_may_do_without_equal_bits():
    with reproducible(CPU, deterministic=False):
        assert not torch.are_deterministic_algorithms_enabled()


def test_what_has_no_deterministic_form_on_a_gpu_is_one_line_that_names_the_way_out():
    line = r"does not have .*deterministic=false"
    with pytest.raises(ConfigError, match=line) as raised, reproducible(torch.device("cuda")):
        torch.zeros(3).put_(torch.tensor([0]), torch.ones(1))
    assert "\n" not in str(raised.value)


def test_a_lack_of_memory_is_one_line_that_names_the_batch_sizes():
    line = r"cpu has too little memory .*train_mb_size"
    with pytest.raises(ConfigError, match=line) as raised, reproducible(CPU):
        torch.empty(2**56)
    assert "\n" not in str(raised.value)


def test_errors_of_ours_pass_as_they_are():
    with pytest.raises(ProtocolError, match="deterministic"), reproducible(CPU):
        raise ProtocolError("a deterministic mistake")


def test_a_signal_is_answered_at_once_as_a_step_may_take_minutes(capfd):
    with stop_signal() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop() == signal.SIGTERM
    assert "stops after the step that is on" in capfd.readouterr().err
