"""Plan: what arrives when, as index lists. Every stream is a seeded pure function that returns one."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from clprompt import registry, schema
from clprompt.data.fingerprint import checksum
from clprompt.errors import DataError


@dataclass(frozen=True)
class Plan:
    """A stream before any image is loaded.

    Attributes:
        indices: training sample indices, one array per experience.
        classes: the class ids of each experience.
        num_classes: C; class ids are 0..C-1.
        kinds: a word for each class, [C]; None where the stream makes no difference between classes.
        moved: whether a training sample arrives away from its class's experience, bool [n]; None for none.
        threshold: probability above which a label counts as predicted; read for multi-hot targets alone.
        is_ordered: the indices of an experience are in their final order; otherwise training shuffles them.
        left_out: why training samples take no part; "" where nothing is meant to be left out.
        base_classes: class ids that the metrics tell from all others, the novel ones; None for no such.
        in_turn: test group t is evaluated from experience t on; otherwise as soon as a class of it is seen.
    """

    indices: tuple[np.ndarray, ...]
    classes: tuple[tuple[int, ...], ...]
    num_classes: int
    kinds: np.ndarray | None = field(default=None, kw_only=True)
    moved: np.ndarray | None = field(default=None, kw_only=True)
    threshold: float = field(default=0.8, kw_only=True)
    is_ordered: bool = field(default=False, kw_only=True)
    left_out: str = field(default="", kw_only=True)
    base_classes: tuple[int, ...] | None = field(default=None, kw_only=True)
    in_turn: ClassVar[bool] = False

    def __len__(self) -> int:
        """The number of experiences."""
        return len(self.indices)

    @property
    def groups(self) -> tuple[tuple[int, ...], ...]:
        """The class groups of the metrics: the classes that are new with each experience."""
        groups: list[tuple[int, ...]] = []
        met: set[int] = set()
        for classes in self.classes:
            groups.append(tuple(c for c in classes if c not in met))
            met.update(classes)
        return tuple(groups)

    @property
    def class_order(self) -> tuple[int, ...]:
        """The classes of the stream in the order in which they first come, whatever the groups go by."""
        return tuple(dict.fromkeys(c for classes in self.classes for c in classes))

    def named(self, names: Mapping[int, Sequence[str]]) -> dict[int, list[str]]:
        """Of names by class id those of the stream's classes, in the order in which they come."""
        return {c: list(names[c]) for c in self.class_order}

    @property
    def session_names(self) -> list[str] | None:
        """What the experiences are called; None for their numbers."""
        return None

    def fingerprint(self) -> str:
        """A checksum of what arrives when: the samples and the classes of each experience."""
        classes = (np.array(group, dtype=np.int64) for group in self.classes)
        return checksum([*(np.asarray(index, dtype=np.int64) for index in self.indices), *classes])

    def describe(self, targets: np.ndarray) -> np.ndarray:
        """Training samples per experience and class, [T, C]."""
        rows = [np.bincount(targets[index], minlength=self.num_classes) for index in self.indices]
        return np.stack(rows)

    def notes(
        self,
        train: np.ndarray,
        test: np.ndarray,
        domains: np.ndarray | None = None,
    ) -> list[str]:
        """What of the data takes no part in the stream, in a sentence each.

        Args:
            train: targets of the training samples.
            test: of the test samples.
            domains: of the test samples; see :class:`clprompt.data.images.ImageSource`.
        """
        sentences = []
        left = len(train) - len(np.unique(np.concatenate(self.indices)))
        if left:
            reason = f": {self.left_out}" if self.left_out else ""
            sentences.append(f"{left} of {len(train)} training images take no part{reason}")
        never = set(np.unique(test).tolist()) - {c for group in self.classes for c in group}
        if never:
            named = f"{len(never)} classes that the stream never trains"
            sentences.append(f"test samples of {named} are left out")
        return sentences

    def test_groups(self, targets: np.ndarray, domains: np.ndarray | None = None) -> tuple[np.ndarray, ...]:
        """Test sample indices of each group of the metrics, in data set order: by class, unless it says else.

        Args:
            targets: of the test samples.
            domains: theirs, for groups that go by them.
        """
        return tuple(np.flatnonzero(np.isin(targets, group)) for group in self.groups)

    def group_names(self, domains: np.ndarray | None = None) -> list[str] | None:
        """What the groups of the metrics are called; None for their numbers.

        Args:
            domains: of the test samples.
        """
        return None

    def seen_test(
        self, targets: np.ndarray, experience: int, domains: np.ndarray | None = None
    ) -> np.ndarray:
        """Test sample indices of all groups up to an experience's, each once, in data set order."""
        return np.unique(np.concatenate(self.test_groups(targets, domains)[: experience + 1]))


def make_plan(
    section: Mapping[str, Any],
    targets: Any,
    *,
    seed: int,
    data: str = "the data",
    class_names: Sequence[str] | None = None,
    domains: np.ndarray | None = None,
    domain_names: Sequence[str] | None = None,
) -> Plan:
    """The plan of a registered stream, which is given what its arguments ask for beside the targets.

    Args:
        section: ``name`` and the stream's own arguments.
        targets: of the training samples, class ids [n] or multi-hot [n, C].
        seed: of the stream.
        data: what a message calls the data.
        class_names: by class id; None where nobody knows them.
        domains: of the training samples, domain ids [n]; None where the data do not say.
        domain_names: by domain id; None where nobody knows them.

    Raises:
        ConfigError: an unknown name, or arguments that do not fit the data.
        DataError: targets that the stream does not take, or no domains for one that goes by them.
    """
    entry = registry.scenarios.get(section["name"])
    asked, _ = schema.parameters(entry.target)
    if domains is None and "domains" in asked and asked["domains"].required:
        raise DataError(
            f"{data} does not say the domains of its images, by which the stream {entry.name} goes; "
            f"data sets that do: {', '.join(_sets_with_domains())}"
        )
    known = {"class_names": class_names, "domains": domains, "domain_names": domain_names}
    given = {key: value for key, value in known.items() if key in asked}
    plan: Plan = registry.make_registered(registry.scenarios, section, targets, seed=seed, **given)
    return plan


def _sets_with_domains() -> list[str]:
    """The registered data sets that have domains; what is registered as ``domains`` says where."""
    entries = map(registry.datasets.get, registry.datasets.names())
    return [f"{entry.name} ({entry.info['domains']})" for entry in entries if entry.info.get("domains")]


def class_ids(targets: Any) -> tuple[np.ndarray, int]:
    """Targets as int64 [n] and the class count C.

    Raises:
        DataError: no targets, labels that are not integers 0..C-1, or a class id without a sample.
    """
    array = np.asarray(targets)
    if array.ndim != 1 or array.size == 0:
        raise DataError(f"targets must be a non-empty list of class ids, got shape {list(array.shape)}")
    if not np.issubdtype(array.dtype, np.integer):
        raise DataError(f"targets must be integers, got {array.dtype}")
    if array.min() < 0:
        raise DataError(f"targets must be class ids 0..C-1, got {array.min()}")
    count = int(array.max()) + 1
    empty = np.flatnonzero(np.bincount(array, minlength=count) == 0)
    if empty.size:
        raise DataError(f"class {empty[0]} has no training sample; map labels to 0..C-1 without gaps")
    return array.astype(np.int64), count


def group_indices(targets: np.ndarray, groups: Sequence[Sequence[int]], num_classes: int) -> list[np.ndarray]:
    """Indices of the samples of each class group, by class id, in data set order within a class; O(samples).

    By class id: then the same classes are the same stream, whoever made it (see ``PromptStrategy``).
    """
    table = np.full(num_classes, -1)
    for number, group in enumerate(groups):
        table[list(group)] = number
    home = table[targets]
    order = np.lexsort((targets, home))
    bounds = np.searchsorted(home[order], np.arange(len(groups) + 1))
    return [order[a:b] for a, b in itertools.pairwise(bounds)]
