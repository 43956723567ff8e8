"""A study: a grid of strategies, scenarios and seeds in one YAML, each run an ordinary run folder.

    name: letters                       # by default that of the file
    seed: [0, 1, 2]
    data: {name: letters}               # these, precision, device, runs_dir and export as in an experiment
    backbone: {name: vit_letters}
    training: {train_epochs: 3}
    scenario: {name: split}             # or scenarios: {LABEL: section, ...}; beside the keys of its stream a
                                        #   section may hold its own `online`, or null
    strategies:                         # LABEL: section; the name is the label unless it is given
      l2p:
      l2p 20: {name: l2p, pool_size: 20, training: {lr: 0.01}}
    sweep: {training.lr: [0.001, 0.01]} # one run for every value, "l2p lr=0.001"; a strategy may
                                        #   have its own, or null
    tuned: best.yaml                    # what the sweep of another study found best, by label;
                                        #   a strategy's key `tuned` names another label
    metric: average_accuracy            # what decides a sweep

or of whole configurations, each with its own data, backbone and settings:

    experiments:
      cifar100:                         # LABEL of a stream
        configurations:                 # LABEL: a packaged configuration, or a file
          l2p: l2p-split-cifar100
          coda_prompt: coda-prompt-split-cifar100
        data: {path: /data}             # laid over each of them, as are `data`, `training`, ... of the study:
                                        #   a section with a name replaces, one without adds its keys
    reported: split                     # packaged numbers of the literature, shown beside those of the runs

A run's place is `runs_dir/name[/scenario]/label/seedK`, so that a study knows what is finished. Runs are
ordered by seed first: all strategies have their first run before any has its second.
"""

from __future__ import annotations

import itertools
import shlex
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from clprompt import plain_yaml, schema
from clprompt.errors import ConfigError, nearest
from clprompt.experiment import config as configuration
from clprompt.experiment import paths
from clprompt.experiment.config import Config
from clprompt.metrics.measure import MEASURES, check_metrics
from clprompt.reporting.finished import NO_MATTER
from clprompt.reporting.reported import REPORTED
from clprompt.system import overlay
from clprompt.system.files import plain_name

_SHARED = (
    *("seed", "precision", "query_precision", "device", "deterministic", "retrieval", "runs_dir", "export"),
    *("trackers", "note", "tags", "data", "backbone", "training", "online", "memory"),
)
_LAID = (*(key for key in _SHARED if key != "runs_dir"), "scenario", "compare")
_GRID = ("scenario", "scenarios", "strategies", "sweep", "tuned")
KEYS = ("name", *_SHARED, *_GRID, "metric", "metrics", "experiments", "reported")
METRICS = tuple(metric for measure in MEASURES.values() for metric in measure.deciding)
_SECTIONS = ("data", "backbone", "scenario")


@dataclass(frozen=True, eq=False)
class Planned:
    """One run of a study.

    Attributes:
        label: of its strategy, with the sweep's values.
        base: the label without them.
        scenario: label of its scenario, or of its stream among `experiments`; or "".
        values: the sweep's values by dotted key.
        config: of this one run.
        changes: what the study laid over a whole configuration, "key=value", where numbers depend on it.
        folder: its place.
    """

    label: str
    base: str
    scenario: str
    values: dict[str, Any]
    config: Config
    changes: tuple[str, ...]
    folder: Path

    @property
    def seed(self) -> int:
        """Its seed."""
        return self.config.seeds[0]

    def __str__(self) -> str:
        return f"{self.label}, {self.scenario + ', ' if self.scenario else ''}seed {self.seed}"


@dataclass(frozen=True)
class Study:
    """A checked study.

    Attributes:
        name: of its folder below runs_dir.
        runs: in the order in which they run.
        folder: the place of all.
        metric: what decides a sweep; None for the first one of its measure.
        notes: lines worth reading.
        metrics: what the tables of its report show; none for those of its measure.
        reported: the name of the literature's numbers that are shown beside its own; None for none.
    """

    name: str
    runs: list[Planned]
    folder: Path
    metric: str | None = None
    notes: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ()
    reported: str | None = None


class _Row(NamedTuple):
    """Runs that differ in their seed alone; see `Planned`."""

    label: str
    base: str
    scenario: str
    values: dict[str, Any]
    config: Config
    changes: tuple[str, ...] = ()


def load(name_or_path: str | Path, overrides: Sequence[str] = ()) -> Study:
    """Read a packaged study or a YAML file, apply overrides as `clprompt run` does, check every run.

    Raises:
        ConfigError: whatever a user can get wrong, in one line.
    """
    path = overlay.find(str(name_or_path), "study")
    raw = overlay.read(path)
    # what may be a bare name, short for {name: ...}, and get arguments from an override
    grids = (raw.get(key) for key in ("strategies", "scenarios"))
    labels = {label for grid in grids if isinstance(grid, Mapping) for label in grid}
    overlay.apply(raw, overrides, sections={*_SECTIONS, *labels})
    study = from_dict(overlay.resolve(raw, path), name=path.stem)
    find = paths.beside([path.parent])
    runs = [replace(run, config=configuration.with_paths(run.config, find)) for run in study.runs]
    return replace(study, runs=runs)


def from_dict(values: Mapping[str, Any], name: str = "study") -> Study:
    """A checked study from plain nested values; see `load`."""
    if "base" in values:
        raise ConfigError(
            "base lays a configuration over another one, and a study has none: write its keys here, or list "
            "whole configurations under experiments"
        )
    schema.check_keys(values, KEYS, "")
    name = schema.check(values.get("name") or name, str, "name")
    metric = schema.check(values.get("metric"), typing.Literal[METRICS] | None, "metric")
    metrics = schema.check(values.get("metrics") or [], list[str], "metrics")
    check_metrics(metrics)
    reported = schema.check(values.get("reported"), str | None, "reported")
    if reported is not None:
        overlay.find(reported, REPORTED)
    if values.get("experiments") is None:
        rows, notes = _grid_rows(values, name)
    else:
        rows, notes = _experiment_rows(values, name), []
    top = Path(rows[0].config.runs_dir) / name
    runs = [
        Planned(
            **row._asdict()
            | {"config": replace(row.config, seed=row.config.seeds[turn])}
            | {"folder": _place(top, row.scenario, row.label, row.config.seeds[turn])}
        )
        for turn in range(max(len(row.config.seeds) for row in rows))
        for row in rows
        if turn < len(row.config.seeds)
    ]
    places: dict[Path, Planned] = {}
    for run in runs:
        other = places.setdefault(run.folder, run)
        if other is not run:
            raise ConfigError(f'"{other.label}" and "{run.label}" would share the folder {run.folder}')
    return Study(name, runs, top, metric, tuple(notes), tuple(metrics), reported)


def _grid_rows(values: Mapping[str, Any], name: str) -> tuple[list[_Row], list[str]]:
    """Every strategy on every scenario with every value of its sweep, and lines worth reading."""
    tuned = schema.check(values.get("tuned"), str | None, "tuned")
    best = _tuned(Path(tuned)) if tuned else {}
    shared = {key: values[key] for key in _SHARED if key in values} | {"name": name}
    training = _mapping(values.get("training"), "training")
    scenarios = _scenarios(values)
    rows: list[_Row] = []
    untuned = []
    for label, section in _labelled(values, "strategies").items():
        own_training = _mapping(section.pop("training", None), f"strategies.{label}.training")
        sweep = section.pop("sweep", values.get("sweep"))
        memory = section.pop("memory", values.get("memory"))
        source = schema.check(section.pop("tuned", label), str, f"strategies.{label}.tuned")
        if best and source not in best:
            untuned.append(label)
        for point in _grid(sweep, f"strategies.{label}.sweep" if "sweep" in section else "sweep"):
            strategy, settings = dict(section), training | own_training
            for key, value in {**best.get(source, {}), **point}.items():
                into, _, argument = key.partition(".")
                (settings if into == "training" else strategy)[argument] = value
            of_run = " ".join([label, *(f"{key.rpartition('.')[2]}={_text(v)}" for key, v in point.items())])
            for scenario, stream in scenarios.items():
                sections = shared | {
                    **stream,
                    "strategy": strategy,
                    "training": settings,
                    "label": of_run,
                }
                sections["memory"] = memory
                try:
                    config = configuration.from_dict(sections)
                except ConfigError as error:
                    text = str(error).replace('"strategy.', f'"strategies.{label}.', 1)
                    raise ConfigError(f"strategies.{label}: {text}") from None
                rows.append(_Row(of_run, label, scenario, point, config))
    notes = [f"not in {tuned}, so with the study's own values: {', '.join(untuned)}"] if untuned else []
    if values.get("online") is not None:
        notes += _online_note(scenarios)
    return rows, notes


def _experiment_rows(values: Mapping[str, Any], name: str) -> list[_Row]:
    """Every strategy of every configuration, those that one compares with among them."""
    for key in _GRID:
        if values.get(key) is not None:
            raise ConfigError(f"give experiments (whole configurations) or {key}, not both")
    shared = {key: values[key] for key in _SHARED if key in values}
    rows = []
    example = "experiments: {cifar100: {configurations: {l2p: l2p-split-cifar100}}}"
    for stream, section in _some_mapping(values["experiments"], "experiments", example).items():
        path = f"experiments.{stream}"
        section = _mapping(section, path)
        configurations = section.pop("configurations", None)
        schema.check_keys(section, ("configurations", *_LAID), path)
        for label, of_label in _some_mapping(configurations, f"{path}.configurations", example).items():
            where = f"{path}.configurations.{label}"
            named = schema.check(label if of_label is None else of_label, str, where)
            try:
                found = overlay.find(named)
                before, files, _ = overlay.read_based(found, (), configuration.NAMED_SECTIONS)
                raw = dict(before)
                for layer in (shared, section):
                    _lay(layer, over=raw)
                config = configuration.from_dict(overlay.resolve(raw, found) | {"name": name})
                config = configuration.with_paths(config, paths.beside(file.parent for file in files))
            except ConfigError as error:
                raise ConfigError(f"{where}: {error}") from None
            changes = _changes(before, raw)
            for number, (strategy, training) in enumerate(config.strategies()):
                of_run = str(strategy["name"]) if number else label
                alone = replace(config, label=of_run, strategy=strategy, training=training, compare=[])
                rows.append(_Row(of_run, of_run, stream, {}, alone, changes))
    return rows


def _lay(layer: Mapping[str, Any], *, over: dict[str, Any]) -> None:
    """Replace what a file holds; see :func:`clprompt.system.overlay.lay`."""
    layer = plain_yaml.read(overlay.write(layer))  # escaped: what is below is not resolved yet
    overlay.lay(layer, over=over, sections=_SECTIONS)


def _changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> tuple[str, ...]:
    """Where two configurations differ so that it shows in numbers.

    That is neither what one compares with nor a value that the first leaves to its user.
    """
    values, given = overlay.flat(after), overlay.flat(before)
    keys = [
        key for key in overlay.difference(before, after) if key not in NO_MATTER and given.get(key) != "???"
    ]
    return tuple(
        f"{key}={_text(values[key])}" if key in values else f"no {key}"
        for key in keys
        if key.partition(".")[0] != "compare"
    )


def chosen_runs(study: Study, only: Iterable[str], scenarios: Iterable[str], seeds: Iterable[int]) -> Study:
    """The runs of these labels (with or without sweep values), scenarios and seeds; all if none is named."""
    only, scenarios, seeds = list(only), list(scenarios), list(seeds)
    wanted: tuple[list[Any], ...] = (only, scenarios, seeds)
    choices: dict[str, list[Any]] = {
        "--only": [*dict.fromkeys([r.base for r in study.runs] + [r.label for r in study.runs])],
        "--scenario": [*dict.fromkeys(r.scenario for r in study.runs if r.scenario)],
        "--seed": [*dict.fromkeys(r.seed for r in study.runs)],
    }
    for option, names in zip(choices, wanted, strict=True):
        for value in names:
            if value not in choices[option]:
                allowed = [str(one) for one in choices[option]]
                raise ConfigError(
                    f"{option} {value}: the study has no such run{nearest(str(value), allowed)}; "
                    f"known: {', '.join(allowed) or 'none'}"
                )
    runs = [
        run
        for run in study.runs
        if (not only or run.label in only or run.base in only)
        and (not scenarios or run.scenario in scenarios)
        and (not seeds or run.seed in seeds)
    ]
    return replace(study, runs=runs)


def command(name: str, overrides: Sequence[str], options: Sequence[str] = ()) -> str:
    """A line for a shell that starts (a part of) the study again."""
    return shlex.join(["clprompt", "study", name, *overrides, *options])


def command_of(run: Planned, name: str, overrides: Sequence[str], options: Sequence[str] = ()) -> str:
    """The line that starts one run alone."""
    where = ["--scenario", run.scenario] if run.scenario else []
    selection = ["--only", run.label, *where, "--seed", str(run.seed)]
    return command(name, overrides, [*selection, *options])


# ---------------------------------------------------------------------------------------------- reading


def _mapping(value: Any, path: str) -> dict[str, Any]:
    if value is not None and not isinstance(value, Mapping):
        raise ConfigError(f"{path} must be a mapping, got {schema.show(value)}")
    return dict(value or {})


def _some_mapping(sections: Any, path: str, example: str) -> dict[str, Any]:
    """What is under each label; at least one."""
    if not isinstance(sections, Mapping) or not sections:
        raise ConfigError(
            f"{path} must map labels to sections, such as {example}, got {schema.show(sections)}"
        )
    for label in map(str, sections):
        if not label.strip() or not any(mark.isalnum() for mark in label):
            raise ConfigError(f"{path}: a label must hold a letter or a digit, got {schema.show(label)}")
    return {str(label): section for label, section in sections.items()}


def _labelled(values: Mapping[str, Any], key: str) -> dict[str, dict[str, Any]]:
    """Sections by label; a missing name is the label, a bare string is the name."""
    labelled = {}
    example = "strategies: {l2p: , dualprompt: {e_length: 4}}"
    for label, section in _some_mapping(values.get(key), key, example).items():
        section = {"name": section} if isinstance(section, str) else _mapping(section, f"{key}.{label}")
        labelled[label] = {"name": label} | section
    return labelled


def _scenarios(values: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """By label, what a scenario says of a run: the section `scenario`, and perhaps `online`."""
    several, one = values.get("scenarios"), values.get("scenario")
    if several is not None and one is not None:
        raise ConfigError(
            "give scenario (one section) or scenarios (a mapping of labels to sections), not both"
        )
    if several is None:
        return {"": {"scenario": configuration.named(one, "scenario")}}
    scenarios = {}
    for label, section in _labelled(values, "scenarios").items():
        own = {"online": section.pop("online")} if "online" in section else {}
        try:
            scenarios[label] = {"scenario": configuration.named(section, "scenario"), **own}
        except ConfigError as error:
            text = str(error).replace("scenario.", f"scenarios.{label}.", 1)
            raise ConfigError(text) from None
    return scenarios


def _online_note(scenarios: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A line where the study's `online` counts for several kinds of streams, which is easily overlooked."""
    labels = [label for label, of_run in scenarios.items() if "online" not in of_run]
    if len({scenarios[label]["scenario"]["name"] for label in labels if label}) < 2:
        return []
    return [
        f"online counts for the scenarios {', '.join(labels)}: all of them are trained online; one that is "
        f"not says so: scenarios.{labels[0]}.online=null"
    ]


def _grid(sweep: Any, path: str) -> list[dict[str, Any]]:
    """A mapping of dotted keys for every combination of a sweep's values; an empty one without a sweep."""
    flat = overlay.flat(_mapping(sweep, path)) if sweep else {}
    for key, items in flat.items():
        _check_dotted(key, path)
        if not isinstance(items, list) or not items or any(items.count(value) > 1 for value in items):
            raise ConfigError(f"{path}.{key} must be a list of different values, got {schema.show(items)}")
    return [dict(zip(flat, combination, strict=True)) for combination in itertools.product(*flat.values())]


def _check_dotted(key: str, path: str) -> None:
    if key.partition(".")[0] not in ("training", "strategy") or not key.partition(".")[2]:
        raise ConfigError(f'{path}: a key must begin with "training." or "strategy.", got "{key}"')


def _tuned(path: Path) -> dict[str, dict[str, Any]]:
    """The values of a file that `best` wrote, by label."""
    content = overlay.read_written(path)
    schema.check_keys(content, ("study", "metric", "strategies"), str(path))
    tuned = {
        str(label): overlay.flat(_mapping(values, f"{path}: {label}"))
        for label, values in _mapping(content.get("strategies"), f"{path}: strategies").items()
    }
    for label, values in tuned.items():
        for key in values:
            _check_dotted(key, f"{path}: {label}")
    return tuned


def _text(value: Any) -> str:
    return value if isinstance(value, str) else schema.show(value)


def _place(top: Path, scenario: str, label: str, seed: int) -> Path:
    parts = (plain_name(part) for part in (scenario, label))
    return top.joinpath(*(part for part in parts if part), f"seed{seed}")
