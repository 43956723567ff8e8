"""A memory beside an online stream: Avalanche's replay under our engine, by configuration."""

import json
import warnings

import numpy as np
import pytest
import torch
from avalanche.training.plugins import ReplayPlugin
from avalanche.training.storage_policy import ReservoirSamplingBuffer

from clprompt import registry
from clprompt.avalanche import MemoryEngine
from clprompt.errors import ConfigError, Interrupted
from clprompt.experiment import config, run
from clprompt.reporting import report
from clprompt.scenarios import to_online_avalanche
from clprompt.scenarios.si_blurry import plan
from clprompt.seeding import preserved_rng
from clprompt.strategies import MVP
from clprompt.strategies.mvp import MVPModel
from clprompt.testing.asserts import changed
from clprompt.testing.bench import CLASSES, Log, ToyImages, tiny_vit
from clprompt.training.evaluation import Evaluator
from clprompt.training.settings import Memory, Online, Training

pytestmark = pytest.mark.usefixtures("same_picture")

TRAINING = {"train_mb_size": 8, "lr": 0.02, "log_every": 1}


class Dense(ToyImages):
    """The toy images with class ids 0..5."""

    def __init__(self, per_class, part="train"):
        super().__init__(per_class, part)
        ids = [c for group in CLASSES for c in group]
        self.targets = np.searchsorted(np.sort(ids), self.targets)


def settings(tmp_path, **changed):
    values = {
        "name": "memory",
        "runs_dir": str(tmp_path),
        "device": "cpu",
        "data": {"name": "synthetic", "classes": 4, "train_per_class": 140, "test_per_class": 5, "size": 16},
        "scenario": {"name": "si_blurry", "sessions": 2},
        "backbone": {
            "name": "vit_tiny_patch16_224",
            "img_size": 16,
            "patch_size": 8,
            "embed_dim": 16,
            "depth": 2,
            "num_heads": 2,
        },
        "strategy": {"name": "mvp", "g_layers": [0], "e_layers": [1], "e_length": 2, "pool_size": 3},
        "training": {"train_mb_size": 64, "lr": 0.01},
        "online": {"iterations": 2, "eval_every": 200},
    }
    return {**values, **changed}


@pytest.mark.parametrize(("size", "held"), [(500, 500), (2000, 560)])
def test_a_run_with_a_memory_says_that_it_is_not_rehearsal_free(tmp_path, size, held):
    (result,) = run.run(settings(tmp_path, memory={"size": size, "batch_size": 32}))
    written = json.loads((result.folder / "results.json").read_text())
    assert written["rehearsal_free"] is False
    assert {"A_auc", "A_avg", "A_last", "F_last"} <= written.keys()
    assert "not rehearsal-free" in (result.folder / "run.log").read_text()
    state = torch.load(next((result.folder / "checkpoint").glob("*.pt")), weights_only=True)["engine"]
    assert len(state["memory"]["samples"].unique()) == held
    batches = state["memory"]["batches"]
    assert state["position"]["samples"] == 560
    assert state["position"]["step"] == 2 * batches
    # half a batch of memory joins both steps on every batch but the first, when there is no memory yet
    assert int(state["model"]["counts"].sum()) == 2 * (560 + 32 * (batches - 1))
    assert report.collect([tmp_path]).sections[0].rows[0].label == f"mvp + {size} images"


def test_a_run_without_a_memory_says_that_it_is_rehearsal_free(tmp_path):
    (result,) = run.run(settings(tmp_path))
    assert json.loads((result.folder / "results.json").read_text())["rehearsal_free"] is True


def engine(model, train, stream, *, schedule="constant", **arguments):
    test = Dense(6, "test")
    return MemoryEngine(
        model,
        train,
        stream.indices,
        stream.classes,
        evaluator=Evaluator(test, test.targets, list(stream.test_groups(test.targets)), batch_size=16),
        training=Training(**TRAINING, schedule=schedule),
        online=Online(iterations=2, eval_every=30),
        memory=Memory(size=24),
        **arguments,
    )


def model_of():
    return MVPModel(tiny_vit(), g_layers=(0,), e_layers=(1, 2), e_length=2, pool_size=4)


def test_a_run_that_was_stopped_and_resumed_ends_with_the_same_bits():
    train = Dense(17)
    stream = plan(train.targets, sessions=3, m=30)
    whole, log = model_of(), Log()
    with preserved_rng(5):
        engine(whole, train, stream, listeners=[log]).run()
    for point in (1, 6, 11):
        again = Log()
        with preserved_rng(5):
            first = engine(model_of(), train, stream, listeners=[again], stop=_after(point))
            with pytest.raises(Interrupted):
                first.run()
            state = first.state()
        resumed = model_of()
        with preserved_rng(6):
            second = engine(resumed, train, stream, listeners=[again])
            second.load_state(state)
            second.run()
        assert not changed(whole.method_state(), resumed.method_state())
        assert again.records == log.records


def _after(batches):
    """A question that is answered with a signal once it was asked so often."""
    asked = iter(range(batches - 1))
    return lambda: None if next(asked, None) is not None else 2


def test_the_steps_are_those_of_a_script_with_avalanches_plugin():
    train, test = Dense(17), Dense(6, "test")
    stream = plan(train.targets, sessions=3, m=30)
    ours = model_of()
    with preserved_rng(5):
        engine(ours, train, stream).run()
    plugin = ReplayPlugin(24, 8, batch_size_mem=4, storage_policy=ReservoirSamplingBuffer(max_size=24))
    with preserved_rng(5), warnings.catch_warnings(record=True):
        script = MVP(
            backbone=tiny_vit(),
            g_layers=(0,),
            e_layers=(1, 2),
            e_length=2,
            pool_size=4,
            lr=0.02,
            train_mb_size=8,
            train_epochs=2,
            plugins=[plugin],
            evaluator=None,
        )
        for experience in to_online_avalanche(stream, train, test, batch_size=8).train_stream:
            script.train(experience)
    assert not changed(ours.method_state(), script.model.method_state())


@pytest.mark.parametrize(("schedule", "constant"), [("cosine-coda", True), ("cosine", False)])
def test_the_steps_on_one_batch_are_no_epochs_of_a_schedule(schedule, constant):
    train, log = Dense(4), Log()
    engine(model_of(), train, plan(train.targets, sessions=1), schedule=schedule, listeners=[log]).run()
    rates = {record["lr"] for record in log.records if record["kind"] == "train"}
    assert (rates == {0.02}) == constant


def test_what_is_kept_for_a_resume_is_which_samples_are_held():
    train = Dense(17)
    made = engine(model_of(), train, plan(train.targets, sessions=3))
    made.run()
    memory = made.state()["memory"]
    assert memory["samples"].shape == memory["weights"].shape == (24,)
    assert memory["samples"].dtype == torch.int64
    assert len(made.reservoir.buffer) == 24


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"memory": {"size": 0}}, "memory.size must be at least 1, got 0"),
        ({"memory": {"size": 5, "batch_size": 0}}, "memory.batch_size must be at least 1"),
        ({"memory": {"sise": 5}}, "size"),
        ({"memory": {"size": "many"}}, "memory.size"),
        ({"memory": {}, "online": None}, "memory needs an online section"),
        ({"memory": {}, "training": {"workers": 2}}, "training.workers must be 0 with a memory"),
        ({"memory": {}, "strategy": {"name": "ncm"}}, "trains nothing"),
    ],
)
def test_a_memory_where_it_does_not_fit_is_refused_in_one_line(tmp_path, changed, text):
    with pytest.raises(ConfigError, match=text) as caught:
        run.run(settings(tmp_path, **changed))
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_memory_of_multi_hot_targets_is_refused():
    model = registry.strategies.get("linear_probe").target(tiny_vit(), mask="seen")
    with pytest.raises(ConfigError, match="one label per image"):
        Memory().check_model(model, np.eye(3))


def test_the_preset_has_the_reservoir_of_500():
    preset = config.load("mvp-r-siblurry-cifar100")
    assert (preset.memory, preset.online.iterations) == (Memory(500, 32), 3)
    plain = config.load("mvp-siblurry-cifar100")
    assert (preset.strategy, preset.scenario, preset.backbone) == (
        plain.strategy,
        plain.scenario,
        plain.backbone,
    )


def test_an_override_makes_the_reservoir_one_of_2000():
    assert config.load("mvp-r-siblurry-cifar100", ["memory.size=2000"]).memory == Memory(2000, 32)
