"""Joint training: an upper line that goes back to old data, and how the loop serves it."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

from clprompt.avalanche.benchmark import to_avalanche
from clprompt.data.plan import Plan
from clprompt.errors import ConfigError, Interrupted, ProtocolError
from clprompt.seeding import generator
from clprompt.strategies.joint import JointModel
from clprompt.strategies.linear_probe import LinearProbeModel
from clprompt.strategies.vpt_deep import VPTDeepModel
from clprompt.training.engine import Engine
from clprompt.training.fit import fit
from clprompt.training.settings import Online, Training

TRAINING = Training(train_mb_size=5, train_epochs=2, lr=0.01, log_every=1)
CLASSES = ((3, 0), (1, 4), (5,))  # class 2 never occurs


class Toy:
    """Seven images per class."""

    random_transform = False

    def __init__(self, part: str = "train") -> None:
        self.targets = np.repeat(np.array([0, 1, 3, 4, 5]), 7)
        self.images = torch.randn(len(self.targets), 3, 32, 32, generator=generator(0, part))
        self.images += torch.from_numpy(self.targets)[:, None, None, None] / 2

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int):
        return self.images[index], int(self.targets[index])

    def plan(self, classes=CLASSES) -> Plan:
        indices = tuple(np.flatnonzero(np.isin(self.targets, group)) for group in classes)
        return Plan(indices, tuple(classes), 6)


class Records:
    def __init__(self) -> None:
        self.records = []

    def record(self, record, /) -> None:
        self.records.append(dict(record))

    def speed(self, step, images_per_second, /) -> None: ...

    def diagnostics(self, step, values, /) -> None: ...


def train(model, classes=CLASSES, **arguments):
    """Train on a stream; returns the evaluations and all records."""
    data, log = Toy(), Records()
    test = Toy("test")
    evaluations = fit(model, data.plan(classes), data, test, training=TRAINING, listeners=[log], **arguments)
    return evaluations, log.records


def same_state(first, second) -> bool:
    one, two = first.method_state(), second.method_state()
    return one.keys() == two.keys() and all(torch.equal(value, two[name]) for name, value in one.items())


@pytest.mark.parametrize("base", ["vpt_deep", "linear_probe"])
def test_a_single_experience_is_plain_training_of_the_base(backbone, base):
    joint = JointModel(backbone, base=base, length=3, seed=4)
    plain = (
        VPTDeepModel(backbone, length=3, seed=4)
        if base == "vpt_deep"
        else LinearProbeModel(backbone, mask="experience", seed=4)
    )
    everything = [tuple(c for group in CLASSES for c in group)]
    assert train(joint, everything) == train(plain, everything)
    assert torch.equal(joint.head.weight, plain.head.weight)


def test_the_last_experience_alone_trains_on_all_data(backbone):
    model = JointModel(backbone, length=3)
    evaluations, records = train(model)
    assert [record["experience"] for record in evaluations] == [2]
    assert all(accuracy is not None for accuracy in evaluations[0]["groups"])
    assert {record["experience"] for record in records} == {2}
    assert evaluations[0]["samples"] == 2 * len(Toy())
    assert model.seen.nonzero().flatten().tolist() == [0, 1, 3, 4, 5]


def test_training_after_each_experience_starts_anew_on_all_data_so_far(backbone):
    last, each = JointModel(backbone, length=3), JointModel(backbone, length=3, when="each")
    train(last)
    evaluations, _ = train(each)
    assert [record["samples"] for record in evaluations] == [28, 28 + 56, 28 + 56 + 70]
    assert evaluations[0]["groups"][1:] == [None, None]
    assert torch.equal(last.prompts, each.prompts)
    assert torch.equal(last.head.weight, each.head.weight)


def test_all_classes_so_far_compete_and_are_trained(backbone):
    model = JointModel(backbone, base="linear_probe", when="each")
    train(model)
    assert model.current.nonzero().flatten().tolist() == [0, 1, 3, 4, 5]
    initial = LinearProbeModel(backbone)
    initial.observe(torch.tensor([5]))
    moved = (model.head.weight != initial.head.weight).any(1)
    assert moved.nonzero().flatten().tolist() == [0, 1, 3, 4, 5]


def test_it_says_that_it_is_not_rehearsal_free(backbone):
    assert not JointModel(backbone).rehearsal_free
    assert "not rehearsal-free" in (JointModel.__doc__ or "")


def test_it_keeps_no_image_itself(backbone):
    model = JointModel(backbone)
    model.begin_experience([5])
    size = model.state_size()
    train(model)
    assert model.state_size() == size


@pytest.mark.parametrize("when", ["last", "each"])
def test_a_stopped_run_goes_on_to_the_same_bits(backbone, when):
    whole, stopped = JointModel(backbone, length=3, when=when), JointModel(backbone, length=3, when=when)
    data = Toy()
    plan = data.plan()
    Engine(whole, data, plan.indices, plan.classes, training=TRAINING).run()

    batches = iter(range(100))
    engine = Engine(
        stopped,
        data,
        plan.indices,
        plan.classes,
        training=TRAINING,
        stop=lambda: 15 if next(batches) == 9 else None,
    )
    with pytest.raises(Interrupted):
        engine.run()
    again = JointModel(backbone, length=3, when=when)
    resumed = Engine(again, data, plan.indices, plan.classes, training=TRAINING)
    resumed.load_state(engine.state())
    resumed.run()
    assert same_state(again, whole)


@pytest.mark.parametrize("when", ["last", "each"])
def test_the_avalanche_strategy_gives_the_same_bits(backbone, when):
    from clprompt.strategies import Joint

    model = JointModel(backbone, length=3, when=when)
    train(model)
    data = Toy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        benchmark = to_avalanche(data.plan(), data, Toy("test"))
        strategy = Joint(
            backbone=backbone, length=3, when=when, train_mb_size=5, train_epochs=2, lr=0.01, evaluator=None
        )
        for experience in benchmark.train_stream:
            strategy.train(experience)
    assert same_state(strategy.model, model)


def test_a_stream_without_boundaries_is_refused(backbone):
    with pytest.raises(ProtocolError, match="needs experience boundaries"):
        train(JointModel(backbone), online=Online())


@pytest.mark.parametrize(
    ("arguments", "named"),
    [({"base": "l2p"}, "base"), ({"when": "first"}, "when"), ({"length": 0}, "length")],
)
def test_bad_arguments_are_refused_by_name(backbone, arguments, named):
    with pytest.raises(ConfigError, match=named):
        JointModel(backbone, **arguments)
