"""First-session adaptation: a method trains in its first experiences alone; a head without training predicts.

Prompts that go on changing leave the features of earlier experiences behind, and with them all that was
counted of those. Here they stop: later experiences are observed and counted, and nothing is trained on them.
"""

from __future__ import annotations

from typing import Annotated

from clprompt import schema
from clprompt.errors import ConfigError
from clprompt.prompting.model import PromptModel, has_trained_head
from clprompt.prompting.plugin import Plugin
from clprompt.registry import plugins
from clprompt.schema import at_least


class TrainExperiences(Plugin):
    """Training ends after so many experiences.

    From then on no step is made, a method adds nothing, and none of its parameters is trainable. The trained
    head, which never learns the later classes, is read by nobody.

    Args:
        experiences: that are trained on.

    Raises:
        ConfigError: a number below 1; when it is plugged, no head that does without training, or a method
            that is never told of experiences.

    Source: McDonnell et al., NeurIPS 2023 (RanPAC), which adapts in the first session.
    """

    name = "train_experiences"
    needs_experiences = True

    @schema.checked
    def __init__(self, experiences: Annotated[int, at_least(1)] = 1) -> None:
        super().__init__()
        self.experiences = experiences

    def attach(self, model: PromptModel) -> None:
        given, method = f"train_experiences={self.experiences}", type(model).__name__
        if not has_trained_head(type(model)):
            raise ConfigError(f"{given}: {method} {_LACKING}")
        if not any(plugin.predicts_untrained() for plugin in model.plugins):
            raise ConfigError(
                f"{given} needs a head that does without training, as the classes of later experiences are "
                "never trained on: statistics=lda, ncm or ridge"
            )
        if model.boundaries == "unused":
            raise ConfigError(f"{given} needs to know of experiences, of which {method} is never told here")

    def stops(self, experience: int) -> bool:
        return experience >= self.experiences


_LACKING = "trains nothing that could stop between two experiences"


@plugins.register("train_experiences", serves=has_trained_head, lacking=_LACKING)
@schema.checked
def train_experiences(
    *, train_experiences: Annotated[int, at_least(1)] | None = None
) -> TrainExperiences | None:
    """Training ends after so many experiences: the short form of :class:`TrainExperiences`.

    Args:
        train_experiences: that are trained on; null for all.
    """
    return None if train_experiences is None else TrainExperiences(train_experiences)
