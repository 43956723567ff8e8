"""A file of weights: what it is, which of its tensors are the vision transformer's, and by which names.

Many trainings wrap the model (``state_dict``, ``model.``, ``module.``, ``teacher.backbone.``). One rule
undoes it: the tensor that embeds the patches is looked for, and what stands in front of its name is the
prefix of the model's tensors. Where several models are in a file, an averaged copy (``ema``, ``teacher``)
comes first, else the first that fits.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import re
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from clprompt.errors import BackboneError, tell

Tensors = dict[str, Tensor]
Shapes = Mapping[str, tuple[int, ...]]


def load_weights(vit: Any, path: Path) -> None:
    """Load a file into a timm vision transformer: wrappers undone, classifiers left out, positions resampled.

    Args:
        vit: a timm ``VisionTransformer`` or ``Eva`` without a classifier.
        path: safetensors, a PyTorch checkpoint of tensors, or an npz, in the names of timm, Hugging Face
            (ViT, DINOv2, DINOv3), torchvision, CLIP, or of DINOv3 and EVA-02 as they were released; or a JAX
            npz of a vision transformer.

    Raises:
        BackboneError: another kind of file, another architecture, or weights that are not finite.
    """
    load_tensors(vit, read_tensors(path), path)


def load_tensors(vit: Any, tensors: Tensors, path: Path) -> None:
    """:func:`load_weights` of tensors that were read from the file already."""
    if any(key.endswith("embedding/kernel") for key in tensors):
        _load_jax(vit, path, tensors)
        return
    chosen = _choose(vit, tensors, path)
    if chosen.problems:
        _refuse(vit, chosen, tensors, path)
    check_finite(chosen.state, f"backbone.checkpoint {path}")
    vit.load_state_dict(chosen.state)
    _tell_choice(chosen, tensors, path)
    _tell_resampling(chosen.shapes, vit, path)


def check_finite(state: Mapping[str, Tensor], source: str) -> None:
    """Refuse weights that are not finite.

    Args:
        state: the weights by name.
        source: where they come from, for the message.

    Raises:
        BackboneError: the name of the first such tensor.
    """
    for key, value in state.items():
        wrong = int((~torch.isfinite(value)).sum()) if value.is_floating_point() else 0
        if wrong:
            raise BackboneError(
                f"{source}: {key} holds values that are not finite ({wrong} of {value.numel()}); the file is "
                "damaged, or was saved by a training that diverged"
            )


# ------------------------------------------------------------------------------------------ what a file is


def read_tensors(path: Path) -> Tensors:
    """All tensors of a file by their dotted names, wrappers included; nothing in it is ever executed.

    Raises:
        BackboneError: no such file, or what it is in place of weights.
    """
    source = f"backbone.checkpoint {path}"
    if path.is_dir():
        files = sorted(
            file.name for file in path.iterdir() if file.suffix in (".safetensors", ".bin", ".pth")
        )
        raise BackboneError(f"{source} is a folder; name a file" + (f", such as {files[0]}" if files else ""))
    if not path.is_file():
        raise BackboneError(f"{source}: " + ("it is no regular file" if path.exists() else f"no file {path}"))
    try:
        with open(path, "rb") as file:
            head = file.read(1024)
        read = _reader(path, head)
        if isinstance(read, str):
            raise BackboneError(f"{source} could not be read: {read}")
        content = read(path)
    except BackboneError:
        raise
    except (
        Exception
    ) as error:  # torch, pickle, numpy and safetensors each have their own way to refuse a file
        raise BackboneError(f"{source} could not be read: {_reason(error)}") from error
    if not isinstance(content, Mapping):
        kind = type(content).__name__
        raise BackboneError(f"{source} could not be read: it holds a {kind}, no tensors with names")
    return _flat(content)


def _reader(path: Path, head: bytes) -> Callable[[Path], Any] | str:
    """What reads a file, by its first bytes and not by its name; or what it is, where that is no weights."""
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not head:
        return "it is empty (0 bytes)"
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < path.stat().st_size:
        from safetensors.torch import load_file

        return load_file
    if start.startswith(b"version https://git-lfs"):
        return "it is a git-lfs pointer, not the weights; fetch them with git lfs pull"
    if start.startswith(b"<"):
        return "it is a web page (HTML or XML), no weights: the download failed"
    for mark, what in _ARCHIVES.items():
        if head.startswith(mark):
            return f"it is {what}; unpack it, or save its weights as safetensors"
    if head.startswith(b"PK"):
        return _reader_of_zip(path)
    if start.startswith(b"{"):
        return "it is JSON text, such as the index of a checkpoint in several files, no weights"
    if head.startswith(b"\x80"):
        return _load_pickle
    if not any(byte < 32 and byte not in b"\t\n\f\r" for byte in head):
        return "it is text, no weights"
    return "it is no safetensors, PyTorch or npz file, or it is damaged"


_ARCHIVES = {
    b"\x1f\x8b": "a gzip archive",
    b"BZh": "a bzip2 archive",
    b"\xfd7zXZ": "an xz archive",
    b"7z\xbc\xaf": "a 7z archive",
    b"\x89HDF": "an HDF5 file",
    b"\x93NUMPY": "a single numpy array",
}


def _reader_of_zip(path: Path) -> Callable[[Path], Any] | str:
    if not zipfile.is_zipfile(path):
        return "it is cut off or damaged: a zip without its end"
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    if any(name.endswith("constants.pkl") for name in names):
        return "it is a TorchScript program; save its state_dict() as safetensors"
    if any(name.endswith("data.pkl") for name in names):
        return _load_pickle
    if names and all(name.endswith(".npy") for name in names):
        return _load_npz
    first = f" ({names[0]}, ...)" if names else ""
    return f"it is a zip archive of {len(names)} files{first}, no checkpoint; unpack it first"


def _load_pickle(path: Path) -> Any:
    # trainings often keep their arguments beside the weights; a Namespace runs nothing
    allow = getattr(torch.serialization, "safe_globals", lambda _: contextlib.nullcontext())
    with allow([argparse.Namespace]):
        return torch.load(path, map_location="cpu", weights_only=True)


def _load_npz(path: Path) -> dict[str, Tensor]:
    with np.load(path, allow_pickle=False) as arrays:
        loaded = {name: arrays[name] for name in arrays.files}
    return {name: torch.from_numpy(array) for name, array in loaded.items() if array.dtype.kind in "fiu"}


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    if "weights_only" not in text:
        return text[:300] or type(error).__name__
    names = re.findall(r"GLOBAL ([\w.]+)", text)
    what = f" ({', '.join(dict.fromkeys(names))})" if names else ""
    return f"it holds pickled objects{what}, only tensors are ever loaded"


def _flat(content: Mapping[Any, Any], prefix: str = "", depth: int = 16) -> Tensors:
    tensors: Tensors = {}
    for key, value in content.items():
        if isinstance(value, Tensor):
            tensors[f"{prefix}{key}"] = value.detach()
        elif isinstance(value, Mapping) and depth:
            tensors |= _flat(value, f"{prefix}{key}.", depth - 1)
    return tensors


# ------------------------------------------------------------------------------- which tensors, which names


class _Candidate(NamedTuple):
    """Tensors of a file that may be the model.

    Attributes:
        prefix: of their names.
        keys: their names in the file, prefix included.
        shapes: by the model's names, before positions are resampled.
        state: what the model would load.
        problems: why it cannot.
    """

    prefix: str
    keys: list[str]
    shapes: Shapes
    state: Tensors
    problems: list[str]


def _choose(vit: Any, tensors: Tensors, path: Path) -> _Candidate:
    """The first candidate that fits, averaged copies before others; the first of all where none does."""
    layouts: dict[str, Callable[[Tensors], Tensors]] = {}
    for key in tensors:
        for anchor, rename in _LAYOUTS.items():
            if key == anchor or key.endswith(f".{anchor}"):
                layouts.setdefault(key[: len(key) - len(anchor)], rename)
    prefixes = sorted(layouts, key=lambda prefix: not AVERAGED & {*re.split(r"[._]", prefix)})
    first = None
    for prefix in prefixes or [""]:
        inner = tuple(other for other in layouts if other != prefix and other.startswith(prefix))
        keys = [key for key in tensors if key.startswith(prefix) and not key.startswith(inner)]
        group = {key.removeprefix(prefix): tensors[key] for key in keys}
        candidate = _fit(vit, layouts.get(prefix, dict)(group), prefix, keys, path)
        if not candidate.problems:
            return candidate
        first = first or candidate
    assert first is not None  # there is one prefix at least
    return first


AVERAGED = {"ema", "teacher"}


def _fit(vit: Any, group: Tensors, prefix: str, keys: list[str], path: Path) -> _Candidate:
    """Tensors in timm's names, or in those that timm itself translates, against the model."""
    from clprompt.backbones.families import weights_translator  # it imports timm

    weights = vit.state_dict()
    shapes = {key: tuple(value.shape) for key, value in group.items()}
    _check_patch_size(shapes, weights, path)
    try:
        state = weights_translator(vit)(dict(group), vit)
    except Exception as error:
        raise BackboneError(f"backbone.checkpoint {path} could not be read: {_reason(error)}") from error
    state = {
        key: value
        for key, value in state.items()
        if isinstance(value, Tensor) and not _is_classifier(key) and not _adds_nothing(key, value, weights)
    }
    problems = [f"{key} is missing" for key in weights if key not in state]
    problems += [f"{key} is not part of the model" for key in state if key not in weights]
    problems += [
        f"{key} is {list(state[key].shape)} in the file and {list(weights[key].shape)} in the model"
        for key in weights
        if key in state and state[key].shape != weights[key].shape
    ]
    problems += [
        f"{key} is of type {str(state[key].dtype).removeprefix('torch.')}, no floating point"
        for key in weights
        if key in state and weights[key].is_floating_point() and not state[key].is_floating_point()
    ]
    state = state if problems else {key: value.float() for key, value in state.items()}
    return _Candidate(prefix, keys, shapes, state, problems)


def _is_classifier(key: str) -> bool:
    first = key.split(".")[0]
    return first in ("classifier", "cls_classifier", "distillation_classifier", "pooler", "fc") or (
        first in ("head", "heads", "head_dist")
    )


def _adds_nothing(key: str, value: Tensor, weights: Mapping[str, Tensor]) -> bool:
    """Whether it is a bias of zeros for a model without it, as DINOv3's files have."""
    return key not in weights and key.endswith((".q_bias", ".v_bias")) and not value.any()


def _of_timm(group: Tensors) -> Tensors:
    """timm's own names, or DINOv3's as they were released, which timm translates all but the biases."""
    if "storage_tokens" not in group:
        return group
    renamed = {}
    for key, value in group.items():
        if key.endswith(".attn.qkv.bias"):  # timm would leave them out where the model has none, zeros or not
            query, _, values = value.chunk(3)  # keys have a mask of zeros in the place of a bias
            renamed[key.replace("qkv.bias", "q_bias")] = query
            renamed[key.replace("qkv.bias", "v_bias")] = values
        else:
            renamed[key] = value
    return renamed


def _of_dinov3(group: Tensors) -> Tensors:
    """DINOv3 in Hugging Face's names."""
    renamed = _renamed(group, _DINOV3)
    renamed.pop("mask_token", None)  # of pre-training alone
    for key in [key for key in renamed if key.endswith(".attention.q_proj.weight")]:
        block = key.removesuffix("attention.q_proj.weight")
        parts = [f"{block}attention.{part}_proj.weight" for part in "qkv"]
        if all(part in renamed for part in parts):
            renamed[f"{block}attn.qkv.weight"] = torch.cat([renamed.pop(part) for part in parts])
        if f"{block}mlp.gate_proj.weight" in renamed:
            for theirs, ours in (("gate_proj", "fc1_g"), ("up_proj", "fc1_x")):
                for part in ("weight", "bias"):
                    if (value := renamed.pop(f"{block}mlp.{theirs}.{part}", None)) is not None:
                        renamed[f"{block}mlp.{ours}.{part}"] = value
    return _renamed(renamed, ((r"\.mlp\.up_proj\.", ".mlp.fc1."),))


def _of_hugging_face(group: Tensors) -> Tensors:
    renamed = _renamed(group, _HUGGING_FACE)
    for key in [key for key in renamed if ".attention.attention.query." in key]:
        parts = [key.replace(".query.", f".{part}.") for part in ("query", "key", "value")]
        if all(part in renamed for part in parts):
            whole = key.replace(".attention.attention.query.", ".attn.qkv.")
            renamed[whole] = torch.cat([renamed.pop(part) for part in parts])
    return renamed


def _of_torchvision(group: Tensors) -> Tensors:
    return _renamed(group, _TORCHVISION)


def _renamed(group: Tensors, names: tuple[tuple[str, str], ...]) -> Tensors:
    renamed = {}
    for key, value in group.items():
        for theirs, ours in names:
            key = re.sub(theirs, ours, key)
        renamed[key] = value
    return renamed


_HUGGING_FACE = (
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.distillation_token$", "dist_token"),
    (r"^embeddings\.", ""),  # cls_token; mask_token and register_tokens as in DINOv2, which timm translates
    (r"^encoder\.layer\.", "blocks."),
    (r"^layernorm\.", "norm."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.attention\.output\.dense\.", ".attn.proj."),
    (r"\.intermediate\.dense\.|\.mlp\.weights_in\.", ".mlp.fc1."),
    (r"\.output\.dense\.|\.mlp\.weights_out\.", ".mlp.fc2."),
    (r"\.layer_scale([12])\.lambda1$", r".ls\1.gamma"),
)
_DINOV3 = (
    (r"^embeddings\.patch_embeddings\.", "patch_embed.proj."),
    (r"^embeddings\.register_tokens$", "reg_token"),
    (r"^embeddings\.", ""),  # cls_token, mask_token
    (r"^(model\.)?layer\.", "blocks."),
    (r"\.attention\.o_proj\.", ".attn.proj."),
    (r"\.attention\.([qv])_proj\.bias$", r".attn.\1_bias"),
    (r"\.mlp\.down_proj\.", ".mlp.fc2."),
    (r"\.layer_scale([12])\.lambda1$", r".gamma_\1"),
)
_TORCHVISION = (
    (r"^conv_proj\.", "patch_embed.proj."),
    (r"^class_token$", "cls_token"),
    (r"^encoder\.pos_embedding$", "pos_embed"),
    (r"^encoder\.ln\.", "norm."),
    (r"^encoder\.layers\.encoder_layer_(\d+)\.", r"blocks.\1."),
    (r"\.ln_([12])\.", r".norm\1."),
    (r"\.self_attention\.in_proj_", ".attn.qkv."),
    (r"\.self_attention\.out_proj\.", ".attn.proj."),
    (r"\.mlp\.(0|linear_1)\.", ".mlp.fc1."),
    (r"\.mlp\.(3|linear_2)\.", ".mlp.fc2."),
)
#: The tensor that embeds the patches, and what gives its companions the names that timm reads.
_LAYOUTS: dict[str, Callable[[Tensors], Tensors]] = {
    "patch_embed.proj.weight": _of_timm,
    "embeddings.patch_embeddings.weight": _of_dinov3,
    "embeddings.patch_embeddings.projection.weight": _of_hugging_face,
    "conv_proj.weight": _of_torchvision,
    "visual.conv1.weight": dict,  # CLIP, which timm knows
}


# ------------------------------------------------------------------------------------------ what is told


def _refuse(vit: Any, chosen: _Candidate, tensors: Tensors, path: Path) -> None:
    """Raise what does not fit, with the sizes of both where they differ."""
    problems = chosen.problems
    more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
    line = f"backbone.checkpoint {path} does not fit: {'; '.join(problems[:3])}{more}"
    if chosen.prefix:
        line += f'; the tensors of the model begin with "{chosen.prefix}" in the file'
    there, here = _sizes(chosen.shapes), _sizes({k: tuple(v.shape) for k, v in vit.state_dict().items()})
    if there and there != here:
        line += f"; the file has {there}, the model {here}"
    if not there:
        names = f"{', '.join(list(tensors)[:3])}, ... ({len(tensors)} tensors)" if tensors else "no tensor"
        line += f"; the file holds {names}"
    raise BackboneError(line)


def _sizes(shapes: Shapes) -> str:
    """ "width 192, 12 blocks, 3 channels"; "" where there is no patch embedding."""
    embed = shapes.get("patch_embed.proj.weight")
    if embed is None or len(embed) != 4:
        return ""
    blocks = {key.split(".")[1] for key in shapes if key.startswith("blocks.")}
    return f"width {embed[0]}, {len(blocks)} blocks, {embed[1]} channels"


def _tell_choice(chosen: _Candidate, tensors: Tensors, path: Path) -> None:
    """Say what was taken from under which prefix, and what was left out."""
    taken = {key for key in chosen.keys if not _is_classifier(key.removeprefix(chosen.prefix))}
    left: dict[str, int] = {}
    words = chosen.prefix.split(".")
    for key in tensors:
        if key in taken:
            continue
        parts = key.split(".")
        same = next((n for n, (a, b) in enumerate(zip(parts, words, strict=False)) if a != b), 0)
        name = ".".join(parts[: same + 1])
        left[name] = left.get(name, 0) + 1
    if not chosen.prefix:
        left = {name: count for name, count in left.items() if not _is_classifier(name)}
    if chosen.prefix or left:
        where = f'under "{chosen.prefix}"' if chosen.prefix else "without a prefix"
        others = ", ".join(f"{name} ({count})" for name, count in left.items())
        tell(
            f"backbone.checkpoint {path}: the {len(taken)} tensors {where} are taken"
            + (f"; left out: {others}" if others else "")
        )


def _check_patch_size(
    shapes: Mapping[str, tuple[int, ...]], weights: Mapping[str, Tensor], path: Path
) -> None:
    """timm would resample the patch embedding without a word: another model than the one that was trained."""
    weight = weights.get("patch_embed.proj.weight")
    for key, shape in shapes.items():
        if weight is None or len(shape) != 4 or not key.endswith(("patch_embed.proj.weight", "conv1.weight")):
            continue
        # conv1: CLIP's, not a ResNet's
        if key.endswith("patch_embed.proj.weight") or shape[0] == len(weight):
            _refuse_patches(key, shape[2:], weight.shape[2:], path)


def _refuse_patches(key: str, there: tuple[int, ...], here: tuple[int, ...], path: Path) -> None:
    if tuple(there) != tuple(here):
        theirs, ours = ("x".join(map(str, sides)) for sides in (there, here))
        raise BackboneError(
            f"backbone.checkpoint {path} has patches of {theirs} pixels ({key}), the model of {ours}; "
            "name a model of the same patch size"
        )


def _tell_resampling(shapes: Shapes, vit: Any, path: Path) -> None:
    """Say so when the file's positions were made for another image size."""
    positions = [shape[1] for key, shape in shapes.items() if key.endswith("pos_embed") and len(shape) == 3]
    positions += [shape[0] for key, shape in shapes.items() if key == "visual.positional_embedding"]
    if not positions or vit.pos_embed is None or positions[0] == vit.pos_embed.shape[1]:
        return
    high, wide = vit.patch_embed.grid_size
    before = math.isqrt(positions[0])  # beside a square grid there are at most a few prefix tokens
    if (before, before) == (high, wide):
        return  # timm moved the class token's position into the token
    patch = vit.patch_embed.patch_size[0]
    tell(
        f"backbone.checkpoint {path}: positions of {before}x{before} patches "
        f"(images of {before * patch} pixels) are resampled to {high}x{wide}"
    )


# ---------------------------------------------------------------------------------------------------- JAX


def _load_jax(vit: Any, path: Path, arrays: Tensors) -> None:
    """Weights of a JAX vision transformer, copied by timm; what it would adapt unasked is checked."""
    source = f"backbone.checkpoint {path}"
    if not hasattr(vit, "load_pretrained"):
        raise BackboneError(
            f"{source} does not fit: it is a JAX archive of a vision transformer, "
            f"the model an {type(vit).__name__}"
        )
    kernel = next(key for key in arrays if key.endswith("embedding/kernel"))
    high, wide, channels, width = (*arrays[kernel].shape, 0, 0, 0, 0)[:4]
    _refuse_patches(kernel, (high, wide), tuple(vit.patch_embed.proj.weight.shape[2:]), path)
    queries = {
        key: value for key, value in arrays.items() if key.endswith("/query/kernel") and "MAP" not in key
    }
    stacked = [value.shape[0] for key, value in queries.items() if "/encoderblock/" in key]
    blocks = stacked[0] if stacked else len(queries)
    heads = next((a.shape[-2] for a in queries.values()), 0)
    here = f"{vit.embed_dim} wide, {len(vit.blocks)} blocks, {vit.blocks[0].attn.num_heads} heads"
    there = f"{width} wide, {blocks} blocks, {heads} heads"
    if (there, channels) != (here, vit.patch_embed.proj.in_channels):
        raise BackboneError(
            f"{source} does not fit: the file has {there}, {channels} channels, "
            f"the model {here}, {vit.patch_embed.proj.in_channels} channels"
        )
    weights = vit.state_dict()
    with torch.no_grad():
        for value in filter(torch.is_floating_point, weights.values()):
            value.fill_(math.nan)  # what timm does not find in the file it leaves as it is
    try:
        vit.load_pretrained(str(path))
    except Exception as error:
        raise BackboneError(f"{source} does not fit: {_reason(error)}") from error
    for key, value in vit.state_dict().items():
        if value.isnan().all():
            raise BackboneError(f"{source} does not fit: {key} is missing, or not a number")
    check_finite(vit.state_dict(), source)
    shapes = {key: tuple(value.shape) for key, value in arrays.items()}
    positions = next((shape for key, shape in shapes.items() if key.endswith("pos_embedding")), None)
    _tell_resampling({"pos_embed": positions} if positions else {}, vit, path)
