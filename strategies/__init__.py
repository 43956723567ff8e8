"""Which methods there are: one a file, or a folder whose ``model.py`` is the method.

Registered models are Avalanche strategies, too, made on first use:

``from clprompt.strategies import DualPrompt`` gives the Avalanche strategy;
``from clprompt.strategies.dualprompt import DualPromptModel`` the plain PyTorch module, without Avalanche.
"""

from __future__ import annotations

import importlib.util
from typing import Any

#: Commands of the command line that belong to one strategy: name -> "module:attribute" of a click command.
COMMANDS: dict[str, str] = {}


def __getattr__(name: str) -> Any:
    if name.startswith("_"):
        raise AttributeError(name)
    if name == "PromptStrategy":
        from clprompt.avalanche.strategy import PromptStrategy

        return PromptStrategy
    models = _models()
    if name not in models:
        from clprompt.errors import nearest

        hint = nearest(name, models)
        text = f"clprompt.strategies has no {name}{hint or '; there are: ' + ', '.join(sorted(models))}"
        if hint and importlib.util.find_spec(f"{__name__}.{name}") is None:
            raise ImportError(text, name=name)  # of an AttributeError an import statement hands on no word
        raise AttributeError(text)
    from clprompt.avalanche.strategy import make_strategy

    return make_strategy(models[name])


def _models() -> dict[str, Any]:
    """The registered models by the names of their Avalanche strategies."""
    from clprompt.registry import strategies

    targets = (strategies.get(key).target for key in strategies.names())
    return {target.__name__.removesuffix("Model"): target for target in targets}


def __dir__() -> list[str]:
    return sorted({*_models(), "COMMANDS", "PromptStrategy"})
