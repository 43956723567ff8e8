"""MaPLe and independent prompts against released code: logits, losses, gradients and steps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from golden_files import Golden
from image_text import COUPLED, INDEPENDENT, check_golden_step, golden_learner, golden_names
from torch.nn.functional import normalize

from clprompt.strategies.maple.model import MaPLeModel


@pytest.fixture(params=[torch.float64, torch.float32], ids=["float64", "float32"])
def base(request: pytest.FixtureRequest, golden: Any) -> Golden:
    return golden("clip", request.param)


def maple(base: Golden) -> MaPLeModel:
    values = {name: base[f"maple.{key}"] for name, key in COUPLED.items()}
    return golden_learner(base, MaPLeModel, values, vision="train")


def test_coupled_prompts_give_the_released_features_and_logits(base: Golden) -> None:
    model, names = maple(base).eval(), golden_names(base)
    with torch.no_grad():
        base.check(model.text_features(names), "maple.text_features")
        base.check(model.image_features(base["eval_images"]), "maple.image_features")
        base.check(model(base["images"]), "maple.logits")
        base.check(model.name_logits(base["eval_images"], names), "maple.eval_logits")


def test_coupled_prompts_give_the_released_loss_and_gradients(base: Golden) -> None:
    check_golden_step(base, maple(base), "maple", COUPLED)


def test_three_steps_give_the_released_losses_and_logits(base: Golden) -> None:
    model, losses = maple(base).train(), []
    optimizer = torch.optim.SGD(model.trainable().values(), lr=0.05)
    for _ in range(3):
        optimizer.zero_grad()
        loss = model.training_loss(base["images"], base["labels"]).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    base.check(torch.stack(losses), "maple.sgd3.losses")
    base.check(model.name_logits(base["eval_images"], golden_names(base)), "maple.sgd3.eval_logits")


def test_words_give_the_released_initial_rows(base: Golden) -> None:
    model = golden_learner(base, MaPLeModel, {}, vision="train")
    base.check(model.context_rows(), "maple.ctx_from_init")


def test_independent_prompts_give_the_released_features_loss_and_logits(base: Golden) -> None:
    values = {name: base[f"promptsrc.{key}"] for name, key in INDEPENDENT.items()}
    model = golden_learner(base, MaPLeModel, values, length=3, coupling="none", vision="train")
    names = golden_names(base)
    with torch.no_grad():
        base.check(model.eval().live_rows(names), "promptsrc.text_features")
        base.check(normalize(model.image_features(base["images"]), dim=-1), "promptsrc.image_features")
        base.check(model(base["images"]), "promptsrc.logits")
        base.check(model.name_logits(base["eval_images"], names), "promptsrc.eval_logits")
    step = model.train().training_loss(base["images"], base["labels"])
    base.check(step.loss, "promptsrc.loss.ce_current")
