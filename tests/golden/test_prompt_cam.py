"""Prompt-CAM against the released class ("deep") and whole-sequence formulas ("last")."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from golden_files import Golden

from clprompt.strategies.prompt_cam.model import PromptCAMModel

#: Arguments by the prefix of the golden keys.
FORMS: dict[str, dict[str, Any]] = {
    "deep": {"form": "deep"},
    "last.own": {},
    "last.all": {"visibility": "all"},
    "last.own_shared": {"shared_length": 2},
}


@pytest.fixture(params=[torch.float64, torch.float32], ids=["float64", "float32"])
def base(request: pytest.FixtureRequest, golden: Any) -> Golden:
    return golden("prompt_cam", request.param)


def model(base: Golden, form: str) -> PromptCAMModel:
    """The golden prompts and scorer, in one experience of six classes; scores are its logits."""
    made = PromptCAMModel(base.backbone(), gate="none", **FORMS[form]).to(base.dtype)
    made.begin_experience(range(6))
    made.observe(torch.arange(6))
    prompts = base["deep.prompts"] if form == "deep" else base["last.prompts"][None]
    state = {
        **made.method_state(),
        "prompts.0": prompts,
        "score_weights.0": base["score.weight"][0],
        "score_biases.0": base["score.bias"],
    }
    if made.shared is not None:
        state["shared"] = base["last.shared_prompts"]
    made.load_state_dict(state)
    return made.to(base["images"].device)


@pytest.mark.parametrize("form", FORMS)
def test_scores_are_the_reference_ones(base: Golden, form: str) -> None:
    with torch.no_grad():
        base.check(model(base, form).eval()(base["images"]), f"{form}.logits")


@pytest.mark.parametrize("form", ["deep", "last.own", "last.all"])
def test_loss_and_gradients_are_the_reference_ones(base: Golden, form: str) -> None:
    made = model(base, form).train()
    step = made.training_loss(base["images"], base["labels"])
    step.loss.backward()
    base.check(step.loss, f"{form}.loss")
    base.check(step.logits, f"{form}.logits")
    prompts, weight = made.prompts[0].grad, made.score_weights[0].grad
    assert prompts is not None
    assert weight is not None
    base.check(prompts if form == "deep" else prompts[0], f"{form}.grad.prompts")
    base.check(weight[None] if form == "deep" else weight, f"{form}.grad.weight")
    base.check(made.score_biases[0].grad, f"{form}.grad.bias")


@pytest.mark.parametrize("form", ["deep", "last.own", "last.all"])
def test_attention_is_the_reference_one(base: Golden, form: str) -> None:
    weights = model(base, form).eval().attention(base["images"]).weights
    if form == "deep":  # there prompts come first
        weights = weights.roll(6, dims=-1)
    base.check(weights, f"{form}.attention")


@pytest.mark.parametrize(("form", "images"), [("deep", 1), ("last.own", 5)])
def test_a_blurred_head_gives_the_reference_scores(base: Golden, form: str, images: int) -> None:
    made = model(base, form).eval()
    blurred = torch.zeros(images, 2, 6, dtype=torch.bool, device=base["images"].device)
    blurred[:, 1, 3] = True
    scores = made.blurred_scores(made.attention(base["images"][:images]), blurred)
    base.check(scores, f"{form}.blur_head1_class3.logits")


def test_heads_are_blurred_in_the_reference_order(base: Golden) -> None:
    made = model(base, "last.own").eval()
    order = made.head_order(made.attention(base["images"][:2]))  # (2, 6, 2)
    labels = base["labels"][:2]
    base.check(order[torch.arange(2), labels], "last.own.head_order")
