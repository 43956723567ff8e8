"""Prompt-based, rehearsal-free class-incremental learning over frozen timm vision transformers.

The public names below are imported when they are first used: `import clprompt` alone loads no torch. An
outsider's method imports from here and from :mod:`clprompt.registry` alone.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clprompt.backbones.attention import BlockPrompt as BlockPrompt
    from clprompt.backbones.vit import FrozenViT as FrozenViT
    from clprompt.experiment.inference import load as load
    from clprompt.experiment.run import run as run
    from clprompt.prompting.model import Cache as Cache
    from clprompt.prompting.model import PromptModel as PromptModel
    from clprompt.prompting.plugin import Plugin as Plugin
    from clprompt.prompting.prompts import uniform as uniform
    from clprompt.prompting.step import Encoded as Encoded
    from clprompt.prompting.step import Step as Step
    from clprompt.schema import above as above
    from clprompt.schema import at_least as at_least
    from clprompt.schema import at_most as at_most
    from clprompt.schema import below as below
    from clprompt.schema import checked as checked
    from clprompt.training import optim as optim
    from clprompt.training.evaluation import evaluate as evaluate
    from clprompt.training.fit import fit as fit
    from clprompt.training.settings import Online as Online
    from clprompt.training.settings import Training as Training

    __version__: str


def lazy_names(
    package: str, homes: Mapping[str, str]
) -> tuple[list[str], Callable[[str], Any], Callable[[], list[str]]]:
    """The face of a package whose names are imported when they are first asked for.

    Args:
        package: its ``__name__``.
        homes: by public name the module that defines it, or the package that it is a module of.

    Returns:
        What the package's ``__all__``, ``__getattr__`` and ``__dir__`` shall be.
    """
    names = vars(sys.modules[package])

    def find(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        home = importlib.import_module(homes[name])
        names[name] = value = (
            getattr(home, name) if hasattr(home, name) else importlib.import_module(f"{homes[name]}.{name}")
        )
        return value

    def listed() -> list[str]:
        parts = (name for name, value in names.items() if isinstance(value, ModuleType))
        own = {name for name in parts if f"{package}.{name}" in sys.modules}
        return sorted({*homes, *own, *(name for name in names if name.startswith("__"))})

    return sorted(homes), find, listed


_NAMES, _find, _listed = lazy_names(
    __name__,
    {
        "BlockPrompt": "clprompt.backbones.attention",
        "Cache": "clprompt.prompting.model",
        "Encoded": "clprompt.prompting.step",
        "FrozenViT": "clprompt.backbones.vit",
        "Online": "clprompt.training.settings",
        "Plugin": "clprompt.prompting.plugin",
        "PromptModel": "clprompt.prompting.model",
        "Step": "clprompt.prompting.step",
        "Training": "clprompt.training.settings",
        "above": "clprompt.schema",
        "at_least": "clprompt.schema",
        "at_most": "clprompt.schema",
        "below": "clprompt.schema",
        "checked": "clprompt.schema",
        "evaluate": "clprompt.training.evaluation",
        "fit": "clprompt.training.fit",
        "load": "clprompt.experiment.inference",
        "optim": "clprompt.training",
        "results": "clprompt.reporting.frame",
        "run": "clprompt.experiment.run",
        "uniform": "clprompt.prompting.prompts",
    },
)
__all__ = [*_NAMES, "__version__"]


def __getattr__(name: str) -> Any:
    if name != "__version__":
        return _find(name)
    from importlib.metadata import version  # the number is written once, in pyproject.toml

    globals()[name] = value = version("clprompt")
    return value


def __dir__() -> list[str]:
    return sorted({*_listed(), "__version__"})
