"""The part of an evaluation in which every class answers by its name, those still to come included."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
import torch
from torch import Tensor

from clprompt.metrics.names import OfNames, score_names
from clprompt.prompting.model import Cache
from clprompt.prompting.text.model import TextModel


class ByName:
    """Scores of test images by the names of all classes, batch by batch.

    Args:
        model: in eval mode.
        targets: the labels of the whole test set, [n].
    """

    def __init__(self, model: TextModel, targets: np.ndarray) -> None:
        self.model = model
        self.targets = targets
        self.classes: list[int] = np.unique(targets).tolist()
        self.rows, self.frozen = model.open_rows(self.classes)
        self.alone = model.template_rows(self.classes)
        seen = set(np.flatnonzero(model.seen.cpu().numpy()).tolist())
        self._seen = [column for column, c in enumerate(self.classes) if c in seen]
        #: of each batch, by its indices: these; logits of all classes (b, n), prompted and plain; whether
        #: each template alone is right, bool (b, T), where there are any
        self.batches: dict[Hashable, tuple[list[int], Tensor, Tensor, Tensor | None]] = {}

    def add(self, batch: Sequence[int], images: Tensor, cached: Cache | None) -> None:
        """Score a batch of test images.

        Args:
            batch: their indices in the test set.
            images: [b, 3, H, W].
            cached: what is kept of them, see :class:`clprompt.prompting.PromptModel`.
        """
        model, cached = self.model, {} if cached is None else cached
        features = model.encode(images, cached).features
        prompted = model.similarity(features, self.rows).cpu()
        plain = model.zero_shot_logits(images, self.frozen, cached).cpu()
        right = self._right_alone(batch, images, cached) if self.alone else None
        self.batches[tuple(batch)] = (list(batch), prompted, plain, right)

    def _right_alone(self, batch: Sequence[int], images: Tensor, cached: Cache) -> Tensor:
        """Whether each template alone gives an image's class the most among the seen ones, [b, T]."""
        rows = torch.cat(list(self.alone.values()))  # (T n, E)
        logits = self.model.zero_shot_logits(images, rows, cached).unflatten(1, (len(self.alone), -1))
        best = logits[:, :, self._seen].argmax(2).cpu()  # (b, T)
        chosen = torch.tensor([self.classes[column] for column in self._seen])[best]
        return chosen == torch.as_tensor(self.targets[list(batch)])[:, None]

    def score(self, groups: Sequence[np.ndarray]) -> OfNames:
        """The accuracies over all images that were added.

        Args:
            groups: test indices per class group; all of them were added.
        """
        batches = list(self.batches.values())
        order = [index for batch, *_ in batches for index in batch]
        place = {index: at for at, index in enumerate(order)}
        column = {c: at for at, c in enumerate(self.classes)}
        alone = [right for *_, right in batches if right is not None]
        right = torch.cat(alone).numpy() if alone else None
        return score_names(
            torch.cat([prompted for _, prompted, _, _ in batches]).numpy(),
            torch.cat([plain for _, _, plain, _ in batches]).numpy(),
            np.array([column[int(target)] for target in self.targets[order]], dtype=np.int64),
            self._seen,
            [np.array([place[index] for index in group.tolist()], dtype=np.int64) for group in groups],
            {} if right is None else {text: right[:, at] for at, text in enumerate(self.alone)},
        )
