"""Token coordination as a plug-in: every token sees the prompts of its choice, in any method that has prompt tokens.

A method says which prompts it has (:meth:`clprompt.prompting.model.PromptModel.prompt_sets`) and, where it chooses among slots,
which of them its columns came from (``BlockPrompt.slots``). The rest happens here, around the prompt callable on its
way into :meth:`clprompt.backbones.vit.FrozenViT.run`: keys beside the prompts, roles, choices, masks, and a matching loss.

Source: Liu et al. 2025 (TCPA); the form for methods with a choice of their own is ours.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from clprompt.backbones.attention import BlockPrompt
from clprompt.errors import ConfigError
from clprompt.prompting.prompts import token_choice, uniform

Prompts = Callable[[int, Tensor], "BlockPrompt | Sequence[BlockPrompt] | None"]

#: What every method with prompt tokens can be constructed with beside its own arguments: name -> (type, default).
ARGUMENTS: dict[str, tuple[type, Any]] = {
    "coordinate": (bool, False),
    "coordinate_weight": (float, 0.01),
    "coordinate_share": (float, 0.5),
}


@dataclass(frozen=True)
class PromptSet:
    """Prompts of a method that have the same form: what keys for their tokens need to know.

    Args:
        blocks: where they are given.
        length: tokens of one slot in one block.
        parameters: the method's own parameters that hold them; each gets keys of its own, which are trained and
            frozen with it.
        slots: slots in each of these parameters.
        taken: slots that one image gets at a time.
    """

    blocks: tuple[int, ...]
    length: int
    parameters: Sequence[nn.Parameter]
    slots: int = 1
    taken: int = 1


class Coordination(nn.Module):
    """Keys for the prompts of a method, and what follows from them.

    In every block the first half of an image's prompt tokens (rounded up) is for the class token and the other
    prefix tokens, the rest for the patches. A token compares the stream with the keys of its role and sees the
    prompts whose keys are nearest, no others. Prompts that stay in the sequence see all tokens and the prompts of
    their own role; choices are made once, where they join. Without prefix tokens there is one role.

    Args:
        sets: the method's prompts by the name that its BlockPrompts carry.
        width: of the residual stream.
        prefix: class, distillation and register tokens.
        seed: where the keys' initial values, U(-1, 1), come from.
        weight: of the matching loss.
        share: of its role's prompts, how many a token sees, rounded up.
        roles: "halves" as above, or "one" for all tokens and all prompts.

    Raises:
        ConfigError: nothing to coordinate, a single prompt token, or a value out of range.
    """

    def __init__(
        self,
        sets: Mapping[str, PromptSet],
        *,
        width: int,
        prefix: int,
        seed: int = 0,
        weight: float = 0.01,
        share: float = 0.5,
        roles: Literal["halves", "one"] = "halves",
    ) -> None:
        super().__init__()
        if weight < 0:
            raise ConfigError(f"coordinate_weight must not be negative, got {weight}")
        if not 0 < share <= 1:
            raise ConfigError(f"coordinate_share must be above 0 and at most 1, got {share}")
        if roles not in ("halves", "one"):
            raise ConfigError(f'roles must be halves or one, got "{roles}"')
        for name, found in sets.items():
            if found.blocks and found.taken * found.length < 2:
                raise ConfigError(
                    f"coordinate=true needs at least 2 prompt tokens to share out, {name} has 1 per image"
                )
        self.width, self.seed, self.weight, self.share = width, seed, weight, share
        self.prefix = prefix if roles == "halves" else 0
        self.blocks = {name: found.blocks for name, found in sets.items()}
        # by set: one parameter per parameter of the method, [blocks, slots, length, D]
        self.keys: Any = nn.ModuleDict({name: nn.ParameterList() for name in sets})
        self._found: list[Tensor] | None = None  # matching losses of the step that is being computed
        self.follow(sets)

    def follow(self, sets: Mapping[str, PromptSet]) -> None:
        """Bring the keys in line with prompts that were added, frozen or trained again."""
        for name, found in sets.items():
            for index in range(len(self.keys[name]), len(found.parameters)):
                shape = (len(found.blocks), found.slots, found.length, self.width)
                fresh = uniform(*shape, seed=self.seed, name=f"coordination {name}", index=index)
                self.keys[name].append(nn.Parameter(fresh.data.to(found.parameters[index])))
            for key, prompt in zip(self.keys[name], found.parameters, strict=True):
                key.requires_grad_(prompt.requires_grad)

    # ------------------------------------------------------------------ around the prompt callable

    def around(self, prompts: Prompts, last: int | None, rows: slice | None) -> Prompts:
        """The prompt callable of one run of the backbone, with masks.

        Args:
            prompts: the method's.
            last, rows: the rows of block ``last`` that will be computed; None for all.
        """
        joined: list[Tensor | None] = []  # the mask over prompts that joined the sequence in this run

        def coordinated(block: int, x: Tensor) -> list[BlockPrompt]:
            given = prompts(block, x)
            given = () if given is None else (given,) if isinstance(given, BlockPrompt) else tuple(given)
            found = [BlockPrompt("carried", None, mask=mask) for mask in joined if mask is not None]
            for prompt in given:
                if prompt.tokens is None or prompt.tokens.shape[1] == 0:
                    found.append(prompt)
                    continue
                keys = self._keys_of(prompt, block)
                if prompt.kind != "carried":
                    found += self._masked(prompt, keys, x, rows if block == last else None)
                elif joined:
                    raise ValueError("prompts that stay in the sequence can be coordinated once per pass")
                else:
                    joined.append(self._carried_mask(keys, x))
                    found.append(replace(prompt, mask=joined[0]))
            return found

        return coordinated

    def _keys_of(self, prompt: BlockPrompt, block: int) -> Tensor:
        """The keys of a prompt's columns, [P, D], or [B, P, D] where each image has slots of its own."""
        assert prompt.tokens is not None
        if prompt.mask is not None or prompt.rows is not None or prompt.zero_values:
            raise ValueError("a BlockPrompt that says who sees it cannot be coordinated from outside")
        if prompt.name not in self.keys or block not in self.blocks[prompt.name]:
            raise ValueError(f'prompt_sets says nothing of prompts "{prompt.name}" in block {block}')
        layer = self.blocks[prompt.name].index(block)
        keys = torch.cat([part[layer] for part in self.keys[prompt.name]])  # (slots, length, D)
        if prompt.slots is None:
            keys = keys.flatten(0, 1)
        else:
            keys = keys[prompt.slots].flatten(1, 2)  # (1 or B, P, D)
            keys = keys[0] if len(keys) == 1 else keys
        if keys.shape[-2] != prompt.tokens.shape[1]:
            raise ValueError(
                f'{prompt.tokens.shape[1]} prompt tokens of "{prompt.name}" for {keys.shape[-2]} keys in block {block}'
            )
        return keys

    def _parts(self, count: int) -> list[tuple[slice, slice]]:
        """(rows, columns) of each role, for so many prompt tokens."""
        if not self.prefix:
            return [(slice(None), slice(0, count))]
        first = -(-count // 2)
        return [(slice(0, self.prefix), slice(0, first)), (slice(self.prefix, None), slice(first, count))]

    def _choose(self, keys: Tensor, x: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Rows [B, R, D], keys of their role -> which prompts they see, [B, R, P] or None for all; matching loss."""
        count = keys.shape[-2]
        top_k = max(1, math.ceil(self.share * count - 1e-9))
        if top_k == count and self._found is None:
            return None, None
        visible, loss = token_choice(x, keys, top_k, loss=self._found is not None)
        return None if top_k == count else visible, loss

    def _masked(self, prompt: BlockPrompt, keys: Tensor, x: Tensor, read: slice | None) -> list[BlockPrompt]:
        """One prompt per role, seen by the rows of that role, each row its choice."""
        assert prompt.tokens is not None
        found, losses = [], []
        for rows, columns in self._parts(keys.shape[-2]):
            start, _, _ = rows.indices(x.shape[1])
            if read is not None and read.indices(x.shape[1])[1] <= start and self._found is None:
                continue  # rows that nobody reads; their choices would matter for the loss alone
            visible, loss = self._choose(keys[..., columns, :], x[:, rows])
            losses.append(loss)
            found.append(
                replace(
                    prompt,
                    tokens=prompt.tokens[:, columns],
                    values=None if prompt.values is None else prompt.values[:, columns],
                    rows=rows,
                    mask=None if visible is None else visible[:, None],
                )
            )
        self._count(losses)
        return found

    def _carried_mask(self, keys: Tensor, x: Tensor) -> Tensor | None:
        """Who sees which of the prompts that join a stream [B, N, D]: [B, 1, N + P, P]; None where all see all."""
        batch, length, _ = x.shape
        count = keys.shape[-2]
        mask = torch.zeros(batch, 1, length + count, count, dtype=torch.bool, device=x.device)
        losses, whole = [], True
        for rows, columns in self._parts(count):
            visible, loss = self._choose(keys[..., columns, :], x[:, rows])
            losses.append(loss)
            whole = whole and visible is None and columns == slice(0, count)
            mask[:, 0, :length][:, rows, columns] = True if visible is None else visible
            mask[:, 0, length:][:, columns, columns] = True
        self._count(losses)
        return None if whole else mask

    # ------------------------------------------------------------------ the matching loss

    def _count(self, losses: Sequence[Tensor | None]) -> None:
        if self._found is not None:
            self._found += [loss for loss in losses if loss is not None]

    @contextmanager
    def _step(self) -> Iterator[list[Tensor]]:
        found: list[Tensor] = []
        self._found = found
        try:
            yield found
        finally:
            self._found = None


def coordinate(model: Any, weight: float = 0.01, share: float = 0.5) -> None:
    """Let every token choose which of the method's prompts it sees; what ``coordinate=True`` does.

    A method of every model; call it on a new one, before an optimizer is made.

    Args:
        model: a PromptModel.
        weight: of the loss that pulls keys to the tokens that chose them.
        share: of its role's prompts, how many a token sees.

    Raises:
        ConfigError: the method has no prompt tokens to choose among, or only one.
    """
    sets = model.prompt_sets()
    if not any(found.blocks for found in sets.values()):
        raise ConfigError(
            f"coordinate=true: {type(model).__name__} has no prompt tokens that tokens could choose among"
        )
    backbone = model.backbone
    model.coordination = Coordination(
        sets,
        width=backbone.width,
        prefix=backbone.num_prefix_tokens,
        seed=model.seed,
        weight=weight,
        share=share,
    )
    model.backbone = backbone.with_prompts_through(model.coordination.around)


def with_matching_loss(training_loss: Callable[..., Any]) -> Callable[..., Any]:
    """``training_loss`` with the matching loss of a coordinated model added; the outermost call adds it."""

    @functools.wraps(training_loss)
    def wrapped(self: Any, images: Tensor, targets: Tensor) -> Any:
        own: Coordination | None = self.coordination
        if own is None or own._found is not None:
            return training_loss(self, images, targets)
        with own._step() as found:
            step = training_loss(self, images, targets)
        if not found:
            return step
        term = own.weight * torch.stack(found).sum()
        return step._replace(loss=step.loss + term, terms={**step.terms, "coordination": term.detach()})

    return wrapped


def extend(cls: type[Any], able: bool) -> None:
    """Let a method's constructor take the arguments of coordination, and its loss the matching term.

    Args:
        cls: a class of methods, as it has just been defined.
        able: whether it says which prompts it has; only then does its signature show the arguments.
    """
    own = vars(cls)
    if "__init__" in own:
        cls.__init__ = _constructor(own["__init__"], able)  # type: ignore[misc]
    if "training_loss" in own:
        cls.training_loss = with_matching_loss(own["training_loss"])


def _constructor(init: Callable[..., None], able: bool) -> Callable[..., None]:
    @functools.wraps(init)
    def __init__(self: Any, *positional: Any, **named: Any) -> None:
        own = {name: named.pop(name, default) for name, (_, default) in ARGUMENTS.items()}
        init(self, *positional, **named)
        if own["coordinate"]:
            self.coordinate(weight=own["coordinate_weight"], share=own["coordinate_share"])

    if able:
        signature = inspect.signature(init)
        known = list(signature.parameters.values())
        end = len(known) - (known[-1].kind is inspect.Parameter.VAR_KEYWORD)
        known[end:end] = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)
            for name, (kind, default) in ARGUMENTS.items()
        ]
        __init__.__signature__ = signature.replace(parameters=known)  # type: ignore[attr-defined]
        __init__.__annotations__ = {**init.__annotations__, **{n: kind for n, (kind, _) in ARGUMENTS.items()}}
    return __init__
