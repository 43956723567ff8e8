"""What a meta-init is made from: its settings, read from YAML and checked, and the data of its sources."""

from __future__ import annotations

import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from clprompt import registry, schema
from clprompt.data.bundle import DataBundle
from clprompt.data.dataset import datasets_for
from clprompt.data.loading import subset
from clprompt.data.selection import Classes, chosen_classes
from clprompt.errors import ConfigError
from clprompt.registry import make_registered
from clprompt.system import overlay

KIND = "meta-init"  # of a packaged configuration, and the folder of those

_LEAST = {
    0: ("weight_decay", "head_lr", "init_std", "seed", "workers"),
    1: (
        "epochs",
        "steps",
        "train_mb_size",
        "inner_steps",
        "max_clusters",
        "min_cluster_size",
        "checkpoint_every",
    ),
}


@dataclass(frozen=True, kw_only=True)
class MetaInit:
    """The settings of a meta-init.

    Args:
        backbone: as in an experiment.
        sources: data sets by name with their arguments; ``classes`` chooses some of the classes, ``tasks`` divides
            them among so many sources.
        seed, device: as in an experiment.
        pad: thickness of the frame; null for 30 of 224, in proportion.
        epochs: passes over the shortest source. steps: meta-steps, in place of epochs.
        train_mb_size: images of each source in a meta-step. workers: loader processes.
        head: "linear", a classifier per source that is kept from step to step and not exported; or "active".
        inner_steps, inner_lr, inner_optimizer, weight_decay: of the copies of the frame, on one batch.
        head_lr: of the classifiers.
        step_size: how far the frame goes towards the mean of its copies.
        count_idle: whether clusters that do not occur in a batch count in the mean.
        init_std: the frame starts from a normal distribution of this width; 0 from zero.
        threshold, threshold_ratio, max_clusters, min_cluster_size, cluster_samples, cluster: as in the strategy.
        keep: the "last" frame, or the one of the "lowest" moving average of the loss.
        checkpoint_every: meta-steps between checkpoints.
    """

    backbone: dict
    sources: list[dict]
    seed: int = 0
    device: str = "auto"
    pad: int | None = None
    epochs: int = 10
    steps: int | None = None
    train_mb_size: int = 64
    workers: int = 0
    head: Literal["linear", "active"] = "linear"
    inner_steps: int = 4
    inner_lr: float = 0.5
    inner_optimizer: Literal["sgd", "adam"] = "sgd"
    weight_decay: float = 0.0
    head_lr: float = 0.1
    step_size: float = 0.5
    count_idle: bool = True
    init_std: float = 1.0
    threshold: float | None = None
    threshold_ratio: float = 0.9
    max_clusters: int | None = 16
    min_cluster_size: int = 5
    cluster_samples: int = 1000
    cluster: bool = True
    keep: Literal["last", "lowest"] = "last"
    checkpoint_every: int = 50

    def __post_init__(self) -> None:
        if not self.sources:
            raise ConfigError("sources must name a data set, got an empty list")
        schema.at_least(2 if self.cluster else 1, cluster_samples=self.cluster_samples)
        for least, keys in _LEAST.items():
            schema.at_least(least, **{key: getattr(self, key) for key in keys})
        schema.above_zero(inner_lr=self.inner_lr, step_size=self.step_size)
        schema.above_zero(threshold=self.threshold, threshold_ratio=self.threshold_ratio)


def load(name_or_path: str, overrides: Sequence[str] = ()) -> MetaInit:
    """Read a packaged meta-init configuration or a YAML file, with overrides, checked.

    Raises:
        ConfigError: whatever a user can get wrong, in one line.
    """
    path = overlay.find(name_or_path, KIND)
    raw = overlay.read(path)
    overlay.apply(raw, overrides, sections={"backbone"})
    values = overlay.resolve(raw, path)
    hints = typing.get_type_hints(MetaInit)
    schema.check_keys(values, hints, "")
    for key in ("backbone", "sources"):
        if values.get(key) is None:
            raise ConfigError(f"{key} is missing")
    if isinstance(values["backbone"], str):
        values["backbone"] = {"name": values["backbone"]}
    if isinstance(values["sources"], str):
        values["sources"] = [word.strip() for word in values["sources"].split(",") if word.strip()]
    if isinstance(values["sources"], list):
        values["sources"] = [{"name": s} if isinstance(s, str) else s for s in values["sources"]]
    return MetaInit(**{key: schema.check(value, hints[key], key) for key, value in values.items()})


# ----------------------------------------------------------------------------------------------- sources


class _Part(Dataset):
    """The images of some classes of a data set, labelled 0..C-1."""

    def __init__(self, dataset: Any, indices: np.ndarray, classes: np.ndarray) -> None:
        self.images = subset(dataset, indices)
        self.random_transform = self.images.random_transform  # type: ignore[attr-defined]
        self.labels = np.searchsorted(classes, dataset.targets[indices]).tolist()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index][0], self.labels[index]


@dataclass
class Material:
    """The data of one source.

    Attributes:
        name: for messages. class_names: of its classes, by label.
        train: (image, label) items, augmented. clean: the same under the evaluation transform.
    """

    name: str
    class_names: list[str]
    train: _Part
    clean: _Part


def gather(settings: MetaInit, backbone: Any) -> list[Material]:
    """The sources that the settings name.

    Raises:
        ConfigError: an unknown data set or class, more tasks than classes, or a source with one class.
    """
    bundles: dict[str, DataBundle] = {}
    found: list[Material] = []
    for number, section in enumerate(settings.sources):
        path = f"sources.{number}"
        if not isinstance(section, Mapping) or not isinstance(section.get("name"), str):
            raise ConfigError(f"{path} must be a data set's name, or a mapping with a name")
        chosen = schema.check(section.get("classes"), Classes | None, f"{path}.classes")
        tasks = schema.check(section.get("tasks", 1), int, f"{path}.tasks")
        given = {key: value for key, value in section.items() if key not in ("classes", "tasks", "name")}
        entry = registry.datasets.get(section["name"])
        arguments = {"name": entry.name} | schema.arguments(entry.target, given, path)
        key = repr(sorted(arguments.items(), key=str))
        if key not in bundles:
            bundles[key] = make_registered(registry.datasets, arguments)
        bundle = bundles[key]
        if bundle.train.targets.ndim > 1:
            raise ConfigError(f"{path}: {entry.name} has several labels per image; a source needs one")
        every = np.arange(len(bundle.class_names))
        classes = every if chosen is None else chosen_classes(chosen, bundle.class_names)
        if not 1 <= tasks <= len(classes):
            raise ConfigError(
                f"{path}.tasks must be 1..{len(classes)} for {len(classes)} classes, got {tasks}"
            )
        train, clean, _ = datasets_for(bundle, backbone)
        for part, own in enumerate(np.array_split(classes, tasks)):
            name = entry.name if tasks == 1 else f"{entry.name} {part + 1}/{tasks}"
            if len(own) < 2:
                raise ConfigError(f"{path}: source {name} has one class; there is nothing to tell apart")
            where = np.flatnonzero(np.isin(bundle.train.targets, own))
            names = [bundle.class_names[c] for c in own]
            found.append(Material(name, names, _Part(train, where, own), _Part(clean, where, own)))
    return found
