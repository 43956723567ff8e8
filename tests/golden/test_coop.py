"""CoOp and what stands beside it against the golden file: logits, losses and gradients."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from devices import DEVICE
from golden_files import Golden
from image_text import check_golden_step, golden_backbone, golden_learner, golden_names, golden_texts
from torch import Tensor

from clprompt.strategies.coop.model import CoOpModel, diversity

DTYPES = [torch.float64, torch.float32]


@pytest.fixture(params=DTYPES, ids=["float64", "float32"])
def base(request: pytest.FixtureRequest, golden: Any) -> Golden:
    return golden("clip", request.param)


def learner(base: Golden, values: dict[str, Tensor], **arguments: Any) -> CoOpModel:
    return golden_learner(base, CoOpModel, values, **arguments)


@pytest.mark.parametrize("position", ["end", "middle", "front"])
def test_a_learned_context_gives_the_published_logits_losses_and_gradients(
    base: Golden, position: str
) -> None:
    model = learner(base, {"contexts.0": base["coop.ctx"]}, length=4, position=position)
    names = golden_names(base)
    base.check(model.eval()(base["images"]), f"coop.{position}.logits")
    base.check(model.name_logits(base["eval_images"], names), f"coop.{position}.eval_logits")
    base.check(model.text_features(names)[0], f"coop.{position}.text_features")
    check_golden_step(base, model, f"coop.{position}", {"contexts.0": "ctx"})


def test_contexts_of_classes_give_the_published_logits_losses_and_gradients(base: Golden) -> None:
    model = learner(base, {"contexts.0": base["coop_csc.ctx"]}, length=4, class_specific=True)
    base.check(model.eval()(base["images"]), "coop_csc.logits")
    check_golden_step(base, model, "coop_csc", {"contexts.0": "ctx"})


@pytest.mark.parametrize("encoder", ["shared", "separate"])
def test_an_encoder_gives_the_published_logits_losses_and_gradients(base: Golden, encoder: str) -> None:
    ours = {f"encoder.{name}": name for name in ("w1", "b1", "w2", "b2")}
    networks = slice(1 if encoder == "shared" else None)
    values = {name: base[f"pre.{key}"][networks] for name, key in ours.items()}
    values["contexts.0"] = base["pre.ctx"]
    model = learner(base, values, length=4, encoder=encoder, encoder_width=8)
    base.check(model.eval()(base["images"]), f"pre.{encoder}.logits")
    check_golden_step(base, model, f"pre.{encoder}", ours | {"contexts.0": "ctx"})


def test_attributes_give_the_published_logits_losses_and_gradients(base: Golden) -> None:
    ours = {"attributes.0": "a1", "attributes.1": "a2", "contexts.0": "ctx"}
    values = {name: base[f"atprompt.{key}"] for name, key in ours.items()}
    model = learner(base, values, length=2, attributes=("shape", "color"), attribute_length=2)
    base.check(model.eval()(base["images"]), "atprompt.logits")
    base.check(model.text_features(golden_names(base))[0], "atprompt.text_features")
    check_golden_step(base, model, "atprompt", ours)


def test_several_contexts_give_the_published_logits_and_diversity(base: Golden) -> None:
    values = {f"contexts.{index}": context for index, context in enumerate(base["msgcoop.ctx"])}
    model = learner(base, values, length=4, contexts=3)
    base.check(model.eval()(base["images"]), "msgcoop.logits")
    base.check(diversity(model.class_features([2, 3])), "msgcoop.diversity")


def test_knowledge_gives_the_loss_and_gradient_of_the_formula(base: Golden, tmp_path: Path) -> None:
    values = {"contexts.0": base["coop.ctx"]}
    model = learner(base, values, length=4, knowledge=golden_texts(base, "ensemble", tmp_path))
    base.check(model._teacher(range(6)), "ensemble.weights")
    check_golden_step(base, model, "kgcoop", {"contexts.0": "ctx"})


def test_several_contexts_near_descriptions_give_the_loss_and_gradient_of_the_formula(
    base: Golden, tmp_path: Path
) -> None:
    values = {f"contexts.{index}": context for index, context in enumerate(base["msgcoop.ctx"])}
    descriptions = golden_texts(base, "cupl", tmp_path)
    model = learner(base, values, length=4, contexts=3, diversity=1.0, knowledge=descriptions)
    step = model.train().training_loss(base["images"], base["labels"])
    base.check(step.terms["knowledge"] / 8, "msgcoop.semantic")
    base.check(step.loss, "msgcoop.loss")
    if base.dtype == torch.float64:
        step.loss.backward()
        base.check(torch.stack([context.grad for context in model.contexts]), "msgcoop.grad.ctx")


def test_kept_rows_are_those_of_the_context_of_their_experience(base: Golden) -> None:
    model = CoOpModel(golden_backbone(base), length=4).to(DEVICE, base.dtype)
    model.name_classes(dict(enumerate(golden_names(base))))
    for index, classes in enumerate(([0, 1], [2, 3], [4, 5])):
        model.begin_experience(classes)
        model.observe(torch.tensor(classes))
        with torch.no_grad():
            model.contexts[0].copy_(base["rows.contexts"][index])
        if index == 1:
            logits = F.pad(model.eval()(base["eval_images"]), (0, 2), value=float("-inf"))
            base.check(logits, "rows.logits_seen4")
        model.end_experience()
    expected = F.normalize(base["rows.text_features"], dim=-1)
    torch.testing.assert_close(
        model.rows, expected, rtol=0, atol=1e-12 if base.dtype == torch.float64 else 1e-5
    )
