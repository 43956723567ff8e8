"""Si-Blurry: a stream whose task boundaries are blurry and drawn at random; i-Blurry is its fixed variant."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Annotated, Any, Literal

import numpy as np

from clprompt import schema
from clprompt.data.plan import Plan, class_ids
from clprompt.errors import ConfigError
from clprompt.registry import scenarios
from clprompt.scenarios import _si_blurry_reference as reference
from clprompt.scenarios._long_tail import Imbalance, LongTail, long_tailed
from clprompt.schema import at_least, at_most
from clprompt.seeding import derive

KINDS = ("disjoint", "blurry", "dropped")  # dropped: only with compat="reference"
_TRIES = 1000  # redraws of the class counts before empty sessions are filled


@dataclass(frozen=True)
class SiBlurryPlan(Plan):
    """A blurry stream before any image is loaded.

    ``classes`` (the class groups of the metrics) holds the classes whose home is session t; a blurry class
    turns up in other sessions too, and counts as seen as soon as one of its samples was received.

    Attributes:
        home: the home session of each class, int64 [C]; -1 for a class that the reference drops.
        quotas: how many scattered samples each session gives, [T]; some may come back to it.
        kinds: "disjoint" or "blurry" for each class, [C] ("dropped" where the reference drops one).
        moved: whether a sample arrives away from its home session, bool [n].
    """

    home: np.ndarray
    quotas: tuple[int, ...]
    kinds: np.ndarray = field(kw_only=True)
    moved: np.ndarray = field(kw_only=True)


@scenarios.register("si_blurry", paper="Moon et al., ICCV 2023, arXiv 2308.09303", year=2023)
@schema.checked
def plan(
    targets: np.ndarray | Sequence[Any],
    *,
    seed: int = 0,
    sessions: Annotated[int, at_least(1)] = 5,
    n: Annotated[float, at_least(0), at_most(100)] = 50,
    m: Annotated[float, at_least(0), at_most(100)] = 10,
    variant: Literal["stochastic", "fixed"] = "stochastic",
    min_classes_per_session: Literal[0, 1] = 1,
    compat: Literal["reference"] | None = None,
    long_tail: LongTail | None = None,
    imbalance: Imbalance | None = None,
) -> SiBlurryPlan:
    """Si-Blurry: N % disjoint classes in one session each; M % of the other classes' samples are scattered.

    Every class has a home session. A disjoint class arrives there whole; of the samples of all blurry
    classes, M % (drawn at random) are pooled, mixed, and handed back to all sessions. "stochastic"
    (Si-Blurry) draws at random how many disjoint classes, blurry classes and scattered samples each session
    gets; "fixed" (i-Blurry, Koh et al., ICLR 2022) shares all three equally. No class or sample is dropped.

    Args:
        targets: class ids 0..C-1 of the training samples, [n].
        seed: decides everything; the global random states stay as they are.
        sessions: T, the number of sessions ("tasks" in the paper).
        n: percentage of disjoint classes, 0..100.
        m: percentage of the blurry classes' samples that are scattered, 0..100.
        variant: "stochastic" or "fixed".
        min_classes_per_session: classes, of either kind, whose home each session is at least; 0 or 1. Zero
            allows empty sessions, and more sessions than classes.
        compat: "reference" for the released generator's index lists, in which classes and samples get lost;
            they are trained in their own order.
        long_tail: "ordered" (class sizes fall along the home sessions), "shuffled" (places in the tail are
            drawn) or "by_class_id"; None uses all samples. The M % are those of what is left.
        imbalance: the largest class of a long tail over the smallest; None for 100.

    Returns:
        The plan; indices are shuffled within each session.

    Raises:
        ConfigError: percentages outside 0..100, more sessions than there are classes or samples for, an
            imbalance that leaves a class without a sample, a long tail with ``compat``.
        DataError: targets that are not class ids.
    """
    targets, count = class_ids(targets)
    _check(len(targets), count, sessions, n, m, min_classes_per_session, compat)
    if compat and (long_tail is not None or imbalance is not None):
        raise ConfigError("scenario.long_tail has no released form; leave scenario.compat out")
    quotas: Sequence[int] | np.ndarray
    left_out = ""
    if compat == "reference":
        home, kinds, indices, moved, quotas = reference.draw(
            targets, count, sessions, int(n), int(m), seed, stochastic=variant == "stochastic"
        )
        left_out = "the released generator loses them"
    else:
        rng = np.random.default_rng(derive(seed, "si_blurry"))
        home, blurry = _homes(rng, count, sessions, n, variant, min_classes_per_session)
        kinds = np.where(blurry, KINDS[1], KINDS[0])
        order = np.lexsort((np.arange(count), home))
        keep, left_out = long_tailed(targets, order, long_tail, imbalance, seed)
        parts, away, quotas = _scatter(rng, targets[keep], home, blurry, sessions, m, variant)
        indices = tuple(keep[part] for part in parts)
        moved = np.zeros(len(targets), dtype=bool)
        moved[keep] = away
    groups = tuple(tuple(np.flatnonzero(home == t).tolist()) for t in range(sessions))
    scattered = tuple(int(quota) for quota in quotas)
    return SiBlurryPlan(
        indices,
        groups,
        count,
        home,
        scattered,
        kinds=kinds,
        moved=moved,
        is_ordered=compat == "reference",
        left_out=left_out,
    )


def _check(
    samples: int, count: int, sessions: int, n: float, m: float, least: int, compat: str | None
) -> None:
    for key, value in (("n", n), ("m", m)):
        if compat and value != int(value):
            raise ConfigError(f"scenario.{key} must be a whole percentage with compat=reference, got {value}")
    if sessions > samples:
        raise ConfigError(
            f"scenario.sessions must be 1..{samples}, as the data has {samples} samples, got {sessions}"
        )
    if sessions > count and least and not compat:
        raise ConfigError(
            f"scenario.sessions must be 1..{count}, as the data has {count} classes, got {sessions}; "
            "min_classes_per_session=0 allows more"
        )


def _homes(
    rng: np.random.Generator, count: int, sessions: int, n: float, variant: str, least: int
) -> tuple[np.ndarray, np.ndarray]:
    """The home session of each class, int64 [C], and whether the class is blurry, bool [C]."""
    order = rng.permutation(count)
    disjoint = round(count * n / 100)
    totals = (disjoint, count - disjoint)
    if variant == "fixed":
        # the second remainder starts where the first one ends: sessions differ by one class at most
        starts = (0, totals[0] % sessions)
        shares = [
            total // sessions + ((np.arange(sessions) - start) % sessions < total % sessions)
            for total, start in zip(totals, starts, strict=True)
        ]
    else:
        shares = _random_shares(rng, totals, sessions, least)
    sessions_of = np.concatenate([np.repeat(np.arange(sessions), share) for share in shares])
    home, blurry = np.empty(count, dtype=np.int64), np.zeros(count, dtype=bool)
    home[order] = sessions_of
    blurry[order[disjoint:]] = True
    return home, blurry


def _random_shares(
    rng: np.random.Generator, totals: tuple[int, ...], sessions: int, least: int
) -> list[np.ndarray]:
    """How many classes of each kind each session gets, from cut points drawn with replacement.

    Both sets of cuts are drawn again while a session has no class at all. Where chance alone does not do
    (nearly as many sessions as classes), empty sessions take a class each from sessions that have several.
    """
    for _ in range(_TRIES):
        shares = [_cut(rng, total, sessions) for total in totals]
        if not least or (shares[0] + shares[1]).all():
            return shares
    both = np.stack(shares)  # (2, T)
    for empty in np.flatnonzero(both.sum(0) == 0):
        spare = np.where(both.sum(0) > 1, both, 0)  # a class of either kind, each as likely as any other
        taken = rng.choice(both.size, p=spare.ravel() / spare.sum())
        both[taken // sessions, taken % sessions] -= 1
        both[taken // sessions, empty] += 1
    return list(both)


def _cut(rng: np.random.Generator, total: int, sessions: int) -> np.ndarray:
    """``total`` cut into ``sessions`` parts at points drawn from 0..total-1, as in the released generator."""
    if total == 0:
        return np.zeros(sessions, dtype=np.int64)
    return np.diff(np.sort(rng.integers(0, total, sessions - 1)), prepend=0, append=total)


def _scatter(
    rng: np.random.Generator,
    targets: np.ndarray,
    home: np.ndarray,
    blurry: np.ndarray,
    sessions: int,
    m: float,
    variant: str,
) -> tuple[tuple[np.ndarray, ...], np.ndarray, np.ndarray]:
    """Index lists per session, moved flags [n] and quotas [T]; time and memory linear in n."""
    # 16-bit sort keys let numpy sort by radix
    small = np.int16 if sessions < 2**15 else np.int64
    home_of = home.astype(small)[targets]  # (n,)
    candidates = rng.permutation(np.flatnonzero(blurry[targets]))
    # by session, in random order within it: any prefix of a session's part is a random draw from it
    candidates = candidates[np.argsort(home_of[candidates], kind="stable")]
    available = np.bincount(home_of[candidates], minlength=sessions)
    pooled = int(len(candidates) * Fraction(str(m)) / 100)  # exact: 0.29 * 100 is 28.999…
    if variant == "fixed":
        give = _equal_quotas(available, pooled, m)
        take = pooled // sessions + (np.arange(sessions) < pooled % sessions)
    else:
        give = take = _random_quotas(rng, available, pooled)
    starts = np.cumsum(available) - available
    pool = np.concatenate([candidates[a : a + g] for a, g in zip(starts, give, strict=True)])
    arrives = home_of.copy()
    arrives[rng.permutation(pool)] = np.repeat(np.arange(sessions, dtype=small), take)
    order = rng.permutation(len(targets))
    order = order[np.argsort(arrives[order], kind="stable")]
    bounds = np.cumsum([0, *np.bincount(arrives, minlength=sessions)])
    indices = tuple(order[a:b] for a, b in itertools.pairwise(bounds))
    return indices, arrives != home_of, give


def _random_quotas(rng: np.random.Generator, available: np.ndarray, pooled: int) -> np.ndarray:
    """``pooled`` cut at random; what a session does not have is drawn from what the others have left."""
    quotas = np.minimum(_cut(rng, pooled, len(available)), available)
    missing = pooled - int(quotas.sum())
    if missing:
        quotas += rng.multivariate_hypergeometric(available - quotas, missing, method="marginals")
    return quotas


def _equal_quotas(available: np.ndarray, pooled: int, m: float) -> np.ndarray:
    """M % of each session's blurry samples, rounded so that they add up to ``pooled``."""
    exact = [int(a) * Fraction(str(m)) / 100 for a in available]
    quotas = np.array([int(value) for value in exact])
    largest = sorted(range(len(exact)), key=lambda t: quotas[t] - exact[t])  # largest remainder first
    quotas[largest[: pooled - int(quotas.sum())]] += 1
    return quotas
