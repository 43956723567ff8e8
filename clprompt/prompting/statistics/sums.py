"""Class statistics: counts, class sums and one second moment, exact in any order."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from clprompt.errors import ConfigError, NotFiniteError, ProtocolError
from clprompt.prompting.heads import count_in, grow_rows, home_of_float64

T = TypeVar("T")
Module = TypeVar("Module", bound=nn.Module)


def kept_exact(module: Module, fn: Callable[[Tensor], Tensor]) -> Module:
    """What ``_apply`` of a module does whose buffers keep their number format, wherever they go."""
    for name, value in module._buffers.items():
        if value is not None:
            device = fn(torch.zeros((), dtype=torch.int64, device=value.device)).device
            module._buffers[name] = value.to(home_of_float64(device))
    return module


class ClassStatistics(nn.Module):
    """What a linear classifier over all classes seen can be solved from; no image and no feature is kept.

    Sums, not running means: neither the order of samples nor how they are cut into batches or experiences can
    matter (up to rounding in float64), and a class that comes again is added to. The size depends on classes
    and width alone. A class with one sample has its feature as its sum.

    Everything stays in float64 and int64, whatever the model is cast to, and in the host's memory where a
    device has no float64.

    Args:
        width: D, of the features.
        limit_bytes: the most that the second moment may take.

    Attributes:
        counts: samples by class, int64 [C]; of multi-hot targets those that show the class.
        sums: of their features, float64 [C, D].
        second: the uncentred second moment of all features, float64 [D, D].
        number: samples with multi-hot targets, int64 []; 0 where a sample has one label.
        total: the sum of their features, float64 [D].

    Raises:
        ConfigError: a second moment beyond the limit.
    """

    def __init__(self, width: int, *, limit_bytes: int = 4 * 2**30) -> None:
        super().__init__()
        if 8 * width**2 > limit_bytes:
            raise ConfigError(
                f"class statistics over features of width {width} keep a second moment of {8 * width**2:,} "
                f"bytes ({width} x {width} numbers of 8 bytes); at most {limit_bytes:,} are allowed"
            )
        self.width = width
        self.counts: Tensor
        self.sums: Tensor
        self.second: Tensor
        self.number: Tensor
        self.total: Tensor
        self.register_buffer("counts", torch.zeros(0, dtype=torch.int64))
        self.register_buffer("sums", torch.zeros(0, width, dtype=torch.float64))
        self.register_buffer("second", torch.zeros(width, width, dtype=torch.float64))
        self.register_buffer("number", torch.tensor(0))
        self.register_buffer("total", torch.zeros(width, dtype=torch.float64))
        self._solved: dict[Hashable, Any] = {}  # follows from the buffers, so it is no state
        self._kind: tuple[bool, bool] | None = (False, False)  # so does this, see _counted

    @property
    def num_classes(self) -> int:
        """C: the number of columns; column = class id."""
        return self.counts.shape[0]

    @property
    def seen(self) -> Tensor:
        """Boolean [C]: the classes with a sample."""
        return self.counts > 0

    @property
    def counted(self) -> bool:
        """Whether any class has a sample."""
        return self.once("counted", lambda classes: bool(classes.counts.any()))

    @property
    def has_label_sets(self) -> bool:
        """Whether samples came with multi-hot targets."""
        return self._counted()[1]

    def _counted(self) -> tuple[bool, bool]:
        """Whether anything was counted, and from multi-hot targets; the buffers are asked once."""
        if self._kind is None:
            self._kind = bool(self.counts.any()), bool(self.number > 0)
        return self._kind

    def grow(self, num_classes: int) -> None:
        """Have at least ``num_classes`` columns."""
        missing = num_classes - self.num_classes
        if missing > 0:
            grow_rows(self.counts, torch.zeros(missing))
            grow_rows(self.sums, torch.zeros(missing, self.width))
            self._solved.clear()

    @torch.no_grad()
    def add(self, features: Tensor, targets: Tensor) -> None:
        """Count a batch.

        Args:
            features: [B, D], in any number format, on any device.
            targets: labels [B], or multi-hot [B, K] of visible labels; a sample without any is counted among
                all samples.

        Raises:
            NotFiniteError: features that are not finite; they are not looked at on another device.
            ProtocolError: features of another width, a class beyond the columns (likewise), or multi-hot
                targets after labels or the other way round.
        """
        if features.shape[1] != self.width:
            raise ProtocolError(f"class statistics are of width {self.width}, got {features.shape[1]}")
        rows = features.detach().to(self.second.device, torch.float64)  # before anything is summed
        targets = targets.to(self.second.device, non_blocking=True)
        looks = rows.device.type == "cpu"  # elsewhere it would be waited for
        if looks and not bool(rows.isfinite().all()):
            raise NotFiniteError("class statistics got features that are not finite")
        if not len(rows):
            return
        if targets.ndim == 2:
            self._add_label_sets(rows, targets)
        else:
            self._add_labels(rows, targets)
        self.second.addmm_(rows.T, rows)
        self._solved.clear()

    def empty(self) -> ClassStatistics:
        """Others of as many columns, on the same device, that have counted nothing."""
        other = ClassStatistics(self.width).to(self.counts.device)
        other.grow(self.num_classes)
        return other

    @torch.no_grad()
    def merge(self, other: ClassStatistics) -> None:
        """Add what another counted, of as many columns."""
        for name, value in other.named_buffers():
            getattr(self, name).add_(value)
        self._solved.clear()
        self._kind = None

    @torch.no_grad()
    def replace(self, sums: Tensor, second: Tensor) -> None:
        """Put other class sums [C, D] and another second moment [D, D] in place of those counted."""
        self.sums.copy_(sums)
        self.second.copy_(second)
        self._solved.clear()

    def _add_labels(self, rows: Tensor, targets: Tensor) -> None:
        if self.has_label_sets:
            raise ProtocolError("class statistics were counted from multi-hot targets, got labels")
        if targets.device.type == "cpu":
            self._check_columns(int(targets.max()) + 1)
        count_in(self.counts, targets)
        self._kind = (True, False)
        self.sums.index_add_(0, targets, rows)

    def _add_label_sets(self, rows: Tensor, targets: Tensor) -> None:
        if self._counted() == (True, False):
            raise ProtocolError("class statistics were counted from labels, got multi-hot targets")
        shown = targets > 0
        if targets.device.type == "cpu":
            self._check_columns(int(shown.any(0).nonzero().amax()) + 1 if bool(shown.any()) else 0)
        width = min(shown.shape[1], self.num_classes)
        self.counts[:width] += shown[:, :width].sum(0)
        self.sums[:width] += shown[:, :width].to(rows).T @ rows
        self.number += len(rows)
        self._kind = (True, True)
        self.total += rows.sum(0)

    def _check_columns(self, needed: int) -> None:
        if needed > self.num_classes:
            raise ProtocolError(
                f"class {needed - 1} is beyond the {self.num_classes} columns of the class statistics; "
                "call grow first"
            )

    def means(self) -> Tensor:
        """Class means, float64 [C, D]; 0 for a class without a sample."""
        return self.sums / self.counts.double().clamp(min=1)[:, None]

    def scatter(self) -> tuple[Tensor, int]:
        """The scatter within classes [D, D], float64, and its degrees of freedom: samples minus classes.

        Of label sets it is that around the mean of all samples, with one degree of freedom less than samples.
        """
        if self.has_label_sets:
            mean = self.total / self.number.double()
            return self.second - torch.outer(self.total, mean), int(self.number) - 1
        means = self.means()
        between = (means * self.counts.double()[:, None]).T @ means
        return self.second - between, int(self.counts.sum()) - int(self.seen.sum())

    def once(self, key: Hashable, solve: Callable[[ClassStatistics], T]) -> T:
        """What ``solve`` makes of the statistics, made anew only after they changed.

        Args:
            key: names what is solved.
            solve: makes it.
        """
        if key not in self._solved:
            self._solved[key] = solve(self)
        return self._solved[key]

    def forget(self) -> None:
        """Have what was solved made anew: something beside the statistics has changed."""
        self._solved.clear()

    # ------------------------------------------------------------------ kept exact

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        self._solved.clear()
        return kept_exact(self, fn)

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *arguments: Any) -> None:
        self._solved.clear()
        self._kind = None
        width = state_dict.get(f"{prefix}total")
        if width is not None and width.shape != self.total.shape:
            raise ProtocolError(
                f"the state's class statistics are of width {len(width)}, the model's of {self.width}"
            )
        super()._load_from_state_dict(state_dict, prefix, *arguments)  # type: ignore[misc]
