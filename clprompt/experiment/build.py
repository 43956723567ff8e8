"""From a checked configuration to the parts of one run: data, backbone, stream and model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from clprompt import registry
from clprompt.backbones.build import check_exportable, make_backbone
from clprompt.backbones.vit import FrozenViT
from clprompt.data.bundle import DataBundle, plan_over
from clprompt.data.dataset import inputs_for
from clprompt.data.plan import Plan
from clprompt.data.transforms import make_transform
from clprompt.errors import ConfigError
from clprompt.experiment.config import Config
from clprompt.metrics.retrieval import check_retrieval
from clprompt.prompting.build import make_method
from clprompt.prompting.model import PromptModel
from clprompt.registry import make_registered
from clprompt.system.runtime import find_device
from clprompt.targets import is_label_sets
from clprompt.training.kept import check_clean_query
from clprompt.training.mixing import check_mixing
from clprompt.training.steps import check_stream


@dataclass
class Parts:
    """What a configuration names, built: the data, the backbone, the stream and the model of one run."""

    bundle: DataBundle
    backbone: FrozenViT
    plan: Plan
    model: PromptModel
    device: torch.device
    test_groups: list[np.ndarray] = field(default_factory=list)


class Builder:
    """Builds the parts of runs; data and backbone are shared by runs that name the same ones."""

    def __init__(self) -> None:
        self._made: dict[str, Any] = {}

    def build(self, config: Config, *, restored: bool = False) -> Parts:
        """The parts of one run.

        Args:
            config: of the run.
            restored: the model's state will be loaded from a checkpoint.

        Raises:
            ClpromptError: whatever does not fit together.
        """
        device = find_device(config.device)
        if config.export == "full":
            check_exportable(config.backbone)
        bundle = self._once("data", config.data, lambda: make_registered(registry.datasets, config.data))
        backbone = self._once("backbone", config.backbone, lambda: make_backbone(config.backbone))
        backbone = backbone.with_inputs(inputs_for(bundle, backbone))
        make_transform(backbone)  # refuses a backbone that no image fits
        seed = config.seeds[0]
        plan = plan_over(bundle, config.scenario, seed)
        model = make_method(config.strategy, backbone, seed=seed, restored=restored)
        if config.online and model.boundaries == "required":
            raise ConfigError(
                f"strategy {config.strategy['name']} needs experience boundaries, which an online stream "
                "does not show; use its boundary-free form (strategy.boundary_free=true) where it has one"
            )
        check_mixing(model, config.training, told=config.online is None)
        check_clean_query(model, config.training, online=config.online is not None)
        model.ask_in(config.query_precision)
        if is_label_sets(bundle.train.targets):
            model.check_label_sets()
        if config.memory:
            config.memory.check_model(model, bundle.train.targets)
        model.meet([bundle.own_names[c] for c in plan.class_order])
        model.name_classes(plan.named(bundle.names()))
        epochs, online = config.training.train_epochs, config.online is not None
        check_stream(model, plan.classes, epochs=epochs, online=online)  # it may ask for names
        groups = list(plan.test_groups(bundle.test.targets, bundle.test.domains))
        if config.retrieval:
            check_retrieval(bundle.test.targets, groups)
        return Parts(bundle, backbone, plan, model.to(device), device, groups)

    def _once(self, kind: str, section: dict[str, Any], make: Callable[[], Any]) -> Any:
        key = f"{kind}:{sorted(section.items(), key=str)!r}"
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]
