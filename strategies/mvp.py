"""MVP: masks and visual prompts chosen by key, learned online without task boundaries."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clprompt import schema
from clprompt.backbones.attention import BlockPrompt
from clprompt.backbones.vit import FrozenViT
from clprompt.errors import ConfigError
from clprompt.prompting.heads import count_in
from clprompt.prompting.losses import SoftLabels, classification_loss, mask_logits
from clprompt.prompting.model import Blocks, Boundaries, Cache, Encoded, PromptModel
from clprompt.prompting.plugin import LearnedPrompts, PromptSet, most_tokens
from clprompt.prompting.prompts import cosine
from clprompt.registry import Only, strategies
from clprompt.schema import above, at_least, at_most
from clprompt.seeding import generator


class Choice(NamedTuple):
    """How the slots of a batch were chosen.

    Attributes:
        slots: the chosen one of each image, [B].
        distance: of every query to every key, [B, K].
    """

    slots: Tensor
    distance: Tensor


@strategies.register(
    "mvp",
    paper="Moon et al., ICCV 2023, arXiv 2308.09303",
    year=2023,
    boundaries="unused",
    refused={"top_k": Only(1, "the method uses one slot per image")},
    renamed={"mask": "logit_mask"},
)
class MVPModel(PromptModel):
    """MVP (Moon et al., "Online Class Incremental Learning on Stochastic Blurry Task Boundary via Mask and
    Visual Prompt Tuning").

    A query picks one of K slots by key; a slot is an expert prompt and a row of factors, 2 sigmoid(mask), on
    the logits. Slots chosen often look farther away, so all of them come into use. Training scales each
    feature by how well it agrees with its class's weights, weighs samples whose gradient disagrees with their
    class's, and pulls chosen keys towards the queries and away from the other keys. Nothing reads where an
    experience begins or ends.

    The paper's equations were not at hand: the source is the released code, and where it does what nobody
    would write on purpose, a switch has its behaviour:

    * ``focal_weighting``: the released code averages the cross-entropy first and multiplies by the mean
      weight, so no sample is weighed ("batch"); a focal loss weighs each ("per_sample").
    * ``count_pairing``: a broadcast divides every sample's distance by every sample's count ("cross");
      each distance belongs to its own sample's ("own").
    * ``query``: the released script reads the class token before the last block, without norm
      ("penultimate"), its class default after it ("last"); "features" is what the backbone itself pools.
    * The focal weight's gradients are computed in closed form instead of one backward pass per sample.
    * The mean of several chosen slots is half finished there; one slot per image is used here.

    Args:
        backbone: the frozen vision transformer.
        seed: where all initial values come from.
        mask: which classes compete in training, in the focal weights as in the loss: all "seen" ones, as in
            the released code, those of the "batch", or every column ("none").
        variant: "prompt" (tokens beside the image's own, in their block only) or "prefix" (keys and values
            through the frozen projections).
        pool_size: K, the number of slots.
        g_layers: blocks of the general prompt.
        g_length: length of the general prompt.
        e_layers: blocks of the expert prompts.
        e_length: length of the expert prompts.
        query: where the query is read: the class token before the last block ("penultimate") or after it
            ("last"), or the backbone's own "features".
        logit_mask: the learned factors on the logits.
        contrastive: the contrastive term and the count-weighted choice; without it only the keys' pull.
        feature_scaling: scale training features by their agreement with the class's weights.
        focal: the weights by gradient similarity.
        focal_weighting: "per_sample", or by the "batch" as the released code.
        count_pairing: a distance is divided by its "own" sample's count, or by each ("cross").
        weighted_inference: weigh by counts at test too, as the released code does.
        alpha: focal weight = (1 - alpha) + alpha * (1 - cos)^gamma.
        gamma: the exponent of the focal weight.
        margin: added to the cosine distance by which features are divided.
        contrastive_weight: coefficient of the keys' term.

    Raises:
        ConfigError: a value out of range, or blocks that the backbone does not have.
    """

    optimizer_reset: ClassVar[Literal["experience", "never"]] = "never"
    multi_label: ClassVar[bool] = False
    soft_labels: ClassVar[bool] = False
    chooses_by_query: ClassVar[bool] = True

    @schema.checked
    def __init__(
        self,
        backbone: FrozenViT,
        *,
        seed: int = 0,
        mask: Literal["seen", "batch", "none"] = "seen",
        variant: Literal["prompt", "prefix"] = "prompt",
        pool_size: Annotated[int, at_least(1)] = 10,
        g_layers: Blocks = (0, 1),
        g_length: Annotated[int, at_least(1)] = 5,
        e_layers: Blocks = (2, 3, 4),
        e_length: Annotated[int, at_least(1)] = 20,
        query: Literal["penultimate", "last", "features"] = "penultimate",
        logit_mask: bool = True,
        contrastive: bool = True,
        feature_scaling: bool = True,
        focal: bool = True,
        focal_weighting: Literal["per_sample", "batch"] = "per_sample",
        count_pairing: Literal["own", "cross"] = "own",
        weighted_inference: bool = True,
        alpha: Annotated[float, at_least(0), at_most(1)] = 0.5,
        gamma: Annotated[float, at_least(0)] = 2.0,
        margin: Annotated[float, above(0)] = 0.5,
        contrastive_weight: float = 1.0,
    ) -> None:
        super().__init__(backbone, seed=seed, mask=mask)
        if query != "features" and not backbone.has_class_token:
            raise ConfigError(
                f'query "{query}" reads the class token, which this backbone lacks; use query="features"'
            )
        self.g_layers = backbone.check_layers("g_layers", g_layers)
        self.e_layers = backbone.check_layers("e_layers", e_layers)
        self.variant = variant
        self.query_from = query
        self.logit_mask = logit_mask
        self.contrastive = contrastive
        self.feature_scaling = feature_scaling
        self.focal = focal
        self.focal_weighting = focal_weighting
        self.count_pairing = count_pairing
        self.weighted_inference = weighted_inference
        self.alpha = alpha
        self.gamma = gamma
        self.margin = margin
        self.contrastive_weight = contrastive_weight
        self.first_block = min(self.g_layers + self.e_layers, default=backbone.depth - 1)
        parts, width = (1 if variant == "prompt" else 2), backbone.width  # tokens, or keys and values

        def normal(name: str, *shape: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(*shape, generator=generator(seed, name)))

        self.keys = normal("keys", pool_size, width)  # [K, D]
        self.g_prompt = normal("general", len(self.g_layers), parts, g_length, width)
        self.e_prompts = normal("expert", pool_size, len(self.e_layers), parts, e_length, width)
        self.masks = nn.Parameter(torch.empty(pool_size, 0))  # [K, C], before the sigmoid
        self.counts: Tensor
        self.register_buffer("counts", torch.zeros(pool_size, dtype=torch.int64))  # how often chosen, [K]

    @property
    def boundaries(self) -> Boundaries:
        return "unused"

    @property
    def prompt_tokens(self) -> int:
        return most_tokens(self.prompt_sets().values()) if self._kind == "fresh" else 0

    def prompt_sets(self) -> dict[str, PromptSet]:
        slots, _, _, length, _ = self.e_prompts.shape
        return {
            "general": PromptSet(self.g_layers, self.g_prompt.shape[2], [self.g_prompt]),
            "expert": PromptSet(self.e_layers, length, [self.e_prompts], slots=slots),
        }

    def learned_prompts(self) -> dict[str, LearnedPrompts]:
        general, expert = tuple(self.g_prompt.shape), tuple(self.e_prompts.shape)
        kind = self._kind

        def of_general(values: Tensor, block: int) -> BlockPrompt:
            return _block_prompt(kind, list(values[self.g_layers.index(block)][:, None]), "general")

        def of_expert(values: Tensor, block: int) -> BlockPrompt:
            parts = values[:, self.e_layers.index(block)].unbind(1)  # (slots, length, D) each
            return _block_prompt(kind, [part.flatten(0, 1)[None] for part in parts], "expert")

        axes = ("blocks", "parts", "length")
        listed = {
            "general": LearnedPrompts(
                axes, general, [self.g_prompt], blocks=self.g_layers, block_prompt=of_general
            ),
            "expert": LearnedPrompts(
                ("slots", *axes), expert, [self.e_prompts], blocks=self.e_layers, block_prompt=of_expert
            ),
        }
        return {name: prompts for name, prompts in listed.items() if prompts.blocks}

    @property
    def _kind(self) -> Literal["fresh", "projected"]:
        return "fresh" if self.variant == "prompt" else "projected"

    def grow_classes(self, num_classes: int) -> None:
        """Columns of -1 for new classes: all start at the same temperature, 2 sigmoid(-1) = 0.54."""
        columns = self.masks.new_full((len(self.masks), num_classes - self.masks.shape[1]), -1.0)
        self.masks = nn.Parameter(torch.cat([self.masks.detach(), columns], dim=1))

    # ------------------------------------------------------------------ forward

    def select(self, query: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [B, D] -> cosine distances to the keys [B, K], chosen slots [B], masses of all slots [K].

        A slot's mass is how often it was chosen so far, plus one; the choice is by distance times mass.
        """
        distance, mass = 1 - cosine(query, self.keys), self.mass()
        weighted = self.training or self.weighted_inference
        scores = distance.detach() * mass if weighted else distance.detach()
        return distance, scores.argmin(1), mass

    def mass(self) -> Tensor:
        """How often each slot was chosen so far, plus one, [K]: a choice is by distance times mass."""
        return self.counts + 1 if self.contrastive else torch.ones_like(self.counts)

    def encode(self, images: Tensor, cached: Cache | None = None) -> Encoded:
        """The prompted features [B, D], and the choice; terms need labels and are made in :meth:`losses`."""
        stem, query = self._query(images, cached)
        distance, slots, _ = self.select(query)
        prompts = self._prompts(self.e_prompts[slots], slots[:, None])
        feature = self.backbone.prompted(stem, prompts, start=self.first_block)
        return Encoded(feature, details=Choice(slots, distance))

    def classify(self, encoded: Encoded) -> Tensor:
        """The head's logits [B, C] times the factors of the chosen slots, which belong to it."""
        return self.logits(encoded.features) * self._factors(encoded.details.slots)

    def keep_query(self, images: Tensor, cached: Cache) -> None:
        self._query(images, cached)

    @torch.no_grad()
    def _query(self, images: Tensor, cached: Cache | None) -> tuple[Tensor, Tensor]:
        """The stream that enters the first prompted block [B, N, D], and the query [B, D]."""
        if self.query_from == "features":
            return self.query(images, self.first_block, cached)
        backbone, depth = self.backbone, self.backbone.depth
        stem = backbone.stem(images, self.first_block)
        key = f"{self.query_from} class token"  # not the pooled features, which are kept as "features"
        if cached is not None and key in cached:
            return stem, cached[key]
        tokens, first = (stem, self.first_block) if backbone.share_prefix else (backbone.embed(images), 0)
        stop = depth - 1 if self.query_from == "penultimate" else depth
        with self.in_query_precision():
            query = backbone.run(tokens, blocks=slice(first, stop), rows=slice(0, 1))[:, 0]
        if self.query_precision is not None:
            query = query.to(backbone.dtype)
        if cached is not None:
            cached[key] = query
        return stem, query

    def _prompts(self, expert: Tensor, slots: Tensor) -> Callable[[int, Tensor], list[BlockPrompt]]:
        """What each block gets; ``expert`` [B, layers, key/value, length, D] of the slots [B, 1]."""
        kind = self._kind

        def prompts(block: int, x: Tensor) -> list[BlockPrompt]:
            block_prompts = []
            if block in self.g_layers:
                parts = list(self.g_prompt[self.g_layers.index(block)][:, None])
                block_prompts.append(_block_prompt(kind, parts, "general"))
            if block in self.e_layers:
                parts = list(expert[:, self.e_layers.index(block)].unbind(1))
                block_prompts.append(_block_prompt(kind, parts, "expert", slots))
            return block_prompts

        return prompts

    def _factors(self, chosen: Tensor) -> Tensor:
        """Factors in (0, 2) on the logits, [B, C]; never on -inf: unseen classes are masked afterwards."""
        return 2 * torch.sigmoid(self.masks[chosen]) if self.logit_mask else self.masks.new_ones(())

    # ------------------------------------------------------------------ training

    def losses(
        self, encoded: Encoded, targets: Tensor, soft: SoftLabels | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        assert self.head is not None
        feature, choice = encoded.features, encoded.details
        with torch.autocast(feature.device.type, enabled=False):  # 16 bits are too few for cosines and counts
            feature = feature.to(self.masks.dtype)
            factors, bias = self._factors(choice.slots), self.head.bias
            product = F.linear(feature, self.head.weight)  # (B, C), shared by scaled and unscaled logits
            logits = (product + bias) * factors
            scaled = product
            if self.feature_scaling:
                scale = self.compensation(feature.detach(), targets)
                scaled = product / scale[:, None]
            allowed = self.training_mask(targets)
            losses = classification_loss((scaled + bias) * factors, targets, allowed, reduction="none")
            if not self.focal:
                cross_entropy = losses.mean()
            else:
                competing = mask_logits(logits.detach(), allowed)
                weights = self.focal_weights(feature.detach(), competing, factors.detach(), targets)
                together = self.focal_weighting == "batch"
                cross_entropy = losses.mean() * weights.mean() if together else (losses * weights).mean()
            keys = self.key_loss(choice.distance, choice.slots, self.mass())
        return logits, {"cross_entropy": cross_entropy, "keys": self.contrastive_weight * keys}

    def count_step(self, encoded: Encoded) -> None:
        count_in(self.counts, encoded.details.slots)

    @torch.no_grad()
    def compensation(self, feature: Tensor, targets: Tensor) -> Tensor:
        """By what features are divided: cosine distance to the class's weights plus the margin, [B]."""
        assert self.head is not None
        return 1 - F.cosine_similarity(self.head.weight[targets], feature) + self.margin

    @torch.no_grad()
    def focal_weights(self, feature: Tensor, logits: Tensor, factors: Tensor, targets: Tensor) -> Tensor:
        """Weights [B] by how a sample's gradient on its class's weights agrees with that of the whole batch.

        Closed form: with R = (softmax - one-hot) * factors, sample i's gradient on row y_i is R[i, y_i] f_i,
        along -f_i whatever its size, and the batch's is the y_i-th row of R^T F / B. Only columns of classes
        in the batch are formed.
        """
        batch = self.batch_gradient(feature, logits, factors, targets)
        ignored = 1 + F.cosine_similarity(feature, batch)  # 1 - cos of the two gradients
        return (1 - self.alpha) + self.alpha * ignored**self.gamma

    @torch.no_grad()
    def batch_gradient(self, feature: Tensor, logits: Tensor, factors: Tensor, targets: Tensor) -> Tensor:
        """Row y_i of the mean cross-entropy's gradient on the head's weights, for each sample i: [B, D]."""
        residual = logits.softmax(1)[:, targets] - (targets[:, None] == targets).to(logits)  # (B, B)
        if factors.ndim:
            residual = residual * factors[:, targets]
        return residual.T @ feature / len(targets)

    def key_loss(self, distance: Tensor, chosen: Tensor, mass: Tensor) -> Tensor:
        """What trains the keys: pull chosen ones to their queries, push them from all; fades with the counts.

        Args:
            distance: queries to keys, [B, K].
            chosen: [B].
            mass: [K].
        """
        nearest = distance.gather(1, chosen[:, None])  # (B, 1)
        if not self.contrastive:
            return nearest.mean()
        between = (1 - cosine(self.keys, self.keys))[chosen]  # (B, K)
        chosen_mass = mass[chosen].to(distance)[:, None]  # (B, 1)
        if self.count_pairing == "own":
            pull, push = (nearest / chosen_mass).exp().mean(), (between / chosen_mass).exp().mean()
        else:  # all pairs of sample and count, by the counts' frequencies instead of [B, B, K]
            share = torch.zeros_like(mass)
            count_in(share, chosen)
            share = share.to(distance) / len(chosen)  # (K,)
            pull, push = ((x[..., None] / mass).exp() @ share for x in (nearest, between))
            pull, push = pull.mean(), push.mean()
        return -torch.log(push / (pull + push) + 1e-6)

    def diagnostics(self) -> Mapping[str, Any]:
        """How often each slot was chosen, and how alike the keys are."""
        keys = self.keys.detach()
        return {"slots/counts": self.counts, "slots/key_cosine": cosine(keys, keys)}


def _block_prompt(
    kind: Literal["fresh", "projected"], parts: list[Tensor], name: str, slots: Tensor | None = None
) -> BlockPrompt:
    """One tensor for tokens, two for keys and values, each [1 or B, length, D]."""
    return BlockPrompt(kind, parts[0], parts[1] if len(parts) > 1 else None, name=name, slots=slots)
