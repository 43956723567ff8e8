"""How a model learns and is tested: the loop, its settings, precision, optimizer, steps, evaluation."""

from __future__ import annotations

from typing import TYPE_CHECKING

from clprompt import lazy_names

if TYPE_CHECKING:
    from clprompt.training.engine import Engine as Engine
    from clprompt.training.evaluation import Evaluator as Evaluator
    from clprompt.training.evaluation import Shown as Shown
    from clprompt.training.evaluation import evaluate as evaluate
    from clprompt.training.precision import autocast as autocast
    from clprompt.training.settings import Memory as Memory
    from clprompt.training.settings import Online as Online
    from clprompt.training.settings import Training as Training
    from clprompt.training.steps import receive as receive
    from clprompt.training.steps import train_step as train_step

__all__, __getattr__, __dir__ = lazy_names(
    __name__,
    {
        "Engine": "clprompt.training.engine",
        "Evaluator": "clprompt.training.evaluation",
        "Memory": "clprompt.training.settings",
        "Online": "clprompt.training.settings",
        "Shown": "clprompt.training.evaluation",
        "Training": "clprompt.training.settings",
        "autocast": "clprompt.training.precision",
        "evaluate": "clprompt.training.evaluation",
        "receive": "clprompt.training.steps",
        "train_step": "clprompt.training.steps",
    },
)
