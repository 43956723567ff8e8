"""One run in several processes: each holds a part of every batch, and all hold the same model.

The loss of a step is computed by every process, of the whole batch: features, and what else a method's loss
reads of an image, are gathered before it (:class:`Part`), so that losses which compare images are the same as
in one process. What is behind it is cheap beside a frozen backbone. Gradients are averaged; the gathered rows
hand a process as many times its own gradient as there are processes, so that the average is the gradient of
one process.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from clprompt.backbones.digest import digest
from clprompt.data.loading import part_sizes, rows_of
from clprompt.errors import ConfigError, ProcessError, ProtocolError
from clprompt.system import launched
from clprompt.training.settings import Training

Value = TypeVar("Value")

#: How long a process waits for the others before it gives the run up.
TIMEOUT = timedelta(minutes=30)


class Processes:
    """The processes of a run; every call but ``batch`` waits for all of them.

    Attributes:
        rank: which of them this one is, from 0.
        count: how many there are.
    """

    def __init__(self) -> None:
        self.rank = dist.get_rank()
        self.count = dist.get_world_size()

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.rank == 0

    def batch(self, total: int) -> Part:
        """This process's part of a batch of so many images."""
        return Part(self, total)

    def agree(self, number: int) -> int:
        """The largest of the numbers that the processes give."""
        held = torch.tensor(number)
        _all(dist.all_reduce, held, dist.ReduceOp.MAX)
        return int(held)

    def agreed(self, stop: Callable[[], int | None]) -> Callable[[], int | None]:
        """A question that all processes ask at the same time, and to which they get the same answer."""
        return lambda: self.agree(stop() or 0) or None

    def wait(self) -> None:
        """Wait until all are here."""
        self.agree(0)

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """The other processes enter the block when the main one has left it."""
        if not self.is_main:
            self.wait()
        yield
        if self.is_main:
            self.wait()

    def from_main(self, value: Value | None = None) -> Value:
        """What the main process gives; plain values."""
        held = [value]
        _all(dist.broadcast_object_list, held)
        return held[0]  # type: ignore[return-value]

    def on_main(self, value: Value) -> list[Value] | None:
        """What each process gives, by rank; None elsewhere than in the main one."""
        gathered: list[Any] | None = [None] * self.count if self.is_main else None
        _all(dist.gather_object, value, gathered)
        return gathered

    def check_same(self, state: Mapping[str, Tensor], experience: int) -> None:
        """Refuse to go on where the processes hold different models: a figure would be nobody's.

        Args:
            state: tensors by name.
            experience: which begins, from 1.

        Raises:
            ProcessError: they differ.
        """
        number = int.from_bytes(digest(state.items())[:7])
        if self.agree(number) != -self.agree(-number):
            raise ProcessError(f"the processes hold different models when experience {experience} begins")

    def gathered(self, own: Tensor) -> Tensor:
        """Equally shaped tensors of all processes, [processes, ...]."""
        whole = [torch.empty_like(own) for _ in range(self.count)]
        _all(dist.all_gather, whole, own)
        return torch.stack(whole)

    def sum(self, values: Tensor) -> None:
        """Add the tensors of all processes, in place."""
        _all(dist.all_reduce, values)


class Part:
    """A process's part of a batch.

    A process that is left without an image holds the batch's first one in its place, which counts nowhere.

    Attributes:
        total: images of the batch.
        rows: those that this process holds, within it.
    """

    def __init__(self, processes: Processes, total: int) -> None:
        self.processes = processes
        self.total = total
        self.rows = rows_of(total, processes.rank, processes.count)
        self._counts = part_sizes(total, processes.count)

    @property
    def count(self) -> int:
        """How many of the images that this process holds count."""
        return self._counts[self.processes.rank]

    def whole(self, own: Value) -> Value:
        """Of this process's rows of tensors, [b, ...], those of the whole batch, [B, ...], with gradient.

        Args:
            own: a tensor, or tuples, lists, dictionaries and dataclasses of tensors; anything else in them
                stays as it is.

        Raises:
            ProtocolError: a tensor without a row for each image.
        """
        if isinstance(own, Tensor):
            if not own.ndim or len(own) != len(range(self.total)[self.rows]):
                raise ProtocolError(
                    f"what a training step hands on has the shape {list(own.shape)}: in several processes "
                    "each tensor needs a row for each image"
                )
            return _Whole.apply(own, self)  # type: ignore[no-any-return, no-untyped-call]
        made: Any = own
        if isinstance(own, tuple) and hasattr(own, "_fields"):
            made = type(own)(*map(self.whole, own))
        elif isinstance(own, tuple | list):
            made = type(own)(map(self.whole, own))
        elif isinstance(own, dict):
            made = {key: self.whole(value) for key, value in own.items()}
        elif dataclasses.is_dataclass(own) and not isinstance(own, type):
            fields = {field.name: self.whole(getattr(own, field.name)) for field in dataclasses.fields(own)}
            made = dataclasses.replace(own, **fields)
        return made  # type: ignore[no-any-return]

    def means(self, own: Sequence[Tensor]) -> list[Tensor]:
        """Of scalars that are means over this process's images those over the whole batch, with gradient."""
        if not own:
            return []
        means: Tensor = _Mean.apply(torch.stack(list(own)), self)  # type: ignore[no-untyped-call]
        return [mean.to(value.dtype) for mean, value in zip(means.unbind(), own, strict=True)]

    @torch.no_grad()
    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Bring the gradients of all processes to their mean.

        A parameter of which no process has a gradient gets none, as in one process.
        """
        parameters = list(parameters)
        # on the CPU, whatever the device: nobody waits for a GPU
        present = torch.tensor([p.grad is not None for p in parameters], dtype=torch.uint8)
        _all(dist.all_reduce, present, dist.ReduceOp.MAX)
        reached = [p for p, there in zip(parameters, present.tolist(), strict=True) if there]
        for dtype in dict.fromkeys(p.dtype for p in reached):
            alike = [p for p in reached if p.dtype == dtype]
            grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in alike]
            flat = torch.cat([grad.flatten() for grad in grads])
            self.processes.sum(flat)
            flat /= self.processes.count
            parts = flat.split([p.numel() for p in alike])
            for parameter, part in zip(alike, parts, strict=True):
                parameter.grad = part.view_as(parameter)

    def _collect(self, own: Tensor) -> Tensor:
        """Rows [b, ...] of all processes, one behind the other, [B, ...]."""
        if not own[:1].numel():
            return own.new_zeros(self.total, *own.shape[1:])
        width = own[:1].numel() * own.element_size()  # bytes travel, whatever the number format
        rows = own.detach()[: self.count].contiguous().view(torch.uint8).reshape(self.count, width)
        padded = rows.new_zeros(max(self._counts), width)
        padded[: self.count] = rows
        parts = self.processes.gathered(padded)
        whole = torch.cat([part[:count] for part, count in zip(parts, self._counts, strict=True)])
        return whole.view(own.dtype).view(self.total, *own.shape[1:])

    def _mean(self, own: Tensor) -> Tensor:
        """Means over the parts, [n] -> over the batch, [n]."""
        shares = torch.tensor(self._counts, dtype=own.dtype) / self.total
        return (self.processes.gathered(own.detach()) * shares.to(own.device)[:, None]).sum(0)


class _Whole(torch.autograd.Function):
    """Rows of a part to those of the batch. Every process computes the same loss of them."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, part: Part) -> Tensor:
        ctx.part, ctx.held = part, len(own)
        return part._collect(own)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,), part = gradients, ctx.part
        own = gradient.new_zeros(ctx.held, *gradient.shape[1:])
        own[: part.count] = gradient[part.rows][: part.count] * part.processes.count
        return own, None


class _Mean(torch.autograd.Function):
    """Means over a part to those over the batch."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, part: Part) -> Tensor:
        ctx.part = part
        return part._mean(own)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        part = ctx.part
        return gradients[0] * (part.count * part.processes.count / part.total), None


def started() -> Processes | None:
    """The processes of which this is one, where there are several that have met; None for a run alone."""
    if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        return None
    return Processes()


@contextmanager
def together() -> Iterator[Processes | None]:
    """Meet the processes that were started with this one, and part at the end; None where there are none.

    Raises:
        ConfigError: they cannot be reached.
        ProcessError: inside the block, one of them has ended.
    """
    if launched.processes() == 1 or dist.is_initialized():
        yield started()
        return
    on_gpus = torch.cuda.is_available() and dist.is_nccl_available()
    try:
        # what steers a run travels between CPUs, so that it waits for no GPU
        dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpus else "gloo", timeout=TIMEOUT)
    except (RuntimeError, ValueError) as error:
        text = " ".join(str(error).split())[:200]
        raise ConfigError(f"the {launched.processes()} processes of this run do not meet: {text}") from error
    launched.meet(dist.distributed_c10d._get_default_store())
    processes = Processes()
    processes.wait()
    yield processes
    # not where an error ends it: others may be gone
    dist.destroy_process_group()
    launched.meet(None)


def refuse_several(what: str) -> None:
    """Refuse what would be wrong, or done as often as there are processes, in several of them.

    Args:
        what: is asked for.

    Raises:
        ConfigError: naming it.
    """
    if launched.processes() > 1 or started() is not None:
        raise ConfigError(f"{what} runs in one process, not in several (torchrun); start it without torchrun")


def check_several(processes: Processes | None, training: Training) -> None:
    """Refuse a setting that several processes cannot do together.

    Raises:
        ConfigError: naming it.
    """
    if processes and training.compile:
        raise ConfigError("training.compile must be false in several processes (torchrun)")


def _all(operation: Callable[..., Any], *arguments: Any) -> None:
    """Something that all processes do together.

    Raises:
        ProcessError: one of them does not take part.
    """
    try:
        operation(*arguments)
    except RuntimeError as error:
        text = " ".join(str(error).split())[:120]
        raise ProcessError(f"another process of this run has ended ({text})") from error
