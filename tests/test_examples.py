"""The examples run as they are, and all front ends give the same logits, bit for bit."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

import clprompt
from clprompt import registry
from clprompt.cli.main import main
from clprompt.data import datasets_for, digits
from clprompt.prompting.model import PromptModel
from clprompt.scenarios import split
from clprompt.strategies.dualprompt import DualPromptModel
from clprompt.testing import check_strategy
from clprompt.training import optim
from clprompt.training.settings import Training

EXAMPLES = Path(__file__).parents[1] / "examples"
SEED = 3
PLAIN = """
import runpy, sys
sys.modules["avalanche"] = None  # an import of it raises ImportError
import torch
model = runpy.run_path(sys.argv[1])["main"](epochs=1, seed=int(sys.argv[2]))
torch.save(model.method_state(), sys.argv[3])
from clprompt.registry import strategies
print("strategies:", *strategies.names())
assert not any(name.startswith("avalanche.") for name in sys.modules)
"""


pytestmark = pytest.mark.usefixtures("same_picture")


@pytest.fixture(scope="module")
def backbone() -> clprompt.FrozenViT:
    return clprompt.FrozenViT("vit_letters")


@pytest.fixture(scope="module")
def logits(backbone: clprompt.FrozenViT) -> Callable[[PromptModel], Tensor]:
    """Logits of a model on the whole test set, [n, 10]."""
    _, _, test = datasets_for(digits(), backbone)
    images = torch.stack([image for image, _ in test])

    def of(model: PromptModel) -> Tensor:
        with torch.no_grad():
            return model.eval()(images)

    return of


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory, logits: Callable[[PromptModel], Tensor]) -> Tensor:
    """What the command line trains."""
    runs = tmp_path_factory.mktemp("runs")
    overrides = ["training.train_epochs=1", "strategy.freeze_general_after=null", "compare=[]", "device=cpu"]
    assert main(["run", "quickstart", *overrides, f"seed={SEED}", f"runs_dir={runs}"]) == 0
    (folder,) = (runs / "quickstart").iterdir()
    return logits(clprompt.load(folder))


def avalanche_script(**arguments: Any) -> PromptModel:
    function = runpy.run_path(str(EXAMPLES / "avalanche_script.py"))["main"]
    return function(epochs=1, seed=SEED, **arguments).model


def test_fit_gives_the_logits_of_the_command_line(
    expected: Tensor, logits: Callable[[PromptModel], Tensor], backbone: clprompt.FrozenViT
) -> None:
    train, clean, test = datasets_for(digits(), backbone)
    plan = split.plan(train.targets, experiences=5, seed=SEED)
    model = DualPromptModel(backbone, seed=SEED, g_layers=(0,), e_layers=(1, 2, 3, 4), e_length=10)
    records = clprompt.fit(model, plan, train, test, clean=clean, training=Training(lr=0.01), seed=SEED)
    assert len(records) == 5
    assert torch.equal(logits(model), expected)


def test_the_avalanche_script_gives_the_logits_of_the_command_line(
    expected: Tensor, logits: Callable[[PromptModel], Tensor]
) -> None:
    assert torch.equal(logits(avalanche_script()), expected)


@pytest.mark.parametrize("task_labels", [False, True])
def test_the_avalanche_script_gives_them_on_avalanches_own_stream_too(
    expected: Tensor, logits: Callable[[PromptModel], Tensor], task_labels: bool
) -> None:
    from avalanche.benchmarks import nc_benchmark
    from avalanche.benchmarks.utils import as_classification_dataset

    def stream(train: Any, test: Any) -> Any:
        order = [c for group in split.plan(train.targets, experiences=5, seed=SEED).classes for c in group]
        return nc_benchmark(
            as_classification_dataset(train),
            as_classification_dataset(test),
            n_experiences=5,
            task_labels=task_labels,
            shuffle=False,
            fixed_class_order=order,
        )

    assert torch.equal(logits(avalanche_script(stream=stream)), expected)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """What the plain loop prints, and its model's file, in a process that cannot import Avalanche."""
    script, saved = EXAMPLES / "plain_pytorch.py", tmp_path_factory.mktemp("plain") / "model.pt"
    done = subprocess.run(
        [sys.executable, "-c", PLAIN, str(script), str(SEED), str(saved)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, saved


def test_the_plain_loop_gives_them_without_avalanche(
    expected: Tensor,
    logits: Callable[[PromptModel], Tensor],
    backbone: clprompt.FrozenViT,
    plain: tuple[str, Path],
) -> None:
    model = DualPromptModel(backbone, g_layers=(0,), e_layers=(1, 2, 3, 4), e_length=10)
    model.load_state_dict(torch.load(plain[1], weights_only=True))
    assert torch.equal(logits(model), expected)


def test_the_plain_loop_tells_of_each_experience(plain: tuple[str, Path]) -> None:
    assert plain[0].count("after experience") == 5


def test_strategies_are_found_without_avalanche(plain: tuple[str, Path]) -> None:
    names = next(line for line in plain[0].splitlines() if line.startswith("strategies: "))
    assert "dualprompt" in names.split()


def test_another_seed_gives_other_logits(expected: Tensor, logits: Callable[[PromptModel], Tensor]) -> None:
    function = runpy.run_path(str(EXAMPLES / "avalanche_script.py"))["main"]
    assert not torch.equal(logits(function(epochs=1, seed=SEED + 1).model), expected)


# ------------------------------------------------------------------------------------ somebody else's trainer


def other_loop(package: str) -> dict[str, Any]:
    """The names of the example for a trainer, which clprompt does not install."""
    pytest.importorskip(package, reason=f"the example for {package} runs where {package} is installed")
    if torch.cuda.is_available():
        pytest.skip("these trainers choose the GPU, whose bits are others")
    return runpy.run_path(str(EXAMPLES / f"{package}_loop.py"))


@pytest.mark.parametrize("package", ["lightning", "accelerate"])
def test_another_trainer_gives_the_logits_of_the_command_line(
    expected: Tensor,
    logits: Callable[[PromptModel], Tensor],
    package: str,
    capsys: pytest.CaptureFixture[str],
    plain: tuple[str, Path],
) -> None:
    model = other_loop(package)["main"](epochs=1, seed=SEED)
    torch.testing.assert_close(logits(model), expected, rtol=0, atol=1e-5)
    told = [
        [line for line in printed.splitlines() if line.startswith("after experience")]
        for printed in (capsys.readouterr().out, plain[0])
    ]
    assert told[0] == told[1]


@pytest.mark.parametrize("package", ["lightning", "accelerate"])
def test_another_trainer_trains_what_grew_within_an_experience(
    backbone: clprompt.FrozenViT, package: str
) -> None:
    names = other_loop(package)
    shape = 12, backbone.in_chans, *backbone.image_size
    images = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0] * 8 + [0, 1] * 2)  # class 1 comes with the third batch, unannounced
    batches = DataLoader(TensorDataset(images, labels), batch_size=4)

    def begun() -> DualPromptModel:
        model = DualPromptModel(backbone, mask="seen", g_layers=(0,), e_layers=(1,))
        model.begin_experience([0])
        return model.train()

    wanted = begun()
    optimizer = optim.build(wanted, lr=0.01)
    grown = []
    for batch in batches:
        grown.append(wanted.observe(batch[1]))
        if grown[-1]:
            optim.sync(optimizer, wanted)
        optimizer.zero_grad()
        wanted.training_loss(*batch).loss.backward()
        optimizer.step()
    assert grown == [False, False, True]

    model = begun()
    if package == "lightning":
        names["trainer"](1).fit(names["Learner"](model), batches)
    else:
        accelerator = names["Accelerator"]()
        names["train_epoch"](accelerator, model, accelerator.prepare(optim.build(model, lr=0.01)), batches)
    for name, value in wanted.method_state().items():
        torch.testing.assert_close(model.method_state()[name], value, rtol=0, atol=1e-6)


# ----------------------------------------------------------------------------------------------- a new method


@pytest.fixture
def as_found() -> Iterator[None]:
    """What the example registers is taken back."""
    registry.strategies.names()  # the built-in ones first
    before, modules = dict(registry.strategies._entries), set(sys.modules)
    yield
    registry.strategies._entries.clear()
    registry.strategies._entries.update(before)
    for name in set(sys.modules) - modules:
        del sys.modules[name]


def test_a_new_method_has_at_most_forty_lines() -> None:
    assert len((EXAMPLES / "new_method.py").read_text().splitlines()) <= 40


@pytest.mark.usefixtures("as_found")
def test_a_new_method_passes_check_strategy() -> None:
    check_strategy(runpy.run_path(str(EXAMPLES / "new_method.py"), run_name="example")["FirstSessionModel"])


@pytest.mark.usefixtures("as_found")
def test_a_new_method_runs_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["backbone={name: vit_tiny_patch16_224, embed_dim: 16, depth: 2, num_heads: 2, img_size: 32}"]
    words += ["scenario.experiences=2", "data.test_fraction=0.8", "training.train_epochs=1", "compare=[]"]
    words += ["strategy=first_session", "strategy.length=2", f"runs_dir={tmp_path}"]
    assert main(["run", "quickstart", *words, "--import", str(EXAMPLES / "new_method.py")]) == 0
    assert "first_session" in capsys.readouterr().out


# ------------------------------------------------------------------------------------------------- notebooks


@pytest.mark.parametrize("notebook", sorted(EXAMPLES.glob("*.ipynb")), ids=lambda path: path.stem)
def test_a_notebook_runs_from_top_to_bottom(notebook: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process: a kernel's start would cost more than the cells."""
    registry.strategies.names()  # ours first; what the notebook registers is taken back
    monkeypatch.setattr(registry.strategies, "_entries", dict(registry.strategies._entries))
    names: dict[str, Any] = {"__name__": "notebook"}
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        assert not cell.get("outputs"), "outputs of a notebook are not kept: they grow old"
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), f"{notebook.name}, {cell['id']}", "exec"), names)
