"""A stream in which classes drip in."""

from typing import Annotated

import numpy as np

from clprompt import at_least, checked
from clprompt.data import Plan


@checked
def drip(labels: np.ndarray, *, first: Annotated[int, at_least(1)] = 2, seed: int = 0) -> Plan:
    """Some classes together, then one after the other.

    Args:
        labels: class ids of the training images, [n].
        first: classes of the first experience.
        seed: of the order of the classes.
    """
    order = np.random.default_rng(seed).permutation(np.unique(labels))
    groups = [order[:first], *order[first:, None]]
    return Plan(
        tuple(np.flatnonzero(np.isin(labels, group)) for group in groups),
        tuple(tuple(int(label) for label in group) for group in groups),
        int(order.max()) + 1,
    )
