"""PromptStrategy: any registered PromptModel as an Avalanche strategy.

Nobody writes these classes: ``clprompt.strategies.DualPrompt`` is made from ``DualPromptModel`` when it is
first asked for. The steps are the engine's: scripts, command line and ``clprompt.fit`` give the same bits.
"""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from clprompt import schema
from clprompt.avalanche.layers import has_evaluation_transform, varies
from clprompt.avalanche.plugins import (
    check_added,
    check_data,
    check_grown,
    check_metric,
    check_plugins,
    follow_groups,
    forget_smaller,
    keep_copies,
)
from clprompt.avalanche.unseen import evaluation_loss, rank_last
from clprompt.data.loading import numbered, sample_stream, training_batches
from clprompt.errors import ConfigError, ProtocolError, nearest
from clprompt.prompting.build import construct, serving
from clprompt.prompting.model import Cache, PromptModel, Step
from clprompt.prompting.plugin import Plugin, Samples
from clprompt.schema import at_least
from clprompt.targets import is_label_sets, visible
from clprompt.training import optim
from clprompt.training.compiling import compile_where_asked
from clprompt.training.finite import FiniteWatch, check_logits, check_state
from clprompt.training.kept import CleanQueries, Keeping, check_clean_query, keeping
from clprompt.training.mixing import check_mixing, soften
from clprompt.training.precision import autocast, gradient_scaler
from clprompt.training.processes import refuse_several
from clprompt.training.settings import Training, takes_training
from clprompt.training.steps import begin, receive, train_step_loss

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", message=".*QP solver.*")
    from avalanche.benchmarks.scenarios import NCExperience
    from avalanche.benchmarks.utils import concat_datasets
    from avalanche.training.plugins.evaluation import default_evaluator
    from avalanche.training.templates import SupervisedTemplate


_COMING_AND_GOING = "parameters come and go with the experiences"


class PromptStrategy(SupervisedTemplate):
    """An Avalanche strategy around a PromptModel.

    Args:
        model: any PromptModel. The strategies of registered models (``clprompt.strategies.DualPrompt``) take
            ``backbone`` and the model's own arguments in its place.
        seed: data order and augmentation (and the model's initial values, where it is made here).
        training: how the model is trained.
        precision: "float32" or "bf16".
        device: where the model is trained.
        plugins: Avalanche's, and ours, which are plugged into the model.
        evaluator: Avalanche's.
        eval_every: Avalanche's.
        peval_mode: Avalanche's: whether ``eval_every`` counts epochs or iterations.
        **fields: of :class:`clprompt.training.settings.Training` (``lr``, ``train_mb_size``, ...), in place
            of those that ``training`` has.

    Raises:
        ConfigError: a setting out of range, or a plugin of Avalanche that has no meaning beside the model.
        ProtocolError: a stream without boundaries for a model that needs them.
    """

    #: what is said of Avalanche's arguments that the strategy does not take
    argument_answers: ClassVar[Mapping[str, str]] = {
        "criterion": "criterion is refused: a method has its own loss; a loss term of yours is a plug-in's",
    }

    @takes_training(but=("checkpoint_every", "log_every"))  # Avalanche's plugins save, its loggers log
    def __init__(
        self,
        *,
        model: PromptModel,
        seed: int = 0,
        training: Training | None = None,
        precision: Literal["float32", "bf16"] = "float32",
        device: str | torch.device = "cpu",
        plugins: Sequence[Any] | None = None,
        evaluator: Any = default_evaluator,
        eval_every: int = -1,
        peval_mode: Literal["epoch", "iteration"] = "epoch",
        **fields: Any,
    ) -> None:
        if isinstance(fields.get("optimizer"), torch.optim.Optimizer):
            kind = type(fields["optimizer"]).__name__
            raise ConfigError(f"optimizer must be a name, as {_COMING_AND_GOING}; got {kind}")
        refuse_several("an Avalanche strategy")
        settings = replace(training or Training(), **fields)
        self.training_settings = settings
        self.seed = seed
        self.precision = precision
        self._step: Step | None = None
        self._observed: Tensor | None = None  # the labels that the model was told of last
        self._arrived: list[Any] = []  # the data sets so far, for a model that revisits them
        self._loading: dict[str, Any] = {}  # the arguments of train() that say how data is loaded
        self._iterates = False  # whether epochs are iterations over what has been received
        self._kept: Keeping | CleanQueries | None = None  # what the epochs of an experience keep
        self._moves: dict[int, bool] = {}
        self._shown: _Shown | None = None  # the batch as the loader gave it
        ours = [plugin for plugin in plugins or () if isinstance(plugin, Plugin)]
        for plugin in ours:
            model.plug(plugin)
        check_mixing(model, self.training_settings, told=True)
        check_clean_query(model, self.training_settings, online=False)
        model.check_epochs(settings.train_epochs)
        model = model.to(device)
        compile_where_asked(model, settings)
        if gradient_scaler(model.device, precision) is not None:
            raise ConfigError(
                f"precision={precision} scales gradients, which Avalanche's loop does not do; use bf16"
            )
        self.watch = FiniteWatch(model)
        super().__init__(
            model=model,
            optimizer=_optimizer(model, settings),
            criterion=torch.nn.CrossEntropyLoss(),
            train_mb_size=settings.train_mb_size,
            train_epochs=settings.train_epochs,
            eval_mb_size=settings.eval_mb_size,
            device=device,
            plugins=None if plugins is None else [plugin for plugin in plugins if plugin not in ours],
            evaluator=evaluator,
            eval_every=eval_every,
            peval_mode=peval_mode,
        )
        check_plugins(self)

    # ------------------------------------------------------------------ what Avalanche's callers name

    def train(self, experiences: Any, eval_streams: Any = None, **kwargs: Any) -> dict[str, Any]:
        """Train on one experience or several, one after the other.

        Args:
            experiences: one of an Avalanche stream, or several.
            eval_streams: evaluated during training, see ``eval_every``; the training data if None.
            **kwargs: ``num_workers``, ``shuffle``, ``drop_last``, ``pin_memory`` of the loader (the order is
                a function of the seed, however many workers there are); ``reset_optimizer_state``. Plugins of
                your own get them, too, and any others.

        Returns:
            The last value of each metric of the evaluator.

        Raises:
            ConfigError: an argument that nobody takes or a value out of range; a plugin without a meaning.
        """
        check_plugins(self)
        self._loading = _check_loading("train", _training_loader, kwargs, self.plugins)
        try:
            return super().train(experiences, eval_streams, **kwargs)
        finally:
            self._kept = self._shown = None

    def eval(self, exp_list: Any, **kwargs: Any) -> dict[str, Any]:
        """Evaluate on one experience or several.

        Args:
            exp_list: one of an Avalanche stream, or several.
            **kwargs: ``num_workers``, ``shuffle``, ``pin_memory``, ``persistent_workers`` of the loader.

        Returns:
            The last value of each metric of the evaluator.

        Raises:
            ConfigError: an argument that nobody takes, or a value out of range.
        """
        if not self.is_training:  # within train() they are those of train()
            _check_loading("eval", _evaluation_loader, kwargs, self.plugins)
        return super().eval(exp_list, **kwargs)

    # ------------------------------------------------------------------ before an experience

    def train_dataset_adaptation(self, **kwargs: Any) -> None:
        """The experience's data; all data so far for a model that revisits them."""
        super().train_dataset_adaptation(**kwargs)
        self.adapted_dataset = self._own_data().train()
        if self.model.revisits != "never":
            self._arrived.append(self._own_data())
            self.adapted_dataset = concat_datasets(self._arrived).train()

    def _own_data(self) -> Any:
        """The experience's data; that of Avalanche's ``nc_benchmark`` sorted by class, like our split stream.

        It comes class by class in the order of a Python set; the bits of a run should not hang on that.
        """
        dataset = self.experience.dataset
        if not isinstance(self.experience, NCExperience):
            return dataset
        return dataset.subset(torch.as_tensor(list(dataset.targets)).argsort(stable=True).tolist())

    def _skipped(self) -> bool:
        """Whether the model trains only after the last experience, and this is an earlier one."""
        if self.model.revisits != "last":
            return False
        try:
            experiences = len(self.experience.origin_stream)
        except TypeError:  # a stream that is made while it is read
            method, kind = type(self.model).__name__, type(self.experience).__name__
            raise ProtocolError(
                f"{method} needs to know which experience is the last, which {kind}'s stream does not tell"
            ) from None
        return self.experience.current_experience + 1 < experiences

    def _train_exp(self, experience: Any, eval_streams: Any = None, **kwargs: Any) -> None:
        if not self._skipped():
            super()._train_exp(experience, eval_streams, **kwargs)

    def make_train_dataloader(self, **kwargs: Any) -> None:
        """The engine's own order; Avalanche's loader shuffles differently for benchmarks with task labels."""
        self.dataloader = _EpochLoader(self, **self._loading)
        if self.model.revisits == "never" and vars(self.experience).get("is_ordered"):
            self.dataloader.arguments["shuffle"] = False  # a stream of ours that has an order of its own
        if not len(self.dataloader):
            raise ConfigError(
                f"drop_last=True leaves nothing of an experience of {len(self.adapted_dataset)} images: "
                f"train_mb_size is {self.train_mb_size}"
            )
        self._kept = self._keeping()

    def _keeping(self) -> Keeping | CleanQueries | None:
        """What the epochs over an experience's samples keep; dropped with the experience, and never saved."""
        data, classes = self.adapted_dataset, self._classes()
        if self.training_settings.clean_query:
            if classes is None:
                check_clean_query(self.model, self.training_settings, online=True)
            if varies(data) and not has_evaluation_transform(data):
                raise ConfigError(
                    "clean_query=True needs data that evaluation shows otherwise than training: "
                    'transform_groups with "train" and "eval"'
                )
        return keeping(
            self.model,
            self.training_settings,
            lambda: self._samples(classes),
            count=len(data),
            epochs=self.train_epochs,
            is_random=varies(data),
            precision=self.precision,
            moves=self._moves,
        )

    def check_model_and_optimizer(self, **kwargs: Any) -> None:
        """Begin the experience, with a fresh optimizer where the method asks for one."""
        for plugin in self.plugins:
            check_data(plugin, self.experience.dataset)
        if self._skipped():
            return
        names = vars(self.experience).get("class_names")
        if names is not None:
            self.model.name_classes(names)
        # asked without reading it: an experience without classes is a received batch; epochs iterate on it
        self._iterates = "classes_in_this_experience" not in dir(self.experience)
        classes = self._classes()
        if classes is None:
            self.model.check_online()
        if classes is None and self.model.boundaries == "required":
            raise ProtocolError(
                f"{type(self.model).__name__} needs to know the classes of an experience, which "
                f"{type(self.experience).__name__} does not tell"
            )
        begun = classes is not None and begin(self.model, classes, self._samples(classes))
        if self.model.trains:
            resets = begun and self.model.optimizer_reset == "experience"
            self._follow(resets or kwargs.get("reset_optimizer_state", False))

    def _follow(self, resets: bool) -> None:
        """Bring the optimizer in line with the parameters; without its moments where it is reset.

        It stays the same object, with the rates that it has: a scheduler holds on to both.
        """
        groups = self.optimizer.param_groups
        if any("names" not in group for group in groups):
            raise ConfigError(
                f"strategy.optimizer was replaced, but {_COMING_AND_GOING}; give a name, lr and weight_decay"
            )
        if resets:
            self.optimizer.state.clear()
        optim.sync(self.optimizer, self.model)
        if resets:  # the order that a new optimizer would have
            order = [group["name"] for group in self.model.param_groups()]
            groups.sort(key=lambda group: order.index(group["group"]))
        for plugin in self.plugins:
            check_added(plugin, self.model)
            follow_groups(plugin, self)

    def _classes(self) -> Any:
        """The classes that the experience trains on; None where it does not tell, or nobody wants to know."""
        if not self.model.wants_experiences():
            return None
        which = "in_this_experience" if self.model.revisits == "never" else "seen_so_far"
        return getattr(self.experience, f"classes_{which}", None)

    def _samples(self, classes: Iterable[int]) -> Samples:
        """Streams what the experience trains on, with visible labels, under the evaluation transform."""
        shown = sorted(int(c) for c in classes)

        def samples() -> Iterator[tuple[Tensor, Tensor]]:
            data = self._own_data() if self.model.revisits == "never" else concat_datasets(self._arrived)
            for images, targets in sample_stream(
                data.eval(), self.eval_mb_size, self.training_settings.workers
            ):
                yield self.model.placed(images), visible(targets.to(self.device), shown)

        return samples

    def model_adaptation(self, model: Any = None) -> Any:
        """Nothing to adapt: a model grows when it observes labels, never in evaluation."""
        return (self.model if model is None else model).to(self.device)

    def _receive(self) -> None:
        """Tell the model of the labels that have arrived, unless it was told of them."""
        if self.mb_y is self._observed or (self._iterates and self.clock.train_exp_epochs > 0):
            return
        self._observed = self.mb_y
        receive(self.model, self.optimizer if self.model.trains else None, self.mb_y)
        for plugin in self.plugins:
            check_grown(plugin, self.model)

    def _before_training_iteration(self, **kwargs: Any) -> None:
        self._receive()  # before plugins measure the parameters, which may grow
        for plugin in self.plugins:
            forget_smaller(plugin, self.model)
        super()._before_training_iteration(**kwargs)
        for plugin in self.plugins:
            keep_copies(plugin)

    def _before_training_exp(self, **kwargs: Any) -> None:
        super()._before_training_exp(**kwargs)
        for plugin in self.plugins:
            keep_copies(plugin)

    def _before_training_epoch(self, **kwargs: Any) -> None:
        self.model.start_epoch(self.clock.train_exp_epochs, self.train_epochs)
        for plugin in self.plugins:
            if self.clock.train_exp_epochs > 0:
                check_metric(plugin, self, self.evaluator.get_last_metrics())
            forget_smaller(plugin, self.model)
        super()._before_training_epoch(**kwargs)

    def _before_eval(self, **kwargs: Any) -> None:
        self.watch.check()
        check_state(self.model, "no evaluation is recorded")
        super()._before_eval(**kwargs)

    # ------------------------------------------------------------------ an iteration

    def _unpack_minibatch(self) -> None:
        super()._unpack_minibatch()
        rows = getattr(self.dataloader, "rows", None)  # None of a loader that a plugin has put there
        if self.is_training and rows is not None:
            self._shown = _Shown(self.mb_x, self.mb_x._version, rows)

    def _rows(self) -> Sequence[int] | None:
        """The samples of the batch; None where a plugin has put other images in their place."""
        shown = self._shown
        if self._kept is None or shown is None or shown.images is not self.mb_x:
            return None
        return shown.rows if shown.version == self.mb_x._version else None

    def forward(self) -> Tensor:
        """Logits of the current batch; in training they come with the method's loss."""
        if not self.is_training:
            with autocast(self.device, self.precision):
                logits = self.model(self.model.placed(self.mb_x))
            check_logits(self.model, logits, self.mb_x, lambda row: f"image {row + 1} of an evaluation batch")
            return (
                logits if is_label_sets(self.mb_y) else rank_last(logits, self.mb_y, self.model.predictable())
            )
        self._receive()
        self.watch.check()
        settings = self.training_settings
        if self.model.trains and settings.moves_rate:
            at, steps, epochs = self._progress()
            optim.set_learning_rate(
                self.optimizer, settings.schedule, at, steps, settings.warmup, epochs=epochs
            )
        where = (self.clock.train_exp_counter, self.clock.train_exp_iterations, 0)
        images, soft = soften(
            self.model.placed(self.mb_x),
            self.mb_y,
            self.training_settings,
            self.model.num_classes,
            self.seed,
            *where,
        )
        rows, kept = self._rows(), self._kept
        cached: Cache | None = None if kept is None or rows is None else kept.cache(rows)
        with self.watch.step(self.mb_x, *self._place()):
            self._step = train_step_loss(self.model, images, self.mb_y, self.precision, soft, cached)
        if kept is not None and rows is not None:
            kept.add(self.mb_x, rows, cached)
        self.watch.note(self._step, self.mb_x, *self._place())
        return self._step.logits

    def _place(self) -> tuple[int, int]:
        """The number of this step and of its experience, both from 1."""
        return self.clock.train_iterations + 1, self.clock.train_exp_counter + 1

    def _progress(self) -> tuple[int, int, int]:
        """Which step of how many in how many epochs of the experience this is: the schedule follows it."""
        epochs = self.train_epochs
        return self.clock.train_exp_iterations, epochs * len(self.dataloader), epochs  # type: ignore[arg-type]

    def criterion(self) -> Tensor:
        """The method's loss in training; in evaluation the cross-entropy, see :func:`evaluation_loss`."""
        if not self.is_training:
            return evaluation_loss(self.mb_output, self.mb_y, self.model.predictable())
        assert self._step is not None
        if self.model.trains and not self.model.stopped:
            return self._step.loss
        return evaluation_loss(
            self._step.logits, self.mb_y, self.model.predictable()
        )  # nothing descends it; 0 would look good

    def backward(self) -> None:
        """Backward, where there is anything to train."""
        if self.loss.requires_grad:
            super().backward()

    def optimizer_step(self) -> None:
        """Clip and step, where there is anything to train."""
        if self.model.trains:
            optim.clip(self.optimizer, self.training_settings.clip_grad)
            with optim.in_range(self.optimizer):
                super().optimizer_step()

    def _train_cleanup(self) -> None:
        super()._train_cleanup()
        self._step = self._observed = None  # a step holds its graph, which cannot be copied

    def _after_training_exp(self, **kwargs: Any) -> None:
        self.watch.check_state()
        classes = self._classes()
        # before plugins copy or measure the model
        with autocast(self.device, self.precision):  # plug-ins look at features as they are deployed
            self.model.end_experience(None if classes is None else self._samples(classes))
        self._kept = self._shown = None
        super()._after_training_exp(**kwargs)


class _Shown(NamedTuple):
    """A training batch as the loader gave it: its images, how often they were written to, their samples."""

    images: Tensor
    version: int
    rows: Sequence[int]


class _EpochLoader:
    """The batches of the epoch that the strategy's clock shows."""

    def __init__(
        self,
        strategy: PromptStrategy,
        *,
        num_workers: int | None = None,
        shuffle: bool = True,
        drop_last: bool = False,
        pin_memory: bool | None = None,
    ) -> None:
        self.strategy = strategy
        self.dataset = strategy.adapted_dataset
        self.drop_last = drop_last
        self.rows: Sequence[int] | None = None  # the samples of the last batch
        self.arguments: dict[str, Any] = {
            "shuffle": shuffle,
            "drop_last": drop_last,
            "pin_memory": bool(pin_memory),
            "workers": strategy.training_settings.workers if num_workers is None else num_workers,
        }

    def __len__(self) -> int:
        whole, rest = divmod(len(self.dataset), self.strategy.train_mb_size)
        return whole + (rest > 0 and not self.drop_last)

    def __iter__(self) -> Iterator[Any]:
        strategy = self.strategy
        loader = training_batches(
            self.dataset,
            seed=strategy.seed,
            experience=strategy.clock.train_exp_counter,
            epoch=strategy.clock.train_exp_epochs,
            batch_size=strategy.train_mb_size,
            **self.arguments,
        )
        for self.rows, batch in numbered(loader):
            yield batch


@schema.checked
def _training_loader(
    *,
    num_workers: Annotated[int, at_least(0)] | None = None,
    shuffle: bool = True,
    drop_last: bool = False,
    pin_memory: bool | None = None,
    persistent_workers: bool = False,
    reset_optimizer_state: bool = False,
) -> dict[str, Any]:
    """What :class:`_EpochLoader` is told of the arguments of train()."""
    if persistent_workers:
        raise ConfigError(
            "persistent_workers must be false: an epoch's workers draw its augmentation, so each has its own"
        )
    return {
        "num_workers": num_workers,
        "shuffle": shuffle,
        "drop_last": drop_last,
        "pin_memory": pin_memory,
    }


@schema.checked
def _evaluation_loader(
    *,
    num_workers: Annotated[int, at_least(0)] = 0,
    shuffle: bool = False,
    pin_memory: bool | None = None,
    persistent_workers: bool = False,
) -> dict[str, Any]:
    """Avalanche's own evaluation loader takes these."""
    return {}


def _check_loading(
    name: str, loader: Callable[..., dict[str, Any]], arguments: Mapping[str, Any], plugins: Iterable[Any]
) -> dict[str, Any]:
    """What a loader is told; what it does not know is for plugins of a user's own, or refused.

    Raises:
        ConfigError: an argument that nobody takes, or a value that its loader does not.
    """
    known = inspect.signature(loader).parameters
    unknown = [key for key in arguments if key not in known]
    foreign = [p for p in plugins if not type(p).__module__.startswith(("avalanche.", "clprompt."))]
    if unknown and not foreign:
        raise ConfigError(f"{name}() takes no argument {unknown[0]}{nearest(unknown[0], known)}")
    return loader(**{key: value for key, value in arguments.items() if key in known})


def _optimizer(model: PromptModel, training: Training) -> torch.optim.Optimizer:
    """The engine's optimizer; Avalanche wants one even where nothing is trained."""
    optimizer = optim.build(model, training, empty=True)
    assert optimizer is not None
    return optimizer


@functools.cache
def make_strategy(model_class: type[PromptModel]) -> type[PromptStrategy]:
    """The Avalanche strategy of a model class: ``DualPromptModel`` -> ``DualPrompt``."""
    name = model_class.__name__.removesuffix("Model")
    takers: list[Callable[..., Any]] = [model_class, *(short.target for short in serving(model_class))]
    signatures = [inspect.signature(taker) for taker in takers]
    parameters = {n: p for signature in signatures for n, p in signature.parameters.items() if n != "seed"}

    def __init__(self: PromptStrategy, **arguments: Any) -> None:
        if "model" in arguments:
            raise ConfigError(
                f"{name} makes its own model on a backbone (a FrozenViT); "
                "clprompt.avalanche.PromptStrategy(model=...) takes one of yours"
            )
        if "backbone" not in arguments:
            raise ConfigError(f"{name} needs a backbone (a FrozenViT)")
        model_arguments = {key: arguments.pop(key) for key in parameters if key in arguments}
        backbone = model_arguments.pop("backbone")
        model = construct(model_class, backbone, seed=arguments.get("seed", 0), **model_arguments)
        PromptStrategy.__init__(self, model=model, **arguments)

    # Avalanche checks argument names against the signature of __init__, and so does whoever asks for help
    common = [p for n, p in inspect.signature(PromptStrategy.__init__).parameters.items() if n != "model"]
    __init__.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [*common, *(p.replace(kind=p.KEYWORD_ONLY) for p in parameters.values())]
    )
    document = f"{name} as an Avalanche strategy; the method: :class:`{model_class.__name__}`.\n\n"
    made = type(
        name,
        (PromptStrategy,),
        {
            "__init__": __init__,
            "__module__": "clprompt.strategies",
            "__doc__": document + (PromptStrategy.__doc__ or ""),
        },
    )
    made.__init__ = _answering(made.__init__, PromptStrategy, model_class)  # type: ignore[method-assign, misc]
    return made


def _answering(constructor: Callable[..., None], *classes: type) -> Callable[..., None]:
    """The constructor behind a look at what strategy and model refuse or call otherwise by now.

    Avalanche, which has wrapped the constructor, would refuse such a name without a reason.
    """
    answers = {name: line for owner in classes for name, line in schema.argument_answers(owner).items()}
    parameters = inspect.signature(constructor).parameters

    @functools.wraps(constructor)
    def __init__(self: PromptStrategy, *positional: Any, **named: Any) -> None:
        for key in named:
            if key in answers and key not in parameters:
                raise ConfigError(answers[key])
        constructor(self, *positional, **named)

    return __init__


PromptStrategy.__init__ = _answering(PromptStrategy.__init__, PromptStrategy)  # type: ignore[method-assign]
