"""`backbone: {name: clip}`: both towers of a CLIP or SigLIP model, from files in open_clip's or OpenAI names.

Its shape comes from open_clip's configuration of a name, or from the tensors of a bare file; projections,
scale and bias from the file. open_clip itself is asked for configurations and tokenizers only. timm is
imported when a tower is built: what may stand in the section is read without.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from clprompt import schema
from clprompt.backbones.checkpoints import AVERAGED, Tensors, check_finite, load_tensors, read_tensors
from clprompt.backbones.sources import Normalise
from clprompt.backbones.text import FrozenText, text_weights
from clprompt.backbones.tokenizers import BytePairs, HuggingFace, Tokenizer, open_clip_package
from clprompt.backbones.vit import FrozenViT
from clprompt.errors import BackboneError, nearest, tell
from clprompt.seeding import preserved_rng


@schema.checked
def clip_backbone(
    *,
    model: str | None = None,
    checkpoint: str | Path | None = None,
    quick_gelu: bool | None = None,
    pretrained: bool | None = None,
    normalise: Normalise = "backbone",
    img_size: Annotated[int, schema.at_least(1)] | None = None,
) -> FrozenViT:
    """An image-text backbone, both towers frozen.

    Args:
        model: one of open_clip's names, such as ViT-B-16-quickgelu; None for the shape of a bare checkpoint,
            a CLIP of attention heads of 64.
        checkpoint: a file of weights (safetensors or PyTorch) in open_clip's or OpenAI's names, in a wrapper
            or not.
        quick_gelu: whether the activation is x * sigmoid(1.702 x), as for OpenAI's weights. None for what
            open_clip says of the name; a bare checkpoint needs it said, as weights do not tell.
        pretrained: false, written down, for random weights without a checkpoint.
        normalise: as for every backbone, see :class:`clprompt.backbones.FrozenViT`.
        img_size: pixels of an image's side; position embeddings are resampled. None for the model's own.

    Raises:
        BackboneError: no weights; a model or a file that does not fit, or is not supported, by name.
    """
    if pretrained:
        raise BackboneError("backbone clip downloads nothing: give backbone.checkpoint=FILE")
    if checkpoint is None and pretrained is None:
        raise BackboneError(
            "backbone clip has no weights: give backbone.checkpoint=FILE, or write down "
            "backbone.pretrained=false for random ones"
        )
    if checkpoint is None and model is None:
        raise BackboneError("backbone clip: give backbone.model, one of open_clip's names")
    tensors = None if checkpoint is None else _model_tensors(Path(checkpoint))
    if model is None:
        assert tensors is not None
        source = f"backbone.checkpoint {checkpoint}"
        if quick_gelu is None:
            raise BackboneError(
                f"{source}: its activation cannot be seen in the file; give backbone.quick_gelu=true "
                "(OpenAI's weights) or false, or backbone.model=NAME"
            )
        config = _shape_of(tensors, source)
    else:
        config = _config_of(model)
    name = f"clip {model}" if model else "clip"
    quick = bool(config.get("quick_gelu", False)) if quick_gelu is None else quick_gelu
    if tensors is not None and "input_resolution" in tensors and not quick:
        raise BackboneError(
            f"backbone.checkpoint {checkpoint} is OpenAI's, whose activation is QuickGELU, which is not "
            f"that of {model or 'the model'}: backbone.quick_gelu=true, or a name in -quickgelu"
        )
    _refuse(config, name)
    from clprompt.backbones.families import family_of

    with preserved_rng(0):  # random weights are the same every time
        vit = _image_tower(config["vision_cfg"], quick, img_size, name)
        family_of(vit, name)  # refuses what is not plain
        text = _text_tower(config, quick, name)
        projection = _random_projection(config, vit)
    scale, bias = config.get("init_logit_scale", math.log(1 / 0.07)), config.get("init_logit_bias")
    if tensors is not None:
        projection, scale, bias = _load(vit, text, projection, tensors, Path(str(checkpoint)), name)
    backbone = FrozenViT(vit, normalise=normalise)
    backbone.source = name
    return backbone.add_text(text, projection=projection, scale=math.exp(scale), logit_bias=bias)


# ------------------------------------------------------------------------------------------------- shapes


def _config_of(model: str) -> dict[str, Any]:
    """open_clip's configuration of a name."""
    open_clip = open_clip_package()
    config = open_clip.get_model_config(model)
    if config is None:
        hint = nearest(model, open_clip.list_models())
        raise BackboneError(f'backbone.model "{model}" is none of open_clip\'s{hint}')
    return dict(config)


def _shape_of(tensors: Tensors, source: str) -> dict[str, Any]:
    """What open_clip's configuration of a bare CLIP would be; heads are 64 wide, as OpenAI's are."""
    shapes = {key: tuple(value.shape) for key, value in tensors.items()}
    asked = ("visual.conv1.weight", "visual.positional_embedding", "visual.proj")
    texts = _text_part(tensors)
    for key in asked:
        if key not in shapes:
            raise BackboneError(
                f"{source} has no {key}, so its shape cannot be read: give backbone.model=NAME, "
                "one of open_clip's"
            )
    for key in ("token_embedding.weight", "positional_embedding", "ln_final.weight"):
        if key not in texts:
            raise BackboneError(f"{source} has no text tower of CLIP: {key} is missing")
    width, _, patch, _ = shapes["visual.conv1.weight"]
    side = math.isqrt(shapes["visual.positional_embedding"][0] - 1)
    return {
        "embed_dim": shapes["visual.proj"][1],
        "vision_cfg": {
            "width": width,
            "layers": _blocks(key for key in shapes if key.startswith("visual.transformer.")),
            "patch_size": patch,
            "image_size": side * patch,
            "no_ln_pre": "visual.ln_pre.weight" not in shapes,
        },
        "text_cfg": {
            "width": (text_width := texts["ln_final.weight"].shape[0]),
            "heads": max(text_width // 64, 1),
            "layers": _blocks(key for key in texts if key.startswith("transformer.")),
            "context_length": texts["positional_embedding"].shape[0],
            "vocab_size": texts["token_embedding.weight"].shape[0],
        },
    }


def _blocks(keys: Any) -> int:
    return len({key.split("resblocks.")[1].split(".")[0] for key in keys if "resblocks." in key})


#: Beginnings of timm's names of towers that are no plain ViT, and what they are.
_TIMM_FAMILIES = {
    "convnext": "a ConvNeXt",
    "vitamin": "a ViTamin",
    "fastvit": "a FastViT",
    "swin": "a Swin Transformer",
    "eva": "an EVA",
    "vit_pe_": "a Perception Encoder",
}
#: Settings of open_clip's own blocks that timm's blocks do not have.
_BLOCK_SETTINGS = (
    *("block_type", "qk_norm", "scaled_cosine_attn", "scale_heads", "scale_attn_inner", "scale_attn"),
    *("scale_fc", "ls_init_value"),
)


def _refuse(config: Mapping[str, Any], name: str) -> None:
    """Refuse by name what has no towers of timm's plain blocks, or was not compared with open_clip."""
    vision, text = config["vision_cfg"], config["text_cfg"]
    timm_name = vision.get("timm_model_name") or ""
    family = next((what for start, what in _TIMM_FAMILIES.items() if timm_name.startswith(start)), None)
    settings = [key for key in _BLOCK_SETTINGS if vision.get(key) or text.get(key)]
    causal, pool = not text.get("no_causal_mask", False), text.get("pool_type", "argmax")
    reasons = {
        "it is a CoCa": "multimodal_cfg" in config or text.get("embed_cls") or vision.get("attentional_pool"),
        "its text tower is Hugging Face's " + str(text.get("hf_model_name")): text.get("hf_model_name"),
        "its image tower is a ResNet": isinstance(vision.get("layers"), list | tuple),
        f"its image tower is {family}": family,
        "its image tower has its last norm behind pooling": vision.get("final_ln_after_pool"),
        "its image tower pools by " + str(vision.get("pool_type")): vision.get("pool_type", "tok") != "tok",
        "its projection of images is an MLP": vision.get("timm_proj") == "mlp",
        f"its blocks have {', '.join(settings)}": settings,
        f"its text tower pools by {pool} {'with' if causal else 'without'} a causal mask": (
            pool not in ("argmax", "eos") if causal else pool != "last"
        ),
    }
    for reason, applies in reasons.items():
        if applies:
            raise BackboneError(
                f"backbone {name} is not supported: {reason}; clprompt runs plain ViTs with CLIP's or "
                "SigLIP's text tower"
            )


# ------------------------------------------------------------------------------------------------- towers


def _image_tower(vision: Mapping[str, Any], quick: bool, img_size: int | None, name: str) -> Any:
    """The timm module of an image tower, with random weights, without a classifier."""
    import timm
    from timm.data import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD
    from timm.layers import QuickGELU
    from timm.models.vision_transformer import VisionTransformer

    if vision.get("timm_model_name"):  # of timm itself, with timm's own activation whatever is said
        changes: dict[str, Any] = {} if img_size is None else {"img_size": img_size}
        pool = {"global_pool": vision["timm_pool"]} if vision.get("timm_pool") else {}
        if vision.get("timm_proj") != "linear":
            return timm.create_model(vision["timm_model_name"], num_classes=0, **pool, **changes)
        vit: Any = timm.create_model(vision["timm_model_name"], **changes)
        vit.reset_classifier(0, **pool)  # its norm stays where it was, as in open_clip
        return vit
    width = vision.get("width", 768)
    size = img_size or vision.get("image_size", 224)
    patch = vision.get("patch_size", 16)
    if img_size is not None and img_size % patch:
        fits = max(img_size // patch, 1) * patch
        raise BackboneError(
            f"backbone {name}: img_size {img_size} is not a multiple of the patch size {patch}; "
            f"{fits} or {fits + patch} would be"
        )
    vit = VisionTransformer(
        img_size=size,
        patch_size=patch,
        embed_dim=width,
        depth=vision.get("layers", 12),
        num_heads=max(width // vision.get("head_width", 64), 1),
        mlp_ratio=vision.get("mlp_ratio", 4.0),
        num_classes=0,
        pre_norm=not vision.get("no_ln_pre", False),
        norm_layer=partial(nn.LayerNorm, **{"eps": 1e-5} | (vision.get("norm_kwargs") or {})),  # type: ignore[arg-type]
        act_layer=QuickGELU if quick else nn.GELU,
    )
    vit.pretrained_cfg = {  # what timm says of CLIP's images
        "input_size": (3, *vit.patch_embed.img_size),
        "mean": OPENAI_CLIP_MEAN,
        "std": OPENAI_CLIP_STD,
        "interpolation": "bicubic",
    }
    return vit


def _text_tower(config: Mapping[str, Any], quick: bool, name: str) -> FrozenText:
    text = config["text_cfg"]
    length = text.get("context_length", 77)
    activation = text.get("act_kwargs") or {}
    kind = text.get("proj_type", "linear")
    tokenizer: Tokenizer
    vocabulary = text.get("vocab_size", 49408)
    settings = text.get("tokenizer_kwargs") or {}
    if text.get("hf_tokenizer_name"):
        tokenizer = HuggingFace(text["hf_tokenizer_name"], length, settings, owner=name)
    else:
        tokenizer = BytePairs(vocabulary, settings, owner=name)
    return FrozenText(
        width=text.get("width", 512),
        depth=text.get("layers", 12),
        num_heads=text.get("heads", 8),
        length=length,
        vocabulary=vocabulary,
        joint_width=config["embed_dim"],
        tokenizer=tokenizer,
        quick_gelu=quick,
        approximate=activation.get("approximate", "none"),
        causal=not text.get("no_causal_mask", False),
        eps=(text.get("norm_kwargs") or {}).get("eps", 1e-5),
        mlp_ratio=text.get("mlp_ratio", 4.0),
        projection="none" if kind == "none" else "bias" if text.get("proj_bias") else "linear",
    )


def _random_projection(config: Mapping[str, Any], vit: Any) -> Tensor | None:
    vision = config["vision_cfg"]
    if vision.get("timm_model_name") and vision.get("timm_proj") != "linear":
        return None
    return torch.randn(vit.embed_dim, config["embed_dim"]) * vit.embed_dim**-0.5


# ------------------------------------------------------------------------------------------------ weights


def _model_tensors(path: Path) -> Tensors:
    """The tensors of the image-text model in a file, wrappers undone; an averaged copy comes first."""
    tensors = read_tensors(path)
    prefixes = [key.removesuffix("logit_scale") for key in tensors if key.split(".")[-1] == "logit_scale"]
    if not prefixes:
        names = ", ".join(list(tensors)[:3])
        raise BackboneError(
            f"backbone.checkpoint {path} holds no image-text model: it has no logit_scale"
            + (f"; it holds {names}, ... ({len(tensors)} tensors)" if tensors else "")
        )
    prefix = min(prefixes, key=lambda prefix: not AVERAGED & {*prefix.replace("_", ".").split(".")})
    if prefix:
        tell(f'backbone.checkpoint {path}: the tensors under "{prefix}" are taken')
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


_TEXT_PARTS = ("token_embedding.", "positional_embedding", "transformer.", "ln_final.", "text_projection")


def _text_part(tensors: Tensors) -> Tensors:
    """The text tower's tensors in open_clip's names, without a prefix."""
    part = {key.removeprefix("text."): value for key, value in tensors.items() if key.startswith("text.")}
    part = part or {key: value for key, value in tensors.items() if key.startswith(_TEXT_PARTS)}
    return {key: value for key, value in part.items() if key != "attn_mask"}


def _load(
    vit: Any, text: FrozenText, projection: Tensor | None, tensors: Tensors, path: Path, name: str
) -> tuple[Tensor | None, float, float | None]:
    """Load both towers; the projection of images [D, E], the logarithm of the scale, and the bias."""
    source = f"backbone.checkpoint {path}"
    images = {key: value for key, value in tensors.items() if key.startswith("visual.")}
    trunk = {key.removeprefix("visual.trunk."): v for key, v in images.items() if "visual.trunk." in key}
    load_tensors(vit, trunk or {k: v for k, v in images.items() if k != "visual.proj"}, path)
    state = text_weights(_text_part(tensors))
    wanted = text.state_dict()
    problems = [f"{key} is missing" for key in wanted if key not in state]
    problems += [f"{key} is not part of it" for key in state if key not in wanted]
    problems += [
        f"{key} is {list(state[key].shape)} in the file and {list(value.shape)} in the model"
        for key, value in wanted.items()
        if key in state and state[key].shape != value.shape
    ]
    expected = None if projection is None else tuple(projection.shape)
    found = images.get("visual.proj")
    if found is None and "visual.head.proj.weight" in images:
        found = images["visual.head.proj.weight"].T
    if (None if found is None else tuple(found.shape)) != expected or "visual.head.proj.bias" in images:
        there = "none" if found is None else list(found.shape)
        problems.append(
            f"the projection of images is {there} in the file and {expected or 'none'} in the model"
        )
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise BackboneError(
            f"{source} does not fit the text tower and projections of {name}: {'; '.join(problems[:3])}{more}"
        )
    numbers = {key: tensors[key] for key in ("logit_scale", "logit_bias") if key in tensors}
    check_finite(state | numbers | ({} if found is None else {"visual.proj": found}), source)
    text.load_state_dict({key: value.float() for key, value in state.items()})
    return (
        None if found is None else found.float(),
        float(numbers["logit_scale"]),
        float(numbers["logit_bias"]) if "logit_bias" in numbers else None,
    )
