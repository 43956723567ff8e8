"""The command that DAM-VP brings, `clprompt meta-init`; nothing heavy is imported: help must come at once."""

from __future__ import annotations

import click

from clprompt.errors import ConfigError


@click.command("meta-init", short_help="Learn the frame that DAM-VP's pixel prompts start from.")
@click.argument("config", metavar="CONFIG")
@click.argument("overrides", metavar="out=FILE [KEY=VALUE]...", nargs=-1)
def meta_init(config: str, overrides: tuple[str, ...]) -> None:
    """Learn a meta-prompt over source data sets and write it to FILE; strategy.meta_file=FILE starts from it.

    CONFIG is the name of a packaged configuration (letters) or a path to a .yaml file with a backbone and a
    list of sources. Overrides change single values (steps=200, inner_lr=0.1). The loss is drawn beside FILE.
    An interrupted meta-init goes on when the same command is given again.
    """
    paths = [word.removeprefix("out=") for word in overrides if word.startswith("out=")]
    if not paths or not paths[-1]:
        raise ConfigError("meta-init needs out=FILE, where the frame shall be written")
    from pathlib import Path

    from clprompt.strategies.damvp import meta_init as loop
    from clprompt.strategies.damvp.meta_sources import load
    from clprompt.system import progress

    settings = load(config, [word for word in overrides if not word.startswith("out=")])
    command = ["clprompt", "meta-init", config, *overrides]
    with progress.create() as bar:
        written = loop.run(settings, Path(paths[-1]), progress=bar, command=command)
    for path in written:
        click.echo(path)
