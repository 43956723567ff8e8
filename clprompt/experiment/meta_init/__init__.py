"""`clprompt meta-init`: prompts of a strategy, learnt on source data sets before any stream."""

from __future__ import annotations

from typing import TYPE_CHECKING

from clprompt import lazy_names

if TYPE_CHECKING:
    from clprompt.experiment.meta_init.run import meta_init as meta_init
    from clprompt.experiment.meta_init.settings import MetaInit as MetaInit

__all__, __getattr__, __dir__ = lazy_names(
    __name__,
    {
        "MetaInit": "clprompt.experiment.meta_init.settings",
        "meta_init": "clprompt.experiment.meta_init.run",
    },
)
