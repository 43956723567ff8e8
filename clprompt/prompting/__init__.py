"""What a method is made of: the contract, heads, losses, pools and plug-ins."""

from __future__ import annotations

from typing import TYPE_CHECKING

from clprompt import lazy_names

if TYPE_CHECKING:
    from clprompt.prompting.coordination import Coordination as Coordination
    from clprompt.prompting.heads import LinearHead as LinearHead
    from clprompt.prompting.losses import classification_loss as classification_loss
    from clprompt.prompting.losses import mask_logits as mask_logits
    from clprompt.prompting.model import Cache as Cache
    from clprompt.prompting.model import Encoded as Encoded
    from clprompt.prompting.model import PromptModel as PromptModel
    from clprompt.prompting.model import Step as Step
    from clprompt.prompting.plugin import Plugin as Plugin
    from clprompt.prompting.plugin import PromptSet as PromptSet
    from clprompt.prompting.prompts import uniform as uniform

__all__, __getattr__, __dir__ = lazy_names(
    __name__,
    {
        "Cache": "clprompt.prompting.model",
        "Coordination": "clprompt.prompting.coordination",
        "Encoded": "clprompt.prompting.model",
        "LinearHead": "clprompt.prompting.heads",
        "Plugin": "clprompt.prompting.plugin",
        "PromptModel": "clprompt.prompting.model",
        "PromptSet": "clprompt.prompting.plugin",
        "Step": "clprompt.prompting.model",
        "classification_loss": "clprompt.prompting.losses",
        "mask_logits": "clprompt.prompting.losses",
        "uniform": "clprompt.prompting.prompts",
    },
)
