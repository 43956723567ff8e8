"""Tiny random models of open_clip: their configurations by name, and weights that show a mistake."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import open_clip
import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

CLIP: dict[str, Any] = {
    "embed_dim": 12,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 24, "heads": 2, "layers": 2},
}
SIGLIP: dict[str, Any] = {
    "embed_dim": 32,
    "init_logit_bias": -10,
    "custom_text": True,
    "vision_cfg": {
        "image_size": 32,
        "timm_model_name": "clprompt_tiny_siglip",
        "timm_model_pretrained": False,
        "timm_pool": "map",
        "timm_proj": "none",
    },
    "text_cfg": {
        "context_length": 10,
        "vocab_size": 50,
        "hf_tokenizer_name": "timm/ViT-B-16-SigLIP",
        "width": 32,
        "heads": 2,
        "layers": 2,
        "no_causal_mask": True,
        "proj_bias": True,
        "pool_type": "last",
        "norm_kwargs": {"eps": 1e-6},
        "mlp_ratio": 3.5,
    },
}


def clprompt_tiny_siglip(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
    shape = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
    known = {key: value for key, value in kwargs.items() if key in ("num_classes", "global_pool", "img_size")}
    vit = VisionTransformer(**shape | {"class_token": False, "global_pool": "map"} | known)
    vit.default_cfg = vit.pretrained_cfg = {"mean": (0.5,) * 3, "std": (0.5,) * 3, "input_size": (3, 32, 32)}
    return vit


@contextlib.contextmanager
def known_by_name(configs: Mapping[str, dict[str, Any]], folder: Path) -> Iterator[None]:
    """open_clip and timm know the tiny models by name.

    Args:
        configs: of open_clip, by name.
        folder: for their files.
    """
    timm.models._registry._model_entrypoints["clprompt_tiny_siglip"] = clprompt_tiny_siglip
    for name, values in configs.items():
        (folder / f"{name}.json").write_text(json.dumps(values))
    open_clip.add_model_config(folder)
    yield
    for name in configs:
        del open_clip.factory._MODEL_CONFIGS[name]
    del timm.models._registry._model_entrypoints["clprompt_tiny_siglip"]


def state_of(model: Any) -> dict[str, Tensor]:
    """Weights larger than the initial ones, norms included, so that a mistake shows."""
    generator = torch.Generator().manual_seed(0)
    state = {}
    for key, value in model.state_dict().items():
        if key == "logit_scale":
            state[key] = torch.tensor(math.log(20.0))
        elif key == "logit_bias":
            state[key] = torch.tensor(-5.0)
        else:
            size = value.shape[-1] ** -0.5 if value.ndim > 1 else 0.3
            state[key] = torch.randn(value.shape, generator=generator) * size + (
                key.endswith("weight") and value.ndim == 1
            )
    return state
