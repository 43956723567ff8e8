"""The frozen backbone that a configuration names."""

from __future__ import annotations

from typing import Any

from clprompt.backbones.clip import clip_backbone
from clprompt.backbones.vit import FrozenViT


def make_backbone(section: dict[str, Any]) -> FrozenViT:
    """The frozen backbone of a `backbone` section."""
    arguments = dict(section)
    name = arguments.pop("name")
    return clip_backbone(**arguments) if name == "clip" else FrozenViT(name, **arguments)
