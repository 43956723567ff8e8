"""The families of timm models that FrozenViT runs, and what each of them does in a way of its own.

A family says where positions are: in the stream that enters block 0 (``VisionTransformer``), or, beside or in
place of these, in the queries and keys of every block (``Eva``, whose positions are rotary). How a block's
layers are named is told to :mod:`clprompt.backbones.attention` here as well.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from timm.layers import PatchEmbed
from timm.layers.attention import Attention, AttentionRope
from timm.models import eva, vision_transformer
from timm.models.eva import Eva, EvaAttention, EvaBlock
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from clprompt.backbones.attention import projections, residual_mlp
from clprompt.backbones.rotary import Rotary
from clprompt.errors import BackboneError


class PlainViT:
    """timm's ``VisionTransformer``: all positions are in the stream that enters block 0.

    Args:
        vit: the model.

    Attributes:
        has_class_token: whether the first token is a class token.
    """

    model_type: ClassVar[Any] = VisionTransformer
    block_type: ClassVar[type] = Block
    attention_types: ClassVar[tuple[type, ...]] = (Attention,)
    #: timm's renaming of other projects' weights, ``translate(tensors, model) -> tensors``
    translate: ClassVar[Callable[..., Any]] = staticmethod(vision_transformer.checkpoint_filter_fn)

    def __init__(self, vit: Any) -> None:
        self.vit = vit
        self.has_class_token = vit.cls_token is not None

    @classmethod
    def reason_against(cls, model: Any) -> str | None:
        """What of a model of this family is not plain, in a word; None for nothing."""
        if not isinstance(model.patch_embed, PatchEmbed):
            return type(model.patch_embed).__name__
        for kind in map(type, model.blocks):
            if kind is not cls.block_type:
                return kind.__name__
        for kind in (type(block.attn) for block in model.blocks):
            if kind not in cls.attention_types:
                return kind.__name__
        return None

    def position(self, patches: Tensor) -> Tensor:
        """Patches with class token, registers and positions: [B, n, D] or [B, h, w, D] -> [B, N, D]."""
        return self.vit._pos_embed(patches)

    def rotary(self, rows: int) -> Sequence[Rotary | None]:
        """Rotary positions of a stream of so many rows, one a block; None where a block has none."""
        return (None,) * len(self.vit.blocks)


class RotaryViT(PlainViT):
    """timm's ``Eva``: queries and keys of the patches are rotated by their place in the grid, in every block.

    Class token and registers have no place in the grid, and prompts have none: they are not rotated. The
    rotation is that of the images embedded last: images of other sizes (``dynamic_img_size``) have others.

    Source: Fang et al. 2023 (EVA-02); Heo et al. 2024 (RoPE-ViT), mixed frequencies by block.
    """

    model_type = Eva
    block_type = EvaBlock
    attention_types = (EvaAttention, AttentionRope)
    translate = staticmethod(eva.checkpoint_filter_fn)

    def __init__(self, vit: Any) -> None:
        super().__init__(vit)
        self._embedding: Tensor | None = None  # [n, 2 d]; with mixed frequencies [depth, H, n, 2 d]

    @classmethod
    def reason_against(cls, model: Any) -> str | None:
        reason = super().reason_against(model)
        if reason is None and any(getattr(block.attn, "num_kv_groups", 1) > 1 for block in model.blocks):
            return "grouped-query attention"
        return reason

    def position(self, patches: Tensor) -> Tensor:
        tokens, self._embedding = self.vit._pos_embed(patches)
        return tokens

    def rotary(self, rows: int) -> Sequence[Rotary | None]:
        vit = self.vit
        if vit.rope is None:
            return (None,) * len(vit.blocks)
        if self._embedding is None:  # tokens from elsewhere, of the model's own image size
            high, wide = vit.patch_embed.grid_size
            shape = (1, high, wide) if vit.dynamic_img_size else (1, high * wide)
            self.position(vit.patch_embed.proj.weight.new_zeros(*shape, vit.embed_dim))
        embedding = self._embedding
        assert embedding is not None
        start = int(vit.num_prefix_tokens)
        if start + embedding.shape[-2] > rows:
            raise BackboneError(
                f"{rows} tokens are no stream of the images embedded last: these have {embedding.shape[-2]} "
                f"patches behind {start} tokens, whose rotary positions they would get"
            )
        half = bool(getattr(vit.blocks[0].attn, "rotate_half", False))
        if embedding.ndim == 2:
            return (Rotary(embedding, start, half),) * len(vit.blocks)
        return [Rotary(part, start, half) for part in embedding]


FAMILIES: tuple[type[PlainViT], ...] = (PlainViT, RotaryViT)


def family_of(model: Any, name: str) -> PlainViT:
    """The family of a timm model.

    Args:
        model: the timm module.
        name: what it is called in the line that refuses it.

    Raises:
        BackboneError: it is no pre-norm vision transformer of plain blocks, where prompts would mean
            something else; with what is not plain.
    """
    allowed = "clprompt runs timm's VisionTransformer and Eva of plain pre-norm blocks"
    family = _family(model)
    if family is None or type(model).forward_features is not family.model_type.forward_features:
        raise BackboneError(f"backbone {name} ({type(model).__name__}) is not supported; {allowed}")
    if model.global_pool == "":
        raise BackboneError(f"backbone {name} has no pooling (global_pool=''), so no features to classify")
    reason = family.reason_against(model)
    if reason is not None:
        raise BackboneError(f"backbone {name}: {reason} is not supported; {allowed}")
    return family(model)


def weights_translator(model: nn.Module) -> Callable[..., Any]:
    """timm's renaming of other projects' weights for a model, ``translate(tensors, model) -> tensors``."""
    return (_family(model) or PlainViT).translate


def _family(model: nn.Module) -> type[PlainViT] | None:
    return next((family for family in FAMILIES if isinstance(model, family.model_type)), None)


# ------------------------------------------------------------------------------------ Eva's names of layers


@projections.register
def _(attn: EvaAttention, x: Tensor, first: int, last: int) -> Sequence[Tensor]:
    if attn.qkv is None:
        return _separate(attn, x, first, last)
    width = attn.qkv.out_features // 3
    biases: Any = (attn.q_bias, attn.k_bias, attn.v_bias)  # keys have none, which timm keeps as zeros
    bias = None if attn.q_bias is None else torch.cat(biases[first:last])
    return F.linear(x, attn.qkv.weight[first * width : last * width], bias).split(width, dim=-1)


@projections.register
def _(attn: AttentionRope, x: Tensor, first: int, last: int) -> Sequence[Tensor]:
    if attn.qkv is None:
        return _separate(attn, x, first, last)
    return projections.dispatch(object)(attn, x, first, last)


def _separate(attn: Any, x: Tensor, first: int, last: int) -> Sequence[Tensor]:
    return [layer(x) for layer in (attn.q_proj, attn.k_proj, attn.v_proj)[first:last]]


@residual_mlp.register
def _(block: EvaBlock, x: Tensor, attended: Tensor) -> Tensor:
    x = x + (attended if block.gamma_1 is None else block.gamma_1 * attended)
    out = block.mlp(block.norm2(x))
    return x + (out if block.gamma_2 is None else block.gamma_2 * out)
