"""The configuration of an experiment: one YAML, dotted overrides, checked before anything is computed.

The sections `data`, `scenario` and `strategy` hold a registered name and the arguments of what is registered
under it; their keys are checked against its signature. `training` and `online` are the dataclasses below.
`backbone` holds a timm name and, beside `pretrained` and `checkpoint`, any keyword that timm takes.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import inspect
import itertools
import typing
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from clprompt import registry, schema
from clprompt.errors import ConfigError, nearest
from clprompt.experiment import paths
from clprompt.system import overlay
from clprompt.system.overlay import find
from clprompt.training.settings import OTHER_NAMES, Memory, Online, Precision, Training


@dataclass(frozen=True, kw_only=True)
class Config:
    """A whole experiment, checked. `to_dict` gives it as plain YAML values, defaults written out.

    Args:
        name: folder of its runs below `runs_dir`.
        label: what a report calls a run; None for the strategy's name.
        seed: one, or several that are run one after the other.
        precision: float32, or autocast to bf16 or fp16 (with a gradient scaler).
        query_precision: bf16 for the queries alone; None for what `precision` says.
        device: "auto", or a torch device.
        deterministic: the same bits from the same seed; False takes what is faster on a GPU.
        retrieval: after each experience, search among the embeddings of test images, too.
        runs_dir: where run folders are written.
        export: what model.safetensors holds at the end: the method's tensors alone, which need the backbone's
            source to be loaded, or "full" with those of the backbone.
        note: what its owner wants to know of the runs; see `clprompt runs`.
        tags: words by which `clprompt runs` finds them.
        data: `name` and the arguments of what is registered under it.
        scenario: as for `data`.
        strategy: as for `data`.
        backbone: `name`, `pretrained`, `checkpoint`, and what else timm takes; for `clip` the arguments of
            `clprompt.backbones.clip.clip_backbone`.
        trackers: where curves and drawings go beside the files of the run folder: `tensorboard`, `csv`,
            `wandb`, `mlflow`, or one of an installed package, by name; [] for none.
        compare: further strategies on the same stream and seeds; a `training` mapping in one of them holds
            overrides of training settings for that strategy alone.
        training: see `Training`.
        online: see `Online`; None trains experience by experience.
        memory: see `Memory`; None keeps no image.
    """

    name: str
    label: str | None = None
    data: dict[str, Any]
    scenario: dict[str, Any]
    backbone: dict[str, Any]
    strategy: dict[str, Any]
    seed: int | list[int] = 0
    precision: Precision = "float32"
    query_precision: Literal["bf16"] | None = None
    device: str = "auto"
    deterministic: bool = True
    retrieval: bool = False
    runs_dir: str = "runs"
    export: Literal["method", "full"] = "method"
    note: str | None = None
    tags: list[str] = field(default_factory=list)
    trackers: list[str] = field(default_factory=lambda: ["tensorboard"])
    compare: list[dict[str, Any]] = field(default_factory=list)
    training: Training = field(default_factory=Training)
    online: Online | None = None
    memory: Memory | None = None

    @property
    def seeds(self) -> list[int]:
        """The seeds to run, one or more."""
        return list(self.seed) if isinstance(self.seed, list) else [self.seed]

    def strategies(self) -> list[tuple[dict[str, Any], Training]]:
        """The strategy and those compared with it: of each its section (without `training`) and settings."""
        strategies = [(self.strategy, self.training)]
        for section in self.compare:
            strategy = {key: value for key, value in section.items() if key != "training"}
            strategies.append((strategy, dataclasses.replace(self.training, **section.get("training", {}))))
        return strategies

    def to_dict(self) -> dict[str, Any]:
        """Plain nested dictionaries; `from_dict` reads them back."""
        return dataclasses.asdict(self)


# The order of the keys in a resolved configuration, which is the order of the packaged files.
PLAIN_KEYS = (
    *("name", "label", "seed", "precision", "query_precision", "device", "deterministic", "retrieval"),
    *("runs_dir", "export", "trackers", "note", "tags"),
)
KEYS = (
    *PLAIN_KEYS,
    *("data", "scenario", "backbone", "strategy", "compare", "training", "online", "memory"),
)
#: Keys that a study has and a configuration has not.
STUDY_KEYS = frozenset({"strategies", "scenarios", "experiments"})
#: What stands by name in a section, by the section's key.
REGISTRIES = {"data": registry.datasets, "scenario": registry.scenarios, "strategy": registry.strategies}
_GIVEN: dict[str, tuple[str, ...]] = {
    "data": (),
    "scenario": ("seed", "class_names", "domains", "domain_names"),  # and the labels, its first argument
    "strategy": ("backbone", "seed"),
}
#: The sections whose value may be a bare name.
NAMED_SECTIONS = frozenset({*REGISTRIES, "backbone"})


def provided(kind: str, target: Callable[..., Any]) -> tuple[str, ...]:
    """Arguments of what a section names that the run provides itself.

    Args:
        kind: the section, or "compare".
        target: what it names.
    """
    names = _GIVEN.get(kind, _GIVEN["strategy"])
    return (*itertools.islice(inspect.signature(target).parameters, kind == "scenario"), *names)


#: The sections that hold settings and no name.
SETTINGS: dict[str, type] = {"training": Training, "online": Online, "memory": Memory}


# --------------------------------------------------------------------------------------------- reading


def load(name_or_path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a packaged configuration or a YAML file, apply overrides, check everything.

    Args:
        name_or_path: the name of a packaged configuration (`-` equals `_`), or a path to a .yaml file.
        overrides: `section.key=value`, `key=value`, or `section=name`, which replaces the whole section by
            that name's defaults. Replacements come first whatever the order, then dotted keys as they stand.

    A file or folder that is not where one stands is looked for beside the YAML file. That may name another
    one as its `base`, over which it lies: what it says counts, and of a section without a name the keys that
    it has.

    Raises:
        ConfigError: whatever a user can get wrong, in one line.
    """
    path = find(str(name_or_path))
    raw, files, overrides = overlay.read_based(path, overrides, NAMED_SECTIONS)
    if STUDY_KEYS & set(raw):
        raise ConfigError(
            f"{name_or_path} is a study, not a configuration: clprompt study {name_or_path} runs it, with "
            "--dry-run it says which runs it has"
        )
    overlay.apply(raw, overrides, sections=NAMED_SECTIONS)
    try:
        config = from_dict(overlay.resolve(raw, path), name=path.stem)
    except ConfigError as error:
        for text in overrides:
            key, _, name = text.partition("=")
            section, _, rest = key.strip().partition(".")
            if rest == "name" and str(error).startswith(f'unknown key "{section}.'):
                more = f"write {section}={name} to leave the keys of the one before behind"
                raise ConfigError(f"{error}; {more}") from None
        raise
    return with_paths(config, paths.beside(file.parent for file in files))


def base_of(name_or_path: str | Path, overrides: Sequence[str] = ()) -> Path | None:
    """The file over which a configuration lies; None where its key `base` names none.

    Raises:
        ConfigError: see `load`.
    """
    _, files, _ = overlay.read_based(find(str(name_or_path)), overrides, NAMED_SECTIONS)
    return files[1] if len(files) > 1 else None


def from_dict(values: Mapping[str, Any], name: str = "experiment", *, of_run: bool = False) -> Config:
    """A checked configuration from plain nested values, such as `Config.to_dict` gives.

    Args:
        values: the top level of the YAML form.
        name: the configuration's name unless `values` holds one.
        of_run: an earlier run resolved it: keys that are refused by now may hold their one value, and go.

    Raises:
        ConfigError: an unknown key or name, a wrong type, a value out of range.
    """
    _check_sections(values)
    fields = {key: values[key] for key in KEYS if key in values}
    if fields.get("name") is None:
        fields["name"] = name
    if isinstance(fields.get("trackers"), str):
        fields["trackers"] = [name.strip() for name in fields["trackers"].split(",")]
    hints = typing.get_type_hints(Config)
    for key in PLAIN_KEYS:
        if key in fields:  # what costs no import is checked first
            fields[key] = schema.check(fields[key], hints[key], key)
    _check_name(fields["name"])
    check_seed(fields.get("seed", 0))
    for key in ("device", "runs_dir"):
        if fields.get(key) == "":
            raise ConfigError(f"{key} must not be empty")
    training = fields["training"] = _settings(Training, fields.get("training"), "training")
    if fields.get("online") is not None:
        fields["online"] = _settings(Online, fields["online"], "online")
    if fields.get("memory") is not None:
        fields["memory"] = _settings(Memory, fields["memory"], "memory")
        fields["memory"].check(fields.get("online"), training.workers)
    compare = _compare(fields.get("compare"), training)
    for key in ("data", "scenario", "backbone", "strategy"):
        fields[key] = _section(fields.get(key), key)
    fields["backbone"] = _backbone(fields["backbone"])
    online = fields.get("online") is not None
    for key in REGISTRIES:  # from here on the registries are asked, which import torch
        fields[key] = named(fields[key], key, online, of_run=of_run)
    _check_trackers(fields.get("trackers") or [])
    fields["compare"] = [
        named(section, f"compare.{index}", online, of_run=of_run) for index, section in enumerate(compare)
    ]
    return Config(**fields)


def with_paths(config: Config, find: paths.Find) -> Config:
    """A configuration, every path in it replaced.

    Args:
        config: checked.
        find: gives a path for a path.
    """
    checkpoint = config.backbone.get("checkpoint")
    weights = {} if checkpoint is None else {"checkpoint": find(str(checkpoint))}
    return dataclasses.replace(
        config,
        data=section_with_paths(config.data, "data", find),
        scenario=section_with_paths(config.scenario, "scenario", find),
        strategy=section_with_paths(config.strategy, "strategy", find),
        compare=[section_with_paths(section, "strategy", find) for section in config.compare],
        backbone=config.backbone | weights,
    )


def section_with_paths(section: dict[str, Any], kind: str, find: paths.Find) -> dict[str, Any]:
    """A section of a kind, a key of ``REGISTRIES``, every path in it replaced."""
    targets = [REGISTRIES[kind].get(section["name"]).target]
    if kind == "strategy":
        from clprompt.prompting.build import serving

        targets += [short.target for short in serving(targets[0])]
    return paths.section_with_paths(section, targets, find)


# -------------------------------------------------------------------------------------------- sections


def _check_sections(values: Mapping[str, Any]) -> None:
    """Raises `ConfigError` at the first unknown key of the top level; says in which section it is one."""
    for key in values:
        if key in KEYS:
            continue
        for section, settings in SETTINGS.items():
            name = OTHER_NAMES.get(str(key), key) if section == "training" else key
            if name in schema.parameters(settings)[0]:
                raise ConfigError(f'unknown key "{key}"; did you mean "{section}.{name}"?')
        if nearest(str(key), KEYS):  # what a registry holds takes seconds to import
            schema.check_keys([key], KEYS, "")
        for section, known in REGISTRIES.items():
            try:
                entry = known.get(_section(values.get(section), section)["name"])
            except ConfigError:
                continue
            if key in schema.parameters(entry.target, provided(section, entry.target))[0]:
                raise ConfigError(f'unknown key "{key}"; did you mean "{section}.{key}"?')
        schema.check_keys([key], KEYS, "")


def _check_trackers(names: Sequence[str]) -> None:
    """Refuse a tracker that there is not, or whose package is not installed."""
    for name in names:
        try:
            tracker: Any = registry.sinks.get(name).target
        except ConfigError as error:
            raise ConfigError(f"trackers: {error}") from None
        if tracker.package and importlib.util.find_spec(tracker.package) is None:
            extra = f"pip install 'clprompt[{tracker.package}]'"
            raise ConfigError(f"trackers: {name} needs the package {tracker.package}: {extra}")
    if len(set(names)) < len(names):
        raise ConfigError(f"trackers names one twice: {schema.show(list(names))}")


def _check_name(name: str) -> None:
    control = any(unicodedata.category(mark) == "Cc" for mark in name)
    if not name.strip() or name in (".", "..") or control or "/" in name or "\\" in name:
        raise ConfigError(f"name must be the plain name of a folder, got {schema.show(name)}")


def check_seed(value: Any) -> list[int]:
    """The seeds that the key `seed` names: one number, several, or text such as "0,1".

    Raises:
        ConfigError: none, one twice, one out of range, or something else.
    """
    seed = schema.check(value, int | list[int], "seed")
    seeds = seed if isinstance(seed, list) else [seed]
    if not seeds:
        raise ConfigError("seed must be a number or a list of numbers, got an empty list")
    for value in seeds:
        if not 0 <= value < 2**32:
            raise ConfigError(f"seed must be between 0 and {2**32 - 1}, got {value}")
    if len(set(seeds)) < len(seeds):
        raise ConfigError(f"seed names a seed twice: {schema.show(seeds)}")
    return seeds


S = typing.TypeVar("S", Training, Online, Memory)


def _settings(kind: Callable[..., S], section: Any, path: str) -> S:
    section = {} if section is None else section
    if not isinstance(section, Mapping):
        raise ConfigError(f"{path} must be a mapping, got {schema.show(section)}")
    schema.check_keys(section, schema.parameters(kind)[0], path, OTHER_NAMES)
    for key, value in section.items():
        if callable(value):
            raise ConfigError(
                f"{path}.{key}: a run writes its configuration down; name the function as module:function"
            )
    return kind(**section)


def backbone_section(section: Any) -> dict[str, Any]:
    """A `backbone` section (or its bare name), checked, defaults written out."""
    return _backbone(_section(section, "backbone"))


def training_section(section: Any) -> Training:
    """A `training` section, checked; None for the defaults."""
    return _settings(Training, section, "training")


def _section(section: Any, path: str) -> dict[str, Any]:
    """A section with a name; a bare string is short for {name: string}."""
    if isinstance(section, str):
        section = {"name": section}
    if section is None:
        raise ConfigError(f"{path} is missing; it must be a mapping with a name")
    if not isinstance(section, Mapping):
        raise ConfigError(f"{path} must be a name or a mapping with a name, got {schema.show(section)}")
    for key in section:
        if not isinstance(key, str):
            raise ConfigError(f"{path}: a key must be a name, got {schema.show(key)}")
    section = schema.plain(section, path)
    if section.get("name") is None:
        raise ConfigError(f"{path}.name is missing")
    schema.check(section["name"], str, f"{path}.name")
    return section


def _backbone(section: dict[str, Any]) -> dict[str, Any]:
    if section["name"] == "clip":
        from clprompt.backbones.clip import clip_backbone

        arguments = {key: value for key, value in section.items() if key != "name"}
        return {"name": "clip"} | schema.arguments(clip_backbone, arguments, "backbone")
    checked = {"name": section["name"], "pretrained": False, "checkpoint": None} | section
    schema.check(checked["pretrained"], bool, "backbone.pretrained")
    schema.check(checked["checkpoint"], str | None, "backbone.checkpoint")
    return checked


def _compare(strategies: Any, training: Training) -> list[dict[str, Any]]:
    if isinstance(strategies, str):
        strategies = [item.strip() for item in strategies.split(",")]
    if strategies is None:
        return []
    if not isinstance(strategies, list | tuple):
        raise ConfigError(f"compare must be a list of strategies, got {schema.show(strategies)}")
    sections = [_section(item, f"compare.{index}") for index, item in enumerate(strategies)]
    for index, section in enumerate(sections):
        overrides = section.get("training")
        if overrides is None:
            section.pop("training", None)
            continue
        try:
            schema.check(overrides, dict, "training")
            schema.check_keys(overrides, schema.parameters(Training)[0], "training", OTHER_NAMES)
            merged = dataclasses.replace(training, **overrides)
        except ConfigError as error:
            raise ConfigError(str(error).replace("training", f"compare.{index}.training", 1)) from None
        section["training"] = {key: getattr(merged, key) for key in overrides}
    return sections


def named(given: Any, path: str, online: bool = False, *, of_run: bool = False) -> dict[str, Any]:
    """A section (or its bare name) checked against what is registered under its name, defaults written out.

    Under the online protocol a strategy with a boundary-free form takes that one unless it is told otherwise.
    """
    section = _section(given, path)
    kind = path.partition(".")[0]
    first, *others = (name.strip() for name in section["name"].split(","))
    if path == "strategy" and others:
        raise ConfigError(
            f'strategy.name must be one strategy, got "{section["name"]}"; '
            f"have others beside it by compare: strategy={first} compare={','.join(others)}"
        )
    registered = REGISTRIES.get(kind, registry.strategies)
    try:
        entry = registered.get(section["name"])
    except ConfigError as error:
        raise ConfigError(f"{path}.name: {error}") from None
    apart = ("name", "training") if kind == "compare" else ("name",)
    arguments = {key: value for key, value in section.items() if key not in apart}
    if of_run:
        arguments = entry.of_today(arguments, schema.parameters(entry.target)[0])
    training = {"training": section["training"]} if "training" in section and kind == "compare" else {}
    skip = provided(kind, entry.target)
    plugins: list[Callable[..., Any]] = []
    if registered is registry.strategies:
        from clprompt.prompting.build import refuse_short_forms, serving

        refuse_short_forms(entry.target, entry.name, arguments, path)
        plugins = [short.target for short in serving(entry.target)]
        if online and "boundary_free" in schema.parameters(entry.target)[0]:
            arguments.setdefault("boundary_free", True)  # the only form that can run there
    checked = schema.arguments(entry.target, arguments, path, skip=skip, also=plugins)
    return {"name": entry.name} | checked | training


def not_default(config: Config) -> list[str]:
    """The dotted keys of its sections, `backbone` apart, that hold something else than their default.

    Args:
        config: of one run.
    """
    keys = []
    for path in (*REGISTRIES, *SETTINGS):
        section = getattr(config, path)
        targets: list[Callable[..., Any]]
        if path in SETTINGS:
            targets = [SETTINGS[path]]
            section = {} if section is None else dataclasses.asdict(section)
        else:
            targets = [REGISTRIES[path].get(section["name"]).target]
        if path == "strategy":
            from clprompt.prompting.build import serving

            targets += [short.target for short in serving(targets[0])]
        known = {key: of for target in targets for key, of in schema.parameters(target)[0].items()}
        keys += [
            f"{path}.{key}"
            for key, value in section.items()
            if key != "name"
            and not (
                key in known and not known[key].required and value == schema.plain(known[key].default, key)
            )
        ]
    return keys


def to_yaml(config: Config) -> str:
    """The resolved configuration as YAML text that `load` reads back to an equal one."""
    values = config.to_dict()
    return overlay.write({key: values[key] for key in KEYS})
