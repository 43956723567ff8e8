"""What type checkers, editors and notebooks see of names that are made on first use."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

import clprompt

ROOT = Path(__file__).parents[2]


def test_the_stubs_of_the_strategies_are_what_their_signatures_say() -> None:
    script = ROOT / "scripts" / "strategy_stubs.py"
    stubs = runpy.run_path(str(script))
    text = stubs["Stubs"]().text()
    assert stubs["HOME"].read_text() == text, f"run python {script.relative_to(ROOT)}"
    assert "class DualPrompt(PromptStrategy):" in text
    assert "        e_length: int = ...," in text


def test_strategies_are_listed_for_completion() -> None:
    import clprompt.strategies

    listed = dir(clprompt.strategies)
    assert {"DualPrompt", "MultiLane", "PromptStrategy"} <= set(listed)
    assert not {"Any", "annotations", "importlib"} & set(listed)
    assert all(hasattr(clprompt.strategies, name) for name in ("MultiLane", "COMMANDS"))


def test_only_public_names_and_modules_are_listed_of_the_package() -> None:
    names = {name for name in dir(clprompt) if not name.startswith("__")}
    modules = {name for name in names if f"clprompt.{name}" in sys.modules}
    assert names - modules == set(clprompt.__all__) - {"__version__"} - modules


def test_a_mistyped_strategy_is_told_the_nearest_name() -> None:
    with pytest.raises(ImportError, match='has no MULTILANE; did you mean "MultiLane"'):
        from clprompt.strategies import MULTILANE  # noqa: F401
    import clprompt.strategies

    assert not hasattr(clprompt.strategies, "nothing_of_the_kind")
    from clprompt.strategies import l2p

    assert l2p.L2PModel
