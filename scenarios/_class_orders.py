"""Published class orders by name, so that a stream can repeat a paper's."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from clprompt.errors import ConfigError, nearest

_ORDERS = {
    # Rebuffi et al., iCaRL, CVPR 2017; also the first of three orders of Douillard et al., PODNet, ECCV 2020
    "icarl-cifar100": """
        87 0 52 58 44 91 68 97 51 15 94 92 10 72 49 78 61 14 8 86 84 96 18 24 32
        45 88 11 4 67 69 66 77 47 79 93 29 50 57 83 17 81 41 12 37 59 25 20 80 73
        1 28 6 46 62 82 53 9 31 75 38 63 33 74 27 22 36 3 16 21 60 19 70 90 89
        43 5 42 65 76 40 30 23 85 2 95 56 48 71 64 98 13 99 7 34 55 54 26 35 39
    """,
}


def class_order(order: Sequence[int] | str, count: int) -> list[int]:
    """A class order as a list.

    Args:
        order: a permutation of the class ids; or the name of one:

            - "numpy-1993" (or another seed): what ``np.random.seed(1993); np.random.permutation(count)``
              gives, the way in which most published code for any data set draws its order.
            - "icarl-cifar100": the fixed order of the iCaRL paper.
        count: C.

    Raises:
        ConfigError: an unknown name, or no permutation of 0..C-1.
    """
    if isinstance(order, str):
        drawn = re.fullmatch(r"numpy[-_](\d{1,9})", order)
        key = order.replace("_", "-")
        if drawn:
            return np.random.RandomState(int(drawn[1])).permutation(count).tolist()
        if key in _ORDERS:
            order = [int(word) for word in _ORDERS[key].split()]
            if len(order) != count:
                raise ConfigError(
                    f"scenario.class_order {key} is an order of {len(order)} classes, the data has {count}"
                )
        elif re.fullmatch(r"\s*\d+(\s*,\s*\d+)*\s*", order):  # an override without brackets: 2,0,1
            order = [int(word) for word in order.split(",")]
        else:
            names = ["numpy-1993", *_ORDERS]
            raise ConfigError(
                f'scenario.class_order: there is no order "{order}"{nearest(order, names)}; '
                f"known: numpy-<seed>, {', '.join(_ORDERS)}, or a list of class ids"
            )
    if sorted(order) != list(range(count)):
        raise ConfigError(f"scenario.class_order must be a permutation of the class ids 0..{count - 1}")
    return [int(c) for c in order]
