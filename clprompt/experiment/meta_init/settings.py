"""The settings of a meta-init, read from YAML and checked."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from clprompt import registry, schema
from clprompt.data.sources import listed
from clprompt.errors import ConfigError
from clprompt.experiment import config
from clprompt.schema import above, at_least, not_empty
from clprompt.system import overlay
from clprompt.training.settings import Training

KIND = "meta-init"  # of a packaged configuration, and the folder of those

Count = Annotated[int, at_least(1)]

#: Steps between checkpoints where training.checkpoint_every is null.
_CHECKPOINT_EVERY = 50
#: What a step of the copies takes of the training section; the rest of it must be as it is by default.
_OF_COPIES = (
    *("train_mb_size", "train_epochs", "lr", "optimizer", "weight_decay", "momentum", "schedule", "warmup"),
    *("clip_grad", "workers", "checkpoint_every", "eval_mb_size", "log_every"),
)


@dataclass(frozen=True, kw_only=True)
class MetaInit:
    """The settings of a meta-init."""

    backbone: dict[str, Any]
    """as in an experiment"""
    strategy: dict[str, Any]
    """as in an experiment: whose prompts are learnt"""
    sources: Annotated[list[dict], not_empty]
    """data sets by name with their arguments; ``classes`` chooses some of the classes, ``tasks`` divides them
    among so many sources"""
    objective: Literal["joint", "reptile"] = "joint"
    """"joint" trains on all sources together, as one experience; "reptile" moves towards the mean of copies
    that are each trained on one source for a few steps"""
    seed: Annotated[int, at_least(0)] = 0
    """as in an experiment"""
    device: str = "auto"
    """as in an experiment"""
    training: Training = field(default_factory=Training)
    """as in an experiment; of reptile, epochs are those of the shortest source and steps are meta-steps"""
    inner_steps: Count | None = None
    """of reptile: steps of a copy on one batch; null for 4"""
    step_size: Annotated[float, above(0)] | None = None
    """of reptile: how far the prompts go towards the mean of their copies; null for 0.5"""

    def __post_init__(self) -> None:
        schema.check_fields(self)
        if self.objective == "joint":
            for key in ("inner_steps", "step_size"):
                if getattr(self, key) is not None:
                    raise ConfigError(f"{key} belongs to objective=reptile, got objective=joint")
            return
        for item in dataclasses.fields(Training):
            value = getattr(self.training, item.name)
            if item.name not in _OF_COPIES and value != item.default:
                raise ConfigError(
                    f"training.{item.name} must be {schema.show(item.default)} with objective=reptile, "
                    f"got {schema.show(value)}"
                )

    @property
    def checkpoint_every(self) -> int:
        """Steps between checkpoints."""
        return self.training.checkpoint_every or _CHECKPOINT_EVERY


def read(name_or_path: str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The values of a packaged configuration or a YAML file, with overrides.

    Raises:
        ConfigError: whatever a user can get wrong, in one line.
    """
    path = overlay.find(name_or_path, KIND)
    raw = overlay.read(path)
    overlay.apply(raw, overrides, sections={"backbone", "strategy"})
    return overlay.resolve(raw, path)


def own_module(values: Mapping[str, Any]) -> str | None:
    """The module of a strategy that brings a meta-init of its own; also where a configuration names none.

    Raises:
        ConfigError: a strategy that there is not.
    """
    strategy = values.get("strategy")
    name = strategy.get("name") if isinstance(strategy, Mapping) else strategy
    if name is None:
        entries = map(registry.strategies.get, registry.strategies.names())
        return next((entry.info["meta_init"] for entry in entries if "meta_init" in entry.info), None)
    try:
        return registry.strategies.get(schema.check(name, str, "strategy.name")).info.get("meta_init")
    except ConfigError as error:
        raise ConfigError(f"strategy.name: {error}") from None


def from_values(values: Mapping[str, Any]) -> MetaInit:
    """The settings that a configuration's values name.

    Raises:
        ConfigError: whatever a user can get wrong, in one line.
    """
    schema.check_keys(values, [item.name for item in dataclasses.fields(MetaInit)], "")
    values = dict(values)
    for key in ("backbone", "strategy", "sources"):
        if values.get(key) is None:
            raise ConfigError(f"{key} is missing")
    values["backbone"] = config.backbone_section(values["backbone"])
    values["strategy"] = config.named(values["strategy"], "strategy")
    values["training"] = config.training_section(values.get("training"))
    values["sources"] = listed(values["sources"])
    return MetaInit(**values)


def load(name_or_path: str, overrides: Sequence[str] = ()) -> MetaInit:
    """Read a packaged meta-init configuration or a YAML file, with overrides, checked; see :func:`read`."""
    return from_values(read(name_or_path, overrides))
