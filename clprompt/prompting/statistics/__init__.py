"""Class statistics: sums over features, and the classifiers that follow from them in closed form."""

from __future__ import annotations

from typing import TYPE_CHECKING

from clprompt import lazy_names

if TYPE_CHECKING:
    from clprompt.prompting.statistics.closed_forms import LinearMap as LinearMap
    from clprompt.prompting.statistics.closed_forms import cosine_means as cosine_means
    from clprompt.prompting.statistics.closed_forms import lda as lda
    from clprompt.prompting.statistics.closed_forms import ridge as ridge
    from clprompt.prompting.statistics.heads import LDAHead as LDAHead
    from clprompt.prompting.statistics.heads import MeansHead as MeansHead
    from clprompt.prompting.statistics.heads import RidgeHead as RidgeHead
    from clprompt.prompting.statistics.heads import StatisticsHead as StatisticsHead
    from clprompt.prompting.statistics.plugin import Statistics as Statistics
    from clprompt.prompting.statistics.sums import ClassStatistics as ClassStatistics

__all__, __getattr__, __dir__ = lazy_names(
    __name__,
    {
        "ClassStatistics": "clprompt.prompting.statistics.sums",
        "LinearMap": "clprompt.prompting.statistics.closed_forms",
        "LDAHead": "clprompt.prompting.statistics.heads",
        "MeansHead": "clprompt.prompting.statistics.heads",
        "RidgeHead": "clprompt.prompting.statistics.heads",
        "Statistics": "clprompt.prompting.statistics.plugin",
        "StatisticsHead": "clprompt.prompting.statistics.heads",
        "cosine_means": "clprompt.prompting.statistics.closed_forms",
        "lda": "clprompt.prompting.statistics.closed_forms",
        "ridge": "clprompt.prompting.statistics.closed_forms",
    },
)
