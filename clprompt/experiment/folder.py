"""The run folder: what an experiment leaves behind, and how it is told apart from one that is not finished.

==================== ==================================================================================
config.yaml          the resolved configuration of this one run
environment.json     versions, source revision, machine, parameter counts, backbone source and fingerprint,
                     the training mask, and which keys of the configuration are not the default
run.log              what happened, with times: how well each experience went, why a run failed
notes.json           what `clprompt runs note` and `tag` wrote, if they did
metrics.jsonl        every record (append-only, no times: equal for equal runs)
*tfevents*           what TensorBoard shows (append-only); it calls the run what the folder is called
checkpoint/          from which ``clprompt resume`` continues to the same bits
figures/, *.csv      drawings and tables of the metrics
predictions.npz      what the last evaluation predicted, image by image; see clprompt.reporting.predictions
test_images.csv      which file each of those images is, where the data are files
model.safetensors    the method's tensors (and the backbone's, as `export` says); model.json says which
                     method, backbone, classes and transforms
results.json         written last: its presence means that the run is done
==================== ==================================================================================
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.resources
import os
import platform
import subprocess
import time
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from clprompt.data.bundle import DataBundle
from clprompt.errors import CheckpointError, ClpromptError, RunFolderError
from clprompt.experiment import config as configuration
from clprompt.experiment import paths, sameness
from clprompt.experiment.config import Config
from clprompt.metrics import measure
from clprompt.prompting.model import PromptModel
from clprompt.system import memory, overlay
from clprompt.system.documents import write_json
from clprompt.system.files import atomic_write, one_line_errors, open_regular, read_bytes
from clprompt.targets import is_label_sets

RESULTS = "results.json"
#: What the checksum of model.json leaves out: the places of a backbone and of files may be mended, and what
#: stands there has checksums of its own in there.
UNCOVERED = ("backbone", "files")
_PACKAGES = ("clprompt", "torch", "torchvision", "timm", "avalanche-lib", "numpy", "scikit-learn")


def create(parent: Path, name: str, config: Config) -> Path:
    """Make a run folder with its configuration; a name that is taken gets a number.

    Raises:
        ClpromptError: the folder cannot be written.
    """
    text = configuration.to_yaml(config)
    for number in range(1, 1000):
        folder = parent / (name if number == 1 else f"{name}-{number}")
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        atomic_write(folder / "config.yaml", text)
        return folder
    raise RunFolderError(f"{parent / name} and its numbered successors exist already")


def read_config(folder: Path) -> Config:
    """The configuration of a run folder, its files and folders looked for there, too.

    Raises:
        RunFolderError: not a run folder.
    """
    path = folder / "config.yaml"
    if not path.exists():
        raise RunFolderError(f"{folder} is not a run folder: it has no config.yaml")
    config = configuration.from_dict(overlay.read_written(path), name=path.stem, of_run=True)
    return configuration.with_paths(config, paths.of_run(folder))


def config_checksum(folder: Path) -> str:
    """SHA-256 of a run folder's configuration as it stands there.

    Raises:
        RunFolderError: it cannot be read.
    """
    try:
        return hashlib.sha256(read_bytes(folder / "config.yaml")).hexdigest()
    except OSError as error:
        raise RunFolderError(f"{folder / 'config.yaml'} cannot be read: {error.strerror or error}") from error


@contextlib.contextmanager
def fitting(path: Path) -> Iterator[None]:
    """Tell what tensors of a file do to a model that they were not made for as a mistake in the file.

    Raises:
        CheckpointError: in place of whatever torch and a method raise inside the block.
    """
    try:
        yield
    except ClpromptError as error:
        raise CheckpointError(f"{path} does not fit the run: {error}") from error
    except (LookupError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        # a method's own tensors are its own business, so is how it fails over others
        text = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{path} does not fit the run: {type(error).__name__}: {text}") from error


def refuse_finished(folder: Path) -> None:
    """Refuse to continue a run that is done.

    Raises:
        RunFolderError: it has its results.
    """
    if (folder / RESULTS).exists():
        raise RunFolderError(f"{folder} is complete: it has {RESULTS}; start a new run instead")


def log(folder: Path, text: str) -> None:
    """Append a line with the time to run.log."""
    path, line = folder / "run.log", f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n"
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
    with one_line_errors(f"write {path}"), open_regular(path, flags) as file:
        file.write(line.encode(errors="backslashreplace"))


def results(
    config: Config,
    summary: Mapping[str, float],
    cost: Mapping[str, Any],
    rehearsal_free: bool,
    checksums: Mapping[str, str],
    trained_head: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """What `results.json` holds.

    Args:
        config: of this one run.
        summary: the metrics by name, fractions.
        cost: times and sizes, which differ between machines.
        rehearsal_free: whether the method keeps no image; a memory beside it does.
        checksums: of files of the run folder that a report reads, by name.
        trained_head: the metrics of the trained head, where something else answered in its place.
    """
    return {
        "strategy": config.strategy["name"],
        "seed": config.seeds[0],
        "rehearsal_free": rehearsal_free and config.memory is None,
        **summary,
        "per_seed": {key: {str(config.seeds[0]): value} for key, value in summary.items()},
        **({} if trained_head is None else {measure.TRAINED_HEAD: dict(trained_head)}),
        "cost": cost,
        "checksums": dict(checksums),
    }


def environment(model: PromptModel, device: torch.device) -> dict[str, Any]:
    """Where a run was made: versions, machine, parameters; and which classes compete in training."""
    versions: dict[str, str | None] = {}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    backbone = sum(p.numel() for p in model.backbone.parameters())
    # two models of one shape and one name: weights do not tell which activation they were trained with
    activation = {} if model.backbone.text is None else {"activation": model.backbone.activation}
    files = sameness.of_files(model)
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": _processor(),
        "processors": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "versions": versions,
        "git": git_state(Path(str(importlib.resources.files("clprompt")))),
        "parameters": {"backbone": backbone},
        "backbone": {"source": model.backbone.source, "sha256": model.backbone.fingerprint()} | activation,
        **({"files": files} if files else {}),
        **({"mask": mask} if (mask := training_mask(model)) else {}),
    }


def training_mask(model: PromptModel) -> str | None:
    """Which classes compete in training, which a configuration may leave to the method.

    None where nothing is trained, or on all images so far, so that all their classes compete.
    """
    return model.mask if model.trains and model.revisits == "never" else None


def forget_peak_memory(device: torch.device) -> None:
    """Let :func:`peak_memory` count from now on, so that of runs in one process each has its own."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    memory.forget_peak()


def peak_memory(device: torch.device) -> int:
    """Peak bytes: of the GPU's allocator, or of the whole process on a CPU."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return memory.peak_memory()


def export_model(folder: Path, model: PromptModel, config: Config, bundle: DataBundle) -> None:
    """Write the tensors (with `export: full` the backbone's too) and what else the model is built from."""
    state = model.state_dict() if config.export == "full" else model.method_state()
    backbone = model.backbone
    files = {
        key: {"path": config.strategy[key], "sha256": sha256}
        for key, sha256 in sameness.of_files(model).items()
        if key in config.strategy
    }
    facts = {
        "strategy": config.strategy,
        **({"files": files} if files else {}),
        "seed": config.seeds[0],
        "backbone": {**config.backbone, "sha256": backbone.fingerprint()},
        "class_names": bundle.class_names,
        "multi_label": is_label_sets(bundle.train.targets),
        "transform": backbone.inputs.facts(),
    }
    write_model(folder, state, facts)


def write_model(folder: Path, state: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Write tensors as model.safetensors, and beside them as model.json the facts with their checksum."""
    data = save({name: value.detach().cpu().contiguous() for name, value in state.items()})
    atomic_write(folder / "model.safetensors", data)
    checksum = hashlib.sha256(data).hexdigest()
    write_json(folder / "model.json", {**facts, "tensors_sha256": checksum}, uncovered=UNCOVERED)


def _processor() -> str:
    """The processor's name, where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


def git_state(package: Path) -> dict[str, Any] | None:
    """The source revision of the checkout that a package folder named ``clprompt`` stands at the top of.

    Returns:
        ``commit`` and ``modified``; None where it is installed outside of a checkout of its own.
    """

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(package), *arguments], capture_output=True, text=True, timeout=10, check=True
        )
        return done.stdout.strip()

    try:
        if git("ls-files", "--full-name", "__init__.py") != "clprompt/__init__.py":
            return None  # installed inside somebody else's repository
        return {"commit": git("rev-parse", "HEAD"), "modified": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return None
