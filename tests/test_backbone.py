"""FrozenViT against timm itself, and what it promises to the methods."""

from __future__ import annotations

import pickle
import random
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.layers.attention import Attention
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from clprompt.attention import BlockPrompt, project
from clprompt.backbone import FrozenViT, embedded_backbones
from clprompt.errors import BackboneError, ConfigError

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
    return backbone.to(dtype)


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


def test_features_equal_timm_s_own_at_another_image_size():
    backbone = build("dynamic_size")
    images = images_for(backbone, size=(40, 24))
    with torch.no_grad():
        expected = timm_itself(backbone, "dynamic_size")(images)
    torch.testing.assert_close(backbone.features(images), expected, rtol=0, atol=1e-10)


@every_model
def test_attributes_describe_the_model(kind):
    backbone = build(kind)
    tokens = backbone.embed(images_for(backbone))
    assert tokens.shape == (3, backbone.num_tokens, backbone.width)
    assert (backbone.depth, backbone.width, backbone.num_heads) == (3, 32, 2)
    assert backbone.image_size == (32, 32)
    assert backbone.num_tokens - backbone.num_prefix_tokens == 16
    assert len(backbone.mean) == len(backbone.std) == backbone.in_chans
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
    for kind in ("average_pooling", "layer_scale"):  # no class token; positions on patches only
        assert torch.equal(build(kind).class_position(), torch.zeros(32, dtype=torch.float64))


def test_layers_are_checked_by_the_name_of_their_argument():
    backbone = build("class_token")
    assert backbone.check_layers("e_layers", [0, 2]) == (0, 2)
    with pytest.raises(ConfigError, match=r"e_layers: block 3 is not among 0\.\.2"):
        backbone.check_layers("e_layers", (1, 3))
    with pytest.raises(ConfigError, match="g_layers names a block twice"):
        backbone.check_layers("g_layers", (1, 1))


# ---------------------------------------------------------------------- frozen


def test_backbone_is_frozen_and_stays_in_eval_mode():
    dropout = {"proj_drop_rate": 0.3, "drop_path_rate": 0.3, "pos_drop_rate": 0.3, "patch_drop_rate": 0.3}
    backbone = FrozenViT("vit_tiny_patch16_224", **TINY, **dropout)
    randomise(backbone)
    model = nn.ModuleDict({"backbone": backbone, "head": nn.Linear(32, 2)}).train()
    assert model.training
    assert model["head"].training
    assert not any(module.training for module in backbone.modules())
    assert not any(parameter.requires_grad for parameter in backbone.parameters())
    images = images_for(backbone)
    assert torch.equal(backbone.features(images), backbone.features(images))


def test_weights_are_bit_identical_after_training_prompts():
    backbone = build("class_token", torch.float32)
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


# ---------------------------------------------------------------------- where weights come from


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


def test_pretrained_and_checkpoint_exclude_each_other(tmp_path):
    with pytest.raises(BackboneError, match="not both"):
        FrozenViT("vit_tiny_patch16_224", pretrained=True, checkpoint=tmp_path / "w.pth")


@pytest.mark.parametrize(
    ("name", "kwargs", "said"),
    [
        ("vit_small_r26_s32_224", {"embed_dim": 32, "depth": 1, "num_heads": 2}, "HybridEmbed"),
        ("vit_base_patch16_rpn_224", {"embed_dim": 32, "depth": 1, "num_heads": 2}, "ResPostBlock"),
        ("vit_base_patch16_xp_224", {"embed_dim": 32, "depth": 1, "num_heads": 2}, "ParallelScalingBlock"),
        ("vit_tiny_patch16_224", TINY | {"global_pool": ""}, "no pooling"),
        ("eva02_tiny_patch14_224", {"depth": 1}, "Eva"),
        ("swin_tiny_patch4_window7_224", {"embed_dim": 12, "depths": (1, 1, 1, 1)}, "SwinTransformer"),
        ("resnet10t", {}, "ResNet"),
        ("vit_tiny_patch16_224", {"no_such_argument": 1}, "could not be built"),
        ("vit_tiny_patch16_224", TINY | {"num_heads": 5}, "could not be built"),
        ("vit_tiny_patch16_225", {}, "vit_tiny_patch16_224"),
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
        assert len(backbone.mean) == backbone.in_chans
        assert backbone.fingerprint() == FrozenViT(name).fingerprint()
        with pytest.raises(BackboneError, match="fixed shape"):
            FrozenViT(name, depth=2)
