"""What ``clprompt list`` prints: what is there of each kind, and what ``clprompt config`` does of one."""

from __future__ import annotations

import importlib.resources
import json
import re
from collections.abc import Sequence
from typing import Any

from clprompt import registry, schema
from clprompt.errors import ClpromptError
from clprompt.reporting.tables import columns
from clprompt.system import overlay

# timm's names of vision transformers with parallel, post-norm or differential blocks, or grouped queries
_OTHER_BLOCKS = re.compile(r"_(18x2|rpn|xp|enormous|sapiens2)(_|\.|$)|^vit_(d|p|dp)(wee|little)_")


def listing(kind: str, short: bool = False) -> list[str]:
    """The lines of `clprompt list KIND`; kind is one of `clprompt.cli.main.KINDS`.

    Args:
        kind: what to list.
        short: of long lists only what they hold.
    """
    if kind in ("configs", "studies"):
        return columns(overlay.names("study" if kind == "studies" else "configuration"))
    if kind == "backbones":
        return _backbones(short)
    registered = {
        "strategies": registry.strategies,
        "scenarios": registry.scenarios,
        "datasets": registry.datasets,
    }[kind]
    entries = [registered.get(name) for name in registered.names()]
    if kind != "strategies":
        return columns([(entry.name, entry.summary) for entry in entries])
    rows = [("name", "year", "boundaries", "paper")]
    for entry in entries:
        paper = entry.info.get("paper") or entry.summary
        year = entry.info.get("year") or "-"
        strategy: Any = entry.target
        boundaries = entry.info.get("boundaries") or asked_boundaries(strategy)
        text = "; needs a text tower (clip, clip_letters)" if strategy.needs_text else ""
        rows.append((entry.name, str(year), boundaries, f"{paper}{text}"))
    return columns(rows)


def beside_released(config: str, overrides: Sequence[str]) -> list[str]:
    """The lines of `clprompt config CONFIG --against released`."""
    from clprompt.experiment import published

    run, rows = published.against(config, overrides)
    differing = [row for row in rows if row.differs]
    table = [("field", "released", "ours", "")]
    for row in rows:
        remark = f"differs: {row.reason}" if row.reason else "differs"
        table.append((row.field, row.released, row.ours, remark if row.differs else ""))
    return [
        f"released: {run.run}",
        f"https://github.com/{run.repository}/tree/{run.commit}",
        "",
        *columns(table),
        "",
        f"{len(differing)} of {len(rows)} fields differ",
    ]


def timm_backbones() -> list[str]:
    """Names of timm's pretrained vision transformers that `FrozenViT` runs, told by name; none is built."""
    import timm

    names = [
        name
        for module in ("vision_transformer", "deit", "eva")
        for name in timm.list_models(module=module, pretrained=True)
    ]
    return [name for name in names if not _OTHER_BLOCKS.search(name)]


def _backbones(short: bool) -> list[str]:
    from clprompt.backbones.sources import embedded_backbones

    assets = importlib.resources.files("clprompt.assets")
    rows = []
    for name in embedded_backbones():
        facts = json.loads((assets / f"{name}.json").read_text())
        if "image" in facts:
            rows.append(
                (name, f"embedded; {facts['image']} with a text tower: {facts['parameters']:,} parameters")
            )
            continue
        size = "x".join([str(facts["model"]["img_size"])] * 2)
        parameters = f"{facts['parameters']:,} parameters, " if "parameters" in facts else ""
        rows.append((name, f"embedded; {parameters}{size} images"))
    rows.append(
        ("clip", "CLIP and SigLIP from a file: model=NAME of open_clip, checkpoint=FILE (clprompt[clip])")
    )
    kind = "with pretrained weights (or random ones: pretrained=false)"
    if short:  # to count timm's it would have to be imported, which takes seconds
        return [*columns(rows), f"and those of timm {kind}: clprompt list backbones"]
    names = timm_backbones()
    return [*columns(rows), f"and {len(names)} of timm {kind}:", *names]


def asked_boundaries(strategy: Any) -> str:
    """Whether the method needs to know where experiences begin; arguments decide, so instances are asked.

    Those take a backbone, which takes seconds: what is registered with the method is shown in place of it.
    """
    from clprompt.backbones.vit import FrozenViT

    small = FrozenViT("vit_tiny_patch16_224", embed_dim=16, num_heads=2, img_size=32)
    backbone = FrozenViT("clip_letters") if strategy.needs_text else small
    answers = []
    choices: list[dict[str, Any]] = [{}]
    if "boundary_free" in schema.parameters(strategy)[0]:
        choices.append({"boundary_free": True})
    for arguments in choices:
        try:
            answers.append(str(strategy(backbone, **arguments).boundaries))
        except (ClpromptError, TypeError):  # it has arguments without defaults: nobody can say
            answers.append("-")
    return " or ".join(dict.fromkeys(answers))
