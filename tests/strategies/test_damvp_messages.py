"""What DAM-VP tells its user: refusals and warnings, its pictures, what its prompts take."""

from __future__ import annotations

import pytest
import torch
from damvp_models import blobs, build, draw
from timm.models.vision_transformer import VisionTransformer

from clprompt.backbones.vit import FrozenViT
from clprompt.errors import ConfigError, DataError, ProtocolError
from clprompt.prompting.build import construct
from clprompt.seeding import preserved_rng
from clprompt.strategies.damvp import DAMVPModel
from clprompt.strategies.damvp.frames import frame_size, load_frame, save_frame


def test_a_meta_frame_starts_every_prompt(grey_backbone, tmp_path):
    frame = draw(frame_size(1, 16, 4)).float()
    save_frame(tmp_path / "meta.safetensors", frame, grey_backbone, 4, {"seed": 0})
    model = build(grey_backbone, blobs(3), init_file=str(tmp_path / "meta.safetensors"))
    assert all(torch.equal(own.float(), frame) for own in model.frames)


def test_a_meta_frame_that_does_not_fit_is_refused(grey_backbone, tmp_path):
    frame = draw(frame_size(1, 16, 4)).float()
    save_frame(tmp_path / "meta.safetensors", frame, grey_backbone, 4, {"seed": 0})
    with pytest.raises(ConfigError, match="frame of 4 pixels around images of 16, not 3"):
        construct(DAMVPModel, grey_backbone, pad=3, init_file=str(tmp_path / "meta.safetensors"))


@pytest.mark.parametrize("arguments", [{"init": "zero"}, {"init": "random", "prompt": "pixel"}])
def test_another_start_than_the_file_s_is_refused(grey_backbone, tmp_path, arguments):
    file = tmp_path / "meta.safetensors"
    save_frame(file, draw(frame_size(1, 16, 4)).float(), grey_backbone, 4, {"seed": 0})
    model = construct(DAMVPModel, grey_backbone, pad=4, init_file=str(file), **arguments)
    with pytest.raises(ConfigError, match="init=meta and init_file belong together"):
        model.check_stream([[0]])


def test_a_start_from_a_file_needs_one(grey_backbone):
    with pytest.raises(ConfigError, match="init=meta and init_file belong together"):
        build(grey_backbone, init="meta").check_stream([[0]])


def test_a_frame_starts_no_token_prompts(grey_backbone, tmp_path):
    file = tmp_path / "meta.safetensors"
    save_frame(file, draw(frame_size(1, 16, 4)).float(), grey_backbone, 4, {"seed": 0})
    with pytest.raises(ConfigError, match="is a pixel frame; it cannot start token prompts"):
        construct(DAMVPModel, grey_backbone, prompt="token", init_file=str(file))


def test_a_file_without_a_meta_frame_is_refused(grey_backbone, tmp_path):
    with pytest.raises(DataError, match="no file"):
        load_frame(tmp_path / "none", grey_backbone, 4)
    (tmp_path / "text").write_text("not a frame")
    with pytest.raises(DataError, match="holds no frame"):
        load_frame(tmp_path / "text", grey_backbone, 4)


def test_a_meta_frame_of_another_backbone_is_a_warning(grey_backbone, tmp_path):
    save_frame(
        tmp_path / "meta.safetensors",
        torch.zeros(frame_size(1, 16, 4)),
        grey_backbone,
        4,
        {"backbone": "other"},
    )
    with pytest.warns(UserWarning, match="backbone other"):
        load_frame(tmp_path / "meta.safetensors", grey_backbone, 4)


def test_training_without_clusters_says_what_to_call(grey_backbone):
    with pytest.raises(ProtocolError, match="fit_clusters"):
        build(grey_backbone).train().training_loss(draw(2, 1, 16, 16), torch.tensor([0, 1]))


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"pad": 0}, "pad must be at least 1, got 0"),
        ({"pad": 9}, "pad must be 1..8"),
        ({"threshold": 1.0, "threshold_ratio": 1.0}, "not both"),
        ({"threshold": 0.0}, "threshold must be above 0"),
        ({"threshold_ratio": -1.0}, "threshold_ratio must be above 0"),
        ({"cluster_samples": 1}, "cluster_samples must be at least 2"),
        ({"max_clusters": 0}, "max_clusters must be at least 1"),
        ({"min_cluster_size": 0}, "min_cluster_size must be at least 1"),
        ({"max_prompts": 0}, "max_prompts must be at least 1"),
        ({"init_std": -1.0}, "init_std must be at least 0"),
        ({"share_ratio": -0.1}, "share_ratio must be at least 0"),
        ({"prompt": "token", "length": 0}, "length must be at least 1"),
        ({"prompt": "token", "layers": (7,)}, "block 7"),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else "",
)
def test_mistakes_are_one_line(grey_backbone, arguments, text):
    with pytest.raises(ConfigError, match=text):
        build(grey_backbone, **arguments)


@pytest.mark.parametrize(
    "features", [torch.zeros(0, 16), torch.full((3, 16), float("nan"))], ids=["none", "nan"]
)
def test_features_that_cannot_be_clustered_are_refused(grey_backbone, features):
    with pytest.raises(DataError):
        build(grey_backbone, features, threshold=1.0)


def test_active_coordinates_keep_theirs_while_classes_arrive(grey_backbone):
    model = build(grey_backbone, blobs(2), head="active")
    features = draw(3, 16)
    before = model.logits(features)[:, :2]
    model.observe(torch.tensor([5]))
    torch.testing.assert_close(model.logits(features)[:, :2], before)


def test_active_coordinates_run_out_in_one_line(grey_backbone):
    model = build(grey_backbone, blobs(2), head="active")
    features = draw(3, 16)
    model.observe(torch.arange(17))
    with pytest.raises(ConfigError, match="16 coordinates for 17 classes"):
        model.logits(features)


def test_images_that_the_frames_do_not_fit_are_refused():
    shape = {"patch_size": 4, "in_chans": 1, "embed_dim": 16, "depth": 1, "num_heads": 2, "num_classes": 0}
    with preserved_rng(1):
        any_size = VisionTransformer(img_size=16, dynamic_img_size=True, **shape)
    model = build(FrozenViT(any_size), blobs(2))
    with pytest.raises(DataError, match="frames are made for images of 16 x 16, got 12 x 16"):
        model(draw(2, 1, 12, 16))
    with preserved_rng(1):
        vit = VisionTransformer(
            img_size=(16, 8), patch_size=4, embed_dim=16, depth=1, num_heads=2, num_classes=0
        )
    with pytest.raises(ConfigError, match="pixel prompts need square images, the backbone takes 16x8"):
        DAMVPModel(FrozenViT(vit))
    assert DAMVPModel(FrozenViT(vit), prompt="token").boundaries == "required"


# -------------------------------------------------------------------------------------------------- pictures


def test_the_frames_are_drawn(grey_backbone):
    told = build(grey_backbone, blobs(3), init="random").diagnostics()
    (axes,) = told["prompts/frames"]().axes
    assert [text.get_text() for text in axes.texts] == ["1\nexp. 1", "2\nexp. 1", "3\nexp. 1"]
    assert (told["clusters/new"], told["clusters/all"]) == (3, 3)
    many = build(grey_backbone, 100 * draw(70, 16), threshold=1e-6, max_clusters=None, min_cluster_size=1)
    (axes,) = many.diagnostics()["prompts/frames"]().axes
    assert len(axes.texts) == 64
    assert "70 frames, the first 64" in axes.get_title()


def test_the_map_is_drawn_once_from_a_projection_that_is_then_forgotten(grey_backbone):
    model = build(grey_backbone, blobs(3))
    figure = model.opening_diagnostics()["clusters/map"]()
    (axes,) = figure.axes
    assert axes.get_title() == "Experience 1: 60 images, 3 clusters"
    assert sorted(text.get_text() for text in axes.texts) == ["1", "2", "3"]
    assert sum(len(points.get_offsets()) for points in axes.collections) == 60 + 3
    assert model.opening_diagnostics() == {}
    model.begin_experience([2, 3])
    model.fit_clusters(100 + blobs(2))
    model.end_experience()
    assert model.opening_diagnostics() == {}


def test_the_contact_sheet_shows_the_nearest_images_of_each_prototype(grey_backbone):
    images = draw(30, 1, 16, 16)
    model = build(grey_backbone, grey_backbone.features(images), threshold_ratio=0.9, min_cluster_size=2)
    before = {name: value.clone() for name, value in model.method_state().items()}
    figure = model.probe(lambda: images.split(7))["clusters/nearest_images"]()
    (axes,) = figure.axes
    counts = model.assign(grey_backbone.features(images)).bincount(minlength=len(model.prototypes)).tolist()
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels == [f"cluster {k + 1}, exp. 1: {n}" for k, n in enumerate(counts)]
    assert "30 evaluation images" in axes.get_title()
    after = model.method_state()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert model.probe(lambda: iter(()))["clusters/nearest_images"]() is None
    assert build(grey_backbone).probe(lambda: images.split(7)) == {}


@pytest.mark.parametrize("prompt", ["pixel", "token"])
def test_an_image_is_explained_by_its_cluster_and_frame(grey_backbone, prompt):
    images = draw(3, 1, 16, 16)
    settings = {"prompt": prompt, "min_cluster_size": 1, **({"pad": None} if prompt == "token" else {})}
    model = build(grey_backbone, grey_backbone.features(images).repeat(3, 1), **settings)
    figure = model.explain(images)["prompts"]
    assert sum(bool(axes.images) for axes in figure.axes) == 3 * (3 if prompt == "pixel" else 1)
    assert "experience 1" in figure.axes[0].get_ylabel()


def test_the_model_says_what_its_prompts_take(grey_backbone):
    told = build(grey_backbone, blobs(3)).float().describe()
    size = frame_size(1, 16, 4)
    assert told["clusters"] == told["prompts"] == 3
    assert (told["numbers_per_prompt"], told["bytes_per_prompt"]) == (size, 4 * size)
    assert told["state_bytes"] > 3 * 4 * size
    assert told["trained_numbers"] == 3 * size + 2 * 16 + 2
