"""Plug-ins: every hook reaches every method, two of them compose, and no constructor knows of them."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from small_methods import SMALL, image_methods
from torch import Tensor, nn

from clprompt import registry, testing
from clprompt.avalanche.strategy import make_strategy
from clprompt.backbones.attention import BlockPrompt
from clprompt.data.plan import group_indices
from clprompt.errors import ConfigError, Interrupted, ProtocolError
from clprompt.experiment import config
from clprompt.prompting.build import construct, make_method
from clprompt.prompting.coordination import Coordination
from clprompt.prompting.heads import grow_rows
from clprompt.prompting.losses import SoftLabels
from clprompt.prompting.model import PromptModel, Step
from clprompt.prompting.plugin import Pass, Plugin, Samples
from clprompt.scenarios import Plan, to_avalanche, to_online_avalanche
from clprompt.strategies.l2p import L2PModel
from clprompt.strategies.linear_probe import LinearProbeModel
from clprompt.strategies.mvp import MVPModel
from clprompt.strategies.ncm import NCMModel
from clprompt.strategies.vpt_deep import VPTDeepModel
from clprompt.testing import state
from clprompt.testing.asserts import bits, changed, same_bits
from clprompt.testing.bench import CLASSES, Log, ToyImages, Workbench, tiny_vit
from clprompt.testing.label_sets import ScenesBench
from clprompt.tracking import Sink
from clprompt.training.mixing import soften
from clprompt.training.settings import Memory, Training

NAMES = image_methods()
#: Methods whose defaults hand no prompts to the backbone: there is nothing to stand around.
WITHOUT_PROMPTS = {"damvp", "linear_probe", "multilane", "ncm", "ranpac", "ridge", "slda"}
EPOCHS = 2

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning:avalanche"),
    pytest.mark.filterwarnings("ignore::UserWarning:torch"),
]


class Recorder(Plugin):
    """Counts what it is told, samples by class in buffers, and calls beside."""

    name = "recorder"

    def __init__(self, answer: int | None = None) -> None:
        super().__init__()
        self.answer = answer  # the class that it always predicts
        self.calls: Counter[str] = Counter()
        self.widths: set[tuple[int, ...]] = set()
        self.begun: list[list[int]] = []
        self.got: Tensor
        self.ended: Tensor
        self.register_buffer("got", torch.zeros(0, dtype=torch.int64))
        self.register_buffer("ended", torch.zeros(0, dtype=torch.int64))

    def attach(self, model: PromptModel) -> None:
        self.calls["attach"] += 1

    def around(self, prompts: Any, run: Pass) -> Any:
        def asked(block: int, x: Tensor) -> Any:
            self.calls["around"] += 1
            if run.learning:
                run.collected.append(block)
            return prompts(block, x)

        return asked

    def terms(self, step: Step, collected: Sequence[Any]) -> dict[str, Tensor]:
        self.calls["terms"] += 1
        self.calls["collected"] += len(collected)
        assert not step.features.requires_grad
        return {}

    def begin_experience(self, classes: Sequence[int]) -> None:
        self.begun.append(list(classes))

    def received(self, features: Tensor, targets: Tensor, frozen: Any) -> None:
        assert not features.requires_grad
        self.widths.add(tuple(features.shape[1:]))
        self.got += self._count(targets)

    def end_experience(self, samples: Samples | None) -> None:
        self.calls["end"] += 1
        for images, targets in samples() if samples is not None else ():
            assert len(images) == len(targets)
            self.ended += self._count(targets)

    def logits(self, features: Tensor, frozen: Any) -> Tensor | None:
        self.calls["logits"] += 1
        if self.answer is None:
            return None
        return nn.functional.one_hot(torch.full((len(features),), self.answer), len(self.got)).float()

    def grow_classes(self, num_classes: int) -> None:
        self.calls["grow"] += 1
        for buffer in (self.got, self.ended):
            grow_rows(buffer, torch.zeros(num_classes - len(buffer)))

    def follow(self) -> None:
        self.calls["follow"] += 1

    def resize_to(self, state: Any) -> None:
        self.calls["resize"] += 1
        assert set(state) == {"got", "ended"}

    def _count(self, targets: Tensor) -> Tensor:
        if targets.ndim == 2:
            return nn.functional.pad(targets.sum(0), (0, len(self.got)))[: len(self.got)]
        return targets.bincount(minlength=len(self.got))


class Halved(Plugin):
    """Halves every prompt token, and trains a vector of its own to be short."""

    name = "halved"

    def attach(self, model: PromptModel) -> None:
        self.direction = nn.Parameter(torch.full((model.backbone.width,), 0.01))

    def around(self, prompts: Any, run: Pass) -> Any:
        def halved(block: int, x: Tensor) -> Any:
            asked = prompts(block, x)
            asked = () if asked is None else (asked,) if isinstance(asked, BlockPrompt) else asked
            return [p if p.tokens is None else replace(p, tokens=p.tokens / 2) for p in asked]

        return halved

    def terms(self, step: Step, collected: Sequence[Any]) -> dict[str, Tensor]:
        return {"halved": 0.1 * self.direction.square().sum()}


def own(model: PromptModel) -> Recorder:
    (recorder,) = (plugin for plugin in model.plugins if isinstance(plugin, Recorder))
    return recorder


def counted(*groups: Sequence[int], each: int) -> list[int]:
    """So many samples of each class of these groups, by class id."""
    counts = torch.zeros(11, dtype=torch.int64)
    counts[[c for group in groups for c in group]] = each
    return counts[: 1 + max(c for group in groups for c in group)].tolist()


# -------------------------------------------------------------------------------- every method


@cache
def offline(name: str) -> tuple[Workbench, PromptModel]:
    """A method with a recorder after two epochs on each of two experiences."""
    bench = Workbench(registry.strategies.get(name).target, plugins=[Recorder()], **SMALL.get(name, {}))
    model = bench.make()
    bench.run(model, epochs=EPOCHS, experiences=2, online=False, train=bench.few)
    return bench, model


@pytest.mark.parametrize("name", NAMES)
def test_every_method_tells_a_plug_in_of_each_experience_and_gives_it_the_samples(name):
    _, model = offline(name)
    if model.revisits == "last":
        assert own(model).begun == [sorted([*CLASSES[0], *CLASSES[1]])]
    else:
        assert own(model).begun == [sorted(group) for group in CLASSES[:2]]
    assert own(model).calls["end"] == len(own(model).begun)
    assert own(model).ended.tolist() == counted(*CLASSES[:2], each=9)


@pytest.mark.parametrize("name", NAMES)
def test_every_method_hands_on_what_it_receives_once_a_batch(name):
    _, model = offline(name)
    assert own(model).got.tolist() == counted(*CLASSES[:2], each=EPOCHS * 9)
    assert own(model).widths == {(model.backbone.width,)}


@pytest.mark.parametrize("name", NAMES)
def test_every_method_asks_a_plug_in_for_terms_logits_and_growth(name):
    _, model = offline(name)
    calls = own(model).calls
    batches = 5 if model.revisits == "last" else 6  # one experience of 36 samples, or two of 18
    assert calls["terms"] == EPOCHS * batches
    assert calls["attach"] == 1
    assert min(calls["logits"], calls["grow"], calls["follow"]) > 0
    assert (calls["around"] > 0) == (name not in WITHOUT_PROMPTS)
    assert (calls["collected"] > 0) == (name not in WITHOUT_PROMPTS)


@pytest.mark.parametrize("name", NAMES)
def test_a_plug_in_that_only_looks_changes_no_bit_of_any_method(name):
    bench, model = offline(name)
    plain = Workbench(bench.model_class, **bench.arguments)
    other = plain.make()
    plain.run(other, epochs=EPOCHS, experiences=2, online=False, train=plain.few)
    without = {key: value for key, value in bits(model).items() if not key.startswith("recorder.")}
    assert not changed(bits(other), without)


@pytest.mark.parametrize("name", NAMES)
def test_the_answer_of_a_plug_in_takes_the_place_of_every_methods_head(name):
    _, model = offline(name)
    images = ToyImages(1, "test").images
    own(model).answer = 7
    try:
        with torch.no_grad():
            assert model.eval()(images).argmax(1).tolist() == [7] * len(images)
            assert model(images).isfinite().any(0).nonzero().flatten().tolist() == [0, 1, 4, 7]
    finally:
        own(model).answer = None


VIT = tiny_vit()
ONLINE = [
    name for name in NAMES if construct(registry.strategies.get(name).target, VIT).boundaries != "required"
]
FREE = [
    *((name, {}) for name in ONLINE),
    *(
        (name, {"boundary_free": True})
        for name in NAMES
        if "boundary_free" in inspect.signature(registry.strategies.get(name).target).parameters
    ),
]


@pytest.mark.parametrize(("name", "arguments"), FREE, ids=str)
def test_online_a_plug_in_sees_each_batch_once_and_no_experience(name, arguments):
    bench = Workbench(registry.strategies.get(name).target, plugins=[Recorder()], **arguments)
    model = bench.make()
    bench.run(model, epochs=3, experiences=2, online=True, train=bench.few)
    assert own(model).got.tolist() == counted(*CLASSES[:2], each=9)
    assert own(model).calls["terms"] == 3 * 6
    assert not own(model).begun
    assert not own(model).calls["end"]


def stream() -> Any:
    train, test = ToyImages(12), ToyImages(6, "test")
    return Plan(tuple(group_indices(train.targets, CLASSES, 11)), CLASSES, 11), train, test


@pytest.mark.parametrize("name", ["joint", "l2p", "multilane", "mvp", "ncm"])
def test_the_strategies_of_avalanche_take_a_plug_in_and_tell_it_the_same(name):
    strategy = make_strategy(registry.strategies.get(name).target)(
        backbone=tiny_vit(), plugins=[Recorder()], evaluator=None, train_mb_size=8, train_epochs=2
    )
    for experience in to_avalanche(*stream()).train_stream:
        strategy.train(experience)
    recorder = own(strategy.model)
    told = [c for group in recorder.begun for c in group]
    expected = [c for group in CLASSES for c in sorted(group)]
    assert told == (sorted(expected) if name == "joint" else expected)
    assert recorder.ended.tolist() == counted(*CLASSES, each=12)
    assert recorder.got.tolist() == counted(*CLASSES, each=2 * 12)


@pytest.mark.parametrize("name", ["mvp", "ncm"])
def test_on_an_online_stream_of_avalanche_epochs_are_iterations_on_one_received_batch(name):
    strategy = make_strategy(registry.strategies.get(name).target)(
        backbone=tiny_vit(), plugins=[Recorder()], evaluator=None, train_mb_size=8, train_epochs=3
    )
    for experience in to_online_avalanche(*stream(), batch_size=8).train_stream:
        strategy.train(experience)
    assert own(strategy.model).got.tolist() == counted(*CLASSES, each=12)
    assert own(strategy.model).calls["terms"] == 3 * 9
    assert not own(strategy.model).begun


def test_labels_of_other_experiences_are_hidden_from_a_plug_in():
    bench = ScenesBench(LinearProbeModel, plugins=[Recorder()])
    model = bench.make()
    bench.run(model, experiences=2)
    hot, groups = bench.train.targets, bench.train.groups()
    for group, indices in zip(CLASSES[:2], groups, strict=False):
        expected = hot[indices][:, list(group)].sum(0).tolist()
        assert own(model).ended[list(group)].tolist() == expected
        assert own(model).got[list(group)].tolist() == expected


# -------------------------------------------------------------------------------- inside and between


def test_inside_an_open_experience_the_trained_head_answers():
    model = construct(LinearProbeModel, tiny_vit(), plugins=[Recorder(answer=1)]).eval()
    images = ToyImages(1, "test").images
    model.begin_experience(CLASSES[0])
    model.observe(torch.tensor(CLASSES[0]))
    assert not torch.equal(model(images)[:, 1], torch.ones(len(images)))
    model.end_experience(lambda: [])
    assert torch.equal(model(images)[:, 1], torch.ones(len(images)))
    assert not torch.equal(model.train()(images)[:, 1], torch.ones(len(images)))


def test_inside_an_experience_that_only_plug_ins_know_of_the_trained_head_answers_too():
    model = construct(MVPModel, tiny_vit(), plugins=[Recorder(answer=1)]).eval()
    images = ToyImages(1, "test").images
    model.observe(torch.tensor(CLASSES[0]))
    # without the factors of the trained head
    assert torch.equal(model(images)[:, 1], torch.ones(len(images)))
    model.begin_for_plugins(CLASSES[0])
    assert not torch.equal(model(images)[:, 1], torch.ones(len(images)))


@pytest.mark.parametrize("kind", [LinearProbeModel, NCMModel])
def test_beginning_and_ending_twice_tells_a_plug_in_once(kind):
    model = construct(kind, tiny_vit(), plugins=[Recorder()])
    begin = model.begin_for_plugins if model.boundaries == "unused" else model.begin_experience
    for _ in range(2):
        begin(CLASSES[0])
    for _ in range(2):
        model.end_experience(lambda: [])
    assert own(model).begun == [sorted(CLASSES[0])]
    assert own(model).calls["end"] == 1


@pytest.mark.parametrize("kind", [LinearProbeModel, NCMModel])
def test_a_run_resumed_within_an_experience_never_begins_it_and_ends_it_with_its_samples(kind):
    bench = Workbench(kind, plugins=[Recorder()])
    left = iter(range(2))
    engine = bench.engine(
        bench.make(), experiences=1, online=False, stop=lambda: None if next(left, None) is not None else 2
    )
    with pytest.raises(Interrupted):
        engine.run()
    model = bench.make()
    again = bench.engine(model, experiences=1, online=False)
    again.load_state(engine.state())
    again.run()
    assert not own(model).begun
    assert own(model).ended.tolist() == counted(CLASSES[0], each=17)
    assert own(model).got.tolist() == counted(CLASSES[0], each=17)


# -------------------------------------------------------------------------------- several at once

PAIRS = [(Coordination, Recorder), (Halved, Recorder), (Halved, Coordination)]


@pytest.mark.parametrize("kinds", PAIRS, ids=lambda kinds: " and ".join(kind.name for kind in kinds))
def test_two_plug_ins_give_the_same_bits_in_both_orders(kinds):
    outcomes = []
    for order in (kinds, kinds[::-1]):
        bench, log = Workbench(VPTDeepModel, plugins=[kind() for kind in order]), Log()
        model = bench.make()
        bench.engine(model, epochs=2, experiences=2, log=log).run()
        assert [type(plugin) for plugin in model.plugins] == list(order)
        outcomes.append((log.records, bits(model)))
    (records, first), (other, second) = outcomes
    assert records == other
    assert not changed(first, second)
    assert {name.partition(".")[0] for name in first} >= {kind.name for kind in kinds}


@cache
def several() -> Workbench:
    return Workbench(L2PModel, plugins=[Coordination(share=0.4), Halved(), Recorder()])


@pytest.mark.parametrize(
    "check",
    [
        testing.check_declared_parameters,
        testing.check_batch_companions,
        testing.check_cache,
        *(check for check in state.CHECKS if check is not state.check_random_states),
    ],
    ids=lambda check: check.__name__.removeprefix("check_"),
)
def test_a_method_with_three_plug_ins_keeps_its_promises(check):
    check(several())


def test_the_terms_of_all_plug_ins_are_named_and_part_of_the_loss():
    model = construct(L2PModel, tiny_vit(), coordinate=True, plugins=[Halved()])
    images, targets = ToyImages(1).images[:2], torch.tensor([4, 1])
    model.begin_experience(CLASSES[0])
    model.observe(targets)
    step = model.training_loss(images, targets)
    assert list(step.terms) == ["cross_entropy", "key_pull", "coordination", "halved"]
    torch.testing.assert_close(step.loss.detach(), torch.stack(list(step.terms.values())).sum())


def test_the_state_of_a_plug_in_is_part_of_the_models_and_counted_with_it():
    plain, model = (construct(LinearProbeModel, tiny_vit(), plugins=p) for p in ((), (Recorder(), Halved())))
    for each in (plain, model):
        each.observe(torch.tensor([4, 1]))
    extra = model.method_state().keys() - plain.method_state().keys()
    assert extra == {"recorder.got", "recorder.ended", "halved.direction"}
    assert model.state_size() == plain.state_size() + 2 * 5 + 32
    assert "halved.direction" in model.trainable()
    assert set(plain.own_parameters()) == set(model.own_parameters())


class Hoards(Recorder):
    """Up to a hundred numbers, as the data want."""

    def max_state_size(self, experiences: int) -> int | None:
        return 100 * experiences


def test_what_a_plug_in_can_grow_to_is_part_of_the_bound():
    plain, model = (construct(LinearProbeModel, tiny_vit(), plugins=p) for p in ((), (Hoards(),)))
    for each in (plain, model):
        each.observe(torch.tensor([4, 1]))
    assert plain.state_bound(3) is None
    assert model.state_bound(3) == plain.state_size() + 300


def test_a_plug_in_that_is_added_late_grows_to_the_classes_that_are_there():
    model = LinearProbeModel(tiny_vit())
    model.observe(torch.tensor([4, 1]))
    assert len(own(model.plug(Recorder())).got) == 5


# -------------------------------------------------------------------------------- construction


@pytest.mark.parametrize("name", NAMES)
def test_no_constructor_of_a_method_knows_a_plug_in(name):
    keys = {
        key for short in registry.plugins.names() for key in signature(registry.plugins.get(short).target)
    }
    assert len(keys) >= 3
    assert not keys & set(signature(registry.strategies.get(name).target))


def signature(target: Any) -> list[str]:
    return list(inspect.signature(target).parameters)


def test_a_short_form_stands_behind_the_methods_own_keys_and_reaches_the_plug_in(monkeypatch):
    def recorder(*, record: bool = False, record_answer: int | None = None) -> Recorder | None:
        """Records."""
        return Recorder(record_answer) if record else None

    monkeypatch.setattr(registry.plugins, "_entries", dict(registry.plugins._entries))
    registry.plugins.register("record", serves=lambda method: method.trains, lacking="trains nothing")(
        recorder
    )
    section = config.named({"name": "linear_probe", "record": True}, "strategy")
    assert list(section)[:5] == ["name", "boundary_free", "mask", "record", "record_answer"]
    assert (section["record"], section["record_answer"]) == (True, None)
    model = make_method({**section, "record_answer": 3}, tiny_vit(), seed=0)
    assert own(model).answer == 3
    assert not make_method({**section, "record": False}, tiny_vit(), seed=0).plugins
    with pytest.raises(ConfigError, match=r"strategy\.record: strategy ncm trains nothing"):
        config.named({"name": "ncm", "record": True}, "strategy")
    with pytest.raises(ConfigError, match=r'unknown key "strategy\.record"'):
        config.named({"name": "ncm", "record": False}, "strategy")
    with pytest.raises(ConfigError, match=r"strategy\.record must be bool"):
        config.named({"name": "linear_probe", "record": 1}, "strategy")


def test_a_name_that_is_taken_is_refused_in_one_line():
    class Head(Plugin):
        name = "head"

    model = LinearProbeModel(tiny_vit()).plug(Recorder())
    for plugin in (Recorder(), Head()):
        with pytest.raises(ConfigError, match=f'no plug-in called "{plugin.name}"') as caught:
            model.plug(plugin)
        assert "\n" not in str(caught.value)
    assert len(model.plugins) == 1


def test_a_plug_in_serves_one_model():
    plugin = Recorder()
    LinearProbeModel(tiny_vit()).plug(plugin)
    with pytest.raises(ConfigError, match="plugged into a LinearProbeModel already"):
        LinearProbeModel(tiny_vit()).plug(plugin)


class Doubles(Halved):
    """Names a term of its own as the method's is named."""

    name = "doubles"

    def terms(self, step: Step, collected: Sequence[Any]) -> dict[str, Tensor]:
        return {"cross_entropy": self.direction.sum()}


def test_a_term_that_is_there_already_is_refused_in_one_line():
    model = construct(LinearProbeModel, tiny_vit(), plugins=[Doubles()])
    model.begin_experience(CLASSES[0])
    model.observe(torch.tensor(CLASSES[0]))
    with pytest.raises(
        ProtocolError, match="doubles adds the loss term cross_entropy, which is there already"
    ):
        model.training_loss(ToyImages(1).images[:2], torch.tensor([4, 1]))


def test_a_plug_in_that_was_refused_can_be_plugged_elsewhere():
    plugin = Coordination()
    with pytest.raises(ConfigError, match="no prompt tokens"):
        LinearProbeModel(tiny_vit()).plug(plugin)
    assert VPTDeepModel(tiny_vit()).plug(plugin).coordination is plugin


# -------------------------------------------------------------------------------- mixed images

MIXED = Training(train_mb_size=8, mixup=0.5)


@pytest.mark.parametrize("mixed", ["mixup", "cutmix"])
def test_mixed_images_are_refused_before_training_where_a_plug_in_counts(mixed):
    bench = Workbench(LinearProbeModel, plugins=[Recorder()])
    bench.training = lambda epochs=1: Training(train_mb_size=8, **{mixed: 0.5})  # type: ignore[method-assign]
    with pytest.raises(ConfigError, match=rf"training\.{mixed} must be 0") as caught:
        bench.engine(bench.make())
    assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match=rf"training\.{mixed} must be 0"):
        make_strategy(LinearProbeModel)(
            backbone=tiny_vit(), plugins=[Recorder()], evaluator=None, **{mixed: 0.5}
        )


def in_a_loop_of_ones_own() -> tuple[PromptModel, Tensor, Tensor]:
    """A model with a plug-in that has received a batch, and that batch."""
    model = construct(LinearProbeModel, tiny_vit(), plugins=[Recorder()])
    model.begin_experience(CLASSES[0])
    images, targets = ToyImages(2).images[:4], torch.tensor([4, 4, 1, 1])
    model.observe(targets)
    return model, images, targets


def test_mixed_images_are_refused_in_a_loop_of_ones_own():
    model, images, targets = in_a_loop_of_ones_own()
    mixed, soft = soften(images, targets, MIXED, model.num_classes, 0, 0)
    with pytest.raises(ProtocolError, match="recorder counts features"):
        model.training_loss(mixed, targets, soft)


def test_a_refusal_of_mixed_images_leaves_the_model_usable_with_smoothed_labels():
    model, images, targets = in_a_loop_of_ones_own()
    mixed, soft = soften(images, targets, MIXED, model.num_classes, 0, 0)
    with pytest.raises(ProtocolError):
        model.training_loss(mixed, targets, soft)
    model.training_loss(images, targets, SoftLabels(targets, 0.1))
    assert own(model).got.tolist() == [0, 2, 0, 0, 2]


def test_a_plug_in_that_counts_nothing_takes_mixed_images():
    bench = Workbench(LinearProbeModel, plugins=[Halved()])
    bench.training = lambda epochs=1: MIXED  # type: ignore[method-assign]
    records = bench.run(bench.make(), experiences=1)
    assert all(np.isfinite(record["terms"]["loss"]) for record in records if record["kind"] == "train")


def test_a_memory_is_refused_where_a_plug_in_counts():
    model = construct(LinearProbeModel, tiny_vit(), plugins=[Recorder()], boundary_free=True)
    with pytest.raises(ConfigError, match="a plug-in counts what is received"):
        Memory(size=10).check_model(model, np.zeros(4))
    assert same_bits(own(model).got, torch.zeros(0, dtype=torch.int64))


# ------------------------------------------------------------------------------------------------- documents


@pytest.mark.parametrize("kind", [PromptModel, Plugin, Sink])
def test_help_says_what_each_class_attribute_means(kind: type) -> None:
    explained = (inspect.getdoc(kind) or "").partition("Attributes:")[2]
    names = [name for name in vars(kind)["__annotations__"] if not name.startswith("_")]
    assert names
    assert not [name for name in names if f"\n    {name}: " not in explained]
