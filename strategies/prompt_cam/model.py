"""The method: one prompt per class in the last block, whose own output scores the class."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cache, partial
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from clprompt import schema
from clprompt.backbones.attention import (
    BlockPrompt,
    SpelledOut,
    finish_attention,
    project_stream,
    residual_mlp,
)
from clprompt.backbones.vit import FrozenViT
from clprompt.errors import ConfigError, ProtocolError
from clprompt.prompting.heads import grow_rows
from clprompt.prompting.model import (
    Boundaries,
    Cache,
    Encoded,
    Glimpse,
    PromptModel,
    check_disjoint,
    evaluating,
)
from clprompt.prompting.plugin import Samples
from clprompt.prompting.prompts import uniform
from clprompt.registry import strategies
from clprompt.schema import above, at_least
from clprompt.strategies.prompt_cam.gate import Evidence, Gate, LDAEvidence, MeansEvidence, gated

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Heads that are drawn, and test images of an experience's classes over which maps are averaged in a run.
_TOP, _MEAN_OF = 4, 8


class Look(NamedTuple):
    """What the prompt of one class looks at in one image.

    Attributes:
        name: of the class.
        chance: that the image is of it, from 0 to 1.
        heads: the most important one first, counted from 0.
        maps: what each of them takes from each patch, [heads, height, width]; the rest up to 1 is the class
            token's and the prompts'.
    """

    name: str
    chance: float
    heads: list[int]
    maps: NDArray[np.float32]


@strategies.register(
    "prompt_cam", paper="Chowdhury et al., CVPR 2025, arXiv 2501.09333", year=2025, boundaries="required"
)
class PromptCAMModel(PromptModel):
    """Prompt-CAM (Chowdhury et al., "Prompt-CAM: Making Vision Transformers Interpretable for Fine-Grained
    Analysis"), made class-incremental.

    Each class has a prompt, which stands beside the image's tokens. One linear map scores the prompt's own
    output behind the last block, so that what tells classes apart is what their prompts attend to: the
    attention of a class's prompt, head by head, shows where the score comes from. ``explain`` draws it.

    The class-incremental form is ours. Prompts stand in the last block alone and see the stream and
    themselves, nothing of other classes: what is learned later changes no earlier score. Each experience
    trains its own prompts and its own scorer, with its classes competing; its prompts are then frozen. As
    scores of different experiences were never compared, logits are the log-softmax of the scores within the
    experience plus the log of its share of what class statistics of the unprompted features say (``gate``).

    Where it departs from the paper's code:

    * The released form, ``form="deep"``, has prompts of all classes in every block, where they see each other
      and change the image's tokens: each score hangs on all classes. It takes one experience and refuses a
      second.
    * No dropout of prompts (0.1 there) and no stochastic depth in the frozen backbone (0.1 there).

    Args:
        backbone: the frozen vision transformer.
        seed: where all initial values come from.
        form: "last", prompts of classes in the last block, or "deep", in every prompted one.
        visibility: what a class's prompt sees beside the image in the form "last": itself ("own") or the
            prompts of "all" classes, with which each new class changes the scores of the others. None for
            "own"; all see each other in the form "deep".
        shared_length: tokens of no class in each earlier prompted block of the form "last", trained in the
            first experience.
        layers: how many blocks are prompted, counted from the last one; None for all.
        gate: how experiences are compared: "soft", "hard" (by the likeliest class alone) or "none".
        gate_by: cosines to class "means", or linear discriminant analysis ("lda").
        gate_scale: what cosines are multiplied with.
        limit_bytes: the most that prompts of classes may take for an image, in a forward pass.
    """

    multi_label: ClassVar[bool] = False

    @schema.checked
    def __init__(
        self,
        backbone: FrozenViT,
        *,
        seed: int = 0,
        form: Literal["last", "deep"] = "last",
        visibility: Literal["own", "all"] | None = None,
        shared_length: Annotated[int, at_least(0)] = 0,
        layers: Annotated[int, at_least(1)] | None = None,
        gate: Gate = "soft",
        gate_by: Literal["means", "lda"] = "means",
        gate_scale: Annotated[float, above(0)] = 20.0,
        limit_bytes: Annotated[int, at_least(1)] = 2**27,
    ) -> None:
        super().__init__(backbone, seed=seed, mask="experience")
        self.head = None
        if form == "deep" and visibility == "own":
            raise ConfigError("visibility=own is for form=last: in form=deep all prompts see each other")
        if form == "deep" and shared_length:
            raise ConfigError(f"shared_length must be 0 with form=deep, got {shared_length}")
        if layers is not None and layers > backbone.depth:
            raise ConfigError(f"layers must be at most {backbone.depth}, all blocks, got {layers}")
        self.form = form
        self.sees_all = form == "deep" or visibility == "all"
        self.gate: Gate = gate
        self.limit_bytes = limit_bytes
        self.last_block = backbone.depth - 1
        first = backbone.depth - (layers or backbone.depth)
        self.first_block = first if form == "deep" or shared_length else self.last_block
        self.prompts = nn.ParameterList()  # one [blocks, classes, D] per experience
        self.score_weights = nn.ParameterList()  # one [D] per experience
        self.score_biases = nn.ParameterList()  # one [1] per experience
        self.shared: nn.Parameter | None = None  # [blocks, P, D]
        if shared_length:
            shape = (self.last_block - self.first_block, shared_length, backbone.width)
            self.shared = uniform(*shape, seed=seed, name="shared", bound=self._bound)
        self.columns: Tensor
        self.register_buffer("columns", torch.zeros(0, dtype=torch.int64))  # the class of each prompt, [R]
        self.evidence: Evidence
        if gate_by == "lda":
            self.evidence = LDAEvidence(backbone.width)
        else:
            self.evidence = MeansEvidence(backbone.width, gate_scale)
        self._with_prompt: list[int] = []  # ``columns``, on the host
        self._is_first_epoch = True

    @property
    def prompt_tokens(self) -> int:
        """Shared ones; those of classes stand beside the image in the last block alone, or one a class."""
        return 0 if self.shared is None else self.shared.shape[1]

    @property
    def _bound(self) -> float:
        """Of initial values, as for any prompt beside patches: Xavier's for the patch projection."""
        fan = self.backbone.in_chans * math.prod(self.backbone.patch_size) + self.backbone.width
        return math.sqrt(6 / fan)

    @property
    def boundaries(self) -> Boundaries:
        return "required"

    @property
    def features_stay(self) -> bool:
        return True

    @property
    def counts_features(self) -> bool:
        return self.gate != "none"

    @property
    def sizes(self) -> list[int]:
        """Classes of each experience."""
        return [prompts.shape[1] for prompts in self.prompts]

    # ------------------------------------------------------------------ scores

    def encode(self, images: Tensor, cached: Cache | None = None) -> Encoded:
        """The unprompted features, by which experiences are compared, and beside them the scores [B, R]."""
        stem, query = self.query(images, self.first_block, cached)
        if not len(self.prompts):
            return Encoded(query, details=query.new_zeros(query.shape[0], 0))
        x = self._entering_last(stem)
        experiences = range(len(self.prompts))
        if self.sees_all:
            return Encoded(query, details=self._scores(x, experiences))
        # one by one: a pass of another size would round otherwise, and old scores shall keep their bits
        kept: Cache = {} if cached is None or self.training else cached
        seen = self.backbone.keys_and_values(self.last_block, x)
        parts = [
            kept[key] if (key := f"scores {e}") in kept else self._own_scores(x, seen, e) for e in experiences
        ]
        for e, part in enumerate(parts):
            if not self.prompts[e].requires_grad:  # frozen, as all but those of the newest experience
                kept[f"scores {e}"] = part
        return Encoded(query, details=torch.cat(parts, dim=1))

    def _entering_last(self, stem: Tensor) -> Tensor:
        """The stream that enters the last block, of that which enters the first prompted one, [B, N, D]."""
        if self.first_block == self.last_block:
            return stem
        if self.form == "deep":
            tokens = torch.cat(list(self.prompts), dim=1)  # (blocks, R, D)
        else:
            assert self.shared is not None
            tokens = self.shared

        def prompts(block: int, x: Tensor) -> BlockPrompt:
            name = "class" if self.form == "deep" else "shared"
            return BlockPrompt("fresh", tokens[block - self.first_block][None], name=name)

        return self.backbone.run(stem, prompts, blocks=slice(self.first_block, self.last_block))

    def _in_last(self, experiences: Sequence[int], length: int) -> tuple[BlockPrompt, slice]:
        """What the last block gets of experiences, beside a stream of that length, and where it stands."""
        tokens = torch.cat([self.prompts[e][-1] for e in experiences])  # (R, D)
        count = len(tokens)
        mask = None
        if not self.sees_all:
            mask = torch.ones(length + count, count, dtype=torch.bool, device=tokens.device)
            mask[length:] = torch.eye(count, dtype=torch.bool, device=tokens.device)
            mask = mask[None, None]
        prompt = BlockPrompt("carried", tokens[None], mask=mask, name="class")
        return prompt, slice(length, length + count)

    def _scores(self, x: Tensor, experiences: Sequence[int]) -> Tensor:
        """The stream that enters the last block -> scores of classes whose prompts see each other, [B, R]."""
        prompt, rows = self._in_last(experiences, x.shape[1])
        block = slice(self.last_block, None)
        return self.score(self.backbone.run(x, lambda *_: prompt, blocks=block, rows=rows), experiences)

    def _own_scores(self, x: Tensor, seen: tuple[Tensor, Tensor], experience: int) -> Tensor:
        """Scores of the classes of an experience whose prompts see the stream and themselves, [B, R].

        Args:
            x: the stream that enters the last block, [B, N, D].
            seen: its keys and values there, [B, H, N, d] each.
            experience: which.
        """
        prompt, rows = self._in_last([experience], x.shape[1])
        if self.backbone.around is not None:  # plug-ins see the prompt, and may put others in its place
            last = self.last_block if self.backbone.trim_last_block else None
            given = self.backbone.around(lambda *_: prompt, last, rows)(self.last_block, x)
            if given is not prompt and (isinstance(given, BlockPrompt) or tuple(given or ()) != (prompt,)):
                plain = self.backbone.with_prompts_through(None)
                blocks = slice(self.last_block, None)
                return self.score(plain.run(x, lambda *_: given, blocks=blocks, rows=rows), [experience])
        block: Any = self.backbone.blocks[self.last_block]
        keys, values = seen
        tokens = self.prompts[experience][-1:]  # (1, R, D), which depend on no image
        normed = block.norm1(tokens)
        query, own_key, own_value = project_stream(block.attn, normed)  # (1, H, R, d) each
        own = (query * own_key).sum(-1, keepdim=True)
        columns = [query @ keys.mT, own.expand(keys.shape[0], -1, -1, -1)]
        weights = (torch.cat(columns, dim=-1) * query.shape[-1] ** -0.5).softmax(-1)  # (B, H, R, N + 1)
        heads = weights[..., :-1] @ values + weights[..., -1:] * own_value
        outputs = residual_mlp(block, tokens, finish_attention(block.attn, normed, heads))
        return self.score(outputs, [experience])

    def score(self, outputs: Tensor, experiences: Sequence[int]) -> Tensor:
        """Outputs of prompts behind the last block, [B, R, D] -> scores by their experience's scorer, [B, R].

        Args:
            outputs: of the prompts of these experiences, one behind the other.
            experiences: which.
        """
        parts = self.backbone.final(outputs).split([self.sizes[e] for e in experiences], dim=1)
        return torch.cat(
            [
                part @ self.score_weights[e] + self.score_biases[e]
                for part, e in zip(parts, experiences, strict=True)
            ],
            dim=1,
        )

    def classify(self, encoded: Encoded) -> Tensor:
        """Scores in training; else logits that compare classes of all experiences."""
        scores: Tensor = encoded.details
        if not self.training and self.gate != "none" and len(self.columns):
            scores = self._gated(scores, encoded.features)
        logits = scores.new_full((scores.shape[0], self.num_classes), float("-inf"))
        return logits.index_copy(1, self.columns, scores)

    def _gated(self, scores: Tensor, query: Tensor) -> Tensor:
        assert self.gate != "none"
        unknown = ~self.predictable()[self.columns]  # (R)
        with torch.autocast(scores.device.type, enabled=False):
            scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
            evidence = self.evidence.classify(query).to(scores.dtype)[:, self.columns]
            scores, evidence = (v.masked_fill(unknown, float("-inf")) for v in (scores, evidence))
            return gated(scores, evidence, self.sizes, self.gate)

    def predictable(self) -> Tensor:
        """Boolean [C]: the classes seen, with a sample where a gate compares them."""
        return self.seen if self.gate == "none" else self.seen & self.evidence.known.to(self.device)

    # ------------------------------------------------------------------ training

    def begin_epoch(self, epoch: int) -> None:
        self._is_first_epoch = epoch == 0

    def end_experience(self, samples: Samples | None = None) -> None:
        super().end_experience(samples)
        self._is_first_epoch = True  # of what comes next, should nobody tell

    def received(self, features: Tensor, targets: Tensor) -> None:
        """Count a batch, in the first epoch of an experience: a second one would see the same images."""
        if self._is_first_epoch and self.gate != "none":
            self.evidence.add(features, targets)

    def check_targets(self, targets: Tensor) -> None:
        super().check_targets(targets)
        if targets.device.type != "cpu":
            return
        without = ~torch.isin(targets, torch.tensor(self._with_prompt))
        if bool(without.any()):
            raise ProtocolError(
                f"class {int(targets[without][0])} has no prompt: begin_experience(classes) did not name it"
            )

    # ------------------------------------------------------------------ growth

    def check_stream(self, classes: Sequence[Sequence[int]]) -> None:
        experiences = len(self.prompts) + len(classes)
        if self.form == "deep" and experiences > 1:
            raise ConfigError(
                "form=deep takes one experience, as each of its scores hangs on the prompts of all classes; "
                f"this stream has {experiences}: use form=last"
            )
        check_disjoint([self.columns.tolist()] * bool(len(self.columns)) + [*classes], "Prompt-CAM")
        self._check_room(map(len, classes))

    def _check_room(self, sizes: Iterable[int]) -> None:
        """Refuse experiences of so many classes whose prompts take too much in one pass."""
        count = len(self.columns) + sum(sizes) if self.sees_all else max(sizes, default=0)
        needed = self.prompt_bytes(count)
        if needed > self.limit_bytes:
            raise ConfigError(
                f"limit_bytes must be at least {needed}, the bytes that {count} class prompts take for an "
                f"image, got {self.limit_bytes}; raise it if a batch of images fits"
            )

    def prompt_bytes(self, count: int) -> int:
        """What prompts of so many classes, in one forward pass, take for one image, in bytes.

        Their attention weights, and their tokens on the way through the block: eight of the width of the
        stream and two of the MLP's. In the form "deep" it is the attention of all tokens in all blocks.
        Where prompts see themselves alone, each experience has a pass of its own.
        """
        backbone = self.backbone
        block: Any = backbone.blocks[-1]
        tokens = backbone.num_tokens
        weights = backbone.num_heads * count * (tokens + count)
        if self.form == "deep":
            weights += backbone.num_heads * (self.last_block - self.first_block) * tokens * (tokens + count)
        hidden = block.mlp.fc2.in_features
        numbers = weights + count * (8 * backbone.width + 2 * hidden)
        return numbers * torch.finfo(backbone.dtype).bits // 8

    def start_experience(self, index: int, samples: Samples | None) -> None:
        """Prompts for the new classes, drawn by class, and a scorer of their own."""
        classes = self.current.nonzero().flatten()
        again = classes[torch.isin(classes, self.columns)]
        if len(again):
            raise ProtocolError(
                f"class {int(again[0])} is in two experiences, but has its prompt in the first one; "
                "Prompt-CAM needs class lists that do not overlap"
            )
        if self.form == "deep" and index:
            raise ProtocolError("form=deep takes one experience, got a second one: use form=last")
        self._check_room([len(classes)])
        self._add(classes.tolist())

    def _add(self, classes: Sequence[int]) -> None:
        blocks, width = (self.depth_of_prompts, self.backbone.width)
        drawn = [
            uniform(blocks, width, seed=self.seed, name="prompt", index=c, bound=self._bound) for c in classes
        ]
        index = len(self.prompts)
        self.prompts.append(nn.Parameter(torch.stack([prompt.detach() for prompt in drawn], dim=1)))
        self.score_weights.append(
            uniform(width, seed=self.seed, name="scorer", index=index, bound=width**-0.5)
        )
        self.score_biases.append(nn.Parameter(torch.zeros(1)))
        grow_rows(self.columns, torch.tensor(classes, dtype=torch.int64))

    @property
    def depth_of_prompts(self) -> int:
        """Blocks that have prompts of classes."""
        return self.backbone.depth - self.first_block if self.form == "deep" else 1

    def set_stage(self) -> None:
        """The newest prompts and their scorer learn; shared ones in the first experience."""
        for name, parameter in self.own_parameters().items():
            newest = name.endswith(f".{self.experience_index}")
            parameter.requires_grad_(self.experience_index <= 0 if name == "shared" else newest)
        self._with_prompt = self.columns.tolist()

    def grow_classes(self, num_classes: int) -> None:
        self.evidence.grow(num_classes)

    def resize_to(self, state: Mapping[str, Tensor]) -> None:
        super().resize_to(state)
        start = len(self.columns)
        for experience in range(len(self.prompts), sum(n.startswith("score_biases.") for n in state)):
            count = state[f"prompts.{experience}"].shape[1]
            self._add(state["columns"][start : start + count].tolist())
            start += count

    # ------------------------------------------------------------------ what it looks at

    @torch.no_grad()
    def attention(self, images: Tensor) -> SpelledOut:
        """Attention of the prompts of all classes in the last block: rows are prompts, [B, H, R, N + R].

        Columns are the stream's, class token and registers in front, then the prompts in the order of
        ``columns``.
        """
        x = self._entering_last(self.backbone.stem(images, self.first_block))
        prompt, rows = self._in_last(range(len(self.prompts)), x.shape[1])
        return self.backbone.spelled_out(self.last_block, x, [prompt], rows)

    def maps(self, attention: SpelledOut) -> Tensor:
        """What the prompts of all classes take from each patch, [B, H, R, height, width]."""
        start = self.backbone.num_prefix_tokens
        height, width = (
            size // patch
            for size, patch in zip(self.backbone.image_size, self.backbone.patch_size, strict=True)
        )
        return attention.weights[..., start : start + height * width].unflatten(-1, (height, width))

    @torch.no_grad()
    def blurred_scores(self, attention: SpelledOut, blurred: Tensor) -> Tensor:
        """Scores [B, R] with some heads' attention even over all that a prompt sees.

        Args:
            attention: as :meth:`attention` gives it.
            blurred: boolean [B, H, R]: which heads of which prompt; a prompt's score follows from its own.
        """
        even = attention.visible.to(attention.weights) / attention.visible.sum(-1, keepdim=True)
        weights = torch.where(blurred[..., None], even, attention.weights)
        return self.score(attention.finish(weights), range(len(self.prompts)))

    @torch.no_grad()
    def head_order(self, attention: SpelledOut) -> Tensor:
        """Heads of each prompt, the least important one first: int64 [B, R, H].

        Beside those blurred already, the head is blurred next whose blurring leaves the class the largest
        probability, which is the largest score, as blurring changes no other.
        """
        batch, heads, rows, _ = attention.weights.shape
        blurred = torch.zeros(batch, heads, rows, dtype=torch.bool, device=attention.weights.device)
        order = []
        for _ in range(heads):
            scores = []
            for head in range(heads):
                tried = blurred.clone()
                tried[:, head] = True
                scores.append(self.blurred_scores(attention, tried).masked_fill(blurred[:, head], -math.inf))
            chosen = torch.stack(scores).argmax(0)  # (B, R)
            blurred.scatter_(1, chosen[:, None], True)
            order.append(chosen)
        return torch.stack(order, dim=-1)

    # ------------------------------------------------------------------ drawings

    @torch.no_grad()
    def explain(self, images: Tensor, *, classes: Sequence[int] = ()) -> dict[str, Any]:
        """One figure per image: the most important heads of the likeliest classes.

        Args:
            images: [B, 3, H, W].
            classes: these beside the predicted one; the runner-up where there are none.
        """
        from clprompt.reporting.attention import pixels
        from clprompt.strategies.prompt_cam import plots

        known = int(self.predictable().sum())
        if not known:
            raise ConfigError("there are no prompts to show: nothing was trained")
        with evaluating(self):
            chances = self(images).softmax(dim=1)
        best = chances.topk(min(2, known), dim=1).indices.tolist()
        drawn = {}
        for number, (first, *rest) in enumerate(best):
            shown = list(dict.fromkeys([first, *(classes or rest)]))
            rows = self._looks(images[[number]], shown, chances[number])
            picture = pixels(images[[number]], self.backbone.inputs)[0]
            drawn[f"heads_{number + 1:02d}"] = plots.heads([picture] * len(rows), rows)
        return drawn

    def _looks(self, image: Tensor, classes: Sequence[int], chances: Tensor) -> list[Look]:
        """What the prompts of classes look at in an image [1, 3, H, W], the most important heads first."""
        attention = self.attention(image)
        order = self.head_order(attention)[0].flip(-1)[:, :_TOP]  # (R, heads)
        maps = self.maps(attention)[0]  # (H, R, height, width)
        names = self.class_titles()
        row_of = self._row_of()
        looks = []
        for c in classes:
            row, heads = row_of[c], order[row_of[c]].tolist()
            looks.append(Look(names[c], float(chances[c]), heads, maps[heads, row].float().cpu().numpy()))
        return looks

    def _row_of(self) -> dict[int, int]:
        """The row of each class among the prompts."""
        return {c: row for row, c in enumerate(self.columns.tolist())}

    def probe(self, images: Glimpse) -> dict[str, Any]:
        """The heads for a test image of the oldest and the newest classes, and the mean map of each class.

        The mean is over heads and over the images that are predicted to be of the class.
        """
        if not bool(self.predictable().any()):
            return {}
        groups = cache(partial(images.groups, _MEAN_OF))
        return {
            "attention/heads": lambda: self._draw_heads(groups()),
            "attention/classes": lambda: self._draw_means(groups()),
        }

    @torch.no_grad()
    def _draw_heads(self, groups: Sequence[Tensor]) -> Figure | None:
        """The heads for the first image of the oldest and of the newest group."""
        from clprompt.reporting.attention import pixels
        from clprompt.strategies.prompt_cam import plots

        looks, pictures = [], []
        for group in [groups[0], groups[-1]][: len(groups)]:
            chances = self(group[:1]).softmax(dim=1)[0]
            looks += self._looks(group[:1], [int(chances.argmax())], chances)
            pictures.append(pixels(group[:1], self.backbone.inputs)[0])
        return plots.heads(pictures, looks) if looks else None

    @torch.no_grad()
    def _draw_means(self, groups: Sequence[Tensor]) -> Figure | None:
        """The mean map of each class that is predicted."""
        from clprompt.strategies.prompt_cam import plots

        names = self.class_titles()
        means = {names[c]: mean.float().cpu().numpy() for c, mean in self._mean_maps(groups).items()}
        return plots.means(means) if means else None

    def _mean_maps(self, groups: Sequence[Tensor]) -> dict[int, Tensor]:
        """By class, the mean map [height, width] of its prompt over the images that it is predicted for."""
        sums: dict[int, Tensor] = {}
        counts: Counter[int] = Counter()
        row_of = self._row_of()
        for group in groups:
            maps = self.maps(self.attention(group)).mean(1)  # (B, R, height, width)
            for image, c in enumerate(self(group).argmax(1).tolist()):
                sums[c] = sums.get(c, 0) + maps[image, row_of[c]]
                counts[c] += 1
        return {c: sums[c] / counts[c] for c in sorted(sums)}
