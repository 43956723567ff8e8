"""CoOp, class-incrementally: what its options promise, and what they refuse."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from image_text import NAMES, HashedWords, learn_text, tiny_image_text
from torch import Tensor

from clprompt.backbones.vit import FrozenViT
from clprompt.errors import ClpromptError
from clprompt.prompting.text import sequences
from clprompt.strategies.coop.gate import gate_loss, group_loss
from clprompt.strategies.coop.model import CoOpModel

GROUPS = (("a photo of a {}.", "a picture of {}."), ("a drawing of the {} on paper.",), ("the {}",))
#: Every option once.
FORMS: dict[str, dict[str, Any]] = {
    "plain": {"length": 4},
    "class-specific": {"length": 2, "class_specific": True, "position": "middle"},
    "words": {"init": "a photo of a", "length": 2, "encoder": "separate", "encoder_width": 3},
    "attributes": {
        "length": 2,
        "attributes": ("shape", "main color"),
        "attribute_length": 2,
        "position": "front",
    },
    "contexts": {"length": 2, "contexts": 3, "encoder": "shared", "knowledge": "a {}."},
    "gate": {"gate": GROUPS},
    "residual": {"residual": True, "knowledge": "a {}.", "knowledge_weight": 0.1},
}
PICTURES = torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(0))
learn = partial(learn_text, PICTURES.double())


@pytest.fixture(scope="module")
def backbone() -> FrozenViT:
    return tiny_image_text().double()


def made(backbone: FrozenViT, names: dict[int, str] = NAMES, **arguments: Any) -> CoOpModel:
    model = CoOpModel(backbone, **arguments)
    model.name_classes(names)
    return model.double()


@torch.no_grad()
def logits(model: CoOpModel) -> Tensor:
    return model.eval()(PICTURES.double())


def zero_shot(backbone: FrozenViT, texts_of_classes: Sequence[str]) -> Tensor:
    """Logits of pictures and texts, from the towers alone."""
    assert backbone.text is not None
    images = F.normalize(backbone.project(backbone.features(PICTURES.double())), dim=-1)
    return backbone.scale * images @ F.normalize(backbone.text.features(texts_of_classes), dim=-1).T


# ------------------------------------------------------------------------------------------------ invariants


@pytest.mark.parametrize(
    "arguments",
    [
        {"init": "a photo of a"},
        {"init": "a photo of a", "length": 1},
        {"init": "a photo of a", "class_specific": True},
        {"residual": True},
        {"residual": True, "rows": "live"},
    ],
    ids=str,
)
def test_the_words_of_a_template_give_its_zero_shot_logits(
    backbone: FrozenViT, arguments: dict[str, Any]
) -> None:
    model = made(backbone, **arguments)
    model.begin_experience(range(6))
    model.observe(torch.arange(6))
    expected = zero_shot(backbone, [f"a photo of a {name}." for name in NAMES.values()])
    torch.testing.assert_close(logits(model), expected, rtol=0, atol=1e-11)


def test_groups_of_templates_give_a_mixture_of_two_of_their_zero_shot_logits(backbone: FrozenViT) -> None:
    model = made(backbone, gate=GROUPS)
    model.begin_experience(range(6))
    model.observe(torch.arange(6))
    of_groups = torch.stack(
        [zero_shot(backbone, [group[0].replace("{}", name) for name in NAMES.values()]) for group in GROUPS],
        dim=1,
    )  # (B, G, C)
    assert model.gate is not None
    images = F.normalize(backbone.project(backbone.features(PICTURES.double())), dim=-1)
    expected = []
    for scores, image_logits in zip(images @ model.gate.weight.T + model.gate.bias, of_groups, strict=True):
        first, second = scores.argsort(descending=True)[:2]
        share = torch.sigmoid(scores[first] - scores[second])
        expected.append(share * image_logits[first] + (1 - share) * image_logits[second])
    torch.testing.assert_close(logits(model), torch.stack(expected), rtol=0, atol=1e-11)


@pytest.mark.parametrize("position", ["end", "middle", "front"])
def test_no_learned_rows_are_the_name_alone_wherever_it_stands(backbone: FrozenViT, position: str) -> None:
    text = backbone.text
    assert text is not None
    names = sequences.name_ids(text, list(NAMES.values()), ".")
    none = torch.zeros(0, text.width, dtype=torch.float64)
    found = sequences.features(text, sequences.Frame(0), names, none)
    torch.testing.assert_close(found, text.features([f"{n}." for n in NAMES.values()]), rtol=0, atol=1e-12)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("form", ["plain", "class-specific", "attributes"])
def test_text_features_are_those_of_the_whole_sequence(form: str, causal: bool) -> None:
    backbone = tiny_image_text(
        causal=causal, tokenizer=HashedWords(start_tokens=int(causal)), vocabulary=1000
    ).double()
    model = made(backbone, **FORMS[form])
    model.begin_experience(range(6))
    model.observe(torch.arange(6))
    text, length = model.text, len(model.contexts[0][0]) if model.class_specific else len(model.contexts[0])
    with torch.no_grad():
        model.contexts[0].normal_(generator=torch.Generator().manual_seed(1))
    whole = torch.full((6, text.length), text.tokenizer.padding)
    rows = text.embed(whole).clone()
    ends = []
    for c, name in NAMES.items():

        def words(phrase: str) -> Tensor:
            return text.embed(sequences.word_ids(text, phrase))

        context = model.contexts[0][c] if model.class_specific else model.contexts[0]
        before = {"plain": length, "class-specific": length // 2, "attributes": 0}[form]
        tail = words(f"{name}.")[len(words(name)) :]
        ids = text.tokens([""]).ids[0]
        parts = [text.embed(ids[: text.start_rows])]
        for soft, attribute in zip(model.attributes, model.attribute_words, strict=True):
            parts += [soft, words(attribute)]
        parts += [context[:before], words(name), context[before:], tail]
        parts.append(text.embed(ids[text.start_rows : text.start_rows + 1]))
        sequence = torch.cat(parts)
        rows[c, : len(sequence)] = sequence.detach()
        ends.append(len(sequence) - 1)
    expected = text.run(rows, torch.tensor(ends))
    torch.testing.assert_close(model.class_features(range(6))[0], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("form", FORMS)
def test_rows_of_earlier_experiences_stay_to_the_bit_and_are_loaded(backbone: FrozenViT, form: str) -> None:
    frozen = {name: value.clone() for name, value in backbone.state_dict().items()}
    model = made(backbone, **FORMS[form])
    learn(model, [0, 3])
    before, rows = logits(model), model.rows.clone()
    trained = {name: value.detach().clone() for name, value in model.trainable().items()}
    learn(model, [1, 2])
    assert torch.equal(model.rows[[0, 3]], rows[[0, 3]])
    if form != "gate":  # which goes on to choose among them
        assert torch.equal(logits(model)[:, [0, 3]], before[:, [0, 3]])
    for name, value in model.trainable().items():
        assert not torch.equal(value[: len(trained[name])], trained[name]) or form == "residual", name
    assert all(torch.equal(value, frozen[name]) for name, value in backbone.state_dict().items())
    assert all(parameter.grad is None for parameter in backbone.parameters())
    other = CoOpModel(backbone, **FORMS[form]).double()
    other.load_state_dict(model.method_state())
    assert torch.equal(logits(other), logits(model))
    assert other.names.shown(3) == "old stone house"


@pytest.mark.parametrize("form", ["plain", "contexts", "gate", "residual"])
def test_a_column_depends_on_no_other_name(backbone: FrozenViT, form: str) -> None:
    model = made(backbone, **FORMS[form], rows="live", mask="seen")
    learn(model, [0, 3], ends=False)
    few = model.name_logits(PICTURES.double(), ["cat", "red bird"])
    more = model.name_logits(PICTURES.double(), ["old stone house", "red bird", "wolf", "cat"])
    torch.testing.assert_close(few, more[:, [3, 1]], rtol=0, atol=1e-11)
    torch.testing.assert_close(few[:, 0], logits(model)[:, 0], rtol=0, atol=1e-11)


@pytest.mark.parametrize("form", FORMS)
def test_evaluation_changes_no_state_and_images_do_not_meet(backbone: FrozenViT, form: str) -> None:
    model = made(backbone, **FORMS[form], boundary_free=True)
    learn(model, [0, 3])
    state = {name: value.clone() for name, value in model.method_state().items()}
    together = logits(model)
    alone = torch.cat([model(image[None].double()) for image in PICTURES])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-11)
    model.name_logits(PICTURES.double(), ["wolf"])
    assert all(torch.equal(value, state[name]) for name, value in model.method_state().items())


def test_a_name_without_a_context_of_its_own_is_asked_in_the_template(backbone: FrozenViT) -> None:
    for arguments in ({"class_specific": True, "length": 2}, {"residual": True}):
        model = made(backbone, **arguments)
        learn(model, [0, 3])
        found = model.name_logits(PICTURES.double(), ["wolf", "cat"])
        expected = zero_shot(backbone, ["a photo of a wolf.", "a photo of a cat."])
        torch.testing.assert_close(found[:, 0], expected[:, 0], rtol=0, atol=1e-11)
        torch.testing.assert_close(found[:, 1], logits(model)[:, 0], rtol=0, atol=1e-11)
        assert not torch.allclose(found[:, 1], expected[:, 1])


# ------------------------------------------------------------------------------------------------ options


def test_all_that_an_option_adds_is_trained(backbone: FrozenViT) -> None:
    """The released code of PRE trains no network of single rows."""
    added = {
        "words": "encoder.w1",
        "attributes": "attributes.1",
        "gate": "gate.weight",
        "contexts": "contexts.2",
    }
    for form, name in added.items():
        model = made(backbone, **FORMS[form])
        before = dict(model.named_parameters())[name].detach().clone()
        learn(model, [0, 3])
        assert not torch.equal(dict(model.named_parameters())[name], before), form


def test_several_contexts_of_the_same_words_start_apart_and_one_exactly_there(backbone: FrozenViT) -> None:
    several = made(backbone, init="a photo of a", contexts=2).contexts
    assert not torch.allclose(several[0], several[1])
    assert (several[0] - several[1]).abs().max() < 0.2
    text = backbone.text
    assert text is not None
    words = text.embed(sequences.word_ids(text, "a photo of a"))
    assert torch.equal(made(backbone, init="a photo of a").contexts[0], words)


def test_a_class_starts_in_the_same_context_whenever_it_comes(backbone: FrozenViT) -> None:
    first, second = (made(backbone, class_specific=True, length=2) for _ in range(2))
    first.observe(torch.tensor([4]))
    for c in (1, 4):
        second.observe(torch.tensor([c]))
    assert torch.equal(first.contexts[0][4], second.contexts[0][4])


def test_keywords_stand_before_the_name_of_their_class(backbone: FrozenViT, tmp_path: Path) -> None:
    path = tmp_path / "keywords.json"
    path.write_text(
        json.dumps({name: ["small", "grey"] if name == "cat" else ["big"] for name in NAMES.values()})
    )
    model = made(backbone, init="a photo of a", keywords=str(path), position="middle")
    model.begin_experience(range(6))
    model.observe(torch.arange(6))
    assert model.live_rows(["wolf"]).shape == (1, backbone.joint_width)
    expected = zero_shot(backbone, ["a photo small grey cat of a."])
    torch.testing.assert_close(logits(model)[:, :1], expected, rtol=0, atol=1e-11)


def test_the_terms_of_a_gate_are_those_of_a_slow_and_plain_form() -> None:
    source = torch.Generator().manual_seed(3)
    groups, classes, width = 4, 5, 7
    features, prototypes = (
        F.normalize(torch.randn(groups, classes, width, generator=source, dtype=torch.float64), dim=-1)
        for _ in range(2)
    )
    total = 0.0
    for g in range(groups):
        for c in range(classes):
            scores = [float(features[g, c] @ prototypes[g, e]) for e in range(classes)]
            total -= scores[c] - float(torch.tensor(scores, dtype=torch.float64).exp().sum().log())
    assert float(group_loss(features, prototypes)) == pytest.approx(total / (groups * classes), abs=1e-12)

    images = F.normalize(torch.randn(3, width, generator=source, dtype=torch.float64), dim=-1)
    scores = torch.randn(3, groups, generator=source, dtype=torch.float64)
    labels = [1, 4, 1]
    total = 0.0
    for image, row, label in zip(images, scores, labels, strict=True):
        near = [float(image @ prototypes[g, label]) for g in range(groups)]
        best = sorted(range(groups), key=near.__getitem__)[-2:]
        target = torch.tensor(
            [near[g] + 10 * (g in best) for g in range(groups)], dtype=torch.float64
        ).softmax(0)
        total -= float((target * row.log_softmax(0)).sum())
    of_labels = prototypes[:, labels].transpose(0, 1)
    assert float(gate_loss(scores, images, of_labels)) == pytest.approx(total / 3, abs=1e-12)


def test_a_residual_sends_no_text_through_the_tower_in_training(
    backbone: FrozenViT, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = made(backbone, residual=True)
    learn(model, [0, 3], ends=False)
    monkeypatch.setattr(type(model.text), "run", None)
    monkeypatch.setattr(type(model.text), "prompted", None)
    model.train().training_loss(PICTURES.double(), torch.tensor([0, 3] * 3)).loss.backward()


# ------------------------------------------------------------------------------------------------ refusals

BAD: list[tuple[dict[str, Any], str]] = [
    (
        {"init": "a photo of a", "length": 5},
        'length must be at most 4, the tokens of init="a photo of a"; got 5',
    ),
    ({"init": "a photo of a", "length": 2, "position": "front"}, "position=front; got 2"),
    ({"init": " "}, 'init must be words, got " "'),
    ({"attributes": ("shape", "")}, 'attributes must be words, got ""'),
    ({"residual": True, "encoder": "shared"}, "residual=true .* leave out encoder"),
    ({"residual": True, "length": 3}, "leave out length"),
    ({"residual": True, "gate": GROUPS}, "leave out gate"),
    ({"gate": GROUPS, "contexts": 2}, "with gate, .* leave out contexts"),
    ({"gate": GROUPS[:1]}, "gate must be two groups of templates or more"),
    ({"gate": (("a {}.",), ())}, "none empty"),
    ({"gate": (("a {}.",), ("a photo",))}, 'one {} in place of the name, got "a photo"'),
    ({"length": 0}, "length must be .*at least 1"),
    ({"rows": "frozen"}, 'rows must be .*got "?frozen'),
    ({"knowledge": "nowhere.json"}, "knowledge: there is no file nowhere.json"),
    ({"keywords": "nowhere.json"}, "keywords: there is no file nowhere.json"),
]


@pytest.mark.parametrize(("arguments", "told"), BAD, ids=lambda value: str(value)[:40])
def test_an_argument_without_a_meaning_is_refused_in_one_line(
    backbone: FrozenViT, arguments: dict[str, Any], told: str
) -> None:
    with pytest.raises(ClpromptError, match=told) as caught:
        CoOpModel(backbone, **arguments)
    assert "\n" not in str(caught.value)


def test_a_name_that_does_not_fit_behind_its_context_is_refused_with_its_length(backbone: FrozenViT) -> None:
    with pytest.raises(ClpromptError, match="this text tower takes at most 20") as caught:
        made(backbone, {0: "cat", 1: "dog or horse"}, length=16)
    assert '"dog or horse" is 22 tokens long' in str(caught.value)


def test_a_class_that_a_file_says_nothing_of_is_refused(backbone: FrozenViT, tmp_path: Path) -> None:
    path = tmp_path / "words.json"
    path.write_text(json.dumps({"cat": ["small"]}))
    for key in ("keywords", "knowledge"):
        model = made(backbone, length=2, **{key: str(path)})
        model.begin_experience([0])
        model.end_experience()
        for refused in (model.begin_experience, lambda classes, model=model: model.check_stream([classes])):
            with pytest.raises(ClpromptError, match=f'{key} .*words.json says nothing of class "dog"'):
                refused([1])


def test_a_vision_only_backbone_is_refused() -> None:
    from clprompt.testing.bench import tiny_vit

    with pytest.raises(ClpromptError, match="CoOpModel needs a backbone with a text tower"):
        CoOpModel(tiny_vit())
