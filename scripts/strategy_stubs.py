"""Write strategies/__init__.pyi: what type checkers and editors know of the strategies made on first use.

python scripts/strategy_stubs.py           # tests/ground/test_stubs.py fails where this would change it
"""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

from clprompt import registry
from clprompt.avalanche.strategy import PromptStrategy
from clprompt.prompting.build import serving
from clprompt.training.settings import Factory, Training

HOME = Path(__file__).parents[1] / "strategies" / "__init__.pyi"
HEAD = """\
# Written by scripts/strategy_stubs.py from the signatures of the registered models.
{imports}

COMMANDS: dict[str, str]

def __getattr__(name: str) -> Any: ...  # strategies that other packages register
"""


class Stubs:
    """The stubs of all built-in strategies.

    Attributes:
        imports: names to import, by module.
    """

    def __init__(self) -> None:
        self.imports: dict[str, set[str]] = {
            "typing": {"Any"},
            "clprompt.avalanche.strategy": {"PromptStrategy"},
        }

    def text(self) -> str:
        """The whole file."""
        entries = [registry.strategies.get(name) for name in registry.strategies.names()]
        own = [entry.target for entry in entries if entry.module.startswith("clprompt.")]
        classes = "".join(self._strategy(target) for target in sorted(own, key=lambda t: t.__name__))
        order = sorted(self.imports, key=lambda module: (module.startswith("clprompt"), module))
        lines = []
        for module in order:
            names = sorted(self.imports[module])
            again = module == "clprompt.avalanche.strategy"
            lines.append(f"from {module} import " + ", ".join(f"{n} as {n}" if again else n for n in names))
        first = sum(not module.startswith("clprompt") for module in order)
        lines.insert(first, "")
        return HEAD.format(imports="\n".join(lines)) + classes

    def _strategy(self, model: Any) -> str:
        takers = [model.__init__, *(short.target for short in serving(model))]
        found: dict[str, str] = {}
        for taker in [PromptStrategy.__init__, *takers]:
            found |= self._parameters(taker)
        hints = typing.get_type_hints(Training)
        found |= {f.name: f"{self._spelled(hints[f.name])} = ..." for f in fields(Training) if f.init}
        for name in ("self", "model", "fields"):
            found.pop(name, None)
        backbone = found.pop("backbone")
        lines = [f"        backbone: {backbone},", *(f"        {n}: {kind}," for n, kind in found.items())]
        name = model.__name__.removesuffix("Model")
        self.imports.setdefault(model.__module__, set()).add(model.__name__)
        return "\n".join(
            ["", f"class {name}(PromptStrategy):", f"    model: {model.__name__}", ""]
            + ["    def __init__(", "        self,", "        *,"]
            + lines
            + ["    ) -> None: ...", ""]
        )

    def _parameters(self, taker: Callable[..., Any]) -> dict[str, str]:
        """The arguments of a function, each with type and whether it has a default."""
        plain = inspect.unwrap(taker)
        hints = typing.get_type_hints(plain)
        return {
            name: self._spelled(hints.get(name, Any)) + ("" if p.default is p.empty else " = ...")
            for name, p in inspect.signature(plain).parameters.items()
        }

    def _spelled(self, hint: Any) -> str:
        """A type as a stub writes it, its names imported."""
        if hint is None or hint is type(None):
            return "None"
        if hint is ...:
            return "..."
        if hint is Factory:
            return f"str | {self._spelled(Callable[..., Any])}"
        origin, arguments = typing.get_origin(hint), typing.get_args(hint)
        if origin is typing.Literal:
            return f"{self._named(hint)}[{', '.join(map(repr, arguments))}]"
        if origin in (typing.Union, types.UnionType):
            return " | ".join(dict.fromkeys(map(self._spelled, arguments)))
        if origin is not None:
            inner = ", ".join(
                f"[{', '.join(map(self._spelled, a))}]" if isinstance(a, list) else self._spelled(a)
                for a in arguments
            )
            return f"{self._named(origin)}[{inner}]"
        return self._named(hint)

    def _named(self, kind: Any) -> str:
        if typing.get_origin(kind) is typing.Literal:
            kind = typing.Literal
        module = kind.__module__
        name = getattr(kind, "__name__", None) or kind._name
        if module != "builtins":
            self.imports.setdefault(module, set()).add(name)
        return name


if __name__ == "__main__":
    HOME.write_text(Stubs().text())
    print(HOME)
