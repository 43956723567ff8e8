"""Two processes train what one trains: every strategy once, in one pair of processes and in float64."""

import fcntl
import json
import os
import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from clprompt import registry
from clprompt.data.loading import rows_of
from clprompt.errors import ProtocolError
from clprompt.training.processes import Part

CRASH = Path(__file__).parents[1] / "_crash"
CASES = runpy.run_path(str(CRASH / "every_strategy.py"))
registry.load_builtin()
NAMES = (*registry.strategies.names(), *CASES["VARIANTS"])


@pytest.fixture(scope="module")
def found(warm_process, tmp_path_factory):
    """How far two processes are from one, by strategy; see `_crash/every_strategy.py`.

    Found once, whichever of the processes that share the tests out is first to ask.
    """
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base
    out = shared / "several_processes.json"
    with (shared / "several_processes.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not out.exists():
            codes = warm_process.several(out, call="every_strategy")
            assert codes == [0, 0], warm_process.said
    return json.loads(out.read_text())


@pytest.mark.parametrize("name", NAMES)
def test_two_processes_give_the_figures_of_one(found, name):
    assert found[name]["terms"] < 1e-12
    assert found[name]["evaluations"]


@pytest.mark.parametrize("name", NAMES)
def test_two_processes_learn_what_one_learns(found, name):
    assert found[name]["counts"] == 0
    assert found[name]["state"] < 1e-8  # Adam divides by gradients, of which some are next to nothing


@pytest.mark.parametrize("name", ["ncm", "slda", "ridge", "statistics"])
def test_class_statistics_are_those_of_one_process(found, name):
    assert found[name]["state"] < 1e-12


@pytest.mark.parametrize("name", NAMES)
def test_both_processes_end_with_the_same_bits(found, name):
    assert found[name]["processes"] == 0


@pytest.mark.parametrize("count", range(1, 12))
def test_parts_of_a_batch_are_the_batch(count):
    rows = [list(range(count))[rows_of(count, part, 4)] for part in range(4)]
    assert all(rows)
    assert sorted({row for part in rows for row in part}) == list(range(count))


def test_what_a_step_hands_on_needs_a_row_for_each_image():
    part = Part(SimpleNamespace(rank=0, count=2), 8)
    with pytest.raises(ProtocolError, match="each tensor needs a row for each image"):
        part.whole({"mass": torch.zeros(5, 3)})
