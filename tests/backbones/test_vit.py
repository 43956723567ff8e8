"""FrozenViT against timm itself, and what it promises to the methods."""

from __future__ import annotations

import random

import numpy as np
import pytest
import timm
import torch
from older import skip_where_timm_fails
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from clprompt.backbones.attention import BlockPrompt, project
from clprompt.backbones.vit import FrozenViT
from clprompt.errors import BackboneError, ConfigError, ProtocolError
from clprompt.strategies.linear_probe import LinearProbeModel
from clprompt.testing.bench import tiny_model, tiny_vit

TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2}
MODELS: dict[str, tuple[str, dict]] = {
    "class_token": ("vit_tiny_patch16_224", TINY),
    "registers": ("vit_small_patch14_reg4_dinov2", TINY),
    "average_pooling": ("vit_base_patch16_gap_224", TINY),
    "average_pooling_with_class_token": ("vit_tiny_patch16_224", TINY | {"global_pool": "avg"}),
    "distilled": ("deit_tiny_distilled_patch16_224", TINY),
    "clip_pre_norm": ("vit_base_patch32_clip_224", TINY),
    "layer_scale": ("deit3_small_patch16_224", TINY),
    "qk_norm": ("vit_tiny_patch16_224", TINY | {"qk_norm": True}),
    "map_pooling": ("vit_base_patch16_siglip_224", TINY),
    "dynamic_size": ("vit_tiny_patch16_224", TINY | {"dynamic_img_size": True}),
    "one_channel": ("vit_tiny_patch16_224", TINY | {"in_chans": 1}),
    "eva02": ("eva02_base_patch14_448", TINY),
    "eva02_inner_norms": ("eva02_base_patch16_clip_224", TINY),
    "dinov3": ("vit_small_patch16_dinov3_qkvb", TINY),
    "dinov3_class_token": ("vit_small_patch16_dinov3", TINY | {"global_pool": "token"}),
    "rotary_mixed": ("vit_small_patch16_rope_mixed_ape_224", TINY),
    "rotary_map_pooling": ("vit_pe_core_base_patch16_224", TINY),
    "inner_norms": ("vit_tiny_patch16_224", TINY | {"scale_attn_norm": True, "scale_mlp_norm": True}),
}
every_model = pytest.mark.parametrize("kind", MODELS)


def randomise(module: nn.Module, seed: int = 0) -> None:
    """Weights larger than the initial ones, norms and scales included, so that mistakes show."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)


def build(kind: str, dtype: torch.dtype = torch.float64) -> FrozenViT:
    name, kwargs = MODELS[kind]
    backbone = FrozenViT(name, **kwargs)
    randomise(backbone)
    backbone = backbone.to(dtype)
    skip_where_timm_fails(backbone.vit, images_for(backbone))
    return backbone


def images_for(backbone: FrozenViT, batch: int = 3, size: tuple[int, int] | None = None) -> Tensor:
    shape = (batch, backbone.in_chans, *(size or backbone.image_size))
    dtype = next(backbone.parameters()).dtype
    return torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)


def timm_itself(backbone: FrozenViT, kind: str) -> nn.Module:
    name, kwargs = MODELS[kind]
    model = timm.create_model(name, num_classes=0, **kwargs).to(next(backbone.parameters()).dtype).eval()
    model.load_state_dict(backbone.vit.state_dict())
    return model


# ---------------------------------------------------------------------- equal to timm


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@every_model
def test_features_equal_timm_s_own(kind, dtype, atol):
    backbone = build(kind, dtype)
    images = images_for(backbone)
    with torch.no_grad():
        expected = timm_itself(backbone, kind)(images)
    assert expected.shape == (3, backbone.width)
    for trim in (True, False):
        backbone.trim_last_block = trim
        torch.testing.assert_close(backbone.features(images), expected, rtol=0, atol=atol)


@pytest.mark.parametrize("kind", ["dynamic_size", "dinov3"])
def test_features_equal_timm_s_own_at_another_image_size(kind):
    backbone = build(kind)
    images = images_for(backbone, size=(40, 24))
    with torch.no_grad():
        expected = timm_itself(backbone, kind)(images)
    torch.testing.assert_close(backbone.features(images), expected, rtol=0, atol=1e-10)


@every_model
def test_attributes_describe_the_model(kind):
    backbone = build(kind)
    tokens = backbone.embed(images_for(backbone))
    assert tokens.shape == (3, backbone.num_tokens, backbone.width)
    assert (backbone.depth, backbone.width, backbone.num_heads) == (3, 32, 2)
    assert backbone.image_size == (32, 32)
    assert backbone.num_tokens - backbone.num_prefix_tokens == 16
    assert len(backbone.inputs.mean) == len(backbone.inputs.std) == backbone.in_chans
    assert backbone.features(tokens).shape == (3, 32)


# ---------------------------------------------------------------------- running in parts


@every_model
def test_running_in_parts_equals_running_at_once(kind):
    backbone = build(kind)
    images = images_for(backbone)
    whole = backbone.run(backbone.embed(images))
    for first in range(backbone.depth + 1):
        stem = backbone.stem(images, first)
        torch.testing.assert_close(backbone.run(stem, blocks=slice(first, None)), whole, rtol=0, atol=1e-10)
        torch.testing.assert_close(
            backbone.features(stem, start=first), backbone.features(images), rtol=0, atol=1e-10
        )
        rows = backbone.run(stem, blocks=slice(first, None), rows=slice(1, 3))
        torch.testing.assert_close(rows, whole[:, 1:3], rtol=0, atol=1e-10)


@every_model
def test_walking_equals_running(kind):
    backbone = build(kind)
    images = images_for(backbone)
    steps = list(backbone.walk(images))
    assert [step[0] for step in steps] == list(backbone.blocks)
    for index, (block, x, normed, keys, values) in enumerate(steps):
        torch.testing.assert_close(x, backbone.stem(images, index), rtol=0, atol=1e-10)
        torch.testing.assert_close(normed, block.norm1(x))
        torch.testing.assert_close(keys, project(block.attn, normed, "k"))
        torch.testing.assert_close(values, project(block.attn, normed, "v"))


@pytest.mark.parametrize("prompt_kind", ["prefix", "fresh", "carried"])
@every_model
def test_trimming_the_last_block_changes_nothing(kind, prompt_kind):
    backbone = build(kind)
    tokens = backbone.embed(images_for(backbone))
    prompt = torch.randn(3, 2, 32, generator=torch.Generator().manual_seed(2)).double().requires_grad_()
    values = prompt.flip(0) if prompt_kind == "prefix" else None
    blocks = (0,) if prompt_kind == "carried" else (1, 2)
    outputs = []
    for trim in (True, False):
        backbone.trim_last_block = trim
        feature = backbone.prompted(
            tokens, lambda block, x: BlockPrompt(prompt_kind, prompt, values) if block in blocks else None
        )
        outputs.append((feature.detach(), torch.autograd.grad(feature.square().sum(), prompt)[0]))
    for trimmed, full in zip(*outputs, strict=True):
        torch.testing.assert_close(trimmed, full, rtol=0, atol=1e-10)
    assert (outputs[0][0] - backbone.features(tokens)).abs().max() > 1e-3


@pytest.mark.parametrize("kind", ["average_pooling", "map_pooling", "class_token"])
def test_pooling_leaves_carried_prompts_out(kind):
    backbone = build(kind)
    tokens = backbone.embed(images_for(backbone))
    carried = BlockPrompt("carried", torch.randn(1, 5, 32).double())

    def prompts(block: int, x: Tensor) -> BlockPrompt | None:
        return carried if block == 0 else None

    stream = backbone.run(tokens, prompts)
    assert stream.shape[1] == backbone.num_tokens + 5
    expected = backbone.pool(stream[:, : backbone.num_tokens])
    torch.testing.assert_close(backbone.prompted(tokens, prompts), expected, rtol=0, atol=1e-10)


def test_prompts_are_asked_for_with_the_stream_that_enters_each_block():
    backbone = build("class_token")
    images = images_for(backbone)
    asked = []

    def prompts(block: int, x: Tensor) -> list[BlockPrompt]:
        asked.append(block)
        torch.testing.assert_close(x, backbone.stem(images, block), rtol=0, atol=1e-10)
        return []

    backbone.prompted(backbone.stem(images, 1), prompts, start=1)
    assert asked == [1, 2]


def test_no_grad_is_kept_for_the_query_and_lifted_for_the_prompted_pass():
    backbone = build("class_token")
    pixels = images_for(backbone).requires_grad_()
    assert not backbone.features(pixels).requires_grad
    assert not backbone.stem(pixels, 1).requires_grad
    feature = backbone.prompted(backbone.embed(pixels))
    torch.testing.assert_close(feature, backbone.features(pixels), rtol=0, atol=1e-10)
    assert torch.autograd.grad(feature.sum(), pixels)[0].any()


def test_patches_are_linear_and_positions_are_added_after_them():
    for kind in MODELS:
        backbone = build(kind)
        images, other = images_for(backbone), images_for(backbone).flip(0)
        assert backbone.linear_patches
        zero = backbone.patches(torch.zeros_like(images))
        total = backbone.patches(images) + backbone.patches(other) - zero
        torch.testing.assert_close(backbone.patches(images + other), total, rtol=0, atol=1e-10)
        torch.testing.assert_close(backbone.position(backbone.patches(images)), backbone.embed(images))
    vit = VisionTransformer(num_classes=0, embed_norm_layer=nn.LayerNorm, **TINY)
    assert not FrozenViT(vit).linear_patches


def test_class_position_is_what_the_class_token_got():
    backbone = build("class_token")
    expected = backbone.embed(images_for(backbone))[0, 0] - backbone.vit.cls_token[0, 0]
    torch.testing.assert_close(backbone.class_position(), expected)
    # no class token; positions on patches only; no positions in the stream
    for kind in ("average_pooling", "layer_scale", "dinov3"):
        assert torch.equal(build(kind).class_position(), torch.zeros(32, dtype=torch.float64))


def test_layers_are_checked_by_the_name_of_their_argument():
    backbone = build("class_token")
    assert backbone.check_layers("e_layers", [0, 2]) == (0, 2)
    with pytest.raises(ConfigError, match=r"e_layers: block 3 is not among 0\.\.2"):
        backbone.check_layers("e_layers", (1, 3))
    with pytest.raises(ConfigError, match="g_layers names a block twice"):
        backbone.check_layers("g_layers", (1, 1))


# ---------------------------------------------------------------------- frozen


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_small_patch16_dinov3"])
def test_backbone_is_frozen_and_stays_in_eval_mode(name):
    dropout = {"proj_drop_rate": 0.3, "drop_path_rate": 0.3, "pos_drop_rate": 0.3, "patch_drop_rate": 0.3}
    backbone = FrozenViT(name, **TINY, **dropout)
    randomise(backbone)
    model = nn.ModuleDict({"backbone": backbone, "head": nn.Linear(32, 2)}).train()
    assert model.training
    assert model["head"].training
    assert not any(module.training for module in backbone.modules())
    assert not any(parameter.requires_grad for parameter in backbone.parameters())
    images = images_for(backbone)
    assert torch.equal(backbone.features(images), backbone.features(images))


@pytest.mark.parametrize("kind", ["class_token", "rotary_mixed"])
def test_weights_are_bit_identical_after_training_prompts(kind):
    backbone = build(kind, torch.float32)
    before = backbone.fingerprint()
    prompt = nn.Parameter(torch.zeros(1, 2, 32))
    optimizer = torch.optim.AdamW([prompt, *backbone.parameters()], lr=0.1, weight_decay=0.1)
    for _ in range(2):
        tokens = backbone.embed(images_for(backbone))
        backbone.prompted(tokens, lambda block, x: BlockPrompt("fresh", prompt)).sum().backward()
        optimizer.step()
    assert prompt.any()
    assert all(parameter.grad is None for parameter in backbone.parameters())
    assert backbone.fingerprint() == before


def test_fingerprint_tells_weights_apart():
    one, other = build("class_token"), build("class_token")
    assert one.fingerprint() == other.fingerprint()
    with torch.no_grad():
        other.vit.blocks[1].mlp.fc1.bias[0] += 1e-12
    assert one.fingerprint() != other.fingerprint()


def test_building_draws_nothing_from_the_global_random_state():
    torch.manual_seed(7)
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    first = FrozenViT("vit_tiny_patch16_224", **TINY)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.array_equal(np.random.get_state()[1], states[1])  # noqa: NPY002
    assert random.getstate() == states[2]
    torch.manual_seed(8)  # and the random weights of an untrained backbone are the same every time
    assert FrozenViT("vit_tiny_patch16_224", **TINY).fingerprint() == first.fingerprint()


def test_pixels_may_stay_in_the_unit_interval():
    assert FrozenViT("vit_letters").inputs.mean == (0.5,)
    unit = FrozenViT("vit_letters", normalise="unit")
    assert (unit.inputs.mean, unit.inputs.std) == ((0.0,), (1.0,))
    for odd in ("imagenet", "", "a\nb", 5, True, None, [], {"mean": 0.5}):
        with pytest.raises(
            BackboneError, match="normalise must be one of backbone, unit, dataset, got "
        ) as told:
            FrozenViT("vit_letters", normalise=odd)
        assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda images: images[0], r"a tensor \[B, C, H, W\], got the shape \[3, 16, 16\]"),
        (lambda images: images.tolist(), r"a tensor \[B, C, H, W\], got list"),
        (lambda images: images[..., :8], r"\[B, 3, 16, 16\], as backbone.inputs says, got \[2, 3, 16, 8\]"),
        (lambda images: images[:, :1], r"\[B, 3, 16, 16\], .* got \[2, 1, 16, 16\]"),
        (
            lambda images: images.to(torch.uint8),
            r"torch.float32, .* got torch.uint8; model.placed\(images\) normalises bytes",
        ),
        (lambda images: images.double(), r"torch.float32, normalised as .* got torch.float64$"),
    ],
)
def test_what_is_no_batch_of_the_backbones_images_is_one_line(change, says):
    model = tiny_model(LinearProbeModel, tiny_vit(depth=1))
    model.begin_experience([0, 1])
    model.observe(torch.tensor([0, 1]))
    images, targets = torch.zeros(2, 3, 16, 16), torch.tensor([0, 1])
    for call in (model, lambda wrong: model.training_loss(wrong, targets)):
        with pytest.raises(ProtocolError, match=r"\Aimages must be " + says):
            call(change(images))
    assert model(images).shape == (2, 2)
    with torch.autocast("cpu", torch.bfloat16):
        assert model(images.bfloat16()).shape == (2, 2)


def test_an_empty_batch_has_logits_without_a_row():
    model = tiny_model(LinearProbeModel, tiny_vit(depth=1)).eval()
    assert model(torch.zeros(2, 3, 16, 16)).shape == (2, 0)
    model.observe(torch.tensor([0, 2]))
    empty = model(torch.zeros(0, 3, 16, 16))
    assert (empty.shape, empty.dtype) == ((0, 3), torch.float32)


def test_a_backbone_of_any_image_size_takes_any():
    backbone = FrozenViT("vit_tiny_patch16_224", **TINY, dynamic_img_size=True)
    height, width = backbone.image_size
    backbone.check_images(torch.zeros(1, 3, 2 * height, width))
    with pytest.raises(ProtocolError, match="images must be"):
        backbone.check_images(torch.zeros(1, 1, height, width))
