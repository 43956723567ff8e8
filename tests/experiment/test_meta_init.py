"""`clprompt meta-init`: prompts of strategies learnt on sources, the same bytes after resuming, the use."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from drawing import same_picture
from safetensors.torch import load_file

from clprompt.backbones.build import make_backbone
from clprompt.cli.main import main
from clprompt.data.sources import gather
from clprompt.errors import ClpromptError, ConfigError
from clprompt.experiment import run as experiment
from clprompt.experiment.config import load as load_config
from clprompt.experiment.meta_init import settings as configuration
from clprompt.experiment.meta_init.joint import Union
from clprompt.experiment.meta_init.run import run
from clprompt.prompting import prompt_file
from clprompt.prompting.build import make_method
from clprompt.system import progress
from clprompt.system.progress import Progress

BACKBONE = "backbone={name: vit_tiny_patch16_224, embed_dim: 16, depth: 2, num_heads: 2, img_size: 32}"
SOURCES = (
    "sources=[{name: synthetic, classes: 0-5, tasks: 2}, {name: synthetic, seed: 1, train_per_class: 6}]"
)
TINY = [BACKBONE, SOURCES, "training={train_mb_size: 16, lr: 0.1}"]
REPTILE = ["objective=reptile", "inner_steps=2"]

STRATEGIES: dict[str, str] = {
    "coda_prompt": "layers: [0, 1], components_per_experience: 2",
    "dualprompt": "g_layers: [0], e_layers: [1], coordinate: true",
    "l2p": "pool_size: 1, top_k: 1",
    "multilane": "prompts: 3, selectors: 4, prompt_blocks: 2",
    "mvp": "g_layers: [0], e_layers: [1], pool_size: 2",
    "tcpa": "pool_cls: 2, pool_image: 2, top_k_cls: 1, top_k_image: 1",
    "vpt_deep": "length: 3",
}


def words(name: str, *more: str) -> list[str]:
    return [*TINY, f"strategy={{name: {name}, {STRATEGIES[name]}}}", *more]


def settings(name: str, *more: str) -> configuration.MetaInit:
    return configuration.load("vpt-letters", words(name, *more))


def learnt(path: Path, name: str, *more: str) -> Path:
    assert run(settings(name, *more), path, progress=Progress()) == [path]
    return path


class StopsAt(Progress):
    """A display that sends a signal to its own process at the n-th step."""

    def __init__(self, step: int) -> None:
        self.left = step

    def step(self) -> None:
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("objective", ["joint", "reptile"])
@pytest.mark.parametrize("name", STRATEGIES)
def test_prompts_of_a_strategy_are_learnt_and_a_model_starts_from_them(
    name: str, objective: str, tmp_path: Path
) -> None:
    more = REPTILE if objective == "reptile" else []
    made = settings(name, *more)
    file = learnt(tmp_path / "p.safetensors", name, *more)
    backbone = make_backbone(made.backbone)
    plain, started = (
        make_method({**made.strategy, "init_file": path}, backbone, seed=0) for path in (None, str(file))
    )
    for model in (plain, started):
        if model.boundaries != "unused":
            model.begin_experience([0, 1])
    learnt_values, tensors = prompt_file.prompts_of(started), load_file(file)
    assert learnt_values.keys() == tensors.keys()
    assert all(torch.equal(value, tensors[key]) for key, value in learnt_values.items())
    fresh = prompt_file.prompts_of(plain)
    assert any(not torch.equal(value, fresh[key]) for key, value in learnt_values.items())


@pytest.mark.parametrize("objective", ["joint", "reptile"])
def test_an_interrupted_meta_init_goes_on_to_the_same_bytes(
    objective: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    more = REPTILE if objective == "reptile" else []
    whole, out = learnt(tmp_path / "whole.safetensors", "dualprompt", *more), tmp_path / "cut.safetensors"
    line = ["meta-init", "vpt-letters", f"out={out}", *words("dualprompt", *more)]
    with monkeypatch.context() as patch:
        patch.setattr(progress, "create", lambda: StopsAt(2))
        assert main(line) == 130
    assert "interrupted; continue with: clprompt meta-init vpt-letters" in capsys.readouterr().err
    assert not out.exists()
    with pytest.raises(ClpromptError, match=r"other settings \(seed\)"):
        run(settings("dualprompt", *more, "seed=1"), out, progress=Progress())
    assert main(line) == 0
    captured = capsys.readouterr()
    assert "continued after " in captured.err
    assert captured.out.splitlines() == [str(out)]
    assert out.read_bytes() == whole.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cut.safetensors", "whole.safetensors"]
    assert (
        learnt(tmp_path / "other.safetensors", "dualprompt", *more, "seed=1").read_bytes()
        != whole.read_bytes()
    )


def test_a_file_says_what_it_was_made_from(tmp_path: Path) -> None:
    facts = prompt_file.read(learnt(tmp_path / "p.safetensors", "vpt_deep", *REPTILE)).facts
    assert (facts["strategy"], facts["objective"], facts["seed"], facts["steps"]) == (
        "vpt_deep",
        "reptile",
        0,
        4,
    )
    assert facts["prompts"] == {
        "prompts": {"axes": ["blocks", "length"], "blocks": [0, 1], "is_key": False, "shape": [1, 2, 3, 16]}
    }
    assert [source["name"] for source in facts["sources"]] == ["synthetic 1/2", "synthetic 2/2", "synthetic"]
    assert facts["sources"][1]["classes"] == ["blob 3", "blob 4", "blob 5"]
    assert len(facts["last_losses"]) == 2
    json.dumps(facts)


def test_classes_of_the_sources_are_kept_apart(tmp_path: Path) -> None:
    made = settings("vpt_deep")
    materials = gather(made.sources, make_backbone(made.backbone))
    union = Union([m.train for m in materials], [len(m.class_names) for m in materials])
    labels = np.bincount([union[index][1] for index in range(len(union))])
    assert labels.tolist() == [20] * 6 + [6] * 10


def test_text_prompts_are_learnt_over_the_names_of_the_sources(tmp_path: Path) -> None:
    clip = [
        "backbone=clip_letters",
        "sources=[{name: digits, train_per_class: 2, tasks: 2}]",
        "strategy={name: coop, length: 3}",
        "training={train_mb_size: 16}",
    ]
    out = tmp_path / "text.safetensors"
    run(configuration.load("vpt-letters", clip), out, progress=Progress())
    assert load_file(out)["context_0"].shape[:2] == (1, 3)


# ---------------------------------------------------------------------------------- in an experiment


def of_run(runs: Path, file: Path, *more: str) -> list[str]:
    return [
        BACKBONE,
        "data={name: synthetic, classes: 4, train_per_class: 12, test_per_class: 2}",
        "scenario.experiences=2",
        f"strategy={{name: tcpa, {STRATEGIES['tcpa']}, init_file: '{file}'}}",
        "compare=[]",
        "training={train_epochs: 1, train_mb_size: 8}",
        f"runs_dir={runs}",
        *more,
    ]


def test_an_interrupted_run_goes_on_and_its_model_is_loaded_without_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = learnt(tmp_path / "p.safetensors", "tcpa")
    with same_picture():
        config = load_config("quickstart", of_run(tmp_path / "whole", file))
        (whole,) = experiment.run(config)
        with monkeypatch.context() as patch:
            patch.setattr(progress, "create", lambda: StopsAt(2))
            assert main(["run", "quickstart", *of_run(tmp_path / "cut", file)]) == 130
        file.unlink()
        (folder,) = (tmp_path / "cut").glob("*/*")
        cut = experiment.resume(folder)
    assert cut.summary == whole.summary
    assert (folder / "model.safetensors").read_bytes() == (whole.folder / "model.safetensors").read_bytes()
    from clprompt.experiment.inference import load

    assert "initial_prompts.start_cls" in load(folder).method_state()


# ------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("more", "text"),
    [
        ("strategy=ncm", "strategy.name: ncm has no prompts here that could be learnt beforehand"),
        ("strategy={name: vpt_deep, layers: []}", "strategy.name: vpt_deep has no prompts here"),
        ("strategy={name: vpt_deep, colour: 1}", 'unknown key "strategy.colour"'),
        ("sources=[]", "sources must be not empty"),
        ("objective=maml", "objective must be"),
        ("inner_steps=2", "inner_steps belongs to objective=reptile"),
        ("training.lr=0", "training.lr must be above 0"),
        ("colour=1", 'unknown key "colour"'),
        ("backbone={pretrained: false}", "backbone.name is missing"),
        ("device=nowhere", 'device "nowhere" is not there'),
    ],
)
def test_mistakes_are_one_line(more: str, text: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        run(settings("vpt_deep", more), tmp_path / "x", progress=Progress())
    assert text in str(error.value)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_what_reptile_does_not_take_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"training.mixup must be 0.0 with objective=reptile, got 0.2"):
        settings("vpt_deep", *REPTILE, "training.mixup=0.2")


@pytest.mark.parametrize(
    ("more", "text"),
    [
        (["strategy=nothing"], 'strategy.name: unknown strategy "nothing"'),
        (["strategy={name: damvp, pad: 3}"], "strategy.pad: of a frame, pad and all else stand beside"),
        (["strategy=damvp", "objective=joint"], "objective must be reptile for a frame"),
    ],
)
def test_the_command_says_whose_meta_init_it_would_be(
    more: list[str], text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["meta-init", "letters", f"out={tmp_path / 'x'}", *more]) == 2
    assert text in capsys.readouterr().err


def test_values_of_any_kind_are_asked_for_by_name() -> None:
    named: dict[str, Any] = {"strategy": None}
    assert configuration.own_module(named) == configuration.own_module({"strategy": "damvp"})
    assert configuration.own_module({"strategy": {"name": "l2p"}}) is None
