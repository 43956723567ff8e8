"""What a method promises, as checks that an outsider can run: :func:`check_strategy`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from clprompt import lazy_names

if TYPE_CHECKING:
    from clprompt.testing.bench import Workbench as Workbench
    from clprompt.testing.bench import tiny_vit as tiny_vit
    from clprompt.testing.contract import CHECKS as CHECKS
    from clprompt.testing.contract import MULTI_LABEL_CHECKS as MULTI_LABEL_CHECKS
    from clprompt.testing.contract import check_strategy as check_strategy
    from clprompt.testing.label_sets import ScenesBench as ScenesBench

__all__, __getattr__, __dir__ = lazy_names(
    __name__,
    {
        "CHECKS": "clprompt.testing.contract",
        "MULTI_LABEL_CHECKS": "clprompt.testing.contract",
        "ScenesBench": "clprompt.testing.label_sets",
        "Workbench": "clprompt.testing.bench",
        "check_strategy": "clprompt.testing.contract",
        "tiny_vit": "clprompt.testing.bench",
    },
)
