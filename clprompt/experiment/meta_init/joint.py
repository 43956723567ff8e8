"""Multi-task pre-training: prompts and a throw-away head on the union of the sources.

Sources: Song et al. 2023 (PVP, arXiv 2304.13639), with one source; Shen et al. 2024 (MVLPT), text prompts on
several.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from clprompt.data.sources import Material, Part
from clprompt.experiment.meta_init.settings import MetaInit
from clprompt.prompting.model import PromptModel
from clprompt.seeding import derive
from clprompt.training.engine import Engine, ProgressLike


class Union(Dataset):
    """The images of several sources, labelled one source behind the other.

    Args:
        parts: of the sources.
        classes: how many each of them has.
    """

    def __init__(self, parts: Sequence[Part], classes: Sequence[int]) -> None:
        self.parts = list(parts)
        self.random_transform = any(part.random_transform for part in parts)
        self._ends = np.cumsum([len(part) for part in parts])
        self._first = np.cumsum([0, *classes])  # label of each source's first class

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        source = int(np.searchsorted(self._ends, index, side="right"))
        image, label = self.parts[source][index - (int(self._ends[source - 1]) if source else 0)]
        return image, int(self._first[source]) + label


def joint_engine(
    model: PromptModel,
    materials: Sequence[Material],
    settings: MetaInit,
    progress: ProgressLike,
    stop: Callable[[], int | None],
) -> Engine:
    """What trains a model on all sources, as one experience of all their classes.

    Args:
        model: on its device.
        materials: the sources.
        settings: of the meta-init.
        progress: a display.
        stop: see :class:`clprompt.training.engine.Engine`.
    """
    classes = [len(material.class_names) for material in materials]
    train = Union([material.train for material in materials], classes)
    clean = Union([material.clean for material in materials], classes)
    return Engine(
        model,
        train,
        [np.arange(len(train))],
        [list(range(sum(classes)))],
        clean=clean,
        training=dataclasses.replace(settings.training, checkpoint_every=settings.checkpoint_every),
        seed=derive(settings.seed, "meta-init"),
        progress=progress,
        stop=stop,
    )
