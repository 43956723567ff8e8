"""The DAM-VP strategy against the reference: clusters, assignment, both heads over 15 steps, idle prompts."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from devices import DEVICE
from torch import Tensor

from clprompt.strategies.damvp import DAMVPModel
from clprompt.strategies.damvp.active import activity_rank
from clprompt.strategies.damvp.clustering import cluster, clusters_of
from clprompt.training.optim import set_learning_rate


def same_partition(a: np.ndarray, b: np.ndarray) -> bool:
    """Equal up to the numbering of the clusters."""
    return len({*zip(a.tolist(), b.tolist(), strict=True)}) == len({*a.tolist()}) == len({*b.tolist()})


def build(damvp, **arguments) -> DAMVPModel:
    settings = {"pad": 4, "min_cluster_size": 1, "max_clusters": None, "threshold": 5.200856, **arguments}
    return DAMVPModel(damvp.backbone(), **settings).to(DEVICE, damvp.dtype)


def adopt(model: DAMVPModel, prototypes: Tensor, frames: Tensor) -> None:
    """Give a model the clusters of the file, one sample each."""
    model.threshold = 1e-9
    model.fit_clusters(prototypes)
    order = torch.cdist(model.prototypes, prototypes).argmin(1)
    with torch.no_grad():
        model.prototypes.copy_(prototypes)
        for index, frame in enumerate(model.frames):
            frame.copy_(frames[index])
    assert sorted(order.tolist()) == list(range(len(prototypes)))


@pytest.mark.parametrize("clusters", [1, 3, 6])
def test_clusters_and_prototypes(golden, clusters):
    damvp = golden("damvp")
    model = build(damvp, threshold=float(damvp[f"cluster.k{clusters}.threshold"]))
    model.begin_experience(range(5))
    assert model.fit_clusters(damvp["train.features"]) == clusters
    expected = damvp[f"cluster.k{clusters}.prototypes"]
    match = torch.cdist(model.prototypes, expected).argmin(1)
    assert sorted(match.tolist()) == list(range(clusters))
    torch.testing.assert_close(model.prototypes, expected[match], rtol=1e-6, atol=1e-6)
    labels = cluster(damvp["train.features"], float(damvp[f"cluster.k{clusters}.threshold"]))
    assert same_partition(labels, damvp[f"cluster.k{clusters}.labels"].cpu().numpy())


def test_a_merge_at_the_threshold_is_not_made(golden):
    damvp = golden("damvp")
    labels = cluster(damvp["cluster.tie.points"], float(damvp["cluster.tie.threshold"]))
    assert same_partition(labels, damvp["cluster.tie.labels"].cpu().numpy())


def test_the_cap_cuts_the_same_tree(golden):
    damvp = golden("damvp")
    capped = cluster(damvp["train.features"], float(damvp["cluster.k6.threshold"]), max_clusters=3)
    assert same_partition(capped, damvp["cluster.k3.labels"].cpu().numpy())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_assignment_and_prompted_features(golden, dtype):
    damvp = golden("damvp", dtype)
    model = build(damvp).eval()
    model.begin_experience(range(5))
    adopt(model, damvp["cluster.k3.prototypes"], damvp["assign.frames"])
    damvp.check(model.assign(model.backbone.features(damvp["eval.images"])), "assign.index")
    damvp.check(model.encode(damvp["eval.images"]).features, "assign.features")


@pytest.mark.parametrize("classes", [5, 12])
def test_active_coordinates(golden, classes):
    damvp = golden("damvp")
    rank = activity_rank(damvp["active.noise_features"])
    damvp.check(rank, "active.order")
    model = build(damvp, head="active", active_order="sorted")
    model.rank.copy_(rank)
    model.observe(torch.arange(classes, device=DEVICE))
    damvp.check(model.logits(damvp["assign.features"]), f"active.logits{classes}")


@pytest.mark.parametrize("clusters", ["clusters", "generic", "clusters.zerofill"])
@pytest.mark.parametrize("kind", ["hf", "ht"])
def test_fifteen_steps_of_both_adaptation_modes(golden, kind, clusters):
    """Idle prompts stand still, or (``zerofill``) go on by momentum and decay once they have been used.

    The schedule is the file's, warm-up and cosine. The reference tests with the frames of the epoch that was
    best on the validation set (here the same images), but with the head as it is at the end.
    """
    damvp = golden("damvp")
    prefix = f"adapt.{kind}.{clusters}"
    prototypes = damvp["cluster.k1.prototypes" if clusters == "generic" else "cluster.k3.prototypes"]
    model = build(damvp, head="active" if kind == "hf" else "linear", active_order="sorted").train()
    model.begin_experience(range(5))
    model.observe(torch.arange(5, device=DEVICE))
    adopt(model, prototypes, damvp["adapt.init"].expand(len(prototypes), -1))
    model.to(torch.float64)
    top, decay, epochs = damvp[f"adapt.{kind}.args"].tolist()
    momentum = damvp[f"{prefix}.momentum"].tolist()
    groups = [{"params": list(model.frames), "momentum": momentum[0], "weight_decay": decay}]
    if kind == "hf":
        model.rank.copy_(damvp["active.order"])
    else:
        with torch.no_grad():
            model.head.weight.copy_(damvp["adapt.head.weight"])
            model.head.bias.copy_(damvp["adapt.head.bias"])
        groups.append({"params": list(model.head.parameters()), "momentum": momentum[-1]})
    optimizer = torch.optim.SGD(groups, lr=top)
    for group in optimizer.param_groups:
        group["initial_lr"] = top
    losses, best, kept = [], -1.0, None
    for step in range(15):
        batch = damvp[f"adapt.batch{step % 3}"]
        rate = set_learning_rate(optimizer, "cosine", step, int(3 * epochs), 0.2)
        assert damvp[f"{prefix}.lr"][step].tolist() == pytest.approx([rate] * len(momentum), rel=1e-12)
        loss = model.training_loss(damvp["train.images"][batch], damvp["train.labels"][batch]).loss
        optimizer.zero_grad(set_to_none="zerofill" not in clusters)
        loss.backward()
        if step == 0 and kind == "ht":
            damvp.check(model.head.weight.grad, f"{prefix}.head_grad0.weight")
            damvp.check(model.head.bias.grad, f"{prefix}.head_grad0.bias")
        if step == 0 and "zerofill" not in clusters:
            grads = [torch.zeros_like(f) if f.grad is None else f.grad for f in model.frames]
            damvp.check(torch.stack(grads), f"{prefix}.grad0")
        optimizer.step()
        losses.append(loss.detach())
        if step == 1:
            damvp.check(torch.stack(list(model.frames)), f"{prefix}.frames_after2", scaled=1e-6)
        if step % 3 == 2 and accuracy(model, damvp) > best:
            best, kept = accuracy(model, damvp), [frame.detach().clone() for frame in model.frames]
    damvp.check(torch.stack(losses), f"{prefix}.losses")
    damvp.check(torch.stack(list(model.frames)), f"{prefix}.frames", scaled=1e-6)
    if kind == "ht":
        damvp.check(model.head.weight, f"{prefix}.head.weight")
        damvp.check(model.head.bias, f"{prefix}.head.bias")
    with torch.no_grad():
        for frame, earlier in zip(model.frames, kept, strict=True):
            frame.copy_(earlier)
    assert accuracy(model, damvp) == pytest.approx(float(damvp[f"{prefix}.test_acc"]))


def accuracy(model: DAMVPModel, damvp) -> float:
    """On the file's evaluation images, as after an epoch."""
    with torch.no_grad():
        found = model.eval()(damvp["eval.images"]).argmax(1)
    model.train()
    return float((found == damvp["eval.labels"]).double().mean())


def test_idle_frames_stand_still_here_and_drift_in_the_reference(golden):
    damvp = golden("damvp")
    for kind in ("hf", "ht"):
        still, drifting = (damvp[f"adapt.{kind}.clusters{variant}.frames"] for variant in ("", ".zerofill"))
        assert (still - drifting).abs().max() > 1e-3


def test_only_the_first_thousand_features_count(golden):
    damvp = golden("damvp")
    features = damvp["cluster.truncate.features"][:1000]
    labels = cluster(features, float(damvp["cluster.truncate.threshold"]))
    assert same_partition(labels, damvp["cluster.truncate.labels"].cpu().numpy())
    expected = damvp["cluster.truncate.labels"]
    damvp.check(clusters_of(features, expected).prototypes, "cluster.truncate.prototypes")
    tied = clusters_of(damvp["cluster.tie.points"], damvp["cluster.tie.labels"])
    damvp.check(tied.prototypes, "cluster.tie.prototypes")


@pytest.mark.parametrize("clusters", [1, 3, 6])
def test_the_margins_hold_of_the_merge_heights(golden, clusters):
    """Just inside the margin around a threshold the clusters are the same, just outside they are not."""
    damvp = golden("damvp")
    prefix = f"cluster.k{clusters}."
    threshold, margin = float(damvp[prefix + "threshold"]), float(damvp[prefix + "margin"])
    heights = damvp["cluster.merge_heights"]
    assert float((heights - threshold).abs().min()) == pytest.approx(margin, rel=1e-6)
    assert 1 + int((heights >= threshold).sum()) == clusters
    for inside, same in ((0.999, True), (1.001, False)):
        counts = {
            len(set(cluster(damvp["train.features"], threshold + s * inside * margin))) for s in (-1, 1)
        }
        assert (counts == {clusters}) == same


def test_the_activity_is_a_population_standard_deviation(golden):
    damvp = golden("damvp")
    deviation = damvp["active.noise_features"].std(0, unbiased=False)
    torch.testing.assert_close(deviation, damvp["active.std"], rtol=0, atol=1e-8)


#: Which keys of the file are compared, and by which test; what stands first counts.
USED = {
    r"backbone\..*|config\..*": "test_the_file_is_of_the_model_that_it_describes",
    r"(train|eval)\.(images|labels|features)": "test_features_of_clean_images",
    r"prompt\..*": "test_frame_vector_is_added_around_the_image",
    r"cluster\.k\d\.(threshold|labels|prototypes)": "test_clusters_and_prototypes",
    r"cluster\.(k\d\.margin|merge_heights)": "test_the_margins_hold_of_the_merge_heights",
    r"cluster\.tie\.(points|threshold|labels)": "test_a_merge_at_the_threshold_is_not_made",
    r"cluster\.(truncate\..*|tie\.prototypes)": "test_only_the_first_thousand_features_count",
    r"assign\.(frames|index|features)": "test_assignment_and_prompted_features",
    r"assign\.(distance|prompted)|active\.columns\d+": "test_assignment_and_features_of_prompted_images",
    r"active\.(order|noise_features|logits\d+)": "test_active_coordinates",
    r"active\.std": "test_the_activity_is_a_population_standard_deviation",
    r"adapt\..*": "test_fifteen_steps_of_both_adaptation_modes",
    r"meta\.(threshold|[ab]\..*)": "test_sources_are_clustered_as_the_reference_clusters_them",
    r"meta\..*": "test_two_meta_steps_of_both_modes",
}


def test_the_file_is_of_the_model_that_it_describes(golden):
    damvp = golden("damvp")
    backbone = damvp.backbone()
    side, patch, width, depth, heads = damvp["config.vit"].tolist()
    assert backbone.image_size == (side, side)
    assert backbone.patch_size == (patch, patch)
    assert (backbone.width, backbone.depth, backbone.num_heads) == (width, depth, heads)
    assert len(damvp["adapt.init"]) == 12 * int(damvp["config.pad"]) * (side - int(damvp["config.pad"]))


def test_every_key_of_the_file_is_compared_by_a_test_that_there_is(golden):
    text = "".join(path.read_text() for path in Path(__file__).parent.glob("test_damvp*.py"))
    for key in golden("damvp").keys():  # noqa: SIM118 - no dictionary
        test = next((test for pattern, test in USED.items() if re.fullmatch(pattern, key)), None)
        assert test is not None, key
        assert f"def {test}(" in text, test
