"""What ``clprompt stream`` asks for: the map of a stream from a configuration, a scenario or labels alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from clprompt import registry, schema
from clprompt.data.bundle import plan_over
from clprompt.data.plan import make_plan
from clprompt.errors import ConfigError, DataError, tell
from clprompt.experiment import config, paths
from clprompt.reporting.stream_map import StreamMap
from clprompt.system import overlay
from clprompt.system.files import open_regular


def read(name: str, overrides: Sequence[str] = ()) -> tuple[StreamMap, Path]:
    """The map that ``clprompt stream NAME [KEY=VALUE]...`` asks for, and the file of its drawing.

    Args:
        name: a scenario, or a packaged configuration, or a path to a .yaml file.
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
        targets, names, source = bundle.train.targets, bundle.class_names, data["name"]
        plan = plan_over(bundle, scenario, seed)
        notes = plan.notes(targets, bundle.test.targets, bundle.test.domains)
    title = f"{scenario['name']} stream of {source}, seed {seed}"
    out = Path(files["out"] or f"stream-{scenario['name']}-seed{seed}.png")
    return StreamMap.of(plan, targets, title, names, notes), out


def _values(name: str, overrides: Sequence[str]) -> tuple[dict[str, Any], list[Path]]:
    """The top level of the configuration of that name, or of one with the scenario of that name alone; and
    the folders of its files.
    """
    scenarios = registry.scenarios.names()
    if name.replace("-", "_") in {scenario.replace("-", "_") for scenario in scenarios}:
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
