"""Files that keys of a strategy name: a run goes on, and predicts, with what they held, wherever they are."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import clprompt
from clprompt import registry, schema
from clprompt.backbones.build import make_backbone
from clprompt.cli.main import main
from clprompt.errors import ClpromptError, Interrupted
from clprompt.experiment import run as experiment
from clprompt.experiment import sameness
from clprompt.prompting import prompt_file
from clprompt.prompting.build import make_method, serving
from clprompt.reporting import report
from clprompt.strategies.damvp.frames import default_pad, frame_size, save_frame
from clprompt.system.progress import Progress

WORDS = ["zero", "one", "two", "three"]
KEYS = ("residual_features", "anchor_texts")

pytestmark = pytest.mark.usefixtures("same_picture")


class StopAt(Progress):
    """Sends itself a signal after a number of steps."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def step(self) -> None:
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGTERM)


def sections(root: Path) -> dict[str, Any]:
    return {
        "name": "runs",
        "device": "cpu",
        "runs_dir": str(root),
        "data": {
            **{"name": "npz", "path": str(root / "images.npz"), "test_fraction": 0.25},
            "class_names": dict(enumerate(WORDS)),
        },
        "scenario": {"name": "split", "experiences": 2},
        "backbone": {"name": "clip_letters"},
        "strategy": {
            **{"name": "maple", "depth": 2, "anchor": "self_regulation"},
            **{key: str(root / f"{key}.json") for key in KEYS},
        },
        "training": {"train_mb_size": 8, "train_epochs": 1, "log_every": 1},
    }


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Texts, images, a finished run and an interrupted one."""
    root = tmp_path_factory.mktemp("texts")
    images = np.random.default_rng(0).integers(0, 255, (32, 8, 8), dtype=np.uint8)
    np.savez(root / "images.npz", images=images, labels=np.arange(32) % 4)
    Image.fromarray(images[0]).save(root / "image.png")
    (root / "residual_features.json").write_text(json.dumps({word: [f"digit {word}"] for word in WORDS}))
    (root / "anchor_texts.json").write_text('["the {}", "a thin {}"]')
    (result,) = experiment.run(sections(root))
    result.folder.rename(root / "finished")
    with pytest.raises(Interrupted) as caught:
        experiment.run(sections(root), progress=StopAt(4))  # in the second experience
    caught.value.folders[0].rename(root / "interrupted")
    return root


@pytest.fixture
def copy(world: Path, tmp_path: Path) -> Path:
    """Both runs with files of their own, which moved here."""
    root = Path(shutil.copytree(world, tmp_path / "copy"))
    for path in ("finished/model.json", "interrupted/config.yaml"):
        text = (root / path).read_text()
        for key in KEYS:
            there = json.dumps(str(root / f"{key}.json"))
            before = f'"path": {json.dumps(str(world / f"{key}.json"))}'
            text = text.replace(before, f'"path": {there}')
            text = text.replace(f"{key}: {world / f'{key}.json'}", f"{key}: {there}")
        (root / path).write_text(text)
    return root


def edited(root: Path, key: str) -> None:
    path = root / f"{key}.json"
    path.write_text(path.read_text().replace("a thin", "a bold").replace("digit two", "number two"))


def told(call: Callable[[], Any]) -> str:
    with pytest.raises(ClpromptError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("command", ["predict", "predict by name", "explain"])
def test_no_command_answers_with_texts_that_were_edited(
    command: str, key: str, copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [command.split()[0], str(copy / "finished"), str(copy / "image.png")]
    words += ["--names", "nine,ten"] if command == "predict by name" else []
    words += ["--out", str(copy / "drawn")] if command == "explain" else []
    edited(copy, key)
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err == (
        f"clprompt: error: {copy / 'finished'}: other contents of files (strategy.{key}={copy / key}.json); "
        "put back what they were in the run\n"
    )


def answers(folder: Path) -> torch.Tensor:
    """The logits of a loaded run for three pictures."""
    model = clprompt.load(folder)
    shape = (3, model.backbone.in_chans, *model.backbone.image_size)
    return model(torch.rand(shape, generator=torch.Generator().manual_seed(0)))


def test_a_run_predicts_with_texts_that_were_moved(world: Path, copy: Path) -> None:
    assert torch.equal(answers(copy / "finished"), answers(world / "finished"))


def test_a_text_that_is_gone_is_told_with_the_file_that_names_its_place(copy: Path) -> None:
    (copy / "residual_features.json").unlink()
    message = told(lambda: clprompt.load(copy / "finished"))
    assert message.startswith(f"{copy / 'finished' / 'model.json'}: residual_features: there is no file ")


DAMAGED: dict[str, tuple[dict[str, Any], str]] = {
    "no mapping": ({"anchor_texts": "a {}"}, "model.json cannot be read: files must be"),
    "no path": ({"anchor_texts": {"sha256": "0"}}, "files.anchor_texts.path is missing"),
    "an unknown key": (
        {"anchor_text": {"path": "a {}", "sha256": "0"}},
        'unknown key "strategy.anchor_text"',
    ),
    "another checksum": (
        {"anchor_texts": {"path": "a {}", "sha256": "0"}},
        "other contents of files (strategy.anchor_texts=a {})",
    ),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_what_stands_damaged_under_files_is_told(damage: str, copy: Path) -> None:
    files, words = DAMAGED[damage]
    path = copy / "finished" / "model.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"files": files}))
    assert words in told(lambda: clprompt.load(copy / "finished"))


@pytest.mark.parametrize("key", KEYS)
def test_a_run_is_not_continued_with_texts_that_were_moved_and_edited(key: str, copy: Path) -> None:
    edited(copy, key)
    message = told(lambda: experiment.resume(copy / "interrupted"))
    assert f"other contents of files (strategy.{key}={copy / key}.json)" in message


def test_a_run_is_not_continued_without_a_file_that_it_had(copy: Path) -> None:
    path = copy / "interrupted" / "config.yaml"
    key = f"anchor_texts: {json.dumps(str(copy / 'anchor_texts.json'))}"
    path.write_text(path.read_text().replace(key, ""))
    message = told(lambda: experiment.resume(copy / "interrupted"))
    assert "other contents of files (strategy.anchor_texts=None)" in message


def test_a_run_goes_on_with_texts_that_were_moved(world: Path, copy: Path) -> None:
    experiment.resume(copy / "interrupted")
    assert torch.equal(answers(copy / "interrupted"), answers(world / "finished"))


def test_runs_with_other_contents_are_not_averaged_by_a_report(world: Path, copy: Path) -> None:
    edited(copy, "anchor_texts")
    experiment.run(sections(copy) | {"seed": 1})
    (section,) = report.collect([world / "finished", copy / "runs"]).sections
    assert [list(row.runs) for row in section.rows] in ([[0], [1]], [[1], [0]])
    assert all("anchor_texts=anchor_texts.json (" in row.label for row in section.rows)


# ------------------------------------------------------------------------------------------ every such key


def frame(path: Path, start: float) -> None:
    backbone = make_backbone({"name": "vit_letters"})
    side, pad = backbone.image_size[0], default_pad(backbone.image_size[0])
    values = torch.full((frame_size(backbone.in_chans, side, pad),), start)
    save_frame(path, values, backbone, pad, {})


def texts(path: Path, number: int) -> None:
    path.write_text(json.dumps({word: [f"{word} {number}"] for word in WORDS}))


def templates(path: Path, number: int) -> None:
    path.write_text(json.dumps([f"{number} {{}}"]))


def pairs(path: Path, number: int) -> None:
    prompts = {word: [f"{word} {number}"] for word in WORDS[:2]}
    path.write_text(json.dumps([{"classes": WORDS[:2], "prompts": prompts}]))


#: What writes a file of each key, by strategy.
WRITERS: dict[tuple[str, str], Callable[[Path, int], None]] = {
    ("zero_shot", "templates"): templates,
    ("zero_shot", "descriptions"): texts,
    ("zero_shot", "candidates"): templates,
    ("zero_shot", "pairs"): pairs,
    ("coop", "knowledge"): texts,
    ("coop", "keywords"): texts,
    ("coop", "anchor_texts"): templates,
    ("maple", "residual_features"): texts,
    ("maple", "anchor_texts"): texts,
    ("damvp", "init_file"): frame,
}


def prompts(name: str) -> Callable[[Path, int], None]:
    """Writes a file of prompts that a strategy may start from."""

    def write(path: Path, number: int) -> None:
        model = make_method({"name": name}, make_backbone({"name": tower(name)}), seed=0)
        listed = prompt_file.listed_prompts(model)
        values = {key: torch.full((1, *part.shape), float(number)) for key, part in listed.items()}
        prompt_file.write(path, model, sources=[], values=values)

    return write


def tower(name: str) -> str:
    return "clip_letters" if registry.strategies.get(name).target.needs_text else "vit_letters"


WRITERS |= {
    (name, "init_file"): prompts(name)
    for name in registry.strategies.names()
    if name != "damvp"
    and any(short.name == "init_file" for short in serving(registry.strategies.get(name).target))
}
#: Keys that take one text and no file.
WORDS_ALONE = {"init"}


def keys_of_text() -> Iterator[tuple[str, str]]:
    """The keys of all strategies that take a text or nothing."""
    for name in registry.strategies.names():
        method = registry.strategies.get(name).target
        for target in (method, *(short.target for short in serving(method))):
            for key, argument in schema.parameters(target)[0].items():
                is_text = argument.hint in (str | None, schema.FilePath | None)
                if is_text and key not in WORDS_ALONE:
                    yield name, key


def test_every_key_that_may_name_a_file_is_compared() -> None:
    assert set(keys_of_text()) == set(WRITERS)


def test_every_key_that_may_name_a_file_says_so() -> None:
    for name, key in WRITERS:
        method = registry.strategies.get(name).target
        targets = (method, *(short.target for short in serving(method)))
        hints = [schema.parameters(target)[0].get(key) for target in targets]
        assert [found.hint for found in hints if found] == [schema.FilePath | None], (name, key)


@pytest.mark.parametrize(("strategy", "key"), WRITERS, ids=map(".".join, WRITERS))
def test_what_a_file_held_is_known_again(strategy: str, key: str, tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    section = {"name": strategy, key: str(path)}
    section |= {"anchor": "consistency"} if key == "anchor_texts" else {}
    backbone = make_backbone({"name": tower(strategy)})

    def known() -> dict[str, str]:
        return sameness.of_files(make_method(section, backbone, seed=0))

    WRITERS[strategy, key](path, 0)
    first = known()
    assert set(first) == {key}
    assert known() == first
    WRITERS[strategy, key](path, 1)
    assert known() != first
