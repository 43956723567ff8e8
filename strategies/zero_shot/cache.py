"""A cache of confident features with pseudo-labels, which adds to the logits of text (TFUP)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from clprompt.prompting.heads import grow_rows

#: What the released code multiplies cosines with before the softmax whose distributions are compared.
_SHARPNESS_OF_CLASSES = 10.0


def prediction_similarity(features: Tensor, keys: Tensor, rows: Tensor) -> Tensor:
    """How alike images and keys are predicted, 0 to 2 over the keys of an image: [B, E], [K, E] -> [B, K].

    2 (1 - minmax(KL(p_f || p_key))), p the softmax over classes of 10 cos. The z-score that the released code
    takes before minmax changes nothing. Keys that are all equally alike get 2.

    Args:
        features: normalised.
        keys: normalised.
        rows: of the classes, normalised, [C, E].
    """
    ours = (_SHARPNESS_OF_CLASSES * features @ rows.T).log_softmax(1)  # (B, C)
    theirs = (_SHARPNESS_OF_CLASSES * keys @ rows.T).log_softmax(1)  # (K, C)
    divergence = (ours.exp() * ours).sum(1, keepdim=True) - ours.exp() @ theirs.T  # (B, K)
    least = divergence.amin(1, keepdim=True)
    spread = divergence.amax(1, keepdim=True) - least
    return 2 * (1 - (divergence - least) / spread.masked_fill(spread == 0, 1))


def affinity(
    features: Tensor, keys: Tensor, rows: Tensor, *, weight: float = 0.3, sharpness: float = 1.0
) -> Tensor:
    """What each key adds to the logit of its class: weight exp(-sharpness (1 - a)), [B, K].

    a = cos(f, key) times :func:`prediction_similarity`; arguments as there.

    Source: Wang et al. (TFUP), the released code: alpha 0.3, beta 1.
    """
    alike = (features @ keys.T) * prediction_similarity(features, keys, rows)
    return weight * torch.exp(-sharpness * (1 - alike))


class FeatureCache(nn.Module):
    """The features of each class's most confident images, at most ``size`` a class.

    Args:
        size: features kept of a class at most.
        width: of a feature, E.

    Attributes:
        keys: float [C, size, E], normalised.
        confidence: float [C, size], falling; 0 where there is no key.
    """

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.size = size
        self.keys: Tensor
        self.confidence: Tensor
        self.register_buffer("keys", torch.zeros(0, size, width))
        self.register_buffer("confidence", torch.zeros(0, size))

    def grow(self, num_classes: int) -> None:
        """Have room for so many classes."""
        missing = num_classes - len(self.keys)
        grow_rows(self.keys, torch.zeros(missing, *self.keys.shape[1:]))
        grow_rows(self.confidence, torch.zeros(missing, self.size))

    def add(self, features: Tensor, classes: Tensor, confidence: Tensor) -> None:
        """Keep the most confident, of equals those that came first.

        Args:
            features: normalised, [N, E].
            classes: pseudo-labels, [N].
            confidence: probabilities of these, [N].
        """
        for c in classes.unique().tolist():
            new = classes == c
            probabilities = torch.cat([self.confidence[c], confidence[new].to(self.confidence)])
            candidates = torch.cat([self.keys[c], features[new].to(self.keys)])
            order = probabilities.sort(descending=True, stable=True).indices[: self.size]
            self.keys[c], self.confidence[c] = candidates[order], probabilities[order]

    def added(
        self, features: Tensor, rows: Tensor, seen: Tensor, *, weight: float, sharpness: float
    ) -> Tensor:
        """What the cache adds to the logits, [B, E] -> [B, C]; 0 where nothing is cached.

        Args:
            features: normalised.
            rows: of all classes, normalised, [C, E].
            seen: boolean [C], the classes whose distributions are compared.
            weight: see :func:`affinity`.
            sharpness: likewise.
        """
        logits = features.new_zeros(features.shape[0], self.keys.shape[0])
        filled = (self.confidence > 0) & seen[:, None]  # (C, size)
        if torch.compiler.is_compiling() or bool(filled.any()):
            keys, classes = self.keys[filled].to(features), filled.nonzero()[:, 0]
            added = affinity(features, keys, rows[seen].to(features), weight=weight, sharpness=sharpness)
            logits.index_add_(1, classes, added)
        return logits
