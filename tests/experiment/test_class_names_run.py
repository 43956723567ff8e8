"""A run that tells its model the names of classes, and what is left of them in its folder."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch.nn.functional as F
from drawing import same_picture
from image_text import tiny_image_text
from PIL import Image
from torch import Tensor, nn

import clprompt
from clprompt import registry
from clprompt.backbones.build import make_backbone
from clprompt.cli.main import main
from clprompt.errors import ConfigError
from clprompt.experiment import build, inference
from clprompt.prompting.text.model import TextModel

WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
NAMES = "{" + ", ".join(f"{c}: [digit_{word}, {word}]" for c, word in enumerate(WORDS)) + "}"


class Shifted(TextModel):
    """One trained vector, added to the text features of every name."""

    def __init__(self, backbone: Any, *, seed: int = 0) -> None:
        super().__init__(backbone, seed=seed)
        self.shift = nn.Parameter(F.normalize(self.text.features(["a"])[0], dim=0) * 0.1)

    def live_rows(self, names: Any) -> Tensor:
        text = self.text.features([self.template.format(name) for name in names])
        return F.normalize(text + self.shift, dim=-1)


@pytest.fixture(scope="module", autouse=True)
def image_text() -> Iterator[None]:
    """A strategy that reads names, and a text tower beside every backbone of this file's runs."""
    registry.strategies.register("shifted-names")(Shifted)
    with pytest.MonkeyPatch.context() as patch:
        for module in (build, inference):
            patch.setattr(module, "make_backbone", lambda section: tiny_image_text(make_backbone(section)))
        yield
    registry.strategies._entries.pop("shifted_names")


def words_of(folder: Path, names: str, strategy: str = "shifted-names") -> list[str]:
    return [
        *("run", "quickstart", "compare=[]", "scenario.experiences=2", "training.train_epochs=1"),
        *(f"runs_dir={folder}", f"strategy={strategy}", f"data.class_names={names}"),
    ]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, image_text: None) -> Path:
    """A finished run on named digits."""
    folder = tmp_path_factory.mktemp("runs")
    with same_picture():
        assert main(words_of(folder, NAMES)) == 0
    return next((folder / "quickstart").iterdir())


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("image") / "a.png"
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(path)
    return path


def test_tables_and_the_exported_model_show_the_names(run: Path) -> None:
    shown = [f"digit_{word}" for word in WORDS]
    assert json.loads((run / "model.json").read_text())["class_names"] == shown
    table = next(run.rglob("per_class_accuracy.csv")).read_text()
    assert all(name in table for name in shown)


def test_a_loaded_model_has_its_names_as_text(run: Path) -> None:
    model = clprompt.load(run)
    assert isinstance(model, TextModel)
    assert model.names.all(3) == ["digit three", "three"]
    assert model.class_names[3] == "digit_three"


def test_names_that_were_never_trained_are_predicted(
    run: Path, image: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert main(["predict", str(run), str(image), "--names", "red_bird, a cat,digit three"]) == 0
    out = capsys.readouterr().out
    rows = list(csv.DictReader(io.StringIO(out)))
    assert sorted(row["class"] for row in rows) == ["a cat", "digit three", "red bird"]
    assert sum(float(row["probability"]) for row in rows) == pytest.approx(1, abs=1e-5)
    model = clprompt.load(run)
    assert isinstance(model, TextModel)
    ((_, images),) = inference.batches(model, [image], 1)
    expected = model.name_logits(images, ["red bird", "a cat", "digit three"]).softmax(1)[0]
    named = {row["class"]: float(row["probability"]) for row in rows}
    assert [named["red bird"], named["a cat"]] == pytest.approx(expected[:2].tolist(), abs=1e-5)


def test_statistics_that_answer_in_place_of_texts_leave_the_figures_by_name(tmp_path: Path) -> None:
    with same_picture():
        assert main(words_of(tmp_path, NAMES, "{name: shifted-names, statistics: lda}")) == 0
    metrics = json.loads(next(tmp_path.rglob("results.json")).read_text())
    by_name = ["zero_shot", "transfer", "base_new_H"]
    assert [metrics[key] for key in by_name] == [metrics["trained_head"][key] for key in by_name]
    assert all(0 < metrics[key] <= 1 for key in by_name)


def test_python_predicts_the_same_names(run: Path, image: Path) -> None:
    model = clprompt.load(run)
    (best,) = inference.predict(model, [image], names=["a cat", "red bird"], top_k=1)
    assert best.class_name in ("a cat", "red bird")
    assert best.probability >= 0.5


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["a", "", "b"], "none of them empty"),
        ([" _ "], "none of them empty"),
        ([], "one name or more"),
        (["a b", "c", "a_b"], r'names: \("a b"\) and names: \("a b"\) have the same text features'),
        (["crane", "Crane"], r'\("crane"\) and names: \("Crane"\) have the same text features'),
        (["a " * 30], "tokens long, start and end included; this text tower takes at most 20"),
    ],
)
def test_wrong_names_are_one_line(names: list[str], said: str, run: Path, image: Path) -> None:
    with pytest.raises(ConfigError, match=said) as told:
        list(inference.predict(clprompt.load(run), [image], names=names))
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (NAMES.replace("digit_nine", "digit zero"), 'class 0 ("digit zero") and class 9 ("digit zero")'),
        (NAMES.replace("digit_nine", "Digit_Zero"), 'class 0 ("digit zero") and class 9 ("Digit Zero")'),
        (NAMES.replace("digit_nine", "word " * 30), "this text tower takes at most 20"),
        (NAMES.replace("9:", "8.5:"), "data.class_names"),
        (NAMES.replace(", 9: [digit_nine, nine]", ""), "no name for class 9"),
    ],
)
def test_names_that_do_not_do_are_refused_before_the_run_has_a_folder(
    names: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words_of(tmp_path, names)) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if "clprompt: error: " in line]
    assert len(lines) == 1
    assert said in lines[0]
