"""Choosing between the best classes of an image by texts that tell pairs of classes apart (FuDD)."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import torch.nn.functional as F
from torch import Tensor

from clprompt.backbones.text import FrozenText


class PairTexts:
    """Sums of text features by ordered pair of classes.

    Args:
        sums: of the normalised features of the sentences about one class against another, [C, C, E]; 0 on the
            diagonal.
        counts: of these sentences, [C, C].
    """

    def __init__(self, sums: Tensor, counts: Tensor) -> None:
        self.sums = sums
        self.counts = counts

    def cosines(self, features: Tensor, top: Tensor) -> Tensor:
        """Cosines of images with their best classes, each told from the other ones: [B, k] as ``top``.

        Args:
            features: normalised, [B, E].
            top: indices of k classes, 2 or more, [B, k].
        """
        ours, others = top[:, :, None], top[:, None, :]
        sums, counts = self.sums.to(features), self.counts.to(features)
        means = sums[ours, others].sum(2) / counts[ours, others].sum(2, keepdim=True)  # (B, k, E)
        return (F.normalize(means, dim=-1) @ features[:, :, None])[..., 0]


def pair_texts(
    text: FrozenText,
    classes: Sequence[Sequence[str]],
    sentences: Mapping[tuple[str, str], Sequence[str]],
    own: Sequence[Sequence[str]],
    known: Collection[str],
) -> tuple[PairTexts, list[tuple[str, str]]]:
    """The texts of all pairs of some classes, and the pairs that have none and get the class's own.

    Args:
        text: the frozen text tower.
        classes: the names of each class, the shown one first.
        sentences: by (name, other name).
        own: texts of each class alone.
        known: names of classes that may follow: their texts are run at once, not anew with each.
    """
    number = {name: index for index, names in enumerate(classes) for name in names}
    about: list[list[tuple[str, Sequence[str]]]] = [[] for _ in classes]
    for (name, other), texts in sentences.items():
        if name in number and (other in number or other in known):
            about[number[name]].append((other, texts))
    sums = text.positional_embedding.new_zeros(len(classes), len(classes), text.joint_width)
    counts = sums.new_zeros(len(classes), len(classes))
    missing = []
    for index, entries in enumerate(about):
        if entries:  # one call for a class: many short texts at a time
            features = F.normalize(text.features([line for _, texts in entries for line in texts]), dim=-1)
            parts = features.split([len(texts) for _, texts in entries])
            for (other, texts), part in zip(entries, parts, strict=True):
                if other in number:
                    sums[index, number[other]], counts[index, number[other]] = part.sum(0), len(texts)
        absent = [other for other in range(len(classes)) if other != index and not counts[index, other]]
        if absent:
            features = F.normalize(text.features(list(own[index])), dim=-1)
            sums[index, absent], counts[index, absent] = features.sum(0), float(len(features))
            missing += [(classes[index][0], classes[other][0]) for other in absent]
    return PairTexts(sums, counts), missing
