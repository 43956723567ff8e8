"""Every vision transformer that timm registers: FrozenViT computes timm's features, or refuses it by name."""

from __future__ import annotations

import fnmatch
from functools import cache
from typing import Any

import pytest
import timm
import torch
from timm.layers import PatchEmbed
from timm.layers.attention import Attention, AttentionRope
from timm.models.eva import Eva, EvaAttention, EvaBlock
from timm.models.vision_transformer import Block, VisionTransformer
from torch import nn

from clprompt.backbones.vit import FrozenViT
from clprompt.errors import BackboneError

#: Every size of a family, not one of them: the giant of a family may have another MLP than the small one.
PATTERNS = ("vit_*", "deit*", "flexivit*", "beit*", "eva*", "samvit*", "naflexvit*", "aimv2*", "test_vit*")
#: Convolutional stems that no argument shrinks; smaller siblings stand for them.
LARGE = ("vit_base_r26_*", "vit_*_r50_*", "vit_base_resnet*", "vit_*resnet50*", "vit_small_r26_s32_384")
#: Nothing here is a plain vision transformer, whatever it is called.
OTHERS: dict[str, dict[str, Any]] = {
    "cait_xxs24_224": {"depth": 1, "embed_dim": 32, "num_heads": 2},
    "convit_tiny": {"depth": 1, "embed_dim": 8},
    "convnext_atto": {"depths": (1, 1, 1, 1), "dims": (8, 8, 8, 8)},
    "crossvit_tiny_240": {"depth": ((1, 1, 0),) * 3},
    "deepseek_vit_412m": {"depth": 1, "embed_dim": 32, "num_heads": 2},
    "levit_128s": {},
    "pit_ti_224": {},
    "resnet10t": {},
    "swin_tiny_patch4_window7_224": {"depths": (1, 1, 1, 1), "embed_dim": 12},
    "tiny_vit_5m_224": {"depths": (1, 1, 1, 1)},
    "vitamin_small_224": {"depth": 1},
    "xcit_nano_12_p16_224": {"depth": 1},
}
#: What both families consist of, by one name each; none of these may ever be refused.
PLAIN = {
    "class token": "vit_tiny_patch16_224",
    "no class token, average pooling": "vit_base_patch16_gap_224",
    "registers": "vit_small_patch14_reg4_dinov2",
    "registers and average pooling": "vit_medium_patch16_reg4_gap_256",
    "layer scale": "vit_small_patch14_dinov2",
    "gated MLP": "vit_giant_patch14_dinov2",
    "distillation token": "deit_tiny_distilled_patch16_224",
    "positions on patches only": "deit3_small_patch16_224",
    "q/k norm": "vit_intern300m_patch14_448",
    "pre-norm, bias-free stem": "vit_base_patch32_clip_224",
    "quick GELU": "vit_base_patch32_clip_quickgelu_224",
    "attention pooling": "vit_base_patch16_siglip_224",
    "attention pooling beside registers": "vit_so150m_patch16_reg4_map_256",
    "average pooling, final norm after it": "eva_large_patch14_196",
    "any patch size": "flexivit_small",
    "norms inside attention and MLP": "beit3_base_patch16_224",
    "RMS norm, no bias": "aimv2_large_patch14_224",
    "EVA": "eva_giant_patch14_224",
    "EVA-02, average pooling": "eva02_tiny_patch14_224",
    "EVA-02, sub-norm in the MLP": "eva02_base_patch14_448",
    "EVA-02, sub-norms, class token": "eva02_large_patch14_clip_224",
    "DINOv3": "vit_small_patch16_dinov3",
    "DINOv3 with bias": "vit_base_patch16_dinov3_qkvb",
    "DINOv3, gated MLP": "vit_huge_plus_patch16_dinov3",
    "rotary positions alone": "vit_small_patch16_rope_224",
    "rotary positions beside others": "vit_base_patch16_rope_ape_224",
    "rotary positions, mixed": "vit_small_patch16_rope_mixed_224",
    "rotary positions, registers, no class token": "vit_betwixt_patch16_rope_reg4_gap_256",
    "rotary positions, attention pooling": "vit_pe_core_base_patch16_224",
    "rotary positions, no prefix": "vit_pe_spatial_gigantic_patch14_448",
}


def names() -> list[str]:
    found = {name for pattern in PATTERNS for name in timm.list_models(pattern)}
    found = {name for name in found if not any(fnmatch.fnmatch(name, pattern) for pattern in LARGE)}
    return sorted(found | {name for name in OTHERS if timm.is_model(name)})


def shrunk(name: str) -> dict[str, Any]:
    """Arguments under which a model is built in milliseconds: two blocks of width 32 over 4 x 6 patches."""
    if name in OTHERS:
        return OTHERS[name]
    kwargs = {"img_size": (32, 48), "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
    if name.startswith("naflexvit"):
        del kwargs["img_size"]  # these take images of any size
    if any(stem in name for stem in ("resnet", "_r_", "_r26_", "_mci_")):
        del kwargs["patch_size"]  # the convolutional stem has its own
        kwargs["img_size"] = 64
    if "_mci_" in name:
        del kwargs["embed_dim"]  # that of its stem
    if "sapiens" in name:
        kwargs["num_kv_heads"] = 1  # fewer than those of queries, as in its own sizes
    return kwargs


def is_plain(vit: nn.Module) -> bool:
    """One of the two families, of plain blocks and attention behind a plain patch embedding."""
    if not isinstance(vit, VisionTransformer | Eva) or not isinstance(vit.patch_embed, PatchEmbed):
        return False
    if isinstance(vit, VisionTransformer):
        return all(type(block) is Block and type(block.attn) is Attention for block in vit.blocks)
    return all(
        type(block) is EvaBlock
        and type(block.attn) in (EvaAttention, AttentionRope)
        and getattr(block.attn, "num_kv_groups", 1) == 1
        for block in vit.blocks
    )


@cache
def outcome(name: str) -> FrozenViT | str:
    """The frozen model with weights that tell images apart, or the line that refuses it."""
    try:
        backbone = FrozenViT(name, **shrunk(name))
    except BackboneError as error:
        return str(error)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in backbone.parameters():  # norms and scales included
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return backbone


def assert_features_are_timm_s(backbone: FrozenViT, size: tuple[int, ...]) -> None:
    images = torch.randn(2, backbone.in_chans, *size, generator=torch.Generator().manual_seed(1))
    vit: Any = backbone.vit
    with torch.no_grad():
        expected = vit.forward_head(vit.forward_features(images), pre_logits=True)
    assert expected.shape == (2, backbone.width)
    assert (expected[0] - expected[1]).abs().max() > 0.01, "these features do not tell images apart"
    torch.testing.assert_close(backbone.features(images), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", names())
def test_features_equal_timm_s_own_or_the_model_is_refused_by_name(name):
    backbone = outcome(name)
    if isinstance(backbone, FrozenViT):
        assert is_plain(backbone.vit)
        assert backbone.image_size == (32, 48)
        assert_features_are_timm_s(backbone, backbone.image_size)
        return
    assert name in backbone
    if "could not be built" in backbone:
        with pytest.raises(Exception) as caught:
            timm.create_model(name, **shrunk(name))
        pytest.skip(f"timm {timm.__version__} cannot build it itself: {caught.value}")
    assert (
        "is not supported; clprompt runs timm's VisionTransformer and Eva of plain pre-norm blocks"
        in backbone
    )
    assert "\n" not in backbone
    assert len(backbone) < 200
    assert not is_plain(timm.create_model(name, **shrunk(name))), f"a plain model was refused: {backbone}"


@pytest.mark.parametrize("name", PLAIN.values(), ids=PLAIN)
def test_plain_models_are_not_refused(name):
    if not timm.is_model(name):
        pytest.skip(f"this timm has no {name}")
    assert isinstance(outcome(name), FrozenViT), outcome(name)


@pytest.mark.parametrize("name", PLAIN.values(), ids=PLAIN)
def test_plain_models_take_images_of_other_sizes_where_timm_does(name):
    if not timm.is_model(name):
        pytest.skip(f"this timm has no {name}")
    known = outcome(name)
    assert isinstance(known, FrozenViT)
    backbone = FrozenViT(name, **shrunk(name), dynamic_img_size=True)
    backbone.vit.load_state_dict(known.vit.state_dict())
    for size in ((32, 48), (56, 24)):
        assert_features_are_timm_s(backbone, size)


def test_the_sweep_reaches_every_kind_of_model():
    refused = {name for name in names() if isinstance(outcome(name), str)}
    assert refused >= {name for name in OTHERS if timm.is_model(name)}
    for pattern in (
        "beit_*",
        "eva02_enormous_*",
        "*_sapiens2",
        "samvit*",
        "naflexvit*",
        "*relpos*",
        "*_rpn_*",
        "*_xp_*",
    ):
        found = fnmatch.filter(names(), pattern)
        assert found or not timm.list_models(pattern), f"{pattern} is not swept over"
        assert refused >= set(found), f"{pattern} is not refused"
    taken = [outcome(name) for name in names() if name not in refused]
    assert len(taken) > len(PLAIN)
    assert sum(isinstance(backbone.vit, Eva) for backbone in taken) >= 50
