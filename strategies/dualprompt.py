"""DualPrompt: one general prefix for all experiences, one expert prefix and key per experience."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor, nn

from clprompt import schema
from clprompt.backbones.attention import BlockPrompt
from clprompt.backbones.vit import FrozenViT
from clprompt.errors import ConfigError, ProtocolError
from clprompt.prompting.model import Blocks, Boundaries, Cache, Encoded, Mask, PromptModel
from clprompt.prompting.plugin import LearnedPrompts, PromptSet, Samples, most_tokens
from clprompt.prompting.prompts import chosen_similarity, cosine, match, uniform
from clprompt.registry import Only, strategies
from clprompt.schema import at_least


@strategies.register(
    "dualprompt",
    paper="Wang et al., ECCV 2022, arXiv 2204.04799",
    year=2022,
    boundaries="required or unused",
    refused={
        "batchwise_prompt": Only(
            False, "one prompt voted by the whole batch makes a prediction depend on its batch companions"
        ),
        "top_k": Only(1, "DualPrompt uses one expert prompt per image"),
    },
)
class DualPromptModel(PromptModel):
    """DualPrompt (Wang et al., "DualPrompt: Complementary Prompting for Rehearsal-free Continual Learning").

    Learned keys and values stand in front of a block's own (prefix form). The general prompt serves every
    image; of the expert prompts, training uses the one of the experience, and at test each image takes the
    one whose key is nearest to its query. Loss: cross-entropy over the classes of the experience minus
    ``pull`` times the cosine of query and key.

    Where published descriptions and codes differ:

    * Selection is per sample. The majority vote over the batch of the released code (``batchwise_prompt``)
      makes a prediction depend on its batch companions and leaks the task; it is refused.
    * The reshape of the PyTorch port that mixes batch and key/value axes is not reproduced.
    * Expert slots appear one per experience, so keys of experiences still to come never compete at test (the
      released code matches all of a fixed pool).
    * A block in both lists gets both prefixes (the port drops the expert one).
    * ``freeze_general_after``: nothing in the method protects the general prompt from later experiences; with
      n, it is trained in the first n experiences only.

    Args:
        backbone: the frozen vision transformer.
        seed: where all initial values come from.
        g_layers: blocks of the general prompt.
        g_length: length of the general prompt (keys and values each).
        e_layers: blocks of the expert prompts.
        e_length: length of the expert prompts.
        pull: weight of the key's pull towards its queries.
        freeze_general_after: experiences that train the general prompt; None for all.
        pool_size: fixed number of expert slots; None for one per experience (10 when boundary-free).
        boundary_free: no experiences: slots are chosen by key in training too, all of them compete, and
            nothing is copied or frozen.
        mask: which classes compete in training; None for "experience" ("seen" when boundary-free).
        form: "prefix" (raw keys and values), "projected" (through the frozen projections), or "fresh" (tokens
            with the class token's position, as in an online variant of the method).
    """

    chooses_by_query: ClassVar[bool] = True

    @schema.checked
    def __init__(
        self,
        backbone: FrozenViT,
        *,
        seed: int = 0,
        g_layers: Blocks = (0, 1),
        g_length: Annotated[int, at_least(1)] = 5,
        e_layers: Blocks = (2, 3, 4),
        e_length: Annotated[int, at_least(1)] = 20,
        pull: float = 1.0,
        freeze_general_after: Annotated[int, at_least(0)] | None = None,
        pool_size: Annotated[int, at_least(1)] | None = None,
        boundary_free: bool = False,
        mask: Mask | None = None,
        form: Literal["prefix", "projected", "fresh"] = "prefix",
    ) -> None:
        super().__init__(backbone, seed=seed, mask=mask, boundary_free=boundary_free)
        self.g_layers = backbone.check_layers("g_layers", g_layers)
        self.e_layers = backbone.check_layers("e_layers", e_layers)
        self.pull = pull
        self.freeze_general_after = freeze_general_after
        self.pool_size = pool_size
        self.form = form
        self.e_length = e_length
        self.first_block = min(self.g_layers + self.e_layers, default=backbone.depth)
        parts = 1 if form == "fresh" else 2  # keys and values, or tokens
        self.g_prompt = uniform(
            len(self.g_layers), parts, g_length, backbone.width, seed=seed, name="general"
        )
        self.e_prompts = nn.ParameterList()  # one [layers, key/value, length, D] per slot
        self.keys = nn.ParameterList()  # one [D] per slot, shared by its layers
        if boundary_free:
            self._add_slots(pool_size or 10)

    @property
    def boundaries(self) -> Boundaries:
        return "unused" if self.boundary_free else "required"

    @property
    def prompt_tokens(self) -> int:
        return most_tokens(self.prompt_sets().values()) if self.form == "fresh" else 0

    def prompt_sets(self) -> dict[str, PromptSet]:
        return {
            "general": PromptSet(self.g_layers, self.g_prompt.shape[2], [self.g_prompt]),
            "expert": PromptSet(self.e_layers, self.e_length, list(self.e_prompts)),
        }

    def learned_prompts(self) -> dict[str, LearnedPrompts]:
        axes, (parts, width) = ("blocks", "parts", "length"), (self.g_prompt.shape[1], self.backbone.width)
        listed = {
            "general": LearnedPrompts(
                axes,
                tuple(self.g_prompt.shape),
                [self.g_prompt],
                blocks=self.g_layers,
                block_prompt=lambda v, block: self._block_prompt(
                    "general", v[self.g_layers.index(block)][:, None]
                ),
            ),
            "expert": LearnedPrompts(
                axes,
                (len(self.e_layers), parts, self.e_length, width),
                list(self.e_prompts),
                blocks=self.e_layers,
                added="never" if self.boundary_free else "derived",  # copies of the one before
                block_prompt=lambda v, block: self._block_prompt(
                    "expert", v[self.e_layers.index(block)][:, None]
                ),
            ),
        }
        return {name: prompts for name, prompts in listed.items() if prompts.blocks}

    @property
    def slot_per_experience(self) -> bool:
        return not self.boundary_free

    def encode(self, images: Tensor, cached: Cache | None = None) -> Encoded:
        return self._encode(images, cached, None)

    def encode_under(self, images: Tensor, experiences: Tensor, cached: Cache | None = None) -> Encoded:
        return self._encode(images, cached, experiences.clamp(max=len(self.keys) - 1)[:, None])

    def _encode(self, images: Tensor, cached: Cache | None, slots: Tensor | None) -> Encoded:
        """Under the expert prompts of slots [B, 1]; None for the method's own choice."""
        stem, query = self.query(images, self.first_block, cached)
        if not len(self.keys):  # before any experience: only the general prompt exists
            return Encoded(self.backbone.prompted(stem, self._prompts(None, None), start=self.first_block))
        similarity = cosine(query, torch.stack(list(self.keys)))  # (B, S)
        if self.training and not self.boundary_free and slots is None:
            slot = len(self.keys) - 1
            chosen = torch.full((len(images), 1), slot, device=images.device)
            # one row for the whole batch
            expert = self.e_prompts[slot][:, :, None]  # (layers, 2, 1, length, D)
        else:
            chosen = match(similarity, 1) if slots is None else slots  # (B, 1)
            expert = torch.stack(list(self.e_prompts), dim=2)[:, :, chosen[:, 0]]  # (layers, 2, B, length, D)
        prompts = self._prompts(expert, chosen[: expert.shape[2]])
        feature = self.backbone.prompted(stem, prompts, start=self.first_block)
        return Encoded(feature, {"key_pull": -self.pull * chosen_similarity(similarity, chosen)})

    def _prompts(
        self, expert: Tensor | None, slots: Tensor | None
    ) -> Callable[[int, Tensor], list[BlockPrompt]]:
        """What each block gets; ``expert`` [layers, key/value, 1 or B, length, D] of slots [1 or B, 1]."""

        def prompts(block: int, x: Tensor) -> list[BlockPrompt]:
            block_prompts = []
            if block in self.g_layers:
                block_prompts.append(
                    self._block_prompt("general", self.g_prompt[self.g_layers.index(block)][:, None])
                )
            if block in self.e_layers and expert is not None:
                block_prompts.append(self._block_prompt("expert", expert[self.e_layers.index(block)], slots))
            return block_prompts

        return prompts

    def _block_prompt(self, name: str, parts: Tensor, slots: Tensor | None = None) -> BlockPrompt:
        """[key/value, 1 or B, length, D] -> what the block gets; the two leading axes are never merged."""
        if self.form == "fresh":
            tokens = parts[0] + self.backbone.class_position()
            return BlockPrompt("fresh", tokens, name=name, slots=slots)
        return BlockPrompt(self.form, parts[0], parts[1], name=name, slots=slots)

    def check_stream(self, classes: Sequence[Sequence[int]]) -> None:
        experiences = int(self.experience) + 1 + len(classes)
        if self.pool_size is not None and experiences > self.pool_size:
            raise ConfigError(
                f"pool_size must be at least {experiences}, a slot for each experience of the stream, "
                f"got {self.pool_size}; leave it at null"
            )

    def start_experience(self, index: int, samples: Samples | None) -> None:
        """A new slot: its prompt starts from the previous one, its key afresh."""
        if self.boundary_free:
            return
        if self.pool_size is not None and index >= self.pool_size:
            raise ProtocolError(
                f"experience {index + 1} needs a slot of its own, but pool_size is {self.pool_size}; "
                "leave it at null"
            )
        self._add_slots(index + 1 - len(self.keys))
        if index > 0:
            self.e_prompts[index].data.copy_(self.e_prompts[index - 1].data)

    def _add_slots(self, count: int) -> None:
        parts, width = self.g_prompt.shape[1], self.backbone.width
        for slot in range(len(self.keys), len(self.keys) + count):
            shape = (len(self.e_layers), parts, self.e_length, width)
            self.e_prompts.append(uniform(*shape, seed=self.seed, name="expert", index=slot))
            self.keys.append(uniform(width, seed=self.seed, name="key", index=slot))

    def set_stage(self) -> None:
        """Old slots are frozen; so is the general prompt after ``freeze_general_after`` experiences."""
        if self.boundary_free:
            return
        experience = int(self.experience)
        for slot, (prompt, key) in enumerate(zip(self.e_prompts, self.keys, strict=True)):
            prompt.requires_grad_(slot == experience)
            key.requires_grad_(slot == experience)
        limit = self.freeze_general_after
        self.g_prompt.requires_grad_(limit is None or experience < limit)

    def resize_to(self, state: Mapping[str, Tensor]) -> None:
        super().resize_to(state)
        self._add_slots(sum(name.startswith("keys.") for name in state) - len(self.keys))
        self.to(self.g_prompt.device)

    def diagnostics(self) -> dict[str, Tensor]:
        """How alike the keys are: [S, S] cosines."""
        keys = torch.stack(list(self.keys)) if len(self.keys) else self.g_prompt.new_zeros(1, 1)
        return {"keys/cosine": cosine(keys, keys).detach()}
