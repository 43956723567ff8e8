"""A hook of mkdocs: pages of the arguments of whatever has a name in a configuration.

They are read off signatures and docstrings; `clprompt list NAME` prints the same. The tree stays as it is.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable
from typing import Any

from mkdocs.structure.files import File, Files

from clprompt import schema
from clprompt.cli.listing import Section, sections
from clprompt.cli.main import SECTIONS
from clprompt.experiment.config import Config

#: Pages by file, each with its title and the kind of section that it lists.
PAGES = {
    "strategies": ("Strategies", "strategy"),
    "scenarios": ("Scenarios", "scenario"),
    "data-sets": ("Data sets", "data set"),
    "plug-ins": ("Plug-ins", "plug-in"),
    "settings": ("Settings", "settings"),
}
_TOP = (
    "What stands at the top level of a configuration, beside the sections. "
    "The sections `data`, `scenario`, `strategy` and `backbone` hold a `name`, and what it takes."
)


def on_files(files: Files, config: Any) -> Files:
    """Add the pages to those of the documents."""
    everything = sections()
    for file, (title, kind) in PAGES.items():
        listed = [section for section in everything if section.kind == kind]
        parts = [f"# {title}"]
        if kind == "settings":
            arguments = [argument for argument in schema.described(Config) if argument.name not in SECTIONS]
            parts += ["## The top level", _TOP, *_table(arguments)]
            listed += [section for section in everything if section.kind == "backbone"]
        for section in listed:
            parts += _about(section)
        files.append(File.generated(config, f"reference/{file}.md", content="\n\n".join(parts) + "\n"))
    return files


def on_page_content(html: str, page: Any, config: Any, files: Files) -> str:
    """Docstrings name things as :class:`name`; of that the name is shown."""
    return re.sub(r":(?:class|func|meth|mod|data|attr|exc):(?=<code)", "", html)


def on_post_page(output: str, page: Any, config: Any) -> str:
    """The link to the repository does not ask its host, for each reader, how many stars it has."""
    return output.replace('data-md-component="source"', "")


def on_post_template(output: str, template_name: str, config: Any) -> str:
    """The same of the page for addresses that there are not."""
    return on_post_page(output, None, config)


def _about(section: Section) -> list[str]:
    documentation = inspect.getdoc(section.target) or ""
    prose, *_ = re.split(r"^(?:Args|Attributes|Returns|Raises):$", documentation, flags=re.MULTILINE)
    heading = f"## `{section.name}` {{#{section.name}}}"
    facts = ["  \n".join(_escaped(fact) for fact in section.facts)] if section.facts else []
    return [
        heading,
        _escaped(schema.as_markdown(prose.strip())),
        *facts,
        f"Arguments, as `{section.key}.NAME=VALUE`:",
        *_table(section.arguments()),
        *map(_escaped, section.closing),
    ]


def _table(arguments: Iterable[schema.Described]) -> list[str]:
    rows = ["| argument | type | default | |", "| --- | --- | --- | --- |"]
    for argument in arguments:
        default = "must be given" if argument.default is None else f"`{argument.default}`"
        cells = (f"`{argument.name}`", argument.kind, default, _escaped(argument.sentence))
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return ["\n".join(rows)] if len(rows) > 2 else ["None."]


def _escaped(text: str) -> str:
    """Without what Markdown would take for HTML, outside of code."""
    return "".join(
        part if part.startswith("`") else part.replace("<", "&lt;") for part in re.split(r"(`[^`]*`)", text)
    )
