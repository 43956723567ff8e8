"""Options of statistics: alignment of the trained head, task-adaptive prediction, compensation of drift."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from clprompt.errors import ConfigError, ProtocolError
from clprompt.prompting.build import construct
from clprompt.prompting.statistics import ClassStatistics, LinearMap, lda
from clprompt.prompting.statistics.alignment import RECIPES, ClassMoments, Recipe, align, gaussians
from clprompt.prompting.statistics.drift import Drift, move
from clprompt.seeding import generator
from clprompt.strategies.coda_prompt import CODAPromptModel
from clprompt.strategies.damvp import DAMVPModel
from clprompt.strategies.dualprompt import DualPromptModel
from clprompt.strategies.l2p import L2PModel
from clprompt.strategies.multilane import MultiLaneModel
from clprompt.strategies.mvp import MVPModel
from clprompt.strategies.vpt_deep import VPTDeepModel
from clprompt.testing.asserts import bits, changed, same_bits
from clprompt.testing.bench import CLASSES, Workbench, through_file

EXPERIENCES = torch.tensor([0, -1, 0, 1, 1, 2])  # class 1 never comes
WIDTH = 5


@pytest.fixture(scope="module")
def counted() -> tuple[ClassStatistics, ClassMoments, Tensor, Tensor]:
    """Statistics and full moments of 40 features of each of five classes, and the features."""
    statistics, moments = ClassStatistics(WIDTH), ClassMoments(WIDTH)
    source = generator(0, "alignment test")
    labels = EXPERIENCES.ge(0).nonzero().flatten().repeat_interleave(40)
    mixing = torch.eye(WIDTH) + 0.3 * torch.randn(WIDTH, WIDTH, generator=source)
    means = torch.randn(len(EXPERIENCES), WIDTH, generator=source)
    features = means[labels] + torch.randn(len(labels), WIDTH, generator=source) @ mixing
    for part in (statistics, moments):
        part.grow(len(EXPERIENCES))
        part.add(features, labels)
    return statistics, moments, features, labels


def start(seed: int = 0) -> LinearMap:
    return LinearMap(
        0.02 * torch.randn(len(EXPERIENCES), WIDTH, generator=generator(seed, "head")),
        torch.zeros(len(EXPERIENCES)),
    )


# ------------------------------------------------------------------------------------------ pure functions


def test_class_covariances_are_those_of_the_class(counted: Any) -> None:
    statistics, moments, features, labels = counted
    expected = torch.cov(features[labels == 3].double().T)
    assert torch.allclose(moments.covariances(statistics)[3], expected, rtol=1e-10, atol=1e-12)


def test_the_diagonal_is_that_of_the_full_covariance(counted: Any) -> None:
    statistics, moments, features, labels = counted
    diagonal = ClassMoments(WIDTH, diagonal=True)
    diagonal.grow(len(EXPERIENCES))
    diagonal.add(features, labels)
    full = moments.covariances(statistics).diagonal(dim1=1, dim2=2)
    assert torch.allclose(diagonal.covariances(statistics), full, rtol=1e-12, atol=1e-12)


def test_a_class_of_one_sample_has_no_covariance_of_its_own() -> None:
    statistics, moments = ClassStatistics(2), ClassMoments(2)
    for part in (statistics, moments):
        part.grow(1)
        part.add(torch.tensor([[3.0, 4.0]]), torch.tensor([0]))
    assert torch.equal(gaussians(statistics, moments).factors[0], 0.01 * torch.eye(2, dtype=torch.float64))


@pytest.mark.parametrize("covariance", ["full", "diagonal", "shared"])
def test_samples_have_the_moments_that_they_are_drawn_from(counted: Any, covariance: str) -> None:
    statistics, moments, features, labels = counted
    if covariance == "diagonal":
        moments = ClassMoments(WIDTH, diagonal=True)
        moments.grow(len(EXPERIENCES))
        moments.add(features, labels)
    source = gaussians(statistics, None if covariance == "shared" else moments)
    samples = source.draw(20_000, torch.full((5,), 0.5), generator(0, "draw"))
    third = samples[2 * 20_000 : 3 * 20_000].double()  # of class 3
    assert torch.allclose(third.mean(0), statistics.means()[3] / 2, atol=0.1)
    factor = source.factors[2 if covariance != "shared" else 0]
    expected = factor.square().diag() if covariance == "diagonal" else factor @ factor.T
    assert torch.allclose(torch.cov(third.T), expected, rtol=0.1, atol=0.2)


def test_many_samples_of_a_shared_covariance_lead_to_linear_discriminant_analysis(counted: Any) -> None:
    statistics, _, features, _ = counted
    recipe = Recipe(samples=2000, epochs=12, batch_size=500, lr=0.1, weight_decay=0.0)
    aligned = align(start(), gaussians(statistics), EXPERIENCES, recipe, seed=0, experience=2)
    closed = lda(statistics, 1e-6)
    seen = statistics.seen.nonzero().flatten()
    first, second = (head(features)[:, seen].softmax(1) for head in (aligned, closed))
    assert (first.argmax(1) == second.argmax(1)).double().mean() > 0.95
    assert (first - second).abs().mean() < 0.02


def test_draws_are_a_function_of_seed_and_experience(counted: Any) -> None:
    statistics, moments, _, _ = counted
    source, recipe = gaussians(statistics, moments), replace(RECIPES["slca"], samples=4, epochs=2)
    first, again, other, later = (
        align(start(), source, EXPERIENCES, recipe, seed=seed, experience=experience)
        for seed, experience in [(0, 2), (0, 2), (1, 2), (0, 3)]
    )
    assert same_bits(first, again)
    assert not same_bits(first, other)
    assert not same_bits(first, later)


def test_means_of_older_experiences_are_drawn_nearer_to_the_origin(counted: Any) -> None:
    statistics, moments, _, _ = counted
    scales: list[Tensor] = []

    class Spy(type(gaussians(statistics))):  # type: ignore[misc]
        def draw(self, count: int, scale: Tensor, source: torch.Generator) -> Tensor:
            scales.append(scale)
            return super().draw(count, scale, source)

    recipe = replace(RECIPES["slca"], samples=2, epochs=1)
    align(start(), Spy(*gaussians(statistics, moments)), EXPERIENCES, recipe, seed=0, experience=2)
    expected = 0.9 + 0.1 * torch.tensor([1, 1, 2, 2, 3]) / 3
    assert torch.allclose(scales[0], expected.double())


def test_class_moments_beyond_the_memory_limit_are_refused_with_their_bytes() -> None:
    moments = ClassMoments(100, limit_bytes=800_000)
    moments.grow(10)
    with pytest.raises(ConfigError, match=r"keeps 880,000 bytes for 11 classes .* use diagonal or shared"):
        moments.grow(11)


@pytest.mark.parametrize("label_sets", [False, True])
def test_statistics_that_are_moved_are_those_of_the_moved_features(counted: Any, label_sets: bool) -> None:
    _, _, features, labels = counted
    if label_sets:  # some with two labels, some without any
        labels = torch.nn.functional.one_hot(labels, len(EXPERIENCES))
        labels = (labels + labels.roll(1, 0)).clamp(max=1)
        labels[::7] = 0
    moved, drift = ClassStatistics(WIDTH), Drift(ClassStatistics(WIDTH))
    moved.grow(len(EXPERIENCES))
    moved.add(features, labels)
    after = features @ torch.randn(WIDTH, WIDTH, generator=generator(0, "map")) + 3
    drift.add(features, after)
    solved = drift.solve()
    move(moved, solved)
    expected = ClassStatistics(WIDTH)
    expected.grow(len(EXPERIENCES))
    expected.add(features.double() @ solved.matrix + solved.shift, labels)
    for name, value in expected.named_buffers():
        assert torch.allclose(getattr(moved, name), value, rtol=1e-9, atol=1e-9), name


def test_a_shift_of_all_features_is_found_exactly(counted: Any) -> None:
    _, _, features, _ = counted
    drift = Drift(ClassStatistics(WIDTH))
    drift.add(features, features + 3)
    solved = drift.solve()
    assert torch.allclose(solved.matrix, torch.eye(WIDTH, dtype=torch.float64), atol=1e-6)
    assert torch.allclose(solved.shift, torch.tensor(3.0, dtype=torch.float64), atol=1e-6)


def test_features_that_stay_do_not_move_statistics(counted: Any) -> None:
    statistics, _, features, _ = counted
    moved, drift = copy.deepcopy(statistics), Drift(ClassStatistics(WIDTH))
    drift.add(features, features)
    move(moved, drift.solve())
    for name, value in statistics.named_buffers():
        assert torch.allclose(getattr(moved, name), value, rtol=1e-9, atol=1e-9), name


# ------------------------------------------------------------------------------------------ in a stream

FORMS: dict[str, tuple[Any, dict[str, Any]]] = {
    "full": (VPTDeepModel, {"statistics": "align"}),
    "hide": (
        DualPromptModel,
        {
            "statistics": "align",
            "align_recipe": "hide",
            "align_covariance": "diagonal",
            "task_adaptive": True,
        },
    ),
    "without boundaries": (MVPModel, {"statistics": "align", "align_covariance": "shared"}),
    "drift": (L2PModel, {"statistics": "lda", "compensate_drift": True}),
}


@pytest.fixture(scope="module", params=FORMS)
def trained(request: pytest.FixtureRequest) -> tuple[Workbench, Any, Any, dict[str, Any]]:
    """A bench, a model after two experiences, the same without, and a state from inside the second."""
    method, forms = FORMS[request.param]
    bench = Workbench(method, **forms)
    model, bare = bench.make(), construct(method, bench.backbones["class token"])
    points: list[dict[str, Any]] = []

    def stop() -> None:
        if engine.position.experience == 1 and engine.position.batch == 2:
            points.append(through_file(engine.state()))

    engine = bench.engine(model, epochs=1, experiences=2, online=False, stop=stop)
    engine.run()
    bench.run(bare, epochs=1, experiences=2, online=False)
    return bench, model.eval(), bare.eval(), points[0]


def test_training_has_the_same_bits(trained: Any) -> None:
    _, model, bare, _ = trained
    own = {name: value for name, value in bits(model).items() if not name.startswith("statistics.")}
    assert not changed(own, bits(bare))


def test_the_trained_head_predicts_as_without(trained: Any) -> None:
    bench, model, bare, _ = trained
    with torch.no_grad():
        predictions = model.predictions(bench.test.images)
        assert torch.equal(predictions.trained, bare(bench.test.images))
    assert not torch.equal(predictions.logits, predictions.trained)


def test_a_resumed_run_has_the_same_bits(trained: Any) -> None:
    bench, model, _, point = trained
    resumed = bench.make()
    engine = bench.engine(resumed, epochs=1, experiences=2, online=False)
    engine.load_state(point)
    engine.run()
    assert not changed(bits(model), bits(resumed))
    with torch.no_grad():
        assert torch.equal(model(bench.test.images), resumed.eval()(bench.test.images))


# ------------------------------------------------------------------------------------------ drift


def test_compensated_means_are_nearer_to_those_of_the_final_prompts() -> None:
    distances = []
    for compensate in (False, True):
        bench = Workbench(L2PModel, statistics="lda", compensate_drift=compensate)
        model = bench.make()
        bench.run(model, epochs=2, experiences=3, online=False)
        with torch.no_grad():
            features = model.eval().encode(bench.train.images).features.double()
        old = torch.tensor(sum(CLASSES[:2], ()))
        targets = torch.from_numpy(bench.train.targets)
        retaken = torch.stack([features[targets == c].mean(0) for c in old.tolist()])
        distances.append(float((model.statistics.classes.means()[old] - retaken).norm()))
    assert 0 < distances[1] < 0.7 * distances[0]


# ------------------------------------------------------------------------------------------ task-adaptive


@pytest.mark.parametrize(
    ("method", "arguments"),
    [(DualPromptModel, {}), (CODAPromptModel, {}), (DAMVPModel, {"prompt": "token", "layers": (1, 3)})],
)
def test_the_prompts_of_an_experience_are_those_that_serve_it(method: Any, arguments: dict[str, Any]) -> None:
    bench = Workbench(method, **arguments)
    model = bench.make()
    engine = bench.engine(model, experiences=2, online=False)
    engine.run_experience()
    images = bench.test.images[:6]
    with torch.no_grad():
        first = model.eval().encode(images).features
    engine.run_experience()
    with torch.no_grad():
        under = [model.eval().encode_under(images, torch.tensor(t).expand(6)).features for t in (0, 1, 2)]
        mixed = model.encode_under(images, torch.tensor([0, 1, 0, 1, 0, 1])).features
    if method is not DualPromptModel:  # its general prompt goes on being trained
        assert torch.allclose(under[0], first, atol=1e-5)
    assert not torch.equal(under[0], under[1])
    assert torch.equal(under[1], under[2])  # an experience that added nothing has the newest prompts
    alternating = torch.stack([under[row % 2][row] for row in range(6)])
    assert torch.allclose(mixed, alternating, atol=1e-5)


# ------------------------------------------------------------------------------------------ refusals

REFUSED: list[tuple[Any, dict[str, Any], str]] = [
    (DualPromptModel, {"task_adaptive": True}, "task_adaptive belongs to statistics, which is null"),
    (DualPromptModel, {"compensate_drift": True}, "compensate_drift belongs to statistics, which is null"),
    (DualPromptModel, {"statistics": "lda", "align_covariance": "full"}, "belongs to statistics=align"),
    (DualPromptModel, {"statistics": "lda", "align_recipe": "slca"}, "belongs to statistics=align"),
    (DualPromptModel, {"statistics": "align", "statistics_features": "frozen"}, "is for prompted features"),
    (L2PModel, {"statistics": "lda", "task_adaptive": True}, "L2PModel has no prompts for each experience"),
    (
        DualPromptModel,
        {"statistics": "lda", "task_adaptive": True, "boundary_free": True},
        "DualPromptModel has no prompts for each experience",
    ),
    (DualPromptModel, {"statistics": "lda", "compensate_drift": True}, "keeps the prompts of each"),
    (
        DualPromptModel,
        {"statistics": "lda", "compensate_drift": True, "task_adaptive": True},
        "exclude each other",
    ),
    (L2PModel, {"statistics": "align", "compensate_drift": True}, "needs align_covariance=shared"),
    (
        L2PModel,
        {"statistics": "lda", "compensate_drift": True, "coordinate": True},
        "compensate_drift=true and coordination exclude each other",
    ),
    (MultiLaneModel, {"statistics": "align"}, "MultiLaneModel"),
    (DAMVPModel, {"statistics": "align", "head": "active"}, "DAMVPModel has no linear head"),
]


@pytest.mark.parametrize(("method", "forms", "words"), REFUSED)
def test_what_has_no_meaning_is_one_line(method: Any, forms: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        construct(method, Workbench(method).backbones["class token"], **forms)


@pytest.mark.parametrize("forms", [{"statistics": "align"}, {"statistics": "lda", "compensate_drift": True}])
def test_an_online_stream_is_refused(forms: dict[str, Any]) -> None:
    bench = Workbench(MVPModel, **forms)
    with pytest.raises(ConfigError, match="statistics needs to know where experiences begin and end"):
        bench.engine(bench.make(), online=True)
    model = bench.make()
    images, targets = bench.batch(0)
    model.observe(targets)
    with pytest.raises(ProtocolError, match=r"needs begin_experience\(classes\)"):
        model.training_loss(images, targets)


def test_label_sets_are_refused_by_an_alignment() -> None:
    bench = Workbench(DualPromptModel, statistics="align")
    model = bench.make()
    model.begin_experience(CLASSES[0])
    targets = torch.zeros(2, 5)
    targets[:, CLASSES[0]] = 1
    model.observe(targets)
    with pytest.raises(ProtocolError, match="needs one label per image"):
        model.training_loss(bench.test.images[:2], targets)
