"""Training that ends after the first experiences, over every method with boundaries."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch

from clprompt import registry
from clprompt.errors import ClpromptError, ConfigError, ProtocolError
from clprompt.prompting.build import construct
from clprompt.prompting.model import PromptModel
from clprompt.testing.asserts import bits, changed, same_bits
from clprompt.testing.bench import CLASSES, Log, Workbench, through_file, tiny_vit
from clprompt.training import optim
from clprompt.training.engine import Engine
from clprompt.training.steps import receive, train_step

FORMS: dict[str, dict[str, Any]] = {
    "coda_prompt": {},
    "damvp": {},
    "dualprompt": {"coordinate": True, "pool_size": 1},
    "l2p": {},
    "linear_probe": {"mask": "seen"},
    "multilane": {"statistics_features": "frozen"},
    "tcpa": {},
    "vpt_deep": {},
}


@cache
def bench(name: str) -> Workbench:
    arguments = {"statistics": "lda", "train_experiences": 1, **FORMS[name]}
    return Workbench(registry.strategies.get(name).target, **arguments)


class Ran:
    """A run over the toy stream in which training ends after its first experience."""

    def __init__(self, name: str) -> None:
        self.model, self.log = bench(name).make(), Log()
        self.engine = engine_of(name, self.model, self.log)
        self.engine.run_experience()
        self.first = through_file(self.engine.state())
        self.steps = self.engine.position.step
        self.engine.run()


def engine_of(name: str, model: PromptModel, log: Log | None = None) -> Engine:
    return bench(name).engine(model, epochs=2, online=False, log=log)


@cache
def ran(name: str) -> Ran:
    return Ran(name)


every_method = pytest.mark.parametrize("name", FORMS)


@every_method
def test_nothing_of_the_method_changes_after_the_last_trained_experience(name: str) -> None:
    run = ran(name)
    before = {key: value for key, value in run.first["model"].items() if key in run.model.own_parameters()}
    after = {key: value for key, value in bits(run.model).items() if key in run.model.own_parameters()}
    assert before.keys() == after.keys() != set()
    for key, value in before.items():  # a head has rows for later classes, too
        assert torch.equal(after[key][: len(value)], value), key
    assert not run.model.trainable()
    assert run.engine.optimizer is None


@every_method
def test_no_step_is_made_and_every_sample_is_counted(name: str) -> None:
    run, train = ran(name), bench(name).train
    assert run.engine.position.step == run.steps
    first = len(train.groups()[0])
    assert run.engine.position.samples == 2 * first + len(train) - first
    counts = run.model.statistics.classes.counts
    assert {c: int(counts[c]) for c in counts.nonzero().flatten().tolist()} == {
        c: 17 for group in CLASSES for c in group
    }


@every_method
def test_later_classes_are_predicted(name: str) -> None:
    evaluations = [record for record in ran(name).log.records if record["kind"] == "evaluation"]
    assert evaluations[-1]["accuracy"] >= 0.6  # of six classes


@every_method
def test_what_is_kept_of_test_images_once_training_is_over_predicts_to_the_same_bits(name: str) -> None:
    model, cached = ran(name).model.eval(), {}
    images = bench(name).test.images
    with torch.no_grad():
        expected = model(images)
        assert same_bits(model(images, cached), expected)
        assert "head input" in cached
        assert same_bits(model(images, cached), expected)


@every_method
def test_figures_of_the_trained_head_are_not_given(name: str) -> None:
    with torch.no_grad():
        assert ran(name).model.eval().predictions(bench(name).test.images[:2]).trained is None


@every_method
def test_a_run_that_resumes_after_the_last_trained_experience_has_the_same_bits(name: str) -> None:
    model = bench(name).make()
    engine = engine_of(name, model)
    engine.load_state(ran(name).first)
    engine.run()
    assert not changed(bits(ran(name).model), bits(model))


@every_method
def test_a_state_from_before_the_end_of_training_is_trained_on(name: str) -> None:
    model, samples = bench(name).make(), bench(name).samples(0)
    model.begin_experience(CLASSES[0], samples)
    before, names = model.method_state(), set(model.trainable())
    state = {key: value.clone() for key, value in before.items()}
    model.end_experience(samples)
    model.begin_experience(CLASSES[0], samples)
    assert names
    assert not model.trainable()
    model.load_state_dict(state)
    assert set(model.trainable()) == names


def test_a_loop_of_ones_own_makes_no_step_either() -> None:
    run, other = ran("dualprompt"), bench("dualprompt")
    model = other.make()
    model.load_state_dict(run.first["model"])
    optimizer = optim.build(model, other.training())
    for experience in (1, 2):
        samples, (images, targets) = other.samples(experience), other.batch(experience)
        model.train().begin_experience(CLASSES[experience])
        receive(model, optimizer, targets)
        step = train_step(model, optimizer, images, targets)
        assert float(step.loss) == 0
        assert not step.loss.requires_grad
        assert model.training
        model.end_experience(samples)
    with torch.no_grad():
        ours, theirs = model.eval()(other.test.images), run.model.eval()(other.test.images)
    assert torch.allclose(ours, theirs)


def test_a_stream_is_checked_for_the_experiences_that_are_trained_on() -> None:
    assert ran("dualprompt").model.pool_size == 1  # of three experiences


def test_a_label_that_was_not_observed_is_refused_after_training_too() -> None:
    model = ran("vpt_deep").model
    images, targets = bench("vpt_deep").batch(0)
    model.begin_experience(CLASSES[0])
    with pytest.raises(ProtocolError, match="label 2 was never observed"):
        model.training_loss(images, torch.full_like(targets, 2))
    model.load_state_dict(model.method_state())


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("l2p", {}, "needs a head that does without training"),
    ("l2p", {"statistics": "lda", "boundary_free": True}, "needs to know of experiences"),
    ("mvp", {"statistics": "lda"}, "needs to know of experiences"),
    ("joint", {}, "trains nothing that could stop"),
    ("ncm", {}, "trains nothing that could stop"),
]


@pytest.mark.parametrize(("name", "arguments", "line"), REFUSED)
def test_where_it_has_no_meaning_it_is_refused_in_one_line(
    name: str, arguments: dict[str, Any], line: str
) -> None:
    with pytest.raises(ConfigError, match=line) as caught:
        construct(registry.strategies.get(name).target, tiny_vit(), train_experiences=1, **arguments)
    assert "train_experiences" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_online_stream_is_refused_in_one_line() -> None:
    with pytest.raises(ClpromptError, match="train_experiences needs to know where experiences begin"):
        bench("linear_probe").engine(bench("linear_probe").make(), online=True)


def test_a_step_outside_of_experiences_is_refused_in_one_line() -> None:
    model = bench("linear_probe").make()
    images, targets = bench("linear_probe").batch(0)
    model.observe(targets)
    with pytest.raises(ProtocolError, match="train_experiences needs begin_experience"):
        model.training_loss(images, targets)
