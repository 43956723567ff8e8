"""The part of an evaluation in which images look for others of their class."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clprompt.metrics.retrieval import search_all
from clprompt.prompting.model import Cache, PromptModel
from clprompt.training.finite import blame


class Embeddings:
    """Embeddings of test images, batch by batch, and the frozen features that they are held against.

    Args:
        model: in eval mode.
        targets: the labels of the whole test set, [n].
    """

    def __init__(self, model: PromptModel, targets: np.ndarray) -> None:
        self.model = model
        self.targets = targets
        #: of each batch, by its indices: these, embeddings (b, E) and frozen features (b, D)
        self.batches: dict[Hashable, tuple[list[int], Tensor, Tensor]] = {}

    def add(
        self,
        batch: Sequence[int],
        images: Tensor,
        cached: Cache | None,
        embeddings: Tensor | None = None,
    ) -> None:
        """Embed a batch of test images.

        Args:
            batch: their indices in the test set.
            images: [b, 3, H, W].
            cached: what is kept of them, see :class:`clprompt.prompting.PromptModel`.
            embeddings: of the images, [b, E], where they are known.

        Raises:
            ClpromptError: an embedding is not finite.
        """
        model = self.model
        if embeddings is None:
            embeddings = model.embed(images, cached)
        frozen = model.features(images, cached)
        for row in (~(embeddings.isfinite().all(1) & frozen.isfinite().all(1))).nonzero().flatten().tolist():
            what = f"no evaluation is recorded: the embedding of test image {batch[row]} is not finite"
            names = [f"test image {index}" for index in batch]
            raise blame(model, images, what, names.__getitem__, trained=model.trains)
        self.batches[tuple(batch)] = (list(batch), embeddings.float().cpu(), frozen.float().cpu())

    def search(self, seen: np.ndarray, evaluated: np.ndarray) -> dict[str, Any]:
        """The figures of all searches in their JSON form, those of frozen features under "frozen".

        Args:
            seen: the ids of the seen classes.
            evaluated: the images that the accuracy of this evaluation is about.
        """
        batches, embeddings, of_frozen = zip(*self.batches.values(), strict=True)
        order = [index for batch in batches for index in batch]
        labels = self.targets[order]
        which = labels, np.isin(labels, seen), np.isin(order, evaluated)
        searches, frozen = (search_all(torch.cat(parts).numpy(), *which) for parts in (embeddings, of_frozen))
        return {**searches, "frozen": frozen}
