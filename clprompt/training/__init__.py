"""The loop: settings, precision, optimizer, steps, evaluation."""

from __future__ import annotations

from typing import TYPE_CHECKING

from clprompt import lazy_names

if TYPE_CHECKING:
    from clprompt.metrics.accuracy import Evaluation as Evaluation
    from clprompt.training.engine import Engine as Engine
    from clprompt.training.evaluation import Evaluator as Evaluator
    from clprompt.training.precision import autocast as autocast
    from clprompt.training.settings import Online as Online
    from clprompt.training.settings import Training as Training
    from clprompt.training.steps import receive as receive
    from clprompt.training.steps import train_step as train_step

__all__, __getattr__, __dir__ = lazy_names(
    __name__,
    {
        "Engine": "clprompt.training.engine",
        "Evaluation": "clprompt.metrics.accuracy",
        "Evaluator": "clprompt.training.evaluation",
        "Online": "clprompt.training.settings",
        "Training": "clprompt.training.settings",
        "autocast": "clprompt.training.precision",
        "receive": "clprompt.training.steps",
        "train_step": "clprompt.training.steps",
    },
)
