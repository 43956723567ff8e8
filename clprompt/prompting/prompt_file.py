"""Files of learned prompts: the tensors by name, and beside them what they were learnt on.

A file is safetensors. Its metadata hold one JSON document under "clprompt": strategy, backbone, sources with
their class names, seed, and of each set of prompts its axes and blocks. Each tensor is [K, *form]: K
parameters of a set, in the form that the method gives them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from clprompt import registry, schema
from clprompt.backbones.digest import digest
from clprompt.errors import ConfigError, DataError, tell
from clprompt.prompting.model import PromptModel
from clprompt.prompting.plugin import LearnedPrompts
from clprompt.system.files import atomic_write


@dataclass(frozen=True)
class _Backbone:
    """Of a file: where the prompts were learnt."""

    source: str
    sha256: str


@dataclass(frozen=True)
class _Set:
    """Of a file: one set of prompts."""

    axes: list[str]
    blocks: list[int]
    is_key: bool = False


@dataclass(frozen=True)
class _Source:
    """Of a file: one data set that it was learnt on."""

    name: str
    classes: list[str]


@dataclass(frozen=True)
class _Facts:
    """Of a file."""

    strategy: str
    backbone: dict[str, Any]
    prompts: dict[str, Any]
    sources: list[dict[str, Any]]


@dataclass(frozen=True)
class PromptFile:
    """What a file holds.

    Attributes:
        path: of the file.
        facts: what it says of itself.
        tensors: [K, *form] by the name of the set.
    """

    path: Path
    facts: Mapping[str, Any]
    tensors: Mapping[str, Tensor]

    def content(self) -> Tensor:
        """The checksum of names and values, uint8 [32]."""
        tensors = sorted(self.tensors.items())
        shaped = ((f"{name} {list(value.shape)}", value.float()) for name, value in tensors)
        return torch.tensor(list(digest(shaped)), dtype=torch.uint8)

    def check(self, model: PromptModel, listed: Mapping[str, LearnedPrompts]) -> None:
        """Refuse a file of another method, backbone or form than the model's.

        Args:
            model: that shall start from it.
            listed: its sets of prompts.

        Raises:
            ConfigError: naming what differs; lengths and slots are looked at where they are used.
        """
        strategy, backbone = registry.strategies.name_of(type(model)), model.backbone
        if self.facts["strategy"] != strategy:
            raise ConfigError(
                f"init_file {self.path} holds prompts of {self.facts['strategy']}, not of {strategy}"
            )
        theirs = self.facts["backbone"]
        if theirs["sha256"] != backbone.fingerprint():
            what = (
                f"on {theirs['source']}"
                if theirs["source"] != backbone.source
                else "with other weights of it"
            )
            raise ConfigError(f"init_file {self.path} was learnt {what}, not on this {backbone.source}")
        missing = [
            name for name, prompts in listed.items() if name not in self.tensors and not prompts.is_key
        ]
        more = [n for n in self.tensors if n not in listed and not self.facts["prompts"][n].get("is_key")]
        if missing or more:
            raise ConfigError(
                f"init_file {self.path} holds {', '.join(self.tensors)}; "
                f"{strategy} has {', '.join(listed)} here"
            )
        for name, prompts in listed.items():
            if name in self.tensors:
                self._check_set(name, prompts)

    def _check_set(self, name: str, prompts: LearnedPrompts) -> None:
        facts, where = self.facts["prompts"][name], f"init_file {self.path}: {name}"
        if tuple(facts["blocks"]) != prompts.blocks:
            raise ConfigError(
                f"{where} stands in the blocks {facts['blocks']}, here in {list(prompts.blocks)}"
            )
        if tuple(facts["axes"]) != prompts.axes:
            raise ConfigError(
                f"{where} has the axes {', '.join(facts['axes'])}, here {', '.join(prompts.axes)}"
            )
        sizes = zip([*prompts.axes, "width"], self.tensors[name].shape[1:], prompts.shape, strict=True)
        for axis, theirs, ours in sizes:
            if theirs != ours and axis not in ("slots", "length"):
                raise ConfigError(f"{where} has {theirs} for its {axis}, here {ours} are needed")


def listed_prompts(model: PromptModel) -> dict[str, LearnedPrompts]:
    """All that a model and its plug-ins list as learned prompts, by name."""
    listed = dict(model.learned_prompts())
    for plugin in model.plugins:
        listed |= plugin.learned_prompts()
    return listed


def prompts_of(model: PromptModel) -> dict[str, Tensor]:
    """The values of a model's learned prompts, [K, *form]: of sets that experiences add to, the newest."""
    values = {}
    for name, prompts in listed_prompts(model).items():
        parameters = prompts.parameters if prompts.added == "never" else prompts.parameters[-1:]
        if not parameters:
            raise ConfigError(f"{type(model).__name__} has no {name} yet: no experience was begun")
        values[name] = torch.stack([parameter.detach().float().cpu() for parameter in parameters])
    return values


def write(
    path: str | Path,
    model: PromptModel,
    *,
    sources: Sequence[Mapping[str, Any]],
    facts: Mapping[str, Any] | None = None,
    values: Mapping[str, Tensor] | None = None,
) -> None:
    """Write the learned prompts of a model, atomically; the same prompts give the same bytes.

    Args:
        path: the file.
        model: whose prompts they are.
        sources: ``{"name", "classes"}`` of each data set that they were learnt on.
        facts: what else the file shall say.
        values: by set, in place of those that :func:`prompts_of` gives.

    Raises:
        ConfigError: a method that lists no prompts.
    """
    listed = listed_prompts(model)
    if not listed:
        raise ConfigError(f"{type(model).__name__} lists no prompts that a file could hold")
    values = prompts_of(model) if values is None else values
    whole = {
        **(facts or {}),
        "strategy": registry.strategies.name_of(type(model)),
        "backbone": {"source": model.backbone.source, "sha256": model.backbone.fingerprint()},
        "prompts": {
            name: {
                "axes": list(prompts.axes),
                "blocks": list(prompts.blocks),
                "is_key": prompts.is_key,
                "shape": list(values[name].shape),
            }
            for name, prompts in listed.items()
        },
        "sources": [dict(source) for source in sources],
    }
    tensors = {name: value.detach().cpu().contiguous() for name, value in values.items()}
    atomic_write(path, save(tensors, {"clprompt": json.dumps(whole)}))


def read(path: str | Path) -> PromptFile:
    """A file of prompts, checked in itself.

    Raises:
        DataError: no such file, or not one of prompts.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"init_file: no file {path}")
    try:
        with safe_open(str(path), "pt") as file:
            facts = json.loads((file.metadata() or {}).get("clprompt", "{}"))
            tensors = {name: file.get_tensor(name) for name in sorted(file.keys())}
        _check_facts(facts, tensors)
    except (SafetensorError, ValueError, OSError, ConfigError) as error:
        raise DataError(f"init_file {path} holds no prompts: {' '.join(str(error).split())}") from error
    return PromptFile(path, facts, tensors)


def _check_facts(facts: Any, tensors: Mapping[str, Tensor]) -> None:
    schema.held(_Facts, facts, "")
    schema.held(_Backbone, facts["backbone"], "backbone")
    for index, source in enumerate(facts["sources"]):
        schema.held(_Source, source, f"sources.{index}")
    if set(facts["prompts"]) != set(tensors):
        raise ConfigError(
            f"it says {', '.join(facts['prompts'])} and has {', '.join(tensors) or 'no tensors'}"
        )
    for name, value in tensors.items():
        about = schema.held(_Set, facts["prompts"][name], f"prompts.{name}")
        if value.ndim != len(about["axes"]) + 2 or not value.is_floating_point() or not len(value):
            raise ConfigError(f"{name} has the shape {list(value.shape)} for the axes {about['axes']}")
        if not bool(value.isfinite().all()):
            raise ConfigError(f"{name} has values that are not finite")


def tell_of_leaks(facts: Mapping[str, Any], class_names: Sequence[str], what: str) -> None:
    """A notice of the classes that something was learnt from beforehand and that a stream will bring.

    Args:
        facts: of the file, with its ``sources``.
        class_names: of the stream.
        what: names the file.
    """
    theirs = {_plain(name) for source in facts.get("sources", ()) for name in source["classes"]}
    shared = sorted({name for name in class_names if _plain(name) in theirs})
    if shared:
        more = f" and {len(shared) - 5} more" if len(shared) > 5 else ""
        tell(f"{what} was learnt from classes that are in the stream: {', '.join(shared[:5])}{more}")


def _plain(name: str) -> str:
    """A class name without case and separators."""
    return name.lower().replace("_", " ").replace("-", " ").strip()
