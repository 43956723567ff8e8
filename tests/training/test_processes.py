"""Two processes train what one trains: every strategy once, in one pair of processes on the CPU."""

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
EXACT, VARIANTS = CASES["EXACT"], CASES["VARIANTS"]
registry.load_builtin()
NAMES = (*registry.strategies.names(), *VARIANTS)


@pytest.fixture(scope="module")
def found(warm_process, tmp_path_factory):
    """How far two processes are from one, by strategy and number format; see `_crash/every_strategy.py`.

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
    assert found[f"{name}, float32"]["terms"] < 1e-5
    assert found[f"{name}, float32"]["evaluations"]


@pytest.mark.parametrize("name", EXACT)
def test_in_float64_two_processes_differ_from_one_by_rounding(found, name):
    of_float64 = found[f"{name}, float64"]
    assert of_float64["evaluations"]
    assert of_float64["counts"] == 0
    assert of_float64["terms"] < 1e-12
    assert of_float64["state"] < 1e-8  # Adam divides by gradients, of which some are next to nothing


@pytest.mark.parametrize("name", NAMES)
def test_counts_are_those_of_one_process(found, name):
    assert found[f"{name}, float32"]["counts"] == 0


@pytest.mark.parametrize("name", ["ncm", "slda", "ridge", "statistics"])
def test_class_statistics_are_those_of_one_process(found, name):
    assert found[f"{name}, float64"]["state"] < 1e-12


@pytest.mark.parametrize("name", NAMES)
def test_both_processes_end_with_the_same_bits(found, name):
    assert found[f"{name}, float32"]["processes"] == 0


@pytest.mark.parametrize("count", range(1, 12))
def test_parts_of_a_batch_are_the_batch(count):
    rows = [list(range(count))[rows_of(count, part, 4)] for part in range(4)]
    assert all(rows)
    assert sorted({row for part in rows for row in part}) == list(range(count))


def test_what_a_step_hands_on_needs_a_row_for_each_image():
    part = Part(SimpleNamespace(rank=0, count=2), 8)
    with pytest.raises(ProtocolError, match="each tensor needs a row for each image"):
        part.whole({"mass": torch.zeros(5, 3)})
