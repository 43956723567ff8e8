"""Class statistics where they meet loops, other settings, and data that tell little."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from clprompt import registry
from clprompt.data.plan import make_plan
from clprompt.errors import ClpromptError, ConfigError, ProtocolError
from clprompt.prompting.build import construct
from clprompt.prompting.losses import SoftLabels
from clprompt.prompting.model import PromptModel
from clprompt.prompting.statistics import ClassStatistics
from clprompt.testing.asserts import bits, changed, same_bits
from clprompt.testing.bench import CLASSES, ToyImages, Workbench, through_file, tiny_vit
from clprompt.training.fit import fit
from clprompt.training.precision import autocast
from clprompt.training.settings import Online, Training

VIT = tiny_vit()
FORMS = ("lda", "ncm", "ridge")


def made(name: str, **arguments: Any) -> PromptModel:
    """A method with class statistics, over a backbone that all share."""
    return construct(registry.strategies.get(name).target, VIT, **{"statistics": "lda", **arguments})


def counted(images: torch.Tensor, labels: list[int], **arguments: Any) -> PromptModel:
    """A model that has counted images in one experience, in eval mode."""
    model, targets = made("linear_probe", **arguments), torch.tensor(labels)
    model.begin_experience(sorted(set(labels)))
    model.observe(targets)
    model.end_experience(lambda: [(images, targets)])
    return model.eval()


# -------------------------------------------------------------------------------- data that tell little

IMAGES = ToyImages(2).images
FEW: dict[str, tuple[torch.Tensor, list[int]]] = {
    "one sample in all": (IMAGES[:1], [3]),
    "one sample a class": (IMAGES[::2], [0, 1, 2, 3, 4, 5]),
    "a class with one sample": (IMAGES[:5], [0, 0, 1, 1, 2]),
    "constant features": (IMAGES[:1].expand(6, -1, -1, -1), [0, 0, 0, 1, 1, 1]),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("few", FEW)
def test_few_or_equal_samples_give_finite_logits_of_the_classes_seen(few: str, form: str) -> None:
    images, labels = FEW[few]
    with torch.no_grad():
        logits = counted(images, labels, statistics=form)(IMAGES)
    seen = torch.zeros(logits.shape[1], dtype=torch.bool)
    seen[labels] = True
    assert bool(logits[:, seen].isfinite().all())
    assert bool((logits[:, ~seen] == float("-inf")).all())


def test_one_sample_a_class_ranks_by_euclidean_distance() -> None:
    images, labels = FEW["one sample a class"]
    model = counted(images, labels)
    with torch.no_grad():
        features = model.encode(IMAGES).features.double()
        nearest = torch.cdist(features, features[::2]).argmin(1)
        assert torch.equal(model(IMAGES).argmax(1), nearest)


def test_a_shrinkage_of_0_over_a_singular_scatter_is_one_line() -> None:
    model = counted(IMAGES[:4], [0, 0, 1, 1], statistics_shrinkage=0.0)
    with pytest.raises(ConfigError, match=r"^a shrinkage of 0.0: .* no inverse; use a larger") as caught:
        model(IMAGES)
    assert "\n" not in str(caught.value)


def test_a_width_beyond_the_memory_limit_is_one_line_with_the_bytes() -> None:
    with pytest.raises(ConfigError, match=r"8,192 bytes .* at most 8,000 are allowed"):
        ClassStatistics(32, limit_bytes=8000)


# -------------------------------------------------------------------------------- states of something else

STATES: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "without statistics": ({"statistics": None}, {}, "holds nothing of statistics"),
    "with statistics": ({}, {"statistics": None}, "holds statistics, which this LinearProbeModel"),
    "of a strength held out": (
        {"statistics": "ridge", "ridge_strength": "held_out"},
        {},
        "another head than statistics=lda as it is here: they differ in held_out",
    ),
    "of other features": ({"statistics_features": "frozen"}, {}, "are of frozen features, the model's of pr"),
}


@pytest.mark.parametrize("case", STATES)
def test_a_state_of_another_head_is_one_line(case: str) -> None:
    theirs, ours, line = STATES[case]
    state = made("linear_probe", **theirs).method_state()
    with pytest.raises(ProtocolError, match=line) as caught:
        made("linear_probe", **ours).load_state_dict(state)
    assert "\n" not in str(caught.value)


def test_a_state_of_another_width_is_one_line() -> None:
    narrow = construct(registry.strategies.get("linear_probe").target, tiny_vit(width=16), statistics="lda")
    with pytest.raises(ProtocolError, match="are of width 16, the model's of 32") as caught:
        made("linear_probe").load_state_dict(narrow.method_state())
    assert "\n" not in str(caught.value)


def test_sums_serve_every_closed_form() -> None:
    images, labels = FEW["a class with one sample"]
    other = made("linear_probe", statistics="ridge")
    other.load_state_dict(counted(images, labels).method_state())
    ridge = counted(images, labels, statistics="ridge")
    with torch.no_grad():
        assert same_bits(other.eval()(IMAGES), ridge(IMAGES))


# -------------------------------------------------------------------------------- where there is no meaning

REFUSED = {
    "multilane": "statistics_features must be frozen for MultiLaneModel",
    "joint": "JointModel has no trained head",
}


@pytest.mark.parametrize("name", REFUSED)
def test_statistics_without_a_meaning_are_refused_in_one_line(name: str) -> None:
    with pytest.raises(ConfigError, match=REFUSED[name]) as caught:
        made(name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("mixed", ["mixup", "cutmix"])
def test_mixed_images_are_refused_online(mixed: str) -> None:
    train = ToyImages(4)
    settings = Training(train_mb_size=8, **{mixed: 0.5})
    plan = make_plan({"name": "split", "experiences": 3}, _dense(train).targets, seed=0)
    with pytest.raises(ClpromptError, match=rf"training\.{mixed} must be 0"):
        fit(made("vpt_deep", boundary_free=True), plan, train, training=settings, online=Online())


def test_mixed_images_are_trained_on_where_an_experience_is_counted_at_its_end() -> None:
    train = _dense(ToyImages(4))
    plan = make_plan({"name": "split", "experiences": 3}, train.targets, seed=0)
    model = made("vpt_deep")
    fit(model, plan, train, training=Training(train_mb_size=8, train_epochs=2, mixup=0.5))
    assert model.statistics.classes.counts.tolist() == [4] * 6


def test_mixed_images_are_refused_in_a_loop_of_ones_own_that_counts_what_it_receives() -> None:
    model, targets = made("vpt_deep", boundary_free=True), torch.tensor([0, 1])
    model.observe(targets)
    with pytest.raises(ProtocolError, match="statistics counts features"):
        model.training_loss(IMAGES[:2], targets, SoftLabels(torch.full((2, 2), 0.5), 0.0))


# -------------------------------------------------------------------------------- streams and loops


def _dense(images: ToyImages) -> ToyImages:
    """Class ids without gaps, and two domains that take turns."""
    images.targets = np.searchsorted(sorted(c for group in CLASSES for c in group), images.targets)
    images.domains = np.arange(len(images)) % 2  # type: ignore[attr-defined]
    return images


STREAMS: dict[str, dict[str, Any]] = {
    "domain": {},
    "few_shot": {"base_classes": 2, "ways": 2, "shots": 1},
    "repetition": {"experiences": 4, "probability": 0.6, "samples_per_experience": 12},
}


@pytest.mark.parametrize("name", STREAMS)
def test_a_class_that_comes_again_is_added_to(name: str) -> None:
    train = _dense(ToyImages(6))
    plan = make_plan({"name": name, **STREAMS[name]}, train.targets, seed=0, domains=train.domains)  # type: ignore[attr-defined]
    model = made("linear_probe", mask="seen")
    fit(model, plan, train, training=Training(train_mb_size=8, train_epochs=2))
    arrived = np.bincount(train.targets[np.concatenate(plan.indices)], minlength=6)
    assert model.statistics.classes.counts.tolist() == arrived.tolist()


@pytest.fixture(scope="module")
def offline() -> tuple[Workbench, PromptModel, list[dict[str, Any]]]:
    """A method whose boundaries are unused, trained experience by experience, and states on its way."""
    bench = Workbench(registry.strategies.get("mvp").target, statistics="lda")
    model, states = bench.make(), []
    engine = bench.engine(model, epochs=2, experiences=2, online=False)

    def stop() -> None:
        if engine.position.experience == 1 and engine.position.batch in (1, 3):
            states.append(through_file(engine.state()))

    engine.stop = stop
    engine.run()
    return bench, model, states


def test_a_resumed_experience_of_a_method_without_boundaries_is_counted_once(offline: Any) -> None:
    bench, model, states = offline
    assert len(states) == 4
    for state in (states[0], states[-1]):
        again = bench.make()
        engine = bench.engine(again, epochs=2, experiences=2, online=False)
        engine.load_state(state)
        engine.run()
        assert not changed(bits(model), bits(again))
    assert int(model.statistics.classes.counts.sum()) == 4 * 17


def test_inside_an_open_experience_the_trained_head_answers(offline: Any) -> None:
    bench, _, states = offline
    model = bench.make()
    model.load_state_dict(states[0]["model"])
    with torch.no_grad():
        inside = model.eval().predictions(bench.test.images)
    assert inside.trained is None
    assert bool(inside.logits[:, model.seen].isfinite().all())


def test_logits_have_32_bits_under_autocast(offline: Any) -> None:
    bench, model, _ = offline
    with torch.no_grad(), autocast(torch.device("cpu"), "bf16"):
        predictions = model.eval().predictions(bench.test.images)
    assert predictions.logits.dtype == torch.float32
    distinct = predictions.logits[:, 4].bfloat16().float() != predictions.logits[:, 4]
    assert bool(distinct.any())  # and they use them


def test_an_experience_that_the_next_one_ended_is_one_line_at_the_first_prediction() -> None:
    model = made("linear_probe")
    for classes in ([0, 1], [2, 3]):
        model.begin_experience(classes)
    model.end_experience(lambda: [(IMAGES[:2], torch.tensor([2, 3]))])
    with pytest.raises(ProtocolError, match=r"call end_experience\(samples\)") as caught:
        model.eval()(IMAGES)
    assert "\n" not in str(caught.value)


# -------------------------------------------------------------------------------- features that stay

STAYING: list[tuple[str, dict[str, Any], bool]] = [
    ("linear_probe", {}, True),
    ("vpt_deep", {"layers": ()}, True),
    ("tcpa", {"prompts": "first"}, True),
    ("tcpa", {}, False),
    ("vpt_deep", {}, False),
    ("dualprompt", {"freeze_general_after": 1}, False),
]


@pytest.mark.parametrize(("name", "arguments", "stays"), STAYING)
def test_features_stay_where_a_method_says_so(name: str, arguments: dict[str, Any], stays: bool) -> None:
    bench = Workbench(registry.strategies.get(name).target, **arguments)
    model = bench.make()
    engine = bench.engine(model, experiences=2, online=False)
    images, features = bench.test.images[bench.test.groups()[0]], []
    for _ in range(2):
        engine.run_experience()
        with torch.no_grad():
            features.append(model.eval().encode(images).features)
    assert model.features_stay == stays == same_bits(*features)


NOTES: list[tuple[str, dict[str, Any], str]] = [
    ("vpt_deep", {}, "train_experiences=1 or compensate_drift=true or statistics_features=frozen"),
    ("dualprompt", {}, "as it was; task_adaptive=true or train_experiences=1 or statistics_features=frozen"),
    ("vpt_deep", {"compensate_drift": True}, ""),
    ("mvp", {}, "as it was; statistics_features=frozen helps"),
    ("vpt_deep", {"train_experiences": 2}, "train_experiences=1 or"),
    ("vpt_deep", {"train_experiences": 1}, ""),
    ("linear_probe", {}, ""),
    ("dualprompt", {"statistics_features": "frozen"}, "what slda predicts"),
    ("dualprompt", {"statistics": None}, ""),
]


@pytest.mark.parametrize(("name", "arguments", "line"), NOTES)
def test_a_run_says_in_one_line_what_its_statistics_are_in_danger_of(
    name: str, arguments: dict[str, Any], line: str
) -> None:
    notes = made(name, **arguments).notes()
    assert len(notes) == bool(line)
    assert all(line in note and "\n" not in note for note in notes)
