"""The settings of a meta-init of frames, read from YAML and checked."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from clprompt import schema
from clprompt.data.sources import listed
from clprompt.errors import ConfigError
from clprompt.schema import above, at_least, not_empty
from clprompt.system import overlay

KIND = "meta-init"  # of a packaged configuration, and the folder of those

Count = Annotated[int, at_least(1)]
Whole = Annotated[int, at_least(0)]
Rate = Annotated[float, above(0)]
Size = Annotated[float, at_least(0)]


@dataclass(frozen=True, kw_only=True)
class MetaInit:
    """The settings of a meta-init."""

    backbone: dict
    """as in an experiment"""
    sources: Annotated[list[dict], not_empty]
    """data sets by name with their arguments; ``classes`` chooses some of the classes, ``tasks`` divides them
    among so many sources"""
    seed: Whole = 0
    """as in an experiment"""
    device: str = "auto"
    """as in an experiment"""
    pad: Count | None = None
    """thickness of the frame; null for 30 of 224, in proportion"""
    epochs: Count = 10
    """passes over the shortest source"""
    steps: Count | None = None
    """meta-steps, in place of epochs"""
    train_mb_size: Count = 64
    """images of each source in a meta-step"""
    workers: Whole = 0
    """loader processes"""
    head: Literal["linear", "active"] = "linear"
    """a "linear" classifier per source, kept from step to step and not exported, or "active" coordinates"""
    inner_steps: Count = 4
    """steps of the copies of the frame on one batch"""
    inner_lr: Rate = 0.5
    """learning rate of the copies"""
    inner_optimizer: Literal["sgd", "adam"] = "sgd"
    """of the copies"""
    weight_decay: Size = 0.0
    """of the copies"""
    head_lr: Size = 0.1
    """learning rate of the classifiers"""
    step_size: Rate = 0.5
    """how far the frame goes towards the mean of its copies"""
    count_idle: bool = True
    """whether clusters that do not occur in a batch count in the mean"""
    init_std: Size = 1.0
    """the frame starts from a normal distribution of this width; 0 from zero"""
    threshold: Rate | None = None
    """as in the strategy"""
    threshold_ratio: Rate = 0.9
    """as in the strategy"""
    max_clusters: Count | None = 16
    """as in the strategy"""
    min_cluster_size: Count = 5
    """as in the strategy"""
    cluster_samples: Count = 1000
    """as in the strategy"""
    cluster: bool = True
    """as in the strategy"""
    keep: Literal["last", "lowest"] = "last"
    """the "last" frame, or the one of the "lowest" moving average of the loss"""
    checkpoint_every: Count = 50
    """meta-steps between checkpoints"""

    def __post_init__(self) -> None:
        schema.check_fields(self)
        if self.cluster and self.cluster_samples < 2:
            raise ConfigError(
                f"cluster_samples must be at least 2 with cluster=true, got {self.cluster_samples}"
            )


def load(name_or_path: str, overrides: Sequence[str] = ()) -> MetaInit:
    """Read a packaged meta-init configuration or a YAML file, with overrides, checked.

    Raises:
        ConfigError: whatever a user can get wrong, in one line.
    """
    path = overlay.find(name_or_path, KIND)
    raw = overlay.read(path)
    overlay.apply(raw, overrides, sections={"backbone"})
    return from_values(overlay.resolve(raw, path))


def from_values(values: Mapping[str, Any]) -> MetaInit:
    """The settings that a configuration's values name, which may say that they are this strategy's.

    Raises:
        ConfigError: whatever a user can get wrong, in one line.
    """
    values = dict(values)
    strategy, objective = values.pop("strategy", None), values.pop("objective", "reptile")
    if isinstance(strategy, Mapping) and set(strategy) - {"name"}:
        key = next(key for key in strategy if key != "name")
        raise ConfigError(f"strategy.{key}: of a frame, {key} and all else stand beside strategy, not in it")
    if objective != "reptile":
        raise ConfigError(f"objective must be reptile for a frame, got {schema.show(objective)}")
    schema.check_keys(values, [field.name for field in dataclasses.fields(MetaInit)], "")
    for key in ("backbone", "sources"):
        if values.get(key) is None:
            raise ConfigError(f"{key} is missing")
    if isinstance(values["backbone"], str):
        values["backbone"] = {"name": values["backbone"]}
    values["sources"] = listed(values["sources"])
    return MetaInit(**values)
