"""A compiled step is the plain one, in one graph, and is compiled anew when the model grows."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from clprompt import registry
from clprompt.errors import ConfigError
from clprompt.testing.bench import CLASSES, Workbench, tiny_model, tiny_vit
from clprompt.training.compiling import check_compiler
from clprompt.training.steps import receive, train_step_loss


class Counting:
    """A backend that runs graphs as they are, and counts them."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: Any) -> Any:
        self.graphs += 1
        return graph.forward


@pytest.fixture(autouse=True)
def _nothing_compiled() -> Iterator[None]:
    yield
    torch._dynamo.reset()


compiles = pytest.mark.skipif(
    not hasattr(importlib.import_module("torch._inductor.cpp_builder"), "get_cpp_compiler"),
    reason="this torch is too old to compile; test_an_older_torch_is_refused_in_one_line",
)


def test_an_older_torch_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("torch._inductor.cpp_builder.get_cpp_compiler", raising=False)
    with pytest.raises(ConfigError, match=r"^training\.compile=true needs a later torch than \d"):
        check_compiler(torch.device("cpu"))


@compiles
def test_a_compiled_step_is_one_graph_for_batches_of_any_size_until_the_model_grows() -> None:
    data = Workbench(registry.strategies.get("linear_probe").target)
    images, targets = data.batch(0)
    counting, made = Counting(), []
    for backend in (None, counting):
        model = tiny_model(registry.strategies.get("vpt_deep").target, tiny_vit(depth=1)).train()
        model.begin_experience(CLASSES[0])
        receive(model, None, targets)
        if backend is not None:
            model.compile_loss(backend=backend)
        losses, graphs = [], []
        for size in (8, 8, 5, 7, 8):
            if len(losses) == 4:
                model.observe(torch.tensor([19]))
            loss = train_step_loss(model, images[:size], targets[:size]).loss
            loss.backward()
            losses.append(loss.detach())
            graphs.append(counting.graphs)
        made.append(torch.stack(losses))
    torch.testing.assert_close(made[1], made[0], rtol=1e-5, atol=1e-6)
    assert graphs == [1, 1, 1, 1, 2]


@compiles
def test_without_a_compiler_there_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", (None, "/no/such/compiler"))
    with pytest.raises(ConfigError, match=r"^training\.compile=true needs a C\+\+ compiler"):
        check_compiler(torch.device("cpu"))
