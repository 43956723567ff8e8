"""What commands print: for eyes, or for another program, and never anything that a terminal would obey."""

from __future__ import annotations

import sys
from typing import TextIO

import click

from clprompt.errors import printable
from clprompt.system.progress import write_line


def show(text: object) -> None:
    """Print lines for eyes on standard output, the same on a terminal, in a pipe and in a file."""
    click.echo(_for(sys.stdout, str(text)))


def hint(text: str) -> None:
    """Print lines for eyes on standard error."""
    write_line(_for(sys.stderr, text), sys.stderr)


def _for(stream: TextIO, text: str) -> str:
    """Text as a stream can show it: "+-" where its encoding has no "±", escapes for what else it lacks."""
    text, encoding = printable(text), getattr(stream, "encoding", None) or "utf-8"
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        plain = text.replace("±", "+-").replace("…", "...")
        return plain.encode(encoding, errors="backslashreplace").decode(encoding)
    return text


def data(text: str) -> None:
    """Print what another program reads: byte by byte into a pipe or a file, for eyes on a terminal."""
    if sys.stdout.isatty():
        click.echo(printable(text), nl=False)
    elif hasattr(sys.stdout, "buffer"):
        click.echo(text.encode(errors="surrogateescape"), nl=False)
    else:  # a notebook, or a text that collects: it takes no bytes
        click.echo(text, nl=False)
