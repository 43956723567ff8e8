"""An experiment: configuration -> stream, strategy and trackers -> run folders."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from clprompt import config as configuration
from clprompt import metrics, multilabel_metrics, registry, runfolder, state, strategies, stream_map
from clprompt.backbone import FrozenViT
from clprompt.config import Config
from clprompt.data import DataBundle, datasets_for, make_transform
from clprompt.engine import Engine, ProgressLike
from clprompt.errors import (
    CheckpointError,
    ClpromptError,
    ConfigError,
    Interrupted,
    RunFolderError,
    RunsFailed,
)
from clprompt.files import FolderLock
from clprompt.model import PromptModel
from clprompt.multilabel_evaluation import evaluator_for
from clprompt.multilabel_tracking import tracker_for
from clprompt.progress import Stopwatch
from clprompt.seeding import derive, preserved_rng


@dataclass(frozen=True)
class Result:
    """A finished run.

    Attributes:
        folder: its run folder.
        name: the strategy. seed: its seed.
        records: every record of metrics.jsonl.
        summary: the metrics of results.json.
        groups: the class ids of each class group.
    """

    folder: Path
    name: str
    seed: int
    records: list[dict[str, Any]]
    summary: dict[str, Any]
    groups: list[list[int]]

    @property
    def matrix(self) -> np.ndarray:
        """The accuracy matrix [T, T]; for multi-hot targets mAP per class group and, last, over all seen classes."""
        if not multilabel_metrics.is_multi_label(self.records):
            return metrics.accuracy_matrix(self.records)
        seen = multilabel_metrics.curve(self.records)
        return np.column_stack([multilabel_metrics.group_matrix(self.records, self.groups), seen])


@dataclass
class Parts:
    """What a configuration names, built: the data, the backbone, the stream and the model of one run."""

    bundle: DataBundle
    backbone: FrozenViT
    plan: Any
    model: PromptModel
    device: torch.device
    test_groups: list[np.ndarray] = field(default_factory=list)


class Builder:
    """Builds the parts of runs; data and backbone are shared by runs that name the same ones."""

    def __init__(self) -> None:
        self._made: dict[str, Any] = {}

    def build(self, config: Config) -> Parts:
        """The parts of one run.

        Raises:
            ClpromptError: whatever does not fit together.
        """
        device = find_device(config.device)
        bundle = self._once("data", config.data, lambda: make_registered(registry.datasets, config.data))
        backbone = self._once("backbone", config.backbone, lambda: make_backbone(config.backbone))
        make_transform(backbone)  # refuses a backbone that no image fits
        seed = config.seeds[0]
        plan = make_registered(registry.scenarios, config.scenario, bundle.train.targets, seed=seed)
        model = make_registered(registry.strategies, config.strategy, backbone, seed=seed)
        if config.online and model.boundaries == "required":
            raise ConfigError(
                f"strategy {config.strategy['name']} needs experience boundaries, which an online stream does not "
                "show; use its boundary-free form (strategy.boundary_free=true) where it has one"
            )
        if config.memory:
            config.memory.check_model(model, bundle.train.targets)
        model.meet([bundle.class_names[c] for group in plan.classes for c in group])
        groups = list(plan.test_groups(bundle.test.targets))
        return Parts(bundle, backbone, plan, model.to(device), device, groups)

    def _once(self, kind: str, section: dict[str, Any], make: Callable[[], Any]) -> Any:
        key = f"{kind}:{sorted(section.items(), key=str)!r}"
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]


def make_registered(known: registry.Registry, section: dict[str, Any], *positional: Any, **fixed: Any) -> Any:
    """Call what is registered under a section's name with the section's arguments."""
    entry = known.get(section["name"])
    # A constructor may draw its initial values from there.
    with preserved_rng(derive(fixed.get("seed", 0), "build", entry.name)):
        return entry.target(*positional, **fixed, **{k: v for k, v in section.items() if k != "name"})


def make_backbone(section: dict[str, Any]) -> FrozenViT:
    """The frozen backbone of a `backbone` section."""
    arguments = dict(section)
    return FrozenViT(arguments.pop("name"), **arguments)


def find_device(name: str) -> torch.device:
    """The torch device of a name; "auto" takes a GPU where there is one.

    Raises:
        ConfigError: a device that is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()  # "meta" has devices, but no numbers
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ConfigError(
            f'device "{name}" is not there; use auto, cpu, or a device of this machine'
        ) from error
    return device


# ---------------------------------------------------------------------------------------------- run and resume


def run(config: Config | Mapping[str, Any], *, progress: ProgressLike | None = None) -> list[Result]:
    """Run every seed and every compared strategy of a configuration, each in a run folder of its own.

    Args:
        config: a checked configuration, or the same as nested dictionaries.
        progress: a display.

    Raises:
        ClpromptError: a mistake of the user, found before any folder is made where that is possible.
        RunsFailed: some of several runs failed; the others are complete.
        Interrupted: a signal stopped a run; its checkpoint is written, the folders to resume are named.
    """
    if not isinstance(config, Config):
        config = configuration.from_dict(config)
    jobs = expand(config)
    builder = Builder()
    for _, job in jobs:
        builder.build(job)  # mistakes show before anything is written
    stamp = time.strftime("%Y%m%d-%H%M%S")
    parent = Path(config.runs_dir) / config.name
    folders = [runfolder.create(parent, f"{stamp}-{suffix}", job) for suffix, job in jobs]
    results: list[Result] = []
    failures: dict[Path, ClpromptError] = {}
    with stop_signal() as stop:  # around all runs: a signal between two of them counts
        for number, folder in enumerate(folders):
            asked = stop()
            if asked is not None:
                raise Interrupted(asked, [*failures, *folders[number:]], results)
            try:
                results.append(_run_folder(folder, builder, progress, stop))
            except Interrupted as stopped:
                raise Interrupted(stopped.signal, [*failures, *folders[number:]], results) from None
            except ClpromptError as error:  # the other runs are worth having all the same
                if len(folders) == 1:
                    raise
                failures[folder] = error
    if failures:
        raise RunsFailed(failures, results) from next(iter(failures.values()))
    return results


def resume(folder: str | Path, *, progress: ProgressLike | None = None) -> Result:
    """Continue an interrupted run to the same bits as if it had never stopped.

    Raises:
        RunFolderError: not a run folder, complete, or in use.
        CheckpointError: damaged, or of another configuration.
    """
    try:
        with stop_signal() as stop:
            return _run_folder(Path(folder), Builder(), progress, stop)
    except Interrupted as stopped:
        raise Interrupted(stopped.signal, [Path(folder)]) from None


def expand(config: Config) -> list[tuple[str, Config]]:
    """One configuration per run: (suffix of the folder name, configuration)."""
    jobs = []
    for seed in config.seeds:
        for number, (section, training) in enumerate(config.strategies()):
            suffix = f"seed{seed}" + (f"-{section['name']}" if number else "")
            job = replace(config, seed=seed, strategy=section, training=training, compare=[])
            jobs.append((suffix, job))
    return jobs


def _run_folder(
    folder: Path, builder: Builder, progress: ProgressLike | None, stop: Callable[[], int | None]
) -> Result:
    if not folder.is_dir():
        raise RunFolderError(f"{folder} is not a run folder: there is no such folder")
    config = runfolder.read_config(folder)
    # The same global random state whatever ran before in this process, for methods that draw from it.
    with FolderLock(folder), reproducible(), preserved_rng(derive(config.seeds[0], "run")):
        runfolder.refuse_finished(folder)
        checkpoint = state.load_checkpoint(folder)
        if checkpoint is not None:
            saved = configuration.from_dict(checkpoint["config"], name=config.name)
            different = configuration.difference(saved, config)
            if different:
                raise CheckpointError(
                    f"{folder}: the checkpoint is of another configuration; different: {', '.join(different)}"
                )
        parts = builder.build(config)
        return _train(folder, config, parts, checkpoint, progress, stop)


def _train(
    folder: Path,
    config: Config,
    parts: Parts,
    checkpoint: dict[str, Any] | None,
    progress: ProgressLike | None,
    stop: Callable[[], int | None],
) -> Result:
    model, bundle = parts.model, parts.bundle
    groups = [list(group) for group in parts.plan.classes]
    sizes, targets = checkpoint and checkpoint["sizes"], bundle.test.targets
    tracker = tracker_for(folder, bundle.class_names, groups, sizes, targets)
    spent = checkpoint["seconds"] if checkpoint else 0.0
    started = time.perf_counter()
    watch = Stopwatch(checkpoint["experience_seconds"] if checkpoint else ())

    def save() -> None:
        # the logs first: the checkpoint names how far they count
        sizes = tracker.flush()
        seconds = spent + time.perf_counter() - started
        at = engine.position
        payload = {
            "config": config.to_dict(),
            "sizes": sizes,
            "seconds": seconds,
            # at the very beginning of an experience, the time was the one before's
            "experience_seconds": watch.lap(at.experience - (at.epoch == at.batch == 0)),
            "engine": engine.state(),
        }
        state.save_checkpoint(folder, payload)

    train, clean, test = datasets_for(bundle, parts.backbone)
    loop = partial(strategies.MemoryEngine, memory=config.memory) if config.memory else Engine
    engine = loop(
        model,
        train,
        parts.plan.indices,
        parts.plan.classes,
        clean=clean,
        evaluator=evaluator_for(
            parts.plan,
            test,
            targets,
            batch_size=config.training.eval_mb_size,
            workers=config.training.workers,
            precision=config.precision,
        ),
        training=config.training,
        online=config.online,
        seed=config.seeds[0],
        precision=config.precision,
        listeners=[tracker],
        progress=progress,
        checkpoint=save,
        stop=stop,
    )
    facts = runfolder.environment(model, parts.device)
    try:
        if checkpoint is None:
            runfolder.write_json(folder / "environment.json", facts)
            runfolder.log(folder, f"start: {config.strategy['name']}, seed {config.seeds[0]}")
            notes = parts.plan.notes(bundle.train.targets, targets)
            for note in [*notes, str(config.memory)] if config.memory else notes:
                runfolder.log(folder, note)
                if progress:
                    progress.message(note)
        else:
            engine.load_state(checkpoint["engine"])
            runfolder.log(folder, f"resume at {engine.position}")
        if progress:
            progress.start(f"{config.strategy['name']}, seed {config.seeds[0]}", len(parts.plan.indices))
            progress.message(str(folder))
        engine.run()
        tracker.hyperparameters(configuration.flat(config.to_dict()))
        summary = tracker.finish()
        if config.online and np.ndim(targets) == 1:
            stream_map.draw(folder, parts.plan, bundle.train.targets, bundle.class_names)
        records = list(tracker.records)
    except Interrupted as stopped:
        runfolder.log(folder, f"stopped by signal {stopped.signal} at {engine.position}")
        raise
    finally:
        tracker.close()
    runfolder.export_model(folder, model, config, bundle)
    seconds = spent + time.perf_counter() - started
    own = (value for name, value in model.named_parameters() if not name.startswith("backbone."))
    runfolder.write_json(
        folder / runfolder.RESULTS,
        {
            "strategy": config.strategy["name"],
            "seed": config.seeds[0],
            "rehearsal_free": model.rehearsal_free and config.memory is None,
            **summary,
            "per_seed": {key: {str(config.seeds[0]): value} for key, value in summary.items()},
            "cost": {
                "seconds": seconds,
                "experience_seconds": watch.seconds,
                "steps": engine.position.step,
                "method_parameters": sum(value.numel() for value in own),
                "state_numbers": model.state_size(),
                "model": model.describe(),
                "peak_memory_bytes": runfolder.peak_memory(parts.device),
                "device": facts["device"],
            },
        },
    )
    runfolder.log(folder, "done")
    return Result(folder, config.strategy["name"], config.seeds[0], records, summary, groups)


# ------------------------------------------------------------------------------------- signals, reproducibility


@contextlib.contextmanager
def stop_signal() -> Iterator[Callable[[], int | None]]:
    """Turn the first SIGINT or SIGTERM into a question that the loop asks; a second one acts at once."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return

    def handle(number: int, frame: Any) -> None:
        received.append(number)
        signal.signal(number, previous[number])

    previous: dict[int, Any] = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
    for number in previous:
        signal.signal(number, handle)
    try:
        yield lambda: received[0] if received else None
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def reproducible() -> Iterator[None]:
    """Ask torch for deterministic algorithms while a run lasts."""
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    benchmark = torch.backends.cudnn.benchmark
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        torch.backends.cudnn.benchmark = benchmark
