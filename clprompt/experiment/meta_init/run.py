"""From the settings of a meta-init to a file of prompts, resumable at any step."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from clprompt.backbones.build import make_backbone
from clprompt.backbones.vit import FrozenViT
from clprompt.data.sources import Material, gather
from clprompt.errors import ConfigError, Interrupted
from clprompt.experiment.meta_init import settings as configuration
from clprompt.experiment.meta_init.joint import joint_engine
from clprompt.experiment.meta_init.reptile import Reptile
from clprompt.experiment.meta_init.settings import MetaInit
from clprompt.prompting import prompt_file
from clprompt.prompting.build import make_method
from clprompt.prompting.model import PromptModel
from clprompt.seeding import derive, preserved_rng, set_rng_state
from clprompt.system.progress import Progress
from clprompt.system.runtime import find_device, reproducible, stop_signal
from clprompt.system.unfinished import Unfinished
from clprompt.training import meta_steps
from clprompt.training.processes import refuse_several


def meta_init(
    name_or_path: str,
    overrides: Sequence[str],
    out: Path,
    *,
    progress: Progress,
    command: Sequence[str] = (),
) -> list[Path]:
    """Learn prompts as a configuration says, and write them; what was interrupted goes on.

    Args:
        name_or_path: a packaged configuration, or a YAML file.
        overrides: of single values.
        out: the file to write.
        progress: a display.
        command: the words that continue it.

    Returns:
        The files that were written, ``out`` first.

    Raises:
        ConfigError: the file exists, or a setting does not fit the data.
        CheckpointError: what is there to go on from is of other settings.
        Interrupted: a signal stopped it; its checkpoint is written.
    """
    refuse_several("meta-init")
    values = configuration.read(name_or_path, overrides)
    own = configuration.own_module(values)
    if own is not None:
        module = importlib.import_module(own)
        return module.run(module.from_values(values), out, progress=progress, command=command)
    return run(configuration.from_values(values), out, progress=progress, command=command)


def run(settings: MetaInit, out: Path, *, progress: Progress, command: Sequence[str] = ()) -> list[Path]:
    """The same of checked settings."""
    unfinished = Unfinished(out, dataclasses.asdict(settings))
    with (
        reproducible(find_device(settings.device)),
        stop_signal() as stop,
        preserved_rng(derive(settings.seed, "run")),
    ):
        backbone, materials = _sources(settings)
        learn = {"joint": _learn_jointly, "reptile": _learn_by_reptile}[settings.objective]
        make = _maker(settings, backbone)
        finish = learn(settings, make, materials, progress, stop, unfinished)
        progress.start("meta-init", 1)
        try:
            with unfinished.work():
                model, values, more = finish()
                facts = {"objective": settings.objective, "seed": settings.seed, **more}
                facts["settings"] = dataclasses.asdict(settings)
                sources = [{"name": m.name, "classes": m.class_names} for m in materials]
                prompt_file.write(out, model, sources=sources, facts=facts, values=values)
        except Interrupted as stopped:
            raise Interrupted(stopped.signal, again=command) from None
    return [out]


#: What trains to the end: returns the model, its prompts (None as they are in it) and facts for the file.
_Finish = Callable[[], tuple[PromptModel, Mapping[str, Any] | None, dict[str, Any]]]


def _sources(settings: MetaInit) -> tuple[FrozenViT, list[Material]]:
    backbone = make_backbone(settings.backbone)
    if backbone.inputs.awaits_data:
        raise ConfigError("backbone.normalise must be backbone or unit: the sources are several data sets")
    return backbone, gather(settings.sources, backbone)


def _maker(settings: MetaInit, backbone: FrozenViT) -> Callable[[Sequence[str]], PromptModel]:
    """Makes a model of the strategy that knows the names of its classes."""
    device = find_device(settings.device)

    def make(class_names: Sequence[str]) -> PromptModel:
        model = make_method(settings.strategy, backbone, seed=settings.seed)
        if not prompt_file.listed_prompts(model):
            raise ConfigError(
                f"strategy.name: {settings.strategy['name']} has no prompts here that could be learnt "
                "beforehand"
            )
        model.name_classes({label: [name] for label, name in enumerate(class_names)})
        return model.to(device)

    return make


def _learn_jointly(
    settings: MetaInit,
    make: Callable[[Sequence[str]], PromptModel],
    materials: Sequence[Material],
    progress: Progress,
    stop: Callable[[], int | None],
    unfinished: Unfinished,
) -> _Finish:
    model = make([name for material in materials for name in material.class_names])
    engine = joint_engine(model, materials, settings, progress, stop)
    engine.checkpoint = lambda: unfinished.save({"engine": engine.state()})

    def finish() -> tuple[PromptModel, None, dict[str, Any]]:
        if unfinished.saved is not None:
            engine.load_state(unfinished.saved["engine"])
            set_rng_state(unfinished.saved["engine"]["rng"])
            progress.message(f"{unfinished.folder}: continued after step {engine.position.step}")
        engine.run()
        return model, None, {"steps": engine.position.step}

    return finish


def _learn_by_reptile(
    settings: MetaInit,
    make: Callable[[Sequence[str]], PromptModel],
    materials: Sequence[Material],
    progress: Progress,
    stop: Callable[[], int | None],
    unfinished: Unfinished,
) -> _Finish:
    learner = Reptile(settings, [make(material.class_names) for material in materials], materials)

    def finish() -> tuple[PromptModel, Mapping[str, Any], dict[str, Any]]:
        meta_steps.go_on(learner, unfinished, progress)
        meta_steps.learn(learner, unfinished, progress, stop, checkpoint_every=settings.checkpoint_every)
        last = np.mean(learner.losses[-10:], axis=0).tolist() if learner.losses else []
        return learner.models[0], learner.values(), {"steps": learner.step, "last_losses": last}

    return finish
