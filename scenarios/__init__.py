"""Scenarios: what arrives when. Seeded pure functions from labels to index lists, and Avalanche benchmarks of them."""

from clprompt.scenarios._benchmark import benchmark, to_avalanche
from clprompt.scenarios._online import to_online_avalanche
from clprompt.scenarios._plan import Plan

__all__ = ["Plan", "benchmark", "to_avalanche", "to_online_avalanche"]
