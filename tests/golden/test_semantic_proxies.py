"""Semantic proxies against released code: embeddings, states, proxies, losses and gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from golden_files import Golden
from torch import Tensor
from torch.nn.functional import normalize

from clprompt.strategies.semantic_proxies import SemanticProxiesModel

CLASSES = 5
KINDS = ("weight", "bias")
#: The order in which the released code has the classes of its batch, in terms of their ids in order.
IN_BATCH = torch.tensor([1, 0, 2])

HEADS = {
    "embedding_head.0": "fc_norm",
    "embedding_head.1": "head",
    "semantic_head.0": "p_fc_norm",
    "semantic_head.1": "p_head",
}


@pytest.fixture(params=[torch.float64, torch.float32], ids=["float64", "float32"])
def base(request: pytest.FixtureRequest, golden: Any) -> Golden:
    return golden("semantic_proxies", request.param)


def parameters(base: Golden, prefix: str = "") -> dict[str, Tensor]:
    """The released parameters, or their gradients, by our names; a class's prompts of all blocks are one."""
    gru = [
        torch.cat([base[f"{prefix}rnn_update.{name}{part}"] for part in "rzn"], dim=-1)
        for name in ("W_i", "W_h", "b_i")
    ]
    class_prompts = torch.stack([base[f"{prefix}p_prompts.{block}"] for block in range(3)])
    return {
        "prompts": torch.cat([base[f"{prefix}prompts.{block}"] for block in range(4)]),
        **{
            f"{ours}.{kind}": base[f"{prefix}{name}.{kind}"] for ours, name in HEADS.items() for kind in KINDS
        },
        **dict(zip(("gru.of_input", "gru.of_state", "gru.bias"), gru, strict=True)),
        **{f"biases.{c}": base[f"{prefix}proxies_bias"][c] for c in range(CLASSES)},
        **{f"class_prompts.{c}": class_prompts[:, c] for c in range(CLASSES)},
    }


def learner(base: Golden, **arguments: Any) -> SemanticProxiesModel:
    backbone = base.backbone()
    settings = {"length": 3, "class_length": 2, "class_layers": (0, 1, 2), "width": 16, **arguments}
    model = SemanticProxiesModel(backbone, positives="all", **settings).to(base.dtype)
    model.to(base["images"].device).begin_experience(range(CLASSES))
    model.observe(torch.arange(CLASSES))
    state = {**model.method_state(), **parameters(base), "states": base["container"]}
    model.load_state_dict(state)
    return model.train()


def test_parameters_have_the_released_shapes_and_none_is_left_over(base: Golden) -> None:
    assert {n: p.shape for n, p in learner(base).own_parameters().items()} == {
        n: p.shape for n, p in parameters(base).items()
    }


def test_images_have_the_released_embeddings(base: Golden) -> None:
    model = learner(base)
    base.check(model.encode(base["images"]).features, "embeds")
    base.check(model.eval().encode(base["eval_images"]).features, "eval_embeds")


def test_a_step_leaves_the_released_states_and_proxies(base: Golden) -> None:
    model = learner(base)
    model.training_loss(base["images"], base["labels"])
    base.check(model.states, "container_after")
    base.check(model.proxies(model.states), "proxies_all")


def test_proxies_of_a_batch_mix_states_before_their_normalisation(base: Golden) -> None:
    model, labels = learner(base), base["labels"]
    with torch.no_grad():
        stem = model.backbone.stem(base["images"], 0)
        raw = model._follow(model.states, model.semantic(stem, labels), labels)
        proxies = normalize(model.proxies(raw)[labels.unique()], dim=1)
    base.check(proxies[IN_BATCH.to(proxies.device)], "proxies_batch")


@pytest.mark.parametrize("form", ["both_all", "in_batch"])
@pytest.mark.parametrize("loss", ["anchor", "nca"])
def test_the_loss_is_the_released_one(base: Golden, form: str, loss: str) -> None:
    step = learner(base, form=form, loss=loss).training_loss(base["images"], base["labels"])
    base.check(step.loss, f"{form}.{loss}.loss")


def test_all_gradients_are_the_released_ones(base: Golden) -> None:
    model = learner(base)
    model.training_loss(base["images"], base["labels"]).loss.backward()
    expected = parameters(base, "grad.")
    assert set(model.trainable()) == set(expected)
    for name, parameter in model.trainable().items():
        gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        largest = expected[name].abs().max().item()
        rtol, atol = (0.0, max(1e-9 * largest, 1e-12)) if base.dtype == torch.float64 else (1e-3, 1e-4)
        torch.testing.assert_close(gradient, expected[name], rtol=rtol, atol=atol, msg=name)
