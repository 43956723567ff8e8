"""What arrives when: seeded pure functions from labels to index lists, one a file; benchmarks of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from clprompt import lazy_names

if TYPE_CHECKING:
    from clprompt.avalanche.benchmark import benchmark as benchmark
    from clprompt.avalanche.benchmark import to_avalanche as to_avalanche
    from clprompt.avalanche.online import to_online_avalanche as to_online_avalanche
    from clprompt.data.plan import Plan as Plan

__all__, __getattr__, __dir__ = lazy_names(
    __name__,
    {
        "Plan": "clprompt.data.plan",
        "benchmark": "clprompt.avalanche.benchmark",
        "to_avalanche": "clprompt.avalanche.benchmark",
        "to_online_avalanche": "clprompt.avalanche.online",
    },
)
