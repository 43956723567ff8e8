"""What ``clprompt stream`` asks for: the map of a stream from a configuration, a scenario or labels alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from clprompt import registry, schema
from clprompt.data.bundle import DataBundle, plan_over
from clprompt.data.plan import make_plan
from clprompt.errors import ConfigError, DataError, tell
from clprompt.experiment import config, paths
from clprompt.experiment import study as studies
from clprompt.reporting.stream_map import StreamMap
from clprompt.system import overlay
from clprompt.system.files import open_regular


def read(name: str, overrides: Sequence[str] = ()) -> list[tuple[StreamMap, Path]]:
    """The maps that ``clprompt stream NAME [KEY=VALUE]...`` asks for, each with the file of its drawing.

    Args:
        name: a scenario, a packaged configuration or study, or a path to a .yaml file of either; a study has
            a map for each of its scenarios.
        overrides: as for a run (``scenario.n=30``, ``data=digits``, ``seed=3``); besides, ``labels=FILE.npy``
            reads class ids instead of a data set, and ``out=FILE.png`` says where to draw.

    Raises:
        ClpromptError: whatever a user can get wrong, in one line.
    """
    files: dict[str, str | None] = {"labels": None, "out": None}
    rest = []
    for text in overrides:
        key, equals, value = text.partition("=")
        if equals and key.strip() in files:
            files[key.strip()] = value.strip()
        else:
            rest.append(text)
    study = _study(name, rest)
    if study is not None:
        if files["labels"] is not None:
            raise ConfigError("labels=FILE.npy goes with a configuration or a scenario, not with a study")
        return _of_study(study, files["out"])
    values, folders = _values(name, rest)
    find = paths.beside(folders)
    scenario = config.named(values.get("scenario"), "scenario")
    scenario = config.section_with_paths(scenario, "scenario", find)
    seed, *others = config.check_seed(values.get("seed", 0))
    if others:
        tell(f"the stream of seed {seed}; of others: seed={others[0]}")
    if files["labels"] is None and values.get("data") is None:
        raise ConfigError("the stream needs labels: give data=NAME or labels=FILE.npy")
    if files["labels"] is not None:
        targets, names, source = _labels(files["labels"]), None, Path(files["labels"]).name
        plan = make_plan(scenario, targets, seed=seed, data=source)
        notes = plan.notes(targets, targets)
    else:
        data = config.section_with_paths(config.named(values["data"], "data"), "data", find)
        bundle = registry.datasets.get(data["name"]).target(**_arguments(data))
        return [(_over(bundle, data["name"], scenario, seed), _file(files["out"], scenario["name"], seed))]
    title = f"{scenario['name']} stream of {source}, seed {seed}"
    drawn = StreamMap.of(plan, targets, title, names, notes)
    return [(drawn, _file(files["out"], scenario["name"], seed))]


def _over(bundle: DataBundle, source: str, scenario: Mapping[str, Any], seed: int) -> StreamMap:
    """The map of a stream over a data set."""
    targets = bundle.train.targets
    plan = plan_over(bundle, scenario, seed)
    notes = plan.notes(targets, bundle.test.targets, bundle.test.domains)
    title = f"{scenario['name']} stream of {source}, seed {seed}"
    return StreamMap.of(plan, targets, title, bundle.class_names, notes)


def _file(out: str | None, name: str, seed: int) -> Path:
    return Path(out or f"stream-{name}-seed{seed}.png")


def _study(name: str, overrides: Sequence[str]) -> studies.Study | None:
    """The study of that name, or of that file; None where it is something else."""
    if _is_scenario(name):
        return None
    try:
        path = overlay.find(name, "study")
    except ConfigError:
        return None
    is_study = config.STUDY_KEYS & set(overlay.read(path))
    return studies.load(path, overrides) if is_study else None


def _of_study(study: studies.Study, out: str | None) -> list[tuple[StreamMap, Path]]:
    """A map for each scenario of a study on each of its data sets, at the first seed."""
    first: dict[str, tuple[str, config.Config]] = {}
    for run in study.runs:
        key = repr((run.config.data, run.config.scenario))
        first.setdefault(key, (run.scenario or run.config.scenario["name"], run.config))
    bundles: dict[str, DataBundle] = {}
    maps = []
    for label, run_config in first.values():
        data, seed = run_config.data, run_config.seeds[0]
        key = repr(data)
        if key not in bundles:
            bundles[key] = registry.datasets.get(data["name"]).target(**_arguments(data))
        file = _file(None, label, seed)
        if out is not None:
            given = Path(out)
            file = given if len(first) == 1 else given.with_name(f"{given.stem}-{label}{given.suffix}")
        maps.append((_over(bundles[key], data["name"], run_config.scenario, seed), file))
    return maps


def _values(name: str, overrides: Sequence[str]) -> tuple[dict[str, Any], list[Path]]:
    """The top level of the configuration of that name, or of one with the scenario of that name alone; and
    the folders of its files.
    """
    scenarios = registry.scenarios.names()
    if _is_scenario(name):
        raw: dict[str, Any] = {"scenario": {"name": name}}
        path, folders = Path(name), []
    else:
        try:
            path = overlay.find(name)
        except ConfigError as error:
            raise ConfigError(f"{error}, or a scenario ({', '.join(scenarios)})") from None
        raw, files, overrides = overlay.read_based(path, overrides, config.NAMED_SECTIONS)
        folders = [file.parent for file in files]
    overlay.apply(raw, overrides, sections={"data", "scenario"})
    schema.check_keys(raw, config.KEYS, "")
    return overlay.resolve(raw, path), folders


def _is_scenario(name: str) -> bool:
    return name.replace("-", "_") in {known.replace("-", "_") for known in registry.scenarios.names()}


def _arguments(section: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in section.items() if key != "name"}


def _labels(path: str) -> np.ndarray:
    """Class ids from a .npy file."""
    try:
        with open_regular(path) as file:
            return np.load(file, allow_pickle=False)
    except FileNotFoundError:
        raise DataError(f"labels: there is no file {path}") from None
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"labels: {path} is not a .npy file of class ids: {error}") from None
