"""Avalanche's plugins and loggers beside every strategy: each acts, or is refused in one line."""

from __future__ import annotations

import functools
import io
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import qpsolvers
import torch
from avalanche.core import SupervisedPlugin
from avalanche.evaluation.metrics import accuracy_metrics, loss_metrics
from avalanche.logging import CSVLogger, InteractiveLogger, TensorboardLogger, TextLogger
from avalanche.training import plugins as avalanche_plugins
from avalanche.training.plugins import (
    AGEMPlugin,
    EarlyStoppingPlugin,
    EvaluationPlugin,
    EWCPlugin,
    GEMPlugin,
    LRSchedulerPlugin,
    LwFPlugin,
    ReplayPlugin,
    RWalkPlugin,
    SynapticIntelligencePlugin,
)
from avalanche_runs import figures, learner, strategy, stream
from small_methods import image_methods
from torch import Tensor

from clprompt.avalanche.strategy import PromptStrategy
from clprompt.errors import ConfigError
from clprompt.prompting.plugin import Plugin
from clprompt.registry import strategies
from clprompt.scenarios import to_avalanche
from clprompt.scenarios.multi_label import plan as multi_label_plan
from clprompt.testing.asserts import bits, changed
from clprompt.testing.bench import ToyImages

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning:avalanche"),
    pytest.mark.filterwarnings("ignore::UserWarning:torch"),
    pytest.mark.filterwarnings("ignore::UserWarning:qpsolvers"),
]
NAMES = image_methods()
#: Steps of an epoch, over all experiences of a run.
STEPS = {"never": 4, "last": 6}
#: Their experiences train nothing that others have trained: what protects old weights has nothing to hold.
NOTHING_SHARED = {"damvp", "multilane", "prompt_cam", "semantic_proxies"}


@functools.cache
def small() -> Any:
    return stream((ToyImages(4), ToyImages(2, "test")))


class Watch(SupervisedPlugin):
    """Keeps losses, rates and norms of gradients as they are when a step is taken."""

    def __init__(self) -> None:
        super().__init__()
        self.losses: list[float] = []
        self.rates: list[list[float]] = []
        self.norms: list[float] = []

    def before_update(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        self.losses.append(float(strategy.loss.detach()))
        self.rates.append([group["lr"] for group in strategy.optimizer.param_groups])
        gradients = [p.grad.norm() for p in strategy.model.parameters() if p.grad is not None]
        self.norms.append(float(torch.stack(gradients).norm()) if gradients else 0.0)


class ClipsGradients(SupervisedPlugin):
    """A plugin of a user's own."""

    def after_backward(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        torch.nn.utils.clip_grad_norm_(strategy.model.parameters(), 1e-3)


def values(parameters: Any) -> Tensor:
    """All numbers that a plugin keeps by name, in one tensor."""
    return torch.cat([entry.data.flatten() for entry in parameters.values()])


def step_lr(made: PromptStrategy) -> LRSchedulerPlugin:
    return LRSchedulerPlugin(
        torch.optim.lr_scheduler.StepLR(made.optimizer, 1, 0.5), step_granularity="iteration"
    )


def lowered(plugin: Any, made: PromptStrategy, watch: Watch) -> bool:
    steps = len(watch.rates) // (1 if made.model.revisits == "last" else 2)  # of an experience
    return watch.rates[steps - 1] == pytest.approx([rate * 0.5 ** (steps - 1) for rate in watch.rates[0]])


def protects(kept: Callable[[Any], Tensor]) -> Callable[[Any, PromptStrategy, Watch], bool]:
    """Whether a plugin has found weights to protect; the same as `bool(importances.any())`."""

    def acted(plugin: Any, made: PromptStrategy, watch: Watch) -> bool:
        return bool(kept(plugin).any())

    return acted


TRAINS_NOTHING = {
    name: "nothing is trained by gradient" for name in NAMES if not strategies.get(name).target.trains
}
REGULARISED = {**TRAINS_NOTHING, "joint": "it trains on all images so far and forgets none"}
UNSOLVED = {} if "quadprog" in qpsolvers.available_solvers else {"*": "pip install quadprog"}
MEANS = {"semantic_proxies": "it answers after an experience without a gradient"}
ADDS = "an experience adds parameters between others"


@dataclass
class Case:
    """A plugin, by which strategies it is refused and how one sees that it acted.

    Attributes:
        make: the plugin of a strategy; appended to it.
        acted: asked after two experiences.
        refused: the words by strategy; "*" for all.
        changes: whether another result is learned than without it.
        arguments: of the strategy.
    """

    make: Callable[[PromptStrategy], Any]
    acted: Callable[[Any, PromptStrategy, Watch], bool]
    refused: dict[str, str] = field(default_factory=dict)
    changes: bool = True
    arguments: dict[str, Any] = field(default_factory=dict)


CASES = {
    "ewc": Case(
        lambda _: EWCPlugin(100.0), protects(lambda p: values(p.importances[0])), {**REGULARISED, **MEANS}
    ),
    "ewc, online": Case(
        lambda _: EWCPlugin(100.0, mode="online", decay_factor=0.5),
        protects(lambda p: values(p.importances[1])),
        {
            **REGULARISED,
            **MEANS,
            **dict.fromkeys(("coda_prompt", "dualprompt", "multilane", "prompt_cam", "tcpa"), ADDS),
        },
    ),
    "lwf": Case(lambda _: LwFPlugin(1.0), lambda p, *_: p.lwf.prev_model is not None, REGULARISED),
    "synaptic intelligence": Case(
        lambda _: SynapticIntelligencePlugin(1e4),
        protects(lambda p: values(p.ewc_data[1])),
        {**REGULARISED, "mvp": " grows within an experience"},
    ),
    "rwalk": Case(
        lambda _: RWalkPlugin(1.0, delta_t=1),
        protects(lambda p: values(p.exp_penalties)),
        {
            **REGULARISED,
            **dict.fromkeys(("coda_prompt", "damvp", "dualprompt", "flyprompt", "multilane"), ADDS),
            **dict.fromkeys(("prompt_cam", "semantic_proxies", "tcpa"), ADDS),
        },
    ),
    "gem": Case(
        lambda _: GEMPlugin(8, 0.5),
        lambda p, *_: len(p.G) == 1 and len(p.memory_x) == 2,
        {**REGULARISED, **UNSOLVED},
        changes=False,  # only where gradients contradict each other
    ),
    "agem": Case(
        lambda _: AGEMPlugin(8, 8),
        lambda p, *_: len(p.buffers) == 2 and p.reference_gradients.numel() > 0,
        REGULARISED,
        changes=False,
    ),
    "replay": Case(
        lambda _: ReplayPlugin(8),
        lambda p, *_: len(p.storage_policy.buffer) == 8,
        {
            "joint": REGULARISED["joint"],
            **dict.fromkeys(("flyprompt", "prompt_cam", *TRAINS_NOTHING), "it counts what is received"),
        },
    ),
    "learning rate": Case(step_lr, lowered, TRAINS_NOTHING),
    "early stopping": Case(
        lambda _: EarlyStoppingPlugin(1, "train_stream", "Loss_Stream", "min", margin=1e9),
        lambda p, made, watch: (
            p.best_step in (0, 1) and 0 < len(watch.losses) < 3 * STEPS[made.model.revisits]
        ),
        arguments={"evaluator": None, "eval_every": 1, "train_epochs": 3},
        changes=False,
    ),
    "a plugin of one's own": Case(
        lambda _: ClipsGradients(), lambda p, made, watch: max(watch.norms) < 1.1e-3, changes=False
    ),
}


def run(name: str, case: Case | None) -> tuple[Any, PromptStrategy, Watch]:
    """Two experiences with the plugin of a case; for `joint`, which trains in the last alone, all three."""
    watch = Watch()
    torch.manual_seed(0)  # Avalanche's buffers and loaders draw from there
    arguments = dict(case.arguments) if case else {}
    if "evaluator" in arguments:
        arguments["evaluator"] = figures()
    made = learner(name, [watch], **arguments)
    plugin = case.make(made) if case else None
    if plugin is not None:
        made.plugins.insert(0, plugin)
    for experience in small().train_stream[: 3 if name == "joint" else 2]:
        made.train(experience)
    return plugin, made, watch


@functools.cache
def plain(name: str) -> dict[str, Tensor]:
    return bits(run(name, None)[1].model)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("title", CASES)
def test_a_plugin_acts_or_is_refused_in_one_line(title: str, name: str) -> None:
    case = CASES[title]
    words = case.refused.get(name, case.refused.get("*"))
    if words is not None:
        with pytest.raises(ConfigError) as caught:
            run(name, case)
        told = str(caught.value)
        assert " is refused beside " in told
        assert words in told
        assert "\n" not in told
        return
    plugin, made, watch = run(name, case)
    assert case.acted(plugin, made, watch)
    assert np.isfinite(watch.losses).all()
    assert all(
        value.isfinite().all() for value in made.model.method_state().values() if value.is_floating_point()
    )
    images = torch.stack([image for image, *_ in small().test_stream[0].dataset])
    assert made.model.eval()(images)[:, made.model.seen].isfinite().all()
    if case.changes and name not in NOTHING_SHARED:
        assert changed(plain(name), bits(made.model))


@pytest.mark.parametrize("name", NAMES)
def test_every_logger_shows_every_strategy(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = io.StringIO()
    rows = CSVLogger(tmp_path / "csv")
    loggers = [TensorboardLogger(tmp_path / "tb"), rows, InteractiveLogger(), TextLogger(text)]
    evaluator = EvaluationPlugin(
        accuracy_metrics(epoch=True, experience=True, stream=True),
        loss_metrics(epoch=True, experience=True, stream=True),
        loggers=loggers,
    )
    made = learner(name, evaluator=evaluator)
    scenario = small()
    made.train(scenario.train_stream[0])
    results = made.eval(scenario.test_stream)
    rows.close()
    assert all(np.isfinite(value) for value in results.values())
    assert "Loss_Stream" in text.getvalue()
    assert "Top1_Acc_Stream" in capsys.readouterr().out
    assert len((tmp_path / "csv" / "eval_results.csv").read_text().splitlines()) > 1
    assert list((tmp_path / "tb").rglob("events.out.tfevents.*"))


# ----------------------------------------------------------------------------------------- refused everywhere

WITHOUT_MEANING: dict[str, Callable[[], Any]] = {
    "MASPlugin": avalanche_plugins.MASPlugin,
    "GDumbPlugin": lambda: avalanche_plugins.GDumbPlugin(8),
    "FromScratchTrainingPlugin": avalanche_plugins.FromScratchTrainingPlugin,
    "MIRPlugin": lambda: avalanche_plugins.MIRPlugin(batch_size_mem=4),
    "RARPlugin": lambda: avalanche_plugins.RARPlugin(4, 8, 0.1),
    "GSS_greedyPlugin": lambda: avalanche_plugins.GSS_greedyPlugin(8, 2, [3, 16, 16]),
    "LFLPlugin": lambda: avalanche_plugins.LFLPlugin(1.0),
    "CoPEPlugin": lambda: avalanche_plugins.CoPEPlugin(8, n_classes=11, p_size=32),
    "BiCPlugin": lambda: avalanche_plugins.BiCPlugin(8),
    "FeatureDistillationPlugin": avalanche_plugins.FeatureDistillationPlugin,
    "GenerativeReplayPlugin": avalanche_plugins.GenerativeReplayPlugin,
    "TrainGeneratorAfterExpPlugin": avalanche_plugins.TrainGeneratorAfterExpPlugin,
}


def refused(make: Callable[[], Any]) -> str:
    with pytest.raises(ConfigError, match="is refused") as caught:
        make()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("title", WITHOUT_MEANING)
def test_a_plugin_for_other_models_is_refused_when_a_strategy_is_made(title: str) -> None:
    told = refused(lambda: strategy("linear_probe", [WITHOUT_MEANING[title]()]))
    assert told.startswith(f"{title} is refused beside LinearProbeModel: ")


def test_a_plugin_that_is_appended_is_refused_when_training_begins() -> None:
    made = strategy("linear_probe")
    made.plugins.append(WITHOUT_MEANING["LFLPlugin"]())
    assert "LFLPlugin" in refused(lambda: made.train(small().train_stream[0]))


def test_a_plugin_that_inherits_is_answered_as_its_base() -> None:
    class Mine(EWCPlugin):
        pass

    assert refused(lambda: strategy("ncm", [Mine(1.0)])).startswith("Mine is refused beside NCMModel: ")


class Counts(Plugin):
    """A plug-in of ours that counts what is received and answers by it."""

    name = "counts"

    def received(self, features: Tensor, targets: Tensor, frozen: Any) -> None: ...

    def logits(self, features: Tensor, frozen: Any) -> Tensor | None: ...


@pytest.mark.parametrize("plugin", [ReplayPlugin(8), EWCPlugin(1.0)], ids=["replay", "ewc"])
def test_a_plugin_that_disturbs_a_plug_in_of_ours_is_refused(plugin: Any) -> None:
    assert ": counts " in refused(lambda: strategy("l2p", [plugin, Counts()]))


def test_early_stopping_without_evaluations_is_refused() -> None:
    stop = EarlyStoppingPlugin(1, "train_stream")
    assert "eval_every must be at least 1, got -1" in refused(lambda: strategy("l2p", [stop]))


def test_early_stopping_on_a_metric_that_nobody_computes_is_refused() -> None:
    stop = EarlyStoppingPlugin(1, "test_stream", "Loss_Exp", "min")
    made = learner("linear_probe", [stop], figures(), eval_every=1, train_epochs=2)
    told = refused(lambda: made.train(small().train_stream[0]))
    assert 'Loss_Exp/eval_phase/test_stream; did you mean "Loss_Exp/eval_phase/train_stream"?' in told


def test_early_stopping_in_other_steps_than_evaluations_is_refused() -> None:
    stop = EarlyStoppingPlugin(1, "train_stream", peval_mode="iteration")
    told = refused(lambda: strategy("l2p", [stop], eval_every=1))
    assert "its peval_mode is iteration, the strategy's epoch" in told


@pytest.mark.parametrize(
    "plugin", [EWCPlugin(1.0), LwFPlugin(1.0), ReplayPlugin(8)], ids=lambda p: type(p).__name__
)
def test_a_plugin_that_reads_labels_is_refused_on_label_sets(plugin: Any) -> None:
    class Images:
        images = torch.zeros(12, 3, 16, 16)
        targets = np.eye(4, dtype=np.uint8)[np.arange(12) % 4]

        def __len__(self) -> int:
            return 12

        def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
            return self.images[index], torch.from_numpy(self.targets[index])

    data = Images()
    scenario = to_avalanche(multi_label_plan(data.targets, classes_per_experience=2), data, data)
    made = strategy("multilane", [plugin])
    assert "targets" in refused(lambda: made.train(scenario.train_stream[0]))
