"""Prompts that were learnt beforehand, on other data: training starts from them, or they stay in front.

A method says which prompts it has (:meth:`clprompt.prompting.model.PromptModel.learned_prompts`); the rest
happens here. Files are written by ``clprompt meta-init``, or by :func:`clprompt.prompting.prompt_file.write`.

Sources: Song et al. 2023 (PVP, arXiv 2304.13639), initial values; Shen et al. 2024 (MVLPT), the same for
text prompts; Wu et al. 2024 (CasPL), a first stage that stays frozen.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from clprompt import schema
from clprompt.backbones.attention import BlockPrompt
from clprompt.backbones.vit import Prompts
from clprompt.errors import ConfigError
from clprompt.prompting import prompt_file
from clprompt.prompting.model import PromptModel
from clprompt.prompting.plugin import LearnedPrompts, Pass, Plugin, overrides
from clprompt.registry import plugins
from clprompt.schema import FilePath
from clprompt.seeding import generator

#: Of the noise by which slots that start from one prompt differ: equal ones would never part.
_NOISE = 0.02

Fit = Literal["tile", "cut"]


class _FromFile(Plugin, ABC):
    """What has tensors of a file, as buffers by the names of its sets of prompts, under ``prefix``."""

    prefix: str

    def __init__(self, file: str) -> None:
        super().__init__()
        self.file = file
        self.facts: Mapping[str, Any] = {}
        self._restored = False

    def expect_state(self) -> None:
        self._restored = True

    def attach(self, model: PromptModel) -> None:
        listed = prompt_file.listed_prompts(model)
        if not listed:
            raise ConfigError(
                f"init_file={self.file}: {type(model).__name__} has no prompts that a file could hold here"
            )
        if self._restored:  # what is needed of the file is in the state
            return
        self._read(model, listed)

    def _read(self, model: PromptModel, listed: Mapping[str, LearnedPrompts]) -> None:
        read: prompt_file.PromptFile | None = model.read_prompts(self.file)
        if read is None:
            read = prompt_file.read(self.file)
            read.check(model, listed)
        self.facts = read.facts
        self.register_buffer("content", read.content())
        self.take({name: read.tensors[name] for name in listed if name in read.tensors}, listed)

    def files_read(self) -> dict[str, Any]:
        content = getattr(self, "content", None)
        return {} if content is None else {"init_file": bytes(content.tolist()).hex()}

    def files_in_state(self) -> set[str]:
        return {"init_file"} if self._restored else set()

    @abstractmethod
    def take(self, tensors: Mapping[str, Tensor], listed: Mapping[str, LearnedPrompts]) -> None:
        """Take over what a checked file holds, [K, *form] of each set."""

    def hold(self, name: str, values: Tensor) -> None:
        """Make values part of the state."""
        self.register_buffer(f"{self.prefix}{name}", values)

    def held(self, name: str) -> Tensor | None:
        """What is part of the state for a set."""
        return getattr(self, f"{self.prefix}{name}", None)

    def resize_to(self, state: Mapping[str, Tensor]) -> None:
        for key, values in state.items():
            if key == "content":
                self.register_buffer(key, torch.zeros_like(values, device=self.model.device))
            elif key.startswith(self.prefix):
                self.hold(key.removeprefix(self.prefix), torch.zeros_like(values, device=self.model.device))

    def meet(self, class_names: Sequence[str]) -> None:
        prompt_file.tell_of_leaks(self.facts, class_names, f"init_file {self.file}")


class InitialPrompts(_FromFile):
    """Prompts start from a file.

    What is there when training starts, starts from it; what experiences add as well, unless the method makes
    it from what was there before. One slot of a file is the start of all slots of a pool, each with noise of
    0.02 by the model's seed; as many slots as the pool has start slot by slot.

    Args:
        file: that ``clprompt meta-init`` wrote.
        fit: where its prompts are not as long as the method's: "tile" repeats the tokens of shorter ones,
            "cut" takes the first tokens of longer ones.

    Raises:
        ConfigError: when it is plugged, a file of another method, backbone or form.
        DataError: no such file, or one without prompts.
    """

    name = "initial_prompts"
    prefix = "start_"
    starts_prompts = True

    def __init__(self, file: str, *, fit: Fit | None = None) -> None:
        super().__init__(file)
        self.fit = fit
        self._starts: dict[str, Tensor] = {}  # [K, *form]
        self._started: dict[str, int] = {}
        self._unread = False  # whether the state that was loaded lacks what the file says

    def take(self, tensors: Mapping[str, Tensor], listed: Mapping[str, LearnedPrompts]) -> None:
        for name, values in tensors.items():
            prompts, there = listed[name], len(listed[name].parameters)
            if len(values) not in (1, max(there, 1)):
                raise ConfigError(
                    f"init_file {self.file}: {name} has {len(values)} slots, here {max(there, 1)}: only one, "
                    "or as many, can be the start"
                )
            self._check_slots(name, values, prompts)
            self._starts[name] = self._fitted(name, values, prompts)
            if prompts.added == "anew":  # asked for again in later experiences
                self.hold(name, self._starts[name])
        self.follow()

    def resize_to(self, state: Mapping[str, Tensor]) -> None:
        super().resize_to(state)
        self._unread = not state
        for name, prompts in prompt_file.listed_prompts(self.model).items():
            self._started[name] = len(prompts.parameters)  # the state has them

    def _fitted(self, name: str, values: Tensor, prompts: LearnedPrompts) -> Tensor:
        """Values [K, *form] with as many tokens as the method's."""
        if "length" not in prompts.axes:
            return values
        axis = prompts.axes.index("length")
        theirs, ours = values.shape[1 + axis], prompts.shape[axis]
        if theirs == ours:
            return values
        needed: Fit = "tile" if theirs < ours else "cut"
        if self.fit != needed:
            raise ConfigError(
                f"init_file {self.file}: {name} has {theirs} tokens, here {ours}; init_fit={needed} would "
                + ("repeat them" if needed == "tile" else "take the first ones")
                + (f", got init_fit={self.fit}" if self.fit else "")
            )
        return values.index_select(1 + axis, torch.arange(ours) % theirs)

    def _check_slots(self, name: str, values: Tensor, prompts: LearnedPrompts) -> None:
        if "slots" in prompts.axes:
            axis = prompts.axes.index("slots")
            theirs, ours = values.shape[1 + axis], prompts.shape[axis]
            if theirs not in (1, ours):
                raise ConfigError(
                    f"init_file {self.file}: {name} has {theirs} slots, here {ours}: only one, or as many, "
                    "can be the start"
                )

    def follow(self) -> None:
        """Give what was added since the last call its start; a state that is loaded overwrites it."""
        for name, prompts in prompt_file.listed_prompts(self.model).items():
            done = self._started.get(name, 0)
            self._started[name] = len(prompts.parameters)
            for index in range(done, len(prompts.parameters)):
                if index == 0 or prompts.added != "derived":
                    self._start(name, prompts, index)

    @torch.no_grad()
    def _start(self, name: str, prompts: LearnedPrompts, index: int) -> None:
        held = self.held(name)
        start = self._starts.get(name) if held is None else held
        if start is None and self._unread and prompts.added == "anew":  # a state from before it held starts
            self._unread = False
            self._read(self.model, prompt_file.listed_prompts(self.model))
            start = self.held(name)
        if start is None:
            return
        parameter, values = prompts.parameters[index], start[min(index, len(start) - 1)]
        repeated = prompts.apart and (values.shape != parameter.shape or (index > 0 and len(start) == 1))
        values = values.expand_as(parameter).to(parameter)
        if repeated:
            noise = torch.randn(parameter.shape, generator=generator(self.model.seed, "start", name, index))
            values = values + _NOISE * noise.to(parameter)
        parameter.copy_(values)


class FrozenPrompts(_FromFile):
    """The prompts of a file stay as they are, in front of the method's own, which start afresh beside them.

    All slots of a pool stand side by side. Tokens do not choose among them (no keys), every image sees them.

    Args:
        file: that ``clprompt meta-init`` wrote.

    Raises:
        ConfigError: when it is plugged, a file of another method, backbone or form, or a method whose prompts
            nothing can stand in front of.
        DataError: no such file, or one without prompts.
    """

    name = "frozen_prompts"
    prefix = "front_"

    def attach(self, model: PromptModel) -> None:
        super().attach(model)
        listed = prompt_file.listed_prompts(model)
        for name, prompts in listed.items():
            if not (prompts.is_key or prompts.reads_front or prompts.block_prompt):
                raise ConfigError(
                    f"init_frozen=true: nothing can stand in front of {name} of {type(model).__name__}"
                )
        for name, values in self._fronts(listed):
            for block in listed[name].blocks[:1]:
                self._check_joining(listed[name], values, block)

    def _check_joining(self, prompts: LearnedPrompts, values: Tensor, block: int) -> None:
        if prompts.block_prompt is None or prompts.block_prompt(values, block).kind != "carried":
            return
        around = [plugin.name for plugin in self.model.plugins if overrides(plugin, "around")]
        if around:
            raise ConfigError(
                f"init_frozen=true cannot be combined with {', '.join(around)} where prompts stay in the "
                "sequence: one mask serves all of them"
            )

    def take(self, tensors: Mapping[str, Tensor], listed: Mapping[str, LearnedPrompts]) -> None:
        for name, values in tensors.items():
            if listed[name].is_key:
                continue
            if len(values) > 1 and listed[name].added == "never":  # a pool in several parameters
                values = self._side_by_side(values, listed[name])
            self.hold(name, values[0])

    def _side_by_side(self, values: Tensor, prompts: LearnedPrompts) -> Tensor:
        """The tokens of several parameters [K, *form] as those of one, [1, *form]."""
        return torch.cat(list(values[:, None]), dim=1 + prompts.axes.index("length"))

    def in_front(self, name: str) -> Tensor | None:
        return self.held(name)

    def _fronts(self, listed: Mapping[str, LearnedPrompts]) -> list[tuple[str, Tensor]]:
        pairs = ((name, self.held(name)) for name in listed)
        return [(name, values) for name, values in pairs if values is not None]

    def around(self, prompts: Prompts, run: Pass) -> Prompts:
        """The file's prompts, then the method's."""
        listed = self.model.learned_prompts()
        fronts = self._fronts(listed)

        def with_fronts(block: int, x: Tensor) -> list[BlockPrompt]:
            in_front = []
            for name, values in fronts:
                make = listed[name].block_prompt
                if make is not None and block in listed[name].blocks:
                    in_front.append(make(values.to(self.model.dtype), block))
            asked = prompts(block, x)
            asked = () if asked is None else (asked,) if isinstance(asked, BlockPrompt) else tuple(asked)
            return [*in_front, *asked]

        return with_fronts


def _lists_prompts(method: type[PromptModel]) -> bool:
    return getattr(method, "learned_prompts", None) not in (None, PromptModel.learned_prompts)


@plugins.register(
    "init_file", serves=_lists_prompts, lacking="has no prompts that could be learnt beforehand"
)
@schema.checked
def init_file(
    *, init_file: FilePath | None = None, init_fit: Fit | None = None, init_frozen: bool = False
) -> _FromFile | None:
    """Prompts that were learnt beforehand: the short form of :class:`InitialPrompts`, :class:`FrozenPrompts`.

    Args:
        init_file: a file that ``clprompt meta-init`` wrote; null for none.
        init_fit: "tile" or "cut" prompts of another length; null to refuse them.
        init_frozen: the file's prompts stay, frozen, in front; new ones are learned beside them.
    """
    if init_file is None:
        for key, value in (("init_fit", init_fit), ("init_frozen", init_frozen)):
            if value:
                raise ConfigError(f"{key}={str(value).lower()} says how an init_file is used; there is none")
        return None
    if not init_frozen:
        return InitialPrompts(init_file, fit=init_fit)
    if init_fit is not None:
        raise ConfigError(
            "init_fit and init_frozen=true: frozen prompts keep their length; leave out init_fit"
        )
    return FrozenPrompts(init_file)
