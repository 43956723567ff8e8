"""FrozenText: the text tower of an image-text model, frozen, in eval mode, of timm's blocks like the images'.

Under a causal mask no token reaches one before it, which makes two exact savings:

* **cut**: what stands behind the last end token is not run;
* **one prefix**: start token, context and frozen words before the name are the same for every class, so their
  hidden states are too. They run once, and per class only the name and what follows it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clprompt.backbones.attention import finish_attention, project, project_stream, residual_mlp
from clprompt.backbones.tokenizers import Tokenizer
from clprompt.errors import ConfigError

#: Texts that :meth:`FrozenText.features` runs at a time: what bounds its memory.
_AT_A_TIME = 256
#: Numbers that it keeps of lists asked for before the latest one: 128 MiB in float32.
_KEPT = 2**25


class Tokens(NamedTuple):
    """Texts as a text tower takes them.

    Attributes:
        ids: int64, [C, L], padded behind each end token.
        ends: row of each text's end token, int64, [C].
        longest: tokens of the longest of them, its end token included; 0 for no texts.
    """

    ids: Tensor
    ends: Tensor
    longest: int


class FrozenText(nn.Module):
    """A text transformer whose weights never change: token and position embeddings, blocks, norm, projection.

    Args:
        width: of the residual stream, W.
        depth: blocks.
        num_heads: attention heads of a block.
        length: tokens of a text at most, start and end included.
        vocabulary: token ids.
        joint_width: of the space that images and texts share, E.
        tokenizer: what makes ids of texts.
        quick_gelu: x * sigmoid(1.702 x) in place of GELU, as for OpenAI's weights; weights do not tell it.
        causal: a token sees itself and those before it, and the end token's row is the text's (CLIP).
            Otherwise all see all, padding included, and the last row is (SigLIP).
        approximate: form of GELU, "none" or "tanh" (SigLIP 2).
        eps: of the norms.
        mlp_ratio: width of a block's MLP over W.
        projection: "linear", "bias" (linear with a bias), or "none", where W = E.

    Source: Radford et al. 2021 (CLIP); Zhai et al. 2023 (SigLIP). Weights and names as in open_clip, see
    :func:`text_weights`.
    """

    def __init__(
        self,
        *,
        width: int,
        depth: int,
        num_heads: int,
        length: int,
        vocabulary: int,
        joint_width: int,
        tokenizer: Tokenizer,
        quick_gelu: bool = False,
        approximate: Literal["none", "tanh"] = "none",
        causal: bool = True,
        eps: float = 1e-5,
        mlp_ratio: float = 4.0,
        projection: Literal["linear", "bias", "none"] = "linear",
    ) -> None:
        from timm.layers import QuickGELU  # not before a tower is built
        from timm.models.vision_transformer import Block

        super().__init__()
        self.width, self.depth, self.num_heads = width, depth, num_heads
        self.length = length
        self.joint_width = joint_width
        self.tokenizer = tokenizer
        self.quick_gelu = quick_gelu
        self.causal = causal
        self.token_embedding = nn.Embedding(vocabulary, width)
        self.positional_embedding = nn.Parameter(torch.empty(length, width))
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.positional_embedding, std=0.01)
        activation: Any = QuickGELU if quick_gelu else partial(nn.GELU, approximate=approximate)
        self.blocks = nn.ModuleList(
            Block(
                width,
                num_heads,
                mlp_ratio=mlp_ratio,
                qkv_bias=True,
                act_layer=activation,
                norm_layer=partial(nn.LayerNorm, eps=eps),  # type: ignore[arg-type]
            )
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width, eps=eps)
        self.projection: nn.Module = (
            nn.Identity()
            if projection == "none"
            else nn.Linear(width, joint_width, bias=projection == "bias")
        )
        self.requires_grad_(False)
        self.eval()
        self._features: dict[tuple[str, ...], Tensor] = {}
        self.register_load_state_dict_post_hook(_forget_features)

    def train(self, mode: bool = True) -> FrozenText:
        """Stay in eval mode: a frozen tower has no dropout."""
        return super().train(False)

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        self._features.clear()  # of another number format or device
        return super()._apply(*args, **kwargs)

    @property
    def vocabulary(self) -> int:
        """Token ids."""
        return self.token_embedding.num_embeddings

    @property
    def start_rows(self) -> int:
        """Rows before a text's first word: 1, the start token; 0 for a tokenizer without one (SigLIP)."""
        return self.tokenizer.start_tokens

    def tokens(self, texts: Sequence[str]) -> Tokens:
        """Texts as ids, as many columns as the longest of them needs (all of them without a causal mask).

        Raises:
            ConfigError: a text that does not fit, with its length; a tokenizer that is not installed.
        """
        encoded = [self.tokenizer.encode(text) for text in ([texts] if isinstance(texts, str) else texts)]
        for text, ids in zip(texts, encoded, strict=True):
            if len(ids) > self.length:
                raise ConfigError(
                    f'text "{text}" is {len(ids)} tokens long, start and end included; '
                    f"this text tower takes at most {self.length}"
                )
        longest = max(map(len, encoded), default=0)
        columns = longest if self.causal else self.length
        padded = [ids + [self.tokenizer.padding] * (columns - len(ids)) for ids in encoded]
        device = self.positional_embedding.device
        rows = torch.tensor(padded, dtype=torch.int64).reshape(len(encoded), columns)
        ends = torch.tensor([len(ids) - 1 for ids in encoded], dtype=torch.int64)
        return Tokens(rows.to(device, non_blocking=True), ends.to(device, non_blocking=True), longest)

    def embed(self, ids: Tensor) -> Tensor:
        """Token embeddings without positions: [C, L] -> [C, L, W]."""
        return self.token_embedding(ids)

    def run(self, embeddings: Tensor, ends: Tensor, deep: Mapping[int, Tensor] | None = None) -> Tensor:
        """The whole form: every token of every text through every block, with gradient.

        Args:
            embeddings: without positions, [C, L, W].
            ends: row of each end token, [C].
            deep: {block: [n, W]}, what replaces the first n rows behind the start token before that block.

        Returns:
            Features, not normalised, [C, E].
        """
        self._check_rows(embeddings.shape[1])
        x = embeddings + self.positional_embedding[: embeddings.shape[1]]
        for index, block in enumerate(self.blocks):
            x = self._replaced(x, index, deep)
            h = block.norm1(x)  # type: ignore[operator]
            query, keys, values = project_stream(block.attn, h)  # type: ignore[arg-type]
            heads = F.scaled_dot_product_attention(query, keys, values, is_causal=self.causal)
            x = residual_mlp(block, x, finish_attention(block.attn, h, heads))  # type: ignore[arg-type]
        return self._pooled(x[_each(ends), ends] if self.causal else x[:, -1])

    @torch.no_grad()
    def features(self, texts: Sequence[str]) -> Tensor:
        """Features of texts, not normalised, without gradient, [C, E].

        They are cached by the whole list: what a list gives depends on nothing that was asked before, to the
        bit, so that a resumed run computes what an uninterrupted one would have. Lists that were not asked
        for in the longest time are forgotten, which changes no bit either.
        """
        key = (texts,) if isinstance(texts, str) else tuple(texts)
        if key not in self._features:
            rows = [self.positional_embedding.new_zeros(0, self.joint_width)]
            for start in range(0, len(key), _AT_A_TIME):
                tokens = self.tokens(key[start : start + _AT_A_TIME])
                rows.append(self.run(self.embed(tokens.ids), tokens.ends))
            self._features[key] = torch.cat(rows)
            while len(self._features) > 1 and sum(kept.numel() for kept in self._features.values()) > _KEPT:
                del self._features[next(iter(self._features))]
        features = self._features[key] = self._features.pop(key)  # the latest stands last
        return features.clone()

    def prompted(
        self,
        prefix: Tensor,
        own: Tensor,
        ends: Tensor,
        deep: Mapping[int, Tensor] | None = None,
        needed: int | None = None,
    ) -> Tensor:
        """Features of prompted texts, with gradient, by the cheapest exact form.

        Args:
            prefix: start token, context and frozen words, without positions: [1, P, W] where all classes have
                the same (one prefix for all), else [C, P, W].
            own: what follows in each class, without positions, [C, S, W]; padded behind the end token.
            ends: row of the end token within ``own``, [C].
            deep: {block: [n, W]}, what replaces the first n rows behind the start token before that block;
                they belong to the prefix.
            needed: rows of ``own`` up to the last end token; None asks ``ends``, which waits for a device.

        Returns:
            Features, not normalised, [C, E].

        Raises:
            ConfigError: more tokens than the tower takes.
        """
        before = prefix.shape[1]
        if needed is None:
            needed = int(ends.max()) + 1 if len(ends) else 0
        self._check_rows(before + needed)
        for block, rows in (deep or {}).items():
            if self.start_rows + rows.shape[-2] > before:
                raise ConfigError(
                    f"deep prompts of block {block}: {rows.shape[-2]} rows do not fit into "
                    f"a prefix of {before}"
                )
        if not self.causal:
            rest = self.length - before
            padding = self.embed(
                ends.new_full((len(own), max(rest - own.shape[1], 0)), self.tokenizer.padding)
            )
            whole = torch.cat([prefix.expand(len(own), -1, -1), own[:, :rest], padding.to(own.dtype)], dim=1)
            return self.run(whole, ends + before, deep)
        own = own[:, :needed]
        if len(prefix) != 1 or len(own) == 1:
            own = torch.cat([prefix.expand(len(own), -1, -1), own], dim=1)
            prefix, ends = prefix[:1, :0], ends + before
        return self._shared(prefix, own, ends, deep)

    def _shared(self, prefix: Tensor, own: Tensor, ends: Tensor, deep: Mapping[int, Tensor] | None) -> Tensor:
        """Of one prefix [1, P, W], P may be 0, and own rows [C, S, W]; last, only the end rows are run."""
        before, count = prefix.shape[1], own.shape[1]
        positions = self.positional_embedding[: before + count]
        prefix, own = prefix + positions[:before], own + positions[before:]
        columns = torch.arange(before + count, device=own.device)
        for index, block in enumerate(self.blocks):
            attn: Any = block.attn
            last = index == self.depth - 1
            if before:
                prefix = self._replaced(prefix, index, deep)
            else:
                own = self._replaced(own, index, deep)
            h = block.norm1(own)  # type: ignore[operator]
            if last:
                own, h_read = own[_each(ends), ends, None], h[_each(ends), ends, None]  # (C, 1, W)
                query, (keys, values) = project(attn, h_read, "q"), project(attn, h, "kv")
                mask = (columns <= before + ends[:, None])[:, None, None]  # (C, 1, 1, P + S)
            else:
                h_read = h
                query, keys, values = project_stream(attn, h)  # (C, H, S, d) each
                mask = columns <= columns[before:, None]  # (S, P + S)
            if before:
                h_prefix = block.norm1(prefix)  # type: ignore[operator]
                if last:  # nobody reads the prefix behind it
                    prefix_keys, prefix_values = project(attn, h_prefix, "kv")
                else:
                    prefix_query, prefix_keys, prefix_values = project_stream(attn, h_prefix)
                    heads = F.scaled_dot_product_attention(
                        prefix_query, prefix_keys, prefix_values, is_causal=True
                    )
                    prefix = residual_mlp(block, prefix, finish_attention(attn, h_prefix, heads))  # type: ignore[arg-type]
                keys = torch.cat([prefix_keys.expand(len(keys), -1, -1, -1), keys], dim=2)
                values = torch.cat([prefix_values.expand(len(values), -1, -1, -1), values], dim=2)
            heads = F.scaled_dot_product_attention(query, keys, values, attn_mask=mask)
            own = residual_mlp(block, own, finish_attention(attn, h_read, heads))  # type: ignore[arg-type]
        return self._pooled(own[:, 0])

    def _replaced(self, x: Tensor, block: int, deep: Mapping[int, Tensor] | None) -> Tensor:
        """The stream with this block's deep prompts behind the start token, [b, N, W]."""
        if deep is None or block not in deep:
            return x
        rows = deep[block].to(x.dtype).expand(len(x), -1, -1)
        start = self.start_rows
        return torch.cat([x[:, :start], rows, x[:, start + rows.shape[1] :]], dim=1)

    def _pooled(self, rows: Tensor) -> Tensor:
        return self.projection(self.norm(rows))

    def _check_rows(self, rows: int) -> None:
        if rows > self.length:
            raise ConfigError(
                f"a prompted text of {rows} tokens does not fit; this text tower takes at most "
                f"{self.length}: take fewer context tokens or a shorter name"
            )


def _forget_features(text: FrozenText, _: Any) -> None:
    text._features.clear()


def _each(ends: Tensor) -> Tensor:
    return torch.arange(len(ends), device=ends.device)


def text_weights(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A text tower's tensors in open_clip's names, without a prefix, in those of :class:`FrozenText`."""
    renamed = {}
    for key, value in tensors.items():
        for theirs, ours in _OPEN_CLIP:
            key = key.replace(theirs, ours)
        if key == "text_projection":  # a matrix, where a linear layer has its transpose
            key, value = "projection.weight", value.T
        renamed[key] = value
    return renamed


_OPEN_CLIP = (
    ("transformer.resblocks.", "blocks."),
    (".ln_1.", ".norm1."),
    (".ln_2.", ".norm2."),
    (".attn.in_proj_", ".attn.qkv."),
    (".attn.out_proj.", ".attn.proj."),
    (".mlp.c_fc.", ".mlp.fc1."),
    (".mlp.c_proj.", ".mlp.fc2."),
    ("ln_final.", "norm."),
    ("text_projection.", "projection."),
)
