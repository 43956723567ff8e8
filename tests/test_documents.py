"""What README and the documents tell to type: every command is understood, every block of Python runs.

A command is read as the command line reads it, and its configuration is resolved; what costs little is run.
Python of a document runs from the top to the bottom, on few images. A block behind `<!-- not run: why -->` is
skipped, with the reason.
"""

from __future__ import annotations

import functools
import itertools
import json
import re
import shlex
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import pytest
from markdown_it import MarkdownIt
from PIL import Image

import clprompt.data
from clprompt import plain_yaml, registry
from clprompt.cli import main as command_line
from clprompt.data import digits
from clprompt.experiment import config, study
from clprompt.experiment.meta_init import settings as meta_init
from clprompt.system import overlay

ROOT = Path(__file__).parents[1]
DOCUMENTS = [
    "README.md",
    "CONTRIBUTING.md",
    *(f"docs/{path.name}" for path in sorted(ROOT.glob("docs/*.md"))),
]

#: Programs whose lines are not looked into.
OTHER_PROGRAMS = {"tensorboard", "ruff", "mkdocs"}
#: Commands that are run as they stand, on data that are at hand.
CHEAP = {"list", "config", "stream"}


@dataclass(frozen=True)
class Block:
    document: str
    line: int
    language: str
    text: str
    skipped: str = ""

    def __str__(self) -> str:
        return f"{self.document}:{self.line}"


def blocks(document: str) -> Iterator[Block]:
    """The code blocks of a document, in order."""
    tokens = MarkdownIt().parse((ROOT / document).read_text(encoding="utf-8"))
    for before, token in itertools.pairwise([tokens[0], *tokens]):
        if token.type in ("fence", "code_block"):
            assert token.map is not None
            mark = re.match(r"<!-- not run: (.+) -->", before.content if before.type == "html_block" else "")
            reason = mark[1] if mark else ""
            yield Block(document, token.map[0] + 1, token.info.strip(), token.content, reason)


BLOCKS = [block for document in DOCUMENTS for block in blocks(document)]


def marked(chosen: list[Block]) -> list[Any]:
    return [
        pytest.param(
            block, id=str(block), marks=[pytest.mark.skip(reason=block.skipped)] * bool(block.skipped)
        )
        for block in chosen
    ]


def commands(text: str) -> list[list[str]]:
    """The words of each command of a block, without comments."""
    lines = text.replace("\\\n", " ").splitlines()
    words = [shlex.split(line, comments=True) for line in lines]
    parts = [
        [list(part) for joins, part in itertools.groupby(line, "&&".__eq__) if not joins] for line in words
    ]
    return [part for line in parts for part in line]


def is_shell(block: Block) -> bool:
    starts = ("clprompt ", "pip ", "python ", "torchrun ")
    return block.language == "bash" or (not block.language and block.text.startswith(starts))


def as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a document registers is taken back at the end of the test."""
    registry.strategies.names()  # ours first
    for known in (registry.strategies, registry.plugins):
        monkeypatch.setattr(known, "_entries", dict(known._entries))


# ---------------------------------------------------------------------------------------------- commands


def write_files_of(document: str) -> None:
    """What a document has its reader write: photographs, a configuration, names of classes."""
    for block in blocks(document):
        registered = re.search(r'register\("(\w+)"', block.text)
        if block.language == "python" and registered:
            Path(f"{registered[1]}.py").write_text(block.text)
        named = re.match(r"# (\w+\.yaml)", block.text)
        if named and block.language == "yaml":
            Path(named[1]).write_text(block.text)
        elif block.language == "yaml" and re.search(r"^data: .* path: photos\b", block.text, re.MULTILINE):
            Path("photos.yaml").write_text(block.text)
    for name in ("n01440764", "rp", "oak", "bus", "dog"):
        Path("photos", name).mkdir(parents=True)
        for number in range(3):
            Image.new("RGB", (8, 8), (80 * number, 0, 0)).save(Path("photos", name, f"{number}.png"))
    files = sorted(Path("photos").glob("*/*.png"))
    rows = [
        f"{file},{file.parent.name},{('camera', 'sketch')[position % 2]}"
        for position, file in enumerate(files)
    ]
    Path("photos.csv").write_text("\n".join(["path,label,domain", *rows]))
    Path("order.txt").write_text("\n".join(map(str, [9, *range(9)])))


@pytest.mark.parametrize("block", marked([block for block in BLOCKS if is_shell(block)]))
def test_each_command_is_understood(
    block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    as_they_were(monkeypatch)
    monkeypatch.chdir(tmp_path)
    write_files_of(block.document)
    runs: list[config.Config] = []
    for words in commands(block.text):
        if words[0] == "torchrun":
            words = words[words.index("clprompt") :]
        if words[0] == "clprompt":
            understand(words[1], words[2:], runs)
        elif words[:2] == ["pip", "install"]:
            known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
            extras = [
                extra
                for word in words
                for group in re.findall(r"\[(.+)\]", word)
                for extra in group.split(",")
            ]
            assert {*extras} <= {*known}
        elif words[0] in ("python", "pytest"):
            files = [words[2].replace(".", "/") + ".py"] if words[1:2] == ["-m"] else words[1:]
            for file in (file for file in files if file.endswith(".py") or "/" in file):
                assert (ROOT / file).exists(), file
        else:
            assert words[0] in OTHER_PROGRAMS, f"{words[0]} is no program that documents tell of"
    assert "error" not in capsys.readouterr().err


def understand(name: str, words: list[str], runs: list[config.Config]) -> None:
    """One command of clprompt: words and configuration are right; what is cheap is run.

    Args:
        name: of the command.
        words: what follows it.
        runs: configurations that the block ran before; another is added.
    """
    if name in CHEAP:
        assert command_line.main([name, *words]) == 0
        return
    with click.Context(command_line.group) as context:
        command = command_line.group.get_command(context, name)
        assert command is not None, name
        given = command.make_context(name, words, parent=context).params
    if name == "run":
        runs.append(config.load(given["config"], given["overrides"]))
    elif name == "study":
        # a file of tuned rates is what another study writes
        study.load(given["study"], [text for text in given["overrides"] if not text.startswith("tuned=")])
    elif name == "meta-init":
        values = meta_init.read(
            given["config"], [text for text in given["overrides"] if not text.startswith("out=")]
        )
        if meta_init.own_module(values) is None:
            meta_init.from_values(values)
    elif name == "report" and given["against"]:
        rows = [[section["name"] for section, _ in run.strategies()] for run in runs]
        counts = [labels.count(given["against"]) for labels in rows]
        assert not runs or max(counts) == 1, (
            f"compared with {given['against']}, the rows of each run are {rows}"
        )


# ---------------------------------------------------------------------------------------- configurations


@pytest.mark.parametrize("block", marked([block for block in BLOCKS if block.language == "yaml"]))
def test_each_configuration_is_understood(block: Block, tmp_path: Path) -> None:
    lines = block.text.splitlines()
    keys = [line.split(":")[0] for line in lines if re.match(r"\w", line)]
    # a key that comes again begins another example
    for text in [block.text] if len(keys) == len({*keys}) else lines:
        values = plain_yaml.read(text)
        if "sources" in values:
            file = tmp_path / "meta.yaml"
            file.write_text(text)
            read = meta_init.read(str(file), [])
            if meta_init.own_module(read) is None:
                meta_init.from_values(read)
        elif "strategies" in values:
            file = tmp_path / "study.yaml"
            file.write_text(text)
            study.load(str(file), [])
        elif {*values} & {*config.KEYS}:
            config.from_dict(overlay.read(overlay.find("quickstart")) | values)
        else:  # names of classes
            assert {*map(type, values)} == {str}


READERS = {"json": json.loads, "toml": tomllib.loads}


@pytest.mark.parametrize("block", marked([block for block in BLOCKS if block.language in READERS]))
def test_each_file_is_of_its_language(block: Block) -> None:
    READERS[block.language](block.text)


# ------------------------------------------------------------------------------------------------ Python


@pytest.mark.usefixtures("same_picture")
@pytest.mark.parametrize(
    "document",
    [name for name in DOCUMENTS if any(b.language == "python" and b.document == name for b in BLOCKS)],
)
def test_python_of_a_document_runs_from_top_to_bottom(
    document: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    few = functools.partial(digits, train_per_class=6, test_fraction=0.05)
    monkeypatch.setattr(clprompt.data, "digits", few)
    as_they_were(monkeypatch)
    names: dict[str, Any] = {"__name__": "document"}
    for block in blocks(document):
        if block.language == "python" and not block.skipped:
            exec(compile("\n" * block.line + block.text, str(ROOT / document), "exec"), names)


@pytest.mark.parametrize("block", marked([b for b in BLOCKS if b.language == "python" and b.skipped]))
def test_python_that_needs_what_is_not_here(block: Block) -> None:
    """Skipped, so that the output says so."""


def test_every_block_is_of_a_kind_that_is_tried() -> None:
    tried = {"yaml", "python", "text", *READERS}
    others = [block for block in BLOCKS if block.language not in tried and not is_shell(block)]
    assert not others, f"give these a language: {', '.join(map(str, others))}"
