"""The frozen backbone that a configuration names."""

from __future__ import annotations

from typing import Any

from clprompt.backbones.clip import clip_backbone
from clprompt.backbones.vit import FrozenViT
from clprompt.errors import BackboneError


def make_backbone(section: dict[str, Any]) -> FrozenViT:
    """The frozen backbone of a `backbone` section."""
    arguments = dict(section)
    name = arguments.pop("name")
    return clip_backbone(**arguments) if name == "clip" else FrozenViT(name, **arguments)


def check_exportable(section: dict[str, Any]) -> None:
    """Refuse a section whose backbone could not be built again without its checkpoint.

    Raises:
        BackboneError: the shape is known from the file alone.
    """
    if section["name"] == "clip" and section.get("model") is None:
        raise BackboneError(
            "export=full needs backbone.model, one of open_clip's names: the shape of a bare checkpoint is "
            "known from that file alone"
        )
