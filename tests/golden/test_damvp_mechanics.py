"""DAM-VP's forward on the shared mechanics: frames in pixels, or as offsets after a linear embedding."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from devices import DEVICE
from torch import Tensor

SIDE, PAD = 32, 4


@pytest.fixture(params=[torch.float64, torch.float32], ids=["float64", "float32"])
def damvp(request, golden):
    return golden("damvp", request.param)


def border() -> Tensor:
    """Where each entry of a frame vector lies in a flattened [3, S, S] image: up, down, left, right."""
    places = torch.arange(3 * SIDE * SIDE, device=DEVICE).view(3, SIDE, SIDE)
    inner = slice(PAD, SIDE - PAD)
    parts = (places[:, :PAD], places[:, -PAD:], places[:, inner, :PAD], places[:, inner, -PAD:])
    return torch.cat([part.flatten() for part in parts])


def as_images(frames: Tensor) -> Tensor:
    """Frame vectors [K, F] -> images [K, 3, S, S], zero inside."""
    flat = frames.new_zeros(len(frames), 3 * SIDE * SIDE)
    return flat.index_copy(1, border(), frames).view(-1, 3, SIDE, SIDE)


def assign(features: Tensor, prototypes: Tensor) -> Tensor:
    """Index of the nearest prototype, without root: [B, D], [K, D] -> [B]."""
    return (prototypes.square().sum(1) - 2 * features @ prototypes.T).argmin(1)


def prompted_in_pixels(backbone, images: Tensor, frames: Tensor, index: Tensor) -> Tensor:
    return backbone.prompted(backbone.embed(images + as_images(frames)[index]))


def prompted_in_patches(backbone, images: Tensor, frames: Tensor, index: Tensor) -> Tensor:
    """The clean batch is embedded once; each frame once, without the bias."""
    assert backbone.linear_patches
    framed = as_images(frames)
    offsets = backbone.patches(framed) - backbone.patches(torch.zeros_like(framed[:1]))  # (K, n, D)
    return backbone.prompted(backbone.position(backbone.patches(images) + offsets[index]))


FORMS = pytest.mark.parametrize("prompted", [prompted_in_pixels, prompted_in_patches])


def test_features_of_clean_images(damvp):
    backbone = damvp.backbone()
    damvp.check(backbone.features(damvp["train.images"]), "train.features")
    damvp.check(backbone.features(damvp["eval.images"]), "eval.features")


def test_frame_vector_is_added_around_the_image(golden):
    damvp = golden("damvp")
    parts = [damvp[f"prompt.pad_{name}"].flatten() for name in ("up", "down", "left", "right")]
    frame = as_images(torch.cat(parts)[None])
    damvp.check(frame, "prompt.frame")
    damvp.check(damvp["eval.images"] + frame, "prompt.out")


@FORMS
def test_assignment_and_features_of_prompted_images(damvp, prompted):
    backbone, images, frames = damvp.backbone(), damvp["eval.images"], damvp["assign.frames"]
    query, prototypes = backbone.features(images), damvp["cluster.k3.prototypes"]
    damvp.check(torch.cdist(query, prototypes), "assign.distance")
    index = assign(query, prototypes)
    damvp.check(index, "assign.index")
    damvp.check(images + as_images(frames)[index], "assign.prompted")
    features = prompted(backbone, images, frames, index)
    damvp.check(features, "assign.features")
    for classes in (5, 12):
        columns = damvp["active.order"][:classes].sort().values
        damvp.check(columns, f"active.columns{classes}")
        damvp.check(features[:, columns], f"active.logits{classes}")


@FORMS
@pytest.mark.parametrize("clusters", ["clusters", "generic"])
@pytest.mark.parametrize("head", ["hf", "ht"])
def test_first_training_step_loss_and_gradients_down_to_the_pixels(damvp, head, clusters, prompted):
    backbone, batch = damvp.backbone(), damvp["adapt.batch0"]
    images, labels = damvp["train.images"][batch], damvp["train.labels"][batch]
    prefix = f"adapt.{head}.{clusters}."
    prototypes = damvp["cluster.k3.prototypes"][: None if clusters == "clusters" else 1]
    index = assign(backbone.features(images), prototypes)
    frames = damvp["adapt.init"].expand(len(prototypes), -1).clone().requires_grad_()
    weight, bias = damvp.leaf("adapt.head.weight"), damvp.leaf("adapt.head.bias")
    features = prompted(backbone, images, frames, index)
    logits = features[:, damvp["active.columns5"]] if head == "hf" else F.linear(features, weight, bias)
    loss = F.cross_entropy(logits, labels)
    torch.testing.assert_close(loss.detach(), damvp[prefix + "losses"][0], rtol=1e-4, atol=1e-5)
    loss.backward()
    damvp.check(frames.grad, prefix + "grad0")
    if head == "ht":
        damvp.check(weight.grad, prefix + "head_grad0.weight")
        damvp.check(bias.grad, prefix + "head_grad0.bias")


def test_offsets_are_exactly_zero_on_patches_that_the_frame_does_not_touch(golden):
    damvp = golden("damvp")
    backbone = damvp.backbone()
    framed = as_images(damvp["assign.frames"])
    offsets = backbone.patches(framed) - backbone.patches(torch.zeros_like(framed[:1]))
    inside = offsets.view(3, 4, 4, -1)[:, 1:3, 1:3]
    assert not inside.any()
    assert offsets.view(3, 4, 4, -1)[:, 0].all()


def test_zero_frames_give_the_features_of_the_bare_model(golden):
    damvp = golden("damvp")
    backbone, images = damvp.backbone(), damvp["eval.images"]
    frames = torch.zeros(1, 1344, dtype=torch.float64, device=DEVICE)
    index = torch.zeros(6, dtype=torch.int64, device=DEVICE)
    bare = backbone.features(images)
    for prompted in (prompted_in_pixels, prompted_in_patches):
        torch.testing.assert_close(prompted(backbone, images, frames, index), bare, rtol=0, atol=1e-12)
