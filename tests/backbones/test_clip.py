"""backbone.name=clip: files of open_clip and OpenAI, against open_clip's own tiny random towers."""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from image_text import tiny_image_text
from safetensors.torch import save_file
from small_methods import SMALL
from tiny_clip import CLIP, SIGLIP, known_by_name, state_of
from torch import Tensor

from clprompt import registry
from clprompt.backbones.build import make_backbone
from clprompt.backbones.clip import _refuse, clip_backbone
from clprompt.backbones.vit import FrozenViT
from clprompt.errors import BackboneError, ClpromptError, ConfigError, DataWarning
from clprompt.experiment import config
from clprompt.experiment.folder import environment
from clprompt.testing.bench import Workbench, tiny_vit

TEXTS = ["a photo of a golden retriever.", "digit seven", "a"]
CONFIGS = {
    "tiny": CLIP,
    "tiny-quickgelu": CLIP | {"quick_gelu": True},
    "tiny-custom": CLIP
    | {
        "custom_text": True,
        "vision_cfg": CLIP["vision_cfg"] | {"head_width": 16},
        "text_cfg": CLIP["text_cfg"] | {"vocab_size": 50},
    },
    "tiny-heads": CLIP | {"text_cfg": CLIP["text_cfg"] | {"width": 64, "heads": 1, "vocab_size": 50}},
    "tiny-siglip": SIGLIP,
    "tiny-siglip-linear": SIGLIP
    | {
        "embed_dim": 12,
        "vision_cfg": SIGLIP["vision_cfg"] | {"timm_pool": "avg", "timm_proj": "linear"},
        "text_cfg": SIGLIP["text_cfg"] | {"act_kwargs": {"approximate": "tanh"}},
    },
}


@pytest.fixture(scope="module", autouse=True)
def _names(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with known_by_name(CONFIGS, tmp_path_factory.mktemp("configs")):
        yield


@pytest.fixture(scope="module")
def made(
    _names: None, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[Any, dict[str, Tensor], Path]]:
    """By name: open_clip's model, its weights, and a file of them."""
    folder = tmp_path_factory.mktemp("weights")
    found = {}
    for name in CONFIGS:
        model = open_clip.create_model(name, pretrained=None).eval()
        state = state_of(model)
        model.load_state_dict(state)
        save_file(state, folder / f"{name}.safetensors")
        found[name] = (model, state, folder / f"{name}.safetensors")
    return found


IMAGES = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(2))
TOLERANCES = {torch.float32: 1e-5, torch.float64: 1e-10}


@pytest.mark.parametrize("dtype", TOLERANCES, ids=["float32", "float64"])
@pytest.mark.parametrize("name", CONFIGS)
def test_features_and_logits_equal_open_clips(made, name, dtype):
    model, _, file = made[name]
    model = model.to(dtype)
    backbone = clip_backbone(model=name, checkpoint=file).to(dtype)
    text, images = backbone.text, IMAGES.to(dtype)
    if text.vocabulary > 50:
        ids = open_clip.get_tokenizer(name)(TEXTS)
        texts = text.features(TEXTS)
    else:  # of no tokenizer at hand
        ids = torch.randint(2, 49, (3, text.length), generator=torch.Generator().manual_seed(3))
        ids[:, 7] = 49
        texts = text.run(text.embed(ids), torch.tensor([7, 7, 7]))
    features = backbone.project(backbone.features(images))
    with torch.no_grad():
        expected = model.encode_image(images), model.encode_text(ids)
        logits = model.get_logits(images, ids)[0]
    close = dict(rtol=0, atol=TOLERANCES[dtype])
    assert expected[0].std() > 0.1
    assert expected[1].std() > 0.1
    torch.testing.assert_close(features, expected[0], **close)
    torch.testing.assert_close(texts, expected[1], **close)
    found = backbone.scale * torch.nn.functional.normalize(features) @ torch.nn.functional.normalize(texts).T
    torch.testing.assert_close(
        found + (backbone.logit_bias or 0.0), logits, rtol=0, atol=20 * TOLERANCES[dtype]
    )
    model.float()


def test_the_activation_is_that_of_the_name_unless_said_otherwise(made):
    file = made["tiny"][2]
    found = {
        clip_backbone(model="tiny", checkpoint=file).activation,
        clip_backbone(model="tiny-quickgelu", checkpoint=file, quick_gelu=False).activation,
    }
    assert found == {"GELU"}
    backbones = [
        clip_backbone(model="tiny-quickgelu", checkpoint=file),
        clip_backbone(model="tiny", checkpoint=file, quick_gelu=True),
    ]
    assert {backbone.activation for backbone in backbones} == {"QuickGELU"}
    assert torch.equal(backbones[0].features(IMAGES), backbones[1].features(IMAGES))


def test_a_bare_checkpoint_has_the_shape_of_its_tensors(made):
    backbone = clip_backbone(checkpoint=made["tiny-heads"][2], quick_gelu=False)
    named = clip_backbone(model="tiny-heads", checkpoint=made["tiny-heads"][2])
    assert backbone.fingerprint() == named.fingerprint()
    assert torch.equal(backbone.features(IMAGES), named.features(IMAGES))
    ids, ends = torch.arange(16)[None], torch.tensor([15])
    texts = [each.text.run(each.text.embed(ids), ends) for each in (backbone, named)]
    assert torch.equal(*texts)


@pytest.mark.parametrize("half", [False, True], ids=["float32", "half"])
def test_wrappers_are_undone_and_half_precision_becomes_float32(made, tmp_path, half):
    _, state, file = made["tiny"]
    state = {key: value.half() if half else value for key, value in state.items()}
    torch.save({"epoch": 3, "state_dict": {f"module.{k}": v for k, v in state.items()}}, tmp_path / "w.pt")
    with pytest.warns(DataWarning, match='the tensors under "state_dict.module." are taken'):
        backbone = clip_backbone(model="tiny", checkpoint=tmp_path / "w.pt")
    assert {value.dtype for value in backbone.parameters()} == {torch.float32}
    if not half:
        assert backbone.fingerprint() == clip_backbone(model="tiny", checkpoint=file).fingerprint()


def test_images_are_prepared_as_for_clip(made):
    inputs = clip_backbone(model="tiny", checkpoint=made["tiny"][2]).inputs
    assert inputs.size == (32, 32)
    assert inputs.mean == pytest.approx(open_clip.OPENAI_DATASET_MEAN)
    assert inputs.std == pytest.approx(open_clip.OPENAI_DATASET_STD)
    assert inputs.interpolation == "bicubic"


def test_positions_are_resampled_to_another_image_size(made):
    with pytest.warns(DataWarning, match="4x4 patches .* are resampled to 2x2"):
        backbone = clip_backbone(model="tiny", checkpoint=made["tiny"][2], img_size=16)
    assert backbone.image_size == (16, 16)


def test_random_weights_are_the_same_every_time():
    first, second = (clip_backbone(model="tiny", pretrained=False) for _ in range(2))
    assert first.fingerprint() == second.fingerprint()
    assert first.scale == pytest.approx(1 / 0.07)


def test_a_section_of_a_configuration_makes_it(made):
    section = {"name": "clip", "model": "tiny", "checkpoint": str(made["tiny"][2])}
    values = {"data": "digits", "scenario": "split", "strategy": "ncm", "backbone": section}
    resolved = config.from_dict(values)
    assert resolved.backbone == section | {
        "quick_gelu": None,
        "pretrained": None,
        "normalise": "backbone",
        "img_size": None,
    }
    assert config.from_dict(resolved.to_dict()) == resolved
    assert make_backbone(resolved.backbone).text is not None


# ------------------------------------------------------------------------------------------- refusals


@pytest.mark.skipif(
    "MobileCLIP2-S0" not in open_clip.list_models(), reason="counted for an open_clip that has MobileCLIP2"
)
def test_of_open_clips_names_only_compared_towers_are_taken():
    """The others by what they are; some names fall under two reasons, and one is told."""
    told: Counter[str] = Counter()
    for name in open_clip.list_models():
        if name in CONFIGS:
            continue
        try:
            _refuse(open_clip.get_model_config(name), name)
        except BackboneError as error:
            told[str(error).split(" is not supported: ")[1].split(";")[0]] += 1
        else:
            told["taken"] += 1
    families = {key: told[f"its image tower is {key}"] for key in ("a ResNet", "a ConvNeXt", "a ViTamin")}
    assert families == {"a ResNet": 10, "a ConvNeXt": 11, "a ViTamin": 15}
    assert told["its image tower is a FastViT"] == 6
    assert told["its image tower is a Swin Transformer"] == 1
    assert told["its image tower is an EVA"] == 7
    assert told["its image tower has its last norm behind pooling"] == 6
    assert sum(count for key, count in told.items() if "Hugging Face" in key) == 9


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"model": "ViT-B-61"}, r'backbone.model "ViT-B-61" is none of open_clip\'s.*ViT-B-16'),
        ({"model": "RN50"}, "backbone clip RN50 is not supported: its image tower is a ResNet"),
        ({"model": "coca_ViT-B-32"}, "it is a CoCa"),
        ({"model": "roberta-ViT-B-32"}, "its text tower is Hugging Face's roberta-base"),
        (
            {"model": "PE-Core-T-16-384", "checkpoint": None, "pretrained": False},
            "its image tower is a Perception Encoder",
        ),
        ({"model": "ViT-M-16-alt"}, "its blocks have ls_init_value"),
        ({"checkpoint": None}, "has no weights: give backbone.checkpoint=FILE, or write down"),
        ({"pretrained": True}, "downloads nothing: give backbone.checkpoint=FILE"),
        ({"model": None}, "activation cannot be seen in the file; give backbone.quick_gelu=true"),
        ({"model": "tiny-heads"}, r"token_embedding.weight is \[49408, 24\] in the file and \[50, 64\]"),
        ({"checkpoint": "absent.pt"}, "backbone.checkpoint absent.pt: no file absent.pt"),
        ({"img_size": 30}, "img_size 30 is not a multiple of the patch size 8; 24 or 32 would be"),
        ({"img_size": 0}, "img_size must be .*at least 1.*, got 0"),
        ({"quick_gelu": "yes"}, 'quick_gelu must be .*, got "yes"'),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_told_in_one_line(made, change, line):
    with pytest.raises(ClpromptError, match=line):
        clip_backbone(**{"model": "tiny", "checkpoint": made["tiny"][2]} | change)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"logit_scale": None}, "holds no image-text model: it has no logit_scale; it holds "),
        ({"visual.proj": None}, r"the projection of images is none in the file and \(64, 12\) in the model"),
        ({"ln_final.bias": None}, "text tower and projections of clip tiny: norm.bias is missing"),
        ({"positional_embedding": torch.zeros(9, 24)}, r"positional_embedding is \[9, 24\] in the file"),
        ({"ln_final.bias": torch.full((24,), math.nan)}, "norm.bias holds values that are not finite"),
        ({"logit_scale": torch.tensor(math.inf)}, "logit_scale holds values that are not finite"),
        ({"visual.ln_post.bias": None}, "norm.bias is missing"),
        ({"input_resolution": torch.tensor(32)}, "is OpenAI's, whose activation is QuickGELU"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)  # fmt: skip
def test_a_file_that_does_not_fit_is_told_in_one_line(made, tmp_path, change, line):
    state = {key: value for key, value in (made["tiny"][1] | change).items() if value is not None}
    save_file(state, tmp_path / "weights.safetensors")
    with pytest.raises(BackboneError, match=line):
        clip_backbone(model="tiny", checkpoint=tmp_path / "weights.safetensors")


def test_a_torchscript_archive_is_refused(tmp_path):
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "ViT-B-16.pt")
    with pytest.raises(BackboneError, match="it is a TorchScript program"):
        clip_backbone(model="tiny", checkpoint=tmp_path / "ViT-B-16.pt")


def test_a_bare_siglip_needs_its_name(made):
    with pytest.raises(BackboneError, match=r"has no visual.conv1.weight.*give backbone.model=NAME"):
        clip_backbone(checkpoint=made["tiny-siglip"][2], quick_gelu=False)


def test_unknown_keys_of_the_section_are_refused():
    section = {"name": "clip", "modell": "tiny", "checkpoint": "f"}
    values = {"data": "digits", "scenario": "split", "strategy": "ncm", "backbone": section}
    with pytest.raises(ConfigError, match=r'unknown key "backbone.modell".*model'):
        config.from_dict(values)


def test_open_clip_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(BackboneError, match=r"pip install 'clprompt\[clip\]'"):
        clip_backbone(model="tiny", pretrained=False)


def test_a_tokenizer_that_is_not_installed_is_named_when_texts_come(made, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    backbone = clip_backbone(model="tiny-siglip", checkpoint=made["tiny-siglip"][2])
    assert backbone.features(IMAGES).shape == (3, 32)
    with pytest.raises(BackboneError, match=r"the tokenizer timm/ViT-B-16-SigLIP .* is not installed"):
        backbone.text.features(["a"])


def test_texts_are_refused_and_not_cut(made):
    backbone = clip_backbone(model="tiny", checkpoint=made["tiny"][2])
    with pytest.raises(ConfigError, match=r"is 17 tokens long, start and end included; .* at most 16"):
        backbone.text.features(["dog " * 15])


# ------------------------------------------------------------------------- strategies on such a backbone


@pytest.mark.parametrize(
    "name",
    [
        n
        for n in registry.strategies.names()
        if not getattr(registry.strategies.get(n).target, "needs_text", False)
    ],
)
def test_a_strategy_is_the_same_to_the_bit_on_the_image_tower(name):
    logits = []
    for backbone in (tiny_vit(), tiny_image_text(tiny_vit())):
        bench = Workbench(registry.strategies.get(name).target, **SMALL.get(name, {}))
        bench.backbones = {"class token": backbone}
        model, _ = bench.begun(steps=2, experience=0)
        logits.append(model.eval()(bench.test.images[:8]))
    assert torch.equal(*logits)


def test_a_run_writes_down_the_weights_hash_and_the_activation(made):
    model = registry.strategies.get("ncm").target(
        clip_backbone(model="tiny-quickgelu", checkpoint=made["tiny"][2])
    )
    found = environment(model, torch.device("cpu"))["backbone"]
    assert found == {
        "source": "clip tiny-quickgelu",
        "sha256": model.backbone.fingerprint(),
        "activation": "QuickGELU",
    }
    alone = registry.strategies.get("ncm").target(FrozenViT(model.backbone.vit))
    assert "activation" not in environment(alone, torch.device("cpu"))["backbone"]
