"""Domain: the domain-incremental stream. The classes stay, where the images come from changes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from clprompt import schema
from clprompt.data.names import class_name
from clprompt.data.plan import Plan, class_ids
from clprompt.errors import ConfigError, DataError, nearest
from clprompt.registry import scenarios
from clprompt.seeding import derive


@dataclass(frozen=True)
class DomainPlan(Plan):
    """A domain-incremental stream: experience t is the domain ``order[t]``, whose test images are group t.

    A class takes part in the metrics once a training image of it has come, as in every stream; usually that
    is the first experience. Where no test image is of a trained domain (CORe50), all test images are one
    group, which is evaluated after every experience.

    Attributes:
        order: the domain ids, in the order in which they arrive.
        names: of the domains, by domain id.
    """

    order: tuple[int, ...]
    names: tuple[str, ...]
    in_turn: ClassVar[bool] = True

    @property
    def groups(self) -> tuple[tuple[int, ...], ...]:
        """None: the groups of the metrics are no class groups."""
        return ()

    @property
    def session_names(self) -> list[str]:
        return [self.names[domain] for domain in self.order]

    def test_groups(self, targets: np.ndarray, domains: np.ndarray | None = None) -> tuple[np.ndarray, ...]:
        """Test sample indices of each domain, in the order of the experiences; all in one if none is trained.

        Raises:
            DataError: nobody says the domains of the test samples.
        """
        domains = self._checked(domains)
        if self._is_apart(domains):
            none = np.empty(0, dtype=np.int64)
            return (np.arange(len(domains)), *[none] * (len(self) - 1))
        return tuple(np.flatnonzero(domains == domain) for domain in self.order)

    def group_names(self, domains: np.ndarray | None = None) -> list[str]:
        domains = self._checked(domains)
        if not self._is_apart(domains):
            return self.session_names
        apart = [self._name(domain) for domain in np.unique(domains)]
        return [" + ".join(apart), *[f"{name} (no test images)" for name in self.session_names[1:]]]

    def notes(self, train: np.ndarray, test: np.ndarray, domains: np.ndarray | None = None) -> list[str]:
        """What does not take part, and which classes and images a domain lacks, in a sentence each."""
        domains = self._checked(domains)
        sentences = super().notes(train, test, domains)
        if self._is_apart(domains):
            sentences.append("no test image is of a trained domain: all are evaluated after every experience")
        else:
            never = ~np.isin(domains, self.order)
            if never.any():
                listed = _joined(self._name(domain) for domain in np.unique(domains[never]))
                sentences.append(
                    f"{never.sum()} test images of domains that are never trained are left out: {listed}"
                )
            empty = [self.names[domain] for domain in self.order if not (domains == domain).any()]
            if empty:
                sentences.append(f"domains without a test image have no accuracy: {_joined(empty)}")
        total = len({c for classes in self.classes for c in classes})
        lacking = [
            f"{self.names[domain]} {total - len(classes)}"
            for domain, classes in zip(self.order, self.classes, strict=True)
            if len(classes) < total
        ]
        if lacking:
            sentences.append(f"of the {total} classes some domains lack training images: {_joined(lacking)}")
        return sentences

    def _checked(self, domains: np.ndarray | None) -> np.ndarray:
        if domains is None:
            raise DataError("the test set does not say the domains of its images (an attribute domains)")
        return np.asarray(domains)

    def _name(self, domain: int) -> str:
        """The name of a domain, which a test set alone may have."""
        return self.names[domain] if domain < len(self.names) else str(domain)

    def _is_apart(self, domains: np.ndarray) -> bool:
        """Whether no test sample is of a trained domain."""
        return not np.isin(domains, self.order).any()


@scenarios.register("domain", paper="van de Ven and Tolias 2019, arXiv 1904.07734, for the term", year=2019)
@schema.checked
def plan(
    targets: np.ndarray | Sequence[Any],
    *,
    domains: np.ndarray | Sequence[Any],
    seed: int = 0,
    domain_order: list[int | str] | str | None = None,
    shuffle: bool = True,
    domain_names: Sequence[str] | None = None,
) -> DomainPlan:
    """Domain-incremental: all classes from the start, one domain in each experience.

    Every training sample arrives, with its domain. The metrics go by domain: accuracy on the test images of
    each domain seen so far, and forgetting of each. Domains may lack classes, and classes domains; a class
    is evaluated from the experience on in which it is first trained.

    Args:
        targets: class ids 0..C-1 of the training samples, [n].
        domains: their domain ids 0..D-1, [n]; a run gives those of its data.
        seed: decides the order when ``shuffle`` is on and no ``domain_order`` is given.
        domain_order: all trained domains, by name, or by id where no name is a number, in the order in which
            they arrive.
        shuffle: draw the order from the seed; False keeps that of the ids (their names' alphabetical order).
        domain_names: by domain id; a run gives those of its data.

    Returns:
        The plan; an experience's indices are sorted by class id (the engine shuffles while training).

    Raises:
        ConfigError: an order that does not hold each domain once.
        DataError: targets that are no class ids, one domain alone, or no domain for each sample.
    """
    targets, count = class_ids(targets)
    domains = _domain_ids(domains, len(targets))
    trained = np.unique(domains)
    names = tuple(str(d) for d in range(domains.max() + 1)) if domain_names is None else tuple(domain_names)
    if len(names) <= trained[-1]:
        raise DataError(f"domain {trained[-1]} has no name; there are names for 0..{len(names) - 1}")
    if len(trained) < 2:
        raise DataError(
            f'all training images are of one domain, "{names[trained[0]]}"; the stream domain needs several'
        )
    if domain_order is not None:
        order = _given_order(domain_order, trained.tolist(), names)
    elif shuffle:
        order = np.random.default_rng(derive(seed, "domain order")).permutation(trained).tolist()
    else:
        order = trained.tolist()
    by_class = np.lexsort((np.arange(len(targets)), targets))
    indices = tuple(by_class[domains[by_class] == domain] for domain in order)
    classes = tuple(tuple(np.unique(targets[index]).tolist()) for index in indices)
    return DomainPlan(indices, classes, count, tuple(order), names)


def _domain_ids(domains: Any, samples: int) -> np.ndarray:
    array = np.asarray(domains)
    if array.shape != (samples,) or array.dtype.kind not in "iu":
        raise DataError(
            f"domains must be a domain id for each of the {samples} samples, got {array.dtype} "
            f"{list(array.shape)}"
        )
    if array.min() < 0:
        raise DataError(f"domains must be domain ids 0..D-1, got {array.min()}")
    return array.astype(np.int64)


def _given_order(given: Sequence[int | str] | str, trained: list[int], names: Sequence[str]) -> list[int]:
    """The ids of an order that was given by names or ids."""
    ids = {class_name(name): domain for domain, name in enumerate(names) if domain in trained}
    numbered = any(name.isdecimal() for name in names)  # then a number is a name
    order: list[int] = []
    for word in given.split(",") if isinstance(given, str) else given:
        text = class_name(str(word).strip())
        if text in ids:
            domain = ids[text]
        elif text.isdecimal() and int(text) in trained and not numbered:
            domain = int(text)
        else:
            raise ConfigError(
                f'scenario.domain_order: no training image is of a domain "{text}"{nearest(text, ids)}; '
                f"domains: {_joined(ids)}"
            )
        if domain in order:
            raise ConfigError(f'scenario.domain_order names the domain "{names[domain]}" twice')
        order.append(domain)
    missing = [names[domain] for domain in trained if domain not in order]
    if missing:
        raise ConfigError(f"scenario.domain_order must name every domain, it lacks {_joined(missing)}")
    return order


def _joined(words: Any) -> str:
    """Words with commas; of many the first ten."""
    words = [str(word) for word in words]
    return ", ".join(words[:10]) + (f" and {len(words) - 10} more" if len(words) > 10 else "")
