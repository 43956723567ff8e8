"""A method and its plug-ins from plain arguments: what stands in a configuration, or what a caller names."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from clprompt import registry, schema
from clprompt.backbones.vit import FrozenViT
from clprompt.errors import ConfigError
from clprompt.prompting.model import PromptModel
from clprompt.prompting.plugin import Plugin
from clprompt.seeding import derive, preserved_rng


def short_forms(method: Callable[..., Any]) -> list[registry.Entry]:
    """The registered short forms of plug-ins that a method does not take as arguments of its own."""
    arguments = schema.parameters(method)[0]
    entries = map(registry.plugins.get, registry.plugins.names())
    return [entry for entry in entries if entry.name not in arguments]


def serving(method: Callable[..., Any]) -> list[registry.Entry]:
    """The short forms that serve a method: their arguments stand beside its own in a configuration."""
    return [entry for entry in short_forms(method) if entry.serves(method)]


def refuse_short_forms(method: Callable[..., Any], name: str, section: Mapping[str, Any], path: str) -> None:
    """Raise ConfigError for a short form that is switched on for a method which it does not serve."""
    served = [entry.name for entry in serving(method)]
    for entry in short_forms(method):
        if section.get(entry.name) and entry.name not in served:
            raise ConfigError(f"{path}.{entry.name}: strategy {name} {entry.lacking}")


def construct(
    method: Callable[..., PromptModel],
    *positional: Any,
    plugins: Iterable[Plugin] = (),
    restored: bool = False,
    **arguments: Any,
) -> PromptModel:
    """A model with its plug-ins.

    Args:
        method: the class; ``positional`` and ``arguments`` are its own.
        plugins: plugged in this order, copies of them; those of the short forms come first.
        restored: its state will be loaded: plug-ins read no file that only says where training starts.
        **arguments: may hold short forms (``coordinate=True``), which the method does not see.

    Raises:
        ConfigError: what the method or a plug-in refuses.
    """
    made: list[Plugin] = []
    for entry in short_forms(method):
        keys = schema.parameters(entry.target)[0]
        plugin = entry.target(**{key: arguments.pop(key) for key in keys if key in arguments})
        added = [plugin] if isinstance(plugin, Plugin) else list(plugin or [])
        for each in added if restored else []:
            each.expect_state()
        made += added
    model = method(*positional, **arguments)
    for plugin in [*made, *map(copy.deepcopy, plugins)]:
        model.plug(plugin)
    return model


def make_method(
    section: Mapping[str, Any],
    backbone: FrozenViT,
    *,
    seed: int,
    plugins: Iterable[Plugin] = (),
    restored: bool = False,
) -> PromptModel:
    """The model of a ``strategy`` section, with the plug-ins of its short forms; see :func:`construct`."""
    entry = registry.strategies.get(section["name"])
    arguments = {key: value for key, value in section.items() if key != "name"}
    # a constructor may draw its initial values from the global generators
    with preserved_rng(derive(seed, "build", entry.name)):
        return construct(entry.target, backbone, seed=seed, plugins=plugins, restored=restored, **arguments)
