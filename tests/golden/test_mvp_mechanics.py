"""MVP written directly on the shared mechanics: fresh prompts (``pt``) and projected prefixes (``pf``)."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from devices import DEVICE
from torch import Tensor

from clprompt.backbones.attention import BlockPrompt


@pytest.fixture(params=[torch.float64, torch.float32], ids=["float64", "float32"])
def mvp(request, golden):
    return golden("mvp_forward", request.param)


LEAVES = {
    "key": "key",
    "mask": "mask",
    "g_prompts": "{}.g_prompts",
    "e_prompts": "{}.e_prompts",
    "backbone.head.weight": "backbone.head.weight",
    "backbone.head.bias": "backbone.head.bias",
}


def class_query(backbone, tokens: Tensor, blocks: int) -> Tensor:
    """The class token after so many blocks, before the final norm, [B, D]."""
    with torch.no_grad():
        return backbone.run(tokens, blocks=slice(0, blocks), rows=slice(0, 1))[:, 0]


def prompts_of(mvp, variant: str, leaves: dict[str, Tensor], chosen: Tensor):
    """What each block gets: general prompts for all, expert ones by sample; flat: layer, (k/v,) length."""
    parts = {"pt": 1, "pf": 2}[variant]
    pos_g, pos_e = mvp["pos_g"].tolist(), mvp["pos_e"].tolist()
    general = leaves["g_prompts"].unflatten(1, (len(pos_g), parts, -1))  # (1, layers, parts, len, D)
    expert = leaves["e_prompts"][chosen].unflatten(1, (len(pos_e), parts, -1))  # (B, layers, parts, len, D)

    def prompts(block: int, x: Tensor) -> list[BlockPrompt]:
        given = []
        for positions, pool in ((pos_g, general), (pos_e, expert)):
            if block in positions:
                pair = pool[:, positions.index(block)].unbind(1)
                given.append(BlockPrompt("fresh" if parts == 1 else "projected", *pair))
        return given

    return prompts


@dataclass
class Forward:
    query: Tensor
    distance: Tensor
    selected: Tensor
    feature: Tensor
    scale: Tensor
    head: tuple[Tensor, Tensor]

    def logits(self, feature: Tensor) -> Tensor:
        return F.linear(feature, *self.head) * self.scale


def forward(mvp, variant, leaves, images, *, count, blocks=3, use_mask=True) -> Forward:
    backbone = mvp.backbone()
    tokens = backbone.embed(images)
    query = class_query(backbone, tokens, blocks)
    distance = 1 - F.normalize(query, dim=-1) @ F.normalize(leaves["key"], dim=-1).T
    selected = (distance * (count + 1)).argmin(1)
    feature = backbone.prompted(tokens, prompts_of(mvp, variant, leaves, selected))
    scale = 2 * torch.sigmoid(leaves["mask"][selected]) if use_mask else feature.new_ones(1)
    head = leaves["backbone.head.weight"], leaves["backbone.head.bias"]
    return Forward(query, distance, selected, feature, scale, head)


def leaves_of(mvp, variant: str) -> dict[str, Tensor]:
    return {name: mvp.leaf(key.format(variant)) for name, key in LEAVES.items()}


def losses(mvp, out: Forward, key: Tensor, *, count, afs=True, gsf=True, contrastive=True):
    """All parts of the loss in closed form, the head's per-sample gradients included."""
    labels, unseen = mvp["labels"], mvp["seen"] == 0
    rows = torch.arange(len(labels), device=DEVICE)
    weight = out.head[0].detach()
    feature = out.feature.detach()
    compensation = 1 - F.cosine_similarity(weight[labels], feature) + mvp["margin"]
    scaled = out.feature / compensation[:, None] if afs else out.feature
    ce = F.cross_entropy(out.logits(scaled).masked_fill(unseen, float("-inf")), labels, reduction="none")

    with torch.no_grad():
        logits = out.logits(feature).masked_fill(unseen, float("-inf"))
        residual = (logits.softmax(1) - F.one_hot(labels, 10)) * out.scale  # (B, C)
        sample_grad = residual[rows, labels][:, None] * feature
        batch_grad = (residual.T @ feature / len(labels))[labels]
        ignore = 1 + F.cosine_similarity(feature, batch_grad)
    focal = (1 - mvp["alpha"]) + mvp["alpha"] * ignore ** mvp["gamma"] if gsf else torch.ones_like(ignore)

    mass = (count + 1)[out.selected] if contrastive else torch.ones_like(ignore)  # (B,)
    nearest = out.distance[rows, out.selected]  # (B,)
    if contrastive:
        unit = F.normalize(key, dim=-1)
        between = (1 - unit @ unit.T)[out.selected]  # (B, K)
        z, a = (nearest[:, None] / mass).exp().mean(), (between[:, None] / mass[:, None]).exp().mean()
        similarity = -torch.log(a / (z + a) + 1e-6)
        z, a = (nearest / mass).exp().mean(), (between / mass[:, None]).exp().mean()
        own = -torch.log(a / (z + a) + 1e-6)
    else:
        similarity = own = nearest.mean()
    return {
        "compensation": compensation,
        "ce_per_sample": ce,
        "sample_grad": sample_grad,
        "batch_grad": batch_grad,
        "ignore": ignore,
        "focal_weight": focal,
        "similarity_loss": similarity,
        "similarity_loss_per_sample_count": own,
        "loss": ce.mean() * focal.mean() + similarity,
        "loss_per_sample_weight": (focal * ce).mean() + similarity,
    }


def test_query_reads_the_class_token_of_the_unprompted_stream_at_any_depth(mvp):
    backbone = mvp.backbone()
    tokens = backbone.embed(mvp["images"])
    mvp.check(class_query(backbone, tokens, 3), "query")
    mvp.check(class_query(backbone, tokens, 4), "query_all_blocks")


@pytest.mark.parametrize("variant", ["pt", "pf"])
def test_training_logits_and_losses_in_closed_form(mvp, variant):
    leaves, count = leaves_of(mvp, variant), mvp["count"]
    out = forward(mvp, variant, leaves, mvp["images"], count=count)
    mvp.check(out.distance, "distance")
    mvp.check(out.selected, "selected")
    mvp.check(out.distance.argmin(1), "selected_unweighted")
    mvp.check(out.feature, f"{variant}.feature")
    mvp.check(out.scale, f"{variant}.instance_mask")
    logits = out.logits(out.feature).masked_fill(mvp["seen"] == 0, float("-inf"))
    mvp.check(logits, f"{variant}.logits")
    for name, value in losses(mvp, out, leaves["key"], count=count).items():
        mvp.check(value, f"{variant}.{name}")
    mvp.check(count + torch.bincount(out.selected, minlength=5), f"{variant}.count_after")


@pytest.mark.parametrize("variant", ["pt", "pf"])
def test_gradients_of_the_whole_loss(golden, variant):
    mvp = golden("mvp_forward")
    leaves, count = leaves_of(mvp, variant), mvp["count"]
    out = forward(mvp, variant, leaves, mvp["images"], count=count)
    loss = losses(mvp, out, leaves["key"], count=count)["loss"]
    prefix = f"{variant}.grad."
    assert {key.removeprefix(prefix) for key in mvp.keys(prefix)} == set(leaves)
    for name, grad in zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True):
        mvp.check(grad, prefix + name)


@pytest.mark.parametrize("variant", ["pt", "pf"])
@pytest.mark.parametrize("ablation", ["no_mask", "no_contrastive", "no_afs", "no_gsf", "last_layer", "plain"])
def test_each_part_can_be_left_out(mvp, variant, ablation):
    off = {"no_mask", "no_contrastive", "no_afs", "no_gsf"} if ablation == "plain" else {ablation}
    contrastive = "no_contrastive" not in off
    count = mvp["count"] if contrastive else torch.zeros_like(mvp["count"])
    leaves = leaves_of(mvp, variant)
    blocks = 4 if ablation == "last_layer" else 3
    use_mask = "no_mask" not in off
    out = forward(mvp, variant, leaves, mvp["images"], count=count, blocks=blocks, use_mask=use_mask)
    parts = losses(
        mvp,
        out,
        leaves["key"],
        count=count,
        afs="no_afs" not in off,
        gsf="no_gsf" not in off,
        contrastive=contrastive,
    )
    mvp.check(parts["loss"], f"{variant}.ablation.{ablation}.loss")


@pytest.mark.parametrize("variant", ["pt", "pf"])
def test_evaluation_logits_with_the_count_weighted_choice(mvp, variant):
    leaves = leaves_of(mvp, variant)
    out = forward(mvp, variant, leaves, mvp["eval_images"], count=mvp["count"])
    mvp.check(out.logits(out.feature), f"{variant}.eval_logits")
