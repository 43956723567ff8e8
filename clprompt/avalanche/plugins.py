"""Which of Avalanche's plugins have a meaning beside a prompt model: those act, the others are refused.

A plugin of a user's own is let through; one that inherits from Avalanche's follows the rules of its base.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from torch.optim import Optimizer

from clprompt.errors import ConfigError, nearest
from clprompt.prompting.model import PromptModel
from clprompt.prompting.plugin import overrides
from clprompt.training.settings import Training

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", message=".*QP solver.*")
    import qpsolvers
    from avalanche.training import plugins as avalanche_plugins
    from avalanche.training.plugins.clock import Clock
    from avalanche.training.templates.base_sgd import PeriodicEval


class Strategy(Protocol):
    """What is asked of a strategy; :class:`clprompt.avalanche.strategy.PromptStrategy` is one."""

    model: PromptModel
    plugins: list[Any]
    optimizer: Optimizer
    training_settings: Training


#: Asked of a plugin and the strategy: why the one has no meaning beside the other; "" where it has.
Reason = Callable[[Any, Strategy], str]


def check_plugins(strategy: Strategy) -> None:
    """Refuse a plugin that would do nothing, or something wrong, beside the strategy's model.

    Raises:
        ConfigError: naming the plugin, the model and the reason.
    """
    for plugin in strategy.plugins:
        hooks = [name for name in dir(plugin) if name.startswith(("before_", "after_"))]
        if isinstance(plugin, type) or not hooks:
            raise ConfigError(f"plugins must hold plugins of Avalanche or clprompt, got {plugin!r}")
        why = next((why for reason in _reasons(plugin) if (why := reason(plugin, strategy))), "")
        if why:
            raise _refusal(plugin, strategy.model, why)


def check_data(plugin: Any, dataset: Any) -> None:
    """Refuse data without the labels that a plugin reads.

    Raises:
        ConfigError: naming the plugin and what the data set lacks.
    """
    for name, kinds in _READS.items():
        if isinstance(plugin, kinds) and not hasattr(dataset, name):
            raise ConfigError(
                f"{type(plugin).__name__} is refused: it reads {name} of each experience's data set, "
                "which this stream's have not"
            )


def check_metric(plugin: Any, strategy: Strategy, names: Iterable[str]) -> None:
    """Refuse early stopping on a metric that was not computed although an epoch has passed.

    Raises:
        ConfigError: naming the metric and the nearest that there is.
    """
    if not isinstance(plugin, avalanche_plugins.EarlyStoppingPlugin):
        return
    shown = [name for name in names if "/eval_phase/" in name]
    if not any(name.startswith(plugin.metric_key) for name in shown):
        close = nearest(plugin.metric_key, (name.split("/Task")[0] for name in shown))
        why = f"no evaluation gives the metric {plugin.metric_key}{close}"
        raise _refusal(plugin, strategy.model, why)


def check_added(plugin: Any, model: PromptModel) -> None:
    """Refuse a plugin that does not follow parameters which an experience has added, before it fails on them.

    Raises:
        ConfigError: naming the plugin, the model and a parameter.
    """
    added = ""
    if isinstance(plugin, avalanche_plugins.RWalkPlugin):
        added = next((name for name in model.trainable() if name not in plugin.checkpoint_loss), "")
    elif isinstance(plugin, avalanche_plugins.EWCPlugin) and plugin.mode == "online" and plugin.importances:
        former = plugin.importances[max(plugin.importances)]
        names = [name for name, _ in model.named_parameters()][: len(former)]
        added = next((name for name, old in zip(names, former, strict=False) if name != old), "")
    if added:
        raise _refusal(
            plugin, model, f"an experience adds parameters between others ({added}), which it does not follow"
        )


def forget_smaller(plugin: Any, model: PromptModel) -> None:
    """Let early stopping start from here where what it kept is of a time before the model grew.

    A model without boundaries grows when a batch is received: a state of before does not fit it any more.
    """
    kept = plugin.best_state if isinstance(plugin, avalanche_plugins.EarlyStoppingPlugin) else None
    if kept is not None and kept["seen"].shape != model.seen.shape:
        plugin.best_state = plugin.best_val = plugin.best_step = None


def check_grown(plugin: Any, model: PromptModel) -> None:
    """Refuse a plugin that does not follow parameters which a batch has let grow, before it fails on them.

    Raises:
        ConfigError: naming the plugin, the model and a parameter.
    """
    if not isinstance(plugin, avalanche_plugins.SynapticIntelligencePlugin):
        return
    taken = plugin.syn_data["old_theta"]
    for name, parameter in model.trainable().items():
        if name not in taken or taken[name].data.numel() != parameter.numel():
            raise _refusal(plugin, model, f"{name} grows within an experience, which it does not follow")


def keep_copies(plugin: Any) -> None:
    """Let synaptic intelligence keep the weights that it has taken, as it does where they come from a GPU.

    On the CPU Avalanche's plugin holds views of the parameters themselves: what it remembers moves with them,
    every path is 0 and so is every penalty.
    """
    if isinstance(plugin, avalanche_plugins.SynapticIntelligencePlugin):
        for kept in (plugin.syn_data["old_theta"], plugin.ewc_data[0]):
            for values in kept.values():
                values.data = values.data.clone()


def follow_groups(plugin: Any, strategy: Strategy) -> None:
    """Let a scheduler follow an optimizer that has got further groups of parameters."""
    if not isinstance(plugin, avalanche_plugins.LRSchedulerPlugin):
        return
    scheduler, groups = plugin.scheduler, strategy.optimizer.param_groups
    for values in vars(scheduler).values():  # base_lrs, lr_lambdas, min_lrs, ...: one entry a group
        if isinstance(values, list) and 0 < len(values) < len(groups):
            values.extend([values[-1]] * (len(groups) - len(values)))
    scheduler.base_lrs = [group["initial_lr"] for group in groups]


def _refusal(plugin: Any, model: PromptModel, why: str) -> ConfigError:
    return ConfigError(f"{type(plugin).__name__} is refused beside {type(model).__name__}: {why}")


# ------------------------------------------------------------------------------------------- reasons


def _reasons(plugin: Any) -> list[Reason]:
    reasons = [reason for kinds, reason in _RULES if isinstance(plugin, kinds)]
    if not reasons and type(plugin).__module__.startswith("avalanche."):
        return [lambda *_: "it is made for models and loops of another kind"]
    return reasons


def _untrained(_: Any, strategy: Strategy) -> str:
    return "" if strategy.model.trains else "nothing is trained by gradient"


def _revisiting(_: Any, strategy: Strategy) -> str:
    return "" if strategy.model.revisits == "never" else "it trains on all images so far and forgets none"


def _counting(_: Any, strategy: Strategy) -> str:
    model = strategy.model
    if type(model).received is not PromptModel.received:
        return "it counts what is received, and images from a memory come again"
    counting = [plugin.name for plugin in model.plugins if overrides(plugin, "received")]
    if counting:
        return f"{counting[0]} counts what is received, and images from a memory come again"
    return ""


def _answering(_: Any, strategy: Strategy) -> str:
    if not strategy.model.answer_is_trained:
        return "it answers after an experience without a gradient"
    answering = [plugin.name for plugin in strategy.model.plugins if overrides(plugin, "logits")]
    return f"{answering[0]} answers after an experience, without a gradient" if answering else ""


def _unsolvable(_: Any, strategy: Strategy) -> str:
    if "quadprog" in qpsolvers.available_solvers:
        return ""
    return "its solver is missing; pip install quadprog"


def _unevaluated(plugin: Any, strategy: Strategy) -> str:
    if isinstance(plugin, avalanche_plugins.LRSchedulerPlugin) and plugin.metric != "val_loss":
        return ""
    periodic = next((other for other in strategy.plugins if isinstance(other, PeriodicEval)), None)
    if periodic is None:
        return "it follows evaluations in training, and the plugin that makes them was removed"
    if periodic.eval_every < 1:
        return f"it follows evaluations in training; eval_every must be at least 1, got {periodic.eval_every}"
    mode = getattr(plugin, "peval_mode", periodic.peval_mode)
    if mode != periodic.peval_mode:
        return f"its peval_mode is {mode}, the strategy's {periodic.peval_mode}; give both the same"
    return ""


def _scheduled(plugin: Any, strategy: Strategy) -> str:
    settings = strategy.training_settings
    if settings.moves_rate:
        return (
            f"schedule={settings.schedule} and warmup={settings.warmup} set the learning rate of each step "
            "already; leave them at constant and 0"
        )
    if plugin.scheduler.optimizer is not strategy.optimizer:
        return (
            "its scheduler drives another optimizer; make it for strategy.optimizer and append the plugin to "
            "strategy.plugins"
        )
    return ""


def _always(why: str) -> Reason:
    return lambda *_: why


#: By kinds of plugins, why they may be refused; one of Avalanche's that is of none of these kinds is.
_RULES: list[tuple[tuple[type, ...], Reason]] = [
    ((avalanche_plugins.EvaluationPlugin, PeriodicEval, Clock), _always("")),
    *(
        (
            (
                avalanche_plugins.EWCPlugin,
                avalanche_plugins.LwFPlugin,
                avalanche_plugins.SynapticIntelligencePlugin,
                avalanche_plugins.RWalkPlugin,
                avalanche_plugins.GEMPlugin,
                avalanche_plugins.AGEMPlugin,
            ),
            reason,
        )
        for reason in (_untrained, _revisiting)
    ),
    ((avalanche_plugins.EWCPlugin,), _answering),
    ((avalanche_plugins.GEMPlugin,), _unsolvable),
    ((avalanche_plugins.ReplayPlugin,), _revisiting),
    ((avalanche_plugins.ReplayPlugin,), _counting),
    ((avalanche_plugins.EarlyStoppingPlugin, avalanche_plugins.LRSchedulerPlugin), _unevaluated),
    ((avalanche_plugins.LRSchedulerPlugin,), _untrained),
    ((avalanche_plugins.LRSchedulerPlugin,), _scheduled),
    (
        (avalanche_plugins.GDumbPlugin,),
        _always("it puts another model in the strategy's place, which the optimizer does not follow"),
    ),
    (
        (avalanche_plugins.MASPlugin,),
        _always("its importances are norms of logits, which are -inf for classes never seen"),
    ),
    (
        (avalanche_plugins.FromScratchTrainingPlugin,),
        _always("it finds the initial weights by their shape, and a head grows; make a new strategy instead"),
    ),
    (
        (avalanche_plugins.MIRPlugin, avalanche_plugins.RARPlugin, avalanche_plugins.GSS_greedyPlugin),
        _always("it differentiates or traces the frozen backbone, too; ReplayPlugin keeps a memory"),
    ),
    (
        (
            avalanche_plugins.CWRStarPlugin,
            avalanche_plugins.CoPEPlugin,
            avalanche_plugins.LFLPlugin,
            avalanche_plugins.BiCPlugin,
            avalanche_plugins.FeatureDistillationPlugin,
        ),
        _always("it wants a last layer or features of a kind that a prompt model has not"),
    ),
]

#: What plugins read of an experience's data set.
_READS: dict[str, tuple[type, ...]] = {
    "targets": (
        avalanche_plugins.EWCPlugin,
        avalanche_plugins.RWalkPlugin,
        avalanche_plugins.GEMPlugin,
        avalanche_plugins.AGEMPlugin,
        avalanche_plugins.ReplayPlugin,
    ),
    "targets_task_labels": (avalanche_plugins.LwFPlugin,),
}
