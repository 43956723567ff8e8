"""L2P: a pool of prompts, of which each image takes the few whose keys are nearest to its query."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor

from clprompt import schema
from clprompt.backbones.attention import BlockPrompt
from clprompt.backbones.vit import FrozenViT
from clprompt.errors import ConfigError
from clprompt.prompting.heads import count_in
from clprompt.prompting.model import Cache, Encoded, Mask, PromptModel
from clprompt.prompting.plugin import LearnedPrompts, PromptSet, Samples
from clprompt.prompting.prompts import chosen_similarity, cosine, match, uniform
from clprompt.registry import Only, strategies
from clprompt.schema import at_least

HeadType = Literal["prompt", "token", "token+prompt", "gap"]


@strategies.register(
    "l2p",
    paper="Wang et al., CVPR 2022, arXiv 2112.08654",
    year=2022,
    boundaries="required or unused",
    refused={
        "batchwise_prompt": Only(
            False, "one prompt voted by the whole batch makes a prediction depend on its batch companions"
        )
    },
)
class L2PModel(PromptModel):
    """L2P (Wang et al., "Learning to Prompt for Continual Learning").

    Each image takes the ``top_k`` prompts of the pool whose keys are nearest to its query. They join the
    image's tokens before the first block and stay in the sequence; the head reads the mean of their outputs.
    Loss: cross-entropy minus ``pull`` times R, the similarity of query and chosen keys. Keys learn from R
    alone, prompts from the cross-entropy alone, unchosen slots not at all.

    Where published descriptions and codes differ:

    * Selection is per sample. The majority vote over the batch of the released codes (``batchwise_prompt``)
      makes a prediction depend on its batch companions and leaks the task; it is refused.
    * ``prompt_position``: the PyTorch port gives prompts the class token's position, the official code now
      none. The position shifts a learned tensor by a constant, so both are the same class of functions.
    * Keys and prompts start from U(-1, 1), as in the port (U(0, 0.01) in the official code).
    * Unseen classes are masked at test (the released codes let their rows compete).
    * The online variant in Si-Blurry's code reads R from a zero buffer, so its keys never learn; ours do.

    Args:
        backbone: the frozen vision transformer.
        seed: where all initial values come from.
        pool_size: S, prompts in the pool.
        length: tokens of a prompt.
        top_k: prompts per image.
        pull: weight of the keys' pull towards the queries that chose them.
        prompt_position: "class" adds the class token's position embedding to prompts, "none" nothing.
        head_type: what the head reads: "prompt" (mean of the prompts' outputs), "token" (the class token),
            "token+prompt" (mean over both), "gap" (the pooling of an average-pooled backbone).
        boundary_free: no experiences: nothing but the training mask changes.
        mask: which classes compete in training; None for "experience" ("seen" when boundary-free).
    """

    chooses_by_query: ClassVar[bool] = True

    @schema.checked
    def __init__(
        self,
        backbone: FrozenViT,
        *,
        seed: int = 0,
        pool_size: Annotated[int, at_least(1)] = 10,
        length: Annotated[int, at_least(1)] = 5,
        top_k: Annotated[int, at_least(1)] = 5,
        pull: float = 0.5,
        prompt_position: Literal["class", "none"] = "class",
        head_type: HeadType = "prompt",
        boundary_free: bool = False,
        mask: Mask | None = None,
    ) -> None:
        super().__init__(backbone, seed=seed, mask=mask, boundary_free=boundary_free)
        if top_k > pool_size:
            raise ConfigError(f"top_k must be at most pool_size ({pool_size}), got {top_k}")
        _check_head_type(head_type, backbone)
        self.head_type = head_type
        self.prompt_position = prompt_position
        self.top_k = top_k
        self.pull = pull
        self.prompts = uniform(pool_size, length, backbone.width, seed=seed, name="prompts")
        self.keys = uniform(pool_size, backbone.width, seed=seed, name="keys")
        self.selections: Tensor  # how often each slot was chosen in training, in the current experience
        self.register_buffer("selections", torch.zeros(pool_size, dtype=torch.int64))

    @property
    def prompt_tokens(self) -> int:
        return self.top_k * self.prompts.shape[1]

    def prompt_sets(self) -> dict[str, PromptSet]:
        slots, length, _ = self.prompts.shape
        return {"prompts": PromptSet((0,), length, [self.prompts], slots=slots, taken=self.top_k)}

    def learned_prompts(self) -> dict[str, LearnedPrompts]:
        axes, shape = ("slots", "length"), tuple(self.prompts.shape)
        return {
            "prompts": LearnedPrompts(
                axes, shape, [self.prompts], blocks=(0,), block_prompt=lambda v, _: self._joining(v[None])
            )
        }

    def _joining(self, prompts: Tensor, slots: Tensor | None = None) -> BlockPrompt:
        """Prompts [1 or B, k, length, D] as they join the sequence."""
        tokens = prompts.flatten(1, 2)  # (B, k * length, D)
        if self.prompt_position == "class":
            tokens = tokens + self.backbone.class_position()
        return BlockPrompt("carried", tokens, slots=slots)

    def encode(self, images: Tensor, cached: Cache | None = None) -> Encoded:
        stem, query = self.query(images, 0, cached)
        similarity, chosen = self.select(query)
        feature = self._read(stem, self._joining(self.prompts[chosen], chosen))
        return Encoded(feature, {"key_pull": -self.pull * chosen_similarity(similarity, chosen)}, chosen)

    def select(self, query: Tensor) -> tuple[Tensor, Tensor]:
        """Queries [B, D] -> similarity to every key [B, S], and the chosen slots [B, k], nearest first."""
        similarity = cosine(query, self.keys)
        return similarity, match(similarity, self.top_k)

    def _read(self, stem: Tensor, joining: BlockPrompt) -> Tensor:
        """The prompted pass and what the head reads of it, [B, N, D] -> [B, D]."""

        def prompts(block: int, x: Tensor) -> BlockPrompt | None:
            return joining if block == 0 else None

        if self.head_type == "gap":
            return self.backbone.prompted(stem, prompts)
        count = stem.shape[1]  # prompts stand behind the image's own tokens
        rows = {"prompt": slice(count, None), "token": slice(0, 1), "token+prompt": None}[self.head_type]
        out = self.backbone.norm(self.backbone.run(stem, prompts, rows=rows))
        if rows is None:
            out = torch.cat([out[:, :1], out[:, count:]], dim=1)  # (B, 1 + P, D)
        return self.backbone.pooled_norm(out.mean(1))

    def count_step(self, encoded: Encoded) -> None:
        """How often each slot was chosen: ``details`` are the chosen slots, [B, k]."""
        count_in(self.selections, encoded.details.flatten())

    def start_experience(self, index: int, samples: Samples | None) -> None:
        self.selections.zero_()

    def diagnostics(self) -> dict[str, Any]:
        """How often each slot was chosen: the same few tend to win for all images."""
        chosen = self.selections.cpu()
        shares = chosen.double() / chosen.sum().clamp(min=1)
        entropy = -(shares * shares.clamp(min=1e-12).log()).sum()
        return {"pool/selections": partial(_bars, shares), "pool/slots_used": entropy.exp()}


def _check_head_type(head_type: HeadType, backbone: FrozenViT) -> None:
    if "token" in head_type and not backbone.has_class_token:
        raise ConfigError(f'head_type="{head_type}" needs a class token, which this backbone does not have')
    if head_type == "gap" and backbone.pooling != "avg":
        raise ConfigError(
            f'head_type="gap" needs an average-pooled backbone; this one pools "{backbone.pooling}"'
        )


def _bars(shares: Tensor) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.0, 3.2))
    axes = figure.add_subplot()
    axes.bar(range(len(shares)), (100 * shares).tolist(), color="#31688e")
    axes.set(xlabel="slot", ylabel="selections (%)", title="Which prompts were chosen in training")
    return figure
