"""How a run's data set and backbone show images stays with the model, in prediction and on resume."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from drawing import same_picture

import clprompt
from clprompt import registry
from clprompt.data import DataBundle, ImageSource, Normalisation, datasets_for, inputs_for, takes_views
from clprompt.data.transforms import make_transform
from clprompt.errors import CheckpointError, ConfigError
from clprompt.experiment import config, inference, run, sameness
from clprompt.experiment.build import Builder
from clprompt.inputs import ImageSpec
from clprompt.registry import datasets

TINTED = Normalisation((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
PICTURES = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (8, 3, 20, 33), dtype=np.uint8))
SHOWN = {"test_resize": "squash", "corrupt": "inverted"}


@takes_views(normalisation=TINTED)
def tinted() -> DataBundle:
    """Noise, 20x33, four classes."""
    source = ImageSource(lambda index: PICTURES[index], np.arange(8) % 4)
    return DataBundle("tinted", source, source, ["a", "b", "c", "d"])


@pytest.fixture(scope="module", autouse=True)
def tinted_by_name() -> Iterator[None]:
    """The data set, for the tests of this file."""
    datasets.register("tinted_pictures")(tinted)
    yield
    registry.datasets._entries.pop("tinted_pictures")


def settings(folder: Path, **views: object) -> dict[str, object]:
    size = {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2}
    return {
        "runs_dir": str(folder),
        "device": "cpu",
        "export": "full",
        "data": {"name": "tinted_pictures", **views},
        "scenario": {"name": "split", "experiences": 2},
        "backbone": {"name": "vit_tiny_patch16_224", "normalise": "dataset", **size},
        "strategy": {"name": "ncm"},
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on squashed negatives, normalised as the data set says."""
    with same_picture():
        (result,) = run.run(settings(tmp_path_factory.mktemp("views"), **SHOWN))
    return result.folder


def test_a_model_remembers_how_its_test_images_were_drawn_resized_and_normalised(folder: Path) -> None:
    facts = json.loads((folder / "model.json").read_text())["transform"]
    assert (facts["test_resize"], facts["corrupt"]) == ("squash", "inverted")
    assert (facts["mean"], facts["std"]) == ([0.1, 0.2, 0.3], [0.4, 0.5, 0.6])
    model = clprompt.load(folder)
    assert model.backbone.inputs.facts() == facts
    bundle = tinted(**SHOWN)
    test = datasets_for(bundle, model.backbone)[2]
    assert torch.equal(model.transform(PICTURES[3]), test[3][0])


def test_predict_shows_an_image_as_the_run_tested_on_it(folder: Path, tmp_path: Path) -> None:
    from torchvision.io import write_png

    paths = [tmp_path / f"{number}.png" for number in range(8)]
    for path, picture in zip(paths, PICTURES, strict=True):
        write_png(picture, str(path))
    model = clprompt.load(folder)
    found = [row.probability for row in inference.predict(model, paths, top_k=1)]
    tested = torch.stack([datasets_for(tinted(**SHOWN), model.backbone)[2][i][0] for i in range(8)])
    with torch.no_grad():
        expected = model(tested).double().softmax(1).amax(1)
    torch.testing.assert_close(torch.tensor(found, dtype=torch.float64), expected)


def test_test_images_that_are_drawn_or_resized_otherwise_are_another_image_transform(tmp_path: Path) -> None:
    prints = []
    for views in ({}, {"test_resize": 18}, {"test_resize": "squash"}, {"corrupt": "edges"}):
        job = config.from_dict(settings(tmp_path, **views), name="views")
        prints.append(sameness.fingerprints(Builder().build(job), "weights"))
    assert len({each["image transform"] for each in prints}) == 4
    with pytest.raises(CheckpointError, match="another image transform"):
        sameness.check(prints[0], prints[1], job, tmp_path)


def test_runs_that_share_a_backbone_show_their_images_each_in_its_way(tmp_path: Path) -> None:
    builder, squashed = Builder(), settings(tmp_path, test_resize="squash")
    parts = [builder.build(config.from_dict(each, name="views")) for each in (settings(tmp_path), squashed)]
    assert [each.backbone.inputs.test_resize for each in parts] == [None, "squash"]
    assert [each.model.backbone.inputs.test_resize for each in parts] == [None, "squash"]
    assert parts[0].backbone.vit is parts[1].backbone.vit


# ----------------------------------------------------------------------------------------------- by hand


def test_a_script_gives_a_backbone_the_normalisation_of_its_data_set() -> None:
    from clprompt.backbones.vit import FrozenViT

    size = {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2}
    backbone = FrozenViT("vit_tiny_patch16_224", normalise="dataset", **size)
    with pytest.raises(ConfigError, match="the mean and deviation of the data set are not known here"):
        make_transform(backbone)
    test = datasets_for(tinted(), backbone)[2]
    told = backbone.with_inputs(inputs_for(tinted(), backbone))
    assert told.inputs.mean == TINTED.mean
    assert torch.equal(make_transform(told)(PICTURES[0]), test[0][0])
    assert told.fingerprint() == backbone.fingerprint()


def test_a_data_set_without_published_constants_is_refused_in_one_line() -> None:
    spec = ImageSpec((16, 16), 1, "bicubic", True, (float("nan"),), (float("nan"),))
    with pytest.raises(ConfigError, match="no published mean and deviation of digits are known") as told:
        inputs_for(datasets.get("digits").target(), spec)
    assert "\n" not in str(told.value)


def test_constants_of_three_channels_are_averaged_for_a_grey_backbone() -> None:
    spec = ImageSpec((16, 16), 1, "bicubic", True, (float("nan"),), (float("nan"),))
    assert inputs_for(tinted(), spec).mean == pytest.approx((0.2,))
