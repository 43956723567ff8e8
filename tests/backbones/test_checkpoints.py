"""Files of weights of every origin: the same features whatever wraps them, or one line about the file."""

from __future__ import annotations

import argparse
import re
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

from clprompt.backbones.vit import FrozenViT
from clprompt.errors import BackboneError, DataWarning

NAME = "vit_tiny_patch16_224"
TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2}
State = dict[str, Tensor]


def state_of(seed: int = 0, name: str = NAME, **kwargs: Any) -> State:
    """Weights larger than the initial ones, norms included, so that a mistake shows."""
    generator = torch.Generator().manual_seed(seed)
    shapes = timm.create_model(name, **TINY | kwargs, num_classes=0).state_dict()
    return {key: torch.randn(value.shape, generator=generator) * 0.3 for key, value in shapes.items()}


STATE = state_of()


def under(prefix: str, state: State) -> State:
    return {f"{prefix}{key}": value for key, value in state.items()}


def to_hugging_face(state: State, dinov2: bool = False) -> State:
    """timm's names as Hugging Face's ViT, or its DINOv2, has them."""
    attention = "encoder.layer.{}.attention.attention."
    theirs: State = {}
    for key, value in state.items():
        words = key.split(".")
        block = words[1] if words[0] == "blocks" else ""
        if key.startswith("patch_embed.proj."):
            key = f"embeddings.patch_embeddings.projection.{words[-1]}"
        elif key == "pos_embed":
            key = "embeddings.position_embeddings"
        elif key in ("cls_token", "reg_token"):
            key = "embeddings.cls_token" if key == "cls_token" else "embeddings.register_tokens"
        elif key.startswith("norm."):
            key = f"layernorm.{words[-1]}"
        elif words[2:4] == ["attn", "qkv"]:
            for part, rows in zip(("query", "key", "value"), value.chunk(3), strict=True):
                theirs[attention.format(block) + f"{part}.{words[-1]}"] = rows.clone()
            continue
        else:
            inner = key.removeprefix(f"blocks.{block}.")
            inner = inner.replace("attn.proj", "attention.output.dense")
            if dinov2:
                inner = re.sub(r"ls(\d)\.gamma", r"layer_scale\1.lambda1", inner)
            else:
                inner = inner.replace("norm1", "layernorm_before").replace("norm2", "layernorm_after")
                inner = inner.replace("mlp.fc1", "intermediate.dense").replace("mlp.fc2", "output.dense")
            key = f"encoder.layer.{block}.{inner}"
        theirs[key] = value
    return theirs


def to_torchvision(state: State) -> State:
    names = [
        ("patch_embed.proj", "conv_proj"),
        (r"^cls_token", "class_token"),
        (r"^pos_embed", "encoder.pos_embedding"),
        (r"^norm\.", "encoder.ln."),
        (r"^blocks\.(\d+)", r"encoder.layers.encoder_layer_\1"),
        (r"\.norm([12])", r".ln_\1"),
        (r"attn\.qkv\.", "self_attention.in_proj_"),
        (r"attn\.proj", "self_attention.out_proj"),
        (r"mlp\.fc1", "mlp.0"),
        (r"mlp\.fc2", "mlp.3"),
    ]
    theirs = {}
    for key, value in state.items():
        for ours, other in names:
            key = re.sub(ours, other, key)
        theirs[key] = value
    return theirs


def to_jax(state: State, prefix: str = "") -> dict[str, np.ndarray]:
    """timm's weights as the original JAX archives have them."""
    heads, inner = TINY["num_heads"], TINY["embed_dim"] // TINY["num_heads"]
    arrays: dict[str, Any] = {
        "cls": state["cls_token"],
        "embedding/kernel": state["patch_embed.proj.weight"].permute(2, 3, 1, 0),
        "embedding/bias": state["patch_embed.proj.bias"],
        "Transformer/posembed_input/pos_embedding": state["pos_embed"],
        "Transformer/encoder_norm/scale": state["norm.weight"],
        "Transformer/encoder_norm/bias": state["norm.bias"],
    }
    for index in range(sum(key.endswith("norm1.weight") for key in state)):
        of = lambda name: state[f"blocks.{index}.{name}"]  # noqa: B023, E731
        at = f"Transformer/encoderblock_{index}/"
        for number, norm in ((0, "norm1"), (2, "norm2")):
            arrays[f"{at}LayerNorm_{number}/scale"] = of(f"{norm}.weight")
            arrays[f"{at}LayerNorm_{number}/bias"] = of(f"{norm}.bias")
        parts = zip(of("attn.qkv.weight").chunk(3), of("attn.qkv.bias").chunk(3), strict=True)
        for name, (weight, bias) in zip(("query", "key", "value"), parts, strict=True):
            arrays[f"{at}MultiHeadDotProductAttention_1/{name}/kernel"] = weight.T.reshape(-1, heads, inner)
            arrays[f"{at}MultiHeadDotProductAttention_1/{name}/bias"] = bias.reshape(heads, inner)
        out = of("attn.proj.weight").T.reshape(heads, inner, -1)
        arrays[f"{at}MultiHeadDotProductAttention_1/out/kernel"] = out
        arrays[f"{at}MultiHeadDotProductAttention_1/out/bias"] = of("attn.proj.bias")
        for number in (0, 1):
            arrays[f"{at}MlpBlock_3/Dense_{number}/kernel"] = of(f"mlp.fc{number + 1}.weight").T
            arrays[f"{at}MlpBlock_3/Dense_{number}/bias"] = of(f"mlp.fc{number + 1}.bias")
    return {prefix + key: value.numpy() for key, value in arrays.items()}


OTHER = state_of(1)
HEAD = {"weight": torch.ones(3, 16), "bias": torch.ones(3)}
#: What is in the file, and what the notice says that was taken and left out; None for no notice.
WRAPPED: dict[str, tuple[Callable[[], Any], str | None]] = {
    "timm": (lambda: STATE, None),
    "timm with a classifier": (lambda: STATE | under("head.", HEAD), None),
    "state_dict": (lambda: {"state_dict": STATE, "epoch": 3}, 'under "state_dict."'),
    "lightning model.": (
        lambda: {"state_dict": under("model.", STATE) | {"loss.weight": torch.ones(2)}, "epoch": 1},
        'under "state_dict.model." are taken; left out: state_dict.loss (1)',
    ),
    "lightning net.": (lambda: {"state_dict": under("net.", STATE)}, 'under "state_dict.net."'),
    "lightning with a classifier": (
        lambda: {"state_dict": under("model.", STATE | under("head.", HEAD))},
        "left out: state_dict.model.head (2)",
    ),
    "compiled": (lambda: under("_orig_mod.", STATE), 'under "_orig_mod."'),
    "ddp": (
        lambda: {"model": under("module.", STATE), "args": argparse.Namespace(lr=1)},
        'under "model.module."',
    ),
    "deepspeed": (lambda: {"module": STATE, "global_steps": 4}, 'under "module."'),
    "dino": (
        lambda: {
            "student": under("module.backbone.", OTHER),
            "teacher": under("backbone.", STATE) | under("head.mlp.0.", HEAD),
            "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 0.1}]},
        },
        f'"teacher.backbone." are taken; left out: student ({len(STATE)}), teacher.head (2), optimizer (1)',
    ),
    "dinov2": (
        lambda: {"teacher": under("backbone.", STATE) | under("dino_head.", HEAD)},
        "left out: teacher.dino_head (2)",
    ),
    "dinov2 flat": (lambda: under("teacher.backbone.", STATE), 'under "teacher.backbone."'),
    "ema": (
        lambda: {"state_dict": OTHER, "state_dict_ema": STATE},
        f'under "state_dict_ema." are taken; left out: state_dict ({len(STATE)})',
    ),
    "model_ema": (lambda: {"model": OTHER, "model_ema": STATE}, "left out: model ("),
    "ema beside": (lambda: OTHER | under("ema.", STATE), 'under "ema."'),
    "two encoders": (
        lambda: under("encoder_q.", STATE) | under("encoder_k.", OTHER),
        f'under "encoder_q." are taken; left out: encoder_k ({len(STATE)})',
    ),
    "an auxiliary model first": (
        lambda: under("small.", state_of(2, embed_dim=8)) | under("model.", STATE),
        'under "model." are taken; left out: small',
    ),
    "hugging face": (
        lambda: under("vit.", to_hugging_face(STATE)) | under("classifier.", HEAD),
        'under "vit."',
    ),
    "hugging face bare": (lambda: to_hugging_face(STATE) | under("pooler.dense.", HEAD), None),
    "torchvision": (lambda: to_torchvision(STATE) | under("heads.head.", HEAD), None),
    "half": (lambda: {key: value.half() for key, value in STATE.items()}, None),
}


def features(checkpoint: Path, name: str = NAME, **kwargs: Any) -> Tensor:
    backbone = FrozenViT(name, checkpoint=checkpoint, **TINY | kwargs)
    return backbone.features(torch.randn((2, 3, 32, 32), generator=torch.Generator().manual_seed(1)))


def expected(state: State, name: str = NAME, **kwargs: Any) -> Tensor:
    vit = timm.create_model(name, **TINY | kwargs, num_classes=0)
    vit.load_state_dict(state)
    return FrozenViT(vit).features(torch.randn((2, 3, 32, 32), generator=torch.Generator().manual_seed(1)))


@pytest.mark.parametrize("name", WRAPPED)
def test_whatever_wraps_the_weights_they_load_and_the_notice_says_from_where(
    name: str, tmp_path: Path
) -> None:
    content, told = WRAPPED[name]
    torch.save(content(), tmp_path / "w.pth")
    if name == "ddp" and not hasattr(torch.serialization, "safe_globals"):
        pytest.skip(f"torch {torch.__version__} reads no argparse.Namespace without running what is pickled")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = features(tmp_path / "w.pth")
    notices = [str(warning.message) for warning in caught if warning.category is DataWarning]
    assert len(notices) == (told is not None)
    assert (told or "") in "".join(notices)
    state = {key: value.half().float() for key, value in STATE.items()} if name == "half" else STATE
    assert torch.equal(found, expected(state))


@pytest.mark.parametrize("layout", [to_hugging_face, to_torchvision, lambda state: under("model.", state)])
def test_every_layout_is_read_from_safetensors_and_npz_too(layout: Any, tmp_path: Path) -> None:
    state = {key: value.contiguous() for key, value in layout(STATE).items()}
    save_file(state, tmp_path / "w.safetensors")
    (tmp_path / "w.safetensors").rename(tmp_path / "pytorch_model.bin")  # a name says nothing
    np.savez(tmp_path / "w.npz", **{key: value.numpy() for key, value in state.items()})
    for name in ("pytorch_model.bin", "w.npz"):
        assert torch.equal(features(tmp_path / name), expected(STATE))


@pytest.mark.parametrize("name", ["vit_small_patch14_dinov2", "vit_small_patch14_reg4_dinov2"])
def test_hugging_face_s_dinov2_is_read(name: str, tmp_path: Path) -> None:
    state = state_of(0, name)
    theirs = dict(state) | {"mask_token": torch.zeros(1, 16)}
    if "reg_token" in state:  # there the class token has a position of its own
        position = torch.full((1, 1, 16), 0.5)
        theirs["cls_token"] = state["cls_token"] - position
        theirs["pos_embed"] = torch.cat([position, state["pos_embed"]], dim=1)
    mask = theirs.pop("mask_token")
    save_file(
        to_hugging_face(theirs, dinov2=True) | {"embeddings.mask_token": mask}, tmp_path / "w.safetensors"
    )
    torch.testing.assert_close(
        features(tmp_path / "w.safetensors", name), expected(state, name), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("prefix", ["", "opt/target/"])
def test_a_jax_archive_is_read(prefix: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "w.npz", **to_jax(STATE, prefix))
    assert torch.equal(features(tmp_path / "w.npz"), expected(STATE))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"embed_dim": 32},
            "16 wide, 2 blocks, 2 heads, 3 channels, the model 32 wide, 2 blocks",
        ),
        ({"depth": 1}, "the file has 16 wide, 2 blocks, 2 heads"),
        ({"depth": 3}, "the file has 16 wide, 2 blocks, 2 heads"),
        ({"num_heads": 4}, "the model 16 wide, 2 blocks, 4 heads"),
        ({"in_chans": 1}, "3 channels, the model 16 wide, 2 blocks, 2 heads, 1 channels"),
        ({"patch_size": 16}, "has patches of 8x8 pixels (embedding/kernel), the model of 16x16"),
        ({"init_values": 0.1}, "blocks.0.ls1.gamma is missing"),
    ],
)
def test_a_jax_archive_of_another_architecture_names_sizes(change: Any, said: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "w.npz", **to_jax(STATE))
    assert said in refused(tmp_path / "w.npz", **change)


def refused(path: Path, **kwargs: Any) -> str:
    with pytest.raises(BackboneError) as caught:
        FrozenViT(NAME, checkpoint=path, **TINY | kwargs)
    line = str(caught.value)
    assert line.startswith(f"backbone.checkpoint {path}")
    assert "\n" not in line
    return line


NO_WEIGHTS: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "it is empty (0 bytes)"),
    "html": (b"\n<!DOCTYPE html><html><body>404</body></html>", "it is a web page (HTML or XML), no weights"),
    "xml": (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "it is a web page"),
    "lfs": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 346284714\n",
        "it is a git-lfs pointer, not the weights; fetch them with git lfs pull",
    ),
    "json": (b'{"metadata": {}, "weight_map": {}}', "it is JSON text"),
    "text": (b"these are not weights", "it is text, no weights"),
    "gzip": (b"\x1f\x8b\x08\x00rest", "it is a gzip archive"),
    "hdf5": (b"\x89HDF\r\n\x1a\n\x00", "it is an HDF5 file"),
    "npy": (b"\x93NUMPY\x01\x00", "it is a single numpy array"),
    "noise": (bytes(range(256)), "it is no safetensors, PyTorch or npz file, or it is damaged"),
    "half a zip": (b"PK\x03\x04" + bytes(100), "it is cut off or damaged"),
    "half a pickle": (b"\x80\x02}q\x00X\x04", "could not be read"),
}


@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ".npz"])
@pytest.mark.parametrize("name", NO_WEIGHTS)
def test_a_file_without_weights_is_called_what_it_is(name: str, suffix: str, tmp_path: Path) -> None:
    content, said = NO_WEIGHTS[name]
    path = tmp_path / f"w{suffix}"
    path.write_bytes(content)
    assert said in refused(path)


def test_archives_and_folders_are_called_what_they_are(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "w.zip", "w") as archive:
        archive.writestr("weights/w.pth", b"")
    assert "it is a zip archive of 1 files (weights/w.pth, ...), no checkpoint" in refused(tmp_path / "w.zip")
    save_file(STATE, tmp_path / "model.safetensors")
    assert "is a folder; name a file, such as model.safetensors" in refused(tmp_path)
    torch.jit.script(torch.nn.Linear(2, 2)).save(tmp_path / "script.pt")
    assert "it is a TorchScript program" in refused(tmp_path / "script.pt")
    whole = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    assert "could not be read" in refused(tmp_path / "cut.safetensors")
    torch.save(torch.ones(3), tmp_path / "one.pth")
    assert "it holds a Tensor, no tensors with names" in refused(tmp_path / "one.pth")


def test_objects_of_a_pickle_are_named(tmp_path: Path) -> None:
    torch.save({"model": STATE, "config": Path("a")}, tmp_path / "w.pth")
    assert "it holds pickled objects (pathlib." in refused(tmp_path / "w.pth")
    np.savez(tmp_path / "w.npz", a=np.array([Path("a")], dtype=object))
    assert "allow_pickle=False" in refused(tmp_path / "w.npz")


def test_another_architecture_is_told_with_the_prefix_and_the_sizes_of_both(tmp_path: Path) -> None:
    torch.save({"model": STATE}, tmp_path / "w.pth")
    line = refused(tmp_path / "w.pth", embed_dim=32, depth=3)
    assert "blocks.2.norm1.weight is missing" in line
    assert 'the tensors of the model begin with "model." in the file' in line
    assert "the file has width 16, 2 blocks, 3 channels, the model width 32, 3 blocks, 3 channels" in line


def test_a_file_of_another_network_is_told_by_its_tensors(tmp_path: Path) -> None:
    torch.save({"conv1.weight": torch.ones(3), "bn1.weight": torch.ones(3)}, tmp_path / "w.pth")
    assert "the file holds conv1.weight, bn1.weight, ... (2 tensors)" in refused(tmp_path / "w.pth")
    torch.save({"epoch": 3}, tmp_path / "w.pth")
    assert "the file holds no tensor" in refused(tmp_path / "w.pth")


def test_weights_of_a_quantised_network_are_refused(tmp_path: Path) -> None:
    key = "blocks.0.mlp.fc1.weight"
    torch.save(STATE | {key: STATE[key].to(torch.int8)}, tmp_path / "w.pth")
    assert f"{key} is of type int8, no floating point" in refused(tmp_path / "w.pth")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("layout", ["timm", "model.", "hugging face", "jax", "half"])
def test_weights_that_are_not_finite_are_refused_with_the_name_of_the_first(
    layout: str, value: float, tmp_path: Path
) -> None:
    state = {key: tensor.clone() for key, tensor in STATE.items()}
    for key in ("blocks.0.norm2.bias", "blocks.1.norm1.weight"):
        state[key][3] = value
    path = tmp_path / "w.npz"
    if layout == "jax":
        np.savez(path, **to_jax(state))
    elif layout == "hugging face":
        torch.save(to_hugging_face(state), path)
    else:
        change = Tensor.half if layout == "half" else Tensor.float
        torch.save(under("model." * (layout == "model."), {k: change(v) for k, v in state.items()}), path)
    assert "blocks.0.norm2.bias holds values that are not finite (1 of 16)" in refused(path)
