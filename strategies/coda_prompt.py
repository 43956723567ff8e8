"""CODA-Prompt: prefixes that are weighted sums of components; every experience adds some."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clprompt import schema
from clprompt.backbones.attention import BlockPrompt
from clprompt.backbones.vit import FrozenViT
from clprompt.errors import ConfigError, ProtocolError
from clprompt.prompting.model import Blocks, Boundaries, Cache, Encoded, Mask, PromptModel
from clprompt.prompting.plugin import LearnedPrompts, PromptSet, Samples
from clprompt.registry import strategies
from clprompt.schema import at_least
from clprompt.seeding import generator


@strategies.register(
    "coda_prompt",
    paper="Smith et al., CVPR 2023, arXiv 2211.13218",
    year=2023,
    boundaries="required or unused",
)
class CODAPromptModel(PromptModel):
    """CODA-Prompt (Smith et al., "COntinual Decomposed Attention-based Prompting").

    In each prompted block the prefix of an image is the sum of all components, each weighted by the cosine of
    its key and the query as its attention vector lets it through: no softmax, no choice, weights may be
    negative, and the cross-entropy trains everything. Each experience adds components; those of earlier ones
    take part and are frozen.

    Where published descriptions and codes differ:

    * ``components_per_experience``: the released code divides a fixed pool by the number of experiences; here
      components appear with their experience, so that number need not be known and nothing unused is stored.
    * ``orthogonality``: weight of the penalty on components, keys and attention vectors of a layer; 0.1 in
      the paper, 0 in the scripts of the released code, and so here.
    * ``orthogonalise``: how new rows start. "gram_schmidt", as in the released code: classical, against old
      rows as they were trained, which are then no longer orthogonal to each other; "projection": against an
      orthonormal basis of the old rows; "none": U(0, 1), as when the released code leaves it out.
    * A zero row is passed over in the orthogonalisation (the released code would try for ever).

    Args:
        backbone: the frozen vision transformer.
        seed: where all initial values come from.
        layers: the prompted blocks.
        length: tokens of a component: the first half keys, the second half values.
        components_per_experience: components that an experience adds to each layer.
        orthogonality: weight of the penalty on components, keys and attention vectors.
        orthogonalise: how new rows start: by "gram_schmidt", "projection" or "none".
        boundary_free: no experiences: all ``pool_size`` components are there and trained from the start.
        pool_size: M, components of the boundary-free form; None for 100, or the backbone's width if less.
        mask: which classes compete in training; None for "experience" ("seen" when boundary-free).
    """

    chooses_by_query: ClassVar[bool] = True

    @schema.checked
    def __init__(
        self,
        backbone: FrozenViT,
        *,
        seed: int = 0,
        layers: Blocks = (0, 1, 2, 3, 4),
        length: Annotated[int, at_least(2)] = 8,
        components_per_experience: Annotated[int, at_least(1)] = 10,
        orthogonality: float = 0.0,
        orthogonalise: Literal["gram_schmidt", "projection", "none"] = "gram_schmidt",
        boundary_free: bool = False,
        pool_size: Annotated[int, at_least(1)] | None = None,
        mask: Mask | None = None,
    ) -> None:
        super().__init__(backbone, seed=seed, mask=mask, boundary_free=boundary_free)
        if length % 2:
            raise ConfigError(f"length must be even, half keys and half values, got {length}")
        if pool_size is not None and not boundary_free:
            raise ConfigError(
                "pool_size is for boundary_free=true; "
                "components_per_experience says how many an experience adds"
            )
        self.layers = backbone.check_layers("layers", layers)
        self.length = length
        self.orthogonality = orthogonality
        self.orthogonalise = orthogonalise
        name, self.added = "components_per_experience", components_per_experience
        if boundary_free:
            name, self.added = "pool_size", min(100, backbone.width) if pool_size is None else pool_size
        if orthogonalise != "none" and self.added > backbone.width:
            raise ConfigError(
                f"{name} must be at most the backbone's width {backbone.width}, got {self.added}: "
                "no more rows can be orthogonal"
            )
        self.first_block = min(self.layers, default=backbone.depth)
        # one entry per experience, m components each
        self.keys = nn.ParameterList()  # [L, m, D]
        self.attention = nn.ParameterList()  # [L, m, D]
        self.components = nn.ParameterList()  # [L, m, length, D]
        if boundary_free:
            self._add_components()

    @property
    def boundaries(self) -> Boundaries:
        return "unused" if self.boundary_free else "required"

    def prompt_sets(self) -> dict[str, PromptSet]:
        # a prefix is a sum over all components: one key per position, trained with the newest of them
        return {"prompts": PromptSet(self.layers, self.length // 2, list(self.components)[-1:])}

    def learned_prompts(self) -> dict[str, LearnedPrompts]:
        if not self.layers:
            return {}
        return {
            "components": LearnedPrompts(
                ("blocks", "slots", "length"),
                (len(self.layers), self.added, self.length, self.backbone.width),
                list(self.components),
                blocks=self.layers,
                added="never" if self.boundary_free else "derived",  # orthogonal to those before
                block_prompt=self._unweighted,
            )
        }

    def _unweighted(self, components: Tensor, block: int) -> BlockPrompt:
        """Components [L, m, length, D] beside each other in one block, none of them weighed by the image."""
        keys, values = components[self.layers.index(block)].chunk(2, dim=1)  # (m, length / 2, D)
        return BlockPrompt("prefix", keys.flatten(0, 1)[None], values.flatten(0, 1)[None])

    @property
    def slot_per_experience(self) -> bool:
        return not self.boundary_free

    def encode(self, images: Tensor, cached: Cache | None = None) -> Encoded:
        return self._encode(images, cached, None)

    def encode_under(self, images: Tensor, experiences: Tensor, cached: Cache | None = None) -> Encoded:
        """With the components that there were when the experience ended: its own and those before."""
        return self._encode(images, cached, experiences)

    def _encode(self, images: Tensor, cached: Cache | None, experiences: Tensor | None) -> Encoded:
        """With the components of experiences up to those named [B]; None for all."""
        stem, query = self.query(images, self.first_block, cached)
        if not len(self.keys):  # before any experience there are no components
            return Encoded(self.backbone.prompted(stem, start=self.first_block))
        keys, attention, components = (
            torch.cat(list(parts), dim=1) for parts in (self.keys, self.attention, self.components)
        )
        weights = component_weights(query, attention, keys)  # (L, B, M)
        weights = weights.to(components.dtype)
        if experiences is not None:
            added_in = torch.arange(weights.shape[2], device=weights.device) // self.added  # (M,)
            weights = weights.masked_fill(added_in > experiences[:, None], 0)
        prefix = (weights @ components.flatten(2)).unflatten(2, (self.length, -1))  # (L, B, length, D)
        terms = {}
        if self.training and self.orthogonality:
            rows = [layer for parts in (keys, attention, components) for layer in parts.flatten(2)]
            terms["orthogonality"] = self.orthogonality * torch.stack([penalty(r) for r in rows]).sum()

        def prompts(block: int, x: Tensor) -> BlockPrompt | None:
            if block not in self.layers:
                return None
            return BlockPrompt("prefix", *prefix[self.layers.index(block)].chunk(2, dim=1))

        return Encoded(self.backbone.prompted(stem, prompts, start=self.first_block), terms)

    def check_stream(self, classes: Sequence[Sequence[int]]) -> None:
        experiences, width = len(self.keys) + len(classes), self.backbone.width
        if self.orthogonalise != "none" and self.added * experiences > width:
            most = width // experiences
            lower = "lower it or set orthogonalise=none" if most else "set orthogonalise=none"
            raise ConfigError(
                f"components_per_experience must be at most {most} for {experiences} experiences in width "
                f"{width}, got {self.added}: no more rows can be orthogonal; {lower}"
            )

    def start_experience(self, index: int, samples: Samples | None) -> None:
        if not self.boundary_free:
            self._add_components()

    def _add_components(self) -> None:
        """The components of the next experience, orthogonal to each other and, if possible, to old ones."""
        width, index = self.backbone.width, len(self.keys)
        total = self.added * (index + 1)
        if self.orthogonalise != "none" and total > width:
            raise ProtocolError(
                f"experience {index + 1} would need {total} orthogonal components in width {width}; lower "
                f"components_per_experience ({self.added}) or set orthogonalise=none"
            )
        shapes = {"keys": (width,), "attention": (width,), "components": (self.length, width)}
        for name, shape in shapes.items():
            self._parts(name).append(nn.Parameter(self._new_rows(name, index, shape)))

    def _new_rows(self, name: str, index: int, shape: tuple[int, ...]) -> Tensor:
        """The start of one kind of rows for experience ``index``, [L, m, *shape]."""
        source, size = generator(self.seed, name, index), (len(self.layers), self.added, *shape)
        if self.orthogonalise == "none":
            return torch.rand(size, generator=source)
        noise = torch.randn(size, generator=source).double().flatten(2)  # (L, m, n)
        old = torch.cat(
            [noise[:, :0], *(part.detach().to(noise).flatten(2) for part in self._parts(name))], dim=1
        )
        span = self.orthogonalise == "projection"
        for layer, rows in enumerate(noise):
            noise[layer] = orthogonal_rows(old[layer], rows, span=span)
        return noise.reshape(size).float()

    def _parts(self, name: str) -> nn.ParameterList:
        return getattr(self, name)

    def set_stage(self) -> None:
        """Components of earlier experiences are frozen."""
        for parts in (self.keys, self.attention, self.components):
            for index, parameter in enumerate(parts):
                parameter.requires_grad_(self.boundary_free or index == int(self.experience))

    def resize_to(self, state: Mapping[str, Tensor]) -> None:
        super().resize_to(state)
        for name in ("keys", "attention", "components"):
            parts = self._parts(name)
            for index in range(len(parts), sum(key.startswith(f"{name}.") for key in state)):
                parts.append(nn.Parameter(torch.zeros_like(state[f"{name}.{index}"], device=self.device)))

    def diagnostics(self) -> dict[str, Tensor]:
        """How long the components are: the norms of the current experience's, [L * m]."""
        if not len(self.components):
            return {}
        return {"components/norm": self.components[-1].detach().flatten(2).norm(dim=2).flatten()}


def component_weights(query: Tensor, attention: Tensor, keys: Tensor) -> Tensor:
    """cos(query * attention_m, key_m) for all components: [B, D], [L, M, D], [L, M, D] -> [L, B, M].

    Two matrix products, without the [B, M, D] tensor of the formula. In float32 at least, as all cosines.
    """
    dtype = torch.promote_types(query.dtype, torch.float32)
    with torch.autocast(query.device.type, enabled=False):
        query, attention, keys = query.to(dtype), attention.to(dtype), keys.to(dtype)
        product = query @ (attention * F.normalize(keys, dim=-1)).mT  # (L, B, M)
        square = query.square() @ attention.square().mT  # (L, B, M)
        # clamped before the root, whose gradient at 0 is infinite
        return product / square.clamp_min(1e-24).sqrt()


def penalty(rows: Tensor) -> Tensor:
    """How far rows [M, n] are from orthonormal: the mean over all entries of (X X^T - I)^2.

    In float32 at least, as all that is compared.
    """
    rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
    with torch.autocast(rows.device.type, enabled=False):
        return (rows @ rows.T - torch.eye(len(rows), dtype=rows.dtype, device=rows.device)).square().mean()


def orthogonal_rows(old: Tensor, noise: Tensor, *, span: bool = False) -> Tensor:
    """Unit rows from noise by classical Gram-Schmidt against the old rows and each other.

    Args:
        old: [s, n], taken as they are: only if they are orthogonal is the result orthogonal to them all.
        noise: [m, n].
        span: take an orthonormal basis of the old rows instead, so that it always is.

    Returns:
        [m, n].
    """
    if span:
        old = torch.linalg.qr(old.T).Q.T
    rows = torch.cat([old, torch.zeros_like(noise)])
    for position, row in enumerate(noise, start=len(old)):
        squares = rows.square().sum(1)
        shares = (rows @ row / squares.clamp_min(1e-8)).where(squares >= 1e-8, 0)
        rows[position] = row - shares @ rows
    return F.normalize(rows[len(old) :], dim=1)
