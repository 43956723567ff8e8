"""An experiment: configuration -> stream, strategy and trackers -> run folders."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from clprompt.data.dataset import datasets_for
from clprompt.errors import (
    CheckpointError,
    ClpromptError,
    Interrupted,
    RunFolderError,
    RunsFailed,
)
from clprompt.experiment import config as configuration
from clprompt.experiment import folder as runfolder
from clprompt.experiment.build import Builder, Parts
from clprompt.experiment.config import Config
from clprompt.metrics import accuracy, label_sets
from clprompt.reporting import stream_map
from clprompt.seeding import derive, preserved_rng
from clprompt.system import checkpoint as state
from clprompt.system import overlay
from clprompt.system.files import FolderLock
from clprompt.system.progress import Stopwatch
from clprompt.system.runtime import reproducible, stop_signal
from clprompt.tracking.label_sets import tracker_for
from clprompt.training.engine import Engine, ProgressLike
from clprompt.training.label_set_evaluation import evaluator_for


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
        if not label_sets.is_multi_label(self.records):
            return accuracy.accuracy_matrix(self.records)
        seen = label_sets.curve(self.records)
        return np.column_stack([label_sets.group_matrix(self.records, self.groups), seen])


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
            different = overlay.difference(saved.to_dict(), config.to_dict())
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
    loop: Callable[..., Engine] = Engine
    if config.memory:
        from clprompt.avalanche.replay import MemoryEngine  # Avalanche takes seconds to import

        loop = partial(MemoryEngine, memory=config.memory)
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
        tracker.hyperparameters(overlay.flat(config.to_dict()))
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
