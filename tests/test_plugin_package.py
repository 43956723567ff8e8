"""The package in examples/: built, installed, found by its entry points, run from its configuration."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from clprompt import registry, testing
from clprompt.cli.main import main

PACKAGE = Path(__file__).parents[1] / "examples" / "plugin_package"
NAMES = {
    "strategies": {"input_prompt", "scaled_probe"},
    "scenarios": {"drip"},
    "datasets": {"stripes"},
    "plugins": {"small_logits"},
}

pytest.importorskip("build")
pytestmark = pytest.mark.usefixtures("same_picture")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A wheel of the package, unpacked where this process looks for packages; taken back afterwards."""
    copy, site = tmp_path_factory.mktemp("source") / "package", tmp_path_factory.mktemp("site")
    shutil.copytree(PACKAGE, copy)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(site), str(copy)]
    made = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert made.returncode == 0, made.stdout + made.stderr
    (wheel,) = site.glob("*.whl")
    shutil.unpack_archive(wheel, site, "zip")
    registries = list(registry.ENTRY_POINTS.values())
    registry.load_builtin()
    before = [dict(known._entries) for known in registries]
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(site)
        patch.setattr(registry, "_loaded", False)
        yield
    for known, entries in zip(registries, before, strict=True):
        known._entries.clear()
        known._entries.update(entries)
    for name in [name for name in sys.modules if name.partition(".")[0] == "clprompt_drip"]:
        del sys.modules[name]


@pytest.mark.usefixtures("installed")
def test_an_installed_package_is_found_by_its_entry_points() -> None:
    for kind, names in NAMES.items():
        known = getattr(registry, kind)
        assert names <= set(known.names())
        assert all(known.get(name).module.startswith("clprompt_drip.") for name in names)


@pytest.mark.usefixtures("installed")
def test_its_configuration_runs_with_both_methods(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", str(PACKAGE / "drip.yaml"), f"runs_dir={tmp_path}"]) == 0
    printed = capsys.readouterr().out
    assert "input_prompt" in printed
    assert "scaled_probe" in printed
    runs = list((tmp_path / "drip").iterdir())
    assert len(runs) == 2
    of_input_prompt = next(run for run in runs if "input_prompt" in run.name)
    steps = (of_input_prompt / "metrics.jsonl").read_text().splitlines()
    assert "small_logits" in json.loads(steps[0])["terms"]


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("name", sorted(NAMES["strategies"]))
def test_its_methods_keep_their_promises(name: str) -> None:
    bench = testing.Workbench(registry.strategies.get(name).target)
    testing.check_declarations(bench)
    testing.check_everything_is_in_the_state(bench)
    testing.check_learning(bench)
