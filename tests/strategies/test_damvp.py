"""DAM-VP beyond the golden file: frames, clusters, growth, sharing, training, token prompts."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from damvp_models import blobs, build, draw
from torch import Tensor

from clprompt.backbones.vit import FrozenViT
from clprompt.seeding import generator
from clprompt.strategies.damvp import DAMVPModel
from clprompt.strategies.damvp.clustering import cluster, mean_distance, nearest_prototype, sample_features
from clprompt.strategies.damvp.frames import as_images, frame_places, frame_size, patch_offsets
from clprompt.training import optim


def test_a_frame_covers_the_border_and_nothing_else():
    places, size = frame_places(1, 16, 4), frame_size(1, 16, 4)
    assert len(places) == size == len(places.unique()) == 4 * 1 * 4 * 12
    image = as_images(torch.ones(1, size), places, 1, 16)[0, 0]
    assert image[4:12, 4:12].sum() == 0
    assert image.sum() == size
    assert as_images(torch.ones(1, frame_size(3, 16, 8)), frame_places(3, 16, 8), 3, 16).all()


def test_the_patch_embedding_form_equals_the_pixel_form_in_values_and_gradients(grey_backbone):
    frames = draw(3, frame_size(1, 16, 4)).requires_grad_()
    images, index = draw(5, 1, 16, 16, seed=3), torch.tensor([0, 2, 2, 1, 0])
    framed = as_images(frames, frame_places(1, 16, 4), 1, 16)
    pixels = grey_backbone.prompted(grey_backbone.embed(images + framed[index]))
    offsets = patch_offsets(grey_backbone, framed)
    patches = grey_backbone.prompted(grey_backbone.position(grey_backbone.patches(images) + offsets[index]))
    torch.testing.assert_close(patches, pixels, rtol=0, atol=1e-12)
    grads = [
        torch.autograd.grad(out.square().sum(), frames, retain_graph=True)[0] for out in (pixels, patches)
    ]
    torch.testing.assert_close(grads[0], grads[1], rtol=0, atol=1e-10)


def test_zero_frames_give_the_bare_model(grey_backbone):
    images = draw(5, 1, 16, 16)
    bare = build(grey_backbone).eval().encode(images)[0]
    zero = build(grey_backbone, blobs(3)).encode(images)[0]
    torch.testing.assert_close(zero, bare, rtol=0, atol=1e-12)
    torch.testing.assert_close(bare, grey_backbone.features(images))


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


def test_small_clusters_go_to_the_nearest_mean(grey_backbone):
    features = torch.cat([blobs(2), 1000 + draw(1, 16)])
    model = build(grey_backbone, features, threshold=float(mean_distance(blobs(2))))
    assert int(model.counts.sum()) == len(features)
    assert int(model.counts.min()) >= 5
    assert not (torch.cdist(model.prototypes, features) < 1e-9).any()
    assert len(build(grey_backbone, draw(3, 16), min_cluster_size=5).prototypes) == 1


def test_each_prototype_is_assigned_to_itself_without_nan(grey_backbone):
    model = build(grey_backbone, blobs(4))
    assert torch.equal(model.assign(model.prototypes), torch.arange(4))


def test_a_new_experience_leaves_samples_that_kept_their_frame_alone(grey_backbone):
    images = draw(6, 1, 16, 16)
    model = build(grey_backbone, grey_backbone.features(images).repeat(3, 1), init="random")
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


def test_idle_frames_have_no_gradient(grey_backbone):
    images = draw(4, 1, 16, 16)
    model = build(
        grey_backbone, torch.cat([grey_backbone.features(images).repeat(5, 1), 1e3 + blobs(1)]), init="random"
    )
    model.train().training_loss(images, torch.tensor([0, 1, 0, 1])).loss.backward()
    used = {int(model.frame_of[k]) for k in model.assign(grey_backbone.features(images))}
    assert [frame.grad is not None for frame in model.frames] == [k in used for k in range(len(model.frames))]
    assert len(used) < len(model.frames)


def test_an_equal_second_experience_shares_frames_when_asked(grey_backbone):
    for share, added in ((True, 0), (False, 3)):
        model = build(grey_backbone, blobs(3), share=share)
        model.begin_experience([2, 3])
        model.fit_clusters(blobs(3))
        assert len(model.frames) == 3 + added
        assert len(model.prototypes) == 6


def test_one_prompt_at_most_is_generic_visual_prompting(grey_backbone):
    model = build(grey_backbone, blobs(4), cluster=False, max_prompts=1)
    model.begin_experience([2, 3])
    model.fit_clusters(blobs(2, seed=5))
    assert len(model.frames) == 1
    assert model.frame_of.tolist() == [0, 0]


@pytest.mark.parametrize("deep", [True, False])
def test_token_prompts_do_not_depend_on_batch_companions(grey_backbone, deep):
    images = draw(6, 1, 16, 16)
    model = build(
        grey_backbone,
        grey_backbone.features(images).repeat(3, 1),
        prompt="token",
        deep=deep,
        min_cluster_size=1,
        threshold_ratio=0.1,
    )
    assert len(model.frames) > 1
    alone = torch.cat([model(image[None]) for image in images])
    torch.testing.assert_close(model(images), alone, rtol=0, atol=1e-12)
    assert not torch.allclose(model.encode(images)[0], grey_backbone.features(images))


def test_a_state_with_another_number_of_clusters_loads(grey_backbone):
    images = draw(4, 1, 16, 16)
    trained = build(grey_backbone, blobs(4), init="random")
    fresh = DAMVPModel(grey_backbone, pad=4).double()
    fresh.load_state_dict(trained.method_state())
    assert torch.equal(fresh.eval()(images), trained(images))
    smaller = build(grey_backbone, blobs(2), init="random")
    fresh.load_state_dict(smaller.method_state())
    assert torch.equal(fresh.eval()(images), smaller(images))


# --------------------------------------------------------------------------- invariants of clusters and state


def test_the_number_of_clusters_falls_with_the_threshold():
    features = draw(60, 16)
    spread = mean_distance(features)
    labels = [cluster(features, ratio * spread) for ratio in (0.5, 0.8, 0.9, 0.95, 1.0, 2.0)]
    counts = [len(set(found.tolist())) for found in labels]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > counts[-1] == 1
    assert all(len(found) == 60 and found.min() == 0 for found in labels)


def test_prototypes_radii_and_counts_are_those_of_the_members(grey_backbone):
    features = blobs(3)
    model = build(grey_backbone, features)
    labels = model.assign(features)
    for k in range(3):
        members = features[labels == k]
        torch.testing.assert_close(model.prototypes[k], members.mean(0))
        radius = (members - members.mean(0)).square().sum(1).mean().sqrt()
        torch.testing.assert_close(model.radius[k], radius)
    assert model.counts.tolist() == [20, 20, 20]


def test_assignments_do_not_change_when_features_and_prototypes_move_together():
    query, prototypes = draw(50, 16), draw(4, 16, seed=1)
    assert torch.equal(nearest_prototype(query, prototypes), torch.cdist(query, prototypes).argmin(1))
    assert torch.equal(nearest_prototype(query + 3, prototypes + 3), nearest_prototype(query, prototypes))


def test_a_single_image_is_one_cluster(grey_backbone):
    model = build(grey_backbone, draw(1, 16))
    assert (len(model.prototypes), model.counts.tolist()) == (1, [1])
    assert model.opening_diagnostics() == {}


def test_the_sample_that_is_clustered_hangs_on_the_seed_alone():
    stream = torch.arange(2000.0)[:, None]
    asked: list[int] = []

    def features(images: Tensor) -> Tensor:
        asked.append(len(images))
        return images

    found = sample_features(stream.split(100), features, 50, seed=3)
    assert found.shape == (50, 1)
    assert sum(asked) < 500
    assert torch.equal(found, sample_features(stream.split(7), features, 50, seed=3))
    assert not torch.equal(found, sample_features(stream.split(100), features, 50, seed=4))
    assert 700 < found.mean() < 1300
    assert torch.equal(sample_features(stream[:30].split(8), features, 50, seed=0), stream[:30])


def test_the_state_holds_no_feature(grey_backbone):
    sizes = []
    for each in (20, 200):
        features = blobs(3, each)
        model = build(grey_backbone, features)
        model.end_experience()
        sizes.append(model.state_size())
        stored = model.method_state()
        rows = [value.flatten(1) for value in stored.values() if value.ndim == 2 and value.shape[1] == 16]
        assert not any((torch.cdist(row.double(), features) < 1e-6).any() for row in rows)
        held = [value for value in vars(model).values() if isinstance(value, torch.Tensor)]
        assert not held
        assert model._map is None
    assert sizes[0] == sizes[1]


# -------------------------------------------------------------------------------------------------- training


def toy(grey_backbone: FrozenViT, **arguments: Any) -> tuple[DAMVPModel, Tensor, Tensor]:
    """A model with a cluster for each of six images, and two that no image falls to."""
    images, targets = draw(6, 1, 16, 16), torch.tensor([0, 1, 0, 1, 0, 1])
    features = torch.cat([grey_backbone.features(images).repeat(3, 1), 1000 + draw(2, 16)])
    model = build(grey_backbone, features, threshold=1e-6, max_clusters=None, min_cluster_size=1, **arguments)
    assert len(model.frames) == 8
    return model.train(), images, targets


@pytest.mark.parametrize("name", ["adam", "sgd"])
def test_idle_frames_do_not_move_whatever_the_optimizer(grey_backbone, name):
    model, images, targets = toy(grey_backbone, init="random")
    optimizer = optim.build(
        model, optimizer=name, lr=0.1, momentum=0.9 if name == "sgd" else 0.0, weight_decay=0.1
    )
    before = [frame.detach().clone() for frame in model.frames]
    used = set(model.frame_of[model.assign(grey_backbone.features(images))].tolist())
    first = {int(model.frame_of[model.assign(grey_backbone.features(images[:1]))])}
    for part in (slice(None), slice(0, 1), slice(0, 1)):  # then some of the used ones become idle
        kept = [frame.detach().clone() for frame in model.frames]
        optimizer.zero_grad(set_to_none=True)
        model.training_loss(images[part], targets[part]).loss.backward()
        optimizer.step()
    moved = {k for k, frame in enumerate(model.frames) if not torch.equal(frame, kept[k])}
    assert moved == first
    idle = set(range(len(model.frames))) - used
    assert (len(used), len(idle)) == (6, 2)
    assert all(torch.equal(model.frames[k], before[k]) for k in idle)


def test_prompt_tokens_have_a_lower_rate_than_frames_unless_told(grey_backbone):
    rates = [
        DAMVPModel(grey_backbone, prompt="token", **given).param_groups()[0]["lr"]
        for given in ({}, {"prompt_lr": 1.0})
    ]
    assert rates == [0.005, 1.0]


def test_the_optimizer_holds_the_frames_of_the_current_experience_and_the_head(grey_backbone):
    model = build(grey_backbone, blobs(3))
    model.begin_experience([2, 3])
    model.observe(torch.tensor([2, 3]))
    model.fit_clusters(100 + blobs(2, seed=5))
    groups = {group["group"]: group for group in optim.build(model, lr=0.1).param_groups}
    assert groups["prompts"]["names"] == ["frames.3", "frames.4"]
    assert groups["head"]["names"] == ["head.weight", "head.bias"]
    assert (groups["prompts"]["lr"], groups["head"]["lr"]) == (0.05, 0.001)
    loose = build(grey_backbone, blobs(3), freeze_old=False)
    loose.begin_experience([2, 3])
    loose.fit_clusters(100 + blobs(2, seed=5))
    assert sum(name.startswith("frames.") for name in loose.trainable()) == 5


def test_shared_frames_stand_still_unless_they_are_to_be_trained(grey_backbone):
    for train_shared in (False, True):
        model = build(grey_backbone, blobs(3), share=True, train_shared=train_shared)
        model.begin_experience([2, 3])
        model.fit_clusters(blobs(3))
        assert [frame.requires_grad for frame in model.frames] == [train_shared] * 3
        model.begin_experience([4, 5])
        model.fit_clusters(1000 + blobs(1))
        assert [frame.requires_grad for frame in model.frames] == [False] * 3 + [True]


def test_training_may_match_the_current_experience_alone_and_evaluation_never_does(grey_backbone):
    old, new = blobs(2), 500 + blobs(2, seed=5)
    for which, expected in (("all", [0, 1]), ("current", [2, 3])):
        model = build(grey_backbone, old, train_assign=which)
        model.begin_experience([2, 3])
        model.fit_clusters(new)
        assert set(model.train().assign(old).tolist()) <= set(expected)
        assert set(model.eval().assign(old).tolist()) == {0, 1}


def test_a_new_frame_may_start_from_the_nearest_old_one(grey_backbone):
    model = build(grey_backbone, blobs(2), init="nearest")
    assert not any(frame.any() for frame in model.frames)
    with torch.no_grad():
        for number, frame in enumerate(model.frames):
            frame.fill_(number + 1.0)
    model.begin_experience([2, 3])
    model.fit_clusters(model.prototypes[1] + draw(20, 16))
    assert (model.frames[2] == 2.0).all()


def test_evaluation_keeps_what_frames_add_until_a_frame_changes(grey_backbone):
    model, images, targets = toy(grey_backbone, init="random")
    optimizer = optim.build(model, lr=0.1)
    for _ in range(2):
        model.eval()
        frame = model.frame_of[model.assign(grey_backbone.features(images))]
        pixels = model.framed(torch.stack(list(model.frames)))[frame]
        with torch.no_grad():
            plain = grey_backbone.prompted(grey_backbone.embed(images + pixels))
            found, again = (model.encode(images)[0] for _ in range(2))
        torch.testing.assert_close(found, plain, rtol=0, atol=1e-12)
        assert torch.equal(found, again)
        optimizer.zero_grad()
        model.train().training_loss(images, targets).loss.backward()
        optimizer.step()
    other = copy.deepcopy(model).eval()
    with torch.no_grad():
        for frame in other.frames:
            frame.zero_()
        torch.testing.assert_close(
            other.encode(images)[0], grey_backbone.features(images), rtol=0, atol=1e-12
        )


def test_the_inside_of_a_prompted_image_is_the_image_bit_for_bit(grey_backbone):
    frames = build(grey_backbone, blobs(2), init="random").framed(draw(2, frame_size(1, 16, 4)))
    images = draw(2, 1, 16, 16, seed=4)
    before = images.clone()
    prompted = images + frames
    assert torch.equal(prompted[..., 4:12, 4:12], images[..., 4:12, 4:12])
    assert not torch.equal(prompted, images)
    assert torch.equal(images, before)
