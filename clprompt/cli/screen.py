"""What commands print: for eyes, or for another program, and never anything that a terminal would obey."""

from __future__ import annotations

import sys

import click

from clprompt.errors import printable


def show(text: object) -> None:
    """Print lines for eyes on standard output, the same on a terminal, in a pipe and in a file."""
    click.echo(printable(str(text)))


def hint(text: str) -> None:
    """Print lines for eyes on standard error."""
    print(printable(text), file=sys.stderr, flush=True)


def data(text: str) -> None:
    """Print what another program reads: byte by byte into a pipe or a file, for eyes on a terminal."""
    if sys.stdout.isatty():
        click.echo(printable(text), nl=False)
    elif hasattr(sys.stdout, "buffer"):
        click.echo(text.encode(errors="surrogateescape"), nl=False)
    else:  # a notebook, or a text that collects: it takes no bytes
        click.echo(text, nl=False)
