"""An experiment: configuration -> stream, strategy and trackers -> run folders."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from clprompt import registry
from clprompt.data.bundle import files_of_test_images
from clprompt.data.dataset import datasets_for
from clprompt.errors import (
    CheckpointError,
    ClpromptError,
    ConfigError,
    Interrupted,
    ProcessError,
    RunFolderError,
    RunsFailed,
)
from clprompt.experiment import config as configuration
from clprompt.experiment import folder as runfolder
from clprompt.experiment import paths, sameness
from clprompt.experiment.build import Builder, Parts
from clprompt.experiment.config import Config
from clprompt.experiment.notices import notices
from clprompt.experiment.telling import Telling
from clprompt.metrics import measure
from clprompt.reporting import predictions, stream_map
from clprompt.reporting.facts import several_masks
from clprompt.reporting.frame import data_frame
from clprompt.seeding import derive, preserved_rng, rng_state, set_rng_state
from clprompt.system import checkpoint as state
from clprompt.system import launched, overlay
from clprompt.system.documents import write_json
from clprompt.system.files import FolderLock, plain_name
from clprompt.system.progress import Stopwatch, create
from clprompt.system.runtime import find_device, reproducible, stop_signal
from clprompt.tracking.mean_run import write_mean
from clprompt.tracking.records import RECORDS, read_records
from clprompt.tracking.tracker import RunTracker
from clprompt.training.engine import Engine, Listener, ProgressLike
from clprompt.training.evaluation import evaluator_for
from clprompt.training.processes import Processes, check_several, together


@dataclass(frozen=True)
class Result:
    """A finished run.

    Attributes:
        folder: its run folder.
        name: the strategy.
        seed: its seed.
        records: every record of metrics.jsonl.
        summary: the metrics of results.json.
        groups: the class ids of each class group.
        class_names: by class id.
    """

    folder: Path
    name: str
    seed: int
    records: list[dict[str, Any]] = field(repr=False)  # a notebook shows what a cell ends with
    summary: dict[str, Any]
    groups: list[list[int]] = field(repr=False)
    class_names: list[str] = field(default_factory=list, repr=False)

    @property
    def matrix(self) -> np.ndarray:
        """The accuracy matrix [T, T]; for label sets mAP per class group and, last, over all seen classes."""
        return measure.measure_in(self.records).matrix(self.records, self.groups)

    @property
    def trained_head(self) -> dict[str, float] | None:
        """The metrics of the trained head, where something else answered in its place; else None."""
        return measure.trained_head_summary(self.records)


class Results(list[Result]):
    """Finished runs, in the order in which they ran."""

    def to_frame(self) -> Any:
        """A pandas DataFrame with a row for each run: strategy, seed, metrics as fractions, folder.

        Raises:
            ClpromptError: pandas is not installed.
        """
        return data_frame(
            {"strategy": one.name, "seed": one.seed, **one.summary, "folder": str(one.folder)} for one in self
        )


# -------------------------------------------------------------------------------------------- run and resume


def run(
    config: Config | Mapping[str, Any] | str | Path, *, progress: ProgressLike | bool | None = None
) -> Results:
    """Run every seed and every compared strategy of a configuration, each in a run folder of its own.

    Of several processes that torchrun started the first writes the folders and gets the results; the others
    get none.

    Args:
        config: a checked configuration, the same as nested dictionaries, or what :func:`clprompt run` takes:
            the name of a packaged one or a YAML file.
        progress: a display; True for a bar in a terminal or notebook, and lines elsewhere.

    Raises:
        ClpromptError: a mistake of the user, found before any folder is made where that is possible.
        RunsFailed: some of several runs failed; the others are complete.
        ProcessError: another process of the run has ended; none of the runs goes on.
        Interrupted: a signal stopped a run; its checkpoint is written, the folders to resume are named.
    """
    if progress is True:
        with create() as display:
            return run(config, progress=display)
    progress = progress or None
    if isinstance(config, str | Path):
        config = configuration.load(config)
    elif not isinstance(config, Config):
        config = configuration.from_dict(config)
    jobs = [(suffix, configuration.with_paths(job, paths.absolute)) for suffix, job in expand(config)]
    builder = Builder()
    results = Results()
    failures: dict[Path, ClpromptError] = {}
    with together() as processes, stop_signal() as stop:  # a signal between two runs counts
        with processes.main_first() if processes and config.data.get("download") else nullcontext():
            masks = []
            for _, job in jobs:
                _check_processes(job, processes)
                parts = builder.build(job)  # mistakes show before anything is written
                masks.append((job.label or job.strategy["name"], runfolder.training_mask(parts.model)))
        if processes:
            stop = processes.agreed(stop)
        folders = _create(config, jobs, processes)
        if progress and (several := several_masks(masks)):
            progress.message(several)
        for number, folder in enumerate(folders):
            asked = stop()
            if asked is not None:
                raise Interrupted(asked, [*failures, *folders[number:]], results)
            if progress and len(folders) > 1:
                progress.turn(number + 1, len(folders))
            try:
                result = _run_folder(folder, builder, progress, stop, processes)
            except Interrupted as stopped:
                raise Interrupted(stopped.signal, [*failures, *folders[number:]], results) from None
            except ClpromptError as error:  # the other runs are worth having all the same
                if len(folders) == 1 or processes:  # the processes would not know where the others are
                    raise
                failures[folder] = error
            else:
                results += [] if result is None else [result]
    if "tensorboard" in config.trackers:
        _write_means(results)
    if failures:
        raise RunsFailed(failures, results) from next(iter(failures.values()))
    return results


def _write_means(results: Sequence[Result]) -> None:
    """Beside the runs of each strategy, their mean over several seeds, for TensorBoard."""
    of_label: dict[str, list[Result]] = {}
    for result in results:  # 20260101-120000-seed0-mvp
        start, _, label = result.folder.name.partition(f"-seed{result.seed}-")
        of_label.setdefault(f"{start}-mean-{label}", []).append(result)
    for name, several in of_label.items():
        if len(several) > 1:
            runs = [(result.records, result.groups) for result in several]
            write_mean(several[0].folder.parent / name, runs)


def _create(config: Config, jobs: Sequence[tuple[str, Config]], processes: Processes | None) -> list[Path]:
    """The run folders, made by the main process when all have built what they name."""
    if processes:
        processes.wait()
        if not processes.is_main:
            return processes.from_main()
    stamp = time.strftime("%Y%m%d-%H%M%S")
    parent = Path(config.runs_dir) / config.name
    folders = [
        # again absolute: some of it may have been downloaded since
        runfolder.create(parent, f"{stamp}-{suffix}", configuration.with_paths(job, paths.absolute))
        for suffix, job in jobs
    ]
    return processes.from_main(folders) if processes else folders


def _check_processes(config: Config, processes: Processes | None) -> None:
    """Refuse what several processes cannot do together."""
    check_several(processes, config.training)
    if processes and config.memory:
        raise ConfigError(
            "a memory runs in one process, not in several (torchrun): leave out torchrun, or memory"
        )


def resume(
    folder: str | Path, *, checkpoint: str | Path | None = None, progress: ProgressLike | None = None
) -> Result | None:
    """Continue an interrupted run to the same bits as if it had never stopped.

    Of several processes that torchrun started the first gets the result, the others None. With another number
    of processes than before the bits are others.

    Args:
        folder: of the run.
        checkpoint: the file of the backbone's weights, where it is not any more where the run had it.
        progress: a display.

    Raises:
        RunFolderError: not a run folder, complete, or in use.
        CheckpointError: damaged, or of another configuration.
    """
    try:
        with together() as processes, stop_signal() as stop:
            if processes:
                stop = processes.agreed(stop)
            return _run_folder(Path(folder), Builder(), progress, stop, processes, checkpoint)
    except Interrupted as stopped:
        raise Interrupted(stopped.signal, [Path(folder)]) from None


def expand(config: Config) -> list[tuple[str, Config]]:
    """One configuration per run: (suffix of the folder name, configuration)."""
    jobs = []
    for seed in config.seeds:
        for number, (section, training) in enumerate(config.strategies()):
            label = None if number else config.label  # which names the strategy, not what it is compared with
            job = replace(config, label=label, seed=seed, strategy=section, training=training, compare=[])
            jobs.append((f"seed{seed}-{plain_name(label or section['name'])[:60]}", job))
    return jobs


@contextmanager
def _saying_how_to_resume(folder: Path) -> Iterator[None]:
    """What ends because another process did says in which folder, and how it goes on."""
    try:
        yield
    except ProcessError as error:
        again = f"{launched.command()}{shlex.join(['clprompt', 'resume', str(folder)])}"
        raise ProcessError(f"{folder}: {error}; continue with: {again}") from error


@contextmanager
def _failure_in_log(folder: Path) -> Iterator[None]:
    """What ends a run stands in its run.log."""
    try:
        yield
    except Interrupted:
        raise
    except Exception as error:
        with suppress(ClpromptError):  # the folder may be what is wrong
            runfolder.log(folder, f"failed: {' '.join(str(error).split()) or type(error).__name__}")
        raise


def _run_folder(
    folder: Path,
    builder: Builder,
    progress: ProgressLike | None,
    stop: Callable[[], int | None],
    processes: Processes | None,
    weights: str | Path | None = None,
) -> Result | None:
    if not folder.is_dir():
        raise RunFolderError(f"{folder} is not a run folder: there is no such folder")
    config = runfolder.read_config(folder)
    if weights is not None:
        config = replace(config, backbone=paths.with_weights(config.backbone, weights))
    _check_processes(config, processes)
    # The same global random state whatever ran before in this process, for methods that draw from it.
    with (
        _saying_how_to_resume(folder),
        FolderLock(folder) if processes is None or processes.is_main else nullcontext(),
        reproducible(find_device(config.device), deterministic=config.deterministic),
        preserved_rng(derive(config.seeds[0], "run")),
    ):
        if processes:
            processes.wait()  # until the folder is locked
        runfolder.refuse_finished(folder)
        checkpoint = state.load_checkpoint(folder)
        if checkpoint is not None:
            state.check_payload(folder, checkpoint)
            saved = configuration.from_dict(checkpoint["config"], name=config.name, of_run=True)
            saved = configuration.with_paths(saved, paths.of_run(folder))
            may_move = sameness.places(checkpoint.get("fingerprints") or sameness.of_older(folder))
            different = [
                key for key in overlay.difference(saved.to_dict(), config.to_dict()) if key not in may_move
            ]
            if different:
                raise CheckpointError(
                    f"{folder}: the checkpoint is of another configuration; different: {', '.join(different)}"
                )
        parts = builder.build(config, restored=checkpoint is not None)
        runfolder.forget_peak_memory(parts.device)
        session = Session(folder, config, parts, checkpoint, progress, stop, processes)
        with _failure_in_log(folder):
            return session.run()


class Session:
    """One run, from the start or from its checkpoint, to its results.

    Args:
        folder: the run folder, locked.
        config: of this one run.
        parts: what it names, built.
        checkpoint: what `save` wrote; None starts afresh.
        progress: a display.
        stop: asked after each batch; a signal number makes the run write a checkpoint and raise Interrupted.
        processes: those that make the run together, of which the main one writes; None for one alone.

    Raises:
        CheckpointError: the folder's files do not fit the checkpoint.
    """

    def __init__(
        self,
        folder: Path,
        config: Config,
        parts: Parts,
        checkpoint: Mapping[str, Any] | None,
        progress: ProgressLike | None,
        stop: Callable[[], int | None],
        processes: Processes | None = None,
    ) -> None:
        self.folder = folder
        self.processes = processes
        self._writes = processes is None or processes.is_main
        self.config = config
        self.parts = parts
        self.progress = progress
        self.groups = [list(group) for group in parts.plan.groups]
        self._environment = runfolder.environment(parts.model, parts.device)
        then = (checkpoint.get("fingerprints") or sameness.of_older(folder)) if checkpoint else None
        self._fingerprints = sameness.fingerprints(parts, self._environment["backbone"]["sha256"], then)
        if then is not None:
            sameness.check(then, self._fingerprints, config, folder)
        self._spent = checkpoint["seconds"] if checkpoint else 0.0
        self._started = time.perf_counter()
        self._watch = Stopwatch(checkpoint["experience_seconds"] if checkpoint else ())
        train, clean, test = datasets_for(parts.bundle, parts.backbone)
        if parts.device.type == "cuda" and not config.memory:
            for images in (train, clean, test):
                images.send_bytes(parts.model.backbone)
        evaluator = evaluator_for(
            parts.plan,
            test,
            parts.bundle.test.targets,
            online=config.online is not None,
            batch_size=config.training.eval_mb_size,
            workers=config.training.workers,
            precision=config.precision,
            retrieval=config.retrieval,
            processes=processes,
        )
        self.measure = evaluator.measure
        listeners: list[Listener] = []
        loop: Callable[..., Engine] = Engine
        if config.memory:
            from clprompt.avalanche.replay import MemoryEngine  # Avalanche takes seconds to import

            loop = partial(MemoryEngine, memory=config.memory)
        self.engine = loop(
            parts.model,
            train,
            parts.plan.indices,
            parts.plan.classes,
            clean=clean,
            evaluator=evaluator,
            training=config.training,
            online=config.online,
            is_ordered=parts.plan.is_ordered,
            seed=config.seeds[0],
            precision=config.precision,
            listeners=listeners,
            progress=progress,
            checkpoint=self.save,
            stop=stop,
            processes=processes,
        )
        if checkpoint:
            with runfolder.fitting(folder / state.CHECKPOINT):
                self.engine.load_state(checkpoint["engine"])  # before the tracker cuts any file
                if self._writes:
                    self._check_records(read_records(folder, checkpoint["sizes"].get(RECORDS, 0)))
        self._checkpoint = checkpoint
        # of the file with the last predictions, once it is written
        then = (checkpoint or {}).get("checksums") or {}
        self._predictions = {name: then[name] for name in [predictions.PREDICTIONS] if name in then}
        if not self._writes:
            return
        self.tracker = RunTracker(
            folder,
            parts.bundle.class_names,
            self.groups,
            checkpoint and checkpoint["sizes"],
            checksums=checkpoint and checkpoint.get("checksums"),
            measure=self.measure,
            sinks=[registry.sinks.get(name).target for name in config.trackers],  # type: ignore[misc]
            experiences=len(parts.plan.indices),
        )
        listeners.append(self.tracker)
        self.telling = Telling(folder, progress, self.tracker, len(parts.plan.indices))
        listeners.append(self.telling)

    @property
    def seconds(self) -> float:
        """The time that the run has taken, before it was resumed too."""
        return self._spent + time.perf_counter() - self._started

    def save(self) -> None:
        """Write a checkpoint of the run as it stands; at the end of the stream its last predictions first."""
        # a method may have drawn from a process's global random state
        states = self.processes.on_main(rng_state()) if self.processes else None
        if not self._writes:
            return
        # the logs first: the checkpoint names how far they count
        sizes = self.tracker.flush()
        at = self.engine.position
        last = self.engine.evaluator.last if self.engine.evaluator else None
        if last is not None and at.experience == len(self.parts.plan.indices):
            last = replace(last, test_set=sameness.known_by(self._fingerprints["test images"]))
            self._predictions = {predictions.PREDICTIONS: predictions.write(self.folder, last)}
            files, common = files_of_test_images(self.parts.bundle)
            if files:
                names = self.parts.bundle.class_names
                predictions.write_images(self.folder, last, files, common, names)
        payload = {
            "config": self.config.to_dict(),
            "sizes": sizes,
            "checksums": {**self.tracker.checksums, **self._predictions},
            "fingerprints": self._fingerprints,
            "seconds": self.seconds,
            # at the very beginning of an experience, the time was the one before's
            "experience_seconds": self._watch.lap(at.experience - (at.epoch == at.batch == 0)),
            "engine": self.engine.state(),
            **({} if states is None else {"rng": states}),
        }
        state.save_checkpoint(self.folder, payload)

    def _restore_rng(self) -> None:
        """Global random states as they were when the checkpoint was written, each process its own."""
        if self._checkpoint is None:
            return
        states = self._checkpoint.get("rng") or []
        if self.processes and len(states) == self.processes.count:
            set_rng_state(states[self.processes.rank])
        else:
            set_rng_state(self._checkpoint["engine"]["rng"])

    def _of_several(self) -> dict[str, Any]:
        """How many processes there are, where there are several."""
        return {"processes": self.processes.count} if self.processes else {}

    def run(self) -> Result | None:
        """Train to the end of the stream, write everything that a finished run leaves, the results last.

        Returns:
            None in a process that does not write.

        Raises:
            Interrupted: a signal stopped it; its checkpoint is written.
        """
        config, bundle = self.config, self.parts.bundle
        if not self._writes:
            self._restore_rng()
            self.engine.run()
            return None
        try:
            self._begin()
            self.engine.run()
            summary = self.tracker.finish()
            stream_map.draw(self.folder, self.parts.plan, bundle.train.targets, bundle.class_names)
        except Interrupted as stopped:
            runfolder.log(self.folder, f"stopped by signal {stopped.signal} at {self.engine.position}")
            raise
        finally:
            self.tracker.close()
        runfolder.export_model(self.folder, self.parts.model, config, bundle)
        write_json(self.folder / runfolder.RESULTS, self.results(summary))
        runfolder.log(self.folder, "done")
        return Result(
            self.folder,
            config.strategy["name"],
            config.seeds[0],
            list(self.tracker.records),
            summary,
            self.groups,
            list(bundle.class_names),
        )

    def results(self, summary: Mapping[str, float]) -> dict[str, Any]:
        """What `results.json` holds: the metrics, and apart from them what they cost."""
        model = self.parts.model
        trained = (value for name, value in model.named_parameters() if not name.startswith("backbone."))
        cost = {
            "seconds": self.seconds,
            "experience_seconds": self._watch.seconds,
            "steps": self.engine.position.step,
            "method_parameters": sum(value.numel() for value in trained),
            "state_numbers": model.state_size(),
            "model": model.describe(),
            "peak_memory_bytes": runfolder.peak_memory(self.parts.device),
            "device": self._environment["device"],
            **self._of_several(),
        }
        checksums = {RECORDS: self.tracker.checksums[RECORDS], **self._predictions}
        trained_head = measure.trained_head_summary(self.tracker.records)
        return runfolder.results(self.config, summary, cost, model.rehearsal_free, checksums, trained_head)

    def _check_records(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Refuse records that end elsewhere than the engine goes on.

        Raises:
            CheckpointError: there are more, or fewer, evaluations than experiences.
        """
        evaluations = [record["when"] for record in records if record.get("kind") == "evaluation"]
        ends, over = evaluations.count("experience"), self.engine.position.experience
        if self.parts.model.revisits == "last":  # evaluated once, at the end
            over //= len(self.parts.plan.indices)
        if ends != over:
            raise CheckpointError(f"{over} experiences are over, but {RECORDS} holds {ends} evaluations")

    def _begin(self) -> None:
        """Write what a folder holds from the start, or go to where the checkpoint was written."""
        folder, config, parts = self.folder, self.config, self.parts
        title = f"{config.label or config.strategy['name']}, seed {config.seeds[0]}"
        self.telling.begin(title, self.engine.position.experience)
        self.tracker.settings(overlay.flat(config.to_dict()))
        if self._checkpoint is None:
            of_config = {
                "config_sha256": runfolder.config_checksum(folder),
                "not_default": configuration.not_default(config),
            }
            facts = {**self._environment, **self._of_several(), **of_config}
            write_json(folder / "environment.json", facts)
            runfolder.log(folder, f"start: {config.strategy['name']}, seed {config.seeds[0]}")
            for note in notices(config, parts, self.engine.evaluator):
                self.telling.note(note)
        else:
            self._restore_rng()
            if parts.plan.is_ordered and not self.engine.is_ordered:
                runfolder.log(
                    folder, "the checkpoint is of a run that shuffles its sessions, as it goes on to"
                )
            runfolder.log(folder, f"resume at {self.engine.position}")
            before = len(self._checkpoint.get("rng") or [0])
            now = self.processes.count if self.processes else 1
            if before != now:
                self.telling.note(
                    f"begun in {before} processes, goes on in {now}: figures differ in their last digits"
                )
            if not self._checkpoint.get("fingerprints"):
                runfolder.log(
                    folder, "the checkpoint holds no fingerprints: classes and images are not compared"
                )
        if config.training.compile:
            self.telling.note(
                "torch compiles the training step when it is first taken, and anew when the model grows; "
                "each time takes minutes in which nothing is told"
            )
