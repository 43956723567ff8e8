"""Avalanche's own benchmarks under every strategy: each is learned, or refused in one line."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from avalanche.benchmarks import (
    benchmark_from_datasets,
    dataset_benchmark,
    nc_benchmark,
    ni_benchmark,
    with_classes_timeline,
    with_task_labels,
)
from avalanche.benchmarks.scenarios.online import split_online_stream
from avalanche.benchmarks.utils import (
    ConstantSequence,
    as_classification_dataset,
    as_taskaware_classification_dataset,
)
from avalanche.benchmarks.utils.data_attribute import TaskLabels
from avalanche_runs import figures, learner
from small_methods import image_methods
from torch.utils.data import Subset

from clprompt.avalanche.unseen import LARGEST_LOSS
from clprompt.errors import ProtocolError
from clprompt.scenarios import benchmark
from clprompt.scenarios.repetition import plan
from clprompt.testing.bench import CLASSES, ToyImages

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning:avalanche"),
    pytest.mark.filterwarnings("ignore::UserWarning:torch"),
]
ORDER = [2, 1, 0, 4, 5, 3]  # two to an experience


@functools.cache
def data() -> tuple[ToyImages, ToyImages]:
    images = ToyImages(4), ToyImages(2, "test")
    for part in images:  # class ids without gaps, which Avalanche's new instances ask for
        part.targets = np.searchsorted(sorted(c for group in CLASSES for c in group), part.targets)
    return images


def split(**arguments: Any) -> tuple[Any, Any]:
    train, test = map(as_classification_dataset, data())
    order = {"shuffle": False, "fixed_class_order": ORDER}
    made = nc_benchmark(train, test, n_experiences=3, **{"task_labels": False, **order, **arguments})
    return made.train_stream, made.test_stream


def instances() -> tuple[Any, Any]:
    train, test = map(as_classification_dataset, data())
    made = ni_benchmark(train, test, n_experiences=2, seed=0, balance_experiences=True)
    return made.train_stream, made.test_stream


def parts(rows: Sequence[Sequence[int]]) -> tuple[Any, Any]:
    """A benchmark whose experiences hold these training images."""
    train, test = data()

    def part(images: ToyImages, positions: Sequence[int]) -> Any:
        subset = Subset(images, list(positions))
        subset.targets = [int(images.targets[i]) for i in positions]  # type: ignore[attr-defined]
        labels = TaskLabels(ConstantSequence(0, len(positions)))
        labelled = as_classification_dataset(subset).update_data_attribute("targets_task_labels", labels)
        return as_taskaware_classification_dataset(labelled)

    made = benchmark_from_datasets(
        train=[part(train, positions) for positions in rows], test=[part(test, range(len(test)))]
    )
    made = with_task_labels(with_classes_timeline(made))
    return made.train_stream, made.test_stream


def repetition() -> tuple[Any, Any]:
    """Classes that come back, beside others, with images that were there before and with new ones."""
    rows = {c: [i for i, label in enumerate(data()[0].targets) if label == c] for c in ORDER}
    a, b, c, d, e, f = (rows[label] for label in ORDER)
    return parts([a[:2] + b, b[2:] + c + d, a + e + f])


def released_repetition() -> tuple[Any, Any]:
    """As the released generators of classes that come back make it: one whole test set."""
    train, test = data()
    rows = plan(train.targets, experiences=3, slots=4, seed=2).indices
    parts = []
    for positions in rows:
        subset = Subset(train, positions.tolist())
        subset.targets = train.targets[positions].tolist()  # type: ignore[attr-defined]
        parts.append(as_classification_dataset(subset))
    whole = [as_classification_dataset(test)]
    made = dataset_benchmark(train_datasets=parts, test_datasets=whole, complete_test_set_only=True)
    return made.train_stream, made.test_stream


def our_repetition() -> tuple[Any, Any]:
    arguments = {"experiences": 3, "probability": 0.6, "samples_per_experience": 12}
    made = benchmark("repetition", *data(), seed=2, **arguments)
    assert sum(len(experience.classes_in_this_experience) for experience in made.train_stream) > len(ORDER)
    return made.train_stream, made.test_stream


def domains() -> tuple[Any, Any]:
    """All classes in every experience, other images in each."""
    count = len(data()[0])
    return parts([range(0, count, 2), range(1, count, 2)])


def online(access_task_boundaries: bool) -> tuple[Any, Any]:
    train, test = split()
    made = split_online_stream(train, experience_size=4, access_task_boundaries=access_task_boundaries)
    return list(made), test


STREAMS = {
    "split": split,
    "split with task labels": lambda: split(task_labels=True),
    "unequal experiences": lambda: split(per_exp_classes={0: 3, 1: 1}),
    "instances": instances,
    "repetition": repetition,
    "released repetition": released_repetition,
    "our repetition": our_repetition,
    "domains": domains,
    "online": lambda: online(False),
    "online with boundaries": lambda: online(True),
}
#: Streams in which classes come back.
COMING_BACK = ("instances", "repetition", "released repetition", "our repetition", "domains")


@functools.cache
def stream(title: str) -> tuple[Any, Any]:
    return STREAMS[title]()


@pytest.mark.parametrize("name", image_methods())
@pytest.mark.parametrize("title", STREAMS)
def test_a_benchmark_is_learned_or_refused_in_one_line(title: str, name: str) -> None:
    (train, test), online = stream(title), title.startswith("online")
    arguments: dict[str, Any] = {"train_mb_size": 8, "evaluator": figures()}
    made = learner(name, **arguments)
    if online and made.model.boundaries == "required":
        with pytest.raises(ProtocolError, match="needs to know") as caught:
            made.train(train[0])
        assert "\n" not in str(caught.value)
        if "boundary_free" not in inspect.signature(type(made.model)).parameters:
            return
        made = learner(name, boundary_free=True, **arguments)
    if name in ("multilane", "prompt_cam") and title in COMING_BACK:
        with pytest.raises(ProtocolError, match="class lists that do not overlap") as caught:
            made.train(train)
        assert "\n" not in str(caught.value)
        return
    for experience in train:
        made.train(experience)
    assert made.model.seen.nonzero().flatten().tolist() == sorted(ORDER)
    results = made.eval(test)
    (loss,) = {value for key, value in results.items() if key.startswith("Loss_Stream/eval_phase")}
    (accuracy,) = {value for key, value in results.items() if key.startswith("Top1_Acc_Stream/eval_phase")}
    assert 0 < loss < LARGEST_LOSS
    assert accuracy >= 1 / len(ORDER)
