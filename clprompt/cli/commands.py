"""Commands that strategies bring themselves, so that the command line knows none of them by name.

clprompt's own stand in ``clprompt.strategies.COMMANDS``; an installed package adds its own by entry points of
the group ``clprompt.cli.commands``. Either names a click command as ``module:attribute``. The module is
imported for help already: it should leave whatever is heavy to the command's body.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import warnings
from functools import cache

import click


@cache
def places() -> dict[str, str]:
    """Where each command is, by its name; nothing is imported but the list."""
    installed = {
        point.name: point.value for point in importlib.metadata.entry_points(group="clprompt.cli.commands")
    }
    return installed | importlib.import_module("clprompt.strategies").COMMANDS


class Group(click.Group):
    """A group of commands that also finds those of :func:`places`, behind its own."""

    def list_commands(self, context: click.Context) -> list[str]:
        return sorted({*super().list_commands(context), *places()})

    def resolve_command(
        self, context: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] == "compare" and self.get_command(context, args[0]) is None:
            context.fail(
                "No such command 'compare'. clprompt run CONFIG compare=NAME,NAME trains methods beside one "
                "another; clprompt report RUNS --against LABEL compares runs that are finished."
            )
        return super().resolve_command(context, args)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        builtin = super().get_command(context, name)
        if builtin is not None or name not in places():
            return builtin
        module, _, attribute = places()[name].partition(":")
        try:
            command: click.Command = getattr(importlib.import_module(module), attribute)
            option_names = {parameter.name for parameter in command.params}
            # --import stands behind every command's name too
            command.params += [
                p
                for p in self.params
                if p.multiple and not p.expose_value and p.name not in option_names  # type: ignore[attr-defined]
            ]
            return command
        except Exception as error:  # somebody else's package stops no other command
            warnings.warn(f"the command {name} ({places()[name]}) is left out: {error}")
            return None
