"""Prompt-based, rehearsal-free class-incremental learning over frozen timm vision transformers.

The public names below are imported when they are first used: `import clprompt` alone loads no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clprompt.backbone import FrozenViT
    from clprompt.evaluation import evaluate
    from clprompt.inference import load
    from clprompt.model import PromptModel, Step

    __version__: str

__all__ = ["FrozenViT", "PromptModel", "Step", "__version__", "evaluate", "fit", "load"]

_HOME = {
    "FrozenViT": "clprompt.backbone",
    "PromptModel": "clprompt.model",
    "Step": "clprompt.model",
    "evaluate": "clprompt.evaluation",
    "fit": "clprompt.fitting",
    "load": "clprompt.inference",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version  # the number is written once, in pyproject.toml

        value: Any = version("clprompt")
    elif name in _HOME:
        value = getattr(importlib.import_module(_HOME[name]), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
