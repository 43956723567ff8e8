"""What stays frozen: timm's vision transformers, and the one attention that takes prompts into them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from clprompt import lazy_names

if TYPE_CHECKING:
    from clprompt.backbones.attention import BlockPrompt as BlockPrompt
    from clprompt.backbones.attention import FrozenAttention as FrozenAttention
    from clprompt.backbones.attention import FrozenBlock as FrozenBlock
    from clprompt.backbones.attention import prompted_block as prompted_block
    from clprompt.backbones.build import make_backbone as make_backbone
    from clprompt.backbones.clip import clip_backbone as clip_backbone
    from clprompt.backbones.sources import embedded_backbones as embedded_backbones
    from clprompt.backbones.text import FrozenText as FrozenText
    from clprompt.backbones.vit import FrozenViT as FrozenViT
    from clprompt.backbones.vit import Prompts as Prompts

__all__, __getattr__, __dir__ = lazy_names(
    __name__,
    {
        "BlockPrompt": "clprompt.backbones.attention",
        "FrozenAttention": "clprompt.backbones.attention",
        "FrozenBlock": "clprompt.backbones.attention",
        "FrozenText": "clprompt.backbones.text",
        "FrozenViT": "clprompt.backbones.vit",
        "Prompts": "clprompt.backbones.vit",
        "clip_backbone": "clprompt.backbones.clip",
        "embedded_backbones": "clprompt.backbones.sources",
        "make_backbone": "clprompt.backbones.build",
        "prompted_block": "clprompt.backbones.attention",
    },
)
