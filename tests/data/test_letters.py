"""Rendered letters, and the embedded backbone that was pre-trained on them."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import random
import string
from importlib import resources
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from safetensors.torch import load
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from timm.models.vision_transformer import VisionTransformer
from torch.nn import functional as F

from clprompt.data.sets.letters import LOOK_LIKE_DIGITS, font_files, render_letters
from clprompt.errors import ConfigError

ASSETS = resources.files("clprompt.assets")
SCRIPT = Path(__file__).parents[2] / "scripts" / "pretrain_letters.py"
FACTS = json.loads((ASSETS / "vit_letters.json").read_text())
WEIGHTS = (ASSETS / "vit_letters.safetensors").read_bytes()


def vit(pretrained: bool) -> VisionTransformer:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = VisionTransformer(**FACTS["model"])
    if pretrained:
        model.load_state_dict({name: value.float() for name, value in load(WEIGHTS).items()}, strict=True)
    return model.eval()


def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("pretrain_letters", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_equal_seeds_draw_equal_letters_and_other_seeds_others():
    images, labels, classes = render_letters(100, seed=3)
    again, labels_again, classes_again = render_letters(100, seed=3)
    assert np.array_equal(images, again)
    assert np.array_equal(labels, labels_again)
    assert classes == classes_again
    assert not np.array_equal(images, render_letters(100, seed=4)[0])


def test_a_larger_set_continues_a_smaller_one():
    images, labels, _ = render_letters(1200)
    fewer, fewer_labels, _ = render_letters(50)
    assert np.array_equal(images[:50], fewer)
    assert np.array_equal(labels[:50], fewer_labels)


def test_drawing_leaves_the_global_random_states_alone():
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    render_letters(20)
    assert random.getstate() == before[0]
    state = np.random.get_state()  # noqa: NPY002
    assert all(np.array_equal(a, b) for a, b in zip(state, before[1], strict=True))
    assert torch.equal(torch.get_rng_state(), before[2])


def test_the_result_of_drawing_does_not_depend_on_the_global_random_states():
    images = render_letters(20)[0]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(99)
        assert np.array_equal(images, render_letters(20)[0])


def test_images_have_the_form_of_the_digits():
    images, labels, classes = render_letters(500)
    digits = load_digits().images / 16
    assert (images.dtype, images.shape) == (np.float32, (500, 8, 8))
    assert (labels.dtype, labels.shape) == (np.int64, (500,))
    assert np.array_equal(images * 16, np.round(images * 16))
    assert images.min() == 0
    assert images.max() == 1
    assert abs(images.mean() - digits.mean()) < 0.06
    assert abs(images.std() - digits.std()) < 0.06
    assert images.sum((1, 2)).min() > 1, "an empty image"
    assert set(labels) == set(range(len(classes)))


def test_classes_of_letters_are_balanced():
    _, labels, _ = render_letters(2 * 37)
    assert np.bincount(labels).tolist() == [2] * 37


def test_letters_that_look_like_digits_are_absent():
    _, _, classes = render_letters(2 * 37)
    assert not set(classes) & set(LOOK_LIKE_DIGITS)
    assert len(classes) == len(set(classes)) == 52 - len(LOOK_LIKE_DIGITS)


def test_other_letters_can_be_left_out():
    images, labels, classes = render_letters(
        6, exclude=string.ascii_letters.replace("O", "").replace("x", "")
    )
    assert classes == ["O", "x"]
    assert sorted(labels) == [0, 0, 0, 1, 1, 1]
    assert images[labels == 0, 3:5, 3:5].mean() < 0.5 < images[labels == 1, 3:5, 3:5].mean()


def test_a_class_looks_more_like_itself_than_like_the_others():
    images, labels, classes = render_letters(3000)
    means = np.stack([images[:2000][labels[:2000] == label].mean(0).ravel() for label in range(len(classes))])
    nearest = ((images[2000:].reshape(1000, -1)[:, None] - means) ** 2).sum(-1).argmin(1)
    assert (nearest == labels[2000:]).mean() > 10 / len(classes)


def test_symbol_fonts_are_not_used():
    names = [path.name for path in font_files()]
    assert len(names) >= 10
    assert not [name for name in names if name.startswith(("cmex", "cmsy", "STIXSiz", "LastResort"))]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"count": 0}, "count"),
        ({"count": 1, "seed": -1}, "seed"),
        ({"count": 1, "exclude": "a7"}, "'7'"),
        ({"count": 1, "exclude": string.ascii_letters}, "exclude"),
    ],
)
def test_a_mistaken_argument_is_named(arguments: dict, named: str):
    with pytest.raises(ConfigError, match=named):
        render_letters(**arguments)


def test_the_recorded_hash_and_size_are_those_of_the_weights():
    assert hashlib.sha256(WEIGHTS).hexdigest() == FACTS["sha256"]
    assert len(WEIGHTS) == FACTS["size"] < 500_000


def test_the_embedded_weights_are_headless_float16_of_the_recorded_model():
    weights = load(WEIGHTS)
    assert {value.dtype for value in weights.values()} == {torch.float16}
    assert not [name for name in weights if name.startswith("head")]
    assert sum(value.numel() for value in weights.values()) == FACTS["parameters"]
    assert vit(pretrained=True).num_classes == 0


def test_features_learned_on_letters_tell_digits_apart():
    digits = load_digits()
    images = torch.from_numpy(digits.images / 16).float().unsqueeze(1)
    images = F.interpolate(images, size=(16, 16), mode="bilinear", align_corners=False)
    images = (images - FACTS["mean"][0]) / FACTS["std"][0]
    targets = torch.from_numpy(digits.target)
    fit, test = train_test_split(
        torch.arange(len(targets)), test_size=0.2, stratify=digits.target, random_state=0
    )

    def nearest_class_mean(model: VisionTransformer) -> float:
        with torch.inference_mode():
            features = model(images)
        means = torch.stack([features[fit][targets[fit] == label].mean(0) for label in range(10)])
        predicted = (F.normalize(features[test]) @ F.normalize(means).T).argmax(1)
        return float((predicted == targets[test]).float().mean())

    assert nearest_class_mean(vit(pretrained=True)) > nearest_class_mean(vit(pretrained=False)) + 0.3


def test_pre_training_twice_writes_equal_bytes_and_restores_every_setting(tmp_path: Path):
    module = script()
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled(), torch.get_rng_state()
    for folder in ("first", "second"):
        module.main(
            [
                "--out",
                str(tmp_path / folder),
                "--glyphs",
                "256",
                "--epochs",
                "1",
                "--threads",
                "1",
                "--no-report",
            ]
        )
        torch.rand(1)  # a second run that starts from another global state
    after = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    assert after == before[:2]
    files = sorted(path.name for path in (tmp_path / "first").iterdir())
    assert files == ["vit_letters.json", "vit_letters.safetensors"]
    for name in files:
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()
    facts = json.loads((tmp_path / "first" / "vit_letters.json").read_text())
    assert facts["model"] == FACTS["model"]
    assert facts["sha256"] == hashlib.sha256((tmp_path / "first" / files[1]).read_bytes()).hexdigest()
    assert facts["sha256"] != FACTS["sha256"]


def test_a_mistaken_argument_of_the_script_is_refused(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as stopped:
        script().main(["--epochs", "0"])
    assert stopped.value.code == 2
    assert "--epochs: 0 is not allowed" in capsys.readouterr().err
