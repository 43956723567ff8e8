"""Classes that were never seen have no figure that looks like a good one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from avalanche.benchmarks import benchmark_from_datasets
from avalanche.benchmarks.utils import as_taskaware_classification_dataset
from avalanche.evaluation.metrics import topk_acc_metrics
from avalanche.training.plugins import EarlyStoppingPlugin, EvaluationPlugin
from avalanche_runs import figures, learner, strategy, stream, toy
from small_methods import image_methods
from torch.nn import functional as F
from torch.utils.data import Subset

from clprompt.avalanche.unseen import LARGEST_LOSS, evaluation_loss, rank_last
from clprompt.testing.bench import ToyImages

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning:avalanche"),
    pytest.mark.filterwarnings("ignore::UserWarning:torch"),
]
STEM = "eval_phase/test_stream/Task000"
INF = float("inf")


def test_the_loss_of_seen_classes_is_their_mean_cross_entropy() -> None:
    logits, targets = torch.tensor([[1.0, -INF, 3.0], [0.5, -INF, 0.0]]), torch.tensor([2, 0])
    seen = torch.tensor([True, False, True])
    assert torch.equal(evaluation_loss(logits, targets, seen), F.cross_entropy(logits, targets))


def test_a_sample_of_an_unseen_class_costs_the_most_there_is() -> None:
    logits, seen = torch.tensor([[1.0, -INF], [1.0, -INF]]), torch.tensor([True, False])
    assert float(evaluation_loss(logits, torch.tensor([1, 7]), seen)) == LARGEST_LOSS


def test_a_batch_that_holds_unseen_classes_is_their_mean_with_the_others() -> None:
    logits, seen = torch.tensor([[1.0, 1.0], [1.0, 1.0]]), torch.tensor([True, True])
    loss = float(evaluation_loss(logits, torch.tensor([0, 5]), seen))
    assert loss == pytest.approx((LARGEST_LOSS + float(torch.tensor(2.0).log())) / 2)


def test_no_seen_sample_costs_more_than_an_unseen_one() -> None:
    logits, seen = torch.tensor([[1e4, 0.0]]), torch.tensor([True, True])
    assert float(evaluation_loss(logits, torch.tensor([1]), seen)) == LARGEST_LOSS


def test_a_loss_that_is_no_number_stays_one() -> None:
    logits, seen = torch.tensor([[float("nan"), 0.0], [0.0, 0.0]]), torch.tensor([True, True])
    assert not evaluation_loss(logits, torch.tensor([0, 9]), seen).isfinite()


def test_label_sets_before_any_training_cost_the_most_there_is() -> None:
    logits, targets = torch.full((2, 1), -INF), torch.tensor([[1, 0, 1], [0, 1, 0]])
    assert float(evaluation_loss(logits, targets, torch.zeros(0, dtype=torch.bool))) == LARGEST_LOSS


@pytest.mark.parametrize("columns", [0, 1, 3])
@pytest.mark.parametrize("label", [0, 2, 9])
def test_a_label_is_never_predicted_before_any_training(columns: int, label: int) -> None:
    logits = torch.full((2, columns), -INF)
    ranked = rank_last(logits, torch.tensor([label, label]), torch.zeros(columns, dtype=torch.bool))
    assert not (ranked.argmax(1) == label).any()


def test_logits_of_seen_classes_are_not_touched() -> None:
    logits = torch.tensor([[1.0, -INF, 2.0], [0.0, -INF, 1.0]])
    ranked = rank_last(logits, torch.tensor([2, 1]), torch.tensor([True, False, True]))
    assert torch.equal(ranked[0], logits[0])
    assert ranked[1].argmax() == 2


@pytest.mark.parametrize("name", image_methods())
def test_an_experience_to_come_costs_the_most_and_is_never_right(name: str) -> None:
    made, scenario = learner(name, evaluator=figures()), stream((ToyImages(4), ToyImages(2, "test")))
    if made.model.revisits != "last":
        made.train(scenario.train_stream[0])
    results = made.eval(scenario.test_stream[2])
    assert results[f"Loss_Exp/{STEM}/Exp002"] == LARGEST_LOSS
    assert results[f"Top1_Acc_Exp/{STEM}/Exp002"] == 0.0


def test_the_loss_of_a_stream_is_not_diluted_by_experiences_to_come() -> None:
    made, scenario = strategy("linear_probe", evaluator=figures()), stream()
    made.train(scenario.train_stream[0])
    results = made.eval(scenario.test_stream)
    first = results[f"Loss_Exp/{STEM}/Exp000"]
    assert 0 < first < 1
    assert results[f"Loss_Stream/{STEM}"] == pytest.approx((first + 2 * LARGEST_LOSS) / 3)


def test_no_unseen_class_is_among_the_first_k() -> None:
    made = strategy("linear_probe", evaluator=EvaluationPlugin(topk_acc_metrics(top_k=5, experience=True)))
    scenario = stream()
    made.train(scenario.train_stream[0])
    results = made.eval(scenario.test_stream)
    assert results[f"Topk_5_Acc_Exp/{STEM}/Exp000"] == 1.0
    assert results[f"Topk_5_Acc_Exp/{STEM}/Exp001"] == results[f"Topk_5_Acc_Exp/{STEM}/Exp002"] == 0.0


@pytest.mark.parametrize(
    ("metric", "mode"),
    [("Loss_Exp", "min"), ("Loss_Stream", "min"), ("Top1_Acc_Exp", "max"), ("Top1_Acc_Stream", "max")],
)
@pytest.mark.parametrize("lr", [0.02, 50.0])
def test_early_stopping_never_hands_back_the_untrained_model(metric: str, mode: str, lr: float) -> None:
    stop = EarlyStoppingPlugin(patience=1, val_stream_name="test_stream", metric_name=metric, mode=mode)
    made = strategy("linear_probe", [stop], figures(), eval_every=1, train_epochs=4, lr=lr)
    scenario = stream()
    made.train(scenario.train_stream[0], eval_streams=[[scenario.test_stream[0]]])
    assert stop.best_step is not None
    assert stop.best_step > 0
    assert made.eval(scenario.test_stream[0])[f"Top1_Acc_Exp/{STEM}/Exp000"] >= 0.5


def test_early_stopping_on_a_stream_that_holds_classes_to_come_follows_the_others() -> None:
    stop = EarlyStoppingPlugin(
        patience=2, val_stream_name="test_stream", metric_name="Loss_Stream", mode="min"
    )
    made = strategy("linear_probe", [stop], figures(), eval_every=1, train_epochs=4)
    scenario = stream()
    made.train(scenario.train_stream[0], eval_streams=[scenario.test_stream])
    assert made.eval(scenario.test_stream)[f"Top1_Acc_Exp/{STEM}/Exp000"] > 0.9


def test_class_0_alone_is_not_right_before_any_training() -> None:
    train, test = toy()

    def part(data: Any) -> Any:
        rows = [row for row, label in enumerate(data.targets) if label == 0]
        subset = Subset(data, rows)
        subset.targets = [0] * len(rows)  # type: ignore[attr-defined]
        return as_taskaware_classification_dataset(subset)

    scenario = benchmark_from_datasets(train=[part(train)], test=[part(test)])
    made = strategy("ncm", evaluator=figures())
    untrained = dict(made.eval(scenario.test_stream))
    made.train(scenario.train_stream)
    trained = made.eval(scenario.test_stream)
    key = next(key for key in trained if key.startswith("Top1_Acc_Stream/eval_phase"))
    assert (untrained[key], trained[key]) == (0.0, 1.0)


def test_a_method_that_trains_nothing_shows_a_loss_in_training() -> None:
    made = strategy("ncm", train_epochs=1)
    losses: list[float] = []
    made.plugins.append(_Losses(losses))
    made.train(stream().train_stream[0])
    assert min(losses) > 0


class _Losses:
    """Keeps the loss of every step."""

    def __init__(self, losses: list[float]) -> None:
        self.losses = losses

    def after_training_iteration(self, strategy: Any, **_: Any) -> None:
        self.losses.append(float(strategy.loss))
