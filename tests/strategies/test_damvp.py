"""DAM-VP beyond the golden file: frames, clusters, growth, sharing, token prompts, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from clprompt.backbone import FrozenViT
from clprompt.clustering import cluster, mean_distance
from clprompt.errors import ConfigError, DataError, ProtocolError
from clprompt.frames import as_images, frame_places, frame_size, load_frame, patch_offsets, save_frame
from clprompt.seeding import generator, preserved_rng
from clprompt.strategies.damvp import DAMVPModel


@pytest.fixture
def backbone() -> FrozenViT:
    with preserved_rng(1):
        vit = VisionTransformer(
            img_size=16, patch_size=4, in_chans=1, embed_dim=16, depth=3, num_heads=2, num_classes=0
        )
        for parameter in vit.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    return FrozenViT(vit).double()


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=generator(seed, "draw"), dtype=torch.float64)


def blobs(count: int, each: int = 20, seed: int = 0) -> Tensor:
    """[count * each, 16]: well separated groups."""
    centres = 20 * draw(count, 16, seed=seed)
    return (centres[:, None] + draw(count, each, 16, seed=seed + 1)).flatten(0, 1)


def build(backbone: FrozenViT, features: Tensor | None = None, **arguments: Any) -> DAMVPModel:
    model = DAMVPModel(backbone, **{"pad": 4, **arguments}).double()
    model.begin_experience([0, 1])
    model.observe(torch.tensor([0, 1]))
    if features is not None:
        model.fit_clusters(features)
    return model.double().eval()


def test_a_frame_covers_the_border_and_nothing_else():
    places, size = frame_places(1, 16, 4), frame_size(1, 16, 4)
    assert len(places) == size == len(places.unique()) == 4 * 1 * 4 * 12
    image = as_images(torch.ones(1, size), places, 1, 16)[0, 0]
    assert image[4:12, 4:12].sum() == 0
    assert image.sum() == size
    assert as_images(torch.ones(1, frame_size(3, 16, 8)), frame_places(3, 16, 8), 3, 16).all()


def test_the_patch_embedding_form_equals_the_pixel_form_in_values_and_gradients(backbone):
    frames = draw(3, frame_size(1, 16, 4)).requires_grad_()
    images, index = draw(5, 1, 16, 16, seed=3), torch.tensor([0, 2, 2, 1, 0])
    framed = as_images(frames, frame_places(1, 16, 4), 1, 16)
    pixels = backbone.prompted(backbone.embed(images + framed[index]))
    offsets = patch_offsets(backbone, framed)
    patches = backbone.prompted(backbone.position(backbone.patches(images) + offsets[index]))
    torch.testing.assert_close(patches, pixels, rtol=0, atol=1e-12)
    grads = [
        torch.autograd.grad(out.square().sum(), frames, retain_graph=True)[0] for out in (pixels, patches)
    ]
    torch.testing.assert_close(grads[0], grads[1], rtol=0, atol=1e-10)


def test_zero_frames_give_the_bare_model_and_so_does_no_cluster_at_all(backbone):
    images = draw(5, 1, 16, 16)
    bare = build(backbone).eval().encode(images)[0]
    zero = build(backbone, blobs(3)).encode(images)[0]
    torch.testing.assert_close(zero, bare, rtol=0, atol=1e-12)
    torch.testing.assert_close(bare, backbone.features(images))


def test_clusters_follow_the_diversity_of_the_data_up_to_the_cap():
    assert [len(set(cluster(blobs(k), 30.0))) for k in (1, 3, 5)] == [1, 3, 5]
    assert len(set(cluster(blobs(9), mean_distance(blobs(9)) * 0.1, max_clusters=4))) == 4


def test_clusters_ignore_row_order_a_shift_and_a_common_scale():
    features = blobs(4)
    threshold = mean_distance(features)
    order = torch.randperm(len(features), generator=generator(0, "order"))
    labels = cluster(features, threshold)

    def same(other) -> bool:
        return len(set(zip(labels.tolist(), other.tolist(), strict=True))) == len(set(labels.tolist()))

    shuffled = torch.empty(len(features), dtype=torch.int64)
    shuffled[order] = torch.from_numpy(cluster(features[order], threshold))
    assert same(shuffled)
    assert same(cluster(features + 7, threshold))
    assert same(cluster(features * 3, threshold * 3))


def test_small_clusters_go_to_the_nearest_mean_and_no_prototype_is_an_image(backbone):
    features = torch.cat([blobs(2), 1000 + draw(1, 16)])
    model = build(backbone, features, threshold=float(mean_distance(blobs(2))))
    assert int(model.counts.sum()) == len(features)
    assert int(model.counts.min()) >= 5
    assert not (torch.cdist(model.prototypes, features) < 1e-9).any()
    assert len(build(backbone, draw(3, 16), min_cluster_size=5).prototypes) == 1


def test_each_prototype_is_assigned_to_itself_without_nan(backbone):
    model = build(backbone, blobs(4))
    assert torch.equal(model.assign(model.prototypes), torch.arange(4))


def test_a_new_experience_freezes_old_frames_and_leaves_samples_that_kept_their_frame_alone(backbone):
    images = draw(6, 1, 16, 16)
    model = build(backbone, backbone.features(images).repeat(3, 1), init="random")
    before, frames = model.encode(images)[0], [frame.clone() for frame in model.frames]
    model.begin_experience([2, 3])
    model.observe(torch.tensor([2, 3]))
    model.fit_clusters(1000 + blobs(2, seed=9))
    model.double()
    assert [name for name in model.trainable() if name.startswith("frames")] == [
        f"frames.{k}" for k in range(len(frames), len(model.frames))
    ]
    assert all(torch.equal(a, b) for a, b in zip(frames, model.frames, strict=False))
    torch.testing.assert_close(model.encode(images)[0], before, rtol=0, atol=0)


def test_idle_frames_have_no_gradient(backbone):
    images = draw(4, 1, 16, 16)
    model = build(
        backbone, torch.cat([backbone.features(images).repeat(5, 1), 1e3 + blobs(1)]), init="random"
    )
    model.train().training_loss(images, torch.tensor([0, 1, 0, 1])).loss.backward()
    used = {int(model.frame_of[k]) for k in model.assign(backbone.features(images))}
    assert [frame.grad is not None for frame in model.frames] == [k in used for k in range(len(model.frames))]
    assert len(used) < len(model.frames)


def test_an_equal_second_experience_shares_frames_when_asked(backbone):
    for share, added in ((True, 0), (False, 3)):
        model = build(backbone, blobs(3), share=share)
        model.begin_experience([2, 3])
        model.fit_clusters(blobs(3))
        assert len(model.frames) == 3 + added
        assert len(model.prototypes) == 6


def test_one_prompt_at_most_is_generic_visual_prompting(backbone):
    model = build(backbone, blobs(4), cluster=False, max_prompts=1)
    model.begin_experience([2, 3])
    model.fit_clusters(blobs(2, seed=5))
    assert len(model.frames) == 1
    assert model.frame_of.tolist() == [0, 0]


@pytest.mark.parametrize("deep", [True, False])
def test_token_prompts_use_the_same_clusters_and_do_not_depend_on_batch_companions(backbone, deep):
    images = draw(6, 1, 16, 16)
    model = build(
        backbone,
        backbone.features(images).repeat(3, 1),
        prompt="token",
        deep=deep,
        min_cluster_size=1,
        threshold_ratio=0.1,
    )
    assert len(model.frames) > 1
    alone = torch.cat([model(image[None]) for image in images])
    torch.testing.assert_close(model(images), alone, rtol=0, atol=1e-12)
    assert not torch.allclose(model.encode(images)[0], backbone.features(images))


def test_a_state_with_another_number_of_clusters_loads(backbone):
    images = draw(4, 1, 16, 16)
    trained = build(backbone, blobs(4), init="random")
    fresh = DAMVPModel(backbone, pad=4).double()
    fresh.load_state_dict(trained.method_state())
    assert torch.equal(fresh.eval()(images), trained(images))
    smaller = build(backbone, blobs(2), init="random")
    fresh.load_state_dict(smaller.method_state())
    assert torch.equal(fresh.eval()(images), smaller(images))


def test_a_meta_frame_starts_every_prompt_and_is_refused_where_it_does_not_fit(backbone, tmp_path):
    frame = draw(frame_size(1, 16, 4)).float()
    save_frame(tmp_path / "meta.safetensors", frame, backbone, 4, {"seed": 0})
    model = build(backbone, blobs(3), meta_file=str(tmp_path / "meta.safetensors"))
    assert all(torch.equal(own.float(), frame) for own in model.frames)
    with pytest.raises(ConfigError, match="frame of 4 pixels around images of 16, not 3"):
        DAMVPModel(backbone, pad=3, meta_file=str(tmp_path / "meta.safetensors"))
    with pytest.raises(DataError, match="no file"):
        load_frame(tmp_path / "none", backbone, 4)
    (tmp_path / "text").write_text("not a frame")
    with pytest.raises(DataError, match="holds no frame"):
        load_frame(tmp_path / "text", backbone, 4)


def test_a_meta_frame_of_another_backbone_is_a_warning(backbone, tmp_path):
    save_frame(
        tmp_path / "meta.safetensors", torch.zeros(frame_size(1, 16, 4)), backbone, 4, {"backbone": "other"}
    )
    with pytest.warns(UserWarning, match="backbone other"):
        load_frame(tmp_path / "meta.safetensors", backbone, 4)


def test_training_without_clusters_says_what_to_call(backbone):
    with pytest.raises(ProtocolError, match="fit_clusters"):
        build(backbone).train().training_loss(draw(2, 1, 16, 16), torch.tensor([0, 1]))


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"pad": 0}, "pad must be 1..8"),
        ({"pad": 9}, "pad must be 1..8"),
        ({"threshold": 1.0, "threshold_ratio": 1.0}, "not both"),
        ({"threshold": 0.0}, "threshold must be above 0"),
        ({"cluster_samples": 1}, "cluster_samples must be at least 2"),
        ({"max_clusters": 0}, "max_clusters must be at least 1"),
        ({"init": "meta"}, "meta_file belong together"),
        ({"prompt": "token", "meta_file": "f"}, "cannot start token prompts"),
        ({"prompt": "token", "layers": (7,)}, "block 7"),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else "",
)
def test_mistakes_are_one_line(backbone, arguments, text):
    with pytest.raises(ConfigError, match=text):
        build(backbone, **arguments)


@pytest.mark.parametrize(
    "features", [torch.zeros(0, 16), torch.full((3, 16), float("nan"))], ids=["none", "nan"]
)
def test_features_that_cannot_be_clustered_are_refused(backbone, features):
    with pytest.raises(DataError):
        build(backbone, features, threshold=1.0)


def test_active_coordinates_keep_theirs_while_classes_arrive_and_run_out_in_one_line(backbone):
    model = build(backbone, blobs(2), head="active")
    features = draw(3, 16)
    before = model.logits(features)[:, :2]
    model.observe(torch.tensor([5]))
    torch.testing.assert_close(model.logits(features)[:, :2], before)
    model.observe(torch.arange(17))
    with pytest.raises(ConfigError, match="16 coordinates for 17 classes"):
        model.logits(features)


def test_the_frames_are_drawn(backbone):
    figure = build(backbone, blobs(3), init="random").diagnostics()["prompts/frames"]
    assert len(figure.axes[0].images) == 1  # all frames on one canvas
    assert [text.get_text() for text in figure.axes[0].texts] == ["1\nexp. 1", "2\nexp. 1", "3\nexp. 1"]
