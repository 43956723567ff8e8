"""DAM-VP's meta-prompt: a frame learnt by Reptile over source data, from which every prompt may start."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clprompt.backbones.vit import FrozenViT
from clprompt.strategies.damvp.clustering import nearest_prototype
from clprompt.strategies.damvp.frames import as_images, framed_tokens
from clprompt.training import optim

InnerOptimizer = Literal["sgd", "adam"]


@dataclass
class Source:
    """One source of meta-training.

    Attributes:
        name: for messages.
        prototypes: [K, D]; one row for a source that is not clustered.
        head: a classifier that goes on learning from one meta-step to the next, and is not exported; None to
            read feature coordinates instead.
        columns: the coordinates that the classes read, int64 [C], where there is no head.
    """

    name: str
    prototypes: Tensor
    head: nn.Linear | None = None
    columns: Tensor | None = None


class Batch:
    """A batch of a source, looked at once for a whole meta-step: its patches, and the prompt of each image.

    Args:
        backbone: frozen.
        places: of a frame's entries, see :func:`clprompt.strategies.damvp.frames.frame_places`.
        source: where the batch is from.
        images: [B, 3, H, W].
        labels: [B], the source's own class ids.
    """

    def __init__(
        self, backbone: FrozenViT, places: Tensor, source: Source, images: Tensor, labels: Tensor
    ) -> None:
        self.backbone = backbone
        self.places = places
        self.source = source
        self.images = images
        self.labels = labels
        self.patches = backbone.patches(images) if backbone.linear_patches else None
        clean = images if self.patches is None else backbone.position(self.patches)
        self.index = nearest_prototype(backbone.features(clean), source.prototypes)  # [B]
        self.used, self.inverse = self.index.unique(return_inverse=True)  # [U], [B]

    def loss(self, prompts: Tensor) -> Tensor:
        """Mean cross-entropy with the prompts of the used clusters, [U, F] (or [1, F] for all)."""
        framed = as_images(prompts, self.places, self.backbone.in_chans, self.backbone.image_size[0])
        index = self.inverse if len(prompts) > 1 else torch.zeros_like(self.inverse)
        features = self.backbone.prompted(
            framed_tokens(self.backbone, self.images, self.patches, framed, index)
        )
        if self.source.head is not None:
            return F.cross_entropy(self.source.head(features), self.labels)
        return F.cross_entropy(features[:, self.source.columns], self.labels)


def adapt(
    batch: Batch,
    frame: Tensor,
    *,
    steps: int,
    lr: float,
    optimizer: InnerOptimizer = "sgd",
    weight_decay: float = 0.0,
    head_lr: float = 0.1,
) -> Iterator[tuple[float, Tensor]]:
    """Adapt copies of a frame [F] to one batch, one copy per cluster that occurs in it.

    Clusters that do not occur have no gradient: their copies would stay the frame, and are not made.

    Args:
        batch: the batch of all inner steps.
        frame: [F], the meta-prompt.
        steps: inner steps of the copies.
        lr: learning rate of the copies.
        optimizer: of the copies.
        weight_decay: of the copies.
        head_lr: of the source's head, by plain gradient descent.

    Yields:
        After each inner step, the loss before it and the copies [U, F].
    """
    fast = nn.Parameter(frame.detach().expand(len(batch.used), -1).clone())
    optimizer_type = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}[optimizer]
    optimizers: list[torch.optim.Optimizer] = [optimizer_type([fast], lr=lr, weight_decay=weight_decay)]
    if batch.source.head is not None:
        optimizers.append(torch.optim.SGD(batch.source.head.parameters(), lr=head_lr))
    for _ in range(steps):
        loss = batch.loss(fast)
        for each in optimizers:
            each.zero_grad(set_to_none=True)
        loss.backward()
        for each in optimizers:
            with optim.in_range(each):
                each.step()
        yield float(loss.detach()), fast.detach()


def meta_update(
    frame: Tensor,
    fast: Sequence[Tensor],
    clusters: Sequence[int],
    *,
    step_size: float,
    count_idle: bool = True,
) -> Tensor:
    """Reptile: the frame moves towards the mean of all fast prompts.

    Args:
        frame: [F].
        fast: per source, the copies of the clusters that occurred, [U, F].
        clusters: per source, how many clusters it has.
        step_size: epsilon.
        count_idle: whether clusters that did not occur count in the mean, as copies that stayed where they
            were (the released code); they shorten the step.

    Returns:
        The new frame [F].
    """
    moved = torch.cat(list(fast))
    count = sum(clusters) if count_idle else len(moved)
    return frame + step_size * (moved - frame).sum(0) / count


def inner_rate(lr: float, step: int, steps: int) -> float:
    """The inner learning rate of meta-step ``step``, counted from 1: a cosine that ends at exactly 0."""
    import math

    return lr * (1 + math.cos(math.pi * step / steps)) / 2
