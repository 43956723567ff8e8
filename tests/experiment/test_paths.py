"""A run does not depend on the folder that one stands in, nor on its files staying where they were."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image

import clprompt
from clprompt import schema
from clprompt.cli.main import main
from clprompt.data.class_names import Names
from clprompt.data.lists import Lists
from clprompt.errors import BackboneError, CheckpointError, ClpromptError, ConfigError, Interrupted
from clprompt.experiment import config as configuration
from clprompt.experiment import folder as runfolder
from clprompt.experiment import paths
from clprompt.experiment import run as experiment
from clprompt.system.progress import Progress

SHAPE = {"embed_dim": 16, "depth": 2, "num_heads": 2, "img_size": 16, "patch_size": 8}
BACKBONE = ", ".join(f"{key}: {value}" for key, value in SHAPE.items())
YAML = f"""
data: {{name: imagefolder, path: photos, class_names: names.txt}}
scenario: {{name: split, experiences: 2}}
backbone: {{name: vit_tiny_patch16_224, checkpoint: weights.pth, {BACKBONE}}}
strategy: {{name: linear_probe}}
training: {{train_mb_size: 4, train_epochs: 1}}
"""


def weights(path: Path, seed: int) -> None:
    torch.manual_seed(seed)
    torch.save(timm.create_model("vit_tiny_patch16_224", **SHAPE).state_dict(), path)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a configuration and what it names, `other.pth`, and an empty folder `elsewhere`."""
    world = tmp_path_factory.mktemp("world")
    draw = np.random.default_rng(0)
    for name in "abcd":
        (world / "photos" / name).mkdir(parents=True)
        for number in range(5):
            pixels = draw.integers(0, 256, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(world / "photos" / name / f"{number}.png")
    (world / "names.txt").write_text("ant\nbee\ncat\ndog\n")
    (world / "own.yaml").write_text(YAML)
    weights(world / "weights.pth", 0)
    weights(world / "other.pth", 1)
    (world / "elsewhere").mkdir()
    return world


@pytest.fixture(scope="module")
def runs(world: Path) -> dict[str, Path]:
    """A finished run and one that was stopped, started in another folder than that of the configuration."""

    class Stops(Progress):
        left = 4

        def step(self) -> None:
            self.left -= 1
            if not self.left:
                os.kill(os.getpid(), signal.SIGTERM)

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(world / "elsewhere")
        config = configuration.load("../own.yaml")
        (done,) = experiment.run(config)
        with pytest.raises(Interrupted) as stopped:
            experiment.run(config, progress=Stops())
        return {"done": done.folder.absolute(), "stopped": stopped.value.folders[0].absolute()}


@pytest.fixture
def moved(world: Path) -> Path:
    """Where the weights are, which are not where the run had them; afterwards they are there again."""
    away = world / "elsewhere" / "moved.pth"
    os.rename(world / "weights.pth", away)
    yield away
    os.rename(away, world / "weights.pth")


def test_a_run_keeps_absolute_paths(runs: dict[str, Path], world: Path) -> None:
    config = runfolder.read_config(runs["done"])
    assert config.data["path"] == str(world / "photos")
    assert config.data["class_names"] == str(world / "names.txt")
    assert config.backbone["checkpoint"] == str(world / "weights.pth")


def test_predictions_of_files_say_which_file_each_image_is(runs: dict[str, Path], world: Path) -> None:
    rows = [line.split(",") for line in (runs["done"] / "test_images.csv").read_text().splitlines()]
    assert rows[0] == ["index", "path", "class", "predicted"]
    names = dict(zip("abcd", ["ant", "bee", "cat", "dog"], strict=True))
    paths = clprompt.data.imagefolder(path=str(world / "photos")).test.files()
    with np.load(runs["done"] / "predictions.npz") as held:
        wanted = [
            (str(index), os.path.relpath(paths[index], world / "photos"), "abcd"[target], "abcd"[predicted])
            for index, target, predicted in zip(
                *(held[key].tolist() for key in ("images", "targets", "predicted")), strict=True
            )
        ]
    assert rows[1:] == [[i, path, names[target], names[predicted]] for i, path, target, predicted in wanted]


def test_a_model_is_loaded_from_anywhere(
    runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert clprompt.load(runs["done"]).class_names == ["ant", "bee", "cat", "dog"]


def test_weights_that_are_nowhere_are_asked_for_in_one_line(runs: dict[str, Path], moved: Path) -> None:
    with pytest.raises(BackboneError, match=r"no file .*weights\.pth.*--checkpoint FILE") as told:
        clprompt.load(runs["done"])
    assert "\n" not in str(told.value)


def test_the_weights_may_be_said_to_be_elsewhere(
    runs: dict[str, Path], moved: Path, world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(runs["done"]), str(world / "photos" / "a" / "0.png"), "--top-k", "1"]
    assert main(["predict", *words, "--checkpoint", str(moved)]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_weights_in_the_run_folder_are_found(runs: dict[str, Path], moved: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(runs["done"], run)
    shutil.copy(moved, run / "weights.pth")
    assert clprompt.load(run).backbone.width == 16


def test_other_weights_are_refused_by_their_fingerprint(runs: dict[str, Path], world: Path) -> None:
    with pytest.raises(CheckpointError, match="has other weights than in the run"):
        clprompt.load(runs["done"], checkpoint=world / "other.pth")
    with pytest.raises(CheckpointError, match=r"other backbone weights .*other\.pth"):
        experiment.resume(runs["stopped"], checkpoint=world / "other.pth")


def test_a_run_goes_on_with_weights_that_were_moved(
    runs: dict[str, Path], moved: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(runs["stopped"], run)
    with pytest.raises(ClpromptError, match="no file"):
        experiment.resume(run)
    result = experiment.resume(run, checkpoint=moved)
    assert result is not None
    assert (run / "metrics.jsonl").read_bytes() == (runs["done"] / "metrics.jsonl").read_bytes()


def test_a_run_that_holds_its_backbone_takes_no_checkpoint(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = configuration.load(world / "own.yaml", ["export=full", "strategy=ncm"])
    (result,) = experiment.run(config)
    with pytest.raises(ConfigError, match=r"export: full.*takes no checkpoint"):
        clprompt.load(result.folder, checkpoint=world / "weights.pth")


def test_what_one_stands_beside_comes_before_what_the_configuration_stands_beside(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    config = configuration.load(world / "own.yaml")
    assert config.data["path"] == "photos"
    assert config.backbone["checkpoint"] == str(world / "weights.pth")


def test_a_relative_path_of_an_older_run_is_found_above_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "runs" / "own" / "20260101-120000-seed0"
    run.mkdir(parents=True)
    (tmp_path / "weights.pth").touch()
    monkeypatch.chdir("/")
    assert paths.of_run(run)("weights.pth") == str(tmp_path / "weights.pth")
    assert paths.of_run(run)("nowhere.pth") == "nowhere.pth"


@pytest.mark.parametrize(
    ("value", "hint", "expected"),
    [
        ("a", schema.FilePath | None, "/a"),
        ("a", str | None, "a"),
        ("a", Path, "/a"),
        (["a", "b"], Lists | None, ["/a", "/b"]),
        (["a", "b"], Names | None, ["a", "b"]),
        ("a", Names | None, "/a"),
        (None, schema.FilePath | None, None),
    ],
)
def test_what_a_hint_says_leads_to_a_file_is_replaced(value: object, hint: object, expected: object) -> None:
    assert schema.replace_paths(value, hint, lambda path: f"/{path}") == expected
