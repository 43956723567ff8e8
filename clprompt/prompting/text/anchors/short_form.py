"""The short form of anchors: which ones, and their settings, beside a method's own keys."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Literal

from clprompt import schema
from clprompt.errors import ConfigError
from clprompt.prompting.text.anchors.anchor import LACKING, Anchor, serves
from clprompt.prompting.text.anchors.consistency import Consistency
from clprompt.prompting.text.anchors.direction import Direction
from clprompt.prompting.text.anchors.equal_shifts import EqualShifts
from clprompt.prompting.text.anchors.self_regulation import SelfRegulation
from clprompt.registry import plugins
from clprompt.schema import FilePath, at_least, at_most, not_empty

Kind = Literal["self_regulation", "consistency", "equal_shifts", "direction"]
Weight = Annotated[float, at_least(0)]
Ratio = Annotated[float, at_least(0), at_most(1)]

_KINDS: Mapping[str, Callable[..., Anchor]] = {
    kind.name: kind for kind in (SelfRegulation, Consistency, EqualShifts, Direction)
}


@plugins.register("anchor", serves=serves, lacking=LACKING)
@schema.checked
def anchor(
    *,
    anchor: Kind | Annotated[list[Kind], not_empty] | None = None,
    anchor_texts: FilePath | None = None,
    anchor_text_weight: Weight | None = None,
    anchor_image_weight: Weight | None = None,
    anchor_logits_weight: Weight | None = None,
    anchor_shift_weight: Weight | None = None,
    anchor_direction_weight: Weight | None = None,
    anchor_adapt_image: Ratio | None = None,
    anchor_adapt_text: Ratio | None = None,
) -> list[Anchor]:
    """What is learned stays near the unprompted towers: the short form of the anchors.

    Args:
        anchor: which one or several: "self_regulation" (PromptSRC), "consistency" (CoPrompt), "equal_shifts"
            (RESTORE), "direction" (DiSa); null for none. A setting is that of each that has it.
        anchor_texts: unprompted texts of a class: a template with {}, a file of templates or of sentences by
            class name, ``imagenet_7`` or ``imagenet_80``; null for the method's template.
        anchor_text_weight: of the texts' term; null for 25 (self_regulation) or 1 (consistency).
        anchor_image_weight: of the images' term; null for 10 (self_regulation) or 1 (consistency).
        anchor_logits_weight: of the predictions' term of self_regulation and direction; null for 1.
        anchor_shift_weight: of equal_shifts; null for 1.
        anchor_direction_weight: of the direction towards the class means; null for 1.
        anchor_adapt_image: share of the adapter's answer in image features, for consistency and equal_shifts;
            0 for no adapter, null for 0.1.
        anchor_adapt_text: the same of text features; null for 0.2.
    """
    values = {
        "texts": anchor_texts,
        "text_weight": anchor_text_weight,
        "image_weight": anchor_image_weight,
        "logits_weight": anchor_logits_weight,
        "shift_weight": anchor_shift_weight,
        "direction_weight": anchor_direction_weight,
        "adapt_image": anchor_adapt_image,
        "adapt_text": anchor_adapt_text,
    }
    given = {key: value for key, value in values.items() if value is not None}
    kinds = [anchor] if isinstance(anchor, str) else anchor or []
    if not kinds:
        for key in given:
            raise ConfigError(f"anchor_{key} belongs to anchor, which is null")
    if len(set(kinds)) < len(kinds):
        raise ConfigError(f"anchor names one twice: {schema.show(kinds)}")
    taken = {kind: schema.parameters(_KINDS[kind])[0] for kind in kinds}
    for key in given:
        if not any(key in keys for keys in taken.values()):
            owners = [name for name, kind in _KINDS.items() if key in schema.parameters(kind)[0]]
            raise ConfigError(
                f"anchor_{key} belongs to anchor={' or '.join(owners)}, got anchor={', '.join(kinds)}"
            )
    return [_KINDS[kind](**{key: given[key] for key in given if key in keys}) for kind, keys in taken.items()]
