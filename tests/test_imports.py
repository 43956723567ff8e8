"""Imports point one way, and shared code knows no method by name."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import clprompt

PACKAGE = Path(clprompt.__file__).parent
ROOT = PACKAGE.parent
SHARED = sorted(PACKAGE.glob("*.py"))
STRATEGIES = sorted((ROOT / "strategies").glob("*.py"))
# what stands above the strategies and scenarios, and may know them (through the registry)
ABOVE = {"cli", "__main__"}

pytestmark = pytest.mark.skipif(
    not STRATEGIES, reason="reads the source tree; clprompt is installed without it"
)


def imported(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


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


@pytest.mark.parametrize("path", SHARED, ids=lambda p: p.name)
def test_mechanics_import_no_strategy_and_no_scenario(path: Path) -> None:
    wrong = {
        name for name in imported(path) if name.startswith(("clprompt.strategies.", "clprompt.scenarios."))
    }
    assert not wrong


@pytest.mark.parametrize("path", [p for p in SHARED if p.stem not in ABOVE], ids=lambda p: p.name)
def test_nothing_below_the_command_line_imports_it(path: Path) -> None:
    assert not imported(path) & {"clprompt.cli"}


def test_the_loop_and_what_it_stands_on_know_no_experiment() -> None:
    low = (
        "attention",
        "backbone",
        "model",
        "engine",
        "steps",
        "optim",
        "heads",
        "losses",
        "prompts",
        "evaluation",
    )
    for name in low:
        assert not imported(PACKAGE / f"{name}.py") & {
            "clprompt.experiment",
            "clprompt.runfolder",
            "clprompt.tracking",
        }


def test_only_the_avalanche_ends_import_avalanche() -> None:
    allowed = {"strategies/base.py", "strategies/_memory.py"}
    for path in SHARED + STRATEGIES:
        if any(name.split(".")[0] == "avalanche" for name in imported(path)):
            assert path.relative_to(ROOT).as_posix() in allowed


@pytest.mark.parametrize("path", SHARED, ids=lambda p: p.name)
def test_shared_code_holds_no_method_name(path: Path) -> None:
    methods = {p.stem for p in STRATEGIES if not p.stem.startswith("_") and p.stem != "base"}
    assert not string_literals(path) & methods


def test_models_work_without_avalanche() -> None:
    code = (
        "import sys; sys.modules['avalanche'] = None\n"
        "from clprompt.strategies.dualprompt import DualPromptModel\n"
        "from clprompt.registry import strategies\n"
        "assert 'dualprompt' in strategies.names()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
