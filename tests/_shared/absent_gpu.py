"""A GPU that is not there: tensors with a shape and no numbers, and a watch over who waits for them."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

CUDA = torch.device("cuda", 0)

#: Operators whose result, or its shape, the host has to ask the device for.
_ASKING = ("_local_scalar_dense", "nonzero", "_unique2", "unique_dim", "unique_consecutive", "bincount")
_ASKING += ("masked_select", "equal", "is_nonzero", "item")


class WaitsForDevice(AssertionError):
    """An operator for which the host waits."""


@cache
def _why_not() -> str | None:
    outside = torch.zeros(1)
    try:
        with FakeTensorMode(allow_non_fake_inputs=True):
            outside.to(CUDA)
    except RuntimeError as error:
        return str(error).splitlines()[0]
    return None


def _skip_where_a_driver_is_asked_for() -> None:
    """Fake tensors on a device need no driver but in older releases of torch."""
    if (why := _why_not()) is not None:
        pytest.skip(f"torch {torch.__version__}: {why}")


class AbsentGPU(TorchDispatchMode):
    """Runs what touches the device on fake tensors, all else on the CPU as ever; refuses whatever waits.

    Refused are values asked for (``item``, ``bool``, ``tolist``), shapes that values decide (``nonzero``,
    ``unique``, ``bincount``, boolean indices), copies to the host, and copies to the device that the host
    waits for.
    """

    def __init__(self) -> None:
        super().__init__()
        _skip_where_a_driver_is_asked_for()
        self.fake = FakeTensorMode(allow_non_fake_inputs=True)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        on_device = [x for x in tree_iter((args, kwargs)) if isinstance(x, Tensor) and is_there(x)]
        device = kwargs.get("device")
        to_device = device is not None and torch.device(device).type == "cuda"
        if not on_device and not to_device:
            with unset_fake_temporarily():
                return func(*args, **kwargs)
        why = _waits(func, args, kwargs, bool(on_device), to_device)
        if why is not None:
            raise WaitsForDevice(f"{func}: {why}")
        return func(*args, **kwargs)

    def __enter__(self) -> AbsentGPU:
        self.fake.__enter__()  # while it is there, nothing looks for a driver
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self.fake.__exit__(*error)

    def move(self, module: nn.Module) -> None:
        """Put all parameters and buffers of a module on the device, for good."""
        for part in module.modules():
            for name, value in part._parameters.items():
                if value is not None and not is_there(value):
                    part._parameters[name] = nn.Parameter(self.moved(value.detach()), value.requires_grad)
            for name, value in part._buffers.items():
                if value is not None and not is_there(value):
                    part._buffers[name] = self.moved(value)

    def moved(self, tensor: Tensor) -> Tensor:
        """The same on the device."""
        with self.fake:
            return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=CUDA)


def is_there(tensor: Tensor) -> bool:
    """Whether a tensor lies on the device."""
    return tensor.device.type == "cuda"


def _waits(func: Any, args: Any, kwargs: Any, has_input: bool, to_device: bool) -> str | None:
    name = func.overloadpacket.__name__
    if has_input and name in _ASKING:
        return "the host asks for its result"
    if name in ("index", "index_put", "index_put_", "_unsafe_index", "_index_put_impl_"):
        indices = [i for i in args[1] if i is not None]
        if any(i.dtype in (torch.bool, torch.uint8) for i in indices):
            return "a boolean index"
        if any(not is_there(i) for i in indices):
            return "an index from the host"
    if name in ("_to_copy", "copy_", "_copy_from", "_pin_memory"):
        source = args[1] if name == "copy_" else args[0]
        target = args[0].device if name == "copy_" else torch.device(kwargs.get("device") or source.device)
        waits = not (kwargs.get("non_blocking") or (name == "copy_" and len(args) > 2 and args[2]))
        if is_there(source) and target.type != "cuda":
            return "a copy to the host"
        if not is_there(source) and target.type == "cuda" and waits:
            return "a copy from the host that is waited for"
    return None
