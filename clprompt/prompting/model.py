"""PromptModel: the contract that every method fulfils. Plain PyTorch; no Avalanche, no loop, no data."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache, partial
from typing import Annotated, Any, ClassVar, Literal, Protocol, TypeVar

import torch
from torch import Tensor, nn

from clprompt import schema
from clprompt.backbones.vit import FrozenViT, Prompts
from clprompt.errors import ConfigError, ProtocolError, tell
from clprompt.prompting.heads import LinearHead, grow_rows
from clprompt.prompting.losses import SoftLabels, classification_loss, mask_logits
from clprompt.prompting.plugin import Frozen, LearnedPrompts, Pass, Plugin, PromptSet, Samples, overrides
from clprompt.prompting.step import BatchPart
from clprompt.prompting.step import Encoded as Encoded
from clprompt.prompting.step import Predictions as Predictions
from clprompt.prompting.step import Step as Step
from clprompt.schema import at_least
from clprompt.targets import as_index, check_ids, checked_classes, checked_targets, classes_in, present

#: Values per sample that are kept for a model between evaluations, and in training for an experience: it
#: reads and fills it, in training with nothing that a step changes.
Cache = dict[str, Tensor]
#: Which classes compete in the training loss.
Mask = Literal["experience", "seen", "batch", "none"]
#: The number format of queries; None for that of everything else.
QueryPrecision = Literal["bf16"] | None
#: Indices of blocks of the backbone.
Blocks = tuple[Annotated[int, at_least(0)], ...]
Boundaries = Literal["required", "optional", "unused"]


Model = TypeVar("Model", bound="PromptModel")


class PromptModel(nn.Module, ABC):
    """A class-incremental learner over a frozen backbone.

    A method implements :meth:`encode` (images to head input and its own loss terms) and, where it grows with
    the experiences, :meth:`start_experience`. Everything else here is shared: growth with the classes, masks,
    seen-class bookkeeping, loading of a state of another size, plug-ins. ``forward`` and ``training_loss``
    are no method's own: what stands between features and loss is filled in by :meth:`classify`,
    :meth:`losses`, :meth:`received` and :meth:`count_step`, so that plug-ins reach every method.

    The loop calls in this order: ``begin_experience(classes)``; for each received batch ``observe(targets)``,
    then ``training_loss(images, targets)`` once per iteration; ``end_experience()``. A boundary-free method
    needs ``observe`` and ``training_loss`` only.

    A step waits for no device: what decides on the host is kept there as plain values beside the state
    (``is_open`` beside ``open``, ...), and labels are looked at before they travel.

    Args:
        backbone: the frozen vision transformer.
        seed: where all initial values come from.
        mask: which classes compete in the training loss: those of the current experience, all seen ones,
            those in the batch, or every column. None: "experience", or "seen" when boundary-free.
        boundary_free: the method is used without experiences and is never told of one.

    Attributes:
        optimizer_reset: "experience": a new optimizer for each experience, as old moments would move rows
            without gradient; or "never".
        rehearsal_free: False for a reference line that keeps or revisits old images, and says so.
        revisits: whether training goes over the data of earlier experiences again: in "each" experience, or
            once, in the "last", with none of the others trained on; "never" otherwise.
        multi_label: False where a sample must have exactly one label.
        needs_text: whether the text tower of the backbone is needed, and names of the classes with it.
        trains: False where nothing is trained by gradient.
        unknown_as_nan: buffers in which nan stands for "not known yet"; elsewhere in the state it is refused.
        one_feature_space: False where the features of two experiences lie in different spaces and cannot be
            compared.
        chooses_by_query: whether each image's query chooses its prompts in training.
        soft_labels: False for a loss of its own that takes neither mixed nor smoothed labels.
        class_names: names by class id; a model that was loaded from a run folder has them.
        transform: image -> tensor [C, H, W], likewise.
        head: the linear head that grows with the classes; None (set in the constructor) where the method
            answers by :meth:`classify` alone.
        is_open: whether an experience is open.
        experience_index: of the current or last experience, from 0; -1 before the first.
        seen_classes: ids of the classes observed so far.
        current_classes: ids of the classes of the current or last experience, rising.
        told_of_one_class: whether it was said that an experience of one class trains nothing.

    Raises:
        ConfigError: a mask that there is not, or the mask of the experience where there are no experiences.
    """

    optimizer_reset: ClassVar[Literal["experience", "never"]] = "experience"
    class_names: list[str]
    transform: Callable[[Any], Tensor]
    rehearsal_free: ClassVar[bool] = True
    revisits: Literal["never", "each", "last"] = "never"
    multi_label: ClassVar[bool] = True
    needs_text: ClassVar[bool] = False
    trains: ClassVar[bool] = True
    unknown_as_nan: ClassVar[Collection[str]] = ()
    one_feature_space: ClassVar[bool] = True
    chooses_by_query: ClassVar[bool] = False
    soft_labels: ClassVar[bool] = True

    @schema.checked
    def __init__(
        self, backbone: FrozenViT, *, seed: int = 0, mask: Mask | None = None, boundary_free: bool = False
    ) -> None:
        super().__init__()
        if mask is None:
            mask = "seen" if boundary_free else "experience"
        if boundary_free and mask == "experience":
            raise ConfigError(
                "mask=experience needs experiences; with boundary_free=true use seen, batch or none"
            )
        self.backbone = backbone
        self.seed = seed
        #: the first prompted block: blocks before it run once, without gradient (depth: no block is prompted)
        self.first_block = 0
        self.query_precision: QueryPrecision = None
        self.mask: Mask = mask
        self.boundary_free = boundary_free
        self.head: LinearHead | None = LinearHead(backbone.width, seed=seed)
        self._received = False  # a batch was received and has not been trained on yet
        #: Classes of an experience that plug-ins alone were told of; empty after it. None where nobody knows,
        #: from load_state_dict to end_experience: in eval mode a plug-in may then answer inside such an
        #: experience, where otherwise the trained head does.
        self._plugin_experience: list[int] | None = None
        self._collected: dict[str, list[Any]] | None = None  # by plug-in, while a training loss is computed
        self._part: BatchPart | None = None  # of the batch of a step, where several processes make it
        self._held: set[str] = set()  # names of parameters that are frozen because training is over
        self.seen: Tensor
        self.current: Tensor
        self.experience: Tensor
        self.open: Tensor
        self.register_buffer("seen", torch.zeros(0, dtype=torch.bool))  # classes observed so far
        self.register_buffer("current", torch.zeros(0, dtype=torch.bool))  # classes of the current experience
        self.register_buffer("experience", torch.tensor(-1))  # index of the current or last experience
        self.register_buffer("open", torch.tensor(False))  # between begin_experience and end_experience
        self.is_open = False
        self.experience_index = -1
        self.seen_classes: set[int] = set()
        self.current_classes: list[int] = []
        self.told_of_one_class = False
        #: of an unbound method, so that a copy of the model computes with itself
        self._compiled: Callable[..., tuple[Encoded, Tensor, dict[str, Tensor]]] | None = None
        self._host_targets: Tensor | None = None  # of the step that is computed, see on_host

    # ------------------------------------------------------------------ what a method says of itself

    @property
    def boundaries(self) -> Boundaries:
        """Whether the method must be told where experiences begin and end."""
        if self.boundary_free:
            return "unused"
        return "required" if self.mask == "experience" else "optional"

    @property
    def feature_width(self) -> int:
        """Width D of the features that :meth:`encode` returns."""
        return self.backbone.width

    @property
    def features_stay(self) -> bool:
        """Whether an image keeps its features when later experiences or batches are trained on."""
        return False

    @property
    def answer_is_trained(self) -> bool:
        """Whether what answers between experiences is trained by gradient."""
        return self.trains

    @property
    def scores_are(self) -> str:
        """What the logits between experiences are without plug-ins, in words."""
        return "trained logits" if self.answer_is_trained else "scores made of class statistics"

    @property
    def needs_two_classes(self) -> bool:
        """Whether an experience of one class trains nothing, as no class from before competes with it."""
        return self.trains and self.mask in ("experience", "batch")

    def help_for_one_class(self) -> str:
        """What lets a class that is alone compete, as the end of a sentence; "" where nothing does."""
        if "mask" not in inspect.signature(type(self)).parameters:
            return ""
        return '; with strategy.mask=seen (in Python: mask="seen") all classes seen compete'

    @property
    def prompt_tokens(self) -> int:
        """The most prompt tokens that stand beside those of an image in one block; prefixes are none."""
        return 0

    @property
    def counts_features(self) -> bool:
        """Whether it counts features of what it receives, so that mixed images and a memory are refused."""
        return False

    @abstractmethod
    def encode(self, images: Tensor, cached: Cache | None = None) -> Encoded:
        """Images [B, 3, H, W] -> head input [B, D], the method's own loss terms, what its later hooks need.

        ``cached`` may hold what an earlier call for the same images put there, in training that of an earlier
        step: put nothing there in training mode but what no step changes, such as the query.
        """

    def keep_query(self, images: Tensor, cached: Cache) -> None:
        """Put into ``cached`` what :meth:`encode` asks of the unprompted images in training.

        Args:
            images: [B, 3, H, W].
            cached: empty.
        """
        self.query(images, 0, cached)

    @property
    def slot_per_experience(self) -> bool:
        """Whether each experience has prompts that stay as they are, for :meth:`encode_under`."""
        return False

    def encode_under(self, images: Tensor, experiences: Tensor, cached: Cache | None = None) -> Encoded:
        """:meth:`encode` in eval mode, each image under the prompts of an experience that is named for it.

        Args:
            images: [B, 3, H, W].
            experiences: int64 [B], from 0; one beyond those that added prompts gets the newest.
            cached: see :meth:`encode`.
        """
        raise ProtocolError(f"{type(self).__name__} has no prompts of its own for each experience")

    def classify(self, encoded: Encoded) -> Tensor:
        """What was encoded -> unmasked logits [B, C], where no plug-in answers."""
        return self.logits(encoded.features)

    def embedding(self, encoded: Encoded) -> Tensor:
        """What was encoded -> what retrieval compares by cosine, [B, E]; by default the features."""
        return encoded.features

    def predictable(self) -> Tensor:
        """Boolean [C]: the classes whose logits are finite."""
        return self.seen

    def losses(
        self, encoded: Encoded, targets: Tensor, soft: SoftLabels | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """What was encoded -> unmasked logits [B, C] with their graph, and the parts of the loss by name.

        Args:
            encoded: of the training images.
            targets: labels [B] or multi-hot [B, C], all observed.
            soft: what is trained towards in place of the labels; None where ``soft_labels`` is False.
        """
        logits = self.classify(encoded)
        name = "cross_entropy" if targets.ndim == 1 else "binary_cross_entropy"
        return logits, {name: self.base_loss(logits, targets, soft), **encoded.terms}

    def received(self, features: Tensor, targets: Tensor) -> None:
        """Called once for each received batch, at its first iteration, with its detached features [B, D]."""

    def count_step(self, encoded: Encoded) -> None:
        """Called once per training step, for a method that counts steps or choices."""

    def start_experience(self, index: int, samples: Samples | None) -> None:
        """Add and freeze what a new experience needs; called once per experience, before its first batch.

        Args:
            index: of the experience, from 0.
            samples: see :meth:`begin_experience`.
        """

    def prompt_sets(self) -> dict[str, PromptSet]:
        """The prompt tokens of a method that offers them for choice, by the ``name`` of its BlockPrompts."""
        return {}

    def learned_prompts(self) -> dict[str, LearnedPrompts]:
        """The prompts of a method that may be learnt beforehand, by name; see ``strategy.init_file``."""
        return {}

    def read_prompts(self, path: str) -> Any:
        """What a file of the method's own form holds, checked; None for a file of the common form.

        Args:
            path: of the file.

        Returns:
            A :class:`clprompt.prompting.prompt_file.PromptFile`.
        """
        return None

    def in_front(self, name: str) -> Tensor | None:
        """Frozen values in front of a set of learned prompts, in its parameters' form; None for none."""
        return next((v for v in (plugin.in_front(name) for plugin in self.plugins) if v is not None), None)

    def begin_epoch(self, epoch: int) -> None:
        """The loop may tell at which epoch of the experience it is, from 0; most methods do not care."""

    def start_epoch(self, epoch: int, epochs: int) -> None:
        """The loop tells the method and its plug-ins at which epoch of the experience it is.

        A loop that was resumed tells it again. One that never does has an epoch for each experience.

        Args:
            epoch: which, from 0.
            epochs: of the experience.
        """
        for plugin in self.plugins:
            plugin.begin_epoch(epoch, epochs)
        self.begin_epoch(epoch)

    def finish_experience(self) -> None:
        """Called once when an experience ends."""

    def set_stage(self) -> None:
        """Set ``requires_grad`` as it follows from the state; called after growth and after loading."""

    def grow_classes(self, num_classes: int) -> None:
        """Bring the method's own per-class tensors to ``num_classes``; the head is taken care of."""

    def diagnostics(self) -> Mapping[str, Any]:
        """Drawings, histograms or scalars by tag, shown by the trackers after each experience.

        A drawing is a matplotlib Figure or, better, a function without arguments that makes one or gives
        None: a long run draws after some of its experiences only.
        """
        return {}

    def opening_diagnostics(self) -> Mapping[str, Any]:
        """The same of what :meth:`start_experience` saw; asked for once, right after it, then forgotten."""
        return {}

    def probe(self, images: Glimpse) -> Mapping[str, Any]:
        """The same of evaluation images, in eval mode and without gradient; none may enter the state.

        Args:
            images: some evaluation images of seen classes; calling it streams them.
        """
        return {}

    def describe(self) -> dict[str, int]:
        """What the method takes beside the backbone: numbers and bytes of its state, and what is trained."""
        state = self.method_state().values()
        return {
            "state_numbers": sum(value.numel() for value in state),
            "state_bytes": sum(value.numel() * value.element_size() for value in state),
            "trained_numbers": sum(value.numel() for value in self.trainable().values()),
        }

    def check_stream(self, classes: Sequence[Sequence[int]]) -> None:
        """Refuse a stream that is sure to fail in a later experience; asked where all of it is known.

        Args:
            classes: of each experience that will be begun.

        Raises:
            ConfigError: naming the argument, what the stream needs, and what is allowed.
        """

    def name_classes(self, names: Mapping[int, str | Sequence[str]]) -> None:
        """Name classes, for a method that reads names; before they are observed.

        Args:
            names: by class id; several are synonyms, the first is shown.
        """

    def class_titles(self) -> list[str]:
        """What drawings call the classes, by id: the names of the run that the model is from, or the ids."""
        return getattr(self, "class_names", [str(c) for c in range(self.num_classes)])

    def meet(self, class_names: Sequence[str]) -> None:
        """The names of the classes that a run will bring, told before it begins, for notices about them."""
        for plugin in self.plugins:
            plugin.meet(class_names)

    # ------------------------------------------------------------------ plug-ins

    @property
    def plugins(self) -> list[Plugin]:
        """What was plugged in, in that order."""
        return [part for part in self._modules.values() if isinstance(part, Plugin)]

    def plug(self: Model, plugin: Plugin) -> Model:
        """Add a plug-in, which is then found under its name; before an optimizer is made.

        Raises:
            ConfigError: a name that is taken, or what the plug-in refuses.
        """
        name = plugin.name
        if hasattr(self, name) or not name.isidentifier():
            why = "the name is taken" if hasattr(self, name) else "it is no plain name"
            raise ConfigError(f'{type(self).__name__} takes no plug-in called "{name}": {why}')
        plugin.join(self)
        if self.num_classes:
            plugin.grow_classes(self.num_classes)
        self.add_module(name, plugin.to(self.device))
        if overrides(plugin, "around") and self.backbone.around is None:
            self.backbone = self.backbone.with_prompts_through(self._around)
        return self

    def _around(self, prompts: Prompts, last: int | None, rows: slice | None) -> Prompts:
        """A method's prompts in one run of the backbone, through every plug-in."""
        for plugin in self.plugins:
            if overrides(plugin, "around"):
                if self._collected is None:
                    run = Pass(last, rows)
                else:
                    run = Pass(last, rows, learning=True, collected=self._collected[plugin.name])
                prompts = plugin.around(prompts, run)
        return prompts

    def _plugged_logits(
        self, images: Tensor, cached: Cache | None, encode: Callable[[], Encoded]
    ) -> Tensor | None:
        """The first answer of a plug-in, in eval mode and between experiences; None for none."""
        answering = [] if self.training else [p for p in self.plugins if overrides(p, "logits")]
        if not answering or self._plugin_experience or self.is_open:
            return None
        frozen = partial(self.features, images, cached)
        for plugin in answering:
            experiences = plugin.route(frozen)
            if experiences is None:
                features = self._features_to_answer(cached, encode)
            else:
                features = self.encode_under(images, experiences, cached).features
            logits = plugin.logits(features, frozen)
            if logits is not None:
                return logits
        return None

    def _features_to_answer(self, cached: Cache | None, encode: Callable[[], Encoded]) -> Tensor:
        """The head's input [B, D]; once training is over it never changes again, and is kept."""
        key = "head input"
        if cached is None or not self.stopped:
            return encode().features
        if key not in cached:
            cached[key] = encode().features
        return cached[key]

    def files_read(self) -> dict[str, Any]:
        """What files, or published lists, gave: plain values by the argument that names the file.

        A run goes on, and predicts, with the same contents alone.
        """
        return {key: value for plugin in self.plugins for key, value in plugin.files_read().items()}

    def files_in_state(self) -> set[str]:
        """Keys of files that are not read again, as the state that will be loaded holds what they gave."""
        return {key for plugin in self.plugins for key in plugin.files_in_state()}

    def notes(self) -> list[str]:
        """What whoever starts a run should know of the model, in a sentence each."""
        return [note for plugin in self.plugins for note in plugin.notes()]

    def stops(self, experience: int) -> bool:
        """Whether training ends before an experience, counted from 0: it and all later ones train nothing."""
        return any(plugin.stops(experience) for plugin in self.plugins)

    @property
    def stopped(self) -> bool:
        """Whether training is over: no parameter is trained, labels and samples are still taken in."""
        if not any(overrides(plugin, "stops") for plugin in self.plugins):
            return False
        return self.stops(self.experience_index)

    def wants_experiences(self) -> bool:
        """Whether a loop that has experiences tells of them: the method or a plug-in has a use for them."""
        hooks = ("begin_experience", "look", "end_experience", "logits")
        return self.boundaries != "unused" or any(overrides(p, hook) for p in self.plugins for hook in hooks)

    def check_online(self) -> None:
        """Refuse a stream without experiences where a plug-in needs them.

        Raises:
            ConfigError: naming the plug-in.
        """
        for plugin in self.plugins:
            if plugin.needs_experiences:
                raise ConfigError(
                    f"{plugin.name} needs to know where experiences begin and end, which an online stream "
                    "does not show"
                )

    def check_epochs(self, epochs: int) -> None:
        """Refuse so many epochs of an experience where a plug-in has no use for them.

        Raises:
            ConfigError: naming the argument.
        """
        for plugin in self.plugins:
            plugin.check_epochs(epochs)

    def counts_received(self, *, told: bool = False) -> bool:
        """Whether the method or a plug-in looks at what is received, so that mixed images are refused.

        Args:
            told: the loop tells of experiences, so that some count at their ends instead.
        """
        counting = (p for p in self.plugins if overrides(p, "received"))
        return self.counts_features or any(not (told and p.counts_at_end) for p in counting)

    # ------------------------------------------------------------------ use

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.seen.device

    @property
    def dtype(self) -> torch.dtype:
        """The number format of the method's weights, by the first; the backbone's before there is one."""
        own = (p.dtype for p in self.own_parameters().values() if p.is_floating_point())
        return next(own, self.backbone.dtype)

    def placed(self, images: Tensor) -> Tensor:
        """Images on the model's device and in the number format of its backbone; bytes are normalised."""
        if images.dtype == torch.uint8:
            from clprompt.data.transforms import Normalise  # which imports torchvision

            inputs = self.backbone.inputs
            pixels = images.to(self.device, non_blocking=True)
            return Normalise(inputs.mean, inputs.std)(pixels).to(self.backbone.dtype)
        dtype = self.backbone.dtype if images.is_floating_point() else images.dtype
        return images.to(self.device, dtype, non_blocking=True)

    @property
    def num_classes(self) -> int:
        """C: the number of columns; column = class id."""
        return self.seen.shape[0]

    def logits(self, features: Tensor) -> Tensor:
        """Head input [B, D] -> unmasked logits [B, C]."""
        assert self.head is not None
        return self.head(features)

    def forward(self, images: Tensor, cached: Cache | None = None) -> Tensor:
        """Logits [B, C], -inf for classes never observed; independent of batch companions in eval mode.

        An empty batch gives [0, C], and before the first class there is no column: [B, 0].

        Args:
            images: [B, 3, H, W], normalised, as ``backbone.inputs`` says.
            cached: see :meth:`encode`.

        Raises:
            ProtocolError: images of another form or number format.
        """
        self.backbone.check_images(images)
        if not torch.compiler.is_compiling() and len(images) == 0:
            return images.new_zeros((0, self.num_classes), dtype=self.dtype)
        encode, plugged = self._answered(images, cached)
        return mask_logits(self.classify(encode()) if plugged is None else plugged, self.predictable())

    def embed(self, images: Tensor, cached: Cache | None = None) -> Tensor:
        """Images [B, 3, H, W] -> embeddings [B, E], which retrieval compares by cosine."""
        return self.embedding(self.encode(images, cached))

    def predictions(self, images: Tensor, cached: Cache | None = None, *, embed: bool = False) -> Predictions:
        """What :meth:`forward` gives, and beside it what it would give without plug-ins that answer.

        Args:
            images: [B, 3, H, W].
            cached: see :meth:`encode`.
            embed: give what :meth:`embed` gives as well; images are encoded once for both.
        """
        if not embed and not any(overrides(plugin, "logits") for plugin in self.plugins):
            return Predictions(self(images, cached), None)
        encode, plugged = self._answered(images, cached)
        logits = self.classify(encode()) if plugged is None else plugged
        trained = None
        # where training stops, the head is not trained to the end
        if plugged is not None and not any(overrides(plugin, "stops") for plugin in self.plugins):
            trained = mask_logits(self.classify(encode()), self.predictable())
        embeddings = self.embedding(encode()) if embed else None
        return Predictions(mask_logits(logits, self.predictable()), trained, embeddings)

    def _answered(self, images: Tensor, cached: Cache | None) -> tuple[Callable[[], Encoded], Tensor | None]:
        """What encodes the images, once, and the logits of a plug-in that answers."""
        cached = {} if cached is None and self.plugins else cached
        encode = cache(partial(self.encode, images, cached))
        return encode, self._plugged_logits(images, cached, encode)

    def training_loss(
        self,
        images: Tensor,
        targets: Tensor,
        soft: SoftLabels | None = None,
        cached: Cache | None = None,
    ) -> Step:
        """The loss of one step; counts as one step for a method that counts.

        Args:
            images: [B, 3, H, W].
            targets: labels [B] or multi-hot [B, C], on any device; they are looked at in the host's memory
                alone, where nobody waits for them.
            soft: what to train towards in place of the labels.
            cached: see :meth:`encode`.

        Raises:
            ProtocolError: images or targets of another form, or of two lengths, a label that was never
                observed, an experience that was never begun, or soft labels that the method or a plug-in has
                no use for.
        """
        targets = checked_targets(targets)
        self.backbone.check_images(images)
        rows = len(targets if self._part is None else targets[self._part.rows])
        if len(images) != rows:
            raise ProtocolError(f"a batch has {len(images)} images and {rows} targets")
        if self.stopped:
            return self._untrained_step(images, targets)
        self.check_targets(targets)
        if soft is not None:
            self._check_soft(soft)
        with self._collecting() as collected, self._looking_at(targets):
            targets = targets.to(self.device, non_blocking=True)
            if cached is None and self._received and self.counts_received():
                cached = {}
            if not self._counts_something():
                self._received = False
            if self._compiled is None:
                encoded, logits, terms = self._computed(images, targets, soft, cached)
            else:
                for batch in (images, targets):
                    torch._dynamo.maybe_mark_dynamic(batch, 0)  # the last batch may be a smaller one
                encoded, logits, terms = self._compiled(self, images, targets, soft, cached)
        features = encoded.features.detach()
        self.count_step(encoded)
        loss = torch.stack(list(terms.values())).sum() if terms else features.new_zeros(())
        detached = {name: term.detach() for name, term in terms.items()}
        step = Step(loss, mask_logits(logits, self.predictable()), detached, features)
        return self._with_plugged_terms(step, collected)

    def _computed(
        self, images: Tensor, targets: Tensor, soft: SoftLabels | None, cached: Cache | None
    ) -> tuple[Encoded, Tensor, dict[str, Tensor]]:
        """What was encoded, logits and terms: all of a step that is differentiated."""
        encoded = self._of_whole_batch(self.encode(images, cached))
        self._take_in(encoded.features.detach(), targets, self._frozen_features(images, cached))
        return encoded, *self.losses(encoded, targets, soft)

    def compile_loss(self, **arguments: Any) -> None:
        """Have torch compile what a training step differentiates, anew whenever the model grows.

        Args:
            **arguments: of ``torch.compile``.
        """
        self._compiled = torch.compile(PromptModel._computed, **arguments)

    def _counts_something(self) -> bool:
        """Whether the method or a plug-in looks at what was received."""
        own = type(self).received is not PromptModel.received
        return own or any(overrides(plugin, "received") for plugin in self.plugins)

    # ------------------------------------------------------------------ a batch in several processes

    @contextmanager
    def encoding_part(self, part: BatchPart | None) -> Iterator[None]:
        """Let :meth:`training_loss` take a part of the images of a batch with the targets of all of it.

        Args:
            part: which, and how the rest is had; None for all of them.
        """
        self._part = part
        try:
            yield
        finally:
            self._part = None

    @property
    def part(self) -> BatchPart | None:
        """Which part of the batch of a training step is encoded here; None for all of it."""
        return self._part

    def whole(self, rows: Tensor) -> Tensor:
        """Rows [b, ...] of the images that are encoded here -> of the whole batch, [B, ...]."""
        return rows if self._part is None else self._part.whole(rows)

    def drawn_rows(self, rows: int) -> tuple[int, slice]:
        """For how many images of a batch a training step draws, and which of them are encoded here.

        Args:
            rows: of the images at hand; all of them, outside of a step of several processes.
        """
        return (rows, slice(None)) if self._part is None else (self._part.total, self._part.rows)

    def gather(self, encoded: Encoded, part: BatchPart) -> Encoded:
        """What was encoded here and elsewhere of a batch, all of it: see :class:`Encoded`."""
        terms = dict(zip(encoded.terms, part.means(list(encoded.terms.values())), strict=True))
        return Encoded(part.whole(encoded.features), terms, part.whole(encoded.details))

    def _of_whole_batch(self, encoded: Encoded) -> Encoded:
        """What was encoded of a batch, and what plug-ins collected meanwhile: means over the images."""
        if self._part is None:
            return encoded
        for values in (self._collected or {}).values():
            values[:] = self._part.means(values)
        return self.gather(encoded, self._part)

    def _frozen_features(self, images: Tensor, cached: Cache | None) -> Frozen:
        return lambda: self.whole(self.features(images, cached))

    # ------------------------------------------------------------------ a training step

    def _take_in(self, features: Tensor, targets: Tensor, frozen: Frozen) -> None:
        """Show a received batch to whoever counts, once."""
        if not self._received:
            return
        self._received = False
        with torch.no_grad():
            self.received(features, targets)
            for plugin in self.plugins:
                plugin.received(features, targets, frozen)

    @torch.no_grad()
    def _untrained_step(self, images: Tensor, targets: Tensor) -> Step:
        """The step of an experience in which nothing is trained: a loss of 0 without a graph."""
        PromptModel.check_targets(self, targets)  # a method may look for what only training needs
        with evaluating(self):
            cached: Cache = {}
            encoded = self._of_whole_batch(self.encode(images, cached))
            features = encoded.features
            on_device = targets.to(self.device, non_blocking=True)
            self._take_in(features, on_device, self._frozen_features(images, cached))
            logits = mask_logits(self.classify(encoded), self.predictable())
        return Step(features.new_zeros(()), logits, {}, features)

    @contextmanager
    def _collecting(self) -> Iterator[dict[str, list[Any]]]:
        """Lets plug-ins collect in the passes of a training loss; gives what they leave, by their names."""
        self._collected = {plugin.name: [] for plugin in self.plugins}
        try:
            yield self._collected
        finally:
            self._collected = None

    @contextmanager
    def _looking_at(self, targets: Tensor) -> Iterator[None]:
        """Keeps the targets of a step at hand for :meth:`on_host`, if they came from there."""
        self._host_targets = targets if targets.device.type == "cpu" else None
        try:
            yield
        finally:
            self._host_targets = None

    def on_host(self, targets: Tensor) -> Tensor:
        """The targets of the step that is computed, in the host's memory, for whoever has to look at them.

        Those that :meth:`training_loss` was given; it is waited for a device where they came from there.
        """
        return targets.cpu() if self._host_targets is None else self._host_targets

    def _with_plugged_terms(self, step: Step, collected: Mapping[str, Sequence[Any]]) -> Step:
        """The step with the terms of plug-ins, by the order of their names: the same bits however plugged."""
        added: dict[str, Tensor] = {}
        for plugin in sorted(self.plugins, key=lambda plugin: plugin.name):
            for name, term in plugin.terms(step, collected[plugin.name]).items():
                if name in added or name in step.terms:
                    raise ProtocolError(f"{plugin.name} adds the loss term {name}, which is there already")
                added[name] = term
        if not added:
            return step
        loss = step.loss + torch.stack(list(added.values())).sum()
        return step._replace(
            loss=loss, terms={**step.terms, **{name: term.detach() for name, term in added.items()}}
        )

    def _check_soft(self, soft: SoftLabels) -> None:
        if not self.soft_labels:
            raise ProtocolError(
                f"{type(self).__name__} has a loss of its own, which takes neither training.mixup and "
                "training.cutmix nor training.label_smoothing"
            )
        counting = [type(self).__name__] if self.counts_features else []
        counting += [plugin.name for plugin in self.plugins if plugin.counts_now()]
        if soft.labels.ndim == 2 and counting:
            raise ProtocolError(
                f"training.mixup and training.cutmix are refused: {', '.join(counting)} counts features, and "
                "mixed ones are no class's"
            )
        reading = [plugin.name for plugin in self.plugins if plugin.needs_label]
        if soft.labels.ndim == 2 and reading:
            raise ProtocolError(
                f"training.mixup and training.cutmix are refused: {', '.join(reading)} reads the label of an "
                "image, and mixed ones have two"
            )

    def base_loss(self, logits: Tensor, targets: Tensor, soft: SoftLabels | None = None) -> Tensor:
        """The classification loss over the classes that compete; unmasked logits [B, C] -> scalar."""
        allowed = self.training_mask(targets)
        return soft.loss(logits, allowed) if soft else classification_loss(logits, targets, allowed)

    def training_mask(self, targets: Tensor) -> Tensor | None:
        """Boolean [C]: the classes that compete in the training loss, by ``mask``."""
        if self.mask == "none":
            return None
        if self.mask == "seen":
            return self.seen
        base = self.current if self.mask == "experience" else torch.zeros_like(self.seen)
        if targets.ndim == 2:  # hidden labels stay hidden: nothing is added to the classes of an experience
            if self.mask == "experience":
                return base
            columns = min(len(base), targets.shape[1])
            base[:columns] = (targets[:, :columns] > 0).any(0)
            return base
        # samples that a replay plugin mixes in keep their own classes finite
        return base.index_fill(0, targets, True)

    def check_targets(self, targets: Tensor) -> None:
        """Refuse an empty batch, a label never observed, and a step without the experience that is needed.

        Labels on another device than the host's are not looked at: it would be waited for.
        """
        if targets.shape[0] == 0:
            raise ProtocolError("training_loss got an empty batch")
        needing = [type(self).__name__] if self.boundaries == "required" else []
        if self.boundaries != "unused":  # else plug-ins alone are told
            needing += [plugin.name for plugin in self.plugins if plugin.needs_experiences]
        if needing and not self.is_open:
            raise ProtocolError(f"{needing[0]} needs begin_experience(classes) before it is trained")
        if targets.ndim == 2:
            self.check_label_sets()
        if targets.device.type != "cpu":
            return
        labels = targets if targets.ndim == 1 else present(targets)
        known = self.knows(labels)
        if not bool(known.all()):
            raise ProtocolError(
                f"label {int(labels[~known][0])} was never observed; call observe(targets) first"
            )

    def check_label_sets(self) -> None:
        """Refuse multi-hot targets where the method has no use for them; a run asks before it begins."""
        if not self.multi_label:
            raise ProtocolError(f"{type(self).__name__} needs one label per image, got multi-hot targets")
        for plugin in self.plugins:
            if plugin.needs_label:
                raise ProtocolError(f"{plugin.name} needs one label per image, got multi-hot targets")

    def knows(self, labels: Tensor) -> Tensor:
        """Boolean [n]: whether each label's class was observed; labels beyond the columns are unknown."""
        if self.num_classes == 0:
            return torch.zeros_like(labels, dtype=torch.bool)
        if labels.device != self.device:
            return torch.tensor([c in self.seen_classes for c in labels.tolist()], device=labels.device)
        inside = labels.clamp(0, self.num_classes - 1)
        return self.seen[inside] & (inside == labels)

    def observe(self, targets: Tensor) -> bool:
        """Mark the classes of a received batch as seen, and grow for new ones.

        Returns:
            Whether parameters grew: then call :func:`clprompt.training.optim.sync`.

        A :class:`clprompt.errors.DataWarning` says once where one class alone makes the experience and the
        batch, and ``mask`` lets no other compete with it.

        Raises:
            ProtocolError: targets that are neither labels [B] nor multi-hot [B, C], or no class ids.
        """
        classes = classes_in(checked_targets(targets))
        check_ids(classes)
        if targets.ndim == 1:
            self._tell_of_one_class(classes)
        grew = self._grow(classes)
        new = [c for c in classes if c not in self.seen_classes]
        if new:
            self.seen.index_fill_(0, as_index(new, self.device), True)
            self.seen_classes.update(new)
        self._received = True
        return grew

    def _tell_of_one_class(self, received: Sequence[int]) -> None:
        """Say once that nothing is learnt; a memory that mixes in other classes lets them compete."""
        if self.told_of_one_class or not self.is_open or len(received) != 1:
            return
        if self.current_classes != list(received) or not self.needs_two_classes or self.stopped:
            return
        if self.revisits != "never" or any(overrides(plugin, "logits") for plugin in self.plugins):
            return
        self.told_of_one_class = True
        tell(
            f"class {received[0]} is alone in experience {self.experience_index + 1}: under mask={self.mask} "
            f"no other competes with it, so its loss is 0 and it is not learnt{self.help_for_one_class()}"
        )

    def begin_experience(self, classes: Iterable[int], samples: Samples | None = None) -> None:
        """Open an experience. Calling it again for the open experience does nothing.

        Another experience that is still open is ended first, as :meth:`end_experience` does it. Nothing
        begins by itself: labels of other classes that :meth:`observe` is shown meanwhile belong to the open
        experience, and are trained with its prompts.

        Args:
            classes: the class ids of the experience.
            samples: streams its training images in batches, with their visible labels, under the evaluation
                transform, for whoever looks at them before training and keeps none. It may be called until
                :meth:`end_experience` returns.

        Raises:
            ProtocolError: no classes, or something that is no class id.
        """
        classes = checked_classes(classes)
        if not classes:
            raise ProtocolError("begin_experience got no classes")
        if self.is_open:
            if classes == self.current_classes:
                return
            self.end_experience()
        self._grow(classes)
        self.current.fill_(False)
        self.current[classes] = True
        self.experience += 1
        self.open.fill_(True)
        self._mirror()
        with self._adopting():
            if not self.stopped:
                self.start_experience(self.experience_index, samples)
            for plugin in self.plugins:
                plugin.begin_experience(classes)
                if not self.stopped:
                    plugin.look(samples)
        self._restage()

    @contextmanager
    def _adopting(self) -> Iterator[None]:
        """Brings parameters that are added meanwhile to where the model is, and into its number format."""
        device, dtype, known = self.device, self.dtype, list(self.parameters())
        yield
        if any(tensor.device != device for tensor in (*self.parameters(), *self.buffers())):
            self.to(device)
        there = {id(parameter) for parameter in known}
        for parameter in self.parameters():
            if id(parameter) not in there and parameter.is_floating_point():
                parameter.data = parameter.data.to(dtype)

    def begin_for_plugins(self, classes: Iterable[int], samples: Samples | None = None) -> None:
        """Tell plug-ins of an experience for which the method itself has no use (``boundaries`` "unused").

        Args:
            classes: of the experience.
            samples: see :meth:`begin_experience`.
        """
        classes = checked_classes(classes)
        if self._plugin_experience:
            if self._plugin_experience == classes:
                return
            self.end_experience()
        self._plugin_experience = classes
        device = self.device
        for plugin in self.plugins:
            plugin.begin_experience(classes)
            plugin.look(samples)
            plugin.to(device).follow()

    def end_experience(self, samples: Samples | None = None) -> None:
        """Close the experience; does nothing when none is open.

        Until it is called the experience stays open: plug-ins that answer between experiences do not, what
        is made at an end (statistics of classes, frozen prompts) is not made, and a state that is saved has
        none of it.

        Args:
            samples: as in :meth:`begin_experience`, handed over again since a run that was resumed within an
                experience has not begun it.
        """
        is_open = self.is_open
        if is_open:
            for plugin in self.plugins:
                plugin.training_ended()
            self.finish_experience()
        # whether plug-ins alone were told is no state: after a resume, samples say that one was open
        resumed = self._plugin_experience is None and samples is not None and self.boundaries == "unused"
        if is_open or self._plugin_experience or resumed:
            for plugin in self.plugins:
                plugin.end_experience(samples)
        self._plugin_experience = []
        self.open.fill_(False)
        self.is_open = False

    def features(
        self, images: Tensor, cached: Cache | None = None, *, stem: Tensor | None = None, first: int = 0
    ) -> Tensor:
        """The unprompted features [B, D], without gradient; kept in ``cached`` under "features".

        Args:
            images: [B, 3, H, W].
            cached: read first, filled otherwise.
            stem: the stream that enters block ``first``, where the caller has it already.
        """
        if cached is not None and "features" in cached:
            return cached["features"]
        if stem is None:
            features = self.backbone.features(images)
        else:
            features = self.backbone.features(stem, start=first)
        if cached is not None:
            cached["features"] = features
        return features

    def query(self, images: Tensor, first: int, cached: Cache | None = None) -> tuple[Tensor, Tensor]:
        """The stream that enters block ``first`` [B, N, D] and the query [B, D], both without gradient.

        Blocks before the first prompted one are the same for query and prompted pass: they run once.
        """
        stem = self.backbone.stem(images, first)
        shared = stem if self.backbone.share_prefix else None
        return stem, self.query_of(images, cached, stem=shared, first=first)

    def query_of(
        self, images: Tensor, cached: Cache | None = None, *, stem: Tensor | None = None, first: int = 0
    ) -> Tensor:
        """The query [B, D]: :meth:`features`, in ``query_precision``; arguments as there."""
        if self.query_precision is None:
            return self.features(images, cached, stem=stem, first=first)
        key = f"{self.query_precision} query"  # not the features, which plug-ins read
        if cached is not None and key in cached:
            return cached[key]
        with self.in_query_precision():
            query = self.features(images, stem=stem, first=first)
        query = query.to(self.backbone.dtype)
        if cached is not None:
            cached[key] = query
        return query

    def in_query_precision(self) -> AbstractContextManager[Any]:
        """Around the pass that makes the query."""
        if self.query_precision is None:
            return nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)

    def ask_in(self, precision: QueryPrecision) -> None:
        """Compute queries, and nothing else, in another precision; approximate, for speed.

        Args:
            precision: "bf16" (autocast), or None for that of everything else.

        Raises:
            ConfigError: the method chooses no prompts by a query.
        """
        if precision is not None and not self.chooses_by_query:
            raise ConfigError(
                f"query_precision must be null: {type(self).__name__} chooses no prompts by a query"
            )
        self.query_precision = precision

    # ------------------------------------------------------------------ parameters and state

    def param_groups(self) -> list[dict[str, Any]]:
        """Optimizer groups: ``{"name", "params": {name: parameter}}`` and overrides such as ``lr``."""
        return [{"name": "all", "params": self.trainable()}]

    def trainable(self) -> dict[str, nn.Parameter]:
        """Trainable parameters by name; none of them is the backbone's."""
        return {
            name: p
            for name, p in self.named_parameters()
            if p.requires_grad and not name.startswith("backbone.")
        }

    def own_parameters(self) -> dict[str, nn.Parameter]:
        """The method's own parameters by name, without those of the backbone and of plug-ins."""
        others = tuple(f"{name}." for name in ("backbone", *(plugin.name for plugin in self.plugins)))
        return {name: p for name, p in self.named_parameters() if not name.startswith(others)}

    def method_state(self) -> dict[str, Tensor]:
        """The state dict without the backbone: all that a checkpoint needs."""
        return {k: v for k, v in self.state_dict().items() if not k.startswith("backbone.")}

    def state_size(self) -> int:
        """How many numbers the method stores beside the backbone, however many samples were seen."""
        return sum(value.numel() for value in self.method_state().values())

    def max_state_size(self, experiences: int) -> int | None:
        """The most that :meth:`state_size` can be after so many experiences, with the classes there are now.

        None for a method whose state does not depend on the data at all. Plug-ins count as they are now.
        """
        return None

    def state_bound(self, experiences: int) -> int | None:
        """:meth:`max_state_size` with the most that plug-ins can hold; None where no data decide."""
        bound = self.max_state_size(experiences)
        for plugin in self.plugins:
            most = plugin.max_state_size(experiences)
            if most is not None:
                bound = (self.state_size() if bound is None else bound) - plugin.state_size() + most
        return bound

    def resize_to(self, state: Mapping[str, Tensor]) -> None:
        """Grow to the shapes of a saved state; a method that adds parameters per experience extends this."""
        self._grow(range(state["seen"].shape[0]))

    def load_state_dict(  # type: ignore[override]
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """Load a state of any size; the backbone may be left out of it.

        Raises:
            ProtocolError: the state of other plug-ins than the model has, or of other arguments of theirs; a
                state that is not finite.
            RuntimeError: whatever else torch finds.
        """
        if strict:
            self._check_plugged(state_dict)
        self._plugin_experience = None
        with self._adopting():
            self.resize_to(state_dict)
            for plugin in self.plugins:
                prefix = f"{plugin.name}."
                state = {k.removeprefix(prefix): v for k, v in state_dict.items() if k.startswith(prefix)}
                plugin.resize_to(state)
                plugin.follow()
        broken = self.broken_in(state_dict)
        if broken is not None:
            raise ProtocolError(f"the state is of a training that diverged, and is not loaded: {broken}")
        backbone = {k: v for k, v in self.state_dict().items() if k.startswith("backbone.")}
        result = super().load_state_dict({**backbone, **state_dict}, strict=strict, assign=assign)
        self._mirror()
        self._restage()
        return result

    def broken_in(self, state: Mapping[str, Any]) -> str | None:
        """The first tensor of a state of the method that is not finite, and what it holds; None for none.

        Infinity may be meant in a buffer, nan only where the method says so.

        Args:
            state: by name; what is the backbone's is passed over.
        """
        parameters = {name for name, _ in self.named_parameters()}
        for name, value in state.items():
            if name.startswith("backbone.") or name in self.unknown_as_nan or not isinstance(value, Tensor):
                continue
            wrong = ~value.isfinite() if name in parameters else value.isnan()
            if bool(wrong.any()):
                return f"{name} holds {float(value.detach()[wrong][0])}"
        return None

    def _check_plugged(self, state: Mapping[str, Any]) -> None:
        """Refuse a state that lacks what a plug-in stores, or holds parts that the model does not have."""
        parts = {name.split(".")[0] for name in state if "." in name} - {"backbone"}
        for plugin in self.plugins:
            if plugin.state_dict() and plugin.name not in parts:
                raise ProtocolError(f"the state holds nothing of {plugin.name}, which is plugged in here")
        known = {name for name, _ in self.named_children()}
        other = sorted(parts - known)
        if other:
            raise ProtocolError(
                f"the state holds {', '.join(other)}, which this {type(self).__name__} does not have: "
                "a plug-in is missing, or it is of another method"
            )

    def _mirror(self) -> None:
        """Bring the plain values in line with the buffers, which waits for a device."""
        self.is_open = bool(self.open)
        self.experience_index = int(self.experience)
        self.seen_classes = set(self.seen.nonzero().flatten().tolist())
        self.current_classes = self.current.nonzero().flatten().tolist()

    def _restage(self) -> None:
        own = self.own_parameters()
        for name in self._held & own.keys():  # a state from before training ended may have been loaded
            own[name].requires_grad_(True)
        self._held.clear()
        self._forget_compiled()
        self.set_stage()
        self._hold()
        for plugin in self.plugins:
            plugin.follow()

    def _forget_compiled(self) -> None:
        """What was compiled before the model grew would only count towards torch's limit of versions."""
        if self._compiled is not None:
            torch._dynamo.reset()

    def _hold(self) -> None:
        """Freeze the method's own parameters where training is over."""
        if self.stopped:
            for name, parameter in self.own_parameters().items():
                if parameter.requires_grad:
                    self._held.add(name)
                    parameter.requires_grad_(False)

    def _grow(self, classes: Iterable[int]) -> bool:
        needed = max(classes, default=-1) + 1
        missing = needed - self.num_classes
        if missing <= 0:
            return False
        for buffer in (self.seen, self.current):
            grow_rows(buffer, torch.zeros(missing, dtype=torch.bool))
        with self._adopting():
            if self.head is not None:
                self.head.grow(needed)
            self.grow_classes(needed)
            for plugin in self.plugins:
                plugin.grow_classes(needed)
        self._hold()
        self._forget_compiled()
        return True


def check_disjoint(classes: Sequence[Sequence[int]], method: str) -> None:
    """Refuse a stream in which a class comes again.

    Args:
        classes: of each experience.
        method: whose experiences must not overlap, as it calls itself.

    Raises:
        ConfigError: naming the class and its experiences, counted from 1.
    """
    home: dict[int, int] = {}
    for number, group in enumerate(classes, start=1):
        for label in group:
            if label in home:
                raise ConfigError(
                    f"class {label} is in the experiences {home[label]} and {number}; "
                    f"{method} needs class lists that do not overlap"
                )
        home.update(dict.fromkeys(group, number))


def has_trained_head(method: type[PromptModel]) -> bool:
    """Whether a method trains by gradient, on what it receives alone."""
    return method.trains and method.rehearsal_free


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode, for a while."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


class Glimpse(Protocol):
    """Evaluation images of seen classes to look at: all evenly spaced, or a few of each class group."""

    def __call__(self) -> Iterable[Tensor]:
        """Streams them in batches [B, 3, H, W]."""

    def groups(self, count: int) -> list[Tensor]:
        """At most ``count`` images [n, 3, H, W] of each class group that was met, always the same ones."""
        ...
