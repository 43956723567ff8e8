"""What the import linter cannot say: see the layers in pyproject.toml for the order of the wings."""

import ast
import itertools
import subprocess
import sys
from pathlib import Path

import pytest

import clprompt

PACKAGE = Path(clprompt.__file__).parent
ROOT = PACKAGE.parent
SHARED = sorted(PACKAGE.rglob("*.py"))
METHODS = [p for p in sorted((ROOT / "strategies").iterdir()) if not p.name.startswith("_")]
STRATEGIES = sorted((ROOT / "strategies").rglob("*.py")) if (ROOT / "strategies").is_dir() else []

pytestmark = pytest.mark.skipif(
    not STRATEGIES, reason="reads the source tree; clprompt is installed without it"
)


def module_of(path: Path) -> str:
    """The dotted name of a source file, as it is installed."""
    relative = path.relative_to(PACKAGE if path.is_relative_to(PACKAGE) else ROOT).with_suffix("")
    return ".".join(["clprompt", *(part for part in relative.parts if part != "__init__")])


def imported(path: Path) -> set[str]:
    """Every module that a file imports, and every name that it imports from one, dotted."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def string_literals(path: Path) -> set[str]:
    """Every string that the code computes with: docstrings are left out."""
    tree = ast.parse(path.read_text())
    documents = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    return {
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documents
    }


def label(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", SHARED, ids=label)
def test_shared_code_imports_no_strategy_and_no_scenario(path: Path) -> None:
    tops = ("clprompt.strategies", "clprompt.scenarios")
    assert not {name for name in imported(path) if any(f"{name}.".startswith(f"{top}.") for top in tops)}


@pytest.mark.parametrize("path", SHARED, ids=label)
def test_shared_code_holds_no_method_name(path: Path) -> None:
    assert not string_literals(path) & {method.stem for method in METHODS}


def test_a_shared_module_serves_two_strategies_or_other_shared_code() -> None:
    users: dict[str, set[str]] = {module_of(path): set() for path in SHARED}
    for path in SHARED + STRATEGIES + sorted((ROOT / "scenarios").rglob("*.py")):
        if path.name == "__init__.py":  # a face hands names on and uses none
            continue
        user = module_of(path)
        if user.startswith("clprompt.strategies."):  # a folder is one method
            user = ".".join(user.split(".")[:3])
        for name in imported(path):
            parts = name.split(".")
            for end in range(2, len(parts) + 1):
                module = ".".join(parts[:end])
                if module in users and module != module_of(path):
                    users[module].add(user)
    by_one_method = {
        module: by
        for module, by in users.items()
        if len(by) == 1 and next(iter(by)).startswith("clprompt.strategies.")
    }
    assert not by_one_method


def test_every_wing_has_a_face_of_names_that_exist() -> None:
    code = """
import importlib, pathlib, clprompt
for folder in sorted(pathlib.Path(clprompt.__file__).parent.iterdir()):
    if (folder / "__init__.py").exists() and folder.name != "assets":
        wing = importlib.import_module(f"clprompt.{folder.name}")
        assert wing.__doc__ and wing.__all__, folder
        for name in wing.__all__:
            assert getattr(wing, name) is not None, (folder, name)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)


def test_no_face_names_something_as_one_of_its_modules_is_named() -> None:
    """Such a name would be the module or the object, whichever was imported first."""
    code = """
import importlib, pathlib, clprompt
root = pathlib.Path(clprompt.__file__).parent
for folder in [root, *sorted(path for path in root.iterdir() if path.is_dir())]:
    if (folder / "__init__.py").exists():
        face = importlib.import_module("clprompt" if folder == root else f"clprompt.{folder.name}")
        modules = {path.stem for path in folder.iterdir()}
        assert not modules & set(getattr(face, "__all__", ())), folder
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)


def test_every_folder_with_modules_is_a_package() -> None:
    tops = ("clprompt", "strategies", "scenarios")
    folders = {path.parent for top in tops for path in (ROOT / top).rglob("*.py")}
    assert not [label(folder) for folder in folders if not (folder / "__init__.py").exists()]


def test_names_that_look_like_methods_are_found_by_the_method_check() -> None:
    """The check above would be empty if strategies were listed wrongly."""
    names = {method.stem for method in METHODS}
    assert {"l2p", "damvp", "multilane", "tcpa"} <= names
    assert not {"base", "__init__"} & names


def test_a_plain_import_loads_neither_torch_nor_avalanche() -> None:
    code = (
        "import sys, clprompt, clprompt.cli, clprompt.system, clprompt.strategies.damvp\n"
        "assert not {'torch', 'avalanche', 'timm'} & sys.modules.keys()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_no_two_modules_of_one_wing_import_each_other() -> None:
    graph = {module_of(path): imported(path) for path in SHARED}
    pairs = itertools.combinations(sorted(graph), 2)
    assert not [(a, b) for a, b in pairs if a in graph[b] and b in graph[a] and not (a in b or b in a)]
