"""How a YAML becomes run folders: config, build, run, folder, study, launch, inference."""

from __future__ import annotations

from typing import TYPE_CHECKING

from clprompt import lazy_names

if TYPE_CHECKING:
    from clprompt.experiment.build import Builder as Builder
    from clprompt.experiment.build import Parts as Parts
    from clprompt.experiment.config import Config as Config
    from clprompt.experiment.inference import explain as explain
    from clprompt.experiment.inference import load as load
    from clprompt.experiment.inference import predict as predict
    from clprompt.experiment.run import Result as Result
    from clprompt.experiment.run import resume as resume

__all__, __getattr__, __dir__ = lazy_names(
    __name__,
    {
        "Builder": "clprompt.experiment.build",
        "Config": "clprompt.experiment.config",
        "Parts": "clprompt.experiment.build",
        "Result": "clprompt.experiment.run",
        "explain": "clprompt.experiment.inference",
        "load": "clprompt.experiment.inference",
        "predict": "clprompt.experiment.inference",
        "resume": "clprompt.experiment.run",
    },
)
