"""check_strategy on methods that need text: they get a text tower and names of the toy classes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clprompt import FrozenViT, testing
from clprompt.prompting.text.model import TextModel
from clprompt.testing.bench import Workbench


class Shifted(TextModel):
    """The text features of the names, moved by one learned vector."""

    def __init__(self, backbone: FrozenViT, *, seed: int = 0, boundary_free: bool = False) -> None:
        super().__init__(backbone, seed=seed, boundary_free=boundary_free)
        self.shift = nn.Parameter(torch.zeros(backbone.joint_width))

    def live_rows(self, names: Sequence[str]) -> Tensor:
        return F.normalize(self.frozen_rows(names) + self.shift, dim=-1)


@cache
def bench() -> Workbench:
    return Workbench(Shifted)


@pytest.mark.parametrize("check", testing.CHECKS, ids=lambda check: check.__name__.removeprefix("check_"))
def test_a_method_that_needs_text_is_checked_with_a_text_tower(check: Callable[[Workbench], None]) -> None:
    check(bench())


def test_names_alone_find_the_toy_classes() -> None:
    model = bench().make()
    model.observe(torch.from_numpy(bench().test.targets))
    with torch.no_grad():
        predicted = model.eval()(bench().test.images).argmax(1)
    assert (predicted.numpy() == bench().test.targets).mean() > 0.9
