"""What a method is made of: the contract, heads, losses, pools and plug-ins."""

from __future__ import annotations

from typing import TYPE_CHECKING

from clprompt import lazy_names

if TYPE_CHECKING:
    from clprompt.prompting.build import construct as construct
    from clprompt.prompting.build import make_method as make_method
    from clprompt.prompting.coordination import Coordination as Coordination
    from clprompt.prompting.heads import LinearHead as LinearHead
    from clprompt.prompting.heads import grow_rows as grow_rows
    from clprompt.prompting.heads import grown as grown
    from clprompt.prompting.losses import SoftLabels as SoftLabels
    from clprompt.prompting.losses import asymmetric_loss as asymmetric_loss
    from clprompt.prompting.losses import classification_loss as classification_loss
    from clprompt.prompting.losses import mask_logits as mask_logits
    from clprompt.prompting.model import Blocks as Blocks
    from clprompt.prompting.model import Boundaries as Boundaries
    from clprompt.prompting.model import Cache as Cache
    from clprompt.prompting.model import Glimpse as Glimpse
    from clprompt.prompting.model import Mask as Mask
    from clprompt.prompting.model import PromptModel as PromptModel
    from clprompt.prompting.plugin import Pass as Pass
    from clprompt.prompting.plugin import Plugin as Plugin
    from clprompt.prompting.plugin import PromptSet as PromptSet
    from clprompt.prompting.plugin import Samples as Samples
    from clprompt.prompting.prompts import Chooser as Chooser
    from clprompt.prompting.prompts import choose as choose
    from clprompt.prompting.prompts import chosen_similarity as chosen_similarity
    from clprompt.prompting.prompts import cosine as cosine
    from clprompt.prompting.prompts import match as match
    from clprompt.prompting.prompts import token_choice as token_choice
    from clprompt.prompting.prompts import uniform as uniform
    from clprompt.prompting.step import Encoded as Encoded
    from clprompt.prompting.step import Predictions as Predictions
    from clprompt.prompting.step import Step as Step
    from clprompt.prompting.train_experiences import TrainExperiences as TrainExperiences

__all__, __getattr__, __dir__ = lazy_names(
    __name__,
    {
        "Blocks": "clprompt.prompting.model",
        "Boundaries": "clprompt.prompting.model",
        "Cache": "clprompt.prompting.model",
        "Chooser": "clprompt.prompting.prompts",
        "Coordination": "clprompt.prompting.coordination",
        "Encoded": "clprompt.prompting.step",
        "Glimpse": "clprompt.prompting.model",
        "LinearHead": "clprompt.prompting.heads",
        "Mask": "clprompt.prompting.model",
        "Pass": "clprompt.prompting.plugin",
        "Plugin": "clprompt.prompting.plugin",
        "Predictions": "clprompt.prompting.step",
        "PromptModel": "clprompt.prompting.model",
        "PromptSet": "clprompt.prompting.plugin",
        "Samples": "clprompt.prompting.plugin",
        "SoftLabels": "clprompt.prompting.losses",
        "Step": "clprompt.prompting.step",
        "TrainExperiences": "clprompt.prompting.train_experiences",
        "asymmetric_loss": "clprompt.prompting.losses",
        "choose": "clprompt.prompting.prompts",
        "chosen_similarity": "clprompt.prompting.prompts",
        "classification_loss": "clprompt.prompting.losses",
        "construct": "clprompt.prompting.build",
        "cosine": "clprompt.prompting.prompts",
        "grow_rows": "clprompt.prompting.heads",
        "grown": "clprompt.prompting.heads",
        "make_method": "clprompt.prompting.build",
        "mask_logits": "clprompt.prompting.losses",
        "match": "clprompt.prompting.prompts",
        "token_choice": "clprompt.prompting.prompts",
        "uniform": "clprompt.prompting.prompts",
    },
)
