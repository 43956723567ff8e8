"""Where the files and folders are that a configuration names: a model shall not depend on where one stands.

What is given counts from the folder that one stands in, as on any command line; what is not there is looked
for beside the configuration, or in the run folder. A run keeps absolute paths.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from clprompt import registry, schema

Find = Callable[[str], str]

#: A run stands below the folder of its configuration by default: runs/<name>/<run>.
_ABOVE = 3


def absolute(path: str) -> str:
    """A path as it is from everywhere; what is not there, as the name of something packaged, stays."""
    return os.path.abspath(path) if os.path.exists(path) else path


def beside(folders: Iterable[Path]) -> Find:
    """What finds a relative path: where one stands, else in the first of these folders that has it."""
    folders = list(folders)

    def find(path: str) -> str:
        if not path or os.path.exists(path) or os.path.isabs(path):
            return path
        found = (os.path.abspath(folder / path) for folder in folders if os.path.exists(folder / path))
        return next(found, path)

    return find


def of_run(folder: Path) -> Find:
    """What finds a path that a run was made with: a relative one in the run folder or the three above it; of
    an absolute one that leads nowhere here, a file of that name in the run folder.
    """
    folder = Path(os.path.abspath(folder))
    find = beside([folder, *list(folder.parents)[:_ABOVE]])

    def found(path: str) -> str:
        if not os.path.isabs(path) or os.path.exists(path):
            return find(path)
        moved = folder / Path(path).name
        return str(moved) if moved.exists() else path

    return found


def section_with_paths(
    section: dict[str, Any], targets: Iterable[Callable[..., Any]], find: Find
) -> dict[str, Any]:
    """A section, every path in it replaced; what is no argument of what it names stays.

    Args:
        section: checked.
        targets: what its values are passed to.
        find: gives a path for a path.
    """
    arguments = {name: one for target in targets for name, one in schema.parameters(target)[0].items()}
    replaced = {
        key: schema.replace_paths(value, arguments[key].hint, find) if key in arguments else value
        for key, value in section.items()
    }
    for key, value in section.items():
        if isinstance(value, dict) and value.get("name") in registry.datasets.names():  # data made of data
            replaced[key] = section_with_paths(value, [registry.datasets.get(value["name"]).target], find)
    return replaced


def with_weights(section: dict[str, Any], checkpoint: str | Path) -> dict[str, Any]:
    """A `backbone` section whose weights come from another file than it says; that they are the same shows
    their fingerprint.
    """
    return {**section, "pretrained": False, "checkpoint": os.path.abspath(checkpoint)}


def without_folders(value: Any) -> Any:
    """A plain value, every absolute path in it its last name: what is published tells of no machine."""
    if isinstance(value, dict):
        return {key: without_folders(one) for key, one in value.items()}
    if isinstance(value, list):
        return [without_folders(one) for one in value]
    return os.path.basename(value) or value if isinstance(value, str) and os.path.isabs(value) else value
