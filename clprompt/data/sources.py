"""Data sets to learn from before a stream: sources with their own classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from clprompt import registry, schema
from clprompt.data.bundle import DataBundle
from clprompt.data.dataset import datasets_for
from clprompt.data.loading import subset
from clprompt.data.selection import Classes, chosen_classes
from clprompt.errors import ConfigError
from clprompt.inputs import TakesImages
from clprompt.registry import make_registered
from clprompt.targets import is_label_sets


def listed(sources: Any) -> Any:
    """A ``sources`` value with names in place of sections, or one text of names, as a list of sections."""
    if isinstance(sources, str):
        sources = [word.strip() for word in sources.split(",") if word.strip()]
    if isinstance(sources, list):
        return [{"name": source} if isinstance(source, str) else source for source in sources]
    return sources


class Part(Dataset):
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
    train: Part
    clean: Part


def gather(sections: Sequence[Any], backbone: TakesImages) -> list[Material]:
    """The sources that a list of sections names.

    Args:
        sections: each a data set's name with its arguments; ``classes`` chooses some of the classes,
            ``tasks`` divides them among so many sources.
        backbone: which says how images are shown to it.

    Raises:
        ConfigError: an unknown data set or class, more tasks than classes, or a source with one class.
    """
    bundles: dict[str, DataBundle] = {}
    materials: list[Material] = []
    for number, section in enumerate(sections):
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
            parts = [Part(images, where, part_classes) for images in (train, clean)]
            materials.append(Material(name, names, *parts))
    return materials
