"""What ``training.compile`` needs: whether torch can compile here."""

from __future__ import annotations

import torch

from clprompt.errors import ConfigError
from clprompt.prompting.model import PromptModel
from clprompt.training.settings import Training


def compile_where_asked(model: PromptModel, training: Training) -> None:
    """Have the loss of a model compiled where its training section says so.

    Raises:
        ConfigError: there is nothing to compile with.
    """
    if not training.compile:
        return
    check_compiler(model.device)
    model.compile_loss()


def check_compiler(device: torch.device) -> None:
    """Refuse to compile for a device for which there is no compiler.

    Raises:
        ConfigError: naming what is missing.
    """
    try:
        from torch._inductor.cpp_builder import get_cpp_compiler
    except ImportError:
        raise ConfigError(
            f"training.compile=true needs a later torch than {torch.__version__}; set it to false"
        ) from None
    from torch._inductor.exc import InvalidCxxCompiler
    from torch.utils._triton import has_triton

    missing = None
    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        missing = "a C++ compiler (g++ or clang++)"
    if device.type == "cuda" and not has_triton():
        missing = "triton"
    if missing is not None:
        raise ConfigError(f"training.compile=true needs {missing}, which is not there; set it to false")
