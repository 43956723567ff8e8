"""The evaluator of multi-hot targets: one set of all test images with a seen label, figures over the whole of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from clprompt.data.loading import Images, fixed_batches
from clprompt.errors import DataError
from clprompt.metrics.label_sets import FIGURES, MultiLabelScores, multi_label_scores
from clprompt.prompting.model import PromptModel
from clprompt.training.evaluation import Evaluation, Evaluator


@dataclass(frozen=True)
class MultiLabelEvaluation:
    """Figures on the test images that have a seen label.

    Attributes:
        scores: None when there is no such image.
        classes: the seen classes, ascending; the columns of the per-class figures.
        images: how many test images were evaluated.
    """

    scores: MultiLabelScores | None
    classes: list[int]
    images: int

    def record(self) -> dict[str, Any]:
        """The JSON form: the figures by name, and per class "ap" and "f1" in the order of "classes"."""
        values = {name: getattr(self.scores, name, None) for name in FIGURES}
        known = self.scores is not None
        return {
            **values,
            "classes": self.classes,
            "ap": self.scores.ap.tolist() if known else [None] * len(self.classes),  # type: ignore[union-attr]
            "f1": self.scores.f1.tolist() if known else [None] * len(self.classes),  # type: ignore[union-attr]
            "images": self.images,
        }


class MultiLabelEvaluator(Evaluator):
    """Evaluates a model on the test images that have at least one seen label, targets restricted to seen classes.

    Images join when the first of their labels is seen, in batches of their own that never change afterwards.

    Args:
        test: (image, multi-hot target) items under the evaluation transform.
        targets: 0/1, [n, C].
        threshold: probability above which a label counts as predicted.
        strict_reference: see :func:`clprompt.metrics.label_sets.multi_label_scores`.
        **arguments: see :class:`Evaluator`.

    Raises:
        DataError: targets that are not multi-hot.
    """

    def __init__(
        self,
        test: Images,
        targets: np.ndarray,
        *,
        threshold: float = 0.8,
        strict_reference: bool = False,
        **arguments: Any,
    ) -> None:
        self.hot = np.asarray(targets)
        if self.hot.ndim != 2 or not np.isin(self.hot, (0, 1)).all():
            raise DataError(f"multi-hot targets must be 0 or 1, [n, C]; got the shape {list(self.hot.shape)}")
        self.threshold = threshold
        self.strict_reference = strict_reference
        super().__init__(test, np.zeros(len(self.hot), dtype=np.int64), [], **arguments)

    def restore(self, exposed: Sequence[Sequence[int]]) -> None:
        self._joined = np.zeros(len(self.hot), dtype=bool)
        super().restore(exposed)

    def _expose(self, classes: list[int]) -> None:
        self.exposed.append(classes)
        columns = [c for c in classes if c < self.hot.shape[1]]
        new = np.flatnonzero(self.hot[:, columns].any(1) & ~self._joined)
        self._joined[new] = True
        size = self.batch_size
        self._chunks += ((0, new[i : i + size].tolist()) for i in range(0, len(new), size))

    @torch.no_grad()
    def run(self, model: PromptModel) -> Evaluation:
        """Evaluate on the images with a seen label; the model's mode is restored afterwards."""
        seen = np.flatnonzero(model.seen.cpu().numpy())
        self._follow(seen)
        batches = [batch for _, batch in self._chunks]
        was_training = model.training
        model.eval()
        found = []
        try:
            for key, (images, *_) in enumerate(fixed_batches(self.test, batches, self.workers)):
                logits = self._logits(model, images.to(model.seen.device), key)
                found.append(logits[:, torch.from_numpy(seen).to(logits.device)].float().cpu().numpy())
        finally:
            model.train(was_training)
        order = [index for batch in batches for index in batch]
        hot = np.zeros((len(order), len(seen)), dtype=np.int64)
        known = seen < self.hot.shape[1]
        hot[:, known] = self.hot[order][:, seen[known]]
        scores = None
        if hot.any():
            scores = multi_label_scores(
                np.concatenate(found),
                hot,
                threshold=self.threshold,
                strict_reference=self.strict_reference,
            )
        return MultiLabelEvaluation(scores, seen.tolist(), len(order))  # type: ignore[return-value]


def evaluator_for(plan: Any, test: Images, targets: np.ndarray, **arguments: Any) -> Evaluator:
    """The evaluator that fits the targets of a stream: accuracy for labels, mAP for multi-hot ones.

    Args:
        plan: the stream; one of multi-hot targets knows its ``threshold``.
        test, targets: see :class:`Evaluator`.
        **arguments: what both evaluators take.
    """
    targets = np.asarray(targets)
    if targets.ndim == 2:
        threshold = getattr(plan, "threshold", 0.8)
        return MultiLabelEvaluator(test, targets, threshold=threshold, **arguments)
    return Evaluator(test, targets, plan.test_groups(targets), **arguments)
