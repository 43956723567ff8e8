"""Which methods there are: one a file, or a folder whose ``model.py`` is the method.

Registered models are Avalanche strategies, too, made on first use:

``from clprompt.strategies import DualPrompt`` gives the Avalanche strategy;
``from clprompt.strategies.dualprompt import DualPromptModel`` the plain PyTorch module, without Avalanche.
"""

from __future__ import annotations

from typing import Any

#: Commands of the command line that belong to one strategy: name -> "module:attribute" of a click command.
COMMANDS: dict[str, str] = {}


def __getattr__(name: str) -> Any:
    if name.startswith("_"):
        raise AttributeError(name)
    from clprompt.registry import strategies

    models = {
        entry.target.__name__.removesuffix("Model"): entry.target
        for entry in (strategies.get(key) for key in strategies.names())
    }
    if name == "PromptStrategy":
        from clprompt.avalanche.strategy import PromptStrategy

        return PromptStrategy
    if name not in models:
        raise AttributeError(f"clprompt.strategies has no {name}; there are: {', '.join(sorted(models))}")
    from clprompt.avalanche.strategy import make_strategy

    return make_strategy(models[name])
