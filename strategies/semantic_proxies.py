"""Semantic proxies: an embedding for retrieval, learned against proxies that prompts of classes give."""

from __future__ import annotations

import math
from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clprompt import schema
from clprompt.backbones.attention import BlockPrompt
from clprompt.backbones.vit import FrozenViT
from clprompt.errors import ConfigError, ProtocolError
from clprompt.prompting.heads import count_in, grow_rows, home_of_float64
from clprompt.prompting.losses import SoftLabels
from clprompt.prompting.model import Blocks, Boundaries, Cache, Encoded, PromptModel, evaluating
from clprompt.prompting.plugin import LearnedPrompts, Samples
from clprompt.prompting.prompts import cosine, uniform
from clprompt.registry import strategies
from clprompt.schema import above, at_least, at_most
from clprompt.seeding import generator
from clprompt.targets import as_index, classes_in


@strategies.register(
    "semantic_proxies",
    paper="Ren et al., ICLR 2024, arXiv 2402.02340",
    year=2024,
    boundaries="required or unused",
)
class SemanticProxiesModel(PromptModel):
    """Semantic proxies (Ren et al., "Learning Semantic Proxies from Visual Prompts for Parameter-Efficient
    Fine-Tuning in Deep Metric Learning", VPTSP-G), made class-incremental.

    Two passes of the frozen backbone. Under prompts that all classes share an image has its *embedding* e, a
    unit vector by a head of its own; under the prompts of its class its *semantic feature* p, by another
    head. A state h of each class follows the semantic features of its images through a gated unit, and the
    class's proxy is beta b + (1 - beta) h, with b trained freely. A metric-learning loss draws embeddings to
    the proxies of their classes; retrieval compares embeddings alone.

    Class-incrementally, prompts, b and h of a class are frozen after its experience, and the embedding, both
    heads and the gated unit after ``freeze_embedding_after`` experiences: whatever moves the embedding moves
    every vector that was stored of old images, and the means of old classes with them. An embedding that was
    learned from two classes is worth less than the frozen features; expect the method to work where the first
    experience has many classes.

    Where it departs from the released code:

    * The biases of the backbone stay frozen; the published runs train all of them.
    * States are saved; in the released code a checkpoint lacks them.
    * A batch may come in any order, with any number of images of a class. The first part of the loss is a
      mean over the classes with an image in the batch, as in ProxyAnchor; released is a mean over all
      (``positives="all"``). Only seen classes compete (``mask``).
    * At an experience's end the states of its classes are formed anew, from all its images in their order and
      without augmentation, so that no prediction depends on the last batch.
    * Heads start as the identity; released is ``head_init="xavier"``. Prompts and b of each class are drawn
      as if it were the only one, so that they do not depend on how many there will be.
    * Without feature dropout, and without ``W_ia``, which nothing reads.

    Args:
        backbone: the frozen vision transformer.
        seed: where all initial values come from.
        length: prompt tokens of the embedding in each of its blocks.
        layers: its prompted blocks; None for all.
        class_length: prompt tokens of a class in each of theirs.
        class_layers: the blocks with prompts of classes.
        width: E, of the embedding; None for that of the backbone.
        head_init: how both heads start: as the "identity", or "xavier" (uniform).
        beta: the share of the free part b of a proxy; the rest is the state's.
        bias_lr: the learning rate of b, whatever that of the rest is.
        loss: "anchor", a sum over images for each proxy, or "nca", a sum over proxies for each image.
        form: the loss compares with the proxies of all classes that compete ("both_all"), or of those in the
            batch ("in_batch"), which mix b with states before their normalisation.
        positives: of "anchor", the first part's mean is over the classes in the "batch", or over "all".
        alpha: what cosines are multiplied with in the loss.
        delta: the margin.
        freeze_embedding_after: experiences that train the embedding; None for all.
        classifier: what predicts, by cosine: the "means" of each class's embeddings, taken at the end of its
            experience, or the "proxies", which answer within an open experience in any case. None for means,
            and for proxies where there are no experiences.
        scale: what cosines are multiplied with in logits.
        boundary_free: no experiences: nothing is frozen, and states are as the last batches left them.
        mask: which classes compete in training, those "seen" or those of the "experience".
    """

    multi_label: ClassVar[bool] = False
    soft_labels: ClassVar[bool] = False

    @schema.checked
    def __init__(
        self,
        backbone: FrozenViT,
        *,
        seed: int = 0,
        length: Annotated[int, at_least(1)] = 10,
        layers: Blocks | None = None,
        class_length: Annotated[int, at_least(1)] = 3,
        class_layers: Blocks = (0, 1, 2),
        width: Annotated[int, at_least(1)] | None = None,
        head_init: Literal["identity", "xavier"] = "identity",
        beta: Annotated[float, at_least(0), at_most(1)] = 0.5,
        bias_lr: Annotated[float, above(0)] = 0.05,
        loss: Literal["anchor", "nca"] = "anchor",
        form: Literal["both_all", "in_batch"] = "both_all",
        positives: Literal["batch", "all"] = "batch",
        alpha: Annotated[float, above(0)] = 32.0,
        delta: Annotated[float, at_least(0)] = 0.1,
        freeze_embedding_after: Annotated[int, at_least(1)] | None = 1,
        classifier: Literal["means", "proxies"] | None = None,
        scale: Annotated[float, above(0)] = 32.0,
        boundary_free: bool = False,
        mask: Literal["seen", "experience"] = "seen",
    ) -> None:
        super().__init__(backbone, seed=seed, mask=mask, boundary_free=boundary_free)
        if boundary_free and classifier == "means":
            raise ConfigError(
                "classifier=means needs experiences, at whose ends means are taken; "
                "with boundary_free=true use proxies"
            )
        self.layers = backbone.check_layers("layers", range(backbone.depth) if layers is None else layers)
        self.class_layers = backbone.check_layers("class_layers", class_layers)
        self.first_block = min(self.layers + self.class_layers, default=backbone.depth)
        self.class_length = class_length
        self.width = width or backbone.width
        self.beta = beta
        self.bias_lr = bias_lr
        self.loss = loss
        self.form = form
        self.positives = positives
        self.alpha = alpha
        self.delta = delta
        self.freeze_embedding_after = freeze_embedding_after
        self.classifier = classifier or ("proxies" if boundary_free else "means")
        self.scale = scale
        self.head = None
        self.prompts = _normal(len(self.layers), length, backbone.width, seed=seed, name="prompts")
        self.embedding_head = _head(backbone.width, self.width, head_init, seed, "embedding head")
        self.semantic_head = _head(backbone.width, self.width, head_init, seed, "semantic head")
        self.gru = GatedUnit(self.width, seed)
        self.class_prompts = nn.ParameterList()  # one [class layers, class length, D] per class
        self.biases = nn.ParameterList()  # b, one [E] per class
        self.states: Tensor
        self.means: Tensor
        self.counts: Tensor
        self.register_buffer("states", torch.zeros(0, self.width))  # h, [C, E], of unit length
        self.register_buffer("means", torch.zeros(0, self.width))  # of the embeddings of each class, [C, E]
        self.register_buffer("counts", torch.zeros(0, dtype=torch.int64))  # images in them, [C]
        self.set_stage()

    @property
    def boundaries(self) -> Boundaries:
        return "unused" if self.boundary_free else "required"

    @property
    def feature_width(self) -> int:
        return self.width

    @property
    def answer_is_trained(self) -> bool:
        return self.classifier == "proxies"

    # ------------------------------------------------------------------ forward

    @property
    def needs_two_classes(self) -> bool:
        return False  # images of a class are compared with each other

    @property
    def prompt_tokens(self) -> int:
        return max(self.prompts.shape[1] if self.layers else 0, self.class_length if self.class_layers else 0)

    def learned_prompts(self) -> dict[str, LearnedPrompts]:
        # those of classes are theirs alone
        if not self.layers:
            return {}
        axes, shape = ("blocks", "length"), tuple(self.prompts.shape)
        return {"prompts": LearnedPrompts(axes, shape, [self.prompts], blocks=self.layers)}

    def encode(self, images: Tensor, cached: Cache | None = None) -> Encoded:
        """Embeddings [B, E] of unit length; in training, the stream that both passes share as details."""
        key = "embedding"
        keeps = cached is not None and not self.training and self._embedding_is_final
        if keeps and key in cached:  # type: ignore[operator]
            return Encoded(cached[key])  # type: ignore[index]
        stem = self.backbone.stem(images, self.first_block)
        embeddings = self._embedded(stem)
        if keeps:
            cached[key] = embeddings  # type: ignore[index]
        return Encoded(embeddings, details=stem if self.training else None)

    def _embedded(self, stem: Tensor) -> Tensor:
        """The stream that enters the first prompted block [B, N, D] -> embeddings [B, E]."""
        pooled = self._pooled(stem, self.layers, self.prompts[:, None])
        return F.normalize(self.embedding_head(pooled), dim=1)

    def semantic(self, stem: Tensor, targets: Tensor) -> Tensor:
        """Semantic features [B, E] of unit length, each image under the prompts of its class.

        Args:
            stem: the stream that enters the first prompted block, [B, N, D].
            targets: labels, [B]; read on the host.
        """
        classes, inverse = targets.cpu().unique(return_inverse=True)
        tokens = torch.stack([self.class_prompts[c] for c in classes.tolist()], dim=1)  # (layers, K, P, D)
        pooled = self._pooled(stem, self.class_layers, tokens[:, inverse.to(stem.device, non_blocking=True)])
        return F.normalize(self.semantic_head(pooled), dim=1)

    def _pooled(self, stem: Tensor, layers: tuple[int, ...], tokens: Tensor) -> Tensor:
        """Pooled features [B, D] with the fresh tokens [layers, 1 or B, P, D]."""

        def prompts(block: int, x: Tensor) -> BlockPrompt | None:
            return BlockPrompt("fresh", tokens[layers.index(block)]) if block in layers else None

        return self.backbone.prompted(stem, prompts, start=self.first_block)

    @property
    def _embedding_is_final(self) -> bool:
        """Whether no later experience trains what embeds."""
        limit = self.freeze_embedding_after
        if self.boundary_free or limit is None:
            return False
        return self.experience_index + (not self.is_open) >= limit

    def classify(self, encoded: Encoded) -> Tensor:
        if self.training or self.is_open or self.classifier == "proxies" or self.experience_index < 0:
            return self.scale * cosine(encoded.features, self.proxies(self.states))
        if not torch.compiler.is_compiling() and bool((self.seen & (self.counts == 0)).any()):
            raise ProtocolError(
                "SemanticProxiesModel takes class means from the samples of an experience: "
                "call end_experience(samples) at its end, or use classifier=proxies"
            )
        return self.scale * cosine(encoded.features, self.means)

    def proxies(self, states: Tensor) -> Tensor:
        """States h [C, E] of all classes -> their proxies beta b + (1 - beta) h, [C, E]."""
        if not len(self.biases):
            return states
        return self.beta * torch.stack(list(self.biases)) + (1 - self.beta) * states

    # ------------------------------------------------------------------ training

    def losses(
        self, encoded: Encoded, targets: Tensor, soft: SoftLabels | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        labels, device = self.on_host(targets), targets.device
        learns = [row for row, label in enumerate(labels.tolist()) if self._learns(label)]
        semantic = None
        if learns:
            labels_of_learning = labels[learns]
            semantic = self.semantic(encoded.details[as_index(learns, device)], labels_of_learning)
        with torch.autocast(targets.device.type, enabled=False):
            dtype = torch.promote_types(encoded.features.dtype, torch.float32)
            embeddings, states = F.normalize(encoded.features.to(dtype), dim=1), self.states.to(dtype)
            raw = states
            if semantic is not None:
                raw = self._follow(states, semantic.to(dtype), labels_of_learning)
                followed = as_index(classes_in(labels_of_learning), device)
                states = states.index_copy(0, followed, F.normalize(raw[followed], dim=1))
                self.states = states.detach().to(self.states.dtype)
            similarity = embeddings @ F.normalize(self.proxies(states), dim=1).mT  # (B, C)
            own = targets[:, None] == torch.arange(self.num_classes, device=device)
            compared, competing = similarity, self.training_mask(targets)
            if self.form == "in_batch":
                compared, competing = embeddings @ F.normalize(self.proxies(raw), dim=1).mT, own.any(0)
            positive, negative = proxy_loss(
                compared,
                own,
                competing,
                loss=self.loss,
                positives=self.positives,
                alpha=self.alpha,
                delta=self.delta,
            )
        return self.scale * similarity, {"positive": positive, "negative": negative}

    def _learning(self) -> Tensor:
        """Boolean [C]: the classes whose prompts, free part and state are trained."""
        return torch.ones_like(self.current) if self.boundary_free else self.current

    def _learns(self, label: int) -> bool:
        return self.boundary_free or label in self.current_classes

    def _follow(
        self, states: Tensor, semantic: Tensor, targets: Tensor, *, normalise: bool = False
    ) -> Tensor:
        """States [C, E] after the semantic features [B, E] of images [B], those of a class in turn.

        Args:
            states: before.
            semantic: in the order in which they count.
            targets: their labels; read on the host.
            normalise: bring a state to unit length after every image.
        """
        device, targets = states.device, targets.cpu()
        _, inverse, counts = targets.unique(return_inverse=True, return_counts=True)
        order = inverse.argsort(stable=True)
        turn = torch.empty_like(order)  # of each image among those of its class
        first = counts.cumsum(0) - counts  # of each class, in that order
        turn[order] = torch.arange(len(order)) - first[inverse[order]]
        for number in range(int(counts.max())):
            rows = (turn == number).nonzero().flatten()
            of_rows = targets[rows].to(device, non_blocking=True)
            followed = self.gru(semantic[rows.to(device, non_blocking=True)], states[of_rows])
            followed = F.normalize(followed, dim=1) if normalise else followed
            states = states.index_copy(0, of_rows, followed)
        return states

    # ------------------------------------------------------------------ experiences

    def end_experience(self, samples: Samples | None = None) -> None:
        """Besides: states and class means of the experience's classes, from one pass over its images."""
        if self.is_open and samples is not None:
            self._settle(samples)
        super().end_experience(samples)

    @torch.no_grad()
    def _settle(self, samples: Samples) -> None:
        """States anew from the start, and class means; means of images in another space are not added to."""
        classes = self.current.nonzero().flatten()
        dtype = torch.promote_types(self.states.dtype, torch.float32)
        states = self.states.to(dtype)
        states[classes] = self._initial_states(classes.tolist()).to(states)
        home, counts = home_of_float64(self.device), torch.zeros_like(self.counts)
        sums = torch.zeros_like(self.means, dtype=torch.float64, device=home)
        with evaluating(self):
            for images, targets in samples():
                stem = self.backbone.stem(self.placed(images), self.first_block)
                sums.index_add_(0, targets.to(home), self._embedded(stem).to(sums))
                count_in(counts, targets)
                rows = self.current[targets]
                if bool(rows.any()):
                    semantic = self.semantic(stem[rows], targets[rows]).to(dtype)
                    with torch.autocast(targets.device.type, enabled=False):
                        states = self._follow(states, semantic, targets[rows], normalise=True)
        self.states = states.to(self.states.dtype)
        kept = torch.zeros_like(self.counts) if self.prompts.requires_grad else self.counts
        total = kept + counts
        means = self.means.to(sums) * kept.to(home)[:, None] + sums
        means = (means / total.to(home).clamp(min=1)[:, None]).to(self.means)
        new = counts > 0
        self.means = torch.where(new[:, None], means, self.means)
        self.counts = torch.where(new, total, self.counts)

    def set_stage(self) -> None:
        """Old classes are frozen; so is what embeds, after ``freeze_embedding_after`` experiences."""
        limit = self.freeze_embedding_after
        adapts = self.boundary_free or limit is None or self.experience_index < limit
        for part in (self.embedding_head, self.semantic_head, self.gru):
            part.requires_grad_(adapts)
        self.prompts.requires_grad_(adapts)
        for learns, prompts, bias in zip(
            self._learning().tolist(), self.class_prompts, self.biases, strict=True
        ):
            prompts.requires_grad_(learns)
            bias.requires_grad_(learns)

    def param_groups(self) -> list[dict[str, Any]]:
        """The free parts of proxies have a learning rate of their own."""
        rest = self.trainable()
        biases = {name: rest.pop(name) for name in list(rest) if name.startswith("biases.")}
        return [{"name": "all", "params": rest}, {"name": "biases", "params": biases, "lr": self.bias_lr}]

    # ------------------------------------------------------------------ growth and state

    def grow_classes(self, num_classes: int) -> None:
        new = range(len(self.biases), num_classes)
        learning = self._learning().tolist()
        shape = len(self.class_layers), self.class_length, self.backbone.width
        for c in new:
            prompts = _normal(*shape, seed=self.seed, name="class prompts", index=c)
            bias = uniform(
                self.width, seed=self.seed, name="bias", index=c, bound=math.sqrt(6 / (1 + self.width)) / 8
            )
            self.class_prompts.append(prompts.requires_grad_(learning[c]))
            self.biases.append(bias.requires_grad_(learning[c]))
        grow_rows(self.states, self._initial_states(list(new)))
        grow_rows(self.means, torch.zeros(len(new), self.width))
        grow_rows(self.counts, torch.zeros(len(new)))

    def _initial_states(self, classes: list[int]) -> Tensor:
        """Unit vectors [K, E] in directions of their own."""
        values = [torch.randn(self.width, generator=generator(self.seed, "state", c)) for c in classes]
        return F.normalize(torch.stack(values), dim=1) if values else torch.zeros(0, self.width)


class GatedUnit(nn.Module):
    """A gated recurrent unit whose candidate passes a ReLU in place of a tanh.

    Args:
        width: E.
        seed: where its initial values come from.
    """

    def __init__(self, width: int, seed: int) -> None:
        super().__init__()
        bound = math.sqrt(6 / (2 * width))
        # columns of the reset gate, of the update gate and of the candidate, [E, 3 E]
        self.of_input = uniform(width, 3 * width, seed=seed, name="gru input", bound=bound)
        self.of_state = uniform(width, 3 * width, seed=seed, name="gru state", bound=bound)
        self.bias = nn.Parameter(torch.zeros(3 * width))

    def forward(self, features: Tensor, states: Tensor) -> Tensor:
        """Features [K, E] and states [K, E] -> next states [K, E]."""
        of_input = (features @ self.of_input.to(features) + self.bias.to(features)).chunk(3, dim=1)
        of_state = (states @ self.of_state.to(states)).chunk(3, dim=1)
        reset, update = (torch.sigmoid(x + h) for x, h in zip(of_input[:2], of_state[:2], strict=True))
        candidate = F.relu(of_input[2] + reset * of_state[2])
        return (1 - update) * candidate + update * states


def proxy_loss(
    similarity: Tensor,
    own: Tensor,
    competing: Tensor | None = None,
    *,
    loss: Literal["anchor", "nca"],
    positives: Literal["batch", "all"],
    alpha: float,
    delta: float,
) -> tuple[Tensor, Tensor]:
    """The two parts of the loss, scalars: what draws embeddings to their proxies, and what keeps others away.

    Args:
        similarity: cosines of embeddings with proxies, [B, C].
        own: whether a proxy is that of the image's class, boolean [B, C].
        competing: the classes whose proxies are compared with, boolean [C]; None for all.
        loss: see :class:`SemanticProxiesModel`.
        positives: see :class:`SemanticProxiesModel`.
        alpha: see :class:`SemanticProxiesModel`.
        delta: see :class:`SemanticProxiesModel`.

    Source: Kim et al. 2020 (Proxy Anchor), eq. 4; "nca" as in the released code of VPTSP-G.
    """
    dim = 0 if loss == "anchor" else 1
    if competing is None:
        competing = torch.ones_like(own[0])
    positive = _log_one_and_sum(-alpha * (similarity - delta), own, dim)
    negative = _log_one_and_sum(alpha * (similarity + delta), ~own & competing, dim)
    if loss == "nca":
        return positive.mean(), negative.mean()
    of_positive = own.any(0) if positives == "batch" else competing  # both parts are 0 for other classes
    return positive.sum() / of_positive.sum(), negative.sum() / competing.sum()


def _log_one_and_sum(exponents: Tensor, counted: Tensor, dim: int) -> Tensor:
    """log(1 + sum of exp) over the counted entries along ``dim``."""
    one = exponents.new_zeros(exponents.shape[:dim] + (1,) + exponents.shape[dim + 1 :])
    return torch.cat([exponents.masked_fill(~counted, -math.inf), one], dim=dim).logsumexp(dim)


def _normal(layers: int, length: int, width: int, *, seed: int, name: str, index: int = 0) -> nn.Parameter:
    """Prompts [layers, P, D], each layer's from Xavier's normal distribution for [1, P, D]."""
    values = torch.randn(layers, length, width, generator=generator(seed, name, index))
    return nn.Parameter(values * math.sqrt(2 / ((1 + length) * width)))


def _head(width: int, to: int, init: Literal["identity", "xavier"], seed: int, name: str) -> nn.Sequential:
    """LayerNorm and a linear layer, [..., D] -> [..., E]."""
    linear = nn.utils.skip_init(nn.Linear, width, to)  # which would draw from the global state
    if init == "identity":
        nn.init.eye_(linear.weight)
    else:
        linear.weight = uniform(to, width, seed=seed, name=name, bound=math.sqrt(6 / (width + to)))
    nn.init.zeros_(linear.bias)
    return nn.Sequential(nn.LayerNorm(width), linear)
