"""FlyPrompt: prompts of several experts behind a closed-form router, heads as moving averages."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clprompt import schema
from clprompt.backbones.attention import BlockPrompt
from clprompt.backbones.vit import FrozenViT
from clprompt.prompting.heads import grow_rows
from clprompt.prompting.losses import mask_logits
from clprompt.prompting.model import Blocks, Boundaries, Cache, Encoded, Mask, PromptModel
from clprompt.prompting.plugin import Samples
from clprompt.prompting.statistics.closed_forms import LinearMap, ridge, ridge_absolute
from clprompt.prompting.statistics.random_features import RandomFeatures
from clprompt.prompting.statistics.sums import ClassStatistics
from clprompt.registry import strategies
from clprompt.schema import above, at_least, below
from clprompt.seeding import generator


class Route(NamedTuple):
    """Whose prompts a batch got.

    Attributes:
        experts: of each image, [B]; None where all had those of the expert that is trained.
        query: frozen features [B, D] that the router has not counted yet; None for none.
    """

    experts: Tensor | None
    query: Tensor | None


@strategies.register(
    "flyprompt", paper="Yan et al., ICLR 2026, arXiv 2602.01976", year=2026, boundaries="required or unused"
)
class FlyPromptModel(PromptModel):
    """FlyPrompt (Yan et al., "FlyPrompt: Brain-Inspired Random-Expanded Routing with Temporal-Ensemble
    Experts for General Continual Learning").

    An expert is a set of prompt tokens in the first blocks, and for each of several decays a moving average
    of the one head that all experts train. Training moves the newest expert and the head, with the classes
    of the batch competing; the averages follow after each step. A new expert's prompts start from the mean
    of the others', its averages from the head as it is. A router, ridge regression from random features
    relu(q P) of the frozen features q to experts, learns by sums which expert was trained on what; at test it
    gives each image its expert, and of the head and that expert's averages, whichever is surest of a class
    speaks for it.

    **When a new expert begins** is the one thing that a stream without boundaries does not show. The released
    code reads no boundary either: it divides the number of all training images by the number of experts, so
    that it knows beforehand how long the stream is. Here:

    * with experiences, each has its own expert, however many come;
    * ``boundary_free``: a new one begins after every ``samples_per_expert`` received images, until there are
      ``experts`` of them. The number is said, not read from the stream; a fifth of its length, for five
      experts, is what the released code computes.

    The paper itself was not at hand: the source is the released code. Where this departs from it:

    * The router sums in float64 and sees the images as training sees them; there in float32, and without
      augmentation. Its strength is relative to the mean diagonal of the second moment and so does not mean
      less with every image; ``strength_scale="absolute"`` adds it as it is, there 10,000.
    * Only experts that have begun can be chosen; there the others compete with a score of 0.
    * The prompts of older experts stay as they are; there Adam's momentum moves them on for some steps.
    * 10,000 random features (``random_features=10000``, 0.8 GB in float64).
    * Logits are the logarithm of what the heads agree on. Their probabilities are of classes that have been
      trained, so that one that was only announced changes no other.

    Args:
        backbone: the frozen vision transformer.
        seed: where all initial values come from.
        layers: the prompted blocks.
        length: tokens of an expert in each of them.
        experts: how many there are without boundaries.
        samples_per_expert: received images after which the next one begins, without boundaries.
        random_features: M, of the router; None for the frozen features themselves.
        strength: of the router's ridge.
        strength_scale: it is "relative" to the mean diagonal of the second moment, or "absolute".
        decays: of the moving averages, per training step; () for the head alone.
        ensemble: what speaks for a class: the "largest" of the heads' probabilities, their "mean", or the
            head of the "least_entropy" for all classes.
        boundary_free: no experiences: experts follow each other by the number of received images.
        mask: which classes compete in training.
    """

    optimizer_reset: ClassVar[Literal["experience", "never"]] = "never"
    multi_label: ClassVar[bool] = False

    @schema.checked
    def __init__(
        self,
        backbone: FrozenViT,
        *,
        seed: int = 0,
        layers: Blocks = (0, 1, 2, 3, 4),
        length: Annotated[int, at_least(1)] = 20,
        experts: Annotated[int, at_least(1)] = 5,
        samples_per_expert: Annotated[int, at_least(1)] = 10_000,
        random_features: Annotated[int, at_least(1)] | None = 2_000,
        strength: Annotated[float, above(0)] = 1.0,
        strength_scale: Literal["relative", "absolute"] = "relative",
        decays: tuple[Annotated[float, at_least(0), below(1)], ...] = (0.9, 0.99),
        ensemble: Literal["largest", "mean", "least_entropy"] = "largest",
        boundary_free: bool = False,
        mask: Mask = "batch",
    ) -> None:
        super().__init__(backbone, seed=seed, mask=mask, boundary_free=boundary_free)
        self.layers = backbone.check_layers("layers", layers)
        self.first_block = min(self.layers, default=backbone.depth)
        self.length = length
        self.experts = experts
        self.samples_per_expert = samples_per_expert
        self.strength = strength
        self.strength_scale = strength_scale
        self.decays = tuple(decays)
        self.ensemble = ensemble
        self.router = ClassStatistics(random_features or backbone.width)  # its classes are the experts
        self.random_features: RandomFeatures | None = None
        if random_features is not None:
            self.random_features = RandomFeatures(backbone.width, random_features, seed)
        self.prompts = nn.ParameterList()  # one [layers, length, D] per expert
        self.expert: Tensor
        self.arrived: Tensor
        self.pending: Tensor
        self.trained: Tensor
        self.average_weight: Tensor
        self.average_bias: Tensor
        self.decay: Tensor
        self.register_buffer("decay", torch.tensor(self.decays), persistent=False)
        self.register_buffer("expert", torch.tensor(-1))  # the one that is trained
        self.register_buffer("arrived", torch.tensor(0))  # images since it began, where that decides
        self.register_buffer("pending", torch.tensor(False))  # a step that the averages have not followed yet
        self.register_buffer("trained", torch.zeros(0, dtype=torch.bool))  # classes with a sample, [C]
        shape = (0, len(self.decays), 0)  # experts, decays, classes
        self.register_buffer("average_weight", torch.zeros(*shape, backbone.width))
        self.register_buffer("average_bias", torch.zeros(shape))
        self._is_first_epoch = True
        if boundary_free:
            self._add_experts(experts)
            self.expert.fill_(0)
        self.set_stage()

    @property
    def boundaries(self) -> Boundaries:
        return "unused" if self.boundary_free else "required"

    @property
    def prompt_tokens(self) -> int:
        return self.length if self.layers else 0

    def notes(self) -> list[str]:
        rule = (
            f"the next of {self.experts} experts begins after every {self.samples_per_expert} received images"
        )
        return [*super().notes(), *([rule] if self.boundary_free else [])]

    # ------------------------------------------------------------------ forward

    def encode(self, images: Tensor, cached: Cache | None = None) -> Encoded:
        if self.training and not (self._received and self._is_first_epoch):
            stem, query = self.backbone.stem(images, self.first_block), None
        else:
            stem, query = self.query(images, self.first_block, cached)
        if not len(self.prompts):  # before any experience
            feature = self.backbone.prompted(stem, _none, start=self.first_block)
            return Encoded(feature, details=Route(None, None))
        if self.training:
            experts = None
            tokens = self.prompts[self._trained_expert][:, None]  # (layers, 1, length, D)
        else:
            assert query is not None
            experts = self.route(query)
            tokens = torch.stack(list(self.prompts), dim=1)[:, experts]  # (layers, B, length, D)
        feature = self.backbone.prompted(stem, self._prompts(tokens), start=self.first_block)
        return Encoded(feature, details=Route(experts, query if self.training else None))

    def _prompts(self, tokens: Tensor) -> Callable[[int, Tensor], BlockPrompt | None]:
        """What each block gets of [layers, 1 or B, length, D]: they have the class token's position."""
        tokens = tokens + self.backbone.class_position()

        def prompts(block: int, x: Tensor) -> BlockPrompt | None:
            if block not in self.layers:
                return None
            return BlockPrompt("fresh", tokens[self.layers.index(block)], name="expert")

        return prompts

    @torch.no_grad()
    def route(self, query: Tensor) -> Tensor:
        """Frozen features [B, D] -> the expert of each image [B]; the first one before any was trained."""
        if not self.router.counted:
            return torch.zeros(query.shape[0], dtype=torch.int64, device=query.device)
        return self.router.once("experts", self._solve)(self.expand(query)).argmax(1).to(query.device)

    def _solve(self, router: ClassStatistics) -> LinearMap:
        return (ridge if self.strength_scale == "relative" else ridge_absolute)(router, self.strength)

    def expand(self, query: Tensor) -> Tensor:
        """Frozen features [B, D] -> what the router is over: relu(q P), [B, M], or themselves."""
        return query if self.random_features is None else self.random_features(query)

    def classify(self, encoded: Encoded) -> Tensor:
        """The head's logits in training; else what it and the averages of each image's expert agree on."""
        experts = encoded.details.experts
        if self.training or experts is None or not self.num_classes:
            return self.logits(encoded.features)
        assert self.head is not None
        with torch.autocast(encoded.features.device.type, enabled=False):
            features = encoded.features.to(self.head.weight.dtype)
            weight, bias = self.averages()
            # of every expert, (B, E, K, C), and of each image's own, (B, K, C)
            averaged = F.linear(features, weight.flatten(0, 2)).unflatten(1, bias.shape) + bias
            own = averaged[torch.arange(features.shape[0], device=features.device), experts]
            heads = torch.cat([self.logits(features)[:, None], own], dim=1)
            return self.together(heads.to(torch.promote_types(heads.dtype, torch.float32)))

    def together(self, logits: Tensor) -> Tensor:
        """Logits of several heads [B, H, C] -> log probabilities [B, C], by ``ensemble``."""
        known = torch.where(self.trained.any(), self.trained, self.seen)
        shares = logits - mask_logits(logits, known).logsumexp(2, keepdim=True)
        if self.ensemble == "largest":
            return shares.amax(1)
        if self.ensemble == "mean":
            return shares.logsumexp(1) - math.log(logits.shape[1])
        entropy = -(shares.exp() * shares).masked_fill(~known, 0.0).sum(2)  # (B, H)
        return shares[torch.arange(shares.shape[0], device=shares.device), entropy.argmin(1)]

    # ------------------------------------------------------------------ training

    def begin_epoch(self, epoch: int) -> None:
        self._is_first_epoch = epoch == 0

    def received(self, features: Tensor, targets: Tensor) -> None:
        self.trained.index_fill_(0, targets, True)

    @torch.no_grad()
    def count_step(self, encoded: Encoded) -> None:
        """Let the averages follow the step before, and count a received batch for its expert, once."""
        self._follow()
        self.pending.fill_(True)
        query = encoded.details.query
        if query is not None:
            wide = self.expand(query)
            at = torch.full((len(query),), self._trained_expert, device=wide.device)
            self.router.add(wide, at)
            self.arrived += len(query)
            self._arrived += len(query)

    def averages(self) -> tuple[Tensor, Tensor]:
        """The moving averages after the last step: weights [E, K, C, D] and biases [E, K, C]."""
        weight, bias = self.average_weight.clone(), self.average_bias.clone()
        self._follow_into(weight, bias)
        return weight, bias

    def _follow(self) -> None:
        self._follow_into(self.average_weight, self.average_bias)
        self.pending.fill_(False)

    def _follow_into(self, weight: Tensor, bias: Tensor) -> None:
        """Move the trained expert's averages towards the head, where a step was made since."""
        assert self.head is not None
        share = (1 - self.decay.to(weight)) * self.pending  # (K,)
        at = self._trained_expert
        weight[at].lerp_(self.head.weight.detach(), share[:, None, None])
        bias[at].lerp_(self.head.bias.detach(), share[:, None])

    # ------------------------------------------------------------------ experts

    def observe(self, targets: Tensor) -> bool:
        """Besides, without boundaries: begin the next expert when its turn has come."""
        grew = super().observe(targets)
        while self.boundary_free and self._is_next_due():
            self.arrived -= self.samples_per_expert
            self._arrived -= self.samples_per_expert
            self._begin_expert(self._trained_expert + 1)
            self._restage()
            grew = True
        return grew

    def _is_next_due(self) -> bool:
        return self._trained_expert + 1 < self.experts and self._arrived >= self.samples_per_expert

    def start_experience(self, index: int, samples: Samples | None) -> None:
        if not self.boundary_free:
            self._add_experts(index + 1 - len(self.prompts))
            self._begin_expert(index)

    @torch.no_grad()
    def _begin_expert(self, index: int) -> None:
        """Prompts from the mean of the older experts', averages from the head as it is."""
        assert self.head is not None
        if index:
            self._follow()
            older = torch.stack(list(self.prompts)[:index])
            self.prompts[index].copy_(older.mean(0))
        self.average_weight[index] = self.head.weight
        self.average_bias[index] = self.head.bias
        self.expert.fill_(index)

    def _add_experts(self, count: int) -> None:
        """Prompts from U(0, 1), and averages of the head."""
        assert self.head is not None
        if count <= 0:
            return
        shape = (len(self.layers), self.length, self.backbone.width)
        for index in range(len(self.prompts), len(self.prompts) + count):
            values = torch.rand(*shape, generator=generator(self.seed, "prompts", index))
            self.prompts.append(nn.Parameter(values))
        head, copies = self.head, (count, len(self.decays), 1, 1)
        grow_rows(self.average_weight, head.weight.detach().repeat(copies))
        grow_rows(self.average_bias, head.bias.detach().repeat(copies[:3]))
        self.router.grow(len(self.prompts))

    def set_stage(self) -> None:
        """Older experts are frozen, and so are those to come."""
        self._trained_expert, self._arrived = max(int(self.expert), 0), int(self.arrived)
        for index, prompt in enumerate(self.prompts):
            prompt.requires_grad_(index == self._trained_expert)

    # ------------------------------------------------------------------ growth and state

    @torch.no_grad()
    def grow_classes(self, num_classes: int) -> None:
        """New classes have the head's rows in every average: nothing has moved them yet."""
        assert self.head is not None
        known = len(self.trained)
        grow_rows(self.trained, torch.zeros(num_classes - known))
        weight, bias = self.head.weight[known:], self.head.bias[known:]
        copies = self.average_bias.shape[:2]
        weights = [self.average_weight, weight.expand(*copies, *weight.shape)]
        biases = [self.average_bias, bias.expand(*copies, *bias.shape)]
        self.average_weight, self.average_bias = torch.cat(weights, dim=2), torch.cat(biases, dim=2)

    def resize_to(self, state: Mapping[str, Tensor]) -> None:
        super().resize_to(state)
        self._add_experts(sum(name.startswith("prompts.") for name in state) - len(self.prompts))

    def diagnostics(self) -> dict[str, Any]:
        """How many images each expert was trained on."""
        return {"experts/images": self.router.counts}


def _none(block: int, x: Tensor) -> None:
    """No prompts."""
