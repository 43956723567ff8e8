"""Avalanche's arguments act, or are refused in one line: loaders, learning rates, optimizers, copies."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from avalanche.core import SupervisedPlugin
from avalanche.training.plugins import EvaluationPlugin, LRSchedulerPlugin
from avalanche_runs import figures, learner, strategy, stream, trained
from small_methods import image_methods
from timm.models.vision_transformer import VisionTransformer

from clprompt.avalanche.strategy import PromptStrategy, make_strategy
from clprompt.errors import ConfigError
from clprompt.registry import strategies
from clprompt.testing.asserts import bits, changed
from clprompt.testing.bench import ToyImages

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning:avalanche"),
    pytest.mark.filterwarnings("ignore::UserWarning:torch"),
]


class Batches(SupervisedPlugin):
    """Keeps the labels and the learning rates of every step."""

    def __init__(self) -> None:
        super().__init__()
        self.labels: list[list[int]] = []
        self.rates: list[list[float]] = []

    def before_update(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        self.labels.append(strategy.mb_y.tolist())
        self.rates.append([group["lr"] for group in strategy.optimizer.param_groups])


def one_line(error: Exception) -> str:
    assert "\n" not in str(error)
    return str(error)


# ------------------------------------------------------------------------------------------------ loaders


def seen_labels(**arguments: Any) -> list[list[int]]:
    """The labels of each batch of one epoch over 24 images, 10 at a time."""
    watch = Batches()
    made = strategy("linear_probe", [watch], train_epochs=1, train_mb_size=10)
    made.train(stream().train_stream[0], **arguments)
    return watch.labels


def test_drop_last_drops_the_last_batch() -> None:
    assert seen_labels(drop_last=True) == seen_labels()[:2]


def test_without_shuffle_the_images_come_in_their_order() -> None:
    labels = [label for batch in seen_labels(shuffle=False) for label in batch]
    assert labels == [target for _, target, _ in stream().train_stream[0].dataset]


def test_workers_change_no_batch() -> None:
    assert seen_labels(num_workers=1) == seen_labels()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"drop_last": 1}, "drop_last must be bool"),
        ({"num_workers": -1}, "num_workers must be at least 0"),
        ({"persistent_workers": True}, "persistent_workers must be false"),
        ({"drop_lst": True}, 'train() takes no argument drop_lst; did you mean "drop_last"?'),
        ({"ffcv_args": {}}, "train() takes no argument ffcv_args"),
    ],
)
def test_an_argument_of_train_that_does_not_act_is_refused(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        strategy("linear_probe").train(stream().train_stream[0], **arguments)
    assert words in one_line(caught.value)


def test_a_strategy_in_one_of_several_processes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    told = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match="an Avalanche strategy runs in one process, not in several"):
        strategy("ncm")


def test_dropping_all_there_is_is_refused() -> None:
    with pytest.raises(ConfigError, match="drop_last=True leaves nothing of an experience of 24 images"):
        strategy("linear_probe", train_mb_size=25).train(stream().train_stream[0], drop_last=True)


def test_arguments_that_a_plugin_of_ones_own_may_take_reach_it() -> None:
    class Asks(SupervisedPlugin):
        told: Any = None

        def before_training_exp(self, strategy: Any, *args: Any, mine: Any = None, **kwargs: Any) -> None:
            self.told = mine

    asks = Asks()
    strategy("linear_probe", [asks]).train(stream().train_stream[0], mine=3)
    assert asks.told == 3


@pytest.mark.parametrize("arguments", [{"drop_last": True}, {"num_worker": 0}, {"num_workers": -2}])
def test_an_argument_of_eval_that_does_not_act_is_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(arguments))) as caught:
        strategy("linear_probe").eval(stream().test_stream, **arguments)
    one_line(caught.value)


def test_arguments_of_eval_change_no_figure() -> None:
    made, scenario = trained("linear_probe", evaluator=figures()), stream()
    plain = dict(made.eval(scenario.test_stream))
    other = made.eval(scenario.test_stream, shuffle=True, num_workers=1, persistent_workers=True)
    assert other == pytest.approx(plain)


def test_arguments_of_train_reach_the_evaluations_within_it() -> None:
    made = strategy("linear_probe", evaluator=figures(), eval_every=1)
    made.train(stream().train_stream[0], drop_last=True, shuffle=False)
    assert made.evaluator.get_last_metrics()


# --------------------------------------------------------------------------------------------- learning rates


def scheduled(name: str, make: Any, *, reset_lr: bool = True, **arguments: Any) -> Batches:
    """The rates of a run of two epochs an experience under a scheduler."""
    watch = Batches()
    made = strategy(name, [watch], **arguments)
    made.plugins.append(LRSchedulerPlugin(make(made.optimizer), reset_lr=reset_lr))
    for experience in stream().train_stream:
        made.train(experience)
    return watch


@pytest.mark.parametrize("name", ["l2p", "damvp"])
def test_a_scheduler_lowers_the_rate_of_every_group_in_each_experience(name: str) -> None:
    rates = scheduled(name, lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)).rates
    steps = len(rates) // 6  # of an epoch
    for experience in range(3):
        first, second = (rates[(2 * experience + epoch) * steps] for epoch in (0, 1))
        assert second == pytest.approx([rate / 2 for rate in first])
        assert first[0] == rates[0][0]


def test_a_rate_that_is_not_to_be_reset_stays_low_in_the_next_experience() -> None:
    def make(optimizer: Any) -> Any:
        return torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)

    rates = [rate for (rate,) in scheduled("l2p", make, reset_lr=False).rates]
    assert rates == pytest.approx([0.02 * 0.5**epoch for epoch in range(6) for _ in range(3)])


def test_a_scheduler_of_functions_follows_groups_that_are_added() -> None:
    def make(optimizer: Any) -> Any:
        return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 1 / (1 + epoch))

    rates = scheduled("damvp", make).rates
    assert len(rates[0]) > 1
    assert rates[-1] == pytest.approx([rate / 2 for rate in rates[0]])


def test_a_scheduler_on_plateaus_follows_the_loss() -> None:
    made = strategy("linear_probe", [watch := Batches()], figures(), eval_every=1, train_epochs=4, lr=1e-6)
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(made.optimizer, patience=0, factor=0.1)
    made.plugins.append(LRSchedulerPlugin(plateau, metric="val_loss", reset_lr=False))
    scenario = stream()
    made.train(scenario.train_stream[0], eval_streams=[scenario.test_stream])
    assert watch.rates[-1][0] < 1e-6


def test_a_scheduler_changes_what_is_learned() -> None:
    watch = strategy("l2p")
    watch.plugins.append(LRSchedulerPlugin(torch.optim.lr_scheduler.StepLR(watch.optimizer, 1, 0.1)))
    for experience in stream().train_stream:
        watch.train(experience)
    assert changed(bits(trained("l2p").model), bits(watch.model))


def test_an_optimizer_is_reset_where_train_is_told_so() -> None:
    made, scenario = strategy("mvp"), stream()
    made.train(scenario.train_stream[0])
    kept, again = copy.deepcopy(made), copy.deepcopy(made)
    kept.train(scenario.train_stream[0])
    again.train(scenario.train_stream[0], reset_optimizer_state=True)
    assert changed(bits(kept.model), bits(again.model))


def refusal(make: Any, name: str = "linear_probe", **arguments: Any) -> str:
    made = strategy(name, **arguments)
    made.plugins.append(make(made))
    with pytest.raises(ConfigError, match="LRSchedulerPlugin") as caught:
        made.train(stream().train_stream[0])
    return one_line(caught.value)


def stepped(optimizer: Any) -> LRSchedulerPlugin:
    return LRSchedulerPlugin(torch.optim.lr_scheduler.StepLR(optimizer, 1))


@pytest.mark.parametrize("own", [{"schedule": "cosine"}, {"warmup": 0.5}], ids=str)
def test_a_scheduler_beside_a_schedule_is_refused(own: dict[str, Any]) -> None:
    assert "set the learning rate" in refusal(lambda made: stepped(made.optimizer), **own)


def test_a_scheduler_of_another_optimizer_is_refused() -> None:
    other = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    assert "strategy.optimizer" in refusal(lambda _: stepped(other))


def test_a_scheduler_where_nothing_is_trained_is_refused() -> None:
    assert "nothing is trained" in refusal(lambda made: stepped(made.optimizer), "ncm")


def test_a_scheduler_that_waits_for_evaluations_which_never_come_is_refused() -> None:
    def make(made: PromptStrategy) -> LRSchedulerPlugin:
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(made.optimizer)
        return LRSchedulerPlugin(plateau, metric="val_loss")

    assert "eval_every must be at least 1, got -1" in refusal(make)


# ----------------------------------------------------------------------------------------------- constructors


@pytest.mark.parametrize("name", image_methods())
@pytest.mark.parametrize("face", ["model", "strategy"])
def test_a_backbone_that_is_no_frozen_vit_is_refused(name: str, face: str) -> None:
    target = strategies.get(name).target
    make = target if face == "model" else make_strategy(target)
    timm_model = VisionTransformer(img_size=16, patch_size=8, embed_dim=16, depth=2, num_heads=2)
    for backbone in ("vit_tiny_patch16_224", timm_model, None, {"name": "vit"}):
        with pytest.raises(ConfigError, match="backbone must be FrozenViT, got") as caught:
            make(backbone=backbone)
        one_line(caught.value)


def linear_probe() -> Any:
    return strategy("linear_probe").model


@pytest.mark.parametrize("through", ["model", "backbone"])
def test_a_criterion_is_refused(through: str) -> None:
    model, make = linear_probe(), make_strategy(strategies.get("linear_probe").target)
    start = {"model": model} if through == "model" else {"backbone": model.backbone}
    with pytest.raises(ConfigError, match="criterion is refused") as caught:
        (PromptStrategy if through == "model" else make)(criterion=torch.nn.CrossEntropyLoss(), **start)
    one_line(caught.value)


def test_an_optimizer_that_is_no_name_is_refused() -> None:
    with pytest.raises(ConfigError, match="optimizer must be a name") as caught:
        strategy("linear_probe", optimizer=torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0))
    one_line(caught.value)


def test_an_optimizer_that_was_put_in_place_of_ours_is_refused() -> None:
    made = strategy("linear_probe")
    made.optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    with pytest.raises(ConfigError, match=r"strategy\.optimizer was replaced") as caught:
        made.train(stream().train_stream[0])
    one_line(caught.value)


@pytest.mark.parametrize("plugin", [EvaluationPlugin, 5, "lwf"], ids=str)
def test_what_is_no_plugin_is_refused(plugin: Any) -> None:
    with pytest.raises(ConfigError, match="plugins must hold plugins"):
        strategy("linear_probe", [plugin])


def test_evaluation_may_count_iterations() -> None:
    made = strategy("linear_probe", evaluator=figures(), eval_every=1, peval_mode="iteration")
    scenario = stream()
    made.train(scenario.train_stream[0], eval_streams=[scenario.test_stream[0]])
    name = "Loss_Exp/eval_phase/test_stream/Task000/Exp000"
    assert len(made.evaluator.all_metric_results[name][1]) >= 6


# ------------------------------------------------------------------------------------------------ copies


@pytest.mark.parametrize("name", image_methods())
def test_a_copy_of_a_strategy_goes_on_as_it_would(name: str) -> None:
    made, scenario = learner(name, evaluator=figures()), stream((ToyImages(4), ToyImages(2, "test")))
    for experience in scenario.train_stream[:2]:
        made.train(experience)
    copied = copy.deepcopy(made)
    before = bits(made.model)
    copied.train(scenario.train_stream[2])
    assert not changed(before, bits(made.model))
    made.train(scenario.train_stream[2])
    assert not changed(bits(made.model), bits(copied.model))
    assert copied.eval(scenario.test_stream) == made.eval(scenario.test_stream)
