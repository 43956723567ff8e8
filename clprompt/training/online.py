"""The online protocol: one pass over a stream whose sessions nobody announces, evaluated while it goes on.

Every batch that arrives is trained on ``iterations`` times. After each batch, once more than ``eval_every``
samples have come since the last time, the model is evaluated on the classes of which it has received a
sample: at most once per batch, so that batches of 64 and a period of 1000 give evaluations after 1024, 2048,
3008, ... samples. The records hold both numbers, ``samples`` and ``nominal`` (1000, 2000, 3000, ...). Session
ends are evaluated too, the last one always; they are no part of the mean over the periodic ones, see
:func:`clprompt.metrics.accuracy.online_metrics`.

Source: Moon et al. 2023 (arXiv 2308.09303), and its released code for the times of evaluation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from clprompt.data.loading import epoch_order


def stretch(
    indices: Sequence[np.ndarray], session: int, batch_size: int, seed: int, *, shuffle: bool = True
) -> np.ndarray:
    """The samples of the batches that begin in a session, where batches run on over session ends.

    Args:
        indices: sample indices per session.
        session: which one.
        batch_size: of the whole stream.
        seed: decides the order within each session, the same as where batches are cut at session ends.
        shuffle: False for sessions that come in their final order.

    Returns:
        Sample indices in order; all batches but the stream's last are full. By the end of the stretch every
        sample of the session has been received, and possibly some of the sessions after it.
    """
    bounds = np.cumsum([0, *map(len, indices)])
    first, last = (-(-int(bound) // batch_size) * batch_size for bound in bounds[session : session + 2])
    pieces = [np.empty(0, dtype=np.int64)]
    for later in range(session, len(indices)):
        start = int(bounds[later])
        if start >= last:
            break
        part = np.asarray(indices[later])
        if shuffle:
            part = part[epoch_order(len(part), seed, later, 0).numpy()]
        pieces.append(part[max(first - start, 0) : last - start])
    return np.concatenate(pieces)


def marks(when: str, evaluated: int) -> Mapping[str, Any]:
    """What an evaluation of an online run says besides: at which sample count it was due; None at ends."""
    return {"nominal": evaluated if when == "anytime" else None}
