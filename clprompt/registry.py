"""Strategies, scenarios, data sets, sinks and plug-ins by name.

A decorator registers a class or a function under a name; nothing else in clprompt knows it by that name:

    from clprompt.registry import strategies

    @strategies.register("dualprompt", paper="Wang et al., ECCV 2022", year=2022)
    class DualPromptModel(PromptModel): ...

What clprompt brings itself is imported when a name is first asked for, because it imports torch. Outsiders'
come in by entry points (groups `clprompt.strategies`, `clprompt.scenarios`, `clprompt.datasets`,
`clprompt.plugins`, `clprompt.sinks`) or by importing their module (`clprompt --import my_module`).
In names, `-` equals `_`.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import inspect
import pkgutil
import types
import warnings
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

from clprompt.errors import ConfigError, nearest

T = TypeVar("T", bound=Callable[..., Any])


class Only(NamedTuple):
    """Why something is no argument although other codes have one, and the value that it always has here.

    Attributes:
        value: what the key may hold in the files of runs from before it was refused.
        reason: one sentence without a full stop.
    """

    value: Any
    reason: str


@dataclass(frozen=True)
class Entry:
    """One registered class or function.

    Args:
        name: as it was registered.
        target: what is called with the arguments of its configuration section.
        module: where it was defined.
        summary: first line of its docstring.
        info: whatever else was registered with it (`paper`, `year`, ...).
        refused: arguments that are none on purpose, each with its one value and the reason.
        renamed: the names that arguments had before, each with the one of today.
    """

    name: str
    target: Callable[..., Any]
    module: str
    summary: str = ""
    info: dict[str, Any] = field(default_factory=dict)
    refused: Mapping[str, Only] = field(default_factory=dict)
    renamed: Mapping[str, str] = field(default_factory=dict)

    def serves(self, method: Callable[..., Any]) -> bool:
        """Of a plug-in: whether a method can carry it; without ``serves`` every method can."""
        return bool(self.info.get("serves", lambda _: True)(method))

    @property
    def lacking(self) -> str:
        """Of a plug-in: why it does not serve a method, as it goes on behind the method's name."""
        return str(self.info.get("lacking", f"is not served by the plug-in {self.name}"))

    def of_today(self, section: Mapping[str, Any], allowed: Collection[str]) -> dict[str, Any]:
        """An earlier run's section with the keys of today.

        Those that are refused by now go if they hold their one value; those that have another name get it.

        Args:
            section: without its name.
            allowed: the arguments that there are today.
        """
        return {
            key if key in allowed or self.renamed.get(key) in section else self.renamed.get(key, key): value
            for key, value in section.items()
            if key not in self.refused or value != self.refused[key].value
        }


class Registry:
    """Names of one kind.

    Args:
        kind: what the entries are, in the singular; error messages say it.
        load: called before the first look-up, to import what registers itself.
        check: told the name and the object before it is registered; it raises ConfigError for what cannot be.
    """

    def __init__(
        self,
        kind: str,
        load: Callable[[], None] | None = None,
        check: Callable[[str, Callable[..., Any]], None] | None = None,
    ) -> None:
        self.kind = kind
        self._load = load
        self._check = check
        self._entries: dict[str, Entry] = {}

    def register(
        self,
        name: str | None = None,
        *,
        refused: Mapping[str, Only] | None = None,
        renamed: Mapping[str, str] | None = None,
        **info: Any,
    ) -> Callable[[T], T]:
        """A decorator that registers a class or function and returns it.

        Args:
            name: defaults to the object's own name.
            refused: what is no argument on purpose, with the reason; whoever gives it, in a configuration or
                from Python, reads that (`schema.argument_answers` finds it on the object).
            renamed: names that arguments had before, with those of today; answered in the same way.
            **info: kept in the entry; `paper`, `year` and `boundaries` (what strategies answer:
                "required", "optional" or "unused") are shown by `clprompt list`. Of a plug-in `serves`, a
                function of a method's class, says whether the method can carry it (without it: every
                method), and `lacking` why another cannot ("has no prompts of its own").

        Raises:
            ConfigError: the name is taken by another object. The same one again is ignored, but a file
                imported under two module paths (`strategies.l2p`, `clprompt.strategies.l2p`) makes two. Of a
                plug-in: it is no function that its own name, an argument with a default, switches on.
        """

        def decorate(target: T) -> T:
            entry_name = name or target.__name__
            if self._check is not None:
                self._check(entry_name, target)
            taken = self._entries.get(_key(entry_name))
            if taken is not None:
                if _where(taken.target) == _where(target):
                    return target
                raise ConfigError(
                    f'{self.kind} "{entry_name}" is registered twice: '
                    f"by {_where(taken.target)} and by {_where(target)}"
                )
            summary = next(iter((target.__doc__ or "").strip().splitlines()), "")
            entry = Entry(
                entry_name,
                target,
                target.__module__,
                summary,
                dict(info),
                dict(refused or {}),
                dict(renamed or {}),
            )
            self._entries[_key(entry_name)] = entry
            if refused or renamed:
                target.argument_answers = _answers(entry)  # type: ignore[attr-defined]
            return target

        return decorate

    def get(self, name: str) -> Entry:
        """The entry of that name.

        Raises:
            ConfigError: there is none; the message names the nearest and all that are known.
        """
        if self._load is not None:
            self._load()
        entry = self._entries.get(_key(str(name)))
        if entry is None:
            names = self.names()
            all_names = ", ".join(names) or "none"
            raise ConfigError(f'unknown {self.kind} "{name}"{nearest(name, names)}; known: {all_names}')
        return entry

    def name_of(self, target: Callable[..., Any]) -> str:
        """The name under which something is registered; its own where it is not."""
        entries = self._entries.values()
        return next((entry.name for entry in entries if entry.target is target), target.__name__)

    def names(self) -> list[str]:
        """All registered names, sorted."""
        if self._load is not None:
            self._load()
        return sorted(entry.name for entry in self._entries.values())


def _answers(entry: Entry) -> dict[str, str]:
    """By argument the line that whoever gives it reads."""
    refused = {key: f"{key} is no argument: {only.reason}" for key, only in entry.refused.items()}
    return refused | {key: f"{key} is now called {name}" for key, name in entry.renamed.items()}


def _key(name: str) -> str:
    return name.replace("-", "_")


def _where(target: Callable[..., Any]) -> str:
    return f"{target.__module__}.{target.__qualname__}"


#: What registers itself and stands in no package of such: plug-ins with a short form, sinks.
_MODULES = (
    "clprompt.prompting.coordination",
    "clprompt.prompting.initial_prompts",
    "clprompt.prompting.statistics.plugin",
    "clprompt.prompting.text.anchors.short_form",
    "clprompt.prompting.text.trajectory",
    "clprompt.prompting.train_experiences",
    "clprompt.tracking.mlflow",
    "clprompt.tracking.scalar_table",
    "clprompt.tracking.tensorboard",
    "clprompt.tracking.wandb",
)

_loaded = False


def load_builtin() -> None:
    """Import everything that registers itself: clprompt's own modules first, then installed entry points.

    An entry point may name a module, a class or function that registers itself, or one that does not (it is
    then registered under the entry point's name). One that cannot be loaded is left out with a warning, so
    that a broken package of somebody else stops nobody's experiments.
    """
    global _loaded
    if _loaded:
        return
    _loaded = True  # before the imports: a module may ask for a name while it is being imported
    try:
        for package in ("clprompt.strategies", "clprompt.scenarios", "clprompt.data.sets"):
            _import_all(package)
        for module in _MODULES:
            importlib.import_module(module)
        for group, registry in ENTRY_POINTS.items():
            for point in importlib.metadata.entry_points(group=group):
                _load_entry_point(point, registry)
    except BaseException:
        _loaded = False
        raise


def _import_all(package: str) -> None:
    """Import a package's modules, and of a folder in it the ``model``; names with ``_`` register nothing."""
    for module in pkgutil.iter_modules(importlib.import_module(package).__path__):
        if not module.name.startswith("_"):
            path = f"{package}.{module.name}"
            importlib.import_module(f"{path}.model" if module.ispkg else path)


def _load_entry_point(point: importlib.metadata.EntryPoint, registry: Registry) -> None:
    try:
        target = point.load()
        registered = any(entry.target is target for entry in registry._entries.values())
        if not isinstance(target, types.ModuleType) and not registered:
            registry.register(point.name)(target)
    except Exception as error:
        warnings.warn(f"{point.group} entry point {point.name} ({point.value}) is left out: {error}")


def _check_short_form(name: str, target: Callable[..., Any]) -> None:
    """Refuse what would stop, or change, runs that do not name it: it is called for each of them."""
    arguments = {} if isinstance(target, type) else dict(inspect.signature(target).parameters)
    needed = [a.name for a in arguments.values() if a.kind is not a.KEYWORD_ONLY or a.default is a.empty]
    if needed or _key(name) not in map(_key, arguments):
        raise ConfigError(
            f'plug-in "{name}" must be a function that returns the plug-in or None, with keyword-only '
            f"arguments that have defaults and the argument {_key(name)} among them, which switches it on"
        )


strategies = Registry("strategy", load_builtin)
scenarios = Registry("scenario", load_builtin)
datasets = Registry("data set", load_builtin)
#: where runs are shown, see :mod:`clprompt.tracking.sink`
sinks = Registry("tracker", load_builtin)
#: Short forms of plug-ins: a function of the keys that stand beside a method's own, which returns the
#: plug-in, several, or None; see ``serves`` and ``lacking`` of :meth:`Registry.register`.
plugins = Registry("plug-in", load_builtin, _check_short_form)

ENTRY_POINTS = {
    "clprompt.strategies": strategies,
    "clprompt.scenarios": scenarios,
    "clprompt.datasets": datasets,
    "clprompt.sinks": sinks,
    "clprompt.plugins": plugins,
}


def make_registered(known: Registry, section: Mapping[str, Any], *positional: Any, **fixed: Any) -> Any:
    """Call what is registered under a section's name with the section's arguments."""
    from clprompt.seeding import derive, preserved_rng  # it imports torch, which a look-up does without

    entry = known.get(section["name"])
    # A constructor may draw its initial values from there.
    with preserved_rng(derive(fixed.get("seed", 0), "build", entry.name)):
        return entry.target(*positional, **fixed, **{k: v for k, v in section.items() if k != "name"})
