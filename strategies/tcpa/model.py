"""TCPA: every token matches prompts of its own, and sees no others."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Annotated, Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clprompt import schema
from clprompt.backbones.attention import BlockPrompt
from clprompt.backbones.vit import FrozenViT
from clprompt.errors import ConfigError
from clprompt.prompting.model import (
    Blocks,
    Boundaries,
    Cache,
    Encoded,
    Glimpse,
    Mask,
    PromptModel,
    evaluating,
)
from clprompt.prompting.plugin import LearnedPrompts, Samples
from clprompt.prompting.prompts import Chooser, choose, normed, token_choice, uniform
from clprompt.registry import strategies
from clprompt.schema import at_least, below
from clprompt.seeding import generator

ROLES = ("cls", "image")
#: what a pass asks with a block's index and the stream that enters it, [B, N, D]
BlockPrompts = Callable[[int, Tensor], list[BlockPrompt]]
#: prompt tokens of both roles up to which these share one call of attention
SIDE_BY_SIDE = 64


class Role(NamedTuple):
    """What is set for one role.

    Attributes:
        pool: entries of its pool, per experience when growing; 0 for none.
        top_k: entries that a token sees.
        length: prompt tokens per entry.
        rows: its tokens in the stream.
    """

    pool: int
    top_k: int
    length: int
    rows: slice


class Pool(NamedTuple):
    """What rows of the stream choose among in one pass: the pool of a role, or both side by side.

    Attributes:
        rows: of the stream.
        tokens: [blocks, 1 or B, P, D].
        keys: of norm 1, [blocks, M, D].
        choosers: which of the rows choose among which keys.
        lengths: tokens per entry, by chooser.
    """

    rows: slice
    tokens: Tensor
    keys: Tensor
    choosers: tuple[Chooser, ...]
    lengths: tuple[int, ...]

    def columns(self, visible: Tensor) -> Tensor:
        """Entries that rows see, [B, R, M] -> the tokens of these entries, [B, R, P]."""
        if set(self.lengths) == {1}:
            return visible
        parts = zip(self.choosers, self.lengths, strict=True)
        own = [visible[..., chooser.columns].repeat_interleave(n, dim=-1) for chooser, n in parts]
        return torch.cat(own, dim=-1)


def _joined(first: Pool, second: Pool) -> Pool:
    """The pools of the class token and of the patches side by side, for all rows of the stream."""
    (cls,), (image,) = first.choosers, second.choosers
    columns = slice(cls.columns.stop, cls.columns.stop + image.columns.stop)
    return Pool(
        slice(None),
        torch.cat([first.tokens, second.tokens], dim=2),
        torch.cat([first.keys, second.keys], dim=1),
        (cls._replace(rows=first.rows), Chooser(second.rows, columns, image.top_k)),
        first.lengths + second.lengths,
    )


class _Moves(NamedTuple):
    """What is known of how many tokens of some images see other entries than at the time.

    Attributes:
        images: their digest.
        chosen: by role, the entries that they saw at the time, [blocks, B, R, k].
        shares: of tokens that moved, by the number of experiences after which.
    """

    images: str
    chosen: dict[str, Tensor]
    shares: dict[int, float]


@strategies.register(
    "tcpa",
    paper="Liu et al., ICML 2025, arXiv 2505.02406",
    year=2025,
    boundaries="required or unused",
    renamed={"loss_mask": "mask", "mask": "mask_position"},
)
class TCPAModel(PromptModel):
    """TCPA (Liu et al., "Token Coordinated Prompt Attention is Needed for Visual Prompting"), incremental.

    VPT-deep with two pools per block, one for the class token (and other prefix tokens) and one for the
    patches. A token compares the residual stream with the keys of its role's pool and sees, in that block's
    attention, the prompts of its ``top_k`` entries alone. A matching loss pulls chosen keys to their tokens.
    The published method trains on one task; what tasks share here is ours:

    * ``prompts="grow"``: each experience adds entries, older ones are frozen. A token's computation then
      changes only if it switches to a newer key.
    * ``prompts="shared"``: one pool trained throughout; needs no boundaries.
    * ``prompts="first"``: trained in the first experience, frozen after.

    Where the released code differs, and the switch that brings it back:

    * It multiplies the mask after the softmax, without renormalising, so forbidden prompts drain attention
      and get gradient: ``mask_position="after"``. By default forbidden columns are absent.
    * It is built on a Fourier transform of the prompts, which mixes all of them: ``fourier="joint"``.
    * Prompt dropout 0.1 (``prompt_dropout``); random choices in 10 of 100 epochs (``random_epochs``).
    * An unused pool class there indexes similarities by row; entries are always gathered per token here.

    Args:
        backbone: the frozen vision transformer.
        seed: where all initial values and random choices come from.
        pool_cls: entries of the class token's pool (per experience when growing); 0 for none; None for 10,
            or 0 where the backbone has no class token.
        pool_image: entries of the patches' pool (per experience when growing); 0 for none.
        top_k_cls: entries that the class token sees.
        top_k_image: entries that a patch sees.
        length_cls: prompt tokens per entry of the class token's pool.
        length_image: prompt tokens per entry of the patches' pool.
        layers: the prompted blocks; None for all.
        prompts: what experiences share.
        max_entries: growing ends where a pool would hold more; experiences from there on add none and train
            the head alone, so that no step costs more. None for no end.
        select: whether training ranks all entries or those of the task.
        mask_position: forbidden columns are absent ("before" the softmax) or zeroed "after" it.
        fourier: "none" or "joint".
        token_matching: False for roles alone: no keys, every token sees its role's whole pool.
        matching_weight: weight of the matching loss, a sum over blocks.
        detach_query: keep the matching loss out of the prompts of earlier blocks.
        random_epochs: epochs of each experience with random choices (of new entries), training only.
        prompt_dropout: per sample, on the prompts.
        mask: which classes compete in training; None for "experience" ("seen" for shared prompts).
        boundary_free: use without experiences; needs ``prompts="shared"``, which it implies.
    """

    @schema.checked
    def __init__(
        self,
        backbone: FrozenViT,
        *,
        seed: int = 0,
        pool_cls: Annotated[int, at_least(0)] | None = None,
        pool_image: Annotated[int, at_least(0)] = 10,
        top_k_cls: Annotated[int, at_least(0)] = 5,
        top_k_image: Annotated[int, at_least(0)] = 5,
        length_cls: Annotated[int, at_least(1)] = 1,
        length_image: Annotated[int, at_least(1)] = 1,
        layers: Blocks | None = None,
        prompts: Literal["grow", "shared", "first"] = "grow",
        max_entries: Annotated[int, at_least(1)] | None = None,
        select: Literal["all", "task"] = "all",
        mask_position: Literal["before", "after"] = "before",
        fourier: Literal["none", "joint"] = "none",
        token_matching: bool = True,
        matching_weight: Annotated[float, at_least(0)] = 0.01,
        detach_query: bool = False,
        random_epochs: Annotated[int, at_least(0)] = 1,
        prompt_dropout: Annotated[float, at_least(0), below(1)] = 0.0,
        mask: Mask | None = None,
        boundary_free: bool = False,
    ) -> None:
        super().__init__(backbone, seed=seed, mask=mask, boundary_free=boundary_free)
        self.prompts: Literal["grow", "shared", "first"] = "shared" if boundary_free else prompts
        if pool_cls is None:
            pool_cls = 10 if backbone.num_prefix_tokens else 0
        prefix = backbone.num_prefix_tokens
        self.roles = {
            "cls": Role(pool_cls, top_k_cls, length_cls, slice(0, prefix)),
            "image": Role(pool_image, top_k_image, length_image, slice(prefix, None)),
        }
        self.layers = backbone.check_layers("layers", range(backbone.depth) if layers is None else layers)
        self.first_block = min(self.layers, default=backbone.depth)
        self.max_entries = max_entries
        self.select = select
        self.mask_position = mask_position
        self.fourier = fourier
        self.token_matching = token_matching
        self.matching_weight = matching_weight
        self.detach_query = detach_query
        self.random_epochs = 0 if boundary_free else random_epochs
        self.prompt_dropout = prompt_dropout
        self._check()
        self.epoch: int | None = None  # told by the loop; None: no warm-up
        self._known_moves: dict[int, _Moves] = {}  # by class group; what later calls need not count again
        self.steps: Tensor
        self.register_buffer("steps", torch.tensor(0))  # training steps, from which random choices are drawn
        self._step = 0  # the same on the host
        # per role: one parameter per task, [blocks, entries, D] and [blocks, entries, length, D]
        self.keys: Any = nn.ModuleDict({role: nn.ParameterList() for role in ROLES})
        self.entries: Any = nn.ModuleDict({role: nn.ParameterList() for role in ROLES})
        if self.prompts != "grow":
            self._add_task()

    def _check(self) -> None:
        """Refuse pools that do not fit each other or the backbone."""
        for name, role in self.roles.items():
            if role.pool and self.token_matching and not 1 <= role.top_k <= role.pool:
                raise ConfigError(f"top_k_{name} must be 1..{role.pool} (pool_{name}), got {role.top_k}")
            if self.max_entries is not None and self.max_entries < role.pool:
                raise ConfigError(
                    f"max_entries must be at least {role.pool} (pool_{name}), got {self.max_entries}"
                )
        if self.max_entries is not None and self.prompts != "grow":
            raise ConfigError(f'max_entries={self.max_entries} needs prompts="grow", got "{self.prompts}"')
        if not any(role.pool for role in self.roles.values()):
            raise ConfigError("pool_cls and pool_image are both 0: nothing would be prompted")
        if self.roles["cls"].pool and not self.backbone.num_prefix_tokens:
            raise ConfigError("pool_cls must be 0: the backbone has no class token")

    @property
    def boundaries(self) -> Boundaries:
        if self.prompts in ("grow", "first"):
            return "required"
        return super().boundaries

    @property
    def features_stay(self) -> bool:
        return self.prompts == "first"

    @property
    def prompt_tokens(self) -> int:
        """Those that a token of the image sees at most."""
        if not self.layers:
            return 0
        return max((role.top_k * role.length for role in self.roles.values() if role.pool), default=0)

    def learned_prompts(self) -> dict[str, LearnedPrompts]:
        listed: dict[str, LearnedPrompts] = {}
        blocks, width = len(self.layers), self.backbone.width
        added: Literal["never", "anew"] = "anew" if self.prompts == "grow" else "never"
        for name, role in self.roles.items():
            if not role.pool or not blocks:
                continue

            def block_prompt(values: Tensor, block: int, rows: slice = role.rows) -> BlockPrompt:
                return BlockPrompt("fresh", values[self.layers.index(block)].flatten(0, 1)[None], rows=rows)

            listed[name] = LearnedPrompts(
                ("blocks", "slots", "length"),
                (blocks, role.pool, role.length, width),
                list(self.entries[name]),
                blocks=self.layers,
                added=added,
                block_prompt=block_prompt,
            )
            if self.token_matching:
                listed[f"keys_{name}"] = LearnedPrompts(
                    ("blocks", "slots"),
                    (blocks, role.pool, width),
                    list(self.keys[name]),
                    blocks=self.layers,
                    added=added,
                    is_key=True,
                )
        return listed

    # ------------------------------------------------------------------ forward

    def encode(self, images: Tensor, cached: Cache | None = None) -> Encoded:
        return self.encode_tokens(self.backbone.stem(images, self.first_block))

    def encode_tokens(self, stem: Tensor) -> Encoded:
        """What :meth:`encode` returns, from the tokens [B, N, D] that enter the first prompted block.

        Gradient reaches the tokens: something learned may stand before the prompts.
        """
        matching: list[Tensor] = []
        prompts = self._prompts(stem.shape[0], matching)
        feature = self.backbone.prompted(stem, prompts, start=self.first_block)
        if not matching:
            return Encoded(feature)
        return Encoded(feature, {"matching": self.matching_weight * torch.stack(matching).sum()})

    def _tokens(self, batch: int, tasks: int | None = None) -> dict[str, Tensor]:
        """Every prompt token of a role, [blocks, 1 or B, P, D], oldest first; of the first ``tasks``."""
        entries = [
            [part.flatten(1, 2) for part in list(self.entries[role])[:tasks]] for role in ROLES
        ]  # (blocks, P, D) each
        if self.fourier == "joint":  # each task's own slice, else new entries would rewrite old ones
            for task, (cls, image) in enumerate(zip(*entries, strict=True)):
                joined = torch.cat([cls, image], dim=1)
                wide = joined.to(torch.promote_types(joined.dtype, torch.float32))  # no transform in 16 bits
                mixed = torch.fft.fft2(wide).real.to(joined.dtype)
                entries[0][task], entries[1][task] = mixed.split([cls.shape[1], image.shape[1]], dim=1)
        tokens = {
            role: torch.cat(parts, dim=1)[:, None]
            for role, parts in zip(ROLES, entries, strict=True)
            if parts
        }
        if self.training and self.prompt_dropout:
            for number, role in enumerate(tokens):
                kept = self._draw("dropout", number, (batch, *tokens[role].shape[2:])) >= self.prompt_dropout
                tokens[role] = tokens[role] * kept / (1 - self.prompt_dropout)
        return tokens

    def _prompts(self, batch: int, matching: list[Tensor], tasks: int | None = None) -> BlockPrompts:
        """What the blocks of one pass ask for.

        Args:
            batch: images.
            matching: where each block leaves its matching loss in training.
            tasks: as if only the entries of the first so many tasks were there; None for all.
        """
        tokens = self._tokens(batch, tasks)
        if not tokens:
            return lambda block, x: []
        if self.token_matching and self.mask_position == "before" and not self._drawing:
            return self._nearest(tokens, matching, tasks)
        return partial(self._block_prompts, tokens=tokens, matching=matching, tasks=tasks)

    def _nearest(
        self, tokens: dict[str, Tensor], matching: list[Tensor], tasks: int | None = None
    ) -> BlockPrompts:
        """Every token sees its nearest entries and no other column.

        While there are few entries, both roles share one product with the keys and one call of attention, in
        which a mask keeps them apart; with many, what each role would compute of the other's costs more.

        Args:
            tokens: what :meth:`_tokens` gives.
            matching: where each block leaves its matching loss in training.
            tasks: of how many tasks the tokens are; None for all.
        """
        pools = {role: self._pool(role, tokens[role], tasks) for role in ROLES if self.roles[role].pool}
        prefix = self.backbone.num_prefix_tokens
        few = sum(pool.tokens.shape[2] for pool in pools.values()) <= SIDE_BY_SIDE
        both = {"both": _joined(*pools.values())} if len(pools) == 2 and few else pools
        # taken apart at once: the backward pass of an index would fill a gradient of all blocks for each
        tokens_of = {name: pool.tokens.unbind() for name, pool in (pools | both).items()}
        keys_of = {name: pool.keys.unbind() for name, pool in (pools | both).items()}

        def block_prompts(block: int, x: Tensor) -> list[BlockPrompt]:
            if block not in self.layers:
                return []
            layer, query = self.layers.index(block), x.detach() if self.detach_query else x
            # in the last block the head reads some rows: choices of others matter for the loss alone
            read = self.backbone.head_rows if block == self.backbone.depth - 1 else None
            asked = both if read is None else pools
            queries = {"both": query}
            if asked is pools:  # split, as a slice's backward pass would fill a whole gradient for each role
                queries = dict(zip(ROLES, query.split([prefix, x.shape[1] - prefix], dim=1), strict=True))
            shown: list[BlockPrompt] = []
            for name, pool in asked.items():
                unread = read is not None and pool.rows != read
                if unread and not self.training:
                    continue
                visible, loss = choose(queries[name], keys_of[name][layer], pool.choosers, loss=self.training)
                if loss is not None:
                    matching.append(loss)
                if not unread:
                    mask = pool.columns(visible)[:, None]
                    shown.append(BlockPrompt("fresh", tokens_of[name][layer], rows=pool.rows, mask=mask))
            return shown

        return block_prompts

    def _pool(self, role: str, tokens: Tensor, tasks: int | None) -> Pool:
        """What a role's tokens choose among in one pass: in training, if so selected, the newest entries."""
        pool, top_k, length, rows = self.roles[role]
        keys = list(self.keys[role])[:tasks]
        if self.training and self.select == "task" and self._learning:
            keys, tokens = keys[-1:], tokens[:, :, -pool * length :]
        chooser = Chooser(slice(None), slice(0, pool * len(keys)), top_k)
        every = torch.cat(keys, dim=1)
        return Pool(rows, tokens, normed(every), (chooser,), (length,))

    def _block_prompts(
        self,
        block: int,
        x: Tensor,
        tokens: dict[str, Tensor],
        matching: list[Tensor],
        tasks: int | None = None,
    ) -> list[BlockPrompt]:
        """The same for a mask behind the softmax, for roles without keys, and for choices at random.

        Args:
            block: its index.
            x: the stream that enters it, [B, N, D].
            tokens: what :meth:`_tokens` gives.
            matching: where the block leaves its matching loss in training.
            tasks: of how many tasks the tokens are; None for all.
        """
        if block not in self.layers:
            return []
        layer = self.layers.index(block)
        # in the last block the head reads some rows only: other choices matter for the matching loss alone
        read = self.backbone.head_rows if block == self.backbone.depth - 1 and not self.training else None
        block_prompts: list[BlockPrompt] = []
        losses: list[Tensor] = []
        prefix = self.backbone.num_prefix_tokens
        # split, as the backward pass of a slice would fill a whole gradient with zeros for each role
        queries = dict(zip(ROLES, x.split([prefix, x.shape[1] - prefix], dim=1), strict=True))
        for role in ROLES:
            settings = self.roles[role]
            if not settings.pool or (read is not None and role == "image" and self.mask_position == "before"):
                continue
            shown = BlockPrompt("fresh", tokens[role][layer], rows=settings.rows)
            if self.token_matching and not (read is not None and role == "image"):
                visible, loss = self._match(role, layer, queries[role], tasks)
                losses += [] if loss is None else [loss]
                shown = replace(shown, mask=visible.repeat_interleave(settings.length, dim=-1)[:, None])
            block_prompts.append(shown)
            if self.mask_position == "after":  # what a row may not see still takes its share of attention
                if shown.mask is not None:
                    block_prompts.append(replace(shown, mask=~shown.mask, zero_values=True))
                for name, other in self.roles.items():
                    if name != role:
                        block_prompts.append(
                            BlockPrompt("fresh", tokens[role][layer], rows=other.rows, zero_values=True)
                        )
        if losses:
            matching.append(torch.stack(losses).sum())
        return block_prompts

    @property
    def _drawing(self) -> bool:
        """Whether tokens choose at random."""
        warming = self.epoch is not None and self.epoch < self.random_epochs
        return self.training and warming and self._learning

    @property
    def _learning(self) -> bool:
        """Whether the newest entries are the experience's own; not where growing has come to its end."""
        return self.prompts != "grow" or self.entries["cls"][-1].requires_grad

    def _match(
        self, role: str, layer: int, x: Tensor, tasks: int | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """The entries that each row chooses, boolean [B, R, M]; in training also their mean of 1 - cosine.

        Args:
            role: whose pool.
            layer: which of the prompted blocks.
            x: the role's rows of the stream, [B, R, D].
            tasks: how many tasks' entries there are to choose from; None for all.
        """
        query = x.detach() if self.detach_query else x
        keys = torch.cat([part[layer] for part in list(self.keys[role])[:tasks]])  # (M, D)
        top_k = self.roles[role].top_k
        old = len(keys) - self.roles[role].pool  # entries of earlier tasks
        ranks = None
        if self._drawing:
            ranks = self._draw(f"choice {role}", layer, (*x.shape[:2], len(keys)))
            ranks[..., :old] = -1.0
        elif self.training and self.select == "task" and self._learning:
            visible, loss = token_choice(query, keys[old:], top_k)
            return F.pad(visible, (old, 0)), loss
        return token_choice(query, keys, top_k, ranked=ranks, loss=self.training)

    def _draw(self, name: str, number: int, shape: Sequence[int]) -> Tensor:
        """Uniform numbers [B, ...] by the seed and the training step, drawn where they are needed."""
        source = generator(self.seed, name, number, self._step, device=self.device)
        total, rows = self.drawn_rows(shape[0])
        return torch.rand(total, *shape[1:], generator=source, device=self.device)[rows]

    def count_step(self, encoded: Encoded) -> None:
        self.steps += 1
        self._step += 1

    # ------------------------------------------------------------------ experiences

    def begin_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def start_experience(self, index: int, samples: Samples | None) -> None:
        """Growing: a new set of entries, while there is room; the older ones are frozen."""
        self.epoch = None
        tasks = len(self.entries["cls"])
        entries = (tasks + 1) * max(role.pool for role in self.roles.values())
        room = self.max_entries is None or entries <= self.max_entries
        if self.prompts == "grow" and tasks <= index and room:
            self._add_task()

    def _add_task(self) -> None:
        task, width, blocks = len(self.entries["cls"]), self.backbone.width, len(self.layers)
        for role in ROLES:
            pool = self.roles[role].pool
            shape = (blocks, pool, self.roles[role].length, width)
            self.entries[role].append(uniform(*shape, seed=self.seed, name=f"prompts {role}", index=task))
            if self.token_matching:
                self.keys[role].append(
                    uniform(blocks, pool, width, seed=self.seed, name=f"keys {role}", index=task)
                )

    def set_stage(self) -> None:
        self._step = int(self.steps)
        if self.prompts == "shared":
            return
        experience = max(self.experience_index, 0)
        for lists in (self.keys, self.entries):
            for role in ROLES:
                for task, part in enumerate(lists[role]):
                    part.requires_grad_(task == experience)

    def resize_to(self, state: Mapping[str, Tensor]) -> None:
        super().resize_to(state)
        self._known_moves.clear()
        for _ in range(sum(k.startswith("entries.cls.") for k in state) - len(self.entries["cls"])):
            self._add_task()
        self.to(self.device)

    # ------------------------------------------------------------------ what it looks like

    @torch.no_grad()
    def choices(self, images: Tensor, tasks: int | None = None) -> dict[str, Tensor]:
        """Which entries each token sees in evaluation, per role a boolean [blocks, B, R, M]; {} without keys.

        Args:
            images: [B, 3, H, W].
            tasks: as if only the entries of the first so many tasks were there, which for growing prompts is
                what the model did after those tasks: later entries are all that has been added.
        """
        visible: dict[str, list[Tensor]] = {role: [] for role in ROLES if self.roles[role].pool}
        if not self.token_matching or not len(self.keys["image"]):
            return {}

        def prompts(block: int, x: Tensor) -> list[BlockPrompt]:
            if block in self.layers:
                layer = self.layers.index(block)
                for role, parts in visible.items():
                    parts.append(self._match(role, layer, x[:, self.roles[role].rows], tasks)[0])
            return block_prompts(block, x)

        with evaluating(self):
            block_prompts = self._prompts(len(images), [], tasks)
            self.backbone.run(self.backbone.embed(images), prompts)
        return {role: torch.stack(parts) for role, parts in visible.items()}

    def interference(self, groups: Sequence[Tensor], *, last_only: bool = False) -> dict[int, list[float]]:
        """How many tokens of earlier experiences switched entries since, as shares by class group.

        Old entries are frozen and can be looked at without the later ones, so the whole history follows from
        the model as it is and from a few images: it is no state. What was counted already is kept while the
        images are the same, else each experience would count all experiences before it anew.

        Args:
            groups: images [n, 3, H, W] of each class group, in the order of the experiences.
            last_only: look at the state after the last experience, without the way there.

        Returns:
            For each group that had later experiences, the share of tokens (of all blocks and roles) whose set
            of entries is not that of the group's own experience, from that experience (0) to the last one;
            ``last_only``, of the last one only.
        """
        tasks = len(self.entries["image"])
        shares: dict[int, list[float]] = {}
        if self.prompts != "grow" or not self.token_matching:
            return shares
        settled = tasks - int(self.open)  # the entries of an open experience still change
        for group, images in enumerate(groups[: tasks - 1]):
            digest = hashlib.sha256(images.float().cpu().numpy().tobytes()).hexdigest()
            known = self._known_moves.get(group)
            if known is None or known.images != digest:
                known = _Moves(digest, self._chosen(images, group + 1), {})
                self._known_moves[group] = known
            shares[group] = [] if last_only else [0.0]
            for later in range(tasks if last_only else group + 2, tasks + 1):
                share = known.shares.get(later)
                if share is None:
                    share = self._moved(known.chosen, self.choices(images, later))
                if later <= settled:
                    known.shares[later] = share
                shares[group].append(share)
        return shares

    @staticmethod
    def _moved(then: Mapping[str, Tensor], now: Mapping[str, Tensor]) -> float:
        """The share of tokens that see other entries than those [blocks, B, R, k] that they saw."""
        # as many entries are seen as then: others, unless all of those are among them
        moved = [~now[role].gather(-1, chosen.long()).all(-1).flatten() for role, chosen in then.items()]
        return float(torch.cat(moved).double().mean())

    def _chosen(self, images: Tensor, tasks: int) -> dict[str, Tensor]:
        """:meth:`choices` as the numbers of the entries, int32 [blocks, B, R, k]."""
        return {
            role: visible.byte().topk(self.roles[role].top_k, dim=-1).indices.int()
            for role, visible in self.choices(images, tasks).items()
        }

    def probe(self, images: Glimpse) -> dict[str, Any]:
        """The choices for some images, and for growing prompts the interference so far."""
        from clprompt.strategies.tcpa import plots

        groups = images.groups(8)
        if not groups:
            return {}
        few = torch.cat([group[:1] for group in groups])[:6]
        shown: dict[str, Any] = {"coordination": lambda: self.explain(few).get("coordination")}
        shares = self.interference(groups, last_only=True)
        if shares:
            shown["interference"] = lambda: plots.switched(self.interference(groups))
            shown |= {f"interference/group_{group + 1:02d}": v[-1] for group, v in shares.items()}
            shown["interference/switched"] = sum(v[-1] for v in shares.values()) / len(shares)
        return shown

    def explain(self, images: Tensor) -> dict[str, Any]:
        """One figure: per image and block, the entries that patches and the class token see, as colours."""
        from clprompt.strategies.tcpa import plots

        visible = {role: entries.cpu().numpy() for role, entries in self.choices(images).items()}
        if not visible:
            return {}
        height, width = (
            size // patch
            for size, patch in zip(self.backbone.image_size, self.backbone.patch_size, strict=True)
        )
        drawn = plots.choices(
            images.detach().float().cpu().permute(0, 2, 3, 1).numpy(),
            visible.get("image"),
            visible["cls"][:, :, 0] if "cls" in visible else None,
            grid=(height, width),
            blocks=self.layers,
            added=self.roles["image"].pool or self.roles["cls"].pool,
        )
        return {"coordination": drawn}
