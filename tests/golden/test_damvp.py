"""The DAM-VP strategy against the reference: clusters, assignment, both heads over fifteen steps, idle prompts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from clprompt.clustering import cluster
from clprompt.strategies.damvp import DAMVPModel, activity_rank


def same_partition(a: np.ndarray, b: np.ndarray) -> bool:
    """Equal up to the numbering of the clusters."""
    return len({*zip(a.tolist(), b.tolist(), strict=True)}) == len({*a.tolist()}) == len({*b.tolist()})


def build(damvp, **arguments) -> DAMVPModel:
    settings = {"pad": 4, "min_cluster_size": 1, "max_clusters": None, "threshold": 5.200856, **arguments}
    return DAMVPModel(damvp.backbone(), **settings).to(damvp.dtype)


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
    assert same_partition(labels, damvp[f"cluster.k{clusters}.labels"].numpy())


def test_a_merge_at_the_threshold_is_not_made(golden):
    damvp = golden("damvp")
    labels = cluster(damvp["cluster.tie.points"], float(damvp["cluster.tie.threshold"]))
    assert same_partition(labels, damvp["cluster.tie.labels"].numpy())


def test_the_cap_cuts_the_same_tree(golden):
    damvp = golden("damvp")
    capped = cluster(damvp["train.features"], float(damvp["cluster.k6.threshold"]), max_clusters=3)
    assert same_partition(capped, damvp["cluster.k3.labels"].numpy())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_assignment_and_prompted_features(golden, dtype):
    damvp = golden("damvp", dtype)
    model = build(damvp).eval()
    model.begin_experience(range(5))
    adopt(model, damvp["cluster.k3.prototypes"], damvp["assign.frames"])
    damvp.check(model.assign(model.backbone.features(damvp["eval.images"])), "assign.index")
    damvp.check(model.encode(damvp["eval.images"])[0], "assign.features")


@pytest.mark.parametrize("classes", [5, 12])
def test_active_coordinates(golden, classes):
    damvp = golden("damvp")
    rank = activity_rank(damvp["active.noise_features"])
    damvp.check(rank, "active.order")
    model = build(damvp, head="active", active_order="sorted")
    model.rank.copy_(rank)
    model.observe(torch.arange(classes))
    damvp.check(model.logits(damvp["assign.features"]), f"active.logits{classes}")


@pytest.mark.parametrize("clusters", ["clusters", "generic"])
@pytest.mark.parametrize("kind", ["hf", "ht"])
def test_fifteen_steps_of_both_adaptation_modes(golden, kind, clusters):
    """Idle prompts have no gradient and stand still; the schedule is the file's, warm-up and cosine."""
    damvp = golden("damvp")
    prefix = f"adapt.{kind}.{clusters}"
    prototypes = damvp["cluster.k3.prototypes"] if clusters == "clusters" else damvp["cluster.k1.prototypes"]
    model = build(damvp, head="active" if kind == "hf" else "linear", active_order="sorted").train()
    model.begin_experience(range(5))
    model.observe(torch.arange(5))
    adopt(model, prototypes, damvp["adapt.init"].expand(len(prototypes), -1))
    model.to(torch.float64)
    decay = float(damvp[f"adapt.{kind}.args"][1])
    groups = [{"params": list(model.frames), "momentum": 0.9 if kind == "hf" else 0.0, "weight_decay": decay}]
    if kind == "hf":
        model.rank.copy_(damvp["active.order"])
    else:
        with torch.no_grad():
            model.head.weight.copy_(damvp["adapt.head.weight"])
            model.head.bias.copy_(damvp["adapt.head.bias"])
        groups.append({"params": list(model.head.parameters())})
    optimizer = torch.optim.SGD(groups, lr=1.0)
    losses = []
    for step in range(15):
        batch = damvp[f"adapt.batch{step % 3}"]
        for group in optimizer.param_groups:
            group["lr"] = float(damvp[f"{prefix}.lr"][step, 0])
        loss = model.training_loss(damvp["train.images"][batch], damvp["train.labels"][batch]).loss
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
        if step == 1:
            damvp.check(torch.stack(list(model.frames)), f"{prefix}.frames_after2", scaled=1e-6)
    damvp.check(torch.stack(losses), f"{prefix}.losses")
    damvp.check(torch.stack(list(model.frames)), f"{prefix}.frames", scaled=1e-6)
    if kind == "ht":
        damvp.check(model.head.weight, f"{prefix}.head.weight")
        damvp.check(model.head.bias, f"{prefix}.head.bias")
