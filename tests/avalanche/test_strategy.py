"""Avalanche, both ways: its benchmarks, plugins, loggers and metrics with ours; our streams with its."""

from __future__ import annotations

import csv
import dataclasses
import inspect
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from avalanche.benchmarks import CLScenario, benchmark_from_datasets, with_classes_timeline
from avalanche.benchmarks.scenarios.online import split_online_stream
from avalanche.benchmarks.utils import AvalancheDataset, as_classification_dataset
from avalanche.benchmarks.utils.transform_groups import TransformGroups
from avalanche.core import SupervisedPlugin
from avalanche.evaluation.metrics import (
    accuracy_metrics,
    confusion_matrix_metrics,
    forgetting_metrics,
    loss_metrics,
)
from avalanche.logging import CSVLogger, InteractiveLogger, TensorboardLogger, TextLogger
from avalanche.training.plugins import EvaluationPlugin, ReplayPlugin
from avalanche.training.supervised import Naive
from avalanche_runs import avalanches_own, shared_vit, strategy, stream, toy, trained
from small_methods import image_methods
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from clprompt import FrozenViT
from clprompt.avalanche.strategy import PromptStrategy, make_strategy
from clprompt.errors import ConfigError, DataError, ProtocolError
from clprompt.registry import strategies
from clprompt.scenarios import benchmark
from clprompt.strategies.dualprompt import DualPromptModel
from clprompt.testing.asserts import bits, changed, same_bits
from clprompt.testing.bench import ToyImages, tiny_vit
from clprompt.training.engine import Engine
from clprompt.training.settings import Online, Training

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning:avalanche"),
    pytest.mark.filterwarnings("ignore::UserWarning:torch"),
]
#: Strategies with something that experiences share, on which a plugin for old losses can act.
SEVERAL = ["dualprompt", "l2p", "vpt_deep"]


class Watch(SupervisedPlugin):
    """Keeps the loss of every step, plugins' terms included."""

    def __init__(self) -> None:
        super().__init__()
        self.losses: list[float] = []

    def after_backward(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        self.losses.append(float(strategy.loss.detach()))


# ------------------------------------------------------------------------------------------------ settings


def test_settings_by_name_are_those_of_a_training_object() -> None:
    training = Training(
        train_mb_size=8, train_epochs=2, eval_mb_size=5, lr=0.02, optimizer="sgd", momentum=0.9
    )
    model = strategies.get("linear_probe").target(tiny_vit())
    whole = PromptStrategy(model=model, training=training, evaluator=None)
    named = PromptStrategy(
        model=model,
        training=Training(train_mb_size=8, lr=0.5),
        train_epochs=2,
        eval_mb_size=5,
        lr=0.02,
        optimizer="sgd",
        momentum=0.9,
        evaluator=None,
    )
    assert whole.training_settings == named.training_settings == training
    assert (whole.train_mb_size, whole.train_epochs, whole.eval_mb_size) == (8, 2, 5)


def test_the_signature_of_a_strategy_shows_every_setting_that_it_follows() -> None:
    shown = inspect.signature(make_strategy(strategies.get("l2p").target)).parameters
    wanted = {field.name for field in dataclasses.fields(Training)} - {"checkpoint_every", "log_every"}
    assert wanted | {"training", "seed", "precision", "backbone"} <= shown.keys()
    assert not {"checkpoint_every", "log_every", "fields"} & shown.keys()
    assert shown["lr"].default == Training().lr


@pytest.mark.parametrize("name", ["lrr", "checkpoint_every"])
def test_an_unknown_setting_of_a_strategy_is_refused(name: str) -> None:
    model = strategies.get("linear_probe").target(tiny_vit())
    with pytest.raises(TypeError, match=name):
        PromptStrategy(model=model, evaluator=None, **{name: 1})


# ------------------------------------------------------------------------------------------------ plugins


def test_replayed_samples_of_old_classes_are_learned_from() -> None:
    torch.manual_seed(0)
    replay = trained("linear_probe", plugins=[ReplayPlugin(mem_size=30)], mask="seen")
    without = trained("linear_probe", mask="seen")
    images, targets = toy()[1].images, torch.as_tensor(toy()[1].targets)
    old = torch.isin(targets, torch.tensor([4, 1, 0, 7]))

    def accuracy(made: PromptStrategy) -> float:
        with torch.no_grad():
            return float((made.model.eval()(images[old]).argmax(1) == targets[old]).float().mean())

    assert accuracy(replay) > accuracy(without) + 0.2


# ------------------------------------------------------------------------------------------- loggers, metrics


def evaluator(folder: Path | None = None, text: Any = None) -> EvaluationPlugin:
    loggers: list[Any] = []
    if folder is not None:
        loggers = [TensorboardLogger(folder / "tb"), CSVLogger(folder / "csv"), InteractiveLogger()]
        loggers.append(TextLogger(text))
    return EvaluationPlugin(
        accuracy_metrics(minibatch=True, epoch=True, experience=True, stream=True),
        loss_metrics(minibatch=True, epoch=True, experience=True, stream=True),
        forgetting_metrics(experience=True, stream=True),
        confusion_matrix_metrics(num_classes=11, stream=True, save_image=False),
        loggers=loggers,
    )


def test_loggers_and_metrics_of_avalanche_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = io.StringIO()
    made = strategy("dualprompt", evaluator=evaluator(tmp_path, text))
    scenario, results = stream(), []
    for experience in scenario.train_stream:
        made.train(experience)
        results.append(made.eval(scenario.test_stream))
    made.evaluator.loggers[1].close()
    last = results[-1]
    scalars = {key: value for key, value in last.items() if isinstance(value, float)}
    assert all(math.isfinite(value) for value in scalars.values())
    stem = "eval_phase/test_stream/Task000"
    images, targets = toy()[1].images, torch.as_tensor(toy()[1].targets)
    with torch.no_grad():
        predicted = made.model.eval()(images).argmax(1)
    assert last[f"Top1_Acc_Stream/{stem}"] == pytest.approx(float((predicted == targets).float().mean()))
    lost = [
        results[i][f"Top1_Acc_Exp/{stem}/Exp00{i}"] - last[f"Top1_Acc_Exp/{stem}/Exp00{i}"] for i in (0, 1)
    ]
    assert [last[f"ExperienceForgetting/{stem}/Exp00{i}"] for i in (0, 1)] == pytest.approx(lost)
    matrix = last["ConfusionMatrix_Stream/eval_phase/test_stream"]
    assert int(matrix.sum()) == len(targets)
    assert int(matrix.diag().sum()) == int((predicted == targets).sum())
    assert list((tmp_path / "tb").rglob("events.out.tfevents.*"))
    with (tmp_path / "csv" / "eval_results.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 9
    assert "Top1_Acc_Stream" in text.getvalue()
    assert "Top1_Acc_Stream" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["dualprompt", "ncm"])
def test_experiences_to_come_are_evaluated_with_a_finite_loss(name: str) -> None:
    made, scenario = strategy(name, evaluator=evaluator()), stream()
    made.train(scenario.train_stream[0])
    results = made.eval(scenario.test_stream)
    losses = {key: value for key, value in results.items() if key.startswith("Loss")}
    assert any(key.endswith("Exp002") for key in losses)
    assert all(math.isfinite(value) for value in losses.values())
    stem = "Top1_Acc_Exp/eval_phase/test_stream/Task000"
    assert results[f"{stem}/Exp000"] > 0.8
    assert results[f"{stem}/Exp002"] == 0.0


@pytest.mark.parametrize("name", ["dualprompt", "ncm", "joint"])
def test_an_evaluation_before_any_training_is_finite_too(name: str) -> None:
    results = strategy(name, evaluator=evaluator()).eval(stream().test_stream)
    assert all(math.isfinite(value) for value in results.values() if isinstance(value, float))


def test_periodic_evaluation_changes_nothing_that_is_learned() -> None:
    scenario, watched = stream(), evaluator()
    made = strategy("dualprompt", evaluator=watched, eval_every=1)
    for experience in scenario.train_stream:
        made.train(experience, eval_streams=[scenario.test_stream])
    _, values = watched.all_metric_results["Top1_Acc_Stream/eval_phase/test_stream/Task000"]
    assert len(values) >= 3 * 2
    assert not changed(bits(trained("dualprompt").model), bits(made.model))


# ------------------------------------------------------------------------------------------------ streams


@pytest.mark.parametrize("task_labels", [False, True])
@pytest.mark.parametrize("name", ["dualprompt", "linear_probe", "ncm", "joint"])
def test_avalanches_own_benchmark_trains_to_the_same_bits(name: str, task_labels: bool) -> None:
    theirs = trained(name, avalanches_own(task_labels))
    assert not changed(bits(trained(name).model), bits(theirs.model))
    theirs.eval(avalanches_own(task_labels).test_stream)


class SmallCNN(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(128, 6)
        )


def test_our_stream_trains_avalanches_own_naive() -> None:
    train, test = toy()
    for part in (train, test):
        part.targets = np.searchsorted([0, 1, 4, 5, 7, 10], part.targets)  # class ids without gaps
    scenario = benchmark("split", train, test, experiences=3, seed=1)
    assert [len(experience.dataset) for experience in scenario.train_stream] == [24, 24, 24]
    torch.manual_seed(0)
    model = SmallCNN()
    naive = Naive(
        model=model,
        optimizer=torch.optim.Adam(model.parameters(), lr=0.01),
        criterion=nn.CrossEntropyLoss(),
        train_mb_size=8,
        train_epochs=8,
        evaluator=evaluator(),
    )
    for experience in scenario.train_stream:
        naive.train(experience)
    results = naive.eval(scenario.test_stream)
    stem = "Top1_Acc_Exp/eval_phase/test_stream/Task000"
    assert results[f"{stem}/Exp002"] > 0.8  # and it forgets, as it must
    assert results[f"{stem}/Exp000"] < results[f"{stem}/Exp002"]


def test_a_timm_module_of_ones_own_is_a_backbone() -> None:
    torch.manual_seed(3)
    mine = VisionTransformer(img_size=16, patch_size=8, embed_dim=16, depth=2, num_heads=2, num_classes=7)
    before = {key: value.clone() for key, value in mine.state_dict().items()}
    made = trained("vpt_deep", backbone=FrozenViT(mine))
    assert made.model.backbone.vit is mine
    assert all(same_bits(value, before[key]) for key, value in mine.state_dict().items())
    assert made.model(toy()[1].images).shape == (36, 11)


# ------------------------------------------------------------------------------------------------ boundaries


class Guarded:
    """An experience that shows its data and what Avalanche's loop itself asks for, and nothing else."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset
        self.origin_stream = SimpleNamespace(name="train")

    def logging(self) -> Guarded:
        return self

    def __getattr__(self, name: str) -> Any:
        raise PermissionError(f"a boundary-free strategy has read {name}")


def parameters(name: str) -> Mapping[str, Any]:
    return inspect.signature(strategies.get(name).target).parameters


BOUNDARY_FREE = [
    *((name, {"boundary_free": True}) for name in image_methods() if "boundary_free" in parameters(name)),
    ("mvp", {}),
    ("ncm", {}),
]


@pytest.mark.parametrize(("name", "arguments"), BOUNDARY_FREE, ids=str)
def test_a_boundary_free_strategy_reads_no_attribute_of_an_experience(
    name: str, arguments: dict[str, Any]
) -> None:
    made = strategy(name, train_epochs=1, **arguments)
    assert made.model.boundaries == "unused"
    for experience in stream().train_stream:
        made.train(Guarded(experience.dataset))
    assert int(made.model.seen.sum()) == 6


def test_the_engine_does_not_look_at_classes_without_boundaries() -> None:
    class Nothing(Sequence):
        def __getitem__(self, index: Any) -> Any:
            raise PermissionError("the classes of an experience were read")

        def __len__(self) -> int:
            raise PermissionError("the number of experiences was read")

    train, _ = toy()
    model = strategies.get("dualprompt").target(tiny_vit(), boundary_free=True)
    settings = Training(train_mb_size=8)
    Engine(model, train, train.groups(), Nothing(), training=settings, online=Online(iterations=1)).run()
    assert int(model.seen.sum()) == 6


def online_experiences(size: int = 6) -> list[Any]:
    return list(split_online_stream(stream().train_stream, experience_size=size, drop_last=False))


@pytest.mark.parametrize("name", SEVERAL)
def test_a_strategy_that_needs_boundaries_is_refused_on_an_online_stream(name: str) -> None:
    with pytest.raises(ProtocolError, match="OnlineCLExperience") as caught:
        strategy(name).train(online_experiences()[0])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", SEVERAL)
def test_a_boundary_free_strategy_trains_on_an_online_stream_of_avalanche(name: str) -> None:
    made, watch = strategy(name, boundary_free=True, train_epochs=1), Watch()
    made.plugins.append(watch)
    optimizer = made.optimizer
    for experience in online_experiences():
        made.train(experience)
    assert made.optimizer is optimizer
    assert np.isfinite(watch.losses).all()
    assert int(made.model.seen.sum()) == 6


def test_on_an_online_stream_a_received_batch_is_counted_once_over_its_iterations() -> None:
    made = strategy("ncm", train_epochs=3, train_mb_size=6)
    for experience in online_experiences():
        made.train(experience)
    assert int(made.model.counts.sum()) == len(toy()[0])


def test_a_strategy_without_a_backbone_or_with_a_model_says_so() -> None:
    made = make_strategy(strategies.get("dualprompt").target)
    with pytest.raises(ConfigError, match="DualPrompt needs a backbone"):
        made()
    with pytest.raises(ConfigError, match="DualPrompt makes its own model on a backbone"):
        made(backbone=tiny_vit(), model=nn.Identity())


def answered() -> list[tuple[str, str]]:
    """(strategy, key) for each key that the registry refuses or has renamed and that the method has not."""
    return [
        (name, key)
        for name, entry in ((name, strategies.get(name)) for name in strategies.names())
        for key in {**entry.refused, **entry.renamed}
        if key not in inspect.signature(entry.target).parameters
    ]


@pytest.mark.parametrize(("name", "key"), answered())
def test_a_strategy_answers_a_refused_or_former_key_as_its_model_does(name: str, key: str) -> None:
    entry = strategies.get(name)
    with pytest.raises(ConfigError) as from_model:
        entry.target(tiny_vit(), **{key: True})
    with pytest.raises(ConfigError) as from_strategy:
        make_strategy(entry.target)(backbone=tiny_vit(), **{key: True})
    assert str(from_strategy.value) == str(from_model.value)
    assert str(from_strategy.value).startswith(f"{key} is ")


def test_refused_and_former_keys_of_strategies_are_tried() -> None:
    assert {("mvp", "top_k"), ("l2p", "batchwise_prompt"), ("tcpa", "loss_mask")} <= set(answered())


def test_a_subclass_of_a_strategy_may_have_an_argument_with_a_former_name() -> None:
    mvp = make_strategy(strategies.get("mvp").target)

    class Masked(mvp):  # type: ignore[misc, valid-type]
        def __init__(self, *, backbone: FrozenViT, mask: bool = False) -> None:
            super().__init__(backbone=backbone)
            self.is_masked = mask

    assert Masked(backbone=tiny_vit(), mask=True).is_masked


# ------------------------------------------------------------------------------ numbers that are not finite


def poisoned(part: int) -> CLScenario:
    """A stream whose first image in the training set (0) or test set (1) holds a pixel that is no number."""
    images = toy()
    images[part].images[0, 0, 0, 0] = math.nan
    return stream(images)


@pytest.mark.parametrize("name", ["linear_probe", "ncm"])
def test_a_training_image_that_is_no_number_is_refused(name: str) -> None:
    with pytest.raises(DataError, match=r"step \d \(experience 1\) is not finite: it holds nan"):
        strategy(name).train(poisoned(0).train_stream[0])


@pytest.mark.parametrize("name", ["linear_probe", "ncm"])
def test_an_evaluation_image_that_is_no_number_is_refused(name: str) -> None:
    scenario = poisoned(1)
    made = strategy(name)
    made.train(scenario.train_stream[0])
    with pytest.raises(DataError, match="image 1 of an evaluation batch is not finite: it holds nan"):
        made.eval(scenario.test_stream)


def test_a_model_that_training_broke_is_not_evaluated() -> None:
    made = trained("mvp")
    made.model.keys.data[0, 0] = math.nan  # its logits would be finite
    with pytest.raises(ProtocolError, match="no evaluation is recorded: keys holds nan; lower "):
        made.eval(stream().test_stream)


def test_a_rate_that_no_step_can_be_taken_with_is_one_line() -> None:
    with pytest.raises(ConfigError, match=r"Adam cannot take a step with lr 1e\+38"):
        trained("linear_probe", lr=1e38)


# ---------------------------------------------------------------------------------------------- kept queries


class Asked(DualPromptModel):
    """Counts the steps for which the backbone is asked for a query."""

    asked = 0

    def query(self, images: torch.Tensor, first: int, cached: Any = None) -> Any:
        self.asked += torch.is_grad_enabled() and not cached
        return super().query(images, first, cached)


class Unsure(ToyImages):
    """Images of a data set that does not promise to give the same ones again."""

    random_transform = True


def asked_for(
    images: Any, plugins: Sequence[Any] = (), clean: bool = False
) -> tuple[PromptStrategy, list[float]]:
    """Two experiences of 16 images in three epochs of two batches; the strategy and its losses."""
    watch = Watch()
    model = Asked(shared_vit(), g_layers=(0,), e_layers=(1,), g_length=2, e_length=3)
    settings: dict[str, Any] = {"train_mb_size": 8, "train_epochs": 3, "clean_query": clean}
    made = PromptStrategy(model=model, plugins=[watch, *plugins], evaluator=None, **settings)
    data = images if isinstance(images, AvalancheDataset) else as_classification_dataset(images)
    scenario = benchmark_from_datasets(train=[data, data])
    for experience in with_classes_timeline(scenario).train_stream:
        made.train(experience)
    return made, watch.losses


def few(kind: Any = ToyImages) -> Any:
    images = kind(12)
    part = torch.utils.data.Subset(images, images.groups()[0][:16].tolist())
    part.targets = images.targets[part.indices].tolist()
    return part


def test_an_experience_of_avalanche_keeps_its_queries() -> None:
    (kept, losses), (plain, same) = asked_for(few()), asked_for(few(Unsure))
    assert losses == same
    assert plain.model.asked == 12
    assert kept.model.asked == (12 if kept._moves[8] else 4)
    assert kept._kept is None


def test_images_of_a_replay_plugin_have_queries_of_their_own() -> None:
    (kept, _), (plain, _) = asked_for(few(), [ReplayPlugin(8)]), asked_for(few(Unsure), [ReplayPlugin(8)])
    assert plain.model.asked - kept.model.asked == (0 if kept._moves[8] else 4)  # before there is a memory


@pytest.mark.parametrize("eval_transform", [None, lambda image: image], ids=["no other", "another"])
def test_a_clean_query_needs_an_evaluation_transform(eval_transform: Any) -> None:
    groups = {"train": lambda image: image + 0.3 * torch.randn(image.shape)}
    groups |= {} if eval_transform is None else {"eval": eval_transform}
    data = as_classification_dataset(few(), transform_groups=TransformGroups(groups))
    if eval_transform is None:
        with pytest.raises(ConfigError, match="clean_query=True needs data that evaluation shows otherwise"):
            asked_for(data, clean=True)
    else:
        assert asked_for(data, clean=True)[0].model.asked == 0
