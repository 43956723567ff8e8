"""What ``clprompt list`` prints: what is there of each kind, the arguments of what has a name, and what
``clprompt config`` prints of one that stands beside another.
"""

from __future__ import annotations

import importlib.resources
import inspect
import json
import re
import sys
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from clprompt import registry, schema
from clprompt.errors import ClpromptError, ConfigError, nearest
from clprompt.reporting.tables import columns, paragraph
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
        "plugins": registry.plugins,
        "trackers": registry.sinks,
    }[kind]
    entries = [registered.get(name) for name in registered.names()]
    if kind != "strategies":
        return columns([(entry.name, schema.one_line(entry.summary)) for entry in entries])
    rows = [("name", "year", "boundaries", "paper")]
    for entry in entries:
        paper = entry.info.get("paper") or entry.summary
        year = entry.info.get("year") or "-"
        strategy: Any = entry.target
        boundaries = entry.info.get("boundaries") or asked_boundaries(strategy)
        text = "; needs a text tower (clip, clip_letters)" if strategy.needs_text else ""
        rows.append((entry.name, str(year), boundaries, f"{paper}{text}"))
    return columns(rows)


@dataclass(frozen=True)
class Section:
    """What a name stands for in a configuration.

    Attributes:
        name: as it is registered.
        kind: what it is: "strategy", "scenario", ..., "settings".
        key: under which its arguments stand in a configuration.
        target: what is called with them.
        given: arguments that are no keys.
        facts: further lines about it.
        closing: lines that follow its arguments.
    """

    name: str
    kind: str
    key: str
    target: Callable[..., Any]
    given: Collection[str] = ()
    facts: list[str] = field(default_factory=list)
    closing: list[str] = field(default_factory=list)

    def summary(self) -> str:
        """The first paragraph of its documentation."""
        return schema.one_line((inspect.getdoc(self.target) or "").partition("\n\n")[0])

    def arguments(self) -> list[schema.Described]:
        """Its keys, in order."""
        return schema.described(self.target, self.given)


def sections() -> list[Section]:
    """All that has arguments and a name in a configuration: what is registered, settings, and `clip`."""
    from clprompt.backbones.clip import clip_backbone
    from clprompt.experiment import config

    found = []
    for key, known in config.REGISTRIES.items():
        found += [_registered(known, name, key) for name in known.names()]
    found += [_registered(registry.plugins, name, "strategy") for name in registry.plugins.names()]
    found += [Section(key, "settings", key, settings) for key, settings in config.SETTINGS.items()]
    return [*found, Section("clip", "backbone", "backbone", clip_backbone)]


def _registered(known: registry.Registry, name: str, key: str) -> Section:
    from clprompt.experiment import config
    from clprompt.prompting.build import serving

    entry = known.get(name)
    facts, closing = [], []
    if "paper" in entry.info:
        facts.append(f"Paper: {entry.info['paper']}")
    if known is registry.strategies:
        served = [plugin.name for plugin in serving(entry.target)]
        if "boundaries" in entry.info:
            facts.append(f"Boundaries of experiences: {entry.info['boundaries']}")
        if served:
            closing.append(f"Plug-ins with arguments beside these: {', '.join(served)}")
    if known is registry.plugins:
        methods = [
            name for name in registry.strategies.names() if entry.serves(registry.strategies.get(name).target)
        ]
        facts.append(f"Serves: {', '.join(methods)}")
    refused = [f"{key} is no argument: {only.reason}" for key, only in entry.refused.items()]
    given = () if known is registry.plugins else config.provided(key, entry.target)
    return Section(entry.name, known.kind, key, entry.target, given, facts, [*refused, *closing])


def about(name: str, kinds: Collection[str] = (), width: int = 80) -> list[str]:
    """The lines of `clprompt list NAME`: each argument with its type, default and meaning.

    Args:
        name: of something that has arguments.
        kinds: what else the command takes, for messages.
        width: of a line.

    Raises:
        ConfigError: nothing has that name.
    """
    known = sections()
    named = [section for section in known if section.name == name.replace("-", "_")]
    if not named and name.replace("-", "_") in registry.sinks.names():
        return _about_tracker(name, width)
    if not named:
        if name in dict(overlay.names()):
            raise ConfigError(f'"{name}" is a configuration: clprompt config {name} prints it')
        hint = nearest(name, [*kinds, *(section.name for section in known), *registry.sinks.names()])
        raise ConfigError(f'nothing is called "{name}"{hint}; clprompt list shows all names')
    lines: list[str] = []
    for section in named:
        lines += [""] if lines else []
        lines += _about(section, width)
    return lines


def _about_tracker(name: str, width: int) -> list[str]:
    entry = registry.sinks.get(name)
    tracker: Any = entry.target
    lines = [f"{entry.name} (tracker)", *paragraph(schema.one_line(entry.summary), width).splitlines()]
    if tracker.package:
        lines.append(f"Needs the package {tracker.package}: pip install 'clprompt[{tracker.package}]'")
    return [*lines, "A run names its trackers, one or several: trackers=NAME,NAME"]


def _about(section: Section, width: int) -> list[str]:
    def wrapped(text: str, indent: str = "") -> list[str]:
        return paragraph(text, width, indent).splitlines()

    lines = [f"{section.name} ({section.kind})", *wrapped(section.summary())]
    for fact in section.facts:
        lines += wrapped(fact)
    lines += ["", f"Arguments ({section.key}.NAME=VALUE on the command line):", ""]
    for argument in section.arguments():
        value = "must be given" if argument.default is None else f"default {argument.default}"
        lines += wrapped(f"{argument.name}: {argument.kind}; {value}", "  ")
        lines += wrapped(argument.sentence, "      ")
    for text in section.closing:
        lines += ["", *wrapped(text)]
    return lines


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
        *columns(table, width=sys.maxsize),  # it is read across
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
