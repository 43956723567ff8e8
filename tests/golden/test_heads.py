"""Closed-form heads against an independent program in NumPy: statistics, solutions and logits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from devices import DEVICE
from golden_files import Golden
from torch import Tensor

from clprompt.backbones.vit import FrozenViT
from clprompt.prompting.model import Encoded, PromptModel
from clprompt.prompting.statistics.closed_forms import covariance
from clprompt.strategies.ncm import NCMModel
from clprompt.strategies.ranpac import RanPACModel
from clprompt.strategies.ridge import RidgeModel
from clprompt.strategies.slda import SLDAModel
from clprompt.testing.bench import tiny_vit

EXPERIENCES = range(3)


@pytest.fixture(params=["seed0", "seed1"])
def seed(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def heads(golden: Callable[..., Golden]) -> Golden:
    return golden("heads_reference")


@pytest.fixture(scope="module")
def backbone() -> FrozenViT:
    """Of the file's width; features are put in behind it."""
    return tiny_vit(depth=1, width=12)


def received(model: Any, features: Tensor, targets: Tensor) -> None:
    """What a training step tells a method of a batch."""
    model.to(DEVICE).observe(targets)
    model.received(features, targets)


def learned(model: Any, heads: Golden, seed: str, experience: int, dtype: Any = torch.float64) -> Any:
    """After an experience, received backwards in batches of three."""
    rows = (heads[f"{seed}.experience"] <= experience).nonzero().flatten().flip(0)
    for part in rows.split(3):
        received(model, heads[f"{seed}.features"][part].to(dtype), heads[f"{seed}.targets"][part])
    return model.eval()


def logits(model: PromptModel, queries: Tensor) -> Tensor:
    given = model.classify(Encoded(queries))
    return given.masked_fill(~model.predictable(), float("-inf"))


@pytest.mark.parametrize("experience", EXPERIENCES)
def test_class_statistics_and_their_scatter(heads, backbone, seed, experience):
    statistics = learned(SLDAModel(backbone), heads, seed, experience).class_statistics
    key = f"{seed}.after{experience}."
    heads.check(statistics.counts, f"{key}counts")
    heads.check(statistics.sums, f"{key}sums")
    heads.check(statistics.second, f"{key}second")
    scatter, freedom = statistics.scatter()
    heads.check(scatter, f"{key}scatter")
    assert freedom == int(heads[f"{key}dof"])


@pytest.mark.parametrize("fixed", [False, True], ids=["lda", "lda_fixed"])
@pytest.mark.parametrize("experience", EXPERIENCES)
def test_linear_discriminant_analysis(heads, backbone, seed, experience, fixed):
    shrinkage = float(heads["config.fixed"]) if fixed else None
    model = learned(SLDAModel(backbone, shrinkage=shrinkage), heads, seed, experience)
    key = f"{seed}.after{experience}.{'lda_fixed' if fixed else 'lda'}."
    heads.check(covariance(model.class_statistics, shrinkage), f"{key}covariance")
    solved = model.on_statistics.solve(model.class_statistics)
    heads.check(solved.weight, f"{key}weight")
    heads.check(solved.bias, f"{key}bias")
    heads.check(logits(model, heads[f"{seed}.queries"]), f"{key}logits")


def test_three_samples_of_three_classes_leave_the_identity(heads, backbone, seed):
    rows = heads[f"{seed}.single.indices"]
    model = SLDAModel(backbone)
    received(model, heads[f"{seed}.features"][rows], heads[f"{seed}.targets"][rows])
    heads.check(covariance(model.class_statistics), f"{seed}.single.lda.covariance")
    heads.check(logits(model.eval(), heads[f"{seed}.queries"]), f"{seed}.single.lda.logits")


@pytest.mark.parametrize("experience", EXPERIENCES)
def test_label_sets_whose_other_labels_are_hidden(heads, backbone, seed, experience):
    prefix = f"{seed}.multi_label."
    hot, model = heads[f"{prefix}targets"], SLDAModel(backbone)
    model.begin_for_plugins(range(6))
    model.observe(torch.ones(1, 6, dtype=torch.int64))  # all columns from the start
    for group in heads[f"{prefix}groups"][: experience + 1]:
        shown = torch.zeros_like(hot).index_copy(1, group, hot[:, group])
        rows = shown.any(1)
        received(model, heads[f"{prefix}features"][rows], shown[rows])
    statistics, key = model.eval().class_statistics, f"{prefix}after{experience}."
    for name in ("counts", "sums", "second", "number", "total"):
        heads.check(getattr(statistics, name), key + name)
    heads.check(covariance(statistics), f"{key}covariance")
    solved = model.on_statistics.solve(statistics)
    heads.check(solved.weight, f"{key}weight")
    heads.check(solved.bias, f"{key}bias")
    heads.check(logits(model, heads[f"{seed}.queries"]), f"{key}logits")


@pytest.mark.parametrize("experience", EXPERIENCES)
def test_ridge_regression(heads, backbone, seed, experience):
    model = learned(RidgeModel(backbone, strength=float(heads["config.ridge"])), heads, seed, experience)
    key = f"{seed}.after{experience}.ridge."
    heads.check(model.on_statistics.solve(model.class_statistics).weight, f"{key}weight")
    heads.check(logits(model, heads[f"{seed}.queries"]), f"{key}logits")


def projected(backbone: FrozenViT, heads: Golden, seed: str) -> RanPACModel:
    """With the file's projection and its fixed strength."""
    projection = heads[f"{seed}.projection"]
    model = RanPACModel(
        backbone, random_features=projection.shape[1], strength=float(heads["config.ridge_rp"])
    )
    model.on_statistics.random_features.projection.copy_(projection)
    return model


@pytest.mark.parametrize("experience", EXPERIENCES)
def test_ridge_regression_on_random_features(heads, backbone, seed, experience):
    model = learned(projected(backbone, heads, seed), heads, seed, experience)
    key = f"{seed}.after{experience}.random_projection."
    heads.check(model.class_statistics.sums, f"{key}sums")
    heads.check(model.class_statistics.second, f"{key}second")
    heads.check(model.on_statistics.solve(model.class_statistics).weight, f"{key}weight")
    heads.check(logits(model, heads[f"{seed}.queries"]), f"{key}logits")


@pytest.mark.parametrize("experience", EXPERIENCES)
def test_cosine_to_class_means(heads, backbone, seed, experience):
    model = learned(NCMModel(backbone), heads, seed, experience)
    heads.check(logits(model, heads[f"{seed}.queries"]), f"{seed}.after{experience}.cosine.logits")


@pytest.mark.parametrize("name", ["lda", "ridge", "random_projection"])
def test_logits_of_float32_features(golden, heads, backbone, seed, name):
    model = {
        "lda": lambda: SLDAModel(backbone),
        "ridge": lambda: RidgeModel(backbone, strength=float(heads["config.ridge"])),
        "random_projection": lambda: projected(backbone, heads, seed),
    }[name]()
    learned(model, heads, seed, 2, torch.float32)
    single = golden("heads_reference", torch.float32)
    given = logits(model, single[f"{seed}.queries"])
    assert given.dtype == torch.float32
    single.check(given, f"{seed}.after2.{name}.logits")
