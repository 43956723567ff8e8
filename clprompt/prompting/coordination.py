"""Token coordination as a plug-in: every token sees the prompts of its choice, in any method with prompts.

A method says which prompts it has (:meth:`clprompt.prompting.model.PromptModel.prompt_sets`) and, where it
chooses among slots, which of them its columns came from (``BlockPrompt.slots``). The rest happens here,
around the prompt callable on its way into :meth:`clprompt.backbones.vit.FrozenViT.run`: keys beside the
prompts, roles, choices, masks, and a matching loss.

Source: Liu et al. 2025 (TCPA); the form for methods with a choice of their own is ours.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clprompt import schema
from clprompt.backbones.attention import BlockPrompt
from clprompt.backbones.vit import Prompts
from clprompt.errors import ConfigError
from clprompt.prompting.model import PromptModel, Step
from clprompt.prompting.plugin import LearnedPrompts, Pass, Plugin
from clprompt.prompting.prompts import Chooser, choose, normed, uniform
from clprompt.registry import plugins
from clprompt.schema import above, at_least, at_most

_LACKING = (
    "offers no prompt tokens that tokens could choose among; a method offers its own by "
    "PromptModel.prompt_sets, see docs/tcpa.md"
)


class Coordination(Plugin):
    """Keys for the prompts of a method, and what follows from them.

    In every block the first half of an image's prompt tokens (rounded up) is for the class token and the
    other prefix tokens, the rest for the patches. A token compares the stream with the keys of its role and
    sees the prompts whose keys are nearest, no others. Prompts that stay in the sequence see all tokens and
    the prompts of their own role; choices are made once, where they join. Without prefix tokens there is one
    role. Keys start from U(-1, 1), by the model's seed.

    Args:
        weight: of the loss that pulls keys to the tokens that chose them.
        share: of its role's prompts, how many a token sees, rounded up.
        roles: "halves" as described, or "one" for all tokens and all prompts.

    Raises:
        ConfigError: a value out of range; when it is plugged, a method with less than two prompt tokens.
    """

    name = "coordination"

    @schema.checked
    def __init__(
        self,
        *,
        weight: Annotated[float, at_least(0)] = 0.01,
        share: Annotated[float, above(0), at_most(1)] = 0.5,
        roles: Literal["halves", "one"] = "halves",
    ) -> None:
        super().__init__()
        self.weight = weight
        self.share = share
        self.roles = roles
        self.prefix = 0  # class, distillation and register tokens that have prompts of their own
        self.blocks: dict[str, tuple[int, ...]] = {}
        # by the set's name: one parameter per parameter of the method, [blocks, slots, length, D]
        self.keys: Any = nn.ModuleDict()

    def attach(self, model: PromptModel) -> None:
        sets = model.prompt_sets()
        if not any(prompts.blocks for prompts in sets.values()):
            raise ConfigError(f"coordinate=true: {type(model).__name__} {_LACKING}")
        for name, prompts in sets.items():
            if prompts.blocks and prompts.taken * prompts.length < 2:
                raise ConfigError(
                    f"coordinate=true needs at least 2 prompt tokens to share out, {name} has 1 per image"
                )
        self.prefix = model.backbone.num_prefix_tokens if self.roles == "halves" else 0
        self.blocks = {name: prompts.blocks for name, prompts in sets.items()}
        self.keys.update({name: nn.ParameterList() for name in sets})
        self.follow()

    def follow(self) -> None:
        """Bring the keys in line with prompts that were added, frozen or trained again."""
        width, seed = self.model.backbone.width, self.model.seed
        for name, prompts in self.model.prompt_sets().items():
            for index in range(len(self.keys[name]), len(prompts.parameters)):
                shape = (len(prompts.blocks), prompts.slots, prompts.length, width)
                initial = uniform(*shape, seed=seed, name=f"coordination {name}", index=index)
                self.keys[name].append(nn.Parameter(initial.data.to(prompts.parameters[index])))
            for key, parameter in zip(self.keys[name], prompts.parameters, strict=True):
                key.requires_grad_(parameter.requires_grad)

    def learned_prompts(self) -> dict[str, LearnedPrompts]:
        """The keys, which are learnt with the prompts."""
        width, theirs, listed = self.model.backbone.width, self.model.learned_prompts(), {}
        for name, prompts in self.model.prompt_sets().items():
            listed[f"keys_of_{name}"] = LearnedPrompts(
                ("blocks", "slots", "length"),
                (len(prompts.blocks), prompts.slots, prompts.length, width),
                list(self.keys[name]),
                blocks=prompts.blocks,
                added=theirs[name].added if name in theirs else "never",
                is_key=True,
            )
        return listed

    # ------------------------------------------------------------------ around the prompt callable

    def around(self, prompts: Prompts, run: Pass) -> Prompts:
        """The method's prompts with masks: each token sees those of its choice."""
        joined: list[Tensor | None] = []  # the mask over prompts that joined the sequence in this run
        made: dict[str, Sequence[Tensor]] = {}  # keys of norm 1 by set and block, made once in a run

        def coordinated(block: int, x: Tensor) -> list[BlockPrompt]:
            asked = prompts(block, x)
            asked = () if asked is None else (asked,) if isinstance(asked, BlockPrompt) else tuple(asked)
            masked = [BlockPrompt("carried", None, mask=mask) for mask in joined if mask is not None]
            for prompt in asked:
                if prompt.tokens is None or prompt.tokens.shape[1] == 0:
                    masked.append(prompt)
                    continue
                keys = self._keys_of(prompt, block, made)
                if prompt.kind != "carried":
                    masked.append(self._masked(prompt, keys, x, run, run.rows if block == run.last else None))
                elif joined:
                    raise ValueError("prompts that stay in the sequence can be coordinated once per pass")
                else:
                    joined.append(self._carried_mask(keys, x, run))
                    masked.append(replace(prompt, mask=joined[0]))
            return masked

        return coordinated

    def _keys_of(self, prompt: BlockPrompt, block: int, made: dict[str, Sequence[Tensor]]) -> Tensor:
        """The keys of a prompt's columns, of norm 1: [P, D], or [B, P, D] where images have own slots.

        Args:
            prompt: of the method.
            block: which gets it.
            made: what this run has made of keys without a choice of slots; filled here.
        """
        assert prompt.tokens is not None
        if prompt.mask is not None or prompt.rows is not None or prompt.zero_values:
            raise ValueError("a BlockPrompt that says who sees it cannot be coordinated from outside")
        if prompt.name not in self.keys or block not in self.blocks[prompt.name]:
            raise ValueError(f'prompt_sets says nothing of prompts "{prompt.name}" in block {block}')
        layer = self.blocks[prompt.name].index(block)
        if prompt.slots is None:
            if prompt.name not in made:
                every = torch.cat(list(self.keys[prompt.name]), dim=1).flatten(1, 2)  # (blocks, P, D)
                made[prompt.name] = normed(every).unbind()
            keys = made[prompt.name][layer]
        else:
            keys = torch.cat([part[layer] for part in self.keys[prompt.name]])  # (slots, length, D)
            keys = normed(keys[prompt.slots].flatten(1, 2))  # (1 or B, P, D)
            keys = keys[0] if len(keys) == 1 else keys
        if keys.shape[-2] != prompt.tokens.shape[1]:
            count = prompt.tokens.shape[1]
            raise ValueError(
                f'{count} prompt tokens of "{prompt.name}" for {keys.shape[-2]} keys in block {block}'
            )
        return keys

    def _choosers(self, count: int) -> list[Chooser]:
        """Who chooses among which of so many prompt tokens."""
        if not self.prefix:
            return [Chooser(slice(None), slice(0, count), self._top_k(count))]
        first = -(-count // 2)
        return [
            Chooser(slice(0, self.prefix), slice(0, first), self._top_k(first)),
            Chooser(slice(self.prefix, None), slice(first, count), self._top_k(count - first)),
        ]

    def _top_k(self, count: int) -> int:
        return max(1, math.ceil(self.share * count - 1e-9))

    def _choose(self, keys: Tensor, x: Tensor, run: Pass, choosers: Sequence[Chooser]) -> Tensor | None:
        """Which of the prompts the rows of a stream [B, N, D] see, [B, N, P]; None where all see all.

        In training the matching loss is left with the run.
        """
        whole = choosers == [Chooser(slice(None), slice(0, keys.shape[-2]), keys.shape[-2])]
        if whole and not run.learning:
            return None
        visible, loss = choose(x, keys, choosers, loss=run.learning)
        if loss is not None:
            run.collected.append(loss)
        return None if whole else visible

    def _masked(
        self, prompt: BlockPrompt, keys: Tensor, x: Tensor, run: Pass, read: slice | None
    ) -> BlockPrompt:
        """A prompt of which each row sees its choice among those of its role."""
        assert prompt.tokens is not None
        choosers = self._choosers(keys.shape[-2])
        shown = [c for c in choosers if read is None or c.rows.indices(x.shape[1])[0] < read.stop]
        # rows that nobody reads: their choices matter for the loss alone
        visible = self._choose(keys, x, run, choosers if run.learning else shown)
        mask = None if visible is None else visible[:, None]
        if len(shown) == len(choosers):
            return replace(prompt, mask=mask)
        (own,) = shown
        return replace(
            prompt,
            tokens=prompt.tokens[:, own.columns],
            values=None if prompt.values is None else prompt.values[:, own.columns],
            rows=own.rows,
            mask=None if mask is None else mask[:, :, own.rows, own.columns],
        )

    def _carried_mask(self, keys: Tensor, x: Tensor, run: Pass) -> Tensor | None:
        """Who sees which prompts that join a stream [B, N, D]: [B, 1, N + P, P]; None where all see all."""
        choosers = self._choosers(keys.shape[-2])
        visible = self._choose(keys, x, run, choosers)
        if visible is None:
            return None
        _, length, count = visible.shape
        mask = F.pad(visible, (0, 0, 0, count))
        for chooser in choosers:  # a prompt sees those of its role
            mask[:, length:][:, chooser.columns, chooser.columns] = True
        return mask[:, None]

    # ------------------------------------------------------------------ the matching loss

    def terms(self, step: Step, collected: Sequence[Tensor]) -> Mapping[str, Tensor]:
        """The matching loss of all blocks and roles."""
        return {self.name: self.weight * torch.stack(list(collected)).sum()} if collected else {}


def _has_prompts(method: type[PromptModel]) -> bool:
    return getattr(method, "prompt_sets", None) not in (None, PromptModel.prompt_sets)


@plugins.register("coordinate", serves=_has_prompts, lacking=_LACKING)
@schema.checked
def coordinate(
    *,
    coordinate: bool = False,
    coordinate_weight: Annotated[float, at_least(0)] = 0.01,
    coordinate_share: Annotated[float, above(0), at_most(1)] = 0.5,
) -> Coordination | None:
    """Every token sees the prompts of its choice: the short form of :class:`Coordination`.

    Args:
        coordinate: whether at all.
        coordinate_weight: of the matching loss.
        coordinate_share: of its role's prompts, how many a token sees.
    """
    return Coordination(weight=coordinate_weight, share=coordinate_share) if coordinate else None
