"""What a meta-init is made from: its settings, read from YAML and checked, and the data of its sources."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from clprompt import registry, schema
from clprompt.backbones.vit import FrozenViT
from clprompt.data.bundle import DataBundle
from clprompt.data.dataset import datasets_for
from clprompt.data.loading import subset
from clprompt.data.selection import Classes, chosen_classes
from clprompt.errors import ConfigError
from clprompt.registry import make_registered
from clprompt.schema import above, at_least, not_empty
from clprompt.system import overlay
from clprompt.targets import is_label_sets

KIND = "meta-init"  # of a packaged configuration, and the folder of those

Count = Annotated[int, at_least(1)]
Whole = Annotated[int, at_least(0)]
Rate = Annotated[float, above(0)]
Size = Annotated[float, at_least(0)]


@dataclass(frozen=True, kw_only=True)
class MetaInit:
    """The settings of a meta-init."""

    backbone: dict
    """as in an experiment"""
    sources: Annotated[list[dict], not_empty]
    """data sets by name with their arguments; ``classes`` chooses some of the classes, ``tasks`` divides them
    among so many sources"""
    seed: Whole = 0
    """as in an experiment"""
    device: str = "auto"
    """as in an experiment"""
    pad: Count | None = None
    """thickness of the frame; null for 30 of 224, in proportion"""
    epochs: Count = 10
    """passes over the shortest source"""
    steps: Count | None = None
    """meta-steps, in place of epochs"""
    train_mb_size: Count = 64
    """images of each source in a meta-step"""
    workers: Whole = 0
    """loader processes"""
    head: Literal["linear", "active"] = "linear"
    """a "linear" classifier per source, kept from step to step and not exported, or "active" coordinates"""
    inner_steps: Count = 4
    """steps of the copies of the frame on one batch"""
    inner_lr: Rate = 0.5
    """learning rate of the copies"""
    inner_optimizer: Literal["sgd", "adam"] = "sgd"
    """of the copies"""
    weight_decay: Size = 0.0
    """of the copies"""
    head_lr: Size = 0.1
    """learning rate of the classifiers"""
    step_size: Rate = 0.5
    """how far the frame goes towards the mean of its copies"""
    count_idle: bool = True
    """whether clusters that do not occur in a batch count in the mean"""
    init_std: Size = 1.0
    """the frame starts from a normal distribution of this width; 0 from zero"""
    threshold: Rate | None = None
    """as in the strategy"""
    threshold_ratio: Rate = 0.9
    """as in the strategy"""
    max_clusters: Count | None = 16
    """as in the strategy"""
    min_cluster_size: Count = 5
    """as in the strategy"""
    cluster_samples: Count = 1000
    """as in the strategy"""
    cluster: bool = True
    """as in the strategy"""
    keep: Literal["last", "lowest"] = "last"
    """the "last" frame, or the one of the "lowest" moving average of the loss"""
    checkpoint_every: Count = 50
    """meta-steps between checkpoints"""

    def __post_init__(self) -> None:
        schema.check_fields(self)
        if self.cluster and self.cluster_samples < 2:
            raise ConfigError(
                f"cluster_samples must be at least 2 with cluster=true, got {self.cluster_samples}"
            )


def load(name_or_path: str, overrides: Sequence[str] = ()) -> MetaInit:
    """Read a packaged meta-init configuration or a YAML file, with overrides, checked.

    Raises:
        ConfigError: whatever a user can get wrong, in one line.
    """
    path = overlay.find(name_or_path, KIND)
    raw = overlay.read(path)
    overlay.apply(raw, overrides, sections={"backbone"})
    values = overlay.resolve(raw, path)
    schema.check_keys(values, [field.name for field in dataclasses.fields(MetaInit)], "")
    for key in ("backbone", "sources"):
        if values.get(key) is None:
            raise ConfigError(f"{key} is missing")
    if isinstance(values["backbone"], str):
        values["backbone"] = {"name": values["backbone"]}
    if isinstance(values["sources"], str):
        values["sources"] = [word.strip() for word in values["sources"].split(",") if word.strip()]
    if isinstance(values["sources"], list):
        values["sources"] = [{"name": s} if isinstance(s, str) else s for s in values["sources"]]
    return MetaInit(**values)


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
        name: for messages.
        class_names: of its classes, by label.
        train: (image, label) items, augmented.
        clean: the same under the evaluation transform.
    """

    name: str
    class_names: list[str]
    train: _Part
    clean: _Part


def gather(settings: MetaInit, backbone: FrozenViT) -> list[Material]:
    """The sources that the settings name.

    Raises:
        ConfigError: an unknown data set or class, more tasks than classes, or a source with one class.
    """
    bundles: dict[str, DataBundle] = {}
    materials: list[Material] = []
    for number, section in enumerate(settings.sources):
        path = f"sources.{number}"
        if not isinstance(section, Mapping) or not isinstance(section.get("name"), str):
            raise ConfigError(f"{path} must be a data set's name, or a mapping with a name")
        selection = schema.check(section.get("classes"), Classes | None, f"{path}.classes")
        tasks = schema.check(section.get("tasks", 1), int, f"{path}.tasks")
        others = {key: value for key, value in section.items() if key not in ("classes", "tasks", "name")}
        entry = registry.datasets.get(section["name"])
        arguments = {"name": entry.name} | schema.arguments(entry.target, others, path)
        key = repr(sorted(arguments.items(), key=str))
        if key not in bundles:
            bundles[key] = make_registered(registry.datasets, arguments)
        bundle = bundles[key]
        if is_label_sets(bundle.train.targets):
            raise ConfigError(f"{path}: {entry.name} has several labels per image; a source needs one")
        every = np.arange(len(bundle.class_names))
        classes = every if selection is None else chosen_classes(selection, bundle.class_names)
        if not 1 <= tasks <= len(classes):
            raise ConfigError(
                f"{path}.tasks must be 1..{len(classes)} for {len(classes)} classes, got {tasks}"
            )
        train, clean, _ = datasets_for(bundle, backbone)
        for part, part_classes in enumerate(np.array_split(classes, tasks)):
            name = entry.name if tasks == 1 else f"{entry.name} {part + 1}/{tasks}"
            if len(part_classes) < 2:
                raise ConfigError(f"{path}: source {name} has one class; there is nothing to tell apart")
            where = np.flatnonzero(np.isin(bundle.train.targets, part_classes))
            names = [bundle.class_names[c] for c in part_classes]
            parts = [_Part(images, where, part_classes) for images in (train, clean)]
            materials.append(Material(name, names, *parts))
    return materials
