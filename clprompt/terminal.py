"""What the command line prints: lists of what is there, and the block at the end of a run."""

from __future__ import annotations

import importlib.resources
import json
import math
import re
import shlex
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from clprompt import config, registry, schema
from clprompt.errors import ClpromptError

if TYPE_CHECKING:
    from clprompt.experiment import Result


# timm's names of vision transformers whose blocks are parallel, post-norm or differential: no place for a prompt.
_OTHER_BLOCKS = re.compile(r"_(18x2|rpn|xp)_|^vit_(d|p|dp)(wee|little)_")


def columns(rows: Iterable[Sequence[str]]) -> list[str]:
    """Rows of equal length as aligned lines."""
    rows = list(rows)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]


# ----------------------------------------------------------------------------------------------- lists


def listing(kind: str, short: bool = False) -> list[str]:
    """The lines of `clprompt list KIND`; kind is one of `clprompt.cli.KINDS`.

    Args:
        kind: what to list. short: of long lists only how much there is.
    """
    if kind in ("configs", "studies"):
        return columns(config.names("study" if kind == "studies" else "configuration"))
    if kind == "backbones":
        return _backbones(short)
    known = {
        "strategies": registry.strategies,
        "scenarios": registry.scenarios,
        "datasets": registry.datasets,
    }[kind]
    entries = [known.get(name) for name in known.names()]
    if kind != "strategies":
        return columns([(entry.name, entry.summary) for entry in entries])
    rows = [("name", "year", "boundaries", "paper")]
    backbone = _small_backbone()
    for entry in entries:
        paper = entry.info.get("paper") or entry.summary
        year = entry.info.get("year") or "-"
        rows.append((entry.name, str(year), _boundaries(entry.target, backbone), str(paper)))
    return columns(rows)


def timm_backbones() -> list[str]:
    """Names of timm's pretrained vision transformers that `FrozenViT` runs; told by their names, none is built."""
    import timm

    names = [
        name
        for module in ("vision_transformer", "deit")
        for name in timm.list_models(module=module, pretrained=True)
    ]
    return [name for name in names if not _OTHER_BLOCKS.search(name)]


def _backbones(short: bool) -> list[str]:
    from clprompt.backbone_sources import embedded_backbones

    assets = importlib.resources.files("clprompt.assets")
    rows = []
    for name in embedded_backbones():
        facts = json.loads((assets / f"{name}.json").read_text())
        size = "x".join([str(facts["model"]["img_size"])] * 2)
        parameters = f"{facts['parameters']:,} parameters, " if "parameters" in facts else ""
        rows.append((name, f"embedded; {parameters}{size} images"))
    names = timm_backbones()
    more = f"and {len(names)} of timm with pretrained weights (or random ones: pretrained=false)"
    return [*columns(rows), *([f"{more}: clprompt list backbones"] if short else [f"{more}:", *names])]


def _small_backbone() -> Any:
    from clprompt.backbone import FrozenViT

    return FrozenViT("vit_tiny_patch16_224", embed_dim=16, num_heads=2, img_size=32)


def _boundaries(strategy: Any, backbone: Any) -> str:
    """Whether the method needs to know where experiences begin: its arguments decide, so instances are asked."""
    said = []
    choices: list[dict[str, Any]] = [{}]
    if "boundary_free" in schema.parameters(strategy)[0]:
        choices.append({"boundary_free": True})
    for arguments in choices:
        try:
            said.append(str(strategy(backbone, **arguments).boundaries))
        except (ClpromptError, TypeError):  # it has arguments without defaults: nobody can say
            said.append("-")
    return " or ".join(dict.fromkeys(said))


# --------------------------------------------------------------------------------------------- results


def results(found: Sequence[Result]) -> str:
    """The block at the end: accuracies, means over seeds, run folders, and how to look at them.

    Args:
        found: what was run, of one or several strategies and seeds.
    """
    from clprompt import summary

    groups: dict[str, dict[int, Result]] = {}  # strategy -> seed -> result
    for result in found:
        group, count = result.name, 1
        while result.seed in groups.setdefault(group, {}):  # one strategy twice, with other arguments
            count += 1
            group = f"{result.name} ({count})"
        groups[group][result.seed] = result
    several = any(len(of_seeds) > 1 for of_seeds in groups.values())
    labelled = {
        f"{group}, seed {seed}" if several else group: result
        for group, of_seeds in groups.items()
        for seed, result in of_seeds.items()
    }
    tables = {label: (result.matrix, result.summary) for label, result in labelled.items()}
    parts = [summary.text_summary(tables).rstrip("\n")]
    if several:
        parts.append("\n".join(_over_seeds(groups)))
    parts.append("\n".join(columns([(label, str(result.folder)) for label, result in labelled.items()])))
    folders = dict.fromkeys(str(result.folder.parent) for result in found)
    parts.append("\n".join(shlex.join(["tensorboard", "--logdir", folder]) for folder in folders))
    return "\n\n".join(parts)


def _over_seeds(groups: dict[str, dict[int, Result]]) -> list[str]:
    from clprompt.summary import columns_of

    shown = columns_of(result.summary for of_seeds in groups.values() for result in of_seeds.values())
    averaged = {key: shown[key] for key in shown if key not in ("backward_transfer", "last_accuracy")}
    rows: list[Sequence[str]] = [("percent, mean +- standard error", "seeds", *averaged.values())]
    for group, of_seeds in groups.items():
        cells = [
            mean_and_error([result.summary.get(key) for result in of_seeds.values()]) for key in averaged
        ]
        rows.append((group, str(len(of_seeds)), *cells))
    return columns(rows)


def mean_and_error(values: Iterable[float | None], *, signed: bool = False) -> str:
    """Fractions as "81.3 +- 0.4" in percent: the mean and its standard error; "-" where there is no value.

    Args:
        values: None and NaN are left out. signed: show the sign of a positive mean too, as for differences.
    """
    known = np.asarray([value for value in values if value is not None and math.isfinite(value)], dtype=float)
    if len(known) == 0:
        return "-"
    mean = f"{100 * known.mean():{'+' if signed else ''}.1f}"
    if len(known) == 1:
        return mean
    return f"{mean} +- {100 * known.std(ddof=1) / math.sqrt(len(known)):.1f}"
