"""TCPA on the shared mechanics: per-row masks before and after the softmax, and their fast forms."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from devices import DEVICE
from torch import Tensor

from clprompt.backbones.attention import BlockPrompt


@pytest.fixture(params=[torch.float64, torch.float32], ids=["float64", "float32"])
def tcpa(request, golden):
    return golden("tcpa_forward", request.param)


@dataclass(frozen=True)
class Variant:
    fourier: bool
    mask: str  # "before" or "after" the softmax
    choice: str  # "top", "all", "random", or "role" for no keys at all
    detach: bool = False


VARIANTS = {
    "code": Variant(True, "after", "top"),
    "vpt_after": Variant(False, "after", "top"),
    "vpt_before": Variant(False, "before", "top"),
    "joint_before": Variant(True, "before", "top"),
    "role_code": Variant(True, "after", "role"),
    "role_before": Variant(False, "before", "role"),
    "all_before": Variant(False, "before", "all"),
    "random_code": Variant(True, "after", "random"),
    "detached_before": Variant(False, "before", "top", detach=True),
}
FORMS = ["masked", "by_role"]  # one call with a mask for all rows, or class and patch rows apart
METHOD = ["keys_cls", "keys_image", "prompts_cls", "prompts_image"]
FIRST, REST = slice(0, 1), slice(1, None)


def leaves_of(tcpa) -> dict[str, Tensor]:
    leaves = {name: tcpa.leaf(f"method.{name}") for name in METHOD}
    return leaves | {f"head.{name}": tcpa.leaf(f"backbone.head.{name}") for name in ("weight", "bias")}


@dataclass
class Coordination:
    """What one forward pass computes beside the stream, one entry a block."""

    match: list[Tensor] = field(default_factory=list)
    mask: list[Tensor] = field(default_factory=list)
    sim_cls: list[Tensor] = field(default_factory=list)
    sim_image: list[Tensor] = field(default_factory=list)


def choose(tcpa, role: str, choice: str, block: int, similarity: Tensor) -> Tensor:
    """Indices of the entries that each token takes, [..., k]."""
    k = similarity.shape[-1] if choice == "all" else int(tcpa[f"config.top_k_{role}"])
    ranked = similarity.detach()
    if choice == "random":
        ranked = -tcpa[f"input.random_{role}"][block]
    return ranked.topk(k, dim=-1).indices


def coordinate(tcpa, variant: Variant, form: str, leaves, record: Coordination, block: int, x: Tensor):
    """The prompts of one block, matched with the stream that enters it."""
    own = {role: leaves[f"prompts_{role}"][block].flatten(0, 1) for role in ("cls", "image")}  # (P_role, D)
    size = len(own["cls"])
    tokens = torch.cat([own["cls"], own["image"]])
    if variant.fourier:
        tokens = torch.fft.fft2(tokens).real
    by_role = {"cls": tokens[None, :size], "image": tokens[None, size:]}
    if variant.choice == "role":
        shown = [
            BlockPrompt("fresh", by_role["cls"], rows=FIRST),
            BlockPrompt("fresh", by_role["image"], rows=REST),
        ]
        if variant.mask == "before":
            return shown
        hidden = [
            replace(p, rows=rows, zero_values=True) for p, rows in zip(shown, (REST, FIRST), strict=True)
        ]
        return shown + hidden

    query = x.detach() if variant.detach else x
    match, columns = 0.0, {}
    for role, rows in (("cls", query[:, 0]), ("image", query[:, 1:])):
        similarity = F.normalize(rows, dim=-1) @ F.normalize(leaves[f"keys_{role}"][block], dim=-1).T
        chosen = choose(tcpa, role, variant.choice, block, similarity)
        match = match + (1 - similarity.gather(-1, chosen)).mean()
        visible = torch.zeros_like(similarity, dtype=torch.bool).scatter(-1, chosen, True)
        columns[role] = visible.repeat_interleave(int(tcpa[f"config.length_{role}"]), dim=-1)
        getattr(record, f"sim_{role}").append(similarity)
    record.match.append(match)
    mask = x.new_zeros(*x.shape[:2], len(tokens), dtype=torch.bool)  # (B, N, P)
    mask[:, 0, :size] = columns["cls"]
    mask[:, 1:, size:] = columns["image"]
    record.mask.append(mask)
    mask = mask[:, None]

    if form == "masked":
        shown = [BlockPrompt("fresh", tokens[None], mask=mask)]
        after = [replace(shown[0], mask=~mask, zero_values=True)]
    else:
        shown = [
            BlockPrompt("fresh", by_role["cls"], rows=FIRST, mask=mask[:, :, :1, :size]),
            BlockPrompt("fresh", by_role["image"], rows=REST, mask=mask[:, :, 1:, size:]),
        ]
        after = [
            *(replace(p, mask=~p.mask, zero_values=True) for p in shown),
            BlockPrompt("fresh", by_role["image"], rows=FIRST, zero_values=True),
            BlockPrompt("fresh", by_role["cls"], rows=REST, zero_values=True),
        ]
    return shown if variant.mask == "before" else shown + after


def forward(tcpa, name: str, form: str, leaves):
    """Everything of one pass, the stream after each block included."""
    backbone, record, stream = tcpa.backbone(), Coordination(), []
    prompts = partial(coordinate, tcpa, VARIANTS[name], form, leaves, record)
    x = backbone.embed(tcpa["input.images"])
    for block in range(backbone.depth):
        x = backbone.run(x, prompts, blocks=slice(block, block + 1))
        stream.append(x)
    feature = backbone.pool(x)
    return feature, F.linear(feature, leaves["head.weight"], leaves["head.bias"]), torch.stack(stream), record


def losses(tcpa, logits: Tensor, record: Coordination) -> dict[str, Tensor]:
    labels = tcpa["input.labels"]
    outside = torch.ones(10, dtype=torch.bool, device=DEVICE)
    outside[tcpa["input.task_classes"]] = False
    parts = {
        "ce": F.cross_entropy(logits, labels),
        "ce_task": F.cross_entropy(logits.masked_fill(outside, float("-inf")), labels),
    }
    if record.match:
        parts["match_per_block"] = torch.stack(record.match)
        parts["match"] = parts["match_per_block"].sum()
        parts["loss"] = parts["ce"] + tcpa["config.weight"] * parts["match"]
        parts["loss_task"] = parts["ce_task"] + tcpa["config.weight"] * parts["match"]
    return parts


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", VARIANTS)
def test_logits_masks_tokens_and_losses_of_every_variant(tcpa, name, form):
    feature, logits, stream, record = forward(tcpa, name, form, leaves_of(tcpa))
    tcpa.check(feature, f"{name}.feature")
    tcpa.check(logits, f"{name}.logits")
    for part, value in losses(tcpa, logits, record).items():
        tcpa.check(value, f"{name}.{part}")
    for part, value in (("mask", record.mask), ("sim_cls", record.sim_cls), ("sim_image", record.sim_image)):
        if f"{name}.{part}" in tcpa:
            tcpa.check(torch.stack(value), f"{name}.{part}")
    if f"{name}.tokens" in tcpa:
        tcpa.check(stream, f"{name}.tokens")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("name", "loss", "prefix"),
    [
        ("code", "loss", "grad"),
        ("vpt_after", "loss", "grad"),
        ("vpt_before", "loss", "grad"),
        ("vpt_before", "loss_task", "grad_task"),
        ("detached_before", "loss", "grad"),
    ],
)
def test_gradients(golden, name, loss, prefix, form):
    tcpa = golden("tcpa_forward")
    leaves = leaves_of(tcpa)
    _, logits, _, record = forward(tcpa, name, form, leaves)
    stored = {key.removeprefix(f"{name}.{prefix}."): key for key in tcpa.keys(f"{name}.{prefix}.")}
    assert set(stored) == (set(METHOD[2:]) if name == "detached_before" else set(leaves))
    grads = torch.autograd.grad(losses(tcpa, logits, record)[loss], [leaves[part] for part in stored])
    for key, grad in zip(stored.values(), grads, strict=True):
        tcpa.check(grad, key)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["code", "vpt_before", "role_code", "role_before"])
def test_last_block_computes_only_the_rows_that_the_head_reads(golden, name, form):
    tcpa = golden("tcpa_forward")
    leaves, backbone = leaves_of(tcpa), tcpa.backbone()
    prompts = partial(coordinate, tcpa, VARIANTS[name], form, leaves, Coordination())
    tokens = backbone.embed(tcpa["input.images"])
    widths: list[int] = []
    handle = backbone.blocks[-1].mlp.register_forward_hook(lambda m, args, out: widths.append(out.shape[1]))
    tcpa.check(backbone.prompted(tokens, prompts), f"{name}.feature")
    backbone.trim_last_block = False
    tcpa.check(backbone.prompted(tokens, prompts), f"{name}.feature")
    handle.remove()
    assert widths == [1, 17]


def test_choosing_all_entries_equals_roles_without_keys(golden):
    tcpa = golden("tcpa_forward")
    logits = forward(tcpa, "all_before", "masked", leaves_of(tcpa))[1]
    tcpa.check(logits, "role_before.logits")


def test_transformed_prompts_match_the_recorded_ones(golden):
    tcpa = golden("tcpa_forward")
    parts = [tcpa[f"method.prompts_{role}"].flatten(1, 2) for role in ("cls", "image")]
    tcpa.check(torch.fft.fft2(torch.cat(parts, dim=1)).real, "fourier.prompts")
