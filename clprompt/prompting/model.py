"""PromptModel: the contract that every method fulfils. Plain PyTorch; no Avalanche, no loop, no data."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, Literal, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from clprompt.backbones.vit import FrozenViT
from clprompt.errors import ConfigError, ProtocolError
from clprompt.prompting import coordination
from clprompt.prompting.coordination import Coordination, PromptSet
from clprompt.prompting.heads import LinearHead, grow_rows
from clprompt.prompting.losses import SoftLabels, classification_loss, mask_logits
from clprompt.targets import classes_in, present

#: Values per sample that an evaluator keeps for a model between evaluations: the model reads and fills it.
Cache = dict[str, Tensor]
#: Which classes compete in the training loss.
Mask = Literal["experience", "seen", "batch", "none"]
Boundaries = Literal["required", "optional", "unused"]


class Step(NamedTuple):
    """What one training step produced.

    Attributes:
        loss: scalar to call ``backward`` on (without a graph where a method trains nothing).
        logits: [B, C], masked by seen classes only, with their graph (Avalanche's LwF distils on them).
        terms: each part of the loss by name, detached scalars, for the log.
    """

    loss: Tensor
    logits: Tensor
    terms: dict[str, Tensor]


class PromptModel(nn.Module, ABC):
    """A class-incremental learner over a frozen backbone.

    A method implements :meth:`encode` (images to head input and its own loss terms) and, where it grows with the
    experiences, :meth:`start_experience`. Everything else here is shared: growth with the classes, masks, seen-class
    bookkeeping, loading of a state of another size.

    The loop calls, in this order: ``begin_experience(classes)``; for each received batch ``observe(targets)``, then
    ``training_loss(images, targets)`` once per iteration; ``end_experience()``. A boundary-free method needs
    ``observe`` and ``training_loss`` only.

    Args:
        backbone: the frozen vision transformer.
        seed: where all initial values come from.
        mask: which classes compete in the training loss: those of the current experience, all seen ones, those in
            the batch, or every column. None: "experience", or "seen" when boundary-free.
        boundary_free: the method is used without experiences and is never told of one.

    Raises:
        ConfigError: a mask that there is not, or the mask of the experience where there are no experiences.
    """

    #: "experience": a new optimizer for every experience (old moments would go on moving rows without gradient).
    optimizer_reset: ClassVar[Literal["experience", "never"]] = "experience"
    #: names by class id, and image -> tensor [C, H, W]; a model that was loaded from a run folder has both
    class_names: list[str]
    transform: Callable[[Any], Tensor]
    #: False for a reference line that keeps or revisits old images, and says so.
    rehearsal_free: ClassVar[bool] = True
    #: Whether training goes over the data of earlier experiences again: in "each" experience, or once, in the "last",
    #: with none of the others trained on.
    revisits: Literal["never", "each", "last"] = "never"
    #: False where a sample must have exactly one label.
    multi_label: ClassVar[bool] = True
    #: False where nothing is trained by gradient.
    trains: ClassVar[bool] = True

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        coordination.extend(cls, able=cls.prompt_sets is not PromptModel.prompt_sets)

    def __init__(
        self, backbone: FrozenViT, *, seed: int = 0, mask: Mask | None = None, boundary_free: bool = False
    ) -> None:
        super().__init__()
        if mask is None:
            mask = "seen" if boundary_free else "experience"
        if mask not in ("experience", "seen", "batch", "none"):
            raise ConfigError(f'mask must be experience, seen, batch or none, got "{mask}"')
        if boundary_free and mask == "experience":
            raise ConfigError(
                "mask=experience needs experiences; with boundary_free=true use seen, batch or none"
            )
        self.backbone = backbone
        self.seed = seed
        #: the first prompted block: blocks before it run once, without gradient (depth: no block is prompted)
        self.first_block = 0
        self.mask: Mask = mask
        self.boundary_free = boundary_free
        self.head: LinearHead | None = LinearHead(backbone.width, seed=seed)
        self.coordination: Coordination | None = None
        self.soft: SoftLabels | None = None  # what the next loss trains towards in place of its labels
        self.seen: Tensor
        self.current: Tensor
        self.experience: Tensor
        self.open: Tensor
        self.register_buffer("seen", torch.zeros(0, dtype=torch.bool))  # classes observed so far
        self.register_buffer("current", torch.zeros(0, dtype=torch.bool))  # classes of the current experience
        self.register_buffer("experience", torch.tensor(-1))  # index of the current or last experience
        self.register_buffer("open", torch.tensor(False))  # between begin_experience and end_experience

    # ------------------------------------------------------------------ what a method says of itself

    @property
    def boundaries(self) -> Boundaries:
        """Whether the method must be told where experiences begin and end."""
        if self.boundary_free:
            return "unused"
        return "required" if self.mask == "experience" else "optional"

    @abstractmethod
    def encode(self, images: Tensor, cached: Cache | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """Images [B, 3, H, W] -> (head input [B, D], the method's own loss terms, scalars that are added).

        Terms are read in training mode only. ``cached`` may hold what an earlier call for the same images put there.
        """

    def start_experience(self, index: int, images: Callable[[], Iterable[Tensor]] | None) -> None:
        """Add and freeze what a new experience needs; called once per experience, before its first batch."""

    def prompt_sets(self) -> dict[str, PromptSet]:
        """The prompt tokens of a method that lets others choose among them, by the ``name`` of its BlockPrompts.

        With it the constructor takes ``coordinate``, ``coordinate_weight`` and ``coordinate_share``.
        """
        return {}

    def begin_epoch(self, epoch: int) -> None:
        """The loop may tell at which epoch of the experience it is, counted from 0; most methods do not care."""

    def finish_experience(self) -> None:
        """Called once when an experience ends."""

    def set_stage(self) -> None:
        """Set ``requires_grad`` as it follows from the state; called after growth and after loading."""

    def grow_classes(self, num_classes: int) -> None:
        """Bring the method's own per-class tensors to ``num_classes``; the head is taken care of."""

    def diagnostics(self) -> Mapping[str, Any]:
        """Figures, histograms or scalars by tag, drawn by the trackers after each experience."""
        return {}

    def opening_diagnostics(self) -> Mapping[str, Any]:
        """The same of what :meth:`start_experience` saw; asked for once, right after it, and then forgotten."""
        return {}

    def probe(self, images: Glimpse) -> Mapping[str, Any]:
        """The same of evaluation images, in eval mode and without gradient; none may enter the state.

        Args:
            images: some evaluation images of seen classes; calling it streams them.
        """
        return {}

    def describe(self) -> dict[str, int]:
        """What the method takes beside the backbone: numbers and bytes of its state, and what of it is trained."""
        state = self.method_state().values()
        return {
            "state_numbers": sum(value.numel() for value in state),
            "state_bytes": sum(value.numel() * value.element_size() for value in state),
            "trained_numbers": sum(value.numel() for value in self.trainable().values()),
        }

    def meet(self, class_names: Sequence[str]) -> None:
        """The names of the classes that a run will bring, told before it begins, for notices about them."""

    # ------------------------------------------------------------------ use

    @property
    def num_classes(self) -> int:
        """C: the number of columns; column = class id."""
        return self.seen.shape[0]

    def logits(self, features: Tensor) -> Tensor:
        """Head input [B, D] -> unmasked logits [B, C]."""
        assert self.head is not None
        return self.head(features)

    def forward(self, images: Tensor, cached: Cache | None = None) -> Tensor:
        """Logits [B, C], -inf for classes never observed; independent of batch companions in eval mode."""
        features, _ = self.encode(images, cached)
        return mask_logits(self.logits(features), self.seen)

    @coordination.with_matching_loss
    def training_loss(self, images: Tensor, targets: Tensor) -> Step:
        """The loss of one step; counts as one step for a method that counts.

        Args:
            images: [B, 3, H, W].
            targets: labels [B] or multi-hot [B, C].

        Raises:
            ProtocolError: a label that was never observed, or an experience that was never begun.
        """
        self.check_targets(targets)
        features, terms = self.encode(images)
        logits = self.logits(features)
        name = "cross_entropy" if targets.ndim == 1 else "binary_cross_entropy"
        terms = {name: self.base_loss(logits, targets), **terms}
        loss = torch.stack(list(terms.values())).sum()
        return Step(loss, mask_logits(logits, self.seen), {name: t.detach() for name, t in terms.items()})

    def base_loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The classification loss over the classes that compete; unmasked logits [B, C] -> scalar."""
        allowed, soft = self.training_mask(targets), self.soft
        self.soft = None
        return soft.loss(logits, allowed) if soft else classification_loss(logits, targets, allowed)

    def training_mask(self, targets: Tensor) -> Tensor | None:
        """Boolean [C]: the classes that compete in the training loss, by ``mask``."""
        if self.mask == "none":
            return None
        if self.mask == "seen":
            return self.seen
        base = self.current if self.mask == "experience" else torch.zeros_like(self.seen)
        if targets.ndim == 2:  # hidden labels stay hidden: nothing is added to the classes of an experience
            return base if self.mask == "experience" else base.index_fill(0, present(targets), True)
        # samples that a replay plugin mixes in keep their own classes finite
        return base.index_fill(0, targets, True)

    def check_targets(self, targets: Tensor) -> None:
        """Refuse an empty batch, a label never observed, and training before ``begin_experience`` where it is needed."""
        if targets.shape[0] == 0:
            raise ProtocolError("training_loss got an empty batch")
        if self.boundaries == "required" and not bool(self.open):
            raise ProtocolError(f"{type(self).__name__} needs begin_experience(classes) before it is trained")
        if targets.ndim == 2 and not self.multi_label:
            raise ProtocolError(f"{type(self).__name__} needs one label per image, got multi-hot targets")
        labels = targets if targets.ndim == 1 else present(targets)
        known = self.knows(labels)
        if not bool(known.all()):
            raise ProtocolError(
                f"label {int(labels[~known][0])} was never observed; call observe(targets) first"
            )

    def knows(self, labels: Tensor) -> Tensor:
        """Boolean [n]: whether each label's class was observed; labels beyond the columns are unknown."""
        if self.num_classes == 0:
            return torch.zeros_like(labels, dtype=torch.bool)
        inside = labels.clamp(0, self.num_classes - 1)
        return self.seen[inside] & (inside == labels)

    def observe(self, targets: Tensor) -> bool:
        """Mark the classes of a received batch as seen, and grow for new ones.

        Returns:
            Whether parameters grew: then call :func:`clprompt.training.optim.sync`.

        Raises:
            ProtocolError: labels that are not class ids.
        """
        if targets.ndim == 2 and not bool(((targets == 0) | (targets == 1)).all()):
            raise ProtocolError("multi-hot targets must be 0 or 1")
        if targets.ndim == 1 and (targets.dtype.is_floating_point or targets.dtype == torch.bool):
            raise ProtocolError(f"labels must be integers, got {targets.dtype}")
        classes = classes_in(targets)
        if classes and classes[0] < 0:
            raise ProtocolError(f"labels must not be negative, got {classes[0]}")
        grew = self._grow(classes)
        self.seen[classes] = True
        return grew

    def begin_experience(
        self, classes: Iterable[int], images: Callable[[], Iterable[Tensor]] | None = None
    ) -> None:
        """Open an experience. Calling it again for the open experience does nothing.

        Args:
            classes: the class ids of the experience.
            images: streams its training images in batches under the evaluation transform, for methods that look at
                them before training and keep none.
        """
        classes = sorted({int(c) for c in classes})
        if not classes:
            raise ProtocolError("begin_experience got no classes")
        if bool(self.open):
            if classes == self.current.nonzero().flatten().tolist():
                return
            self.end_experience()
        self._grow(classes)
        self.current.fill_(False)
        self.current[classes] = True
        self.experience += 1
        self.open.fill_(True)
        device = self.seen.device
        self.start_experience(int(self.experience), images)
        self.to(device)  # parameters that were just added
        self._restage()

    def end_experience(self) -> None:
        """Close the experience; does nothing when none is open."""
        if bool(self.open):
            self.finish_experience()
            self.open.fill_(False)

    def features(
        self, images: Tensor, cached: Cache | None = None, *, stem: Tensor | None = None, first: int = 0
    ) -> Tensor:
        """The unprompted features [B, D], without gradient; kept in ``cached`` under "query".

        Args:
            images: [B, 3, H, W].
            cached: read first, filled otherwise.
            stem: the stream that enters block ``first``, where the caller has it already.
        """
        if cached is not None and "query" in cached:
            return cached["query"]
        query = self.backbone.features(images) if stem is None else self.backbone.features(stem, start=first)
        if cached is not None:
            cached["query"] = query
        return query

    def query(self, images: Tensor, first: int, cached: Cache | None = None) -> tuple[Tensor, Tensor]:
        """The stream that enters block ``first`` [B, N, D] and the query features [B, D], both without gradient.

        Blocks before the first prompted one are the same for query and prompted pass: they run once.
        """
        stem = self.backbone.stem(images, first)
        shared = stem if self.backbone.share_prefix else None
        return stem, self.features(images, cached, stem=shared, first=first)

    # ------------------------------------------------------------------ parameters and state

    def param_groups(self) -> list[dict[str, Any]]:
        """Optimizer groups: ``{"name", "params": {name: parameter}}`` and optional overrides such as ``lr``."""
        return [{"name": "all", "params": self.trainable()}]

    def trainable(self) -> dict[str, nn.Parameter]:
        """Trainable parameters by name; none of them is the backbone's."""
        return {
            name: p
            for name, p in self.named_parameters()
            if p.requires_grad and not name.startswith("backbone.")
        }

    def method_state(self) -> dict[str, Tensor]:
        """The state dict without the backbone: all that a checkpoint needs."""
        return {k: v for k, v in self.state_dict().items() if not k.startswith("backbone.")}

    def state_size(self) -> int:
        """How many numbers the method stores beside the backbone; independent of the number of samples seen."""
        return sum(value.numel() for value in self.method_state().values())

    def max_state_size(self, experiences: int) -> int | None:
        """The most that :meth:`state_size` can be after so many experiences, with the classes there are now.

        None for a method whose state does not depend on the data at all.
        """
        return None

    def resize_to(self, state: Mapping[str, Tensor]) -> None:
        """Grow to the shapes of a saved state; a method that adds parameters per experience extends this."""
        self._grow(range(state["seen"].shape[0]))

    def load_state_dict(  # type: ignore[override]
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """Load a state of any size; the backbone may be left out of it."""
        self.resize_to(state_dict)
        self._follow()
        own = {k: v for k, v in self.state_dict().items() if k.startswith("backbone.")}
        result = super().load_state_dict({**own, **state_dict}, strict=strict, assign=assign)
        self._restage()
        return result

    def _restage(self) -> None:
        self.set_stage()
        self._follow()

    def _follow(self) -> None:
        """Bring what coordinates the prompts to as many prompts as there are."""
        if self.coordination is not None:
            self.coordination.follow(self.prompt_sets())

    coordinate = coordination.coordinate

    def _grow(self, classes: Iterable[int]) -> bool:
        needed = max(classes, default=-1) + 1
        missing = needed - self.num_classes
        if missing <= 0:
            return False
        for buffer in (self.seen, self.current):
            grow_rows(buffer, torch.zeros(missing, dtype=torch.bool))
        if self.head is not None:
            self.head.grow(needed)
        self.grow_classes(needed)
        return True


class Glimpse(Protocol):
    """Evaluation images of seen classes to look at: all evenly spaced, or a few of each class group."""

    def __call__(self) -> Iterable[Tensor]:
        """Streams them in batches [B, 3, H, W]."""

    def groups(self, count: int) -> list[Tensor]:
        """At most ``count`` images [n, 3, H, W] of each class group that was met, always the same ones."""
        ...
