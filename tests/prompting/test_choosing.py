"""Which prompts tokens choose, several roles at once, against the same step by step."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from clprompt.prompting.prompts import Chooser, choose, token_choice
from clprompt.seeding import generator

ROLES = [Chooser(slice(0, 2), slice(0, 5), 2), Chooser(slice(2, None), slice(5, 8), 1)]


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator(0, "tokens"), dtype=torch.float64)


@pytest.mark.parametrize("shape", [(8, 6), (3, 8, 6)], ids=["keys of all", "keys of each image"])
def test_roles_at_once_choose_lose_and_learn_what_each_does_step_by_step(shape):
    x, keys = drawn(3, 7, 6).requires_grad_(), drawn(*shape).requires_grad_()
    visible, loss = choose(x, normalize(keys, dim=-1), ROLES)
    expected = torch.zeros_like(visible)
    losses = []
    for rows, columns, top_k in ROLES:
        own, lost = token_choice(x[:, rows], keys[..., columns, :], top_k)
        expected[:, rows, columns] = own
        losses.append(lost)
    assert torch.equal(visible, expected)
    torch.testing.assert_close(loss, sum(losses), rtol=0, atol=1e-12)
    weights = 3 * drawn(1)[0]  # the gradient that comes from behind is no 1
    ours, theirs = (torch.autograd.grad(weights * each, (x, keys)) for each in (loss, sum(losses)))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


def test_rows_of_no_role_see_nothing():
    visible, loss = choose(drawn(3, 7, 6), normalize(drawn(8, 6), dim=-1), ROLES[:1], loss=False)
    assert loss is None
    assert not visible[:, 2:].any()
    assert not visible[..., 5:].any()


def test_a_token_of_zeros_has_cosine_0_and_no_gradient_that_is_no_number():
    x = torch.zeros(1, 7, 6, dtype=torch.float64, requires_grad=True)
    _, loss = choose(x, normalize(drawn(8, 6), dim=-1), ROLES)
    assert float(loss.detach()) == 2.0
    (gradient,) = torch.autograd.grad(loss, x)
    assert gradient.isfinite().all()
