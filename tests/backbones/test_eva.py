"""timm's Eva under prompts: rotary positions and attention written out, for every place of a prompt."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import pytest
import timm
import torch
from older import made_by_timm, skip_where_timm_fails
from timm.models.eva import Eva
from torch import Tensor

from clprompt.backbones.attention import BlockPrompt
from clprompt.backbones.vit import FrozenViT
from clprompt.errors import BackboneError
from clprompt.strategies.vpt_deep import VPTDeepModel
from clprompt.training import optim
from clprompt.training.settings import Training
from clprompt.training.steps import receive, train_step

B, P, D, HEADS = 2, 3, 16, 2
SIZE = {"img_size": (16, 24), "patch_size": 8, "embed_dim": D, "depth": 2, "num_heads": HEADS}
ROTARY: dict[str, Any] = {"use_rot_pos_emb": True, "num_classes": 0}
DINOV3 = ROTARY | {"use_abs_pos_emb": False, "rope_type": "dinov3", "rope_rotate_half": True}
STYLES: dict[str, dict[str, Any]] = {
    "DINOv3": DINOV3 | {"num_reg_tokens": 2, "init_values": 1.0, "qkv_bias": False, "use_fc_norm": False},
    "EVA-02": ROTARY
    | {"ref_feat_shape": (4, 4), "qkv_fused": False, "swiglu_mlp": True, "scale_mlp": True}
    | {"scale_attn_inner": True, "global_pool": "token"},
    "mixed": ROTARY
    | {"rope_type": "mixed", "attn_type": "rope", "no_embed_class": True, "rope_grid_indexing": "xy"},
    "no prefix": ROTARY
    | {"class_token": False, "attn_type": "rope", "qkv_fused": False, "rope_grid_offset": 1.0},
    "mrope, gate, q/k norm": DINOV3 | {"rope_type": "mrope", "qk_norm": True, "gated_attn": True},
    "no rotary positions": {"num_classes": 0},
}
KINDS = ["prefix", "projected", "fresh", "carried"]
every_style = pytest.mark.parametrize("style", STYLES)
every_kind = pytest.mark.parametrize("kind", KINDS)


def randn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@cache
def build(style: str) -> FrozenViT:
    arguments = dict(STYLES[style])
    gated = arguments.pop("gated_attn", False)
    vit = made_by_timm(Eva, **SIZE, **arguments)
    if gated:  # timm has it in the block, and not among the model's arguments
        for block in vit.blocks:
            block.attn.gate = torch.nn.Linear(D, D)
    backbone = FrozenViT(vit.double())
    for number, parameter in enumerate(backbone.parameters()):
        parameter.copy_(randn(*parameter.shape, seed=number) * 0.4)
    skip_where_timm_fails(backbone.vit, IMAGES)
    return backbone


IMAGES = randn(B, 3, 16, 24, seed=100)


def make_prompt(kind: str, seed: int = 1, **options: Any) -> BlockPrompt:
    values = randn(B, P, D, seed=seed + 1) if kind in ("prefix", "projected") else None
    return BlockPrompt(kind, randn(B, P, D, seed=seed), values, **options)


# ---------------------------------------------------------------------- the oracle


def part_of(attn: Any, x: Tensor, part: str) -> Tensor:
    """Rows [n, D] through the query, key or value layer."""
    if attn.qkv is None:
        layer = getattr(attn, f"{part}_proj")
        return x @ layer.weight.T + (0 if layer.bias is None else layer.bias)
    number = "qkv".index(part)
    out = x @ attn.qkv.weight[number * D : (number + 1) * D].T
    if attn.qkv.bias is not None:
        return out + attn.qkv.bias[number * D : (number + 1) * D]
    bias = getattr(attn, f"{part}_bias", None)
    return out if bias is None else out + bias


def turned(vit: Any, block: int, head: int, rows: Tensor) -> Tensor:
    """The patches among one head's rows [R, d] turned pair by pair, all other rows as they are."""
    if vit.rope is None:
        return rows
    half = vit.blocks[block].attn.rotate_half
    shape = () if hasattr(vit.rope, "feat_shape") else (vit.patch_embed.grid_size,)
    embedding = vit.rope.get_embed(*shape)
    if embedding.ndim == 4:  # mixed
        embedding = embedding[block, head]
    d = rows.shape[1]
    out = list(rows)
    for patch, row in enumerate(range(vit.num_prefix_tokens, vit.num_prefix_tokens + len(embedding))):
        pairs = [(i, i + d // 2) if half else (2 * i, 2 * i + 1) for i in range(d // 2)]
        numbers: list[Any] = [None] * d
        for a, b in pairs:
            sine, cosine = embedding[patch, a], embedding[patch, d + a]
            numbers[a] = rows[row, a] * cosine - rows[row, b] * sine
            numbers[b] = rows[row, b] * cosine + rows[row, a] * sine
        out[row] = torch.stack(numbers)
    return torch.stack(out)


def one_block(vit: Any, block: int, x: Tensor, prompts: list[BlockPrompt]) -> Tensor:
    """A block over streams [B, N, D]: one image and one head at a time, softmax written out."""
    layers = vit.blocks[block]
    attn, d = layers.attn, D // HEADS
    outputs = []
    for b, own in enumerate(x):
        joining = [p.tokens[b % len(p.tokens)] for p in prompts if p.kind == "carried"]
        stream = torch.cat([own, *joining])
        h = layers.norm1(stream)
        q, k, v = (part_of(attn, h, part) for part in "qkv")
        heads = []
        for head in range(HEADS):
            of = slice(head * d, (head + 1) * d)
            query = turned(vit, block, head, attn.q_norm(q[:, of]))
            keys = [turned(vit, block, head, attn.k_norm(k[:, of]))]
            values, sees = [v[:, of]], [torch.ones(len(stream), len(stream), dtype=torch.bool)]
            for p in prompts:
                if p.kind == "carried":
                    continue
                tokens = p.tokens[b % len(p.tokens)]
                if p.kind == "prefix":
                    keys.append(tokens[:, of])
                    values.append(p.values[b][:, of])
                else:
                    source = layers.norm1(tokens) if p.kind == "fresh" else tokens
                    keys.append(attn.k_norm(part_of(attn, source, "k")[:, of]))
                    values.append(part_of(attn, source if p.kind == "fresh" else p.values[b], "v")[:, of])
                seen = torch.zeros(len(stream), len(tokens), dtype=torch.bool)
                rows = p.rows or slice(None)
                seen[rows] = True if p.mask is None else p.mask[b % len(p.mask), 0]
                sees.append(seen)
            masses = (query @ torch.cat(keys).T / d**0.5).exp() * torch.cat(sees, dim=1)
            heads.append(masses / masses.sum(1, keepdim=True) @ torch.cat(values))
        attended = attn.norm(torch.cat(heads, dim=1))
        if getattr(attn, "gate", None) is not None:  # older timm has none
            attended = attended * attn.gate(h).sigmoid()
        attended = attn.proj(attended)
        stream = stream + (attended if layers.gamma_1 is None else layers.gamma_1 * attended)
        out = layers.mlp(layers.norm2(stream))
        outputs.append(stream + (out if layers.gamma_2 is None else layers.gamma_2 * out))
    return torch.stack(outputs)


def exact(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


@every_style
def test_without_prompts_the_oracle_is_timm_itself(style):
    backbone = build(style)
    vit: Any = backbone.vit
    x = backbone.embed(IMAGES)
    for block in range(2):
        x = one_block(vit, block, x, [])
    expected = vit.forward_features(IMAGES)
    exact(vit.norm(x), expected)
    exact(backbone.norm(backbone.run(backbone.embed(IMAGES))), expected)


@every_kind
@every_style
def test_each_kind_in_each_block_equals_the_explicit_softmax(style, kind):
    backbone = build(style)
    tokens = backbone.embed(IMAGES)
    for at in ((0,), (1,), (0, 1)):
        given = {block: [make_prompt(kind, seed=10 * block + 1)] for block in at}
        expected = tokens
        for block in range(2):
            expected = one_block(backbone.vit, block, expected, given.get(block, []))
        found = backbone.run(tokens, lambda block, x, given=given: given.get(block))
        exact(found, expected)
        looked = backbone.spelled_out(0, tokens, given.get(0, []))
        exact(looked.finish(looked.weights), one_block(backbone.vit, 0, tokens, given.get(0, [])))
        for rows in (slice(0, 1), slice(1, 4), slice(4, None)):  # some patches, and none
            exact(backbone.run(tokens, lambda block, x: given.get(block), rows=rows), expected[:, rows])  # noqa: B023


@pytest.mark.parametrize("style", ["DINOv3", "mixed"])
def test_prompts_of_all_kinds_with_masks_and_rows_share_one_softmax(style):
    backbone = build(style)
    tokens = backbone.embed(IMAGES)
    count = tokens.shape[1]
    mask = randn(B, 1, count + P, P, seed=7) > 0
    prompts = [
        make_prompt("carried", seed=1),
        make_prompt("prefix", seed=3, mask=mask),
        make_prompt("fresh", seed=5, rows=slice(0, 4)),
        make_prompt("projected", seed=7, rows=slice(2, 6), mask=mask[:, :, 2:6]),
    ]
    found = backbone.run(tokens, lambda block, x: prompts, blocks=slice(0, 1))
    exact(found, one_block(backbone.vit, 0, tokens, prompts))


@every_kind
@every_style
def test_prompts_that_nobody_sees_leave_timm_s_features(style, kind):
    backbone = build(style)
    vit: Any = backbone.vit
    tokens = backbone.embed(IMAGES)

    def prompts(block: int, x: Tensor) -> BlockPrompt | None:
        if kind == "carried":  # those that joined before stay hidden, too
            rows = x.shape[1] + (P if block == 0 else 0)
            shown = torch.zeros(1, 1, rows, P, dtype=torch.bool)
            return make_prompt(kind, mask=shown) if block == 0 else BlockPrompt(kind, None, mask=shown)
        return make_prompt(kind, mask=torch.zeros(1, 1, x.shape[1], P, dtype=torch.bool))

    expected = vit.forward_head(vit.forward_features(IMAGES), pre_logits=True)
    exact(backbone.prompted(tokens, prompts), expected)


# ---------------------------------------------------------------------- positions


def test_rotary_positions_are_those_of_the_images_embedded_last():
    backbone = FrozenViT("vit_small_patch16_dinov3", **SIZE).double()
    sizes = ((16, 24), (24, 16), (32, 32), (16, 24))
    for high, wide in sizes:
        images = randn(B, 3, high, wide, seed=high)
        expected = backbone.vit.forward_head(backbone.vit.forward_features(images), pre_logits=True)
        exact(backbone.features(images), expected)
        face = backbone.with_inputs(backbone.inputs)  # a second face of the same weights
        exact(face.prompted(backbone.embed(images)), expected)


def test_tokens_from_elsewhere_have_the_positions_of_the_model_s_own_image_size():
    for dynamic in (True, False):
        first = FrozenViT("vit_small_patch16_dinov3", **SIZE, dynamic_img_size=dynamic).double()
        second = copy.deepcopy(first)
        expected = first.features(IMAGES)
        second.family = type(second.family)(second.vit)
        exact(second.features(first.embed(IMAGES)), expected)


def test_a_stream_too_short_for_the_images_embedded_last_is_refused_in_one_line():
    backbone = build("DINOv3")
    tokens = backbone.embed(IMAGES)
    with pytest.raises(BackboneError, match="8 tokens are no stream of the images embedded last") as told:
        backbone.run(tokens[:, :8])
    assert "these have 6 patches behind 3 tokens" in str(told.value)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("style", ["DINOv3", "EVA-02", "mixed"])
def test_in_sixteen_bits_features_are_timm_s(style, dtype):
    backbone = copy.deepcopy(build(style)).to(dtype)
    vit: Any = backbone.vit
    images = IMAGES.to(dtype)
    skip_where_timm_fails(vit, images)
    with torch.no_grad():
        expected = vit.forward_head(vit.forward_features(images), pre_logits=True)
    found = backbone.features(images)
    assert found.dtype is dtype
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0.05)
    single = copy.deepcopy(build(style)).float()
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        expected = single.vit.forward_head(single.vit.forward_features(IMAGES.float()), pre_logits=True)
        torch.testing.assert_close(single.features(IMAGES.float()), expected, rtol=0.05, atol=0.05)


# ---------------------------------------------------------------------- one step of a method


@pytest.mark.parametrize("style", ["DINOv3", "EVA-02"])
def test_a_step_of_vpt_deep_is_that_of_the_written_out_form(style):
    backbone = build(style)
    vit: Any = backbone.vit
    model = VPTDeepModel(backbone, length=P).double()
    training = Training(optimizer="sgd", lr=0.1)
    model.begin_experience([0, 1])
    targets = torch.tensor([1, 0])
    optimizer = optim.build(model, training)
    receive(model, optimizer, targets)
    with torch.no_grad():
        model.head.weight.copy_(randn(*model.head.weight.shape, seed=3))
    named = model.trainable()
    own = {name: value.detach().clone().requires_grad_() for name, value in named.items()}
    assert {"prompts", "head.weight", "head.bias"} == own.keys()

    x = backbone.embed(IMAGES)
    for block in range(2):
        x = one_block(vit, block, x, [BlockPrompt("fresh", own["prompts"][block][None])])
    rows = vit.norm(x)
    features = rows[:, vit.num_prefix_tokens :].mean(1) if style == "DINOv3" else rows[:, 0]
    logits = (features @ own["head.weight"].T + own["head.bias"])[:, :2]
    loss = -logits.log_softmax(1)[torch.arange(B), targets].mean()
    gradients = dict(zip(own, torch.autograd.grad(loss, list(own.values())), strict=True))

    model.train()
    exact(model.training_loss(IMAGES, targets).loss.detach(), loss.detach())
    train_step(model, optimizer, IMAGES, targets)
    for name, value in model.trainable().items():
        assert gradients[name].abs().max() > 1e-3, name
        exact(value.detach(), own[name].detach() - 0.1 * gradients[name])


# ---------------------------------------------------------------------- weights


def released(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """timm's names of DINOv3 in those of its release, with biases of keys and what training alone needs."""
    theirs = {
        "mask_token": torch.zeros(1, D),
        "rope_embed.periods": torch.ones(2),
        "local_cls_norm.weight": torch.ones(D),
    }
    for key, value in state.items():
        if key.endswith("q_bias"):
            biases = [value, torch.full_like(value, 0.7), state[key.replace("q_bias", "v_bias")]]
            theirs[key.replace("q_bias", "qkv.bias")] = torch.cat(biases)
            theirs[key.replace("q_bias", "qkv.bias_mask")] = torch.zeros(3 * D)
        elif not key.endswith("v_bias"):
            key = key.replace("reg_token", "storage_tokens")
            for number in "12":
                key = key.replace(f"gamma_{number}", f"ls{number}.gamma")
            theirs[_gate(key, ("mlp.w1", "mlp.w2", "mlp.w3"))] = value
    return theirs


def hugging_face(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """timm's names of DINOv3 in those of Hugging Face's."""
    theirs = {"embeddings.mask_token": torch.zeros(1, 1, D)}
    for key, value in state.items():
        words = key.split(".")
        if words[0] == "patch_embed":
            theirs[f"embeddings.patch_embeddings.{words[-1]}"] = value
        elif words[0] != "blocks":
            name = {"cls_token": "embeddings.cls_token", "reg_token": "embeddings.register_tokens"}.get(
                key, key
            )
            theirs[name] = value
        elif key.endswith("attn.qkv.weight"):
            for part, rows in zip("qkv", value.chunk(3), strict=True):
                theirs[f"layer.{words[1]}.attention.{part}_proj.weight"] = rows.clone()
        else:
            key = key.replace("blocks.", "layer.").replace(".attn.proj.", ".attention.o_proj.")
            for part in "qv":
                key = key.replace(f".attn.{part}_bias", f".attention.{part}_proj.bias")
            for number in "12":
                key = key.replace(f"gamma_{number}", f"layer_scale{number}.lambda1")
            key = _gate(key, ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"))
            theirs[key.replace("mlp.fc1.", "mlp.up_proj.").replace("mlp.fc2.", "mlp.down_proj.")] = value
    return theirs


def _gate(key: str, names: tuple[str, str, str]) -> str:
    if "mlp.fc1_" not in key and not key.endswith(("mlp.fc2.weight", "mlp.fc2.bias")):
        return key
    return key.replace("mlp.fc1_g", names[0]).replace("mlp.fc1_x", names[1]).replace("mlp.fc2", names[2])


@cache
def state_of(name: str) -> dict[str, Tensor]:
    shapes = timm.create_model(name, num_classes=0, **SIZE).state_dict()
    return {
        key: randn(*value.shape, seed=number).float() for number, (key, value) in enumerate(shapes.items())
    }


@pytest.mark.parametrize("layout", [released, hugging_face])
@pytest.mark.parametrize("name", ["vit_small_patch16_dinov3_qkvb", "vit_huge_plus_patch16_dinov3_qkvb"])
def test_dinov3_is_read_in_the_names_of_its_release_and_of_hugging_face(tmp_path, name, layout, capsys):
    state = state_of(name)
    if layout is released and "huge" not in name:
        torch.save({"teacher": layout(state)}, tmp_path / "w.pth")
    else:
        torch.save(layout(state), tmp_path / "w.pth")
    found = FrozenViT(name, checkpoint=tmp_path / "w.pth", **SIZE).vit.state_dict()
    assert found.keys() == state.keys()
    assert all(torch.equal(found[key], state[key]) for key in state)
    assert not capsys.readouterr().out


@pytest.mark.parametrize("layout", [released, hugging_face])
def test_biases_for_a_model_without_are_left_out_if_they_are_zeros(tmp_path, layout, capsys):
    state = state_of("vit_small_patch16_dinov3_qkvb")
    zeros = {key: value * 0 if key.endswith("_bias") else value for key, value in state.items()}
    torch.save(layout(zeros), tmp_path / "w.pth")
    found = FrozenViT("vit_small_patch16_dinov3", checkpoint=tmp_path / "w.pth", **SIZE).vit.state_dict()
    assert all(torch.equal(found[key], state[key]) for key in found)
    torch.save(layout(state), tmp_path / "w.pth")
    with pytest.raises(BackboneError, match=r"blocks\.0\.attn\.q_bias is not part of the model") as told:
        FrozenViT("vit_small_patch16_dinov3", checkpoint=tmp_path / "w.pth", **SIZE)
    assert "\n" not in str(told.value)
    assert not capsys.readouterr().out


def test_eva02_is_read_in_the_names_of_its_release(tmp_path):
    name = "eva02_base_patch14_448"
    state = state_of(name)
    theirs = {"rope.freqs_cos": torch.ones(2), "head.weight": torch.ones(2, D), "head.bias": torch.ones(2)}
    for key, value in state.items():
        key = _gate(key, ("mlp.w1", "mlp.w2", "mlp.w3")).replace("mlp.norm", "mlp.ffn_ln")
        theirs[key.replace("q_proj.bias", "q_bias").replace("v_proj.bias", "v_bias")] = value
    torch.save({"model": theirs}, tmp_path / "w.pth")
    found = FrozenViT(name, checkpoint=tmp_path / "w.pth", **SIZE).vit.state_dict()
    assert all(torch.equal(found[key], state[key]) for key in state)


def test_positions_of_eva02_are_resampled_with_a_notice(tmp_path):
    name = "eva02_tiny_patch14_224"
    small = SIZE | {"img_size": 32}
    torch.save(timm.create_model(name, num_classes=0, **small).state_dict(), tmp_path / "w.pth")
    with pytest.warns(
        UserWarning, match=r"positions of 4x4 patches \(images of 32 pixels\) are resampled to 6x6"
    ):
        larger = FrozenViT(name, checkpoint=tmp_path / "w.pth", **SIZE | {"img_size": 48})
    assert larger.features(torch.rand(1, 3, 48, 48)).isfinite().all()


def test_a_jax_archive_is_refused_for_an_eva(tmp_path):
    import numpy as np

    np.savez(tmp_path / "w.npz", **{"embedding/kernel": np.zeros((8, 8, 3, D), dtype=np.float32)})
    with pytest.raises(BackboneError, match="it is a JAX archive of a vision transformer, the model an Eva"):
        FrozenViT("vit_small_patch16_dinov3", checkpoint=tmp_path / "w.npz", **SIZE)
