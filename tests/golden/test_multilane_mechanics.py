"""MULTI-LANE in its factored form: lanes read the stream of ``FrozenViT.walk`` and never touch it."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch
import torch.nn.functional as F
from devices import DEVICE
from torch import Tensor

from clprompt.backbones.attention import finish_attention, project, project_stream, residual_mlp, split_heads


@pytest.fixture(params=[torch.float64, torch.float32], ids=["float64", "float32"])
def lanes(request, golden):
    return golden("multilane_forward", request.param)


def leaves_of(lanes) -> dict[str, Tensor]:
    names = ("selectors", "prompts.0", "prompts.1", "head.weight", "head.bias")
    return {name: lanes.leaf(f"method.{name}") for name in names}


@dataclass
class Lanes:
    """Features of all lanes, and both streams after each block."""

    features: Tensor | None = None  # (T, B, D), after the final norm
    selectors: Tensor | None = None  # (T, S, D), after the final norm
    patch_stream: list[Tensor] = field(default_factory=list)
    lane_stream: list[Tensor] = field(default_factory=list)


def run_lanes(lanes, backbone, leaves, tasks: slice, images: Tensor) -> Lanes:
    """All lanes of ``tasks`` over one walk of the frozen stream; K and V of summaries are its averages."""
    out = Lanes()
    scale = backbone.width**-0.5
    selectors = leaves["selectors"][tasks]  # (T, S, D); the same for every image at every depth
    count, size = selectors.shape[:2]
    batch = len(images)
    cls = backbone.vit.cls_token.expand(count, batch, -1)  # without a position
    for index, (block, x, normed, keys, values) in enumerate(backbone.walk(images)):
        assert torch.is_grad_enabled()
        attn = block.attn
        if index:
            out.patch_stream.append(x)
        chosen = block.norm1(selectors)  # (T, S, D)
        summary = torch.softmax(chosen.flatten(0, 1) @ normed.mT * scale, dim=-1)  # (B, T * S, N)
        summary = summary.unflatten(1, (count, 1, size))  # (B, T, 1, S, N), one for all heads

        own = block.norm1(cls)  # (T, B, D)
        projected = project_stream(attn, own)  # three of (T, H, B, d)
        query, own_keys, own_values = (part.permute(2, 0, 1, 3) for part in projected)  # (B, T, H, d)
        scores = torch.einsum("bthd,bhnd->bthn", query, keys)
        columns = [
            (query * own_keys).sum(-1, keepdim=True),  # (B, T, H, 1)
            torch.einsum("bthn,btsn->bths", scores, summary[:, :, 0]),
        ]
        if f"prompts.{index}" in leaves:
            prompt = leaves[f"prompts.{index}"][:, tasks].flatten(-2)  # (2, T, P, D): raw keys and values
            prompt_keys, prompt_values = (split_heads(part, attn) for part in prompt)  # (T, H, P, d)
            columns.append(torch.einsum("bthd,thpd->bthp", query, prompt_keys))
        weights = torch.softmax(torch.cat(columns, dim=-1) * query.shape[-1] ** -0.5, dim=-1)
        mixed = torch.einsum("bths,btsn->bthn", weights[..., 1 : 1 + size], summary[:, :, 0])
        heads = weights[..., :1] * own_values + torch.einsum("bthn,bhnd->bthd", mixed, values)
        if f"prompts.{index}" in leaves:
            heads = heads + torch.einsum("bthp,thpd->bthd", weights[..., 1 + size :], prompt_values)

        attended = finish_attention(attn, own, heads.permute(1, 2, 0, 3))  # (T, H, B, d) -> (T, B, D)
        cls = residual_mlp(block, cls, attended)
        selectors = residual_mlp(block, selectors, chosen)  # drop and replace
        out.lane_stream.append(
            torch.cat([cls[:, :, None], selectors[:, None].expand(-1, batch, -1, -1)], dim=2)
        )
    out.patch_stream.append(backbone.run(x, blocks=slice(index, None)))
    out.features, out.selectors = backbone.norm(cls), backbone.norm(selectors)
    return out


def masks(lanes) -> tuple[Tensor, Tensor, int]:
    """Classes of the current task, classes seen, and the task's index."""
    task, groups = int(lanes["config.task_index"]), lanes["config.class_mask"]
    current, seen = torch.zeros(2, 10, dtype=torch.bool, device=DEVICE)
    current[groups[task]] = True
    seen[groups[: task + 1].flatten()] = True
    return current, seen, task


def losses(lanes, logits: Tensor, allowed: Tensor) -> dict[str, Tensor]:
    targets = lanes["input.multilabels"] * allowed
    ce = logits.masked_fill(~allowed, float("-inf"))
    bce = logits.masked_fill(~allowed, 0.0)
    return {
        "ce_logits": ce,
        "bce_logits": bce,
        "targets": targets,
        "loss_ce": F.cross_entropy(ce, lanes["input.labels"]),
        "loss_bce": F.binary_cross_entropy_with_logits(bce, targets.to(logits.dtype)),
    }


def test_training_runs_one_lane_and_reaches_all_gradients(lanes):
    backbone, leaves = lanes.backbone(), leaves_of(lanes)
    current, _, task = masks(lanes)
    out = run_lanes(lanes, backbone, leaves, slice(task, task + 1), lanes["input.images"])
    tokens = torch.cat([out.features[:, :, None], out.selectors[:, None].expand(-1, 4, -1, -1)], dim=2)
    lanes.check(tokens.transpose(0, 1), "expected.train.features")
    logits = F.linear(F.normalize(out.features[0], dim=-1), leaves["head.weight"], leaves["head.bias"])
    lanes.check(logits, "expected.train.logits")
    parts = losses(lanes, logits, current)
    lanes.check(parts["ce_logits"], "expected.train.logits_masked_ce")
    lanes.check(parts["bce_logits"], "expected.train.logits_masked_bce")
    lanes.check(parts["targets"], "expected.train.bce_target_masked")
    for kind in ("ce", "bce"):
        lanes.check(parts[f"loss_{kind}"], f"expected.train.loss_{kind}")
        prefix = f"expected.grad_{kind}."
        assert {key.removeprefix(prefix) for key in lanes.keys(prefix)} == set(leaves)
        grads = torch.autograd.grad(parts[f"loss_{kind}"], list(leaves.values()), retain_graph=True)
        for name, grad in zip(leaves, grads, strict=True):
            if lanes.dtype == torch.float64:
                lanes.check(grad, prefix + name)


def test_evaluation_runs_all_seen_lanes_over_one_frozen_stream(lanes):
    backbone, leaves = lanes.backbone(), leaves_of(lanes)
    _, seen, task = masks(lanes)
    out = run_lanes(lanes, backbone, leaves, slice(0, task + 1), lanes["input.images"])
    lanes.check(torch.stack(out.patch_stream), "expected.eval.patch_stream")
    lanes.check(torch.stack(out.lane_stream), "expected.eval.lane_stream")
    features = F.normalize(out.features, dim=-1)  # (T, B, D)
    lanes.check(features.transpose(0, 1), "expected.eval.features")
    logits = features.new_zeros(4, 10)
    for lane, classes in zip(features, lanes["config.class_mask"], strict=False):
        logits[:, classes] = F.linear(lane, leaves["head.weight"][classes], leaves["head.bias"][classes])
    lanes.check(logits, "expected.eval.logits")
    parts = losses(lanes, logits, seen)
    lanes.check(parts["ce_logits"], "expected.eval.logits_masked_cil")
    lanes.check(parts["bce_logits"], "expected.eval.logits_masked_mlcil")
    lanes.check(parts["loss_ce"], "expected.eval.loss_ce")
    lanes.check(parts["loss_bce"], "expected.eval.loss_bce")


def test_frozen_class_token_comes_from_the_last_block_for_its_row_alone(lanes):
    backbone = lanes.backbone()
    *_, (_, x, *_) = backbone.walk(lanes["input.images"])
    frozen = backbone.pool(backbone.run(x, blocks=slice(-1, None), rows=backbone.head_rows))
    lanes.check(frozen, "expected.train.frozen_cls")
    lanes.check(frozen, "expected.eval.frozen_cls")


def test_the_walk_holds_no_gradient_and_the_lanes_do(golden):
    lanes = golden("multilane_forward")
    backbone, leaves = lanes.backbone(), leaves_of(lanes)
    for _, *tensors in backbone.walk(lanes["input.images"]):
        assert not any(tensor.requires_grad for tensor in tensors)
        assert not any(tensor.is_inference() for tensor in tensors)  # they are saved for the lanes' backward
    out = run_lanes(lanes, backbone, leaves, slice(0, 1), lanes["input.images"])
    assert out.features.requires_grad
    assert not any(stream.requires_grad for stream in out.patch_stream[:-1])


def test_summaries_as_tokens_give_the_same_lane_as_the_factored_form(golden):
    """The unfactored lane: summaries projected and attended like tokens."""
    lanes = golden("multilane_forward")
    backbone, leaves = lanes.backbone(), leaves_of(lanes)
    images, task = lanes["input.images"], masks(lanes)[2]
    cls = backbone.vit.cls_token.expand(len(images), 1, -1)
    selectors = leaves["selectors"][task][None]
    for index, (block, _, normed, *_) in enumerate(backbone.walk(images)):
        chosen = block.norm1(selectors)
        summary = torch.softmax(chosen @ normed.mT * backbone.width**-0.5, dim=-1) @ normed  # (B, S, D)
        own = torch.cat([block.norm1(cls), summary], dim=1)
        query = project(block.attn, own[:, :1], "q")
        keys, values = project(block.attn, own, "kv")
        if f"prompts.{index}" in leaves:
            prompt = leaves[f"prompts.{index}"][:, task, None].flatten(-2).expand(-1, len(images), -1, -1)
            keys = torch.cat([split_heads(prompt[0], block.attn), keys], dim=2)
            values = torch.cat([split_heads(prompt[1], block.attn), values], dim=2)
        heads = F.scaled_dot_product_attention(query, keys, values)
        cls = residual_mlp(block, cls, finish_attention(block.attn, own[:, :1], heads))
        selectors = residual_mlp(block, selectors, chosen)
    expected = lanes["expected.train.features"][:, 0, 0]
    torch.testing.assert_close(backbone.norm(cls)[:, 0], expected, rtol=0, atol=1e-9)
