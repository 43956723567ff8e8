"""The loop: what it trains, tells and saves, and that it can be entered again at any batch."""

import contextlib
import io
import math
import random

import numpy as np
import pytest
import torch

from clprompt import registry
from clprompt.errors import ConfigError, Interrupted, ProtocolError
from clprompt.scenarios import split
from clprompt.strategies.dualprompt import DualPromptModel
from clprompt.strategies.linear_probe import LinearProbeModel
from clprompt.strategies.ncm import NCMModel
from clprompt.testing.asserts import same_bits
from clprompt.testing.bench import CLASSES, Log, ToyImages, tiny_vit
from clprompt.training.engine import Engine
from clprompt.training.evaluation import Evaluator
from clprompt.training.fit import fit
from clprompt.training.settings import Online, Training

BACKBONE = tiny_vit(depth=2)
TRAIN, TEST = ToyImages(10), ToyImages(4, "test")  # 20 images in each of 3 experiences
TRAINING = Training(train_mb_size=8, train_epochs=2, lr=0.01, eval_mb_size=5, log_every=1)


class Augmented(ToyImages):
    """Noise from the global random states, as a random transform would add it."""

    random_transform = True

    def __getitem__(self, index):
        image, target = super().__getitem__(index)
        return image + 0.1 * torch.randn(3, 16, 16) + random.random() + np.random.rand(), target  # noqa: NPY002


def dualprompt(seed=0):
    return DualPromptModel(BACKBONE, seed=seed, g_layers=(0,), e_layers=(1,), g_length=2, e_length=3)


def probe(**arguments):
    return LinearProbeModel(BACKBONE, **arguments)


def make_engine(model, train=TRAIN, **arguments):
    settings = {
        "evaluator": Evaluator(TEST, TEST.targets, TEST.groups(), batch_size=5),
        "training": TRAINING,
        **arguments,
    }
    return Engine(model, train, train.groups(), CLASSES, **settings)


def through_file(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


class Shows(LinearProbeModel):
    """Tells how many probe images it was shown, group by group."""

    def diagnostics(self):
        return {"own": 1.0}

    def probe(self, images):
        assert not torch.is_grad_enabled()
        return {"images": torch.tensor([float(len(group)) for group in images.groups(8)])}


# ------------------------------------------------------------------------------------------ what it does


class Diagnosed(Log):
    """Keeps the diagnostics of a run."""

    def __init__(self):
        super().__init__()
        self.values = []

    def diagnostics(self, step, values, /):
        self.values.append((step, {name: torch.as_tensor(value).tolist() for name, value in values.items()}))


def test_a_method_is_shown_test_images_of_the_groups_so_far():
    log = Diagnosed()
    make_engine(Shows(BACKBONE), listeners=[log]).run()
    assert log.values[1::2] == [(n, {"images": [8.0] * n}) for n in (1, 2, 3)]
    assert log.values[::2] == [(n, {"own": 1.0}) for n in (1, 2, 3)]


def test_a_method_without_evaluations_is_shown_no_images():
    log = Diagnosed()
    make_engine(Shows(BACKBONE), listeners=[log], evaluator=None).run()
    assert log.values == [(n, {"own": 1.0}) for n in (1, 2, 3)]


@pytest.fixture(scope="module")
def recorded():
    """An engine that ran, its training records and its evaluations."""
    log = Log()
    engine = make_engine(dualprompt(), listeners=[log])
    engine.run()
    return engine, *([r for r in log.records if r["kind"] == kind] for kind in ("train", "evaluation"))


def test_every_batch_is_one_step(recorded):
    engine, train, _ = recorded
    assert [record["step"] for record in train] == list(range(1, 19))
    assert [record["samples"] for record in train[:7]] == [8, 16, 20, 28, 36, 40, 48]
    assert [(record["experience"], record["epoch"]) for record in train[::3]] == [
        (e, n) for e in range(3) for n in range(2)
    ]
    assert set(train[0]["terms"]) == {"loss", "cross_entropy", "key_pull"}
    assert vars(engine.position) | {"evaluated": 0} == {
        "experience": 3,
        "epoch": 0,
        "batch": 0,
        "step": 18,
        "samples": 120,
        "evaluated": 0,
    }


def test_every_experience_ends_with_an_evaluation(recorded):
    _, _, evaluations = recorded
    assert [record["step"] for record in evaluations] == [6, 12, 18]
    assert [record["samples"] for record in evaluations] == [40, 80, 120]
    assert [[g is not None for g in record["groups"]] for record in evaluations] == [
        [True, False, False],
        [True, True, False],
        [True, True, True],
    ]


def test_losses_are_told_every_so_many_steps_over_the_whole_run():
    log = Log()
    training = Training(train_mb_size=8, train_epochs=2, log_every=5)
    make_engine(probe(), listeners=[log], training=training).run()
    assert [record["step"] for record in log.records if record["kind"] == "train"] == [1, 6, 11, 16]


def test_the_rate_follows_the_cosine_within_each_experience():
    log = Log()
    training = Training(train_mb_size=8, train_epochs=2, lr=0.2, schedule="cosine", log_every=1)
    make_engine(probe(), listeners=[log], training=training).run()
    rates = [record["lr"] for record in log.records if record["kind"] == "train"]
    assert rates == pytest.approx([0.1 * (1 + math.cos(math.pi * step / 6)) for step in range(6)] * 3)


def test_the_rate_of_coda_prompt_changes_with_the_epoch_and_starts_anew_in_each_experience():
    log = Log()
    training = Training(train_mb_size=8, train_epochs=3, lr=0.2, schedule="cosine-coda", log_every=1)
    make_engine(probe(), listeners=[log], training=training).run()
    rates = [record["lr"] for record in log.records if record["kind"] == "train"]
    assert rates == ([0.2] * 6 + [0.2 * math.cos(99 * math.pi / 400)] * 3) * 3


def test_training_leaves_the_backbone_alone():
    before = BACKBONE.fingerprint()
    model = dualprompt()
    engine = make_engine(model)
    engine.run()
    assert BACKBONE.fingerprint() == before
    own = {id(p) for p in model.backbone.parameters()}
    assert not any(id(p) in own for group in engine.optimizer.param_groups for p in group["params"])
    assert all(p.grad is None for p in model.backbone.parameters())


def test_the_fingerprint_is_a_function_of_the_weights():
    same, other = tiny_vit(depth=2), tiny_vit(depth=2)
    assert same.fingerprint() == BACKBONE.fingerprint()
    with torch.no_grad():
        next(other.parameters()).view(-1)[0] += 1e-6
    assert other.fingerprint() != BACKBONE.fingerprint()


def test_a_model_that_trains_nothing_gets_no_optimizer():
    engine = make_engine(NCMModel(BACKBONE))
    engine.run()
    assert engine.optimizer is None
    assert engine.state()["optimizer"] is None


@pytest.mark.parametrize(("reset", "made"), [("experience", 3), ("never", 1)])
def test_a_method_says_whether_an_optimizer_outlives_an_experience(monkeypatch, reset, made):
    monkeypatch.setattr(DualPromptModel, "optimizer_reset", reset)
    engine, optimizers = make_engine(dualprompt()), []
    for _ in CLASSES:
        engine.run_experience()
        optimizers.append(engine.optimizer)  # kept, or an address might be used again
    assert len({id(optimizer) for optimizer in optimizers}) == made


def test_a_method_that_looks_at_its_images_first_gets_them_untouched_in_order():
    looked = []

    class Looking(LinearProbeModel):
        def start_experience(self, index, samples):
            looked.append([images for images, _ in samples()])

    make_engine(Looking(BACKBONE), Augmented(10), clean=TRAIN).run()
    assert [[len(batch) for batch in batches] for batches in looked] == [[5, 5, 5, 5]] * 3
    for batches, indices in zip(looked, TRAIN.groups(), strict=True):
        assert torch.equal(torch.cat(batches), TRAIN.images[indices])


def test_a_method_without_use_for_boundaries_is_told_of_none():
    class Unaware(LinearProbeModel):
        boundaries = "unused"

        def begin_experience(self, classes, samples=None):
            raise AssertionError("told of an experience")

    model = Unaware(BACKBONE, boundary_free=True)
    make_engine(model).run()
    assert model.seen.nonzero().flatten().tolist() == sorted(c for group in CLASSES for c in group)


def test_a_method_that_needs_boundaries_is_refused_on_an_online_stream():
    with pytest.raises(ProtocolError, match="DualPromptModel needs experience boundaries"):
        make_engine(dualprompt(), online=Online())


@pytest.mark.parametrize(
    ("name", "arguments", "classes", "says"),
    [
        ("coda_prompt", {"components_per_experience": 11}, CLASSES, "must be at most 10 for 3 experiences"),
        (
            "coda_prompt",
            {"components_per_experience": 1},
            [[0]] * 33,
            "must be at most 0 for 33",
        ),
        ("dualprompt", {"pool_size": 2}, CLASSES, "pool_size must be at least 3"),
        ("multilane", {}, [[0, 1], [2], [3, 1]], "class 1 is in the experiences 1 and 3"),
        (
            "damvp",
            {"head": "active"},
            [[0, 1], [40]],
            "32 coordinates, .* for 41 classes",
        ),
    ],
)
def test_a_stream_that_must_fail_later_is_refused_before_the_first_experience(name, arguments, classes, says):
    model = registry.strategies.get(name).target(tiny_vit(), **arguments)
    with pytest.raises(ConfigError, match=says):
        Engine(model, TRAIN, [np.arange(4)] * len(classes), classes)


def test_a_stream_without_experiences_needs_no_room_for_them():
    model = registry.strategies.get("coda_prompt").target(tiny_vit(), boundary_free=True, pool_size=30)
    Engine(model, TRAIN, TRAIN.groups(), CLASSES, online=Online())


def test_a_loss_that_is_not_finite_is_told_with_its_place():
    class Broken(LinearProbeModel):
        def losses(self, encoded, targets, soft):
            logits, terms = super().losses(encoded, targets, soft)
            return logits, {name: term * math.inf for name, term in terms.items()}

    with pytest.raises(ProtocolError, match=r"the loss is inf at step 1 \(experience 1\); no step was made"):
        make_engine(Broken(BACKBONE)).run()


def test_without_an_epoch_nothing_is_trained_and_everything_evaluated():
    log = Log()
    make_engine(dualprompt(), listeners=[log], training=Training(train_epochs=0)).run()
    assert [record["kind"] for record in log.records] == ["evaluation"] * 3


def test_the_speed_is_told_apart_from_the_records():
    class Speeds(Log):
        def __init__(self):
            super().__init__()
            self.speeds, self.told = [], []

        def speed(self, step, images_per_second):
            self.speeds.append((step, images_per_second))

        def diagnostics(self, step, values):
            self.told.append((step, sorted(values)))

    log = Speeds()
    make_engine(dualprompt(), listeners=[log]).run()
    assert all(value > 0 for _, value in log.speeds)
    assert len({step for step, _ in log.speeds}) == len(log.speeds) > 0
    assert "per_second" not in str(log.records)
    assert log.told == [(1, ["keys/cosine"]), (2, ["keys/cosine"]), (3, ["keys/cosine"])]


# --------------------------------------------------------------------------------- the same bits, always


def outcome(**arguments):
    """The records and the state after a run."""
    log, model = Log(), arguments.pop("model", dualprompt)()
    make_engine(model, **{"train": Augmented(10), "listeners": [log], **arguments}).run()
    return log.records, dict(model.method_state())


def test_a_run_is_a_function_of_its_seed_whatever_the_global_random_states():
    torch.manual_seed(1)
    first = outcome(seed=3)
    torch.manual_seed(2)
    random.seed(2)
    before = torch.get_rng_state()
    assert same_bits(outcome(seed=3), first)
    assert torch.equal(torch.get_rng_state(), before)
    assert not same_bits(outcome(seed=4)[1], first[1])


def test_the_size_of_evaluation_batches_and_loader_processes_change_no_weight():
    first = outcome()
    other = outcome(training=Training(**{**vars(TRAINING), "eval_mb_size": 11, "workers": 1}))
    assert same_bits(other[1], first[1])


def test_fit_is_the_same_loop_in_one_call():
    train, test = ToyImages(6), ToyImages(4, "test")
    ids = {c: i for i, c in enumerate(sorted({*train.targets.tolist()}))}
    for data in (train, test):
        data.targets = np.array([ids[c] for c in data.targets.tolist()])
    plan = split.plan(train.targets, experiences=3)
    one, other, log = dualprompt(), dualprompt(), Log()
    records = fit(one, plan, train, test, training=TRAINING, seed=5)
    evaluator = Evaluator(test, test.targets, plan.test_groups(test.targets), batch_size=5)
    Engine(
        other,
        train,
        plan.indices,
        plan.classes,
        evaluator=evaluator,
        training=TRAINING,
        seed=5,
        listeners=[log],
    ).run()
    assert same_bits(one.method_state(), other.method_state())
    assert records == [record for record in log.records if record["kind"] == "evaluation"]
    assert fit(dualprompt(), plan, train, training=TRAINING) == []


SETTINGS = {
    "dualprompt": (dualprompt, {"training": Training(**{**vars(TRAINING), "schedule": "cosine"})}),
    "dualprompt clipped": (
        dualprompt,
        {
            "training": Training(
                train_mb_size=8, lr=0.01, optimizer="sgd", momentum=0.9, clip_grad=0.1, log_every=1
            )
        },
    ),
    "linear probe online": (
        lambda: probe(boundary_free=True),
        {"online": Online(iterations=3, eval_every=12), "training": Training(train_mb_size=7, log_every=2)},
    ),
    "nearest class mean": (lambda: NCMModel(BACKBONE), {}),
    "clean query": (
        dualprompt,
        {
            "training": Training(train_mb_size=8, train_epochs=2, log_every=1, clean_query=True),
            "clean": ToyImages(7),
        },
    ),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_a_run_that_is_stopped_after_any_batch_continues_to_the_same_bits(name):
    make, settings = SETTINGS[name]
    train = Augmented(7)  # batches of 8 and 6 images
    expected, whole = Log(), make_engine(make(), train, **settings)
    whole.listeners = [expected]
    whole.run()
    batches, unfinished = 0, True
    while unfinished:
        batches += 1
        left = iter(range(batches - 1))
        log, kept = Log(), []
        engine = make_engine(
            make(), train, **settings, stop=lambda left=left: 15 if next(left, None) is None else None
        )
        engine.listeners = [log]
        engine.checkpoint = lambda kept=kept, engine=engine, log=log: kept.append(
            (through_file(engine.state()), len(log.records))
        )
        with contextlib.suppress(Interrupted):
            engine.run()
        unfinished = engine.position.experience < len(CLASSES)
        state, records = kept[-1]
        resumed, again = make_engine(make(), train, **settings), Log()
        resumed.listeners = [again]
        resumed.load_state(state)
        assert vars(resumed.position) == vars(engine.position)
        resumed.run()
        assert log.records[:records] + again.records == expected.records, f"after {batches} batches"
        assert same_bits(resumed.state(), whole.state()), f"after {batches} batches"
    assert batches >= 6


def test_a_state_is_a_copy_that_further_training_leaves_alone():
    engine = make_engine(dualprompt())
    engine.run_experience()
    state = engine.state()
    before = through_file(state)
    engine.run()
    assert same_bits(state, before)
    twin = make_engine(dualprompt())
    twin.load_state(state)
    twin.run()
    assert same_bits(state, before)
    assert same_bits(twin.state(), engine.state())


# --------------------------------------------------------------------------------- checkpoints and signals


@pytest.mark.parametrize(
    ("every", "steps"),
    [
        (None, [6, 12, 18]),
        (1, [1, 2, 3, 4, 5, 6, 6, 7, 8, 9, 10, 11, 12, 12, 13, 14, 15, 16, 17, 18, 18]),
        (4, [4, 6, 10, 12, 16, 18]),
        (100, [6, 12, 18]),
    ],
)
def test_checkpoints_are_asked_for_after_each_experience_and_every_so_many_steps(every, steps):
    asked = []
    engine = make_engine(probe(), training=Training(**{**vars(TRAINING), "checkpoint_every": every}))
    engine.checkpoint = lambda: asked.append(engine.position.step)
    engine.run()
    assert asked == steps


def test_a_signal_is_heeded_after_the_batch_with_a_checkpoint():
    asked = []
    engine = make_engine(probe(), stop=lambda: 2 if engine.position.step == 4 else None)
    engine.checkpoint = lambda: asked.append(engine.position.step)
    with pytest.raises(Interrupted) as caught:
        engine.run()
    assert caught.value.signal == 2
    assert asked == [4]


def test_a_signal_during_the_last_evaluation_is_heeded_too():
    came = []

    class Signalled(LinearProbeModel):
        def forward(self, images, cached=None):
            if self.seen.sum() == 6:
                came.append(15)
            return super().forward(images, cached)

    engine = make_engine(Signalled(BACKBONE), stop=lambda: came[0] if came else None)
    with pytest.raises(Interrupted):
        engine.run()
    assert engine.position.experience == 3
