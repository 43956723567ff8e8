"""A user's mistake: one line on stderr that says what was wrong, where, and what is allowed; exit code 2."""

from __future__ import annotations

import contextlib
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

from clprompt.cli import listing
from clprompt.cli.main import main
from clprompt.errors import ClpromptError
from clprompt.system import checkpoint as state


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder, with modules and configurations that are wrong in some way."""
    (tmp_path / "empty.yaml").write_text("")
    (tmp_path / "list.yaml").write_text("- 1\n")
    (tmp_path / "broken.yaml").write_text("seed: 0\ndata: [}\n")
    (tmp_path / "broken.py").write_text("1 / 0\n")
    (tmp_path / "thief.py").write_text(
        "from clprompt.registry import scenarios\n\n\n@scenarios.register('split')\ndef mine(targets): ...\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield tmp_path
    for module in ("broken", "thief"):
        sys.modules.pop(module, None)


MISTAKES: list[tuple[str, str]] = [
    ("rum", "No such command"),
    ("run", "Missing argument 'CONFIG'"),
    ("run --fast quickstart", "No such option"),
    ("resume", "Missing argument 'RUN...'"),
    (
        "list strategy",
        'nothing is called "strategy"; did you mean "strategies"?; clprompt list shows all names',
    ),
    ("list strategies now", "unexpected extra argument"),
    ("config", "Missing argument 'CONFIG'"),
    ("--import", "requires an argument"),
    ("list --import no_such_module", "--import no_such_module: ModuleNotFoundError: No module named"),
    ("list --import no_such_file.py", "--import no_such_file.py: FileNotFoundError"),
    ("list --import broken", "--import broken: ZeroDivisionError: division by zero"),
    ("list --import thief", 'scenario "split" is registered twice: by clprompt.scenarios.split.'),
    ("run quikstart", 'no configuration is called "quikstart"; did you mean "quickstart"?'),
    ("run nowhere.yaml", "nowhere.yaml: there is no such file"),
    ("run ./nowhere/quickstart", "nowhere/quickstart: there is no such file"),
    ("run empty.yaml", "empty.yaml: the file is empty"),
    ("run list.yaml", "list.yaml: must hold a mapping of sections, not a list"),
    ("run broken.yaml", "broken.yaml, line 2: "),
    ("run quickstart training", '"training" is not an override; write key=value or section.key=value'),
    ("run quickstart training.lr=[", "is not valid YAML"),
    ("run quickstart trainig.lr=1", 'unknown key "trainig"; did you mean "training"?'),
    ("run quickstart training.learning_rate=1", '"training.learning_rate"; did you mean "lr"?; allowed: '),
    ("run quickstart training.batch_size=8", '"training.batch_size"; did you mean "train_mb_size"?'),
    (
        "run quickstart compare=[{name: ncm, training: {epochs: 1}}]",
        'unknown key "compare.0.training.epochs"; did you mean "train_epochs"?',
    ),
    ("run quickstart lr=0.1", 'unknown key "lr"; did you mean "training.lr"?'),
    ("run quickstart batch_size=8", 'unknown key "batch_size"; did you mean "training.train_mb_size"?'),
    ("run quickstart e_length=4", 'unknown key "e_length"; did you mean "strategy.e_length"?'),
    ("run quickstart experiences=2", 'unknown key "experiences"; did you mean "scenario.experiences"?'),
    ("run quickstart strategy=mvp,l2p", "by compare: strategy=mvp compare=l2p"),
    (
        "run quickstart data={name: imagefolder, on_bad_image: skip} data.name=cifar100",
        "; write data=cifar100 to leave the keys of the one before behind",
    ),
    ("run quickstart training.lr=fast", 'training.lr must be float (above 0), got "fast"'),
    ("run quickstart training.train_mb_size=0", "training.train_mb_size must be at least 1, got 0"),
    ("run quickstart training.train_epochs=-1", "training.train_epochs must be at least 0, got -1"),
    ("run quickstart training.optimizer=adagrad", 'training.optimizer must be one of "adam", "adamw", "sgd"'),
    ("run quickstart online.iterations=0", "online.iterations must be at least 1, got 0"),
    ("run quickstart strategy.statistics=qda", 'strategy.statistics must be one of "lda", "ncm", "ridge"'),
    (
        "run quickstart strategy.statistics=lda strategy.statistics_shrinkage=1.5",
        "strategy.statistics_shrinkage must be at least 0 and at most 1, got 1.5",
    ),
    ("run quickstart strategy.statistics_features=frozen", "statistics_features belongs to statistics"),
    ("run quickstart strategy=joint strategy.statistics=lda", "strategy.statistics: strategy joint has no"),
    ("run quickstart strategy=ncm strategy.statistics=lda", "strategy.statistics: strategy ncm has no"),
    (
        "run quickstart strategy=multilane strategy.statistics=lda compare=[]",
        "statistics_features must be frozen for MultiLaneModel",
    ),
    (
        "run quickstart strategy=vpt_deep strategy.boundary_free=true strategy.statistics=lda"
        " online={} training.train_epochs=1 training.mixup=0.5 compare=[]",
        "training.mixup must be 0: the method or a plug-in counts features",
    ),
    ("run quickstart strategy.train_experiences=1 compare=[]", "needs a head that does without training"),
    ("run quickstart strategy.train_experiences=0", "strategy.train_experiences must be at least 1, got 0"),
    (
        "run quickstart strategy=linear_probe strategy.mask=seen strategy.statistics=lda"
        " strategy.train_experiences=1 online={} training.train_epochs=1 compare=[]",
        "train_experiences=1 needs to know of experiences, of which LinearProbeModel is never told",
    ),
    (
        "run quickstart strategy=vpt_deep strategy.boundary_free=true strategy.statistics=lda"
        " online={} training.train_epochs=1 memory={} compare=[]",
        "memory is refused: the method or a plug-in counts what is received",
    ),
    ("run quickstart retrieval=maybe", "retrieval must be bool, got"),
    (
        "run quickstart-multilabel retrieval=true",
        "retrieval needs one label per image, got multi-hot targets",
    ),
    (
        "run quickstart data={name: synthetic, classes: 10, test_per_class: 1} retrieval=true",
        "retrieval needs a second test image of a class, but each of 10 is the only one of its class",
    ),
    ("run quickstart precision=fp8", 'precision must be one of "float32", "bf16", "fp16", got "fp8"'),
    ("run quickstart seed=one", 'seed must be int or list of int, got "one"'),
    ("run quickstart name=../up", 'name must be the plain name of a folder, got "../up"'),
    ("run quickstart strategy=dual-promt", 'unknown strategy "dual-promt"; did you mean "dualprompt"?'),
    ("run quickstart strategy.e_lenght=4", 'unknown key "strategy.e_lenght"; did you mean "e_length"?'),
    ("run quickstart strategy.e_length=abc", 'strategy.e_length must be int (at least 1), got "abc"'),
    ("run quickstart strategy.e_length=0", "strategy.e_length must be at least 1, got 0"),
    ("run quickstart strategy.e_layers=[9]", "block 9 "),
    ("run quickstart strategy.seed=3", 'unknown key "strategy.seed"'),
    ("run quickstart compare=[ncn]", 'compare.0.name: unknown strategy "ncn"; did you mean "ncm"?'),
    (
        "run quickstart compare=[{name: ncm, training: {lr: -1}}]",
        "compare.0.training.lr must be above 0, got -1",
    ),
    ("run quickstart scenario=splits", 'unknown scenario "splits"; did you mean "split"?'),
    ("run quickstart scenario.experiences=11", "the data has 10 classes, got 11"),
    ("run quickstart scenario.experiences=0", "scenario.experiences must be at least 1, got 0"),
    ("run quickstart data=digit", 'unknown data set "digit"; did you mean "digits"?'),
    ("run quickstart data.test_fraction=2", "data.test_fraction must be above 0 and below 1, got 2"),
    ("run quickstart device=gpu", 'device "gpu" is not there'),
    ("run quickstart device=cuda:99", 'device "cuda:99" is not there'),
    ("run quickstart backbone=vit_nonsense", 'backbone "vit_nonsense" is neither a timm model nor'),
    ("run quickstart backbone=resnet18", "backbone resnet18 (ResNet) is not supported"),
    ("run quickstart backbone.depth=7", "it takes no depth"),
    ("run quickstart backbone.pretrained=perhaps", 'backbone.pretrained must be bool, got "perhaps"'),
    (
        "run quickstart online={} strategy={name: dualprompt, boundary_free: false}",
        "needs experience boundaries",
    ),
    ("run quickstart data=cifar100", "cifar100"),
    ("run quickstart data=cifar100", "set data.download=true to get it"),
    ("run quickstart data=food101", "set data.download=true to get it"),
    ("run quickstart data={name: imagefolder, path: no/pictures}", "there is no folder no/pictures"),
    ("run quickstart data={name: csv, path: no.csv}", "there is no file no.csv"),
    ("run quickstart data={name: npz, path: no.npz}", "there is no file no.npz"),
    ("run quickstart data=voc2007", "data/VOCdevkit"),
    ("run quickstart data.augment=heavy", 'data.augment must be one of "none", "standard"'),
    ("run quickstart data.test_resize=7", "data.test_resize must be at least 16, the image size of the"),
    ("run quickstart data.corrupt=fog", 'data.corrupt must be one of "edges", "inverted"'),
    ("run quickstart data.crop_scale=0.5", "data.crop_scale must be list of 2 values"),
    (
        "run quickstart data.crop_scale=0.5,0.2",
        "data.crop_scale must be [smallest, largest share of the area]",
    ),
    ("run quickstart backbone.normalise=dataset", "no published mean and deviation of digits are known"),
    ("run quickstart backbone.normalise=imagenet", "normalise must be one of backbone, unit, dataset"),
    (
        "run quickstart training.schedule=coda",
        'training.schedule must be one of "constant", "cosine", "cosine-c',
    ),
    ("run quickstart training.mixup=1 training.cutmix=1", "must be 1 or less together"),
    ("run quickstart scenario.experiences=two", 'scenario.experiences must be int (at least 1), got "two"'),
    ("run quickstart scenario={name: split, sessions: 3}", 'unknown key "scenario.sessions"'),
    ("run quickstart scenario=multi_label", "needs multi-hot targets"),
    ("run quickstart training=adam", 'training must be a mapping, got "adam"'),
    ("run quickstart training.lr.x=1", "training.lr is a value (0.01), not a section"),
    ("run quickstart training..lr=1", '"training..lr=1" is not an override'),
    ("run quickstart training.workers=-1", "training.workers must be at least 0, got -1"),
    ("run quickstart training.eval_mb_size=0", "training.eval_mb_size must be at least 1, got 0"),
    ("run quickstart training.momentum=2", "training.momentum must be at least 0 and below 1, got 2"),
    (
        "run quickstart training.warmup=1",
        "training.warmup must be at least 0 and below 1, got 1",
    ),
    ("run quickstart training.weight_decay=-1", "training.weight_decay must be at least 0, got -1"),
    ("run quickstart training.checkpoint_every=0", "training.checkpoint_every must be at least 1, got 0"),
    ("run quickstart online.eval_every=0", "online.eval_every must be at least 1, got 0"),
    ("run quickstart export=all", 'export must be one of "method", "full", got "all"'),
    ("run quickstart seed=0,0", "seed names a seed twice: [0, 0]"),
    ("run quickstart strategy={e_length: 3}", "strategy.name is missing"),
    ("run quickstart compare=3", "compare must be a list of strategies, got 3"),
    ("run quickstart device=meta", 'device "meta" is not there'),
    ("run quickstart backbone.checkpoint=no.pth", "brings its own weights; it takes no checkpoint"),
    ("run quickstart backbone={name: vit_tiny_patch16_224, checkpoint: no.pth}", "no file no.pth"),
    (
        "run quickstart backbone={name: vit_tiny_patch16_224, img_size: 30}",
        "not a multiple of the patch size",
    ),
    ("run quickstart backbone={name: vit_tiny_patch16_224, in_chans: 2}", "1 or 3 channels"),
    ("run quickstart backbone={name: vit_tiny_patch16_224, wings: 2}", "wings"),
    ("run quickstart runs_dir=/dev/null/runs", "Not a directory: /dev/null/runs"),
    ("run ./", "it is a folder, not a regular file"),
    ("report", "Missing argument 'RUN...'"),
    ("report out=there", "Missing argument 'RUN...'"),
    ("report nowhere", "nowhere is not the folder of a run: there is no such folder"),
    ("report .", "no run folder in ."),
    ("predict nowhere x.png", "nowhere is not the folder of a run: there is no such folder"),
    ("predict . x.png", ". is not the folder of a run: it holds no config.yaml"),
    ("predict .", "Missing argument 'IMAGES...'"),
    ("explain nowhere x.png", "nowhere is not the folder of a run: there is no such folder"),
    ("resume nowhere", "nowhere is not the folder of a run: there is no such folder"),
    ("compare a b", "clprompt report RUNS --against LABEL compares runs that are finished"),
    ("resume .", ". is not the folder of a run: it holds no config.yaml"),
    ("config quickstart seed=-1", "seed must be between 0 and 4294967295, got -1"),
]


@pytest.mark.parametrize(("words", "message"), MISTAKES, ids=[words for words, _ in MISTAKES])
def test_a_mistake_is_one_line(
    words: str, message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(folder.iterdir())
    assert main(_split(words)) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("clprompt: error: ")
    assert err.count("\n") == 1
    assert message in err
    left = [path for path in sorted(folder.iterdir()) if path not in before and path.name != "__pycache__"]
    assert left == []


def _split(words: str) -> list[str]:
    """At blanks outside braces, without a shell's other rules."""
    found, depth = [""], 0
    for mark in words:
        depth += (mark == "{") - (mark == "}")
        if mark == " " and depth == 0:
            found.append("")
        else:
            found[-1] += mark
    return found


@pytest.mark.parametrize(
    ("limit", "what"), [(100, "config.yaml"), (2000, "events.out.tfevents"), (30_000, "events.out.tfevents")]
)
def test_a_disk_that_is_full_is_one_line_that_names_the_file(
    limit: int, what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        "run",
        "quickstart",
        f"runs_dir={tmp_path}",
        "strategy=ncm",
        "compare=[]",
        "data.test_fraction=0.8",
    ]
    with _largest_file(limit):
        assert main(words) == 2
    err = capsys.readouterr().err.splitlines()[-1]
    assert re.fullmatch(rf"clprompt: error: cannot write {tmp_path}/.*{what}.*: File too large", err)
    assert not list(tmp_path.rglob("results.json"))
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.parametrize("limit", [0, 20_000])
def test_a_disk_that_is_full_leaves_the_checkpoint_before(limit: int, tmp_path: Path) -> None:
    state.save_checkpoint(tmp_path, {"step": 1})
    with (
        _largest_file(limit),
        pytest.raises(ClpromptError, match=r"^cannot write .*state\.pt: File too large$"),
    ):
        state.save_checkpoint(tmp_path, {"step": 2, "weights": torch.zeros(100_000)})
    checkpoint = state.load_checkpoint(tmp_path)
    assert checkpoint is not None
    assert checkpoint["step"] == 1


@contextlib.contextmanager
def _largest_file(size: int) -> Iterator[None]:
    """The nearest thing to a full disk that needs no rights: no file may grow beyond a size."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    dont_write_bytecode, sys.dont_write_bytecode = sys.dont_write_bytecode, True  # nor half of a module
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        sys.dont_write_bytecode = dont_write_bytecode


def test_a_torchvision_of_another_torch_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def listed(*_: object, **__: object) -> None:  # the sentence is torch's own
        torch.library.register_fake("torchvision::no_such_operator")(lambda: None)

    monkeypatch.setattr(listing, "listing", listed)
    assert main(["list", "strategies"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(
        f"clprompt: error: torch {version('torch')} and torchvision {version('torchvision')}"
    )
    assert line.endswith("install both anew, from one index")


def test_debug_shows_the_traceback_above_the_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CLPROMPT_DEBUG", "1")
    assert main(["config", "quikstart"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("Traceback (most recent call last):")
    assert err.splitlines()[-1].startswith('clprompt: error: no configuration is called "quikstart"')


# ------------------------------------------------------------------------------------------- the real command


def _command(*words: str, **keywords: object) -> subprocess.CompletedProcess[str]:
    where = shutil.which("clprompt", path=str(Path(sys.executable).parent)) or "clprompt"
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "timeout": 120} | keywords
    return subprocess.run([where, *words], **options)  # type: ignore[call-overload]


def test_the_real_command_tells_a_mistake_in_one_line() -> None:
    done = _command("run", "quickstart", "strategy.e_lenght=4")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert 'did you mean "e_length"?' in done.stderr


def test_the_real_command_says_that_the_disk_is_full() -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    with open("/dev/full", "w") as full:
        done = _command("list", "configs", stdout=full)
    assert done.returncode == 2
    assert done.stderr == "clprompt: error: No space left on device\n"


def test_the_module_runs_as_the_command_does() -> None:
    words = [sys.executable, "-m", "clprompt", "config", "quikstart"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr.startswith("clprompt: error: no configuration")
