"""How well embeddings retrieve images of the same class, in plain numpy: Recall@k, R-precision and MAP@R.

A query looks for the images of its class among a gallery, by cosine, itself left out. R of a query is how
many of them there are. Ties go to the lower index.

torchmetrics' RetrievalHitRate and RetrievalRPrecision give the same figures, one query at a time and with
ties in any order; its RetrievalMAP is another figure, divided by the hits in place of R.

Source: Musgrave et al. 2020 (A Metric Learning Reality Check; MAP@R, R-precision).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from clprompt.errors import DataError
from clprompt.metrics.accuracy import mean_of_defined

_RECALLS = (1, 2, 4, 8)
_CHUNK_BYTES = 2**26  # of cosines at a time
#: The figures of one gallery, with their titles.
FIGURES = {
    **{f"recall_at_{k}": f"Recall@{k}" for k in _RECALLS},
    "r_precision": "R-precision",
    "map_at_r": "MAP@R",
}
#: Where the charts of an evaluation stand.
TAG = "retrieval/"
#: What is searched: key of a record -> suffix of the metric, and what the title says of it.
SEARCHES = {"seen": ("", ""), "all": ("_among_all", ", among all"), "unseen": ("_unseen", ", unseen")}
#: Frozen features stand beside what a method offers, under this prefix.
_FROZEN = "frozen_"
_LATER = tuple(suffix for suffix, _ in SEARCHES.values() if suffix)
#: The metrics of ``results.json`` that a run with ``retrieval: true`` has besides, with their titles.
RETRIEVAL_METRICS = {
    f"{prefix}{figure}{suffix}": f"{word}{title}{of}"
    for prefix, word in (("", ""), (_FROZEN, "frozen "))
    for suffix, of in SEARCHES.values()
    for figure, title in FIGURES.items()
}


class Retrieval(NamedTuple):
    """The figures of one search.

    Attributes:
        queries: that were scored.
        left_out: queries without another image of their class in the gallery.
        figures: means over the scored queries by the names of ``FIGURES``; {} without a query.
    """

    queries: int
    left_out: int
    figures: dict[str, float]


def retrieval_scores(
    embeddings: NDArray[Any], labels: NDArray[np.int64], queries: NDArray[np.bool_] | None = None
) -> Retrieval:
    """What a gallery gives for queries that are in it; the memory it takes grows with the gallery alone.

    Args:
        embeddings: of the gallery, [n, E], of any length.
        labels: class ids, [n].
        queries: which of them are queries, [n]; None for all.
    """
    units = _units(embeddings)
    _, classes, counts = np.unique(labels, return_inverse=True, return_counts=True)
    relevant = counts[classes] - 1  # R, (n,)
    asked = np.ones(len(labels), dtype=bool) if queries is None else queries
    rows = np.flatnonzero(asked & (relevant > 0))
    left_out = int(asked.sum()) - len(rows)
    if not len(rows):
        return Retrieval(0, left_out, {})
    sums = dict.fromkeys(FIGURES, 0.0)
    size = max(1, _CHUNK_BYTES // (8 * len(labels)))
    for start in range(0, len(rows), size):
        chunk = rows[start : start + size]
        depth = min(len(labels) - 1, max(*_RECALLS, int(relevant[chunk].max())))
        nearest = _nearest(units, chunk, depth)
        hits = classes[nearest] == classes[chunk][:, None]  # (b, depth)
        for name, values in _figures(hits, relevant[chunk]).items():
            sums[name] += float(values.sum())
    return Retrieval(len(rows), left_out, {name: total / len(rows) for name, total in sums.items()})


def _units(embeddings: NDArray[Any]) -> NDArray[np.float64]:
    values = np.asarray(embeddings, dtype=np.float64)
    return values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), np.finfo(np.float64).tiny)


def _nearest(units: NDArray[np.float64], rows: NDArray[np.int64], depth: int) -> NDArray[np.int64]:
    """The ``depth`` nearest others of each of these rows, the nearest first, [b, depth]."""
    # equal embeddings tie, however their products are summed
    distances = -np.round(units[rows] @ units.T, 12)  # (b, n)
    distances[np.arange(len(rows)), rows] = np.inf
    bound = np.partition(distances, depth - 1, axis=1)[:, depth - 1, None]
    query, other = np.nonzero(distances <= bound)  # by query and index; more than ``depth`` where some tie
    order = np.lexsort((other, distances[query, other], query))
    first = np.searchsorted(query, np.arange(len(rows)))
    return other[order][first[:, None] + np.arange(depth)]


def _figures(hits: NDArray[np.bool_], relevant: NDArray[np.int64]) -> dict[str, NDArray[np.float64]]:
    """Of each query [b]: hits among its neighbours [b, depth], R [b]."""
    places = np.arange(1, hits.shape[1] + 1)
    within = hits & (places <= relevant[:, None])  # among the first R
    precision = within.cumsum(1) / places
    return {
        **{f"recall_at_{k}": hits[:, :k].any(1).astype(np.float64) for k in _RECALLS},
        "r_precision": within.sum(1) / relevant,
        "map_at_r": (precision * within).sum(1) / relevant,
    }


def search_all(
    embeddings: NDArray[Any], labels: NDArray[np.int64], seen: NDArray[np.bool_], evaluated: NDArray[np.bool_]
) -> dict[str, Any]:
    """The searches of an evaluation in their JSON form; one without a query is None.

    seen: the evaluated images among themselves. all: they as queries, all images of the stream as the
    gallery, while there are others. unseen: the images of classes that were not seen, among themselves.

    Args:
        embeddings: of all test images of the stream, [n, E].
        labels: class ids, [n].
        seen: whether an image's class was seen, [n].
        evaluated: whether it is one that the accuracy of this evaluation is about, [n].
    """
    searches = {
        "seen": retrieval_scores(embeddings[evaluated], labels[evaluated]),
        "all": retrieval_scores(embeddings, labels, evaluated & ~evaluated.all()),
        "unseen": retrieval_scores(embeddings[~seen], labels[~seen]),
    }
    return {
        name: {"queries": scores.queries, "left_out": scores.left_out, **scores.figures}
        if scores.queries
        else None
        for name, scores in searches.items()
    }


def check_retrieval(targets: NDArray[Any], groups: Sequence[NDArray[np.int64]] = ()) -> str | None:
    """Refuse test images of which none has a second one of its class.

    Args:
        targets: of the test set, [n].
        groups: the test indices of a stream, in parts; () for all.

    Returns:
        A line that says how many queries will be left out; None where none are.

    Raises:
        DataError: label sets, or nothing to find for any query.
    """
    if np.ndim(targets) != 1:
        raise DataError("retrieval needs one label per image, got multi-hot targets")
    labels = targets[np.concatenate(groups)] if len(groups) else targets
    counts = np.unique(labels, return_counts=True)[1]
    alone = int((counts == 1).sum())
    if alone == len(counts):
        raise DataError(
            f"retrieval needs a second test image of a class, but each of {len(labels)} is the only one of "
            "its class: no query has anything to find"
        )
    if not alone:
        return None
    return f"retrieval: {alone} of {len(labels)} test images, each the only one of its class, are no queries"


def summarise_retrieval(records: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """The metrics of a run's searches by their names in ``results.json``; {} of a run without.

    Among seen classes: after the last experience. Among all images, and of unseen classes among themselves:
    mean over the experiences that leave images of the stream for later.
    """
    ends = {
        int(record["experience"]): record["retrieval"]
        for record in records
        if record.get("kind") == "evaluation" and record.get("retrieval") is not None
    }
    if not ends:
        return {}
    scalars = {experience: retrieval_scalars(searches) for experience, searches in ends.items()}
    last = scalars[max(ends)]
    summary = {}
    for metric in RETRIEVAL_METRICS:
        is_of_seen = not metric.endswith(_LATER)
        values = [of[f"{TAG}{metric}"] for of in ([last] if is_of_seen else scalars.values())]
        defined = [np.nan if value is None else value for value in values]
        summary[metric] = mean_of_defined(np.array(defined, dtype=np.float64))
    return summary


def _sources(searches: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The searches by what was compared, under the prefixes of their metrics."""
    return {"": searches, _FROZEN: searches["frozen"]}


def retrieval_scalars(searches: Mapping[str, Any] | None) -> dict[str, float | None]:
    """What an evaluation charts of its searches, by tag."""
    if searches is None:
        return {}
    return {
        f"{TAG}{prefix}{figure}{suffix}": (of[search] or {}).get(figure)
        for prefix, of in _sources(searches).items()
        for search, (suffix, _) in SEARCHES.items()
        for figure in FIGURES
    }
