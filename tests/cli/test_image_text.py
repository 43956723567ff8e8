"""Image-text backbones from the command line: a user's weights from the run to predictions, and mistakes."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import yaml
from drawing import same_picture
from PIL import Image
from safetensors.torch import save_file
from tiny_clip import CLIP, SIGLIP, known_by_name, state_of

from clprompt.cli.main import main

WORDS = ["red cat", "small dog", "oak", "trout"]
LONG = "very " * 20
#: The same with CLIP's tokenizer, which needs no download.
SIGMOID: dict[str, Any] = SIGLIP | {
    "text_cfg": {
        **{key: value for key, value in SIGLIP["text_cfg"].items() if key != "hf_tokenizer_name"},
        "vocab_size": 49408,
    }
}
FILES: dict[str, Any] = {
    "templates.json": ["a photo of a {}.", "the {}", "one {}"],
    "described.json": {word: [f"{word} {kind}" for kind in ("near", "far")] for word in WORDS},
    "lacking.json": {word: [word] for word in [*WORDS[:3], "troutt"]},
    "stranger.json": {word: [word] for word in [*WORDS, "troutt"]},
    "long.json": {word: [LONG + word] for word in WORDS},
    "words.json": {word: ["fine"] for word in WORDS[:3]},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The current folder: weights of tiny models, images, texts and a configuration."""
    folder = tmp_path_factory.mktemp("image_text")
    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, (48, 8, 8, 3), dtype=np.uint8)
    labels = np.arange(48) % 4
    np.savez(folder / "images.npz", images=images, labels=labels)
    hot = np.eye(4, dtype=np.int64)[labels] | (rng.random((48, 4)) < 0.3)
    np.savez(folder / "sets.npz", images=images, labels=hot.astype(np.int64))
    Image.fromarray(images[0]).save(folder / "image.png")
    for name, values in FILES.items():
        (folder / name).write_text(json.dumps(values))
    sections = {
        "device": "cpu",
        "data": {
            **{"name": "npz", "path": "images.npz", "test_fraction": 0.25},
            "class_names": dict(enumerate(WORDS)),
        },
        "scenario": {"name": "split", "experiences": 2},
        "backbone": {"name": "clip", "model": "tiny", "checkpoint": "tiny.safetensors"},
        "strategy": {"name": "coop", "length": 2},
        "training": {"train_mb_size": 8, "train_epochs": 1, "eval_mb_size": 32},
    }
    (folder / "own.yaml").write_text(yaml.safe_dump(sections))
    (folder / "configs").mkdir()
    with (
        known_by_name({"tiny": CLIP, "tiny-siglip": SIGLIP, "tiny-sigmoid": SIGMOID}, folder / "configs"),
        contextlib.chdir(folder),
        same_picture(),
    ):
        for name in ("tiny", "tiny-siglip", "tiny-sigmoid"):
            model = open_clip.create_model(name, pretrained=None)
            save_file(state_of(model), folder / f"{name}.safetensors")
        yield folder


@pytest.fixture(scope="module")
def ran(folder: Path) -> tuple[Path, Path, str]:
    """The folders of finished runs of coop and of zero_shot with several templates, and what was printed."""
    words = ["run", "own.yaml", "compare=[{name: zero_shot, templates: templates.json}]"]
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        assert main(words) == 0
    coop, zero_shot = sorted((folder / "runs" / "own").iterdir())
    return coop, zero_shot, said.getvalue()


def rows_of(capsys: pytest.CaptureFixture[str], *words: str | Path) -> list[dict[str, str]]:
    """What `clprompt predict` writes."""
    capsys.readouterr()
    assert main(["predict", *map(str, words)]) == 0
    return list(csv.DictReader(io.StringIO(capsys.readouterr().out)))


def test_a_run_prints_its_zero_shot_line(ran: tuple[Path, Path, str]) -> None:
    coop, _, said = ran
    line = json.loads((coop / "results.json").read_text())["zero_shot"]
    assert f", zero-shot {100 * line:.1f} %" in said
    assert next(row for row in said.splitlines() if row.startswith("in percent")).endswith("zero-shot")


def test_a_zero_shot_run_says_what_each_template_is_worth_alone(ran: tuple[Path, Path, str]) -> None:
    _, folder, _ = ran
    results = json.loads((folder / "results.json").read_text())
    rows = list(csv.DictReader((folder / "zero_shot_templates.csv").read_text().splitlines()))
    assert sorted(row["template"] for row in rows) == sorted(FILES["templates.json"])
    shares = [float(row["accuracy"]) for row in rows]
    assert shares == sorted(shares, reverse=True)
    assert results["zero_shot_template_max"] == pytest.approx(shares[0])
    assert results["zero_shot_template_min"] == pytest.approx(shares[-1])
    assert results["zero_shot_template_std"] == pytest.approx(np.std(shares, ddof=1))


def test_a_report_shows_the_line_and_the_spread_where_it_is_asked_for(
    ran: tuple[Path, Path, str], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", "runs", "out=report", "--metrics", "zero_shot,zero_shot_template_std"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "zero-shot" in shown
    assert "spread of" in shown
    assert (folder / "report" / "average_accuracy.png").exists()


@pytest.mark.parametrize("number", [0, 1], ids=["coop", "zero_shot"])
def test_names_that_were_never_trained_are_predicted(
    ran: tuple[Path, Path, str], number: int, capsys: pytest.CaptureFixture[str]
) -> None:
    run = ran[number]
    assert isinstance(run, Path)
    rows = rows_of(capsys, run, "image.png", "--names", "oak,a green lion")
    assert sorted(row["class"] for row in rows) == ["a green lion", "oak"]
    assert sum(float(row["probability"]) for row in rows) == pytest.approx(1, abs=1e-5)
    assert {row["class"] for row in rows_of(capsys, run, "image.png")} == set(WORDS)


def test_a_learned_context_is_explained(
    ran: tuple[Path, Path, str], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert main(["explain", str(ran[0]), "image.png", "--out", "drawn"]) == 0
    drawn = {Path(line).stem for line in capsys.readouterr().out.splitlines()}
    assert {name.split("-")[0] for name in drawn} >= {"words"}
    assert any("patches" in name for name in drawn)


@pytest.mark.parametrize("export", ["full", "method"])
def test_a_backbone_is_exported_or_built_from_its_checkpoint_again(
    folder: Path, export: str, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = folder / "copy.safetensors"
    copy.write_bytes((folder / "tiny.safetensors").read_bytes())
    shape = "model: tiny" if export == "full" else "quick_gelu: false"
    section = f"backbone={{name: clip, {shape}, checkpoint: copy.safetensors}}"
    assert main(["run", "own.yaml", section, f"export={export}", "strategy=zero_shot", f"name={export}"]) == 0
    (run,) = (folder / "runs" / export).iterdir()
    before = rows_of(capsys, run, "image.png", "--names", "oak,lion")
    copy.unlink()
    if export == "full":
        assert rows_of(capsys, run, "image.png", "--names", "oak,lion") == before
    else:
        assert main(["predict", str(run), "image.png"]) == 2
        told = capsys.readouterr().err
        assert told.startswith(f"clprompt: error: backbone.checkpoint: no file {copy}, ")


SETS = (
    "data.name=multi_label_npz",
    "data.path=sets.npz",
    "scenario={name: multi_label, classes_per_experience: 2}",
    "backbone={name: clip, model: tiny-sigmoid, checkpoint: tiny-sigmoid.safetensors}",
)


@pytest.mark.parametrize(
    "strategy",
    [
        "zero_shot",
        "{name: coop, length: 2, position: middle}",
        "{name: maple, depth: 2, anchor: consistency, trajectory: true}",
    ],
    ids=["zero_shot", "coop", "maple"],
)
def test_label_sets_are_learned_and_predicted_where_the_text_tower_has_a_bias(
    strategy: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", "own.yaml", *SETS, f"strategy={strategy}", f"runs_dir={tmp_path}"]) == 0
    (run,) = tmp_path.glob("*/*")
    assert 0 < json.loads((run / "results.json").read_text())["mAP_last"] <= 1
    rows = rows_of(capsys, run, "image.png")
    assert {row["class"] for row in rows} == set(WORDS)
    assert sum(float(row["probability"]) for row in rows) != pytest.approx(1, abs=1e-3)  # each on its own


def test_candidates_refuse_label_sets_before_a_run_has_a_folder(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    strategy = "strategy={name: zero_shot, candidates: templates.json}"
    assert main(["run", "own.yaml", *SETS, strategy, f"runs_dir={tmp_path}"]) == 2
    told = capsys.readouterr().err
    assert told == "clprompt: error: candidates are scored by one label per image, got multi-hot targets\n"
    assert not any(tmp_path.iterdir())


NAMED = "data.class_names={0: red cat, 1: small dog, 2: oak"
MISTAKES: dict[str, tuple[str, str]] = {
    "unknown model": (
        "backbone.model=tinny",
        'backbone.model "tinny" is none of open_clip\'s; did you mean "tiny"',
    ),
    "missing checkpoint": (
        "backbone.checkpoint=absent.pt",
        "backbone.checkpoint absent.pt: no file absent.pt",
    ),
    "no checkpoint": ("backbone={name: clip, model: tiny}", "has no weights: give backbone.checkpoint=FILE"),
    "another model's checkpoint": ("backbone.checkpoint=tiny-siglip.safetensors", "tiny-siglip.safetensors"),
    "no activation": (
        "backbone={name: clip, checkpoint: tiny.safetensors}",
        "tiny.safetensors: its activation cannot be seen in the file; give backbone.quick_gelu=true",
    ),
    "bare checkpoint to export": (
        "backbone={name: clip, checkpoint: tiny.safetensors, quick_gelu: false} export=full",
        "export=full needs backbone.model",
    ),
    "no text tower, coop": ("backbone=vit_letters", "needs a backbone with a text tower"),
    "no text tower, zero_shot": (
        "backbone=vit_letters strategy=zero_shot",
        "needs a backbone with a text tower, such as backbone.name=clip or clip_letters; vit_letters",
    ),
    "label sets": (
        "data.name=multi_label_npz data.path=sets.npz strategy=zero_shot "
        "scenario={name: multi_label, classes_per_experience: 2}",
        "takes label sets on a backbone whose text tower has a bias alone",
    ),
    "long name": (NAMED + f", 3: {LONG}fish}}", "tokens"),
    "long template": (f"strategy={{name: zero_shot, template: '{LONG}{{}}'}}", "template: text "),
    "long description": (
        "strategy={name: zero_shot, descriptions: long.json}",
        "long.json: text ",
    ),
    "long context": ("strategy.length=30", "tokens"),
    "no name": (NAMED + "}", "data.class_names: no name for class 3"),
    "one name twice": (
        NAMED + ", 3: Red_Cat}",
        'class 0 ("red cat") and class 3 ("Red Cat") have the same text features',
    ),
    "undescribed class": (
        "strategy={name: zero_shot, descriptions: lacking.json}",
        'lacking.json has no sentences of class "trout"; did you mean "troutt"',
    ),
    "unknown description file": (
        "strategy={name: zero_shot, descriptions: absent.json}",
        "descriptions: there is no file absent.json",
    ),
    "class without keywords": (
        "strategy={name: coop, length: 2, keywords: words.json}",
        'words.json says nothing of class "trout"',
    ),
    "trajectory far from all epochs": (
        "strategy={name: coop, length: 2, trajectory: true, trajectory_mean: 100}",
        "trajectory_mean=100.0 is so far from all 1 epochs of an experience that none has a weight",
    ),
    "template without a name": (
        "strategy={name: zero_shot, template: a photo}",
        'template must hold {} in place of the class name, got "a photo"',
    ),
    "unknown templates": ("strategy={name: zero_shot, templates: imagenet_8}", "imagenet_8"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line(mistake: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words, message = MISTAKES[mistake]
    assert main(["run", "own.yaml", "runs_dir=mistaken", *_split(words)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("clprompt: error: ")
    assert err.count("\n") == 1
    assert message in err
    assert not any((folder / "mistaken").glob("*/*"))


@pytest.mark.parametrize(
    ("module", "backbone", "message"),
    [
        ("open_clip", "model: tiny, checkpoint: tiny.safetensors", "pip install 'clprompt[clip]'"),
        ("open_clip", "checkpoint: tiny.safetensors, quick_gelu: false", "pip install 'clprompt[clip]'"),
        ("transformers", "model: tiny-siglip, checkpoint: tiny-siglip.safetensors", "is not installed"),
    ],
    ids=["configurations", "byte pairs", "of Hugging Face"],
)
def test_a_tokenizer_that_is_not_installed_is_one_line(
    module: str,
    backbone: str,
    message: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    assert main(["run", "own.yaml", "name=mistaken", f"backbone={{name: clip, {backbone}}}"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("clprompt: error: ")
    assert err.count("\n") == 1
    assert message in err
    assert not (folder / "runs" / "mistaken").exists()


def test_a_description_of_no_class_is_one_line_beside_the_run(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    strategy = "strategy={name: zero_shot, descriptions: stranger.json}"
    assert main(["run", "own.yaml", "name=strange", strategy]) == 0
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("clprompt: ")]
    note = f'descriptions {folder}/stranger.json: "troutt" is no name of a class; did you mean "trout"?'
    assert set(told) == {f"clprompt: note: {note}"}


def _split(words: str) -> list[str]:
    """At blanks outside braces."""
    return re.findall(r"(?:\{[^}]*\}+|[^ {])+", words)
