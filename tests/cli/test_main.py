"""The command line: help without torch, one line for a mistake, runs that can be interrupted and resumed."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image

from clprompt.cli.main import main
from clprompt.system import progress
from clprompt.system.files import FolderLock

TINY = [
    "backbone={name: vit_tiny_patch16_224, embed_dim: 16, depth: 2, num_heads: 2, img_size: 32}",
    "scenario.experiences=2",
    "data.test_fraction=0.8",
    "training.train_epochs=1",
]
pytestmark = pytest.mark.usefixtures("same_picture")

COMMANDS = ["run", "resume", "meta-init", "report", "predict", "explain", "list", "config"]


def tiny(*overrides: str) -> list[str]:
    """`clprompt run` of a second: a random backbone, two experiences, one strategy."""
    return ["run", "quickstart", *TINY, "strategy=linear_probe", "compare=[]", *overrides]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a complete run."""
    runs = tmp_path_factory.mktemp("runs")
    assert main(tiny(f"runs_dir={runs}")) == 0
    (folder,) = (runs / "quickstart").iterdir()
    return folder


def test_a_backbone_of_rotary_positions_runs_from_a_file_of_weights_to_predictions(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import timm

    shape = {"embed_dim": 16, "depth": 2, "num_heads": 2, "img_size": 32}
    vit = timm.create_model("vit_small_patch16_dinov3", num_classes=0, **shape)
    torch.save(vit.state_dict(), tmp_path / "weights.pth")
    section = {"name": "vit_small_patch16_dinov3", "checkpoint": str(tmp_path / "weights.pth"), **shape}
    strategy = "strategy={name: vpt_deep, length: 2}"
    assert main(tiny(f"backbone={json.dumps(section)}", strategy, f"runs_dir={tmp_path / 'runs'}")) == 0
    (folder,) = (tmp_path / "runs" / "quickstart").iterdir()
    assert json.loads((folder / "environment.json").read_text())["backbone"]["sha256"]
    Image.new("L", (16, 16), 200).save(tmp_path / "image.png")
    capsys.readouterr()
    assert main(["predict", str(folder), str(tmp_path / "image.png")]) == 0
    assert "image.png" in capsys.readouterr().out


class StopsAt(progress.Progress):
    """A display that sends a signal to its own process at the n-th training step."""

    def __init__(self, step: int, number: int) -> None:
        self.left, self.number = step, number

    def step(self) -> None:
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), self.number)


@pytest.fixture
def outsider(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Modules of somebody else in the current folder."""
    from clprompt import registry

    before = dict(registry.scenarios._entries)
    (tmp_path / "my_stream.py").write_text(
        "import numpy as np\n"
        "from clprompt.registry import scenarios\n"
        "from clprompt.data.plan import Plan\n\n\n"
        "@scenarios.register('my-stream', year=2031)\n"
        "def my_stream(targets, *, seed: int = 0, pieces: int = 3, breaks: bool = False):\n"
        '    """A stream of my own."""\n'
        "    if breaks:\n"
        "        raise ZeroDivisionError('a bug')\n"
        "    return Plan((np.arange(len(targets)),), (tuple(range(10)),), 10)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield
    registry.scenarios._entries.clear()
    registry.scenarios._entries.update(before)
    sys.modules.pop("my_stream", None)


# ------------------------------------------------------------------------------------------------ help


@pytest.mark.parametrize("command", [[], *[[name] for name in COMMANDS]], ids=["", *COMMANDS])
def test_help_loads_nothing_heavy(command: list[str]) -> None:
    code = (
        "import sys\n"
        "from clprompt.cli.main import main\n"
        f"assert main({[*command, '--help']}) == 0\n"
        "heavy = {'torch', 'torchvision', 'timm', 'avalanche', 'matplotlib', 'numpy', 'omegaconf', 'rich'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "Usage: clprompt" in done.stdout


def test_the_command_alone_shows_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    out = capsys.readouterr().out
    assert all(f"\n  {command} " in out for command in COMMANDS)


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    from importlib.metadata import version

    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"clprompt {version('clprompt')}\n"


#: Commands, by what they take long to import; each line is the exit code and the words.
LOADING = [
    (
        {"torch", "timm", "torchvision", "avalanche", "matplotlib"},
        "0 list configs",
        "0 list studies",
        "2 run nowhere",
        "2 run quickstart training.learning_rate=1",
        "2 run quickstart sead=1",
    ),
    ({"torch", "timm", "torchvision", "avalanche"}, "0 report finished"),
    (
        {"timm", "torchvision", "avalanche"},
        "0 list",
        "0 list strategies",
        "0 list scenarios",
        "0 list datasets",
        "0 config quickstart",
        "0 config quickstart 'backbone={name: clip, model: ViT-B-32, pretrained: false}'",
        "0 config dualprompt-split-cifar100 --against released",
        "0 stream quickstart",
        "2 run quickstart strategy=dualprompt strategy.lenght=3",
        "2 run quickstart strategy=nowhere",
        "2 run quickstart scenario.pieces=3",
        "0 study siblurry-digits --dry-run",
    ),
]


def test_what_reads_configurations_and_records_loads_neither_timm_nor_torchvision(
    finished: Path, tmp_path: Path
) -> None:
    shutil.copytree(finished, tmp_path / "finished")
    code = (
        "import shlex, sys\n"
        "from clprompt.cli.main import main, _complete_config, _complete_override\n"
        "assert 'quickstart' in [item.value for item in _complete_config(None, None, 'quick')]\n"
        "assert [item.value for item in _complete_override(None, None, 'training.lr')] == ['training.lr=']\n"
        f"for absent, *lines in {LOADING!r}:\n"
        "    for line in lines:\n"
        "        status, *words = shlex.split(line)\n"
        "        assert main(words) == int(status), line\n"
        "        assert not absent & set(sys.modules), (line, absent & set(sys.modules))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert "\nquickstart  " in f"\n{done.stdout}"


# ----------------------------------------------------------------------------------------------- list, config


def test_list_shows_strategies_with_year_boundaries_and_paper(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "strategies"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["name", "year", "boundaries", "paper"]
    rows = {line.split()[0]: line for line in lines[1:]}
    assert "2022" in rows["dualprompt"]
    assert "required" in rows["dualprompt"]
    assert " unused " in rows["ncm"]


def test_list_without_a_kind_shows_every_kind(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    out = capsys.readouterr().out
    for title, name in [
        ("strategies:", "dualprompt"),
        ("scenarios:", "split"),
        ("datasets:", "digits"),
        ("configs:", "quickstart"),
    ]:
        assert f"\n{name}" in out[out.index(title) :]


def test_config_prints_what_run_would_use_and_runs_nothing(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["config", "quickstart", "training.lr=1e-3", "seed=0,1"]) == 0
    text = capsys.readouterr().out
    assert "  lr: 0.001\n" in text
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "again.yaml").write_text(text)
    assert main(["config", "again.yaml"]) == 0
    assert capsys.readouterr().out == text


# ------------------------------------------------------------------------------------------------ run, resume


def test_a_run_ends_with_its_results(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    runs = tmp_path / "my runs"
    assert main([*tiny(f"runs_dir={runs}", "seed=0,1"), "strategy=ncm"]) == 0
    out, err = capsys.readouterr()
    folders = sorted((runs / "quickstart").glob("*-seed?-*"))
    assert len(folders) == 2
    assert all(str(folder) in out for folder in folders)
    assert out.endswith(f"\ntensorboard --logdir '{runs / 'quickstart'}'\n")
    assert "average accuracy" in out
    assert "ncm, seed 1" in out
    mean = next(line for line in out.splitlines() if line.startswith("ncm") and "±" in line)
    assert mean.split()[1] == "2"
    assert "\r" not in err
    assert "experience 2/2, epoch 1/1: " in err


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_prints_the_line_that_resumes_to_the_same_records(
    number: int,
    code: int,
    finished: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(progress, "create", lambda: StopsAt(3, number))
        assert main(tiny(f"runs_dir={tmp_path}")) == code
    out, err = capsys.readouterr()
    (folder,) = (tmp_path / "quickstart").iterdir()
    assert err == f"interrupted; continue with: clprompt resume {folder}\n"
    assert out == ""
    assert not (folder / "results.json").exists()

    assert main(["resume", str(folder)]) == 0
    assert f"tensorboard --logdir {folder.parent}" in capsys.readouterr().out
    assert (folder / "metrics.jsonl").read_bytes() == (finished / "metrics.jsonl").read_bytes()


def test_all_runs_that_a_signal_left_undone_are_in_the_resume_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(progress, "create", lambda: StopsAt(2, signal.SIGINT))
        assert main(tiny(f"runs_dir={tmp_path}", "compare=[ncm]")) == 130
        line = capsys.readouterr().err.strip()
        folders = line.removeprefix("interrupted; continue with: clprompt resume ").split()
        assert sorted(folders) == sorted(map(str, (tmp_path / "quickstart").iterdir()))
        assert main(["resume", *folders]) == 130  # stopped again: both are still to do
        assert capsys.readouterr().err.strip() == line
    assert main(["resume", *folders]) == 0
    assert all((Path(folder) / "results.json").exists() for folder in folders)


def test_runs_that_are_done_are_shown_when_a_later_one_is_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = tiny(f"runs_dir={tmp_path}", "strategy=ncm", "compare=[linear_probe]", "data.test_fraction=0.9")
    with monkeypatch.context() as patch:
        patch.setattr(progress, "create", lambda: StopsAt(9, signal.SIGINT))  # the first run has 6 steps
        assert main(words) == 130
    out, err = capsys.readouterr()
    left, done = sorted((tmp_path / "quickstart").iterdir())
    assert out.startswith("ncm\n===\n")
    assert str(done) in out
    assert err == f"interrupted; continue with: clprompt resume {left}\n"


@pytest.mark.usefixtures("outsider")
def test_a_run_that_fails_is_told_in_one_line_at_the_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "my_method.py").write_text(
        "from clprompt.errors import DataError\n"
        "from clprompt.registry import strategies\n"
        "from clprompt.strategies.ncm import NCMModel\n\n\n"
        "@strategies.register('my-method')\n"
        "class Mine(NCMModel):\n"
        "    def observe(self, targets):\n"
        "        raise DataError('images/7.png cannot be read')\n"
    )
    from clprompt import registry

    words = tiny("runs_dir=runs", "strategy=my-method", "compare=[ncm]", "seed=0,1")
    try:
        assert main(["--import", "my_method", *words]) == 2
        out, err = capsys.readouterr()
        failed = sorted(Path("runs/quickstart").glob("*-my?method"))
        whole = sorted(Path("runs/quickstart").glob("*-seed?-ncm"))
        assert err.splitlines()[-1] == (
            "clprompt: error: 2 of 4 runs failed; "
            + ", ".join(map(str, failed))
            + ": images/7.png cannot be read"
        )
        assert all(str(folder) in out for folder in whole)
        assert all((folder / "results.json").exists() for folder in whole)

        (whole[0] / "results.json").unlink()
        assert main(["resume", *map(str, [failed[0], whole[0], whole[1]])]) == 2
        out, err = capsys.readouterr()
        assert f"2 of 3 runs failed; {failed[0]}: images/7.png" in err.splitlines()[-1]
        assert f"{whole[1]} is complete" in err.splitlines()[-1]
        assert str(whole[0]) in out
    finally:
        registry.strategies._entries.pop("my_method")
        sys.modules.pop("my_method", None)


def test_the_cost_of_a_resumed_run_counts_every_experience(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(progress, "create", lambda: StopsAt(3, signal.SIGINT))
        assert main(tiny(f"runs_dir={tmp_path}")) == 130
    (folder,) = (tmp_path / "quickstart").iterdir()
    before = torch.load(folder / "checkpoint" / "state.pt", weights_only=True)["experience_seconds"]
    assert main(["resume", str(folder)]) == 0
    cost = json.loads((folder / "results.json").read_text())["cost"]
    assert len(cost["experience_seconds"]) == 2
    assert cost["experience_seconds"][0] > before[0] > 0
    assert sum(cost["experience_seconds"]) <= cost["seconds"]
    assert cost["method_parameters"] == 10 * 16 + 10  # the head


def test_the_checkpoint_of_another_configuration_names_the_keys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(progress, "create", lambda: StopsAt(2, signal.SIGINT))
        assert main(tiny(f"runs_dir={tmp_path}")) == 130
    (folder,) = (tmp_path / "quickstart").iterdir()
    file = folder / "config.yaml"
    file.write_text(
        file.read_text().replace("lr: 0.01", "lr: 0.04").replace("fraction: 0.8", "fraction: 0.7")
    )
    capsys.readouterr()
    assert main(["resume", str(folder)]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "different: data.test_fraction, training.lr" in err


def test_a_complete_run_is_refused(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["resume", str(finished)]) == 2
    assert f"clprompt: error: {finished} is complete" in capsys.readouterr().err


def test_a_locked_run_is_refused(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = shutil.copytree(finished, tmp_path / "copy")
    (copy / "results.json").unlink()
    with FolderLock(copy):
        assert main(["resume", str(copy)]) == 2
    assert "in use by another process" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------ outsiders


@pytest.mark.usefixtures("outsider")
@pytest.mark.parametrize("module", ["my_stream", "my_stream.py"])
def test_an_outsiders_module_counts_wherever_the_option_stands(
    module: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["list", "scenarios", "--import", module]) == 0
    assert re.search("^my-stream +A stream of my own.$", capsys.readouterr().out, re.MULTILINE)
    assert main(["--import", module, "config", "quickstart", "scenario=my_stream"]) == 0
    assert "  pieces: 3\n" in capsys.readouterr().out


@pytest.mark.usefixtures("outsider")
def test_the_resume_line_repeats_the_imports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [word for word in tiny("runs_dir=runs", "scenario=my-stream") if not word.startswith("scenario.")]
    monkeypatch.setattr(progress, "create", lambda: StopsAt(1, signal.SIGINT))
    assert main([*words, "--import", "my_stream"]) == 130
    assert "clprompt resume --import my_stream runs/quickstart/" in capsys.readouterr().err


@pytest.mark.usefixtures("outsider")
def test_a_bug_that_is_no_mistake_of_the_user_keeps_its_traceback(tmp_path: Path) -> None:
    words = ["--import", "my_stream", "run", "quickstart", "scenario={name: my-stream, breaks: true}"]
    with pytest.raises(ZeroDivisionError, match="a bug"):
        main(words)


# ------------------------------------------------------------------------------------------- the real command


def test_the_real_command_stops_at_sigterm_and_resumes(tmp_path: Path) -> None:
    where = shutil.which("clprompt", path=str(Path(sys.executable).parent)) or "clprompt"
    words = [where, *tiny(f"runs_dir={tmp_path}", "training.train_epochs=8")]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("experience 1/2, epoch 1/8"):
                process.send_signal(signal.SIGTERM)
                break
        rest = process.stderr.read()
        assert process.wait(timeout=60) == 143
    (folder,) = (tmp_path / "quickstart").iterdir()
    assert rest.splitlines()[-1] == f"interrupted; continue with: clprompt resume {folder}"
    assert not (folder / "results.json").exists()
    assert main(["resume", str(folder)]) == 0
    assert json.loads((folder / "results.json").read_text())["strategy"] == "linear_probe"
