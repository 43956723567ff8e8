"""The structure of the installed package: wings, their lines, and how many floors of imports there are.

    python scripts/structure.py  # needs import-linter's graph (pip install -e ".[dev]") and a wheel installed

A module stands on the floor above the highest one that it imports; what imports nothing of ours stands on the
first. An editable install hides the folders that lie elsewhere in the repository, so the wheel is asked.
Imports for type checkers alone do not count.
"""

from __future__ import annotations

import importlib.util
from collections import Counter, defaultdict
from functools import cache
from pathlib import Path

import grimp

PACKAGE = "clprompt"


def main() -> None:
    """Print a line per wing and the totals."""
    graph = grimp.build_graph(PACKAGE, exclude_type_checking_imports=True, cache_dir=None)
    spec = importlib.util.find_spec(PACKAGE)
    assert spec is not None
    assert spec.origin is not None
    root = Path(spec.origin).parent

    def below(module: str) -> set[str]:
        return {name for name in graph.find_modules_directly_imported_by(module) if name != PACKAGE}

    @cache
    def floor(module: str) -> int:
        return 1 + max(map(floor, below(module)), default=0)

    def room(module: str) -> str:
        """The wing of a module, or the ground file that it is."""
        return ".".join(module.split(".")[:2])

    lines: Counter[str] = Counter()
    modules: dict[str, list[str]] = defaultdict(list)
    for module in sorted(graph.modules - {PACKAGE}):
        path = root.joinpath(*module.split(".")[1:])
        file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        lines[room(module)] += len(file.read_text(encoding="utf-8").splitlines())
        modules[room(module)].append(module)
    arrows = sum(len(below(module)) for module in graph.modules)
    between = {
        (room(module), room(other))
        for module in graph.modules
        for other in below(module)
        if module != PACKAGE
    }
    print(f"{'room':28}{'modules':>8}{'lines':>8}{'top floor':>11}")
    for name in sorted(modules):
        print(f"{name:28}{len(modules[name]):8}{lines[name]:8}{max(map(floor, modules[name])):11}")
    floors = max(floor(module) for module in graph.modules - {PACKAGE})
    rooms = sum(a != b for a, b in between)
    print(
        f"{len(modules)} rooms, {rooms} arrows between them; "
        f"{len(graph.modules) - 1} modules, {arrows} imports, {floors} floors"
    )


if __name__ == "__main__":
    main()
