"""Long-tailed streams: how many training samples of each class take part, and which."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np

from clprompt.data.selection import ranks
from clprompt.errors import ConfigError
from clprompt.schema import at_least
from clprompt.seeding import derive

#: Which classes have many samples: the earlier ones of the stream, any, or those of small class ids.
LongTail = Literal["ordered", "shuffled", "by_class_id"]
#: The largest class over the smallest one.
Imbalance = Annotated[float, at_least(1)]
_PUBLISHED = 100  # the imbalance where none is given


def long_tailed(
    targets: np.ndarray,
    order: Sequence[int] | np.ndarray,
    long_tail: LongTail | None,
    imbalance: float | None,
    seed: int,
) -> tuple[np.ndarray, str]:
    """The samples of a stream whose classes have exponentially falling sizes.

    The class at place k of C keeps the whole part of (n / C) imbalance^(-k / (C-1)) samples, drawn from the
    seed, or all that it has where it has fewer. "ordered" has the places in the order of the stream,
    "shuffled" draws them from the seed, "by_class_id" takes the class ids, as the usual long-tailed CIFAR.

    Args:
        targets: class ids 0..C-1, int64 [n].
        order: all class ids as they arrive, [C].
        long_tail: which class stands at which place; None keeps all samples.
        imbalance: None for 100.
        seed: of the draws.

    Returns:
        The indices of the samples that take part, ascending, and why others do not ("" where all do).

    Raises:
        ConfigError: an imbalance without a long tail, or one that leaves a class without a sample.

    Source: Liu et al., Long-Tailed Class Incremental Learning, ECCV 2022 (arXiv 2210.00266), and its released
    code (xialeiliu/Long-Tailed-CIL), which has "by_class_id" with the class order numpy-1993 as the shuffled
    and with that of the ids as the ordered stream of CIFAR-100.
    """
    if long_tail is None:
        if imbalance is not None:
            raise ConfigError(f"scenario.imbalance={imbalance:g} needs scenario.long_tail, such as ordered")
        return np.arange(len(targets)), ""
    ratio = _PUBLISHED if imbalance is None else imbalance
    classes = np.asarray(order)
    if long_tail == "shuffled":
        classes = np.random.default_rng(derive(seed, "long tail")).permutation(len(classes))
    elif long_tail == "by_class_id":
        classes = np.arange(len(classes))
    mean, last = len(targets) / len(classes), max(len(classes) - 1, 1)
    sizes = np.empty(len(classes), dtype=np.int64)
    # 49 * (1 / 49) is a little less than 1
    sizes[classes] = [int(mean * (1 / ratio) ** (k / last) + 1e-9) for k in range(len(classes))]
    if not sizes.all():
        raise ConfigError(
            f"scenario.imbalance must be 1..{math.floor(mean)}, as the data have {mean:g} training images a "
            f"class, got {ratio:g}: class {classes[-1]} would have none"
        )
    keep = np.flatnonzero(ranks(targets, seed, "long tail") < sizes[targets])
    kept = np.bincount(targets[keep])
    form = f"{long_tail}, imbalance {ratio:g}"
    return keep, f"a long tail ({form}) has {kept.max()} to {kept.min()} of each class"
