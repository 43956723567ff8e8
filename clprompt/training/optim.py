"""Optimizers over what a model declares: groups by name, growth of their state, schedules."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal, overload

import torch
from torch import Tensor
from torch.optim import Optimizer

from clprompt import schema
from clprompt.errors import CheckpointError, ConfigError, ProtocolError
from clprompt.prompting.model import PromptModel
from clprompt.training.settings import Schedule, Training, function_of

#: Adam's eps for weights in float16, where a second moment (beta2 = 0.999) that is too small is 0, as are the
#: usual 1e-8: nan. With this one the step of such a weight is no longer than the learning rate.
_FLOAT16_EPS = math.sqrt(torch.finfo(torch.float16).smallest_normal / 1024 / (1 - 0.999))


@overload
def build(
    model: PromptModel, training: Training | None = None, *, empty: Literal[True], **fields: Any
) -> Optimizer: ...


@overload
def build(
    model: PromptModel, training: Training | None = None, *, empty: bool = False, **fields: Any
) -> Optimizer | None: ...


def build(
    model: PromptModel, training: Training | None = None, *, empty: bool = False, **fields: Any
) -> Optimizer | None:
    """An optimizer over the model's trainable parameters; None where there are none (yet).

    A group of the model may override ``lr`` and other settings; frozen parameters are in no group.

    Args:
        model: what is trained.
        training: says which optimizer, its ``lr``, ``weight_decay`` and ``momentum``; the defaults if None.
        empty: give an optimizer without parameters in place of None.
        **fields: of :class:`Training`, in place of those that ``training`` has: ``build(model, lr=0.01)``.

    Raises:
        ConfigError: a setting out of range.
    """
    settings = replace(training or Training(), **fields)
    groups = [
        {
            **{k: v for k, v in group.items() if k not in ("params", "name")},
            "params": list(group["params"].values()),
            "names": list(group["params"]),
            "group": group["name"],
        }
        for group in model.param_groups()
    ]
    filled = [group for group in groups if group["params"]]
    if not filled and not empty:
        return None
    groups = filled or groups
    optimizer: Optimizer
    shared: dict[str, Any] = {"lr": settings.lr, "weight_decay": settings.weight_decay}
    if settings.optimizer not in ("adam", "adamw", "sgd"):
        optimizer = _of_ones_own(settings, groups, shared)
    elif settings.optimizer == "sgd":
        optimizer = torch.optim.SGD(groups, momentum=settings.momentum, **shared)
    else:
        kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[settings.optimizer]
        if any(parameter.dtype == torch.float16 for group in groups for parameter in group["params"]):
            shared["eps"] = _FLOAT16_EPS
        optimizer = kind(groups, **shared)
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    return optimizer


def _of_ones_own(settings: Training, groups: list[dict[str, Any]], shared: Mapping[str, Any]) -> Optimizer:
    """What a user's function makes of the groups.

    Raises:
        ConfigError: the function cannot be found or called so, or returns something else.
    """
    factory = function_of(settings.optimizer, "training.optimizer")
    called = getattr(factory, "__name__", str(factory))
    try:
        optimizer = factory(groups, **shared)
    except TypeError as error:
        raise ConfigError(
            f"training.optimizer: {called} must take groups of parameters, lr= and weight_decay=: {error}"
        ) from error
    if not isinstance(optimizer, Optimizer):
        raise ConfigError(
            f"training.optimizer: {called} must return a torch.optim.Optimizer, "
            f"got {type(optimizer).__name__}"
        )
    if [group.get("names") for group in optimizer.param_groups] != [group["names"] for group in groups]:
        raise ConfigError(f"training.optimizer: {called} must keep the groups that it is given")
    return optimizer


def names(optimizer: Optimizer) -> set[str]:
    """The names of all parameters in an optimizer's groups."""
    return {name for group in optimizer.param_groups for name in group["names"]}


def sync(optimizer: Optimizer, model: PromptModel) -> None:
    """Bring an optimizer in line with a model that has grown or frozen parameters.

    New parameters join the group of their name, frozen ones leave with their state. A parameter that grew is
    another object under the same name: its moments are padded with zeros, so old rows keep theirs.

    Args:
        optimizer: made by :func:`build`, of any class: its groups have the names of their parameters.
        model: that it was made for.

    Raises:
        ProtocolError: an optimizer that was made otherwise; which of its parameters grew cannot be known.
    """
    if any("names" not in group or "group" not in group for group in optimizer.param_groups):
        kind = type(optimizer).__name__
        raise ProtocolError(
            f"optim.sync needs an optimizer that optim.build made, and this {kind} is none: "
            f"optim.build(model, optimizer={kind}, lr=...) makes one of the same class"
        )
    moments = {
        name: optimizer.state.pop(parameter)
        for group in optimizer.param_groups
        for name, parameter in zip(group["names"], group["params"], strict=True)
        if parameter in optimizer.state
    }
    groups = {group["group"]: group for group in optimizer.param_groups}
    for group in groups.values():
        group["params"], group["names"] = [], []
    for wanted in model.param_groups():
        settings = dict(wanted)
        name, params = settings.pop("name"), settings.pop("params")
        if name in groups:
            groups[name]["params"], groups[name]["names"] = list(params.values()), list(params)
        elif params:
            members = {"params": list(params.values()), "names": list(params), "group": name}
            optimizer.add_param_group({**settings, **members})
            optimizer.param_groups[-1]["initial_lr"] = optimizer.param_groups[-1]["lr"]
        for key, parameter in params.items():
            if key in moments:
                optimizer.state[parameter] = {k: _padded(v, parameter) for k, v in moments[key].items()}


def _padded(value: Any, like: Tensor) -> Any:
    """A moment brought to a parameter's shape; counters stay as they are."""
    if not isinstance(value, Tensor) or not value.ndim or value.shape == like.shape:
        return value
    out = torch.zeros_like(like.data, dtype=value.dtype)
    out[tuple(slice(0, size) for size in value.shape)] = value
    return out


def set_learning_rate(
    optimizer: Optimizer,
    schedule: Schedule,
    step: int,
    steps: int,
    warmup: float = 0.0,
    epochs: int = 1,
) -> float:
    """Set every group's rate for step ``step`` of ``steps`` of an experience; returns the first group's.

    The rate rises linearly over the first ``warmup`` share of the steps (its last step has the full rate) and
    then follows the schedule. It is a function of the step alone, so any step can be entered again.

    Args:
        optimizer: whose groups have their full rate under ``initial_lr``.
        schedule: a function of (step, steps, epochs) that returns the share of the full rate, or "constant";
            "cosine" falls to 0 by half a cosine from the end of the warm-up on, step by
            step; "cosine-coda" has the full rate in the first two epochs of E and then cos(99 pi (e - 1) /
            (200 (E - 1))) of it in epoch e = 2 ... E - 1. A warm-up is a factor of that: no epoch is shifted.
        step: from 0.
        steps: of all epochs of the experience.
        warmup: see above.
        epochs: E, of equal length.

    Source: "cosine-coda", ``utils/schedulers.py`` of the released code of CODA-Prompt (Smith et al., CVPR
    2023), which divides by zero where E is 1. Its first step before the second epoch has the number 0 again:
    the scheduler counts from -1 once it is made.
    """
    rising = int(warmup * steps)
    factor = (step + 1) / rising if step < rising else 1.0
    if schedule == "cosine" and step >= rising:
        factor = (1 + math.cos(math.pi * (step - rising) / max(steps - rising, 1))) / 2
    if schedule == "cosine-coda":
        number = max(step * epochs // max(steps, 1) - 1, 0)  # the second epoch is number 0, too
        factor *= math.cos(99 * math.pi * number / (200 * max(epochs - 1, 1)))
    if schedule not in ("constant", "cosine", "cosine-coda"):
        factor *= float(function_of(schedule, "training.schedule")(step, steps, epochs))
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor
    return float(optimizer.param_groups[0]["lr"])


def clip(optimizer: Optimizer, largest: float | None) -> None:
    """Scale the gradient down to a norm of at most ``largest`` over all parameters; None for no clipping."""
    if largest is not None:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        torch.nn.utils.clip_grad_norm_(parameters, largest)


@contextmanager
def in_range(optimizer: Optimizer) -> Iterator[None]:
    """Around a step: a number that the weights' type cannot hold is a mistake in the settings.

    Raises:
        ConfigError: naming the optimizer's rates.
    """
    try:
        yield
    except (OverflowError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "overflow" not in str(error):
            raise
        groups = optimizer.param_groups
        named = {
            f"{group['lr']:g}" + (f" ({group.get('group')})" if len(groups) > 1 else "") for group in groups
        }
        decay = max(float(group.get("weight_decay", 0)) for group in groups)
        raise ConfigError(
            f"{type(optimizer).__name__} cannot take a step with lr {', '.join(sorted(named))} and "
            f"weight_decay {decay:g}: a number gets too large for the weights; lower them"
        ) from error


def optimizer_state(optimizer: Optimizer, model: PromptModel) -> dict[str, Any]:
    """The groups with their settings, and the moments, by parameter name, for a checkpoint.

    The groups are saved too: they came into being one after the other, and their order and their rates need
    not be those of an optimizer that is built anew.
    """
    names = {id(p): name for name, p in model.named_parameters()}
    return {
        "groups": [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups],
        "moments": {names[id(p)]: _copied(state) for p, state in optimizer.state.items() if id(p) in names},
    }


@dataclass(frozen=True)
class _Saved:
    """What :func:`optimizer_state` returns."""

    groups: list[dict[str, Any]]
    moments: dict[str, dict[str, Any]]


def _check_group(saved: Mapping[str, Any], optimizer: Optimizer) -> None:
    """Refuse a group that lacks a setting of the optimizer, or has one of another type.

    Raises:
        CheckpointError: it names the first.
    """
    for key, value in optimizer.param_groups[0].items():
        if key != "params" and not (key in saved and _alike(saved[key], value)):
            raise CheckpointError(
                f"engine.optimizer.groups: {key} must be of type {type(value).__name__}, "
                f"got {schema.show(saved.get(key))}"
            )


def _alike(a: Any, b: Any) -> bool:
    """Whether two settings are of one type; any two numbers are."""
    return isinstance(a, type(b)) or all(isinstance(x, int | float) for x in (a, b))


def load_optimizer_state(optimizer: Optimizer, model: PromptModel, state: Mapping[str, Any]) -> None:
    """Put saved groups and moments back by parameter name.

    Raises:
        ClpromptError: state of a parameter that the model does not have, or has in another shape; settings
            that the optimizer does not have.
    """
    parameters = dict(model.named_parameters())
    state = schema.held(_Saved, state, "engine.optimizer")
    for group in state["groups"]:
        _check_group(group, optimizer)
    for name in [*state["moments"], *(name for group in state["groups"] for name in group["names"])]:
        if name not in parameters:
            raise CheckpointError(f"the checkpoint holds optimizer state for {name}, which the model lacks")
    for name, values in state["moments"].items():
        for key, value in values.items():
            if isinstance(value, Tensor) and value.ndim and value.shape != parameters[name].shape:
                raise CheckpointError(
                    f"engine.optimizer.moments.{name}.{key} has shape {list(value.shape)}, "
                    f"not {list(parameters[name].shape)}"
                )
    optimizer.param_groups[:] = [
        {"params": [parameters[name] for name in group["names"]], **group} for group in state["groups"]
    ]
    for name, values in state["moments"].items():
        optimizer.state[parameters[name]] = _copied(values, parameters[name].device)


def _copied(moments: Mapping[str, Any], device: torch.device | None = None) -> dict[str, Any]:
    """A copy on a device; counters stay where they are."""
    return {
        k: v.to(device if v.ndim else None, copy=True) if isinstance(v, Tensor) else v
        for k, v in moments.items()
    }
