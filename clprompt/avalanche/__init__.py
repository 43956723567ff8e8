"""Where Avalanche begins: strategies, benchmarks and streams of its kind. The only wing that imports it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from clprompt import lazy_names

if TYPE_CHECKING:
    from clprompt.avalanche.benchmark import to_avalanche as to_avalanche
    from clprompt.avalanche.online import to_online_avalanche as to_online_avalanche
    from clprompt.avalanche.replay import MemoryEngine as MemoryEngine
    from clprompt.avalanche.strategy import PromptStrategy as PromptStrategy
    from clprompt.avalanche.strategy import make_strategy as make_strategy

__all__, __getattr__, __dir__ = lazy_names(
    __name__,
    {
        "MemoryEngine": "clprompt.avalanche.replay",
        "PromptStrategy": "clprompt.avalanche.strategy",
        "make_strategy": "clprompt.avalanche.strategy",
        "to_avalanche": "clprompt.avalanche.benchmark",
        "to_online_avalanche": "clprompt.avalanche.online",
    },
)
