"""What the import linter cannot say: see the layers in pyproject.toml for the order of the wings."""

import ast
import importlib
import itertools
import subprocess
import sys
from pathlib import Path

import pytest

import clprompt

PACKAGE = Path(clprompt.__file__).parent
ROOT = PACKAGE.parent
SHARED = sorted(PACKAGE.rglob("*.py"))
STRATEGIES = sorted((ROOT / "strategies").rglob("*.py"))
METHODS = [path for path in sorted((ROOT / "strategies").glob("*")) if not path.name.startswith("_")]
WINGS = [path.parent for path in sorted(PACKAGE.glob("*/__init__.py")) if path.parent.name != "assets"]

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


#: Strategies that are a classifier on frozen features and nothing else: any method may have it by that name,
#: or be compared with it.
CLASSIFIERS = {"ncm", "ridge", "zero_shot"}


#: A strategy whose name is a common word as well: what is trained on several data sets together.
WORDS = {"joint"}


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
    assert not string_literals(path) & {method.stem for method in METHODS} - CLASSIFIERS - WORDS


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


@pytest.mark.parametrize("folder", WINGS, ids=label)
def test_every_wing_has_a_face_of_names_that_exist(folder: Path) -> None:
    face = importlib.import_module(module_of(folder / "__init__.py"))
    assert face.__doc__
    assert face.__all__
    assert all(getattr(face, name) is not None for name in face.__all__)


@pytest.mark.parametrize("folder", [PACKAGE, *WINGS], ids=label)
def test_no_face_names_something_as_one_of_its_modules_is_named(folder: Path) -> None:
    """Such a name would be the module or the object, whichever was imported first."""
    face = importlib.import_module(module_of(folder / "__init__.py"))
    assert not {path.stem for path in folder.iterdir()} & set(face.__all__)


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
