"""The released Si-Blurry generator, index for index, with its losses; for comparison with published streams.

It drops classes where the number of sessions does not divide them, loses a remainder of the pool (fixed
variant), and scatters the first samples in data set order instead of random ones. Same torch calls in the
same order as in the released code, so the lists agree as long as torch's CPU generator stays what it is.
"""

from __future__ import annotations

import numpy as np
import torch


def draw(
    targets: np.ndarray, count: int, sessions: int, n: int, m: int, seed: int, *, stochastic: bool
) -> tuple[np.ndarray, np.ndarray, tuple[np.ndarray, ...], np.ndarray, list[int]]:
    """Home sessions [C], kinds [C], index lists per session, moved flags [n], quotas [T].

    Args:
        targets: int64 [n].
        count: C.
        sessions: T.
        n: whole percentage of disjoint classes.
        m: whole percentage of the blurry classes' samples that are scattered.
        seed: of one local torch generator.
        stochastic: Si-Blurry; False for i-Blurry.
    """
    generator = torch.Generator().manual_seed(seed)

    def cuts(total: int) -> list[int]:
        points = torch.randint(0, total, (sessions - 1,), generator=generator).sort().values.tolist()
        return [b - a for a, b in zip([0, *points], [*points, total], strict=True)]

    disjoint = count * n // 100 // sessions * sessions
    blurry = (count - disjoint) // sessions * sessions
    order = torch.randperm(count, generator=generator).numpy()
    shares = []
    for total in (disjoint, blurry):
        shares.append(cuts(total) if stochastic and total else [total // sessions] * sessions)
    home = np.full(count, -1)
    home[order[: disjoint + blurry]] = np.concatenate(
        [np.repeat(np.arange(sessions), share) for share in shares]
    )
    kinds = np.full(count, "dropped", dtype="<U8")
    kinds[order[:disjoint]] = "disjoint"
    kinds[order[disjoint : disjoint + blurry]] = "blurry"

    home_of, kind_of = home[targets], kinds[targets]
    fixed = [np.flatnonzero((home_of == t) & (kind_of == "disjoint")) for t in range(sessions)]
    loose = [np.flatnonzero((home_of == t) & (kind_of == "blurry")) for t in range(sessions)]
    if stochastic:
        pooled = sum(map(len, loose)) * m // 100
        take = cuts(pooled) if pooled else [0] * sessions
        give = [min(quota, len(samples)) for quota, samples in zip(take, loose, strict=True)]
    else:
        give = [len(samples) * m // 100 for samples in loose]
        take = [sum(give) // sessions] * sessions
    pool = np.concatenate([samples[:g] for samples, g in zip(loose, give, strict=True)])
    pool = _shuffled(pool, generator)
    moved = np.zeros(len(targets), dtype=bool)
    indices, start = [], 0
    for t in range(sessions):
        got = pool[start : start + take[t]]
        start += take[t]
        moved[got] = home_of[got] != t
        indices.append(_shuffled(np.concatenate([fixed[t], loose[t][give[t] :], got]), generator))
    return home, kinds, tuple(indices), moved, give


def _shuffled(values: np.ndarray, generator: torch.Generator) -> np.ndarray:
    return values[torch.randperm(len(values), generator=generator).numpy()]
