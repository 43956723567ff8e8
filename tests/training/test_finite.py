"""Numbers that are not finite never end as a figure, whatever the method, and are blamed on their cause."""

import functools
import math

import pytest
import torch
from small_methods import image_methods

from clprompt import registry
from clprompt.errors import BackboneError, ClpromptError, ConfigError, DataError, ProtocolError
from clprompt.strategies.linear_probe import LinearProbeModel
from clprompt.strategies.ncm import NCMModel
from clprompt.testing.bench import Log, Workbench
from clprompt.training.evaluation import evaluate
from clprompt.training.finite import FiniteWatch
from clprompt.training.settings import Online, Training

STRATEGIES = image_methods()
TRAINED = [name for name in STRATEGIES if registry.strategies.get(name).target.trains]


def method(name):
    return registry.strategies.get(name).target


@functools.cache
def trained(name):
    """A bench and a model after one step, for tests that leave both as they are."""
    bench = Workbench(method(name))
    model, _ = bench.begun(1, experience=0)
    return bench, model


def run(bench, *, training=None, **arguments):
    """The records of a run on the first experience that a method trains on."""
    model, log = bench.make(), Log()
    engine = bench.engine(model, log=log, experiences=1)
    engine.training = training or engine.training
    for name, value in arguments.items():
        setattr(engine, name, value)
    try:
        engine.run()
    finally:
        run.records = log.records
    return log.records


def evaluations():
    return [record for record in run.records if record["kind"] == "evaluation"]


@pytest.mark.parametrize("name", STRATEGIES)
def test_one_pixel_that_is_no_number_ends_a_run_and_is_blamed(name):
    bench = Workbench(method(name))
    bench.train.images[5, 0, 0, 0] = -math.inf
    with pytest.raises(DataError, match=r"image.* is not finite: it holds -inf\Z"):
        run(bench)
    assert not evaluations()


@pytest.mark.parametrize("value", [math.nan, 1e38])
@pytest.mark.parametrize("name", STRATEGIES)
def test_a_weight_of_the_backbone_that_is_no_number_ends_a_run_and_is_blamed(name, value):
    bench = Workbench(method(name))
    vit = bench.backbones["class token"].vit
    vit.blocks[0].mlp.fc1.weight.data[0] = value
    vit.blocks[0].mlp.fc2.weight.data[:, 0] = 1e38 if value == 1e38 else 1.0
    reason = "too large" if value == 1e38 else r"its weight vit\.blocks\.0\.mlp\.fc1\.weight holds nan"
    with pytest.raises(
        BackboneError, match=f"features of .* are not finite, though the image is: .*{reason}"
    ):
        run(bench)
    assert not evaluations()


@pytest.mark.parametrize("name", TRAINED)
def test_weights_that_the_last_step_broke_are_not_evaluated(name):
    lr = 3e38
    rates = {"prompt_lr": lr, "head_lr": lr} if name == "damvp" else {}
    bench = Workbench(method(name), **rates)
    training = Training(train_mb_size=10000, lr=lr, optimizer="sgd", log_every=1000)
    with pytest.raises(ProtocolError, match=r"\A[^\n]*lower training\.lr or set training\.clip_grad\Z"):
        run(bench, training=training)
    assert not evaluations()


@pytest.mark.parametrize("name", STRATEGIES)
def test_nan_in_any_tensor_of_a_method_s_state_is_not_evaluated(name):
    bench, model = trained(name)
    for key, value in model.method_state().items():
        if value.is_floating_point() and value.numel() and key not in model.unknown_as_nan:
            kept = value.flatten()[0].clone()
            value.view(-1)[0] = math.nan
            with pytest.raises(ProtocolError, match=f"no evaluation is recorded: {key} holds nan; "):
                evaluate(model, bench.test)
            value.view(-1)[0] = kept
    assert evaluate(model, bench.test).accuracy >= 0


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_test_image_that_is_no_number_is_named(name):
    _, model = trained(name)
    test = Workbench(method(name)).test
    test.images[7, 0, 0, 0] = math.nan
    with pytest.raises(DataError, match=r"\Atest image 7 is not finite: it holds nan\Z"):
        evaluate(model, test)


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_a_rate_that_no_step_can_be_taken_with_is_one_line(optimizer, precision):
    training = Training(lr=1e39, optimizer=optimizer, train_mb_size=8)
    with pytest.raises(ConfigError, match=r"\A\w+ cannot take a step with lr 1e\+39 and weight_decay 0: "):
        run(Workbench(LinearProbeModel), training=training, precision=precision)


@pytest.mark.parametrize("name", TRAINED)
def test_a_rate_of_a_group_is_told_with_its_name(name):
    rates = {
        "damvp": {"prompt_lr": 1e38, "head_lr": 1e38},
        "semantic_proxies": {"bias_lr": 1e38},
    }.get(name, {})
    with pytest.raises(ConfigError, match=r"\AAdam cannot take a step with lr 1e\+38") as caught:
        run(Workbench(method(name), **rates), training=Training(lr=1e38, train_mb_size=8))
    assert ("(prompts)" in str(caught.value)) == (name == "damvp")


# ------------------------------------------------------------------------------- when, where and whose fault


class Breaks(LinearProbeModel):
    """Its loss is nan from some step on."""

    def __init__(self, backbone, *, seed: int = 0, at: int = 1):
        super().__init__(backbone, seed=seed)
        self.left = at

    def losses(self, encoded, targets, soft):
        self.left -= 1
        logits, terms = super().losses(encoded, targets, soft)
        return logits, {name: term * math.nan if self.left <= 0 else term for name, term in terms.items()}


def test_the_learning_rate_is_not_blamed_before_the_first_step():
    with pytest.raises(
        ProtocolError, match="no step was made before, and images and backbone are finite"
    ) as told:
        run(Workbench(Breaks))
    assert "lower" not in str(told.value)


@pytest.mark.parametrize(("at", "experience"), [(2, 1), (5, 1), (6, 2), (12, 3)])
def test_a_broken_step_is_told_when_it_happens_by_experiences_from_one(at, experience):
    bench, log = Workbench(Breaks, at=at), Log()
    engine = bench.engine(bench.make(), log=log)
    engine.training = Training(train_mb_size=8, log_every=1000)
    where = rf"at step {at} \(experience {experience}\); lower training\.lr"
    with pytest.raises(ProtocolError, match=rf"\Athe loss is nan {where} or set training\.clip_grad\Z"):
        engine.run()
    assert sum(record["kind"] == "evaluation" for record in log.records) == experience - 1


class Loses(LinearProbeModel):
    """A step with a finite loss after which a weight is nan."""

    def count_step(self, encoded):
        self.head.bias.data[0] = math.nan


@pytest.mark.parametrize("every", [1, None])
def test_no_checkpoint_is_written_of_weights_that_are_no_numbers(every):
    saved, training = [], Training(train_mb_size=10000, checkpoint_every=every)
    with pytest.raises(
        ProtocolError, match=r"the model is broken after step 1 \(experience 1\): head\.bias holds"
    ):
        run(Workbench(Loses), training=training, checkpoint=lambda: saved.append(1), evaluator=None)
    assert not saved


@pytest.mark.parametrize("iterations", [1, 3])
def test_an_anytime_evaluation_is_not_recorded_after_a_broken_step(iterations):
    bench, log = Workbench(NCMModel), Log()
    bench.train.images[20, 0, 0, 0] = math.nan
    engine = bench.engine(bench.make(), log=log)
    engine.online = Online(iterations=iterations, eval_every=8)
    with pytest.raises(ClpromptError, match="not finite"):
        engine.run()
    assert all(math.isfinite(record["accuracy"]) for record in log.records if record["kind"] == "evaluation")


class Elsewhere:
    """What a step leaves on a device that computes while the program goes on."""

    def __init__(self, flag):
        self.flag, self.read = flag, 0
        self.device = torch.device("cuda")

    def detach(self):
        return self

    def isfinite(self):
        return self

    all = isfinite

    def __and__(self, other):
        self.flag = self.flag and other.flag
        return self

    def __bool__(self):
        self.read += 1
        return self.flag

    def __float__(self):
        return math.nan


def test_a_device_is_not_waited_for_until_the_flag_is_asked_for():
    model = trained("linear_probe")[1]
    watch, steps = FiniteWatch(model), [Elsewhere(flag) for flag in (True, False, True)]
    images = torch.zeros(1, 3, 16, 16)
    for number, flag in enumerate(steps, start=1):
        watch.note(type("S", (), {"loss": flag, "features": flag})(), images, number, 1)
    assert not any(flag.read for flag in steps)
    with pytest.raises(ProtocolError, match="at step 2"):
        watch.check()
    watch.check()  # told once


def test_a_state_of_a_training_that_diverged_is_not_loaded():
    model = LinearProbeModel(trained("linear_probe")[1].backbone)
    model.observe(torch.tensor([0, 1]))
    good, bad = ({name: value.clone() for name, value in model.method_state().items()} for _ in range(2))
    bad["head.weight"][1, 2] = math.nan
    with pytest.raises(ProtocolError, match=r"diverged, and is not loaded: head\.weight holds nan$"):
        model.load_state_dict(bad)
    assert all(torch.equal(value, good[name]) for name, value in model.method_state().items())


def test_nan_that_a_method_means_is_loaded():
    model = Workbench(method("damvp")).make()
    state = model.method_state()
    assert state["tau"].isnan().any()
    model.load_state_dict(state)
