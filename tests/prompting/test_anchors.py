"""Anchors: what they add to the loss, what they change on the way to logits, who is refused."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from image_text import tiny_image_text
from torch import Tensor, nn

from clprompt import testing
from clprompt.errors import ConfigError, ProtocolError
from clprompt.experiment import config
from clprompt.prompting.build import construct
from clprompt.prompting.statistics.plugin import Statistics
from clprompt.prompting.text.anchors import Consistency, Direction, SelfRegulation
from clprompt.prompting.text.anchors.adapters import Adapter
from clprompt.prompting.text.anchors.consistency import second_view
from clprompt.prompting.text.model import TextModel
from clprompt.seeding import generator
from clprompt.strategies.coop.model import CoOpModel
from clprompt.strategies.linear_probe import LinearProbeModel
from clprompt.strategies.zero_shot.model import ZeroShotModel
from clprompt.testing import state
from clprompt.testing.bench import Workbench, tiny_vit
from clprompt.training.settings import Training

NAMES = {0: "cat", 1: "dog", 2: "red bird", 3: "fish", 4: "lamp"}
ANCHORS = ["self_regulation", "consistency", "equal_shifts", "direction"]


class Moved(TextModel):
    """The smallest prompts of both towers: a vector for texts, one for images."""

    def __init__(self, backbone, **arguments):
        super().__init__(backbone, **arguments)
        self.text_shift = nn.Parameter(torch.linspace(-0.3, 0.3, backbone.joint_width))
        self.image_shift = nn.Parameter(torch.linspace(0.2, -0.1, backbone.joint_width))

    def live_rows(self, names):
        text = self.text.features([self.template.format(name) for name in names])
        return F.normalize(text + self.text_shift, dim=-1)

    def image_features(self, images, cached=None):
        return super().image_features(images, cached) + self.image_shift


def images(count: int = 6, seed: int = 0) -> Tensor:
    return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


def samples(classes: list[int]) -> Any:
    labels = torch.tensor(classes).repeat_interleave(3)
    return lambda: iter([(images(len(labels), seed=sum(classes)), labels)])


def made(anchor: str | None = None, method: type[TextModel] = Moved, **arguments: Any) -> Any:
    """A model in its second experience, of classes 2 and 3, after one of classes 0 and 1."""
    backbone = arguments.pop("backbone", None) or tiny_image_text()
    return met(construct(method, backbone, anchor=anchor, **arguments))


def met(model: Any) -> Any:
    """The model in its second experience."""
    model.name_classes(NAMES)
    for classes in ([0, 1], [2, 3]):
        model.begin_experience(classes, samples(classes))
        model.observe(torch.tensor(classes))
    return model.train()


def step(model: Any) -> Any:
    return model.training_loss(images(), torch.tensor([2, 3, 3, 2, 2, 3]))


# ------------------------------------------------------------------------------------------ terms of a step


def parts(model: Any) -> dict[str, Tensor]:
    """What terms are made of, by hand: classes 2 and 3 alone are live."""
    frozen = F.normalize(model.backbone.project(model.backbone.features(images())), dim=-1)
    live = F.normalize(model.backbone.project(model.backbone.features(images())) + model.image_shift, dim=-1)
    texts = model.text.features([f"a photo of a {NAMES[c]}." for c in (2, 3)])
    return {
        "f": live,
        "f0": frozen,
        "t": F.normalize(texts + model.text_shift, dim=-1),
        "t0": F.normalize(texts, dim=-1),
        "y": torch.tensor([0, 1, 1, 0, 0, 1]),
        "s": torch.tensor(model.backbone.scale),
    }


def test_self_regulation_is_over_the_current_classes_alone():
    model = made("self_regulation")
    p, terms = parts(model), step(model).terms
    given = (p["s"] * p["f0"] @ p["t0"].T).softmax(1)
    learned = (p["s"] * p["f"] @ p["t"].T).softmax(1)
    expected = {
        "self_regulation_text": 25 * (p["t"] - p["t0"]).abs().mean(),
        "self_regulation_image": 10 * (p["f"] - p["f0"]).abs().mean(),
        "self_regulation_logits": (given * (given / learned).log()).sum() / (6 * 2),
    }
    for name, value in expected.items():
        torch.testing.assert_close(terms[name], value.detach(), rtol=1e-4, atol=1e-6)


def test_equal_shifts_compares_how_far_an_image_and_its_text_were_moved():
    model = made("equal_shifts", anchor_adapt_image=0.0, anchor_adapt_text=0.0)
    p = parts(model)
    image, text = (p["f"] - p["f0"]).norm(dim=1), (p["t"] - p["t0"]).norm(dim=1)[p["y"]]
    expected = (image - text).square().mean()
    torch.testing.assert_close(step(model).terms["equal_shifts_shift"], expected.detach(), rtol=1e-4, atol=0)


def test_direction_compares_both_crossings_and_draws_images_to_their_class_mean():
    model = made("direction")
    p, terms = parts(model), step(model).terms
    crossed = (p["s"] * p["f"] @ p["t0"].T).softmax(1)
    other = (p["s"] * p["f0"] @ p["t"].T).softmax(1)
    shown, labels = next(samples([2, 3])())
    frozen = F.normalize(model.backbone.project(model.backbone.features(shown)), dim=-1)
    means = torch.stack([frozen[labels == c].mean(0) for c in (2, 3)])[p["y"]]
    kept = 1 - F.cosine_similarity(p["f"], means).mean()
    torch.testing.assert_close(model.direction.means[2:4], torch.stack([means[0], means[1]]))
    torch.testing.assert_close(terms["direction_means"], kept.detach(), rtol=1e-4, atol=1e-6)
    expected = (crossed * (crossed / other).log()).sum() / 6
    torch.testing.assert_close(terms["direction_logits"], expected.detach(), rtol=1e-4, atol=1e-6)


def test_consistency_compares_with_another_view_and_the_unprompted_text():
    model = made("consistency", anchor_adapt_image=0.0, anchor_adapt_text=0.0)
    p, terms = parts(model), step(model).terms
    view = model.features(second_view(images(), generator(model.seed, "consistency", 0)))
    torch.testing.assert_close(terms["consistency_image"], 1 - (p["f"] * view).sum(1).mean().detach())
    torch.testing.assert_close(terms["consistency_text"], 1 - (p["t"] * p["t0"]).sum(1).mean().detach())


def test_anchors_are_part_of_the_loss():
    model = made("self_regulation")
    result = step(model)
    torch.testing.assert_close(result.loss.detach(), torch.stack(list(result.terms.values())).sum())


@pytest.mark.parametrize("anchor", ANCHORS)
def test_without_weight_an_anchor_changes_no_bit_of_training(anchor):
    kind = {"self_regulation": ("text", "image", "logits"), "consistency": ("text", "image")}
    kind |= {"equal_shifts": ("shift",), "direction": ("logits", "direction")}
    weights = {f"anchor_{name}_weight": 0.0 for name in kind[anchor]}
    if anchor in ("consistency", "equal_shifts"):
        weights |= {"anchor_adapt_image": 0.0, "anchor_adapt_text": 0.0}
    plain, held = made(), made(anchor, **weights)
    for model in (plain, held):
        step(model).loss.backward()
    for name, parameter in plain.named_parameters():
        other = dict(held.named_parameters())[name]
        assert parameter.grad is None or torch.equal(parameter.grad, other.grad), name


@pytest.mark.parametrize("method", [Moved, CoOpModel], ids=["both towers", "text alone"])
def test_the_frozen_tower_runs_once_a_step(method, monkeypatch):
    model = made("self_regulation", method, **({"length": 2} if method is CoOpModel else {}))
    runs = []
    features = type(model.backbone).features
    monkeypatch.setattr(
        type(model.backbone), "features", lambda *given, **named: runs.append(1) or features(*given, **named)
    )
    step(model)
    assert len(runs) == 1


def test_several_anchors_ride_on_one_model():
    model = construct(Moved, tiny_image_text(), plugins=[SelfRegulation(), Direction()])
    model.name_classes(NAMES)
    model.begin_experience([2, 3], samples([2, 3]))
    model.observe(torch.tensor([2, 3]))
    assert {name.partition("_")[0] for name in step(model.train()).terms} == {"cross", "self", "direction"}


def test_a_list_names_several_anchors_and_each_gets_the_settings_that_it_has():
    section = {"name": "coop", "anchor": "self_regulation,direction", "anchor_direction_weight": 2}
    checked = config.named({**section, "anchor_logits_weight": 0.5, "anchor_texts": "the {}"}, "strategy")
    assert checked["anchor"] == ["self_regulation", "direction"]
    keys = {key: value for key, value in checked.items() if key.startswith("anchor")}
    named = made(keys.pop("anchor"), **keys)
    plugged = construct(
        Moved,
        tiny_image_text(),
        plugins=[
            SelfRegulation(texts="the {}", logits_weight=0.5),
            Direction(texts="the {}", logits_weight=0.5, direction_weight=2.0),
        ],
    )
    assert [plugin.name for plugin in named.plugins] == ["self_regulation", "direction"]
    assert torch.equal(step(named).loss, step(met(plugged)).loss)


def test_the_teacher_of_self_regulation_is_the_mean_of_raw_features(tmp_path):
    path = tmp_path / "templates.txt"
    path.write_text("a {}.\na very large photo of one {}.\n")
    model = made("self_regulation", anchor_texts=str(path))
    texts = [
        model.text.features([f"a {NAMES[c]}.", f"a very large photo of one {NAMES[c]}."]) for c in (2, 3)
    ]
    expected = F.normalize(torch.stack(texts).mean(1), dim=-1)
    torch.testing.assert_close(model.self_regulation.teacher([2, 3]), expected)


def test_a_sentence_is_drawn_for_each_class_and_step(tmp_path):
    path = tmp_path / "sentences.json"
    path.write_text('{"fish": ["a fish swims", "it has fins", "cold and wet"], "red bird": ["it flies"]}')
    model = made(None)
    model.plug(Consistency(texts=str(path)))
    every = F.normalize(model.text.features(["a fish swims", "it has fins", "cold and wet"]), dim=-1)
    chosen = {
        int((model.consistency.other_texts([2, 3], generator(0, number))[1] @ every.T).argmax())
        for number in range(20)
    }
    assert chosen == {0, 1, 2}


# ----------------------------------------------------------------------------------- views and adapters


def test_a_second_view_is_a_function_of_the_random_numbers_and_of_each_image_alone():
    first = second_view(images(4), generator(0, "view", 1))
    assert torch.equal(first, second_view(images(4), generator(0, "view", 1)))
    assert not torch.equal(first, second_view(images(4), generator(0, "view", 2)))
    other = images(4)
    other[1:] = 0
    assert torch.equal(second_view(other, generator(0, "view", 1))[0], first[0])


def test_a_second_view_shows_half_of_an_image_or_more_and_nothing_else():
    across = torch.linspace(0, 1, 16).expand(200, 3, 16, 16)
    view = second_view(across, generator(0, "view"))
    assert view.min() >= 0
    assert view.max() <= 1
    shown = (view[:, 0, 0, -1] - view[:, 0, 0, 0]) / (across[0, 0, 0, -1] - across[0, 0, 0, 0])
    assert 0.5**0.5 - 0.05 < shown.abs().min() < 0.75  # half a pixel at the border is repeated
    assert 0.95 < shown.abs().max() <= 1 + 1e-4
    assert 60 < (shown < 0).sum() < 140  # mirrored


def test_an_adapter_gives_the_same_direction_for_features_of_any_length():
    adapter = Adapter(12, 0.4, seed=0, name="text")
    features = torch.randn(5, 12, generator=generator(0, "features"))
    long = F.normalize(adapter(7 * features), dim=-1)
    torch.testing.assert_close(F.normalize(adapter(features), dim=-1), long)


def adapted(model: Any) -> tuple[Tensor, Any]:
    """Image features of the images and the function that makes rows of names, by hand."""
    raw = model.backbone.project(model.backbone.features(images())) + model.image_shift
    image = F.normalize(model.consistency.image(raw), dim=-1)

    def rows(names: list[str]) -> Tensor:
        raw = model.text.features([f"a photo of a {name}." for name in names]) + model.text_shift
        return F.normalize(model.consistency.text(raw), dim=-1)

    return image, rows


@torch.no_grad()
def test_adapters_stand_before_logits_of_classes_and_of_any_names():
    model = made("consistency", anchor_adapt_image=0.5, anchor_adapt_text=0.5).eval()
    image, rows = adapted(model)
    expected = model.backbone.scale * image @ rows(["red bird", "fish"]).T
    torch.testing.assert_close(model(images())[:, 2:4], expected)
    expected = model.backbone.scale * image @ rows(["horse", "fish"]).T
    torch.testing.assert_close(model.name_logits(images(), ["horse", "fish"]), expected)
    torch.testing.assert_close(model.open_rows([3, 4])[0], rows(["fish", "lamp"]))


@torch.no_grad()
def test_rows_are_stored_as_the_adapter_makes_them_and_stay():
    model = made("consistency", anchor_adapt_text=0.5).eval()
    expected = adapted(model)[1](["red bird", "fish"])
    model.end_experience()
    torch.testing.assert_close(model.rows[2:4], expected)
    before = model.rows[2:4].clone()
    model.consistency.text.up.mul_(-2)
    assert torch.equal(model.rows[2:4], before)


@torch.no_grad()
def test_unprompted_features_know_no_adapter():
    model = made("consistency", anchor_adapt_image=0.5).eval()
    plain = construct(Moved, tiny_image_text()).eval()
    assert torch.equal(model.features(images()), plain.features(images()))


def test_features_stay_as_long_as_no_adapter_changes_them():
    backbone = tiny_image_text()
    assert construct(CoOpModel, backbone, length=2, anchor="self_regulation").features_stay
    assert not construct(CoOpModel, backbone, length=2, anchor="consistency").features_stay


# ------------------------------------------------------------------------------------------ promises


@cache
def bench() -> Workbench:
    """Two anchors, one with adapters, and the averaging of prompts on one method."""
    return Workbench(
        CoOpModel,
        plugins=[SelfRegulation()],
        length=4,
        mask="experience",
        anchor="consistency",
        trajectory=True,
    )


HELD = [
    testing.check_frozen_backbone,
    testing.check_batch_companions,
    testing.check_cache,
    testing.check_autocast,
    *state.CHECKS,
]


@pytest.mark.parametrize("check", HELD, ids=lambda check: check.__name__.removeprefix("check_"))
def test_an_anchored_method_keeps_its_promises(check):
    check(bench())


# ------------------------------------------------------------------------------------------ refusals


def construction(**arguments: Any) -> Any:
    method = arguments.pop("method", CoOpModel)
    if method.needs_text:
        return construct(method, tiny_image_text(), **arguments)
    return construct(method, tiny_vit(), **arguments)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a method without text": (
        {"method": LinearProbeModel, "anchor": "direction"},
        "anchor=direction: LinearProbeModel learns no texts that could be anchored",
    ),
    "a method that trains nothing": (
        {"method": ZeroShotModel, "anchor": "self_regulation"},
        "anchor=self_regulation: ZeroShotModel learns no texts",
    ),
    "rows without a text": (
        {"residual": True, "anchor": "self_regulation"},
        "needs one learned text for each class, but residual=true trains rows without a text",
    ),
    "several contexts": (
        {"contexts": 2, "length": 2, "anchor": "consistency"},
        "contexts give a class several",
    ),
    "a gate": (
        {"gate": (("a {}.",), ("the {}.",)), "anchor": "consistency"},
        "gate and contexts give a class several",
    ),
    "frozen rows": (
        {"method": Moved, "rows": "frozen", "anchor": "self_regulation"},
        "anchor=self_regulation needs rows=kept or live, got frozen",
    ),
    "an unknown anchor": ({"anchor": "self_regularization"}, "anchor must be .*self_regulation.*got"),
    "a weight below 0": (
        {"anchor": "consistency", "anchor_text_weight": -1.0},
        "anchor_text_weight must be .*at least 0.*got -1",
    ),
    "a share above 1": (
        {"anchor": "consistency", "anchor_adapt_text": 1.5},
        "anchor_adapt_text must be .*got 1.5",
    ),
    "a setting of another anchor": (
        {"anchor": "direction", "anchor_image_weight": 2.0},
        "anchor_image_weight belongs to anchor=self_regulation or consistency, got anchor=direction",
    ),
    "a setting of no anchor": ({"anchor_texts": "a {}."}, "anchor_texts belongs to anchor, which is null"),
    "a setting of none of several": (
        {"anchor": ["direction", "equal_shifts"], "anchor_image_weight": 2.0},
        "belongs to anchor=self_regulation or consistency, got anchor=direction, equal_shifts",
    ),
    "one of several twice": (
        {"anchor": ["direction", "direction"]},
        r'anchor names one twice: \["direction", "direction"\]',
    ),
    "no such texts": (
        {"anchor": "consistency", "anchor_texts": "imagenet_8"},
        "anchor_texts: there is no file imagenet_8.*imagenet_80",
    ),
    "an anchor twice": (
        {"anchor": "direction", "plugins": [Direction()]},
        'takes no plug-in called "direction": the name is taken',
    ),
    "drift that an adapter takes part in": (
        {
            "method": Moved,
            "anchor": "consistency",
            "plugins": [Statistics("lda", compensate_drift=True)],
        },
        "compensate_drift=true and consistency exclude each other",
    ),
}


@pytest.mark.parametrize(("arguments", "words"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_anchored_is_refused_in_one_line(arguments, words):
    with pytest.raises(ConfigError, match=words) as caught:
        construction(**arguments)
    assert "\n" not in str(caught.value)


def test_a_configuration_names_the_key_of_an_anchor_that_serves_nobody():
    with pytest.raises(ConfigError, match=r"strategy\.anchor: strategy zero_shot learns no texts"):
        config.named({"name": "zero_shot", "anchor": "direction"}, "strategy")
    with pytest.raises(ConfigError, match=r"strategy\.anchor_shift_weight must be .*got -1"):
        config.named({"name": "coop", "anchor": "equal_shifts", "anchor_shift_weight": -1}, "strategy")
    assert not {"anchor", "trajectory"} & set(config.named({"name": "ncm"}, "strategy"))


def test_class_means_need_the_images_of_an_experience():
    model = construct(Moved, tiny_image_text(), anchor="direction")
    model.name_classes(NAMES)
    with pytest.raises(ProtocolError, match=r"call begin_experience\(classes, samples\)"):
        model.begin_experience([2, 3])
    model.observe(torch.tensor([2, 3]))
    with pytest.raises(ProtocolError, match="no class means: no experience showed these classes"):
        step(model)


def test_class_means_need_experiences():
    model = construct(Moved, tiny_image_text(), anchor="direction", mask="seen")
    with pytest.raises(ConfigError, match="direction needs to know where experiences begin and end"):
        model.check_online()


@pytest.mark.parametrize("anchor", ["equal_shifts", "direction"])
def test_what_reads_labels_takes_neither_label_sets_nor_mixed_images(anchor):
    backbone = tiny_image_text()
    backbone.logit_bias = -1.0
    model = made(anchor, backbone=backbone)
    with pytest.raises(ProtocolError, match=f"{anchor} needs one label per image"):
        model.training_loss(images(2), torch.tensor([[0, 0, 1, 1], [0, 0, 0, 1]]))
    held = Workbench(CoOpModel, length=4, anchor=anchor)
    held.training = lambda epochs=1: Training(train_mb_size=8, mixup=0.5)  # type: ignore[method-assign]
    with pytest.raises(ConfigError, match=rf"training\.mixup must be 0: {anchor} reads the label"):
        held.engine(held.make(), online=False)


def test_sentences_that_lack_a_class_are_refused_before_it_is_trained_on(tmp_path):
    path = tmp_path / "sentences.json"
    path.write_text('{"cat": ["it purrs"]}')
    model = construct(Moved, tiny_image_text(), anchor="self_regulation", anchor_texts=str(path))
    model.name_classes(NAMES)
    with pytest.raises(ConfigError, match=f'anchor_texts {path} says nothing of class "dog"'):
        model.check_stream([[0], [1]])
    with pytest.raises(ConfigError, match='says nothing of class "dog"'):
        model.begin_experience([1])
    assert not bool(model.open)


def test_texts_that_are_too_long_for_the_tower_are_refused_with_their_length():
    model = construct(Moved, tiny_image_text(), anchor="self_regulation", anchor_texts="a {} " + "very " * 30)
    model.name_classes(NAMES)
    with pytest.raises(ConfigError, match=r"anchor_texts a \{\} very .* 34 tokens"):
        model.begin_experience([1])
