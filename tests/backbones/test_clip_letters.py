"""The embedded image-text backbone, and the script that made it."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from importlib import resources
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load
from sklearn.datasets import load_digits

from clprompt import FrozenViT
from clprompt.data.sets.letters import Strokes
from clprompt.testing.bench import NAMES

ASSETS = resources.files("clprompt.assets")
SCRIPT = Path(__file__).parents[2] / "scripts" / "pretrain_clip_letters.py"
FACTS = json.loads((ASSETS / "clip_letters.json").read_text())
WEIGHTS = (ASSETS / "clip_letters.safetensors").read_bytes()


@pytest.fixture(scope="module")
def backbone() -> FrozenViT:
    return FrozenViT("clip_letters")


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("pretrain_clip_letters", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_recorded_hash_and_size_are_those_of_the_weights() -> None:
    assert hashlib.sha256(WEIGHTS).hexdigest() == FACTS["sha256"]
    assert len(WEIGHTS) == FACTS["size"] < 260_000


def test_the_embedded_weights_are_float16() -> None:
    weights = load(WEIGHTS)
    assert {value.dtype for value in weights.values()} == {torch.float16}
    assert sum(value.numel() for value in weights.values()) == FACTS["parameters"]


def test_the_words_are_those_of_the_script(script: ModuleType) -> None:
    assert script.vocabulary() == FACTS["words"]


def test_the_image_tower_is_that_of_vit_letters_to_the_bit(backbone: FrozenViT) -> None:
    alone = FrozenViT("vit_letters")
    mine, theirs = backbone.vit.state_dict(), alone.vit.state_dict()
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[key], theirs[key]) for key in mine)
    assert backbone.inputs == alone.inputs


def test_its_fingerprint_is_not_that_of_the_image_tower_alone(backbone: FrozenViT) -> None:
    assert backbone.fingerprint() != FrozenViT("vit_letters").fingerprint()


def test_another_image_size_leaves_the_text_tower_as_it_is(backbone: FrozenViT) -> None:
    larger = FrozenViT("clip_letters", img_size=32)
    texts = ["a photo of a digit seven."]
    assert larger.text is not None
    assert backbone.text is not None
    assert larger.image_size == (32, 32)
    assert torch.equal(larger.text.features(texts), backbone.text.features(texts))


@pytest.mark.parametrize("template", ["a photo of a {}.", "a photo of the {}", "{}"])
def test_names_find_half_of_the_handwritten_digits_none_of_which_was_trained_on(
    backbone: FrozenViT, template: str
) -> None:
    digits = load_digits()
    images = torch.from_numpy(digits.images / 16).float().unsqueeze(1)
    images = F.interpolate(images, size=backbone.image_size, mode="bilinear", align_corners=False)
    images = (images - backbone.inputs.mean[0]) / backbone.inputs.std[0]
    assert backbone.text is not None
    rows = backbone.text.features([template.format(NAMES[c]) for c in range(10)])
    features = F.normalize(backbone.project(backbone.features(images)), dim=1)
    predicted = (features @ F.normalize(rows, dim=1).T).argmax(1)
    assert (predicted == torch.from_numpy(digits.target)).float().mean() >= 0.5


def test_unknown_words_are_spelled(backbone: FrozenViT) -> None:
    assert backbone.text is not None
    tokens = backbone.text.tokens(["photo of a cat"])
    assert tokens.ids.shape[1] == 1 + len(["photo", "of", "a", "c", "a", "t"]) + 1


def test_every_caption_is_true_of_its_own_image(script: ModuleType) -> None:
    rng = np.random.default_rng(0)
    labels = rng.permutation(300) % 62
    drawn = script.traits(Strokes(rng.uniform(2, 4, 300), rng.normal(0.1, 0.2, 300), rng.uniform(5, 26, 300)))
    captions, claims = script.write_captions(labels, drawn, 0)
    true = script.truth(claims, labels, drawn)
    assert true.diagonal().all()
    assert 0.01 < true.mean() < 0.3
    assert max(len(script.WordTokenizer(FACTS["words"]).encode(text)) for text in captions) <= 20


def test_a_caption_that_names_how_a_glyph_was_drawn_is_false_of_another_pen(script: ModuleType) -> None:
    drawn = np.array([[1, 0, 0], [2, 0, 0]])
    claims = script.Claims(np.ones((2, 62), bool), np.array([[1, -1, -1]] * 2))
    assert script.truth(claims, np.zeros(2, int), drawn).tolist() == [[1.0, 1.0], [0.0, 0.0]]


def test_training_twice_writes_equal_bytes_and_restores_every_setting(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script, "CHARACTERS", "aKx47")  # thinning the glyphs of all takes seconds
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    for folder in ("first", "second"):
        arguments = ["--glyphs", "300", "--epochs", "1", "--no-report", "--out", str(tmp_path / folder)]
        script.main(arguments)
        torch.rand(1)  # a second run that starts from another global state
    assert (torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()) == before
    files = ["clip_letters.json", "clip_letters.safetensors"]
    assert sorted(path.name for path in (tmp_path / "first").iterdir()) == files
    for name in files:
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()
    facts = json.loads((tmp_path / "first" / files[0]).read_text())
    assert facts["text"] == FACTS["text"]
    assert facts["sha256"] == hashlib.sha256((tmp_path / "first" / files[1]).read_bytes()).hexdigest()
    assert facts["sha256"] != FACTS["sha256"]


def test_a_mistaken_argument_of_the_script_is_refused(
    script: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        script.main(["--glyphs", "0"])
    assert stopped.value.code == 2
    assert "--glyphs: 0 is not allowed" in capsys.readouterr().err
