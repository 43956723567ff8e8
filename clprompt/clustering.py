"""Diversity-adaptive clustering of features: average linkage under a distance threshold, with a cap."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from clprompt.errors import DataError


def mean_distance(features: Tensor) -> float:
    """Mean pairwise Euclidean distance of the rows of [n, D]; 0 for a single row."""
    return float(torch.pdist(features.double()).mean()) if len(features) > 1 else 0.0


def cluster(
    features: Tensor, threshold: float, *, max_clusters: int | None = None, min_size: int = 1
) -> np.ndarray:
    """Average-linkage clusters whose number follows from the data.

    Args:
        features: [n, D].
        threshold: clusters merge while their average distance is below it.
        max_clusters: cut the same tree at so many when the threshold gives more.
        min_size: smaller clusters go to the nearest of the remaining means; all too small: one cluster.

    Returns:
        Labels 0..K-1, int64 [n].

    Raises:
        DataError: no features, or nan among them.

    Source: Huang et al. 2023 (DAM-VP), section 3 of the method; cap and smallest size are ours.
    """
    from sklearn.cluster import AgglomerativeClustering

    rows = features.detach().cpu().double().numpy()
    if not len(rows):
        raise DataError("there are no images to cluster")
    if not np.isfinite(rows).all():
        raise DataError("the features to cluster hold nan or infinity")
    if len(rows) == 1:
        return np.zeros(1, dtype=np.int64)
    found = AgglomerativeClustering(n_clusters=None, distance_threshold=threshold, linkage="average")
    labels = found.fit_predict(rows)
    if max_clusters is not None and found.n_clusters_ > max_clusters:
        labels = AgglomerativeClustering(n_clusters=max_clusters, linkage="average").fit_predict(rows)
    return _fold(rows, labels.astype(np.int64), min_size)


def _fold(rows: np.ndarray, labels: np.ndarray, min_size: int) -> np.ndarray:
    sizes = np.bincount(labels)
    large = np.flatnonzero(sizes >= min_size)
    if not len(large):
        return np.zeros_like(labels)
    means = np.stack([rows[labels == k].mean(0) for k in range(len(sizes))])
    nearest = ((means[:, None] - means[large]) ** 2).sum(-1).argmin(1)
    target = np.where(sizes >= min_size, np.searchsorted(large, np.arange(len(sizes))), nearest)
    return target[labels].astype(np.int64)
