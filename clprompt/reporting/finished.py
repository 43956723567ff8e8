"""The runs of a report: run folders, read without torch, and what makes two of them comparable or equal."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray

from clprompt import schema
from clprompt.errors import CheckpointError, ClpromptError, ConfigError, RunFolderError
from clprompt.metrics.accuracy import domain_metrics
from clprompt.metrics.measure import (
    TITLES,
    TRAINED_HEAD,
    Accuracy,
    Measure,
    last_evaluation,
    measure_in,
    of_trained_head,
)
from clprompt.schema import at_least, at_most
from clprompt.system.documents import parse_lines, read_json
from clprompt.system.files import read_bytes
from clprompt.system.overlay import flat, read_written

#: What may differ between runs whose results are the same, or says nothing about them.
NO_MATTER = {
    *("seed", "device", "deterministic", "runs_dir", "export", "compare", "retrieval"),
    *("note", "tags", "trackers"),
    *("data.path", "data.source.path", "data.download"),
    *(f"training.{key}" for key in ("eval_mb_size", "workers", "checkpoint_every", "log_every")),
}
#: Runs that a message names, the newest.
_NAMED = 5
#: What a study calls the folders of its runs.
_OF_STUDY = re.compile(r"seed\d+")
#: The sections that make up a stream.
STREAM = ("data", "scenario")


@dataclass(frozen=True)
class Run:
    """A finished run as its folder tells it.

    Attributes:
        folder: the run folder.
        name: its label, or the strategy.
        seed: its seed.
        config: its config.yaml.
        results: its results.json.
        measure: what it was measured by.
        curves: by metric, its values after each experience [T]; [0] where none was measured.
        references: lines that some of these are held against, by the same names, [T].
        anytime: accuracy by the number of samples received, of the online protocol.
        anytime_reference: a line that this is held against, in the same form.
        environment: its environment.json; None where there is none that can be read.
        notes: what a reader should know of it, a line each.
        has_checksums: whether its records could be checked; older versions wrote none.
        domains: accuracy and forgetting of each domain by name, see
            :func:`clprompt.metrics.accuracy.domain_metrics`; {} where the groups are class groups.
        trained_head: the same run as its trained head answered; None where nothing else did.
        is_trained_head: whether this is such a run.
        test_images: how many images of seen classes its last accuracies are over; 0 where that is not told.
    """

    folder: Path
    name: str
    seed: int
    config: dict[str, Any]
    results: dict[str, Any]
    measure: Measure = field(default_factory=Accuracy)
    curves: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    references: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    anytime: dict[int, float] = field(default_factory=dict)
    anytime_reference: dict[int, float] = field(default_factory=dict)
    environment: dict[str, Any] | None = None
    notes: tuple[str, ...] = ()
    has_checksums: bool = False
    domains: dict[str, dict[str, float]] = field(default_factory=dict)
    trained_head: Run | None = None
    is_trained_head: bool = False
    test_images: int = 0

    @property
    def experiences(self) -> int:
        """How many experiences were evaluated at their end."""
        return max(map(len, self.curves.values()), default=0)

    @property
    def settings(self) -> dict[str, Any]:
        """Dotted keys that make up the identity of the run, but for the seed."""
        values = flat(self.config)
        values = {key: value for key, value in values.items() if key not in NO_MATTER and value is not None}
        if "backbone.checkpoint" in values:  # the same weights in the folders of two machines
            values["backbone.checkpoint"] = Path(values["backbone.checkpoint"]).name
        for key, sha256 in ((self.environment or {}).get("files") or {}).items():
            # the same file in the folders of two machines; and of two contents two rows
            values[f"strategy.{key}"] = f"{Path(str(values.get(f'strategy.{key}'))).name} ({sha256[:8]})"
        return values

    @property
    def mask(self) -> str | None:
        """Which classes compete in training; None where nothing is trained so, or no file tells it."""
        written = self.config["strategy"].get("mask")
        return (self.environment or {}).get("mask", written if isinstance(written, str) else None)

    @property
    def not_default(self) -> list[str] | None:
        """The dotted keys of its sections that are not the default; None of an older run."""
        return (self.environment or {}).get("not_default")

    @property
    def stream(self) -> str:
        """What two runs share whose metrics compare: data, scenario, class groups, boundaries or none."""
        keys = {k: v for k, v in self.settings.items() if k.split(".")[0] in STREAM}
        keys["groups"] = self.experiences
        keys["online"] = self.config.get("online") is not None
        return json.dumps(keys, sort_keys=True, default=str)


def find_runs(path: Path) -> list[Path]:
    """The run folders at or below a path, sorted.

    A run folder is one that holds a config.yaml; one that lost it still holds what a run has written last.
    """
    folders = []
    for folder, below, files in os.walk(path):
        if "config.yaml" in (*files, *below) or {"results.json", "metrics.jsonl"} <= set(files):
            folders.append(Path(folder))
            below.clear()  # nothing inside a run folder is another
        below.sort()
    return sorted(folders)


def not_a_run(folder: Path) -> RunFolderError:
    """The mistake of naming a folder that is none of a run; names those below it."""
    text = f"{folder} is not the folder of a run: "
    if not folder.is_dir():
        return RunFolderError(text + "there is no such folder")
    below = find_runs(folder)
    if not below:
        return RunFolderError(text + "it holds no config.yaml")
    more = f" and {len(below) - _NAMED} more" if len(below) > _NAMED else ""
    if all(_OF_STUDY.fullmatch(run.name) for run in below):
        more += "; they are runs of a study, which goes on when its command, clprompt study ..., is repeated"
    return RunFolderError(
        f"{text}it holds no config.yaml, but below it are {', '.join(map(str, below[-_NAMED:]))}{more}"
    )


# ------------------------------------------------------------------------------------- what the files hold


_Amount = Annotated[float, at_least(0)]
_Fraction = Annotated[float, at_least(-1), at_most(1)]


@dataclass(frozen=True)
class _Configuration:
    """What is read of config.yaml."""

    data: dict[str, Any]
    scenario: dict[str, Any]
    strategy: dict[str, Any]
    label: str | None = None
    backbone: dict[str, Any] | None = None
    training: dict[str, Any] | None = None
    online: dict[str, Any] | None = None
    memory: dict[str, Any] | None = None


@dataclass(frozen=True)
class _Results:
    """What is read of results.json beside the metrics."""

    strategy: str
    seed: Annotated[int, at_least(0), at_most(2**32 - 1)]
    cost: dict[str, Any] | None = None
    checksums: dict[str, str] | None = None
    trained_head: dict[str, Any] | None = None


@dataclass(frozen=True)
class _Cost:
    """What is read of `cost`."""

    seconds: _Amount | None = None
    experience_seconds: list[_Amount] | _Amount | None = None
    method_parameters: _Amount | None = None
    peak_memory_bytes: _Amount | None = None


@dataclass(frozen=True)
class _Environment:
    """What is read of environment.json."""

    device: str | None = None
    processor: str | None = None
    processors: int | None = None
    threads: int | None = None
    platform: str | None = None
    python: str | None = None
    versions: dict[str, str | None] | None = None
    git: dict[str, Any] | None = None
    config_sha256: str | None = None
    files: dict[str, str] | None = None
    mask: str | None = None
    not_default: list[str] | None = None


@dataclass(frozen=True)
class _Git:
    """What is read of `git`."""

    commit: str
    modified: bool = False


def read_run(folder: Path) -> Run:
    """A finished run from its folder.

    Raises:
        ClpromptError: a file that cannot be read, was changed, or holds something else.
        Exception: whatever records raise that are none.
    """
    text = _read(folder / "config.yaml")
    config = read_written(folder / "config.yaml")
    _check(_Configuration, config, folder / "config.yaml", "")
    for key in ("strategy", *STREAM):
        schema.check(config[key].get("name"), str, f"config.yaml: {key}.name")
    results = read_results(folder)
    strategy = config["strategy"]["name"]
    if results["strategy"] != strategy:
        raise CheckpointError(f"results.json is of {results['strategy']}, config.yaml of {strategy}")
    data, checksums = _read(folder / "metrics.jsonl"), results.get("checksums") or {}
    if checksums.get("metrics.jsonl", _sha256(data)) != _sha256(data):
        raise CheckpointError(
            f"{folder / 'metrics.jsonl'} was changed or damaged: its records are not those that results.json "
            "was made of"
        )
    # most lines are losses, which nobody reads here
    records = [record for record in parse_lines(data, b'"evaluation"') if record.get("kind") == "evaluation"]
    metrics = {key: results[key] for key in TITLES if results.get(key) is not None}
    if metrics and not records:
        raise CheckpointError(f"{folder / 'metrics.jsonl'} holds no evaluation, results.json does")
    evaluated = {record["experience"] for record in records}
    # what trains once, after the last experience, is evaluated there alone
    if len(evaluated) > 1 and evaluated != set(range(len(evaluated))):
        raise CheckpointError(f"{folder / 'metrics.jsonl'} is cut: it lacks evaluations of some experiences")
    if len({str(record.get("measure")) for record in records}) > 1:
        raise CheckpointError(f"{folder / 'metrics.jsonl'} holds records of several measures")
    measure = measure_in(records)
    summary = measure.summarise(records)
    notes = [] if checksums else _disagreements(metrics, summary)
    # of a run from before there were these metrics its records tell them
    later = {key: summary[key] for key in measure.by_choice if key in summary and key not in results}
    results |= {key: None if math.isnan(value) else value for key, value in later.items()}
    environment, more = _environment(folder, _sha256(text), bool(checksums))
    run = Run(
        folder,
        str(config.get("label") or config["strategy"]["name"]),
        results["seed"],
        config,
        results,
        measure,
        measure.curves(records),
        measure.references(records),
        measure.anytime(records),
        measure.anytime_reference(records),
        environment,
        (*notes, *more),
        bool(checksums),
        domain_metrics(records),
        test_images=_test_images(records),
    )
    return _with_trained_head(run, of_trained_head(records))


def _test_images(records: Sequence[Mapping[str, Any]]) -> int:
    """Over how many images the last accuracies are; 0 where no confusion matrix tells it."""
    last = last_evaluation(records) or {}
    return sum(count for _, _, count in last.get("confusion") or ())


def _with_trained_head(run: Run, records: Sequence[Mapping[str, Any]]) -> Run:
    """A run with what its trained head answered.

    Args:
        run: as it predicts.
        records: see :func:`clprompt.metrics.measure.of_trained_head`.

    Raises:
        CheckpointError: one of results.json and metrics.jsonl knows of a trained head, the other does not.
    """
    metrics = run.results.get(TRAINED_HEAD)
    if bool(records) != (metrics is not None):
        lacks, has = ("results.json", "metrics.jsonl") if records else ("metrics.jsonl", "results.json")
        raise CheckpointError(f"{run.folder / lacks} holds no {TRAINED_HEAD}, its {has} does")
    if metrics is None:
        return run
    measure = run.measure
    told = {key: value for key, value in metrics.items() if key in TITLES and value is not None}
    notes = () if run.has_checksums else tuple(_disagreements(told, measure.summarise(records)))
    trained = replace(
        run,
        results={key: value for key, value in run.results.items() if key not in TITLES} | metrics,
        curves=measure.curves(records),
        anytime=measure.anytime(records),
        domains=domain_metrics(records),
        is_trained_head=True,
    )
    return replace(run, trained_head=trained, notes=(*run.notes, *(f"{TRAINED_HEAD}: {n}" for n in notes)))


def read_results(folder: Path) -> dict[str, Any]:
    """The results of a finished run, checked.

    Raises:
        CheckpointError: the file cannot be read, was changed after it was written, or holds something else.
    """
    path = folder / "results.json"
    results = read_json(path)
    _check(_Results, results, path, "")
    _check(_Cost, results.get("cost") or {}, path, "cost")
    for key in TITLES:
        for metrics, prefix in ((results, ""), (results.get(TRAINED_HEAD) or {}, f"{TRAINED_HEAD}.")):
            if key in metrics:
                try:
                    schema.check(metrics[key], _Fraction | None, prefix + key)
                except ConfigError as error:
                    raise CheckpointError(f"{path}: {error}") from error
    return results


def _read(path: Path) -> bytes:
    try:
        return read_bytes(path)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error


def _check(kind: type, values: Any, path: Path, what: str) -> None:
    """Refuse values of a file that are not of their kind."""
    try:
        schema.held(kind, values, what)
    except ConfigError as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _disagreements(metrics: Mapping[str, float], summary: Mapping[str, float]) -> list[str]:
    """A line where results.json and metrics.jsonl tell different metrics."""
    for key, value in metrics.items():
        if key in summary and not math.isclose(value, summary[key], rel_tol=1e-6, abs_tol=1e-6):
            return [f"results.json says {key}={value:.6g}, its metrics.jsonl {summary[key]:.6g}"]
    return []


def _environment(folder: Path, config: str, is_due: bool) -> tuple[dict[str, Any] | None, list[str]]:
    """The environment of a run, and what is wrong with it.

    Args:
        folder: of the run.
        config: the checksum of its config.yaml.
        is_due: whether it is missed where it is not there.
    """
    path = folder / "environment.json"
    if not os.path.lexists(path):
        return None, ["environment.json is missing"] * is_due
    try:
        environment = read_json(path)
        _check(_Environment, environment, path, "")
        if environment.get("git") is not None:
            _check(_Git, environment["git"], path, "git")
    except ClpromptError as error:
        return None, [str(error)]
    if environment.get("config_sha256", config) != config:
        return environment, ["config.yaml was changed or damaged after the run had begun"]
    return environment, []
