"""MULTI-LANE: parallel lanes that read the frozen patch stream through a few learned selectors per task."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clprompt import schema
from clprompt.backbones.attention import residual_mlp
from clprompt.backbones.vit import FrozenViT
from clprompt.errors import ConfigError, ProtocolError
from clprompt.prompting.heads import grow_rows
from clprompt.prompting.losses import SoftLabels, classification_loss
from clprompt.prompting.model import Cache, Encoded, PromptModel, check_disjoint
from clprompt.prompting.plugin import LearnedPrompts, Samples
from clprompt.prompting.prompts import cosine
from clprompt.registry import strategies
from clprompt.schema import above, at_least
from clprompt.seeding import generator
from clprompt.strategies.multilane.lanes import (
    lane_block,
    lane_groups,
    merge_tokens,
    merged_block,
    prompts_at,
    selector_attention,
    summary_blocks,
)


@strategies.register(
    "multilane", paper="De Min et al., CoLLAs 2024, arXiv 2405.15633", year=2024, boundaries="required"
)
class MultiLaneModel(PromptModel):
    """MULTI-LANE (De Min et al., "Less is more: Summarizing Patch Tokens for efficient Multi-Label
    Class-Incremental Learning").

    Every task has a lane: a class token (a copy of the frozen one, without its position) that runs beside the
    frozen patch stream. In each block the task's selectors summarise the patches by one attention, the lane's
    class token attends to the summaries and, in the leading blocks, to learned prompts; then the summaries
    are dropped and the normalised selectors put back ("drop and replace"). Training runs the task's lane
    alone; at test all lanes run in parallel, and each gives the logits of its own classes. Labels [B] train
    by cross-entropy, multi-hot targets [B, C] by binary cross-entropy over the classes of the task.

    Summaries are never formed. The rows of a selector's attention add up to one, so the keys and values of
    the summaries are averages of the frozen stream's own; selectors depend on no image, so they run through
    the blocks once per step; neither gradient nor prompt enters the patch stream: one pass serves all lanes.

    Where published descriptions and codes differ:

    * Each task has parameters of its own (the released code keeps one tensor over all tasks): weight decay
      cannot move old ones, and the number of tasks need not be known.
    * The classifier's input is normalised, as in the released code since September 2024; before, it was not
      (``normalize=false``).
    * The loss of multi-hot targets is computed on the task's columns and scaled by their share, which leaves
      out the constant of the hidden columns.

    Args:
        backbone: the frozen vision transformer; it must have a class token.
        seed: where all initial values come from.
        selectors: S, per task; zero with ``merge_to`` only.
        prompts: P, keys and values per task and block; zero for none.
        prompt_blocks: E, how many leading blocks have prompts.
        drop_and_replace: False summarises in block 0 only; the lane's tokens run on as a prompted sequence.
        merge_to: M, merge the tokens pairwise to at most M (token merging); None for selectors.
        head: "concat" (each lane gives the logits of its classes) or "task" (the lane whose key is nearest to
            the frozen class token gives all of them).
        normalize: L2-normalise the head's input.
        temperature: divides the logits in the loss.
        loss: of multi-hot targets: "bce" or "asymmetric".
        loss_mean: columns that the loss of multi-hot targets is a mean over, "all" or the "active" ones: see
            :func:`clprompt.prompting.losses.classification_loss`.
        init: "orthogonal" or "uniform" (between -1 and 1) for selectors and prompts of the first task; later
            tasks start from the previous one.
        tasks: how many tasks are expected; only the scale of orthogonal prompts depends on it.
        lane_chunk: lanes that evaluation computes at once, twice as many from the third group on where lanes
            and batch make 80 rows or fewer; groups are always filled up, so that a lane's logits have the
            same bits among however many lanes.
        keep_logits: let an evaluator keep the logits of old lanes between evaluations; exact.
    """

    soft_labels: ClassVar[bool] = False
    one_feature_space: ClassVar[bool] = False

    @schema.checked
    def __init__(
        self,
        backbone: FrozenViT,
        *,
        seed: int = 0,
        selectors: Annotated[int, at_least(0)] = 20,
        prompts: Annotated[int, at_least(0)] = 20,
        prompt_blocks: Annotated[int, at_least(0)] = 5,
        drop_and_replace: bool = True,
        merge_to: Annotated[int, at_least(2)] | None = None,
        head: Literal["concat", "task"] = "concat",
        normalize: bool = True,
        temperature: Annotated[float, above(0)] = 1.0,
        loss: Literal["bce", "asymmetric"] = "bce",
        loss_mean: Literal["all", "active"] = "all",
        init: Literal["orthogonal", "uniform"] = "orthogonal",
        tasks: Annotated[int, at_least(1)] = 10,
        lane_chunk: Annotated[int, at_least(1)] = 5,
        keep_logits: bool = True,
    ) -> None:
        super().__init__(backbone, seed=seed)
        if not backbone.has_class_token:
            raise ConfigError(f"MULTI-LANE starts its lanes from a class token; {backbone.source} has none")
        if merge_to is None and selectors < 1:
            raise ConfigError(f"selectors must be at least 1 (or 0 together with merge_to), got {selectors}")
        if merge_to is not None and (selectors or not drop_and_replace):
            raise ConfigError(
                "merge_to takes the place of selectors: it needs selectors=0 and "
                f"drop_and_replace=true; got merge_to={merge_to}, selectors={selectors}, {drop_and_replace=}"
            )
        if prompt_blocks > backbone.depth:
            raise ConfigError(
                f"prompt_blocks must be 0..{backbone.depth}, the blocks of this backbone, got {prompt_blocks}"
            )
        self.head = None  # a lane has its own rows
        self.first_block = backbone.depth  # nothing is prompted in the patch stream
        self.sizes = (selectors, prompts, prompt_blocks)
        self.drop_and_replace = drop_and_replace
        self.merge_to = merge_to
        self.by_key = head == "task"
        self.normalize = normalize
        self.temperature = temperature
        self.loss: Literal["bce", "asymmetric"] = loss
        self.loss_mean: Literal["all", "active"] = loss_mean
        self.init = init
        self.tasks = tasks
        self.lane_chunk = lane_chunk
        self.keep_logits = keep_logits
        self.selectors = nn.ParameterList()  # one [S, D] per lane
        # one [E, key/value, P, D] per lane: raw keys and values, heads side by side
        self.prompts = nn.ParameterList()
        self.keys = nn.ParameterList()  # one [D] per lane, for the task head
        self.head_weights = nn.ParameterList()  # one [classes of the task, D] per lane
        self.head_biases = nn.ParameterList()
        self.lane: Tensor
        self.register_buffer("lane", torch.zeros(0, dtype=torch.long))  # the lane of each class; -1: none yet
        self.columns: Tensor  # the classes of all lanes, lane by lane: follows from ``lane``
        self.register_buffer("columns", torch.zeros(0, dtype=torch.long), persistent=False)
        self._streams: dict[tuple[int, ...], tuple[Any, list[Tensor]]] = {}  # see _selector_stream

    @property
    def num_lanes(self) -> int:
        """T: one lane per experience so far."""
        return len(self.head_weights)

    def classes_of(self, lane: int) -> Tensor:
        """The class ids of a lane, ascending: the rows of its head."""
        return (self.lane == lane).nonzero().flatten()

    def learned_prompts(self) -> dict[str, LearnedPrompts]:
        _, length, blocks = self.sizes
        if not length or not blocks:
            return {}
        return {
            "prompts": LearnedPrompts(
                ("blocks", "parts", "length"),
                (blocks, 2, length, self.backbone.width),
                list(self.prompts),
                blocks=tuple(range(blocks)),
                added="derived",  # a lane starts from the one before
                reads_front=True,
            )
        }

    def _lane_prompts(self, lanes: Sequence[int]) -> Tensor:
        """The prompts of lanes, [T, E, key/value, P, D]."""
        prompts, front = torch.stack([self.prompts[lane] for lane in lanes]), self.in_front("prompts")
        return (
            prompts
            if front is None
            else torch.cat([front.to(prompts).expand(len(lanes), *front.shape), prompts], dim=3)
        )

    # ------------------------------------------------------------------ logits

    def encode(self, images: Tensor, cached: Cache | None = None) -> Encoded:
        """The head's input [B, D]: in training of the newest lane, with the task head also its key's pull.

        In evaluation all lanes run. With the task head the input is that of the chosen lane; else it is that
        of the newest one, and ``details`` are the logits [B, C], each lane's for its classes.
        """
        if not self.num_lanes:
            nothing = images.new_full((images.shape[0], self.num_classes), float("-inf"))
            return Encoded(images.new_zeros(images.shape[0], self.backbone.width), details=nothing)
        if self.training:
            features, frozen = self._run(images, [[self.num_lanes - 1]])
            terms = {} if frozen is None else {"key_pull": -cosine(frozen, self.keys[-1][None]).mean()}
            return Encoded(features[0][:, 0], terms)
        if not self.by_key:
            return self._encode_all(images, cached if self.keep_logits and cached is not None else {})
        parts, frozen = self._run(images, self._groups(range(self.num_lanes), images.shape[0]))
        assert frozen is not None
        chosen = cosine(frozen, torch.stack(list(self.keys))).argmax(1)  # (B,)
        lanes = torch.cat(parts, dim=1)  # (B, T or more, D)
        return Encoded(lanes[torch.arange(images.shape[0]), chosen])

    def _encode_all(self, images: Tensor, kept: Cache) -> Encoded:
        """Every lane gives the logits of its classes; those of old lanes are kept."""
        newest = self.num_lanes - 1
        missing = [lane for lane in range(self.num_lanes) if lane == newest or f"lane{lane}" not in kept]
        scores = {lane: kept[f"lane{lane}"] for lane in range(self.num_lanes) if lane not in missing}
        feature = images
        groups = self._groups(missing, images.shape[0])
        for group, features in zip(groups, self._run(images, groups)[0], strict=True):
            for place, lane in enumerate(group):
                if lane in scores:
                    continue
                # by the lane's own rows: the bits do not depend on how many classes there are
                scores[lane] = F.linear(features[:, place], self.head_weights[lane], self.head_biases[lane])
                if lane == newest:
                    feature = features[:, place]
                if lane < self.experience_index:  # frozen for good
                    kept[f"lane{lane}"] = scores[lane].detach()
        joined = torch.cat([scores[lane] for lane in range(self.num_lanes)], dim=1)
        out = joined.new_full((images.shape[0], self.num_classes), float("-inf"))
        return Encoded(feature, details=out.index_copy(1, self.columns, joined))

    def classify(self, encoded: Encoded) -> Tensor:
        return self.logits(encoded.features) if encoded.details is None else encoded.details

    def logits(self, features: Tensor) -> Tensor:
        """Head input [B, D] -> [B, C] by the rows of all lanes; -inf for a class without a lane."""
        out = features.new_full((features.shape[0], self.num_classes), float("-inf"))
        if not self.num_lanes:
            return out
        scores = F.linear(features, torch.cat(list(self.head_weights)), torch.cat(list(self.head_biases)))
        return out.to(scores.dtype).index_copy(1, self.columns, scores)

    def base_loss(self, logits: Tensor, targets: Tensor, soft: SoftLabels | None = None) -> Tensor:
        return classification_loss(
            logits / self.temperature,
            targets,
            self.training_mask(targets),
            multi_label=self.loss,
            mean=self.loss_mean,
        )

    def _groups(self, lanes: Iterable[int], batch: int) -> list[list[int]]:
        return lane_groups(lanes, self.num_lanes, self.lane_chunk, batch)

    # ------------------------------------------------------------------ lanes

    def _run(
        self, images: Tensor, groups: Sequence[Sequence[int]], look: list[Tensor] | None = None
    ) -> tuple[list[Tensor], Tensor | None]:
        """The head's input of groups of lanes, over one pass of the frozen stream.

        Args:
            images: [B, 3, H, W].
            groups: lanes that are computed together.
            look: collects, block by block, the selectors' attention of the first group, [B, T, S, N].

        Returns:
            Per group [B, T, D]; and with the task head the frozen class token after the final norm, [B, D].
        """
        if not groups:
            return [], None
        start = self.backbone.class_token
        tokens = [start.expand(images.shape[0], len(group), -1) for group in groups]
        prompts = [self._lane_prompts(group) for group in groups]
        streams = [self._selector_stream(group) if self.merge_to is None else [] for group in groups]
        x = images
        for index, (block, x, normed, keys, values) in enumerate(self.backbone.walk(images)):  # noqa: B007
            merged = None if self.merge_to is None else merge_tokens(normed, self.merge_to)
            if merged is None and self.drop_and_replace:
                keys, values = keys.contiguous(), values.contiguous()  # once, not in every group's products
            for number, group in enumerate(groups):
                raw = prompts_at(prompts[number], index)
                if merged is not None:
                    tokens[number] = merged_block(block, tokens[number], merged, raw)
                    continue
                selected = selector_attention(streams[number][index], normed)
                if look is not None and not number:
                    look.append(selected)
                if self.drop_and_replace:
                    tokens[number] = lane_block(block, tokens[number], selected, normed, keys, values, raw)
                else:
                    selectors = torch.stack([self.selectors[lane] for lane in group])
                    summary = selected @ normed[:, None]  # (B, T, S, D)
                    tokens[number] = summary_blocks(
                        self.backbone.blocks, tokens[number], selectors, summary, prompts[number]
                    )
            if not self.drop_and_replace:
                break  # the lanes have left the patches
        features = [self.backbone.final(lane) for lane in tokens]
        return [F.normalize(f, dim=-1) if self.normalize else f for f in features], self._frozen_class(x)

    @torch.no_grad()
    def _frozen_class(self, x: Tensor) -> Tensor | None:
        """The frozen class token after the final norm, [B, D], from the stream that enters the last block."""
        if not self.by_key:
            return None
        blocks = slice(-1, None) if self.drop_and_replace else slice(None)
        return self.backbone.final(self.backbone.run(x, blocks=blocks, rows=slice(0, 1)))[:, 0]

    def _selector_stream(self, group: Sequence[int]) -> list[Tensor]:
        """The normalised selectors that each block sees, [T, S, D] per block, scaled for the selection.

        They depend on no image. Without gradient they are kept until the selectors change.
        """
        selectors = [self.selectors[lane] for lane in group]
        learning = torch.is_grad_enabled() and any(p.requires_grad for p in selectors)
        if torch.compiler.is_compiling():  # what is traced lies nowhere in memory
            return self._normed_selectors(selectors)
        autocast = torch.is_autocast_enabled(selectors[0].device.type)
        key = (tuple((p.data_ptr(), p._version) for p in selectors), autocast)
        kept = self._streams.get(tuple(group))
        if not learning and kept is not None and kept[0] == key:
            return kept[1]
        out = self._normed_selectors(selectors)
        if not learning:
            self._streams[tuple(group)] = (key, out)
        return out

    def _normed_selectors(self, selectors: Sequence[Tensor]) -> list[Tensor]:
        """Selectors [S, D] of some lanes through the blocks: what each block sees, [T, S, D]."""
        stream, out = torch.stack(list(selectors)), []  # (T, S, D)
        for block in self.backbone.blocks:
            normed = block.norm1(stream)
            out.append(normed * self.backbone.width**-0.5)
            if not self.drop_and_replace:
                break
            if block is not self.backbone.blocks[-1]:
                stream = residual_mlp(block, stream, normed)
        return out

    # ------------------------------------------------------------------ growth

    def check_stream(self, classes: Sequence[Sequence[int]]) -> None:
        check_disjoint(classes, "MULTI-LANE")

    def start_experience(self, index: int, samples: Samples | None) -> None:
        """A new lane: selectors and prompts start from the previous one's, key and head rows afresh."""
        classes = self.current.nonzero().flatten()
        taken = classes[self.lane[classes] >= 0]
        if len(taken):
            raise ProtocolError(
                f"class {int(taken[0])} is in two experiences, but has its lane in the first one; "
                "MULTI-LANE needs class lists that do not overlap"
            )
        self.lane[classes] = index
        self._add_lanes([len(classes)])
        if index:
            for lanes in (self.selectors, self.prompts):
                if len(lanes):
                    lanes[index].data.copy_(lanes[index - 1].data)
        head = self.head_weights[index].data
        for row, class_id in zip(head, classes.tolist(), strict=True):
            fresh = torch.empty(row.shape)
            row.copy_(
                nn.init.trunc_normal_(fresh, std=0.02, generator=generator(self.seed, "head", class_id))
            )

    def grow_classes(self, num_classes: int) -> None:
        grow_rows(self.lane, torch.full((num_classes - len(self.lane),), -1))

    def _add_lanes(self, sizes: Sequence[int]) -> None:
        """Lanes for tasks of so many classes, with the initial values of a first task."""
        count, length, blocks = self.sizes
        width = self.backbone.width
        like = self.backbone.class_token

        def parameter(values: Tensor) -> nn.Parameter:
            return nn.Parameter(values.to(like))

        for classes in sizes:
            lane = self.num_lanes
            # rows of an orthogonal matrix over all tasks; this is the first task's part of them
            if self.merge_to is None:
                slab = self._initial((1, count * width), 1, "selectors", lane)
                self.selectors.append(parameter(slab.reshape(count, width)))
            layers = [
                self._initial((2, length * width), self.tasks, f"prompts {block}", lane).reshape(
                    2, length, width
                )
                for block in range(blocks)
            ]
            empty = torch.zeros(0, 2, length, width)
            self.prompts.append(parameter(torch.stack(layers) if layers else empty))
            if self.by_key:
                self.keys.append(parameter(self._orthogonal((1, width), "key", lane)[0]))
            self.head_weights.append(parameter(torch.zeros(classes, width)))
            self.head_biases.append(parameter(torch.zeros(classes)))

    def _initial(self, shape: tuple[int, int], parts: int, name: str, lane: int) -> Tensor:
        rows, columns = shape
        if not columns:
            return torch.zeros(shape)
        if self.init == "uniform":
            return 2 * torch.rand(shape, generator=generator(self.seed, name, lane)) - 1
        return self._orthogonal((rows, columns * parts), name, lane)[:, :columns]

    def _orthogonal(self, shape: tuple[int, int], name: str, lane: int) -> Tensor:
        return nn.init.orthogonal_(torch.empty(shape), generator=generator(self.seed, name, lane))

    def set_stage(self) -> None:
        """Only the newest lane learns."""
        self._streams.clear()
        for name, parameter in self.own_parameters().items():
            parameter.requires_grad_(name.endswith(f".{self.experience_index}"))
        lanes = [self.classes_of(lane) for lane in range(self.num_lanes)]
        self.columns = torch.cat([self.lane.new_zeros(0), *lanes])

    def resize_to(self, state: Mapping[str, Tensor]) -> None:
        super().resize_to(state)
        lanes = sum(name.startswith("head_weights.") for name in state)
        sizes = [len(state[f"head_weights.{lane}"]) for lane in range(self.num_lanes, lanes)]
        self._add_lanes(sizes)

    # ------------------------------------------------------------------ what it looks at

    @torch.no_grad()
    def selector_maps(self, images: Tensor, lanes: Sequence[int]) -> Tensor:
        """Where selectors look: attention to patches, the mean over blocks, [B, T, S, rows, columns]."""
        look: list[Tensor] = []
        self._run(images, [list(lanes)], look)
        mean = torch.stack(look).mean(0)[..., self.backbone.num_prefix_tokens :]
        return mean.unflatten(-1, (self.backbone.image_size[0] // self.backbone.patch_size[0], -1))

    def explain(self, images: Tensor) -> dict[str, Any]:
        """Each image beside what its selectors look at, one row per lane: plots by name."""
        from clprompt.reporting.attention import pixels
        from clprompt.strategies.multilane.plots import attention_plots

        if self.merge_to is not None or not self.num_lanes:
            raise ConfigError("there are no selectors to show: tokens are merged, or nothing was trained")
        names = self.class_titles()
        rows = [", ".join(names[int(c)] for c in self.classes_of(lane)) for lane in range(self.num_lanes)]
        maps = self.selector_maps(images, range(self.num_lanes))
        pictures = pixels(images, self.backbone.inputs)
        return attention_plots(pictures, maps.cpu().double().numpy(), rows, "selector")
