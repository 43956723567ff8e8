"""Where a backbone comes from: timm, which is imported when one is built, a file of weights, the package."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any, Literal, get_args

from torch import Tensor, nn

from clprompt import schema
from clprompt.backbones.checkpoints import check_finite, load_weights
from clprompt.backbones.text import FrozenText
from clprompt.backbones.tokenizers import WordTokenizer
from clprompt.errors import BackboneError, tell
from clprompt.inputs import ImageSpec, per_channel
from clprompt.seeding import preserved_rng

#: What is subtracted from pixels and what they are divided by, see :func:`image_spec`.
Normalise = Literal["backbone", "unit", "dataset"]


#: What makes a shape of one's own of a timm model, for which there are no weights anywhere.
_SHAPE = ("depth", "embed_dim", "num_heads", "patch_size")


def has_random_weights(
    source: str, pretrained: bool | None, checkpoint: Any, kwargs: Mapping[str, Any]
) -> bool:
    """Whether a model of timm, in the shape of its published weights, is to be built without any weights."""
    if pretrained or checkpoint or any(key in kwargs for key in _SHAPE):
        return False
    return source not in (*embedded_backbones(), "clip")


def create_vit(
    source: str | nn.Module, pretrained: bool | None, checkpoint: str | Path | None, kwargs: dict[str, Any]
) -> tuple[nn.Module, dict[str, Any]]:
    """The timm module and its data configuration (mean, std, interpolation)."""
    import timm
    from timm.data import resolve_model_data_config

    if isinstance(source, nn.Module):
        if pretrained or checkpoint or kwargs:
            raise BackboneError(
                "a backbone given as a module takes no pretrained, checkpoint or timm arguments"
            )
        return source, resolve_model_data_config(source)
    if source in embedded_backbones():
        if checkpoint:
            raise BackboneError(
                f"the embedded backbone {source} brings its own weights; it takes no checkpoint"
            )
        return _create_embedded(source, kwargs)
    if pretrained and checkpoint:
        raise BackboneError("backbone: give pretrained=true or a checkpoint file, not both")
    if not timm.is_model(source):
        from clprompt.errors import nearest

        hint = nearest(source.split(".")[0], [*timm.list_models(["*vit*", "eva*"]), *embedded_backbones()])
        raise BackboneError(f'backbone "{source}" is neither a timm model nor an embedded one{hint}')
    try:
        with preserved_rng(0):  # random weights are the same every time, and the caller's random state stays
            vit = timm.create_model(source, pretrained=bool(pretrained), num_classes=0, **kwargs)
    except (TypeError, AssertionError, RuntimeError, ValueError) as error:
        raise BackboneError(f'backbone "{source}" could not be built: {_one_line(error)}') from error
    except Exception as error:
        if not pretrained:
            raise
        raise BackboneError(
            f'backbone "{source}": its pretrained weights could not be loaded ({_one_line(error)}); give a '
            'file of them: backbone.checkpoint=FILE (in Python: checkpoint="FILE")'
        ) from error
    if pretrained is None and has_random_weights(source, pretrained, checkpoint, kwargs):
        tell(
            f"backbone {source} has random weights, as it was given neither pretrained=True nor "
            "checkpoint=FILE; pretrained=False says that they are meant"
        )
    if pretrained:
        check_finite(vit.state_dict(), f'backbone "{source}"')
    if "img_size" in kwargs:
        _check_image_size(vit, source)
    if checkpoint:
        load_weights(vit, Path(checkpoint))
    return vit, resolve_model_data_config(vit)


def _check_image_size(vit: Any, name: str) -> None:
    """timm leaves out the pixels that do not fill a patch; who asks for a size means all of it."""
    from timm.layers import PatchEmbed

    embed = getattr(vit, "patch_embed", None)
    if not isinstance(embed, PatchEmbed) or embed.dynamic_img_pad:
        return
    for size, patch in zip(embed.img_size, embed.patch_size, strict=True):
        if size % patch:
            fits = max(size // patch, 1) * patch
            raise BackboneError(
                f"backbone {name}: img_size {size} is not a multiple of the patch size {patch}; "
                f"{fits} or {fits + patch} would be"
            )


def embedded_backbones() -> list[str]:
    """Names of the backbones that clprompt itself carries."""
    files = resources.files("clprompt.assets").iterdir()
    return sorted(item.name[:-5] for item in files if item.name.endswith(".json"))


def _create_embedded(name: str, kwargs: dict[str, Any]) -> tuple[nn.Module, dict[str, Any]]:
    from safetensors.torch import load
    from timm.layers import resample_abs_pos_embed
    from timm.models.vision_transformer import VisionTransformer

    folder = resources.files("clprompt.assets")
    facts = json.loads((folder / f"{name}.json").read_text())
    if "image" in facts:  # the image tower of an image-text model is another embedded one
        return _create_embedded(facts["image"], kwargs)
    others = [key for key in kwargs if key != "img_size"]
    if others:
        raise BackboneError(
            f"the embedded backbone {name} has a fixed shape; beside img_size it takes no {', '.join(others)}"
        )
    with preserved_rng(0):
        vit = VisionTransformer(**{**facts["model"], "num_classes": 0, **kwargs})
    _check_image_size(vit, name)
    weights = load((folder / f"{name}.safetensors").read_bytes())
    if kwargs:
        grid = list(vit.patch_embed.grid_size)
        weights["pos_embed"] = resample_abs_pos_embed(weights["pos_embed"].float(), grid)
    vit.load_state_dict({key: value.float() for key, value in weights.items()})
    return vit, facts


def embedded_text(name: str) -> tuple[FrozenText, Tensor, float] | None:
    """The text tower of an embedded backbone, the projection of image features [D, E], the scale of logits.

    None for a backbone of images alone, and for one that is not embedded.
    """
    if name not in embedded_backbones():
        return None
    from safetensors.torch import load

    folder = resources.files("clprompt.assets")
    facts = json.loads((folder / f"{name}.json").read_text())
    if "text" not in facts:
        return None
    weights = {
        key: value.float() for key, value in load((folder / f"{name}.safetensors").read_bytes()).items()
    }
    tokenizer = WordTokenizer(facts["words"])
    with preserved_rng(0):
        text = FrozenText(vocabulary=tokenizer.vocabulary, tokenizer=tokenizer, **facts["text"])
    text.load_state_dict(
        {key.removeprefix("text."): value for key, value in weights.items() if key.startswith("text.")}
    )
    return text, weights["projection"], float(weights["logit_scale"].exp())


def image_spec(vit: Any, config: Mapping[str, Any], normalise: Normalise) -> ImageSpec:
    """The images that a timm module takes.

    Args:
        vit: the module.
        config: its data configuration.
        normalise: "backbone" for its own mean and standard deviation, "unit" for pixels in [0, 1], "dataset"
            for those of a data set, which are nan until it tells them.

    Raises:
        BackboneError: an unknown normalisation.
    """
    constants = {
        "backbone": (config["mean"], config["std"]),
        "unit": ([0.0], [1.0]),
        "dataset": ([math.nan], [math.nan]),
    }
    if normalise not in get_args(Normalise):
        raise BackboneError(
            f"backbone.normalise must be one of {', '.join(get_args(Normalise))}, "
            f"got {schema.show(normalise)}"
        )
    mean, std = constants[normalise]
    channels = int(vit.patch_embed.proj.in_channels)
    height, width = vit.patch_embed.img_size
    return ImageSpec(
        size=(int(height), int(width)),
        channels=channels,
        interpolation=str(config.get("interpolation", "bicubic")),
        antialias=bool(config.get("antialias", True)),
        mean=per_channel(mean, channels),
        std=per_channel(std, channels),
    )


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]
