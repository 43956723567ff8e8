"""Assertions that say what was expected, and of what size the difference is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clprompt.errors import ProtocolError
from clprompt.prompting.model import PromptModel
from clprompt.seeding import generator

# ------------------------------------------------------------------------------------------ what is asserted


def require(condition: bool, sentence: str) -> None:
    """Raise AssertionError with a sentence; a bare ``assert`` would go away under ``python -O``."""
    if not condition:
        raise AssertionError(sentence)


def same_bits(first: Any, second: Any) -> bool:
    """Whether nested dictionaries, sequences, tensors and plain values are equal, tensors bit for bit."""
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        same = first.shape == second.shape and first.dtype == second.dtype
        return same and first.detach().cpu().numpy().tobytes() == second.detach().cpu().numpy().tobytes()
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        return first.keys() == second.keys() and all(same_bits(first[k], second[k]) for k in first)
    if isinstance(first, Sequence) and isinstance(second, Sequence) and not isinstance(first, str):
        return len(first) == len(second) and all(map(same_bits, first, second))
    return bool(first == second)


def bits(model: PromptModel) -> dict[str, Tensor]:
    """A copy of the method's state."""
    return {name: value.detach().clone() for name, value in model.method_state().items()}


def changed(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> list[str]:
    """The names of tensors that came, went, or have other bits."""
    names = sorted({*before, *after})
    return [n for n in names if n not in before or n not in after or not same_bits(before[n], after[n])]


def refused(call: Callable[[], Any], what: str) -> None:
    """Require that a call raises a ProtocolError, in one line."""
    try:
        call()
    except ProtocolError as error:
        require(
            bool(str(error)) and "\n" not in str(error), f"the refusal of {what} must be one line: {error!s}"
        )
    except Exception as error:
        raise AssertionError(f"{what} must be refused by a ProtocolError, got {error!r}") from error
    else:
        raise AssertionError(f"{what} was not refused")


def finite_losses(records: Iterable[Mapping[str, Any]], where: str) -> None:
    """Require that every term of every training record is a finite number."""
    for record in records:
        for name, value in record.get("terms", {}).items():
            require(bool(np.isfinite(value)), f"{name} is {value} at step {record['step']}{where}")


def scale(logits: Tensor) -> float:
    """The spread of the finite logits: what their differences are compared with."""
    finite = logits[logits.isfinite()]
    return float(finite.max() - finite.min()) if finite.numel() else 1.0


def seen_columns(logits: Tensor, seen: Sequence[int], where: str) -> None:
    """Require logits [B, C], finite exactly for the seen classes, without columns beyond the largest id."""
    width = max(seen, default=-1) + 1
    require(
        logits.ndim == 2 and logits.shape[1] == width,
        f"logits are {list(logits.shape)} {where}; {width} columns are expected, one per class id",
    )
    finite = logits.isfinite()
    missing = [c for c in seen if not bool(finite[:, c].all())]
    require(not missing, f"logits of the seen classes {missing} are not finite {where}")
    unseen = [c for c in range(logits.shape[1]) if c not in seen]
    wrong = [c for c in unseen if not bool((logits[:, c] == float("-inf")).all())]
    require(not wrong, f"logits of the classes {wrong}, which were never observed, are not -inf {where}")


@torch.no_grad()
def chunked(model: PromptModel, images: Tensor, size: int) -> Tensor:
    """Logits [B, C] of images that go through the model ``size`` at a time."""
    return torch.cat([model(part) for part in images.split(size)])


def steady(model: PromptModel, images: Tensor, alone: Tensor) -> Tensor:
    """Boolean [B]: samples that do not stand on the edge between two selections.

    There the rounding of another batch shape may tip the choice, which is nobody's mistake: the logits jump
    when the image itself changes by a hundred thousandth.
    """
    noise = 1e-5 * torch.randn(images.shape, generator=generator(0, "steady")).to(images.device)
    # one by one, as ``alone`` was, costs many times as much: only where a batch shows a jump
    for size in (len(images), 1):
        kept = torch.ones(len(images), dtype=torch.bool, device=images.device)
        for moved in (images + noise, images - noise):
            kept &= _distance(chunked(model, moved, size), alone) < 1e-2 * scale(alone)
        if bool(kept.all()):
            break
    share = float(kept.float().mean())
    require(share > 0.7, f"a change of the images by 1e-5 makes the logits of {1 - share:.0%} of them jump")
    return kept


def near(logits: Tensor, expected: Tensor, kept: Tensor, where: str) -> None:
    """Require equal logits up to rounding on the kept samples."""
    distance = _distance(logits, expected)[kept] / scale(expected)
    worst = float(distance.max())
    require(worst < 1e-3, f"logits differ by {worst:.1e} of their range {where}")


def _distance(logits: Tensor, expected: Tensor) -> Tensor:
    """The largest difference per sample, [B]; infinite where other columns are finite."""
    require(
        logits.shape == expected.shape, f"logits are {list(logits.shape)}, expected {list(expected.shape)}"
    )
    difference = torch.where(logits == expected, 0.0, (logits - expected).abs())  # -inf equals -inf
    return difference.nan_to_num(nan=float("inf")).amax(1)
