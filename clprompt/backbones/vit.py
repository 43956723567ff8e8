"""FrozenViT: any plain ViT or Eva of timm, frozen, in eval mode, run block by block with prompts."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clprompt.backbones.attention import (
    BlockPrompt,
    SpelledOut,
    finish_attention,
    project,
    project_stream,
    prompted_block,
    residual_mlp,
    spelled_out,
)
from clprompt.backbones.digest import digest
from clprompt.backbones.sources import Normalise, create_vit, embedded_text, image_spec
from clprompt.backbones.text import FrozenText
from clprompt.errors import BackboneError, ConfigError, ProtocolError
from clprompt.inputs import ImageSpec

if TYPE_CHECKING:
    from timm.models.vision_transformer import Block

#: What a method hands to :meth:`FrozenViT.run`: ``prompts(block, x) -> BlockPrompt | several | None``.
Prompts = Callable[[int, Tensor], "BlockPrompt | Sequence[BlockPrompt] | None"]


class FrozenViT(nn.Module):
    """A timm vision transformer whose weights never change.

    It calls timm's own pieces (``patch_embed``, ``_pos_embed``, ``norm_pre``, ``blocks``, ``norm``,
    ``forward_head``) and subclasses nothing, so its features are timm's features. Weights have
    ``requires_grad=False`` and the module stays in eval mode whatever ``train()`` says.

    Args:
        source: a timm model name, the name of an embedded backbone (``vit_letters``; ``clip_letters``, the
            same with a text tower), or a timm ``VisionTransformer`` or ``Eva`` (EVA-02, DINOv3, RoPE-ViT) of
            your own, which is frozen in place.
        pretrained: load timm's weights for this name (needs the weights in timm's cache or a network). False
            for random ones; so does None, with a :class:`clprompt.errors.DataWarning` where neither a
            checkpoint is given nor a shape of one's own (``depth``, ``embed_dim``, ...).
        checkpoint: a local file of weights: safetensors, PyTorch or npz, in the names of timm, Hugging Face,
            torchvision, CLIP or JAX. Wrappers (``state_dict``, ``model.``, ``teacher.backbone.``) are undone
            with a notice, a classifier is left out, position embeddings are resampled to the image size.
        normalise: "backbone" gives images the mean and standard deviation that the weights were trained with;
            "unit" leaves pixels in [0, 1], as several published recipes do; "dataset" takes those of the data
            set, as others do: a run puts them in, and a script by :func:`clprompt.data.inputs_for` and
            :meth:`with_inputs`.
        **timm_kwargs: passed to ``timm.create_model`` (``img_size=112``, ``depth=4``, ...).

    Attributes:
        depth: blocks.
        width: of the residual stream, D.
        num_heads: attention heads of a block.
        num_prefix_tokens: class, distillation and register tokens in front of the patches.
        num_tokens: tokens of one image, prefix included, at the model's own image size.
        has_class_token: whether the first token is a class token.
        pooling: which tokens make the features, in timm's words ("token", "avg", "map", ...).
        inputs: the images that the weights expect, see :class:`clprompt.inputs.ImageSpec`.
        head_rows: the rows that pooling reads after the last block; None for all.
        text: the text tower beside it; None for a backbone of images alone, see :meth:`add_text`.
        scale: what cosines of image and text features are multiplied with in logits, s; 1 without a text
            tower.
        logit_bias: what is added to these logits (SigLIP); None where there is none.
        share_prefix: switch of an exact saving: blocks before the first prompt run once, for the query and
            for the prompted pass.
        trim_last_block: switch of another: the last block computes only the rows that are read.

    Raises:
        BackboneError: the model is not a plain vision transformer, the checkpoint does not fit, or the
            normalisation is unknown.
    """

    def __init__(
        self,
        source: str | nn.Module,
        *,
        pretrained: bool | None = None,
        checkpoint: str | Path | None = None,
        normalise: Normalise = "backbone",
        **timm_kwargs: Any,
    ) -> None:
        from clprompt.backbones.families import family_of  # not before a backbone is built: it imports timm

        super().__init__()
        self.source = source if isinstance(source, str) else f"{type(source).__name__} given as a module"
        self.vit, config = create_vit(source, pretrained, checkpoint, timm_kwargs)
        self.family = family_of(self.vit, self.source)
        self.vit.requires_grad_(False)
        self.vit.eval()
        vit: Any = self.vit
        self.depth = len(vit.blocks)
        self.width = int(vit.embed_dim)
        self.num_heads = int(vit.blocks[0].attn.num_heads)
        self.num_prefix_tokens = int(vit.num_prefix_tokens)
        self.num_tokens = int(vit.patch_embed.num_patches) + self.num_prefix_tokens
        self.patch_size = tuple(int(side) for side in vit.patch_embed.patch_size)
        self.has_class_token = self.family.has_class_token
        self.pooling = str(vit.global_pool)
        self.inputs: ImageSpec = image_spec(vit, config, normalise)
        self.head_rows = slice(0, self.num_prefix_tokens) if self.pooling == "token" else None
        self.share_prefix = True
        self.trim_last_block = True
        self.text: FrozenText | None = None
        self.projection: nn.Module = nn.Identity()
        self.scale = 1.0
        self.logit_bias: float | None = None
        #: what stands between a method's prompts and the blocks, see :meth:`with_prompts_through`
        self.around: Callable[[Prompts, int | None, slice | None], Prompts] | None = None
        if isinstance(source, str) and (embedded := embedded_text(source)) is not None:
            text, projection, scale = embedded
            self.add_text(text, projection=projection, scale=scale)

    def with_prompts_through(
        self, around: Callable[[Prompts, int | None, slice | None], Prompts] | None
    ) -> FrozenViT:
        """The same weights under a face whose prompts are ``around(prompts, block, rows)``, or as given.

        It is called once per run, with the block of which only ``rows`` are computed; None where all are.
        """
        face = copy.copy(self)
        face.around = around
        return face

    def with_inputs(self, inputs: ImageSpec) -> FrozenViT:
        """The same weights under a face that takes images in another way."""
        face = copy.copy(self)
        face.inputs = inputs
        return face

    def add_text(
        self, text: FrozenText, *, projection: Tensor | None, scale: float, logit_bias: float | None = None
    ) -> FrozenViT:
        """Make it an image-text model: put a text tower beside it, in place.

        Args:
            text: the text tower, whose joint space has E dimensions.
            projection: of image features into that space, [D, E]; None where they are in it as they are.
            scale: what cosines are multiplied with in logits, s.
            logit_bias: what is added to these; None for nothing.

        Returns:
            Itself.

        Raises:
            BackboneError: the two towers do not end in one space.
        """
        joint = self.width if projection is None else projection.shape[1]
        if joint != text.joint_width:
            raise BackboneError(
                f"backbone {self.source}: image features of width {joint} and text features of width "
                f"{text.joint_width} have no cosine"
            )
        self.text = text
        if projection is not None:
            self.projection = nn.Linear(self.width, joint, bias=False, device=projection.device)
            self.projection.weight.data = projection.detach().T.contiguous()
            self.projection.requires_grad_(False)
        self.scale, self.logit_bias = scale, logit_bias
        # where a run exports its backbone, they go with it
        self.register_buffer("logit_terms", torch.tensor(self._terms(), dtype=torch.float64))
        self.register_load_state_dict_post_hook(_take_logit_terms)
        return self

    def _terms(self) -> list[float]:
        return [self.scale] if self.logit_bias is None else [self.scale, self.logit_bias]

    @property
    def joint_width(self) -> int:
        """Dimensions of the space that images and texts share, E; the image tower's without a text tower."""
        return self.width if self.text is None else self.text.joint_width

    def project(self, features: Tensor) -> Tensor:
        """Image features in the space that they share with texts, not normalised: [..., D] -> [..., E]."""
        return self.projection(features)

    def train(self, mode: bool = True) -> FrozenViT:
        """Stay in eval mode: a frozen backbone has no dropout and no stochastic depth."""
        return super().train(False)

    @property
    def dtype(self) -> torch.dtype:
        """The number format of the weights."""
        return next(self.vit.parameters()).dtype

    @property
    def activation(self) -> str:
        """The activation of the blocks, such as "QuickGELU", which weights do not tell."""
        return type(self.blocks[0].mlp.act).__name__

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) of an image in pixels."""
        return self.inputs.size

    @property
    def in_chans(self) -> int:
        """Colour channels of an image."""
        return self.inputs.channels

    @property
    def class_token(self) -> Tensor:
        """The class token without a position, [1, 1, D]; only where ``has_class_token``."""
        return self.vit.cls_token  # type: ignore[return-value]

    @property
    def blocks(self) -> Sequence[Block]:
        """The frozen blocks."""
        return self.vit.blocks  # type: ignore[return-value]

    def check_images(self, images: Any) -> None:
        """Refuse what is no batch of images as ``inputs`` says; nothing is asked while torch traces.

        Shape and number format alone are looked at, for which no device is waited for.

        Args:
            images: [B, C, H, W]; with ``dynamic_img_size`` of any size.

        Raises:
            ProtocolError: anything else.
        """
        if torch.compiler.is_compiling():
            return
        if not isinstance(images, Tensor) or images.ndim != 4:
            what = f"the shape {list(images.shape)}" if isinstance(images, Tensor) else type(images).__name__
            raise ProtocolError(f"images must be a tensor [B, C, H, W], got {what}")
        channels, (height, width) = self.inputs.channels, self.inputs.size
        wanted = [channels, height, width]
        if not getattr(self.vit.patch_embed, "strict_img_size", True):
            wanted[1:] = images.shape[2:]
        if list(images.shape[1:]) != wanted:
            raise ProtocolError(
                f"images must be [B, {channels}, {height}, {width}], as backbone.inputs says, "
                f"got {list(images.shape)}"
            )
        if images.dtype != self.dtype and not (
            images.is_floating_point() and torch.is_autocast_enabled(images.device.type)
        ):
            helps = "; model.placed(images) normalises bytes" if images.dtype == torch.uint8 else ""
            raise ProtocolError(
                f"images must be {self.dtype}, normalised as backbone.inputs says, got {images.dtype}{helps}"
            )

    def patches(self, images: Tensor) -> Tensor:
        """The patch embedding alone, without positions: [B, 3, H, W] -> [B, n, D]; see ``linear_patches``.

        With ``dynamic_img_size`` the patches keep their grid, [B, h, w, D]; :meth:`position` takes both.
        """
        return self.vit.patch_embed(images)  # type: ignore[operator]

    @property
    def linear_patches(self) -> bool:
        """Whether patches are linear up to a bias: patches(x + y) = patches(x) + patches(y) - patches(0)."""
        return isinstance(self.vit.patch_embed.norm, nn.Identity)  # type: ignore[union-attr]

    def position(self, patches: Tensor) -> Tensor:
        """Add class token, registers and positions to patches: [B, n, D] -> tokens [B, N, D]."""
        return self.norm_pre(self.family.position(patches))

    def norm_pre(self, tokens: Tensor) -> Tensor:
        """The norm before the first block (CLIP's): [..., D] -> [..., D]; nothing where there is none."""
        return self.vit.norm_pre(tokens)  # type: ignore[operator]

    def embed(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] -> the tokens that enter block 0, [B, N, D]."""
        return self.position(self.patches(images))

    def run(
        self,
        tokens: Tensor,
        prompts: Prompts | None = None,
        *,
        blocks: slice | None = None,
        rows: slice | None = None,
    ) -> Tensor:
        """Run blocks one after the other, each with what ``prompts`` gives it.

        Args:
            tokens: the stream that enters the first of these blocks, [B, N, D].
            prompts: called as ``prompts(block, x)`` with the stream that enters the block, so that a method
                may match on it; returns a BlockPrompt, a sequence of them, or None.
            blocks: which blocks, as a slice of 0..depth-1; all by default.
            rows: the rows that the caller reads after the last of these blocks; only they are computed there.

        Returns:
            [B, N (+ carried prompts), D], or only the rows asked for.
        """
        indices = range(self.depth)[blocks or slice(None)]
        trimmed = indices[-1] if indices and rows is not None and self.trim_last_block else None
        if prompts is not None and self.around is not None:
            prompts = self.around(prompts, trimmed, rows)
        rotary = self.family.rotary(tokens.shape[1])
        for index in indices:
            added = None if prompts is None else prompts(index, tokens)
            added = () if added is None else (added,) if isinstance(added, BlockPrompt) else tuple(added)
            if index == trimmed:
                tokens = prompted_block(self.blocks[index], tokens, added, rows, rotary[index])
            elif added or rotary[index] is not None:
                tokens = prompted_block(self.blocks[index], tokens, added, None, rotary[index])
            else:
                tokens = self.blocks[index](tokens)
        return tokens if rows is None or trimmed is not None else tokens[:, rows]

    def keys_and_values(self, block: int, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """What a block's attention looks at in the stream that enters it, in its positions.

        Args:
            block: its index.
            tokens: the stream, [B, N, D].

        Returns:
            Keys and values, [B, H, N, d] each.
        """
        of_timm: Any = self.blocks[block]
        keys, values = project(of_timm.attn, of_timm.norm1(tokens), "kv")
        rotary = self.family.rotary(tokens.shape[1])[block]
        return (keys if rotary is None else rotary(keys)), values

    def spelled_out(
        self, block: int, tokens: Tensor, prompts: Sequence[BlockPrompt] = (), rows: slice | None = None
    ) -> SpelledOut:
        """One block's attention with its weights, see :func:`clprompt.backbones.attention.spelled_out`."""
        rotary = self.family.rotary(tokens.shape[1])[block]
        return spelled_out(self.blocks[block], tokens, prompts, rows, rotary)

    def norm(self, tokens: Tensor) -> Tensor:
        """The norm before pooling, token by token: [B, R, D] -> [B, R, D]; nothing where it stands behind."""
        return self.vit.norm(tokens)  # type: ignore[operator]

    def pooled_norm(self, features: Tensor) -> Tensor:
        """The norm behind pooling: [..., D] -> [..., D]; nothing where it stands before."""
        return self.vit.fc_norm(features)  # type: ignore[operator]

    def final(self, tokens: Tensor) -> Tensor:
        """The final norm of tokens read one by one, wherever timm keeps it: [B, R, D] -> [B, R, D]."""
        return self.pooled_norm(self.norm(tokens))

    def pool(self, tokens: Tensor) -> Tensor:
        """Final norm and the model's own pooling: [B, N or head rows, D] -> [B, D]."""
        return self.vit.forward_head(self.norm(tokens), pre_logits=True)  # type: ignore[operator]

    @torch.no_grad()
    def features(self, x: Tensor, *, start: int = 0) -> Tensor:
        """The query: the unprompted model's pooled features, without gradient.

        Args:
            x: images [B, 3, H, W], or tokens [B, N, D] that enter block ``start``.
            start: the first block to run when tokens are given.

        Returns:
            [B, D].
        """
        tokens = self.embed(x) if x.ndim == 4 else x
        return self.pool(self.run(tokens, blocks=slice(start, None), rows=self.head_rows))

    def prompted(self, stem: Tensor, prompts: Prompts | None = None, *, start: int = 0) -> Tensor:
        """Pooled features of a prompted pass, with gradient: tokens entering block ``start`` -> [B, D].

        Pooling reads the stream's own tokens; carried prompts that joined on the way are left out. Without
        prompts: features with gradient, for methods that prompt the pixels.
        """
        rows = self.head_rows or slice(0, stem.shape[1])
        return self.pool(self.run(stem, prompts, blocks=slice(start, None), rows=rows))

    def class_position(self) -> Tensor:
        """The position embedding of the class token, [D]; zeros where the backbone has none."""
        vit: Any = self.vit
        if not self.has_class_token or vit.no_embed_class or vit.pos_embed is None:
            return torch.zeros_like(vit.blocks[0].norm2.weight)
        return vit.pos_embed[0, 0]

    def check_layers(self, name: str, layers: Sequence[int]) -> tuple[int, ...]:
        """Block indices as a tuple; refuses repeated ones and ones that this backbone does not have.

        Raises:
            ConfigError: naming the argument ``name``.
        """
        wrong = [layer for layer in layers if not 0 <= layer < self.depth]
        if wrong:
            raise ConfigError(f"{name}: block {wrong[0]} is not among 0..{self.depth - 1} of this backbone")
        if len(set(layers)) != len(tuple(layers)):
            raise ConfigError(f"{name} names a block twice: {list(layers)}")
        return tuple(int(layer) for layer in layers)

    @torch.no_grad()
    def stem(self, images: Tensor, first: int) -> Tensor:
        """The tokens that enter block ``first``, the first with prompts; no gradient is needed before it."""
        return self.run(self.embed(images), blocks=slice(0, first))

    @torch.no_grad()
    def walk(self, images: Tensor) -> Iterator[tuple[Block, Tensor, Tensor, Tensor, Tensor]]:
        """The unprompted stream, block by block, for methods that read it.

        Yields:
            (block, x [B, N, D], normed x [B, N, D], keys [B, H, N, d], values [B, H, N, d]); the last block's
            own attention and MLP are not computed, as nobody reads what would follow. Keys are as they were
            projected, before rotary positions.
        """
        x = self.embed(images)
        rotary = self.family.rotary(x.shape[1])
        for index, block in enumerate(self.blocks):
            attn: Any = block.attn
            normed = block.norm1(x)
            if index == self.depth - 1:
                yield block, x, normed, *project(attn, normed, "kv")
                return
            query, keys, values = project_stream(attn, normed)
            yield block, x, normed, keys, values
            if (rotate := rotary[index]) is not None:
                query, keys = rotate(query), rotate(keys)
            heads = F.scaled_dot_product_attention(query, keys, values)
            x = residual_mlp(block, x, finish_attention(attn, normed, heads))

    def fingerprint(self) -> str:
        """SHA-256 over the names and bytes of all weights: tells whether two runs used the same backbone."""
        weights = self.vit.state_dict()
        if self.text is not None:
            weights |= {f"text.{name}": value for name, value in self.text.state_dict().items()}
            weights |= {f"projection.{name}": value for name, value in self.projection.state_dict().items()}
            weights["logits"] = torch.tensor(self._terms(), dtype=torch.float64)
        return digest(sorted(weights.items())).hex()


def _take_logit_terms(backbone: FrozenViT, _: Any) -> None:
    """Scale and bias as loaded, as plain numbers: a step does not wait for the device that holds them."""
    backbone.scale, *bias = backbone.logit_terms.tolist()  # type: ignore[operator]
    backbone.logit_bias = bias[0] if bias else None
