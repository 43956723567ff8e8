"""Class statistics as a plug-in: what is counted when, and which head answers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from clprompt.errors import ConfigError, ProtocolError
from clprompt.prompting.build import construct
from clprompt.prompting.statistics import ClassStatistics, LinearMap, Statistics, lda
from clprompt.strategies.dualprompt import DualPromptModel
from clprompt.strategies.linear_probe import LinearProbeModel
from clprompt.strategies.mvp import MVPModel
from clprompt.strategies.ncm import NCMModel
from clprompt.strategies.ranpac import RanPACModel
from clprompt.strategies.vpt_deep import VPTDeepModel
from clprompt.testing.asserts import bits, changed, same_bits
from clprompt.testing.bench import CLASSES, Workbench

CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "with boundaries": (DualPromptModel, {}),
    "without": (MVPModel, {}),
    "frozen": (MVPModel, {"statistics_features": "frozen"}),
}


@pytest.fixture(scope="module", params=CASES)
def trained(request: pytest.FixtureRequest) -> tuple[Workbench, Any, Any]:
    """A bench, its model after three iterations on each batch, and the same model without the plug-in."""
    method, arguments = CASES[request.param]
    bench = Workbench(method, statistics="lda", **arguments)
    pair = []
    for forms in ({"statistics": "lda", **arguments}, {}):
        model = construct(method, bench.backbones["class token"], **forms)
        records = bench.run(model, epochs=3)
        pair.append((model.eval(), [r for r in records if r["kind"] == "train"]))
    return bench, *pair


def test_every_sample_is_counted_once(trained: Any) -> None:
    bench, (model, _), _ = trained
    for c in sum(CLASSES, ()):
        assert int(model.statistics.classes.counts[c]) == 17
    assert int(model.statistics.classes.counts.sum()) == len(bench.train)


def test_training_has_the_same_bits_with_and_without(trained: Any) -> None:
    _, (model, records), (bare, bare_records) = trained
    assert records == bare_records
    own = {name: value for name, value in bits(model).items() if not name.startswith("statistics.")}
    assert not changed(own, bits(bare))


def test_the_closed_form_answers_and_the_trained_head_is_kept(trained: Any) -> None:
    bench, (model, _), (bare, _) = trained
    images = bench.test.images
    with torch.no_grad():
        predictions = model.predictions(images)
        assert same_bits(model(images), predictions.logits)
        assert same_bits(bare(images), predictions.trained)
        assert bare.predictions(images).trained is None
    targets = torch.from_numpy(bench.test.targets)
    accuracy = (predictions.logits.argmax(1) == targets).float().mean()
    assert accuracy > 0.6
    assert not torch.equal(predictions.logits, predictions.trained)


def test_frozen_features_predict_the_same_whatever_the_method() -> None:
    bench, logits = Workbench(LinearProbeModel), []
    for method in (LinearProbeModel, DualPromptModel):
        model = construct(
            method, bench.backbones["class token"], statistics="lda", statistics_features="frozen"
        )
        bench.run(model, online=False, experiences=2)
        logits.append(model.eval()(bench.test.images).detach())
    assert torch.allclose(*logits, rtol=1e-5, atol=1e-5, equal_nan=True)


def test_an_experience_that_ended_without_its_images_is_one_line_at_the_first_prediction() -> None:
    bench = Workbench(DualPromptModel, statistics="lda")
    model = bench.make()
    model.begin_experience(CLASSES[0])
    images, targets = bench.batch(0)
    model.observe(targets)
    model.training_loss(images, targets)
    model.eval()(images)  # the trained head answers
    model.end_experience()
    with pytest.raises(ProtocolError, match=r"call end_experience\(samples\)"):
        model(images)


def test_a_method_without_a_trained_head_is_refused() -> None:
    with pytest.raises(ConfigError, match="NCMModel has no trained head"):
        construct(NCMModel, Workbench(NCMModel).backbones["class token"], statistics="lda")


def test_sums_stay_exact_when_a_model_goes_to_fewer_bits() -> None:
    statistics = ClassStatistics(3)
    statistics.grow(2)
    statistics.add(torch.eye(3), torch.tensor([0, 1, 1]))
    before = lda(statistics)
    statistics.half()
    assert {value.dtype for value in statistics.state_dict().values()} == {torch.int64, torch.float64}
    assert all(map(same_bits, before, lda(statistics)))


def test_logits_of_16_bit_features_are_handed_out_in_32() -> None:
    head = LinearMap(torch.full((1, 2), 100.25, dtype=torch.float64), torch.zeros(1, dtype=torch.float64))
    logits = head(torch.ones(1, 2, dtype=torch.bfloat16))
    assert logits.dtype == torch.float32
    assert logits.item() == 200.5


RIDGE: dict[str, Any] = {"statistics": "ridge", "ridge_random_features": 48, "ridge_strength": "held_out"}


def test_ridge_on_frozen_features_predicts_what_ranpac_does() -> None:
    bench = Workbench(LinearProbeModel)
    backbone = bench.backbones["class token"]
    models = [construct(LinearProbeModel, backbone, **RIDGE), RanPACModel(backbone, random_features=48)]
    for model in models:
        bench.run(model, online=False, experiences=2)
    assert (
        float(models[0].statistics.head.held_out.chosen) == float(models[1].on_statistics.held_out.chosen) > 0
    )
    given = [model.eval()(bench.test.images) for model in models]
    assert torch.allclose(*given, rtol=1e-5, atol=1e-5)


def test_prompts_of_the_first_session_give_the_features_of_a_ridge_over_all() -> None:
    bench = Workbench(VPTDeepModel, train_experiences=1, **RIDGE)
    model = bench.make()
    bench.run(model, online=False, experiences=2)
    model.eval()
    rows = np.concatenate(bench.train.groups()[:2])
    with torch.no_grad():
        wide, tested = (
            model.statistics.head.expand(model.encode(images).features)
            for images in (bench.train.images[rows], bench.test.images)
        )
    hot = F.one_hot(torch.from_numpy(bench.train.targets[rows])).double()
    second = wide.T @ wide + model.statistics.head.held_out.chosen * torch.eye(48)
    expected = tested @ torch.linalg.solve(second, wide.T @ hot)
    seen = model.predictable()
    assert torch.allclose(model(bench.test.images)[:, seen].double(), expected[:, seen], atol=1e-4)


def test_options_of_ridge_are_one_line_elsewhere() -> None:
    for given in ({"random_features": 8}, {"strength": 1.0}):
        with pytest.raises(ConfigError, match="belongs to statistics=ridge, got statistics=lda"):
            Statistics("lda", **given)
    bench = Workbench(LinearProbeModel, boundary_free=True, **RIDGE)
    with pytest.raises(ConfigError, match="statistics needs to know where experiences begin and end"):
        bench.run(bench.make(), online=True)
