"""Diversity-adaptive clustering of features: average linkage under a distance threshold, with a cap."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from clprompt.errors import DataError
from clprompt.seeding import preserved_rng


def mean_distance(features: Tensor) -> float:
    """Mean pairwise Euclidean distance of the rows of [n, D]; 0 for a single row."""
    return float(torch.pdist(features.double()).mean()) if len(features) > 1 else 0.0


@torch.no_grad()
def sample_features(
    batches: Iterable[Tensor], features: Callable[[Tensor], Tensor], count: int, seed: int
) -> Tensor:
    """Features of a seeded random sample of streamed images, in one pass that holds a batch at a time.

    Every image draws a number, and the smallest ``count`` stay; most images of a long stream are told at once
    that they will not be among them, and their features are never computed.

    Args:
        batches: images [B, 3, H, W].
        features: images -> [B, D].
        count: the most images in the sample.
        seed: decides it, whatever the batch size.

    Returns:
        At most [count, D], float32, on the CPU, in the order of the stream.
    """
    rng = np.random.default_rng(seed)
    kept, numbers = None, np.zeros(0)
    for images in batches:
        drawn = rng.random(len(images))
        bound = np.inf if len(numbers) < count else numbers.max()
        enter = np.flatnonzero(drawn < bound)
        if not len(enter):
            continue
        new = features(images[torch.from_numpy(enter).to(images.device)]).float().cpu()
        kept = new if kept is None else torch.cat([kept, new])
        numbers = np.concatenate([numbers, drawn[enter]])
        stay = np.sort(np.argsort(numbers, kind="stable")[:count])
        kept, numbers = kept[torch.from_numpy(stay)], numbers[stay]
    return torch.zeros(0, 0) if kept is None else kept


class Clusters(NamedTuple):
    """What is kept of K clusters: means [K, D], radii [K] (root mean squared distance) and sizes [K]."""

    prototypes: Tensor
    radius: Tensor
    counts: Tensor


def clusters_of(features: Tensor, labels: Tensor) -> Clusters:
    """Features [n, D] under labels 0..K-1 [n], as means, radii and sizes in the features' type."""
    counts = labels.bincount()
    total = features.new_zeros(len(counts), features.shape[1]).index_add(0, labels, features)
    means = total / counts[:, None].to(features)
    squares = (features - means[labels]).square().sum(1)
    spread = features.new_zeros(len(counts)).index_add(0, labels, squares) / counts.to(features)
    return Clusters(means, spread.sqrt(), counts)


def nearest_prototype(query: Tensor, prototypes: Tensor, out_of_reach: Tensor | None = None) -> Tensor:
    """The nearest prototype of each query: [B, D], [K, D] -> int64 [B].

    No root, hence no nan where a query is a prototype; float32 at least, under autocast too.

    Args:
        query: [B, D].
        prototypes: [K, D].
        out_of_reach: bool [K] or [B, K], prototypes that are not chosen.
    """
    dtype = torch.promote_types(query.dtype, torch.float32)
    with torch.autocast(query.device.type, enabled=False):
        means = prototypes.to(dtype)
        distance = means.square().sum(1) - 2 * query.to(dtype) @ means.T  # (B, K), short of |query|^2
    if out_of_reach is not None:
        distance = distance.masked_fill(out_of_reach, float("inf"))
    return distance.argmin(1)


class ClusterMap(NamedTuple):
    """Clusters in the plane, for a drawing: points [n, 2] with labels [n], prototypes [K, 2]."""

    points: Tensor
    labels: Tensor
    prototypes: Tensor


def plane_of(features: Tensor, labels: Tensor, prototypes: Tensor) -> ClusterMap:
    """Features [n, D] and the means of their clusters [K, D] on the features' first two principal axes."""
    rows, mean = features.cpu().double(), features.cpu().double().mean(0)
    axes = torch.linalg.eigh((rows - mean).T @ (rows - mean)).eigenvectors[:, -2:].flip(1)  # (D, 2)
    # eigenvectors have no sign of their own
    axes *= axes.gather(0, axes.abs().argmax(0, keepdim=True)).sign()
    return ClusterMap((rows - mean) @ axes, labels.cpu(), (prototypes.cpu().double() - mean) @ axes)


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
    with preserved_rng(devices=False):  # the first import of what scikit-learn needs draws
        from sklearn.cluster import AgglomerativeClustering

    rows = features.detach().cpu().double().numpy()
    if not len(rows):
        raise DataError("there are no images to cluster")
    if not np.isfinite(rows).all():
        raise DataError("the features to cluster hold nan or infinity")
    if len(rows) == 1:
        return np.zeros(1, dtype=np.int64)
    tree = AgglomerativeClustering(n_clusters=None, distance_threshold=threshold, linkage="average")
    labels = tree.fit_predict(rows)
    if max_clusters is not None and tree.n_clusters_ > max_clusters:
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
