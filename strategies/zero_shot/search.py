"""Search over sets of texts: score some, keep the best, change them; whatever the score is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

#: Of each group of texts those that are taken, rising; none is empty.
Chosen = tuple[tuple[int, ...], ...]
Fitness = Literal["top1", "proapo"]
#: Rounds without a set that was not scored before, after which there is taken to be none.
_IDLE_ROUNDS = 50


class Scored(NamedTuple):
    """A set of texts and its score, the higher the better."""

    score: float
    chosen: Chosen


def fitness_of(logits: Tensor, labels: Tensor, fitness: Fitness, *, sentences: bool) -> float:
    """How well logits fit the labels.

    Args:
        logits: [N, C], -inf for classes that do not compete.
        labels: [N].
        fitness: "top1", the share of images whose label is first; "proapo", r1 top1 + r5 top5 - 10 CE with
            both accuracies in percent.
        sentences: whether texts are sentences of single classes: r1, r5 are 0, 0.2, else 0.5, 0.05.

    Source: Qu et al. 2025 (ProAPO): the weights of its released CUB configuration.
    """
    top1 = (logits.argmax(1) == labels).double().mean().item()
    if fitness == "top1":
        return top1
    best = logits.topk(min(5, logits.shape[1]), dim=1).indices
    top5 = (best == labels[:, None]).any(1).double().mean().item()
    first, fifth = (0.0, 0.2) if sentences else (0.5, 0.05)
    return 100 * (first * top1 + fifth * top5) - 10 * F.cross_entropy(logits.double(), labels).item()


def search(
    sizes: list[int],
    score: Callable[[Chosen], float],
    *,
    draws: torch.Generator,
    budget: int,
    population: int,
    start: Sequence[Chosen] = (),
    propose: Callable[[list[Scored]], list[Chosen]] | None = None,
) -> list[Scored]:
    """The best sets that a search finds, best first; of equals the smaller, then the one found earlier.

    First come the sets to start from, all texts together and single ones; then round by round sets made of
    the best by adding, deleting or replacing a text or crossing two sets over.

    Args:
        sizes: texts in each group; ``propose`` may enlarge them.
        score: of a set.
        draws: where random choices come from.
        budget: sets that are scored at most.
        population: the best sets that others are made of, and that are returned at most.
        start: sets to begin with.
        propose: called once a round with the best sets; gives further ones.
    """
    scores: dict[Chosen, float] = {}

    def add(sets: Sequence[Chosen]) -> None:
        for chosen in sets:
            if len(scores) < budget and chosen not in scores:
                scores[chosen] = score(chosen)

    def best() -> list[Scored]:
        ranked = sorted(scores.items(), key=lambda item: (-item[1], sum(map(len, item[0]))))
        return [Scored(value, chosen) for chosen, value in ranked[:population]]

    add([*start, tuple(tuple(range(size)) for size in sizes)])
    add([tuple((min(index, size - 1),) for size in sizes) for index in range(max(sizes))])
    idle = 0
    while len(scores) < budget and idle < _IDLE_ROUNDS:
        before, parents = len(scores), best()
        if propose is not None:
            add(propose(parents))
        add([_changed(parents, sizes, draws) for _ in range(population)])
        idle = idle + 1 if len(scores) == before else 0
    return best()


def _changed(parents: Sequence[Scored], sizes: Sequence[int], draws: torch.Generator) -> Chosen:
    """A set made of one or two others; the same one where the change is not possible."""

    def draw(below: int) -> int:
        return int(torch.randint(below, (), generator=draws))

    parent = parents[draw(len(parents))].chosen
    change = ("add", "delete", "replace", "cross over")[draw(4)]
    if change == "cross over":
        other = parents[draw(len(parents))].chosen
        crossed = []
        for one, two in zip(parent, other, strict=True):
            both = sorted({*one, *two})
            kept = [text for text in both if draw(2)] or [both[draw(len(both))]]
            crossed.append(tuple(kept))
        return tuple(crossed)
    group = draw(len(sizes))
    texts = list(parent[group])
    outside = [text for text in range(sizes[group]) if text not in texts]
    if change != "add" and (change == "replace" or len(texts) > 1):
        texts.pop(draw(len(texts)))
    if change != "delete" and outside:
        texts.append(outside[draw(len(outside))])
    if not texts:
        return parent
    return (*parent[:group], tuple(sorted(texts)), *parent[group + 1 :])
