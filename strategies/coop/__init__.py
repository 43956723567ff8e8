"""CoOp: learned text contexts, and what others have put beside them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from clprompt import lazy_names

if TYPE_CHECKING:
    from clprompt.strategies.coop.model import CoOpModel as CoOpModel

__all__, __getattr__, __dir__ = lazy_names(__name__, {"CoOpModel": "clprompt.strategies.coop.model"})
