"""What methods need that read text: names of classes and what is made of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from clprompt import lazy_names

if TYPE_CHECKING:
    from clprompt.prompting.text.model import TextModel as TextModel
    from clprompt.prompting.text.names import ClassNames as ClassNames

__all__, __getattr__, __dir__ = lazy_names(
    __name__,
    {
        "ClassNames": "clprompt.prompting.text.names",
        "TextModel": "clprompt.prompting.text.model",
    },
)
