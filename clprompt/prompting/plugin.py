"""Plug-ins: objects that ride on any method without changing its file.

    model = L2PModel(backbone).plug(Coordination(share=0.4))

A plug-in stands in the way of a method's prompts, adds terms to its loss, looks at what is received, or
answers in place of its trained head. Its state is part of the model's: saved, resumed, grown and counted with
it. In a configuration plug-ins have short forms, keys beside the method's own (``strategy: {name: ...,
coordinate: true}``), which are registered in :data:`clprompt.registry.plugins`; no constructor sees them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from clprompt.backbones.attention import BlockPrompt
from clprompt.backbones.vit import Prompts
from clprompt.errors import ConfigError
from clprompt.prompting.step import Step

#: Streams the training images of an experience [B, 3, H, W] with their visible labels [B] or [B, C], under
#: the evaluation transform, as often as it is called.
Samples = Callable[[], Iterable[tuple[Tensor, Tensor]]]

#: Gives the backbone's own features [B, D] of the images that a hook is about, computed at most once.
Frozen = Callable[[], Tensor]


@dataclass(frozen=True)
class PromptSet:
    """Prompts of a method that have the same form: what keys for their tokens need to know.

    Args:
        blocks: where they are given.
        length: tokens of one slot in one block.
        parameters: the method's own parameters that hold them; each gets keys of its own, which are trained
            and frozen with it.
        slots: slots in each of these parameters.
        taken: slots that one image gets at a time.
    """

    blocks: tuple[int, ...]
    length: int
    parameters: Sequence[nn.Parameter]
    slots: int = 1
    taken: int = 1


def most_tokens(sets: Iterable[PromptSet]) -> int:
    """The most tokens that one block gets of sets of prompts, a slot of each; 0 where no block gets any."""
    of_block: Counter[int] = Counter()
    for one in sets:
        of_block.update(dict.fromkeys(one.blocks, one.length))
    return max(of_block.values(), default=0)


@dataclass(frozen=True)
class LearnedPrompts:
    """Prompts of a method that may be learnt beforehand, on other data: what a file of them needs to know.

    Args:
        axes: of each parameter, without the last, which is the width: "slots", "blocks", "parts" (keys and
            values) and "length" (tokens) in the parameter's own order.
        shape: of each parameter, known before there is any.
        parameters: those that there are now, the oldest first.
        blocks: where they are given; none for what no block gets.
        added: whether experiences add parameters: "never", "derived" from those before by a rule of the
            method's own, or "anew", as the first started.
        block_prompt: makes of values in the parameter's form, with however many tokens and slots, what a
            block gets, so that they can stand in front of those that are learned.
        reads_front: the method asks for :meth:`PromptModel.in_front` itself.
        apart: whether those that start from one prompt get noise, as equal ones would never part.
        is_key: what prompts are chosen by; a file need not have it.
    """

    axes: tuple[str, ...]
    shape: tuple[int, ...]
    parameters: Sequence[nn.Parameter]
    blocks: tuple[int, ...] = ()
    added: Literal["never", "derived", "anew"] = "never"
    block_prompt: Callable[[Tensor, int], BlockPrompt] | None = None
    reads_front: bool = False
    apart: bool = True
    is_key: bool = False


@dataclass(frozen=True)
class Pass:
    """One run of the backbone with prompts.

    Attributes:
        last: the block of which only ``rows`` will be computed; None where all of every block is.
        rows: the rows that the caller reads.
        learning: whether a training loss is being computed.
        collected: in that case, what a plug-in leaves here reaches its :meth:`Plugin.terms`: scalars that
            are means over the images of the pass.
    """

    last: int | None = None
    rows: slice | None = None
    learning: bool = False
    collected: list[Any] = field(default_factory=list)


class Plugin(nn.Module):
    """Something that is added to a method; each hook does nothing by default.

    Parameters that are trained and buffers that are saved belong to the model under the plug-in's ``name``.
    State lives there only, never in plain attributes.

    Attributes:
        name: what the model calls it: the prefix of its state, and the attribute under which it is found.
        needs_experiences: whether a stream must tell where experiences begin and end.
        counts_at_end: whether it counts an experience's images at its end, and what is received where there
            are none.
        needs_label: whether it reads the one label of an image: label sets and mixed images are refused.
        changes_features: whether it stands between the method's features and what compares them, with state
            of its own.
        starts_prompts: whether it says what the method's prompts start from.
    """

    name: ClassVar[str]
    needs_experiences: bool = False
    counts_at_end: ClassVar[bool] = False
    needs_label: ClassVar[bool] = False
    changes_features: bool = False
    starts_prompts: ClassVar[bool] = False

    _host: Any = None  # a PromptModel, whose module imports this one

    @property
    def model(self) -> Any:
        """The PromptModel that it is plugged into."""
        assert self._host is not None, f"{self.name} is not plugged into a model"
        return self._host

    def join(self, model: Any) -> None:
        """Remember the model, and attach; :meth:`PromptModel.plug` calls it."""
        if self._host is not None:
            raise ConfigError(f"this {self.name} is plugged into a {type(self._host).__name__} already")
        object.__setattr__(self, "_host", model)  # a module that held its owner would never end
        try:
            self.attach(model)
        except ConfigError:
            object.__setattr__(self, "_host", None)
            raise

    # ------------------------------------------------------------------ hooks

    def attach(self, model: Any) -> None:
        """Called once, on a new model.

        Args:
            model: a PromptModel.

        Raises:
            ConfigError: the model has no use for this plug-in.
        """

    def around(self, prompts: Prompts, run: Pass) -> Prompts:
        """What the backbone asks in place of the method's prompts, in one run."""
        return prompts

    def learned_prompts(self) -> dict[str, LearnedPrompts]:
        """What it has itself that may be learnt beforehand, by name."""
        return {}

    def in_front(self, name: str) -> Tensor | None:
        """Frozen values that stand in front of a set of learned prompts, in the form of its parameters."""
        return None

    def meet(self, class_names: Sequence[str]) -> None:
        """The names of the classes that a run will bring, told before it begins, for notices about them."""

    def files_in_state(self) -> set[str]:
        """Keys of files that are not read again, as the state that will be loaded holds what they gave."""
        return set()

    def expect_state(self) -> None:
        """Told before it is plugged into a model whose state will be loaded: no start need be read."""

    def terms(self, step: Step, collected: Sequence[Any]) -> Mapping[str, Tensor]:
        """Terms that are added to the loss of a step, scalars by name.

        Args:
            step: the method's own.
            collected: what :meth:`around` left in ``run.collected`` in this step.
        """
        return {}

    def begin_experience(self, classes: Sequence[int]) -> None:
        """An experience of these classes begins, wherever the loop has experiences."""

    def look(self, samples: Samples | None) -> None:
        """An experience that will be trained on has begun; called behind :meth:`begin_experience`.

        Args:
            samples: streams what will be trained on; None where the loop does not give it.
        """

    def begin_epoch(self, epoch: int, epochs: int) -> None:
        """An epoch of the experience begins, or goes on in a run that was resumed in its middle.

        Args:
            epoch: which, from 0.
            epochs: that the experience will be trained for.
        """

    def training_ended(self) -> None:
        """The last step of an experience was made; called before the method itself finishes it."""

    def received(self, features: Tensor, targets: Tensor, frozen: Frozen) -> None:
        """Once per received batch, at its first iteration, whatever the loop.

        A class that overrides it refuses mixed images, whose features are no class's.

        Args:
            features: the head's input, [B, D], detached.
            targets: labels [B] or multi-hot [B, C].
            frozen: gives the backbone's own features of the same images.
        """

    def counts_now(self) -> bool:
        """Whether it looks at what is received next, so that mixed images are refused."""
        return overrides(self, "received")

    def end_experience(self, samples: Samples | None) -> None:
        """An experience ends; also in a run that was resumed in its middle, and therefore never began it.

        Args:
            samples: streams what the experience was trained on; None where the loop does not give it.
        """

    def logits(self, features: Tensor, frozen: Frozen) -> Tensor | None:
        """Logits [B, C] from the head's input [B, D], in place of the method's; None for no answer.

        Asked in eval mode and between experiences alone: inside an open one the trained head answers.

        Args:
            features: the head's input, [B, D].
            frozen: gives the backbone's own features of the same images.
        """
        return None

    @property
    def scores_are(self) -> str:
        """What its :meth:`logits` are, in words."""
        return f"scores of the plug-in {self.name}"

    def predicts_untrained(self) -> bool:
        """Whether it answers for every class from what it counted, without training of its own."""
        return False

    def stops(self, experience: int) -> bool:
        """Whether training ended before an experience, counted from 0: it and all later ones train nothing.

        Their labels are observed and their samples counted all the same.
        """
        return False

    def route(self, frozen: Frozen) -> Tensor | None:
        """The experience under whose prompts each image is encoded for :meth:`logits`, int64 [B].

        None where the method's own choice serves.

        Args:
            frozen: gives the backbone's own features of the images.
        """
        return None

    def check_epochs(self, epochs: int) -> None:
        """Refuse so many epochs of an experience, before anything is trained.

        Raises:
            ConfigError: naming the argument.
        """

    def files_read(self) -> dict[str, Any]:
        """What files gave, by the argument: see :meth:`~clprompt.prompting.model.PromptModel.files_read`."""
        return {}

    def notes(self) -> list[str]:
        """What whoever starts a run with it should know, in a sentence each."""
        return []

    def grow_classes(self, num_classes: int) -> None:
        """Bring per-class state to so many classes."""

    def follow(self) -> None:
        """Called after the model may have added, frozen or released parameters, and after loading."""

    def resize_to(self, state: Mapping[str, Tensor]) -> None:
        """Bring shapes in line with a saved state (names without the plug-in's) before it is loaded."""

    def max_state_size(self, experiences: int) -> int | None:
        """The most numbers that its state can hold after so many experiences; None where no data decide."""
        return None

    def state_size(self) -> int:
        """How many numbers it stores."""
        return sum(value.numel() for value in self.state_dict().values())


def overrides(plugin: Plugin, hook: str) -> bool:
    """Whether a plug-in has a hook of its own in place of the one that does nothing."""
    return getattr(type(plugin), hook) is not getattr(Plugin, hook)
