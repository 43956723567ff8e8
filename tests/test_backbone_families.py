"""Every vision transformer that timm registers, shrunk: features equal to timm's own, or a refusal by name."""

from __future__ import annotations

from functools import cache

import pytest
import timm
import torch
from timm.layers import PatchEmbed
from timm.layers.attention import Attention
from timm.models.vision_transformer import Block, VisionTransformer
from torch import nn

from clprompt.backbone import FrozenViT
from clprompt.errors import BackboneError
from clprompt.seeding import generator, preserved_rng

PATTERNS = ("vit_*", "deit*", "flexivit*", "beit*", "eva*", "samvit*", "naflexvit*", "test_vit*")
OTHERS = ("swin_tiny_patch4_window7_224", "cait_xxs24_224", "xcit_nano_12_p16_224", "levit_128s", "resnet18")
SMALL = {"depth": 2, "embed_dim": 32, "num_heads": 2}


def families() -> dict[str, list[str]]:
    """Model names by what they are before the first underscore-separated size: a case of the test each."""
    found: dict[str, list[str]] = {}
    for pattern in PATTERNS:
        for name in timm.list_models(pattern):
            words = [
                word for word in name.split("_") if word not in ("tiny", "small", "base", "large", "huge")
            ]
            found.setdefault("_".join(words[:2]), []).append(name)
    return found


@cache
def build(name: str) -> nn.Module | None:
    """The model at width 32 and two blocks, with weights that tell images apart; None where it cannot be shrunk."""
    size = 96 if "patch32" in name or "s32" in name else 112
    with preserved_rng(0):
        for arguments in ({**SMALL, "img_size": size}, SMALL):
            try:
                vit = timm.create_model(name, pretrained=False, num_classes=0, **arguments)
            except (TypeError, AssertionError, ValueError, RuntimeError):
                continue
            for parameter in vit.parameters():
                nn.init.normal_(parameter, std=0.1)
            return vit.eval()
    return None


def freeze(vit: nn.Module) -> tuple[FrozenViT | None, str]:
    """The frozen model, or why it was refused."""
    try:
        return FrozenViT(vit), ""
    except BackboneError as error:
        return None, str(error)


def is_first_tier(vit: nn.Module) -> bool:
    """A VisionTransformer of plain blocks and attention on a plain patch embedding, with a pooling of its own."""
    return (
        isinstance(vit, VisionTransformer)
        and type(vit).forward_features is VisionTransformer.forward_features
        and isinstance(vit.patch_embed, PatchEmbed)
        and all(type(block) is Block and type(block.attn) is Attention for block in vit.blocks)
        and vit.global_pool != ""
    )


@pytest.mark.parametrize("family", families())
def test_features_equal_timms_own_or_the_model_is_refused_by_name(family: str) -> None:
    for name in families()[family]:
        vit = build(name)
        if vit is None:
            continue
        backbone, refusal = freeze(vit)
        if backbone is None:
            assert not is_first_tier(vit), f"{name} is of plain blocks and was refused: {refusal}"
            assert "is not supported" in refusal, refusal
            assert "\n" not in refusal
            continue
        images = torch.randn(2, backbone.in_chans, *backbone.image_size, generator=generator(0, name))
        with torch.no_grad():
            own = vit.forward_head(vit.forward_features(images), pre_logits=True)
        torch.testing.assert_close(backbone.features(images), own, rtol=1e-5, atol=1e-5, msg=name)


def test_most_vision_transformers_are_supported() -> None:
    names = [name for members in families().values() for name in members]
    models = [build(name) for name in names]
    shrunk = [vit for vit in models if vit is not None]
    assert len(shrunk) > 0.95 * len(names), "too few models could be shrunk for the sweep to mean anything"
    assert sum(is_first_tier(vit) for vit in shrunk) > 0.5 * len(shrunk)


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_no_plain_vision_transformer_is_refused_by_its_name(name: str) -> None:
    with pytest.raises(BackboneError, match=name) as caught:
        FrozenViT(name)
    assert "\n" not in str(caught.value)
