"""A training step waits for no GPU, tried on one: `pytest tests/conformance --device cuda`.

`tests/training/test_waiting.py` asks the same of a GPU that is not there, and is stricter on the way forward;
here the way back, the optimizer's step and the copies from pinned memory are there, too.
"""

from __future__ import annotations

import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from devices import DEVICE
from step_forms import forms

from clprompt import registry
from clprompt.testing.bench import CLASSES, Workbench, tiny_model
from clprompt.training import optim
from clprompt.training.steps import begin, receive, train_step

if torch.device(DEVICE).type != "cuda":
    pytest.skip("a CPU has nothing to wait for; --device cuda tries it on a GPU", allow_module_level=True)

#: What its images chose decides which of its prompts have a gradient.
WAITS = {"damvp"}


def places_of_waiting(call: Any) -> Counter[str]:
    """Where the host waited for the GPU, as torch tells."""
    torch.cuda.synchronize()
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            call()
    finally:
        torch.cuda.set_sync_debug_mode(before)
    return Counter(
        f"{'/'.join(Path(w.filename).parts[-2:])}:{w.lineno}"
        for w in caught
        if "synchroniz" in str(w.message)
    )


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize(("name", "arguments"), forms())
def test_a_training_step_waits_for_no_gpu(name: str, arguments: dict[str, Any], precision: str) -> None:
    method = registry.strategies.get(name).target
    data = Workbench(method, device=DEVICE)
    model = tiny_model(method, **arguments).to(DEVICE).train()
    if model.boundaries == "required" or any(plugin.needs_experiences for plugin in model.plugins):
        begin(model, CLASSES[0], data.samples(0))
    images, targets = data.batch(0)
    images, targets = images.cpu().pin_memory(), targets.cpu()
    receive(model, None, targets)
    optimizer = optim.build(model, data.training())

    def step() -> None:
        receive(model, optimizer, targets)
        train_step(model, optimizer, model.placed(images), targets, clip_grad=1.0, precision=precision)

    step()  # the first may find out what is then kept
    found = places_of_waiting(step)
    assert bool(found) == (name in WAITS), found


def test_waiting_is_noticed() -> None:
    there = torch.ones(4, device=DEVICE)
    assert places_of_waiting(lambda: there.sum().item())
    assert not places_of_waiting(lambda: there.sum())
