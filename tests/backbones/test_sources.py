"""Where a frozen backbone's weights come from, and what is refused by name in one line."""

from __future__ import annotations

import pickle
import warnings
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.layers.attention import Attention
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from clprompt.backbones.sources import embedded_backbones
from clprompt.backbones.vit import FrozenViT
from clprompt.errors import BackboneError, DataWarning

TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2}


def randomise(module: nn.Module) -> None:
    """Weights larger than the initial ones, norms included, so that mistakes show."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)


def images_for(backbone: FrozenViT, batch: int = 3) -> Tensor:
    shape = (batch, backbone.in_chans, *backbone.image_size)
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def test_a_module_of_one_s_own_is_frozen_in_place():
    vit = VisionTransformer(num_classes=7, in_chans=1, **TINY)
    randomise(vit)
    backbone = FrozenViT(vit)
    assert backbone.vit is vit
    assert not any(parameter.requires_grad for parameter in vit.parameters())
    images = images_for(backbone)
    with torch.no_grad():
        expected = vit.forward_head(vit.forward_features(images), pre_logits=True)
    torch.testing.assert_close(backbone.features(images), expected, rtol=0, atol=1e-5)
    with pytest.raises(BackboneError, match="given as a module takes no"):
        FrozenViT(vit, img_size=64)


def save_pth(state: dict[str, Tensor], path: Path, wrapper: str | None) -> Path:
    torch.save(state if wrapper is None else {wrapper: state, "epoch": 3}, path)
    return path


@pytest.mark.parametrize("img_size", [32, 48])
@pytest.mark.parametrize("form", ["safetensors", "plain", "state_dict", "model", "half", "ddp"])
def test_checkpoints_load_without_classifier_and_with_resized_positions(tmp_path, form, img_size):
    source = timm.create_model("vit_tiny_patch16_224", **TINY, num_classes=7)
    randomise(source)
    state = {key: value.half().float() for key, value in source.state_dict().items()}
    path = tmp_path / "weights.safetensors"
    save_file(state, path)
    reference = timm.create_model(
        "vit_tiny_patch16_224",
        **TINY | {"img_size": img_size},
        num_classes=0,
        pretrained=True,
        pretrained_cfg_overlay={"file": str(path), "custom_load": False},
    ).eval()
    if form == "half":
        path = save_pth({key: value.half() for key, value in state.items()}, tmp_path / "w.bin", None)
    elif form == "ddp":
        path = save_pth({f"module.{k}": v for k, v in state.items()}, tmp_path / "w.pth", "state_dict")
    elif form != "safetensors":
        path = save_pth(state, tmp_path / "w.pth", None if form == "plain" else form)
    backbone = FrozenViT("vit_tiny_patch16_224", checkpoint=path, **TINY | {"img_size": img_size})
    assert backbone.image_size == (img_size, img_size)
    images = images_for(backbone)
    with torch.no_grad():
        expected = reference(images)
    torch.testing.assert_close(backbone.features(images), expected, rtol=0, atol=1e-5)


def test_a_distilled_checkpoint_loses_both_classifiers(tmp_path):
    name = "deit_tiny_distilled_patch16_224"
    source = timm.create_model(name, **TINY, num_classes=7)
    path = save_pth(source.state_dict(), tmp_path / "w.pth", None)
    assert FrozenViT(name, checkpoint=str(path), **TINY).features(torch.zeros(1, 3, 32, 32)).isfinite().all()


class Code:
    """Unpickling this writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def refused(checkpoint: Path, **kwargs) -> str:
    with pytest.raises(BackboneError) as caught:
        FrozenViT("vit_tiny_patch16_224", checkpoint=checkpoint, **TINY | kwargs)
    line = str(caught.value)
    assert "\n" not in line
    assert "checkpoint" in line
    assert checkpoint.name in line
    return line


def test_a_pickle_with_code_in_it_is_refused_and_not_run(tmp_path):
    state = timm.create_model("vit_tiny_patch16_224", **TINY).state_dict()
    for name, wrap in (("a.pth", {"state_dict": state, "args": Code(tmp_path / "ran")}), ("b.pth", None)):
        path = tmp_path / name
        if wrap is None:
            path.write_bytes(pickle.dumps(Code(tmp_path / "ran"), protocol=2))
        else:
            torch.save(wrap, path)
        assert "pickled objects" in refused(path)
    assert not (tmp_path / "ran").exists()


def test_files_that_are_no_checkpoints_are_refused(tmp_path):
    assert "no file" in refused(tmp_path / "missing.pth")
    for name in ("text.pth", "text.safetensors", "text.bin"):
        (tmp_path / name).write_text("these are not weights")
        assert "could not be read" in refused(tmp_path / name)
    torch.save([torch.zeros(2)], tmp_path / "list.pth")
    assert "could not be read" in refused(tmp_path / "list.pth")
    torch.save({"epoch": 3, "loss": 0.1}, tmp_path / "numbers.pth")
    assert "is missing" in refused(tmp_path / "numbers.pth")


def test_checkpoints_that_do_not_fit_say_which_tensor_differs(tmp_path):
    state = timm.create_model("vit_tiny_patch16_224", **TINY, num_classes=0).state_dict()
    path = save_pth(state, tmp_path / "w.pth", None)
    line = refused(path, embed_dim=64)
    assert "cls_token is [1, 1, 32] in the file and [1, 1, 64] in the model" in line
    assert "more" in line
    assert "blocks.3.norm1.weight is missing" in refused(path, depth=4)
    assert "blocks.2.norm1.weight is not part of the model" in refused(path, depth=2)
    assert "patch_embed.proj.weight is [32, 3, 8, 8]" in refused(path, in_chans=1)


def test_a_checkpoint_of_another_patch_size_is_refused(tmp_path):
    state = timm.create_model("vit_tiny_patch16_224", **TINY, num_classes=0).state_dict()
    path = save_pth(state, tmp_path / "w.pth", None)
    line = refused(path, patch_size=16)
    assert "has patches of 8x8 pixels (patch_embed.proj.weight), the model of 16x16" in line


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_small_patch14_dinov2"])
def test_positions_for_another_image_size_are_resampled_with_a_notice(tmp_path, name):
    state = timm.create_model(name, **TINY, num_classes=0).state_dict()
    path = save_pth(state, tmp_path / "w.pth", None)
    told = r"w\.pth: positions of 4x4 patches \(images of 32 pixels\) are resampled to 6x6$"
    with pytest.warns(DataWarning, match=told):
        FrozenViT(name, checkpoint=path, **TINY | {"img_size": 48})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        FrozenViT(name, checkpoint=path, **TINY)


def test_a_convolutional_network_is_no_checkpoint_of_a_vit(tmp_path):
    state = timm.create_model("resnet10t", num_classes=0).state_dict()
    assert "cls_token is missing" in refused(save_pth(state, tmp_path / "w.pth", None))


def test_pretrained_and_checkpoint_exclude_each_other(tmp_path):
    with pytest.raises(BackboneError, match="not both"):
        FrozenViT("vit_tiny_patch16_224", pretrained=True, checkpoint=tmp_path / "w.pth")


def test_random_weights_that_nobody_asked_for_are_told():
    with pytest.warns(DataWarning, match="vit_tiny_patch16_224 has random weights, .* pretrained=False says"):
        random = FrozenViT("vit_tiny_patch16_224", img_size=32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        meant = FrozenViT("vit_tiny_patch16_224", img_size=32, pretrained=False)
        FrozenViT("vit_tiny_patch16_224", **TINY)
        FrozenViT("vit_letters")
        FrozenViT(random.vit)
    assert meant.fingerprint() == random.fingerprint()


def test_weights_that_cannot_be_fetched_are_told_with_what_helps_in_python_too():
    nowhere = {"pretrained_cfg_overlay": {"url": "file:///nowhere/weights.pth", "hf_hub_id": None}}
    with pytest.raises(BackboneError, match=r'FILE \(in Python: checkpoint="FILE"\)$'):
        FrozenViT("vit_tiny_patch16_224", pretrained=True, **TINY, **nowhere)


newer = pytest.mark.skipif(
    not timm.is_model("vit_base_patch16_sapiens2"), reason="this timm does not have it yet"
)


@pytest.mark.parametrize(
    ("name", "kwargs", "said"),
    [
        ("vit_small_r26_s32_224", {"embed_dim": 32, "depth": 1, "num_heads": 2}, "HybridEmbed"),
        ("vit_base_patch16_rpn_224", {"embed_dim": 32, "depth": 1, "num_heads": 2}, "ResPostBlock"),
        ("vit_base_patch16_xp_224", {"embed_dim": 32, "depth": 1, "num_heads": 2}, "ParallelScalingBlock"),
        ("vit_tiny_patch16_224", TINY | {"global_pool": ""}, "no pooling"),
        ("eva02_enormous_patch14_clip_224", TINY, "EvaBlockPostNorm"),
        pytest.param(
            "vit_base_patch16_sapiens2", TINY | {"num_kv_heads": 1}, "grouped-query attention", marks=newer
        ),
        ("vit_small_patch16_dinov3", TINY | {"global_pool": ""}, "no pooling"),
        pytest.param("vit_small_patch16_dinov3", TINY | {"use_naflex": True}, "NaFlexVit", marks=newer),
        ("swin_tiny_patch4_window7_224", {"embed_dim": 12, "depths": (1, 1, 1, 1)}, "SwinTransformer"),
        ("resnet10t", {}, "ResNet"),
        ("vit_tiny_patch16_224", {"no_such_argument": 1}, "could not be built"),
        ("vit_tiny_patch16_224", TINY | {"num_heads": 5}, "could not be built"),
        ("vit_tiny_patch16_225", {}, "vit_tiny_patch16_224"),
        ("eva2_tiny_patch14_224", {}, "eva02_tiny_patch14_224"),
        ("nothing_like_it", {}, "neither a timm model nor an embedded one"),
    ],
)
def test_unsupported_models_are_refused_by_name_in_one_line(name, kwargs, said):
    with pytest.raises(BackboneError) as caught:
        FrozenViT(name, **kwargs)
    line = str(caught.value)
    assert "\n" not in line
    assert name in line
    assert said in line


def test_modules_that_are_no_plain_vits_are_refused():
    with pytest.raises(BackboneError, match="Linear given as a module"):
        FrozenViT(nn.Linear(2, 2))

    class Custom(VisionTransformer):
        def forward_features(self, x, attn_mask=None):
            return x

    with pytest.raises(BackboneError, match="Custom"):
        FrozenViT(Custom(num_classes=0, **TINY))

    class OtherAttention(Attention):
        pass

    vit = VisionTransformer(num_classes=0, **TINY)
    vit.blocks[2].attn = OtherAttention(32, num_heads=2)
    with pytest.raises(BackboneError, match="OtherAttention"):
        FrozenViT(vit)


def test_every_embedded_backbone_loads_with_its_recorded_shape_and_weights():
    for name in embedded_backbones():
        backbone = FrozenViT(name)
        images = images_for(backbone, batch=2)
        assert backbone.features(images).shape == (2, backbone.width)
        assert backbone.features(images).isfinite().all()
        assert len(backbone.inputs.mean) == backbone.in_chans
        assert backbone.fingerprint() == FrozenViT(name).fingerprint()
        with pytest.raises(BackboneError, match="fixed shape"):
            FrozenViT(name, depth=2)
