"""FrozenText: the cheap exact forms against the whole one, and what it refuses."""

from __future__ import annotations

import copy

import pytest
import torch
from image_text import HashedWords, tiny_image_text, tiny_text
from torch import Tensor

from clprompt.backbones import text as text_tower
from clprompt.backbones.text import FrozenText
from clprompt.backbones.tokenizers import WordTokenizer
from clprompt.backbones.vit import FrozenViT
from clprompt.errors import BackboneError, ConfigError

NAMES = ["cat", "red panda", "a very long name"]


@pytest.fixture(scope="module")
def text() -> FrozenText:
    return tiny_text().double()


def leaves(*shapes: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_() for shape in shapes]


def parts(text: FrozenText, context: Tensor, position: str) -> tuple[Tensor, Tensor, Tensor]:
    """Prefix, own rows and ends of prompted names: start, context and name in their order, ".", end.

    Args:
        text: the tower.
        context: [n, W], or one for each class, [C, n, W].
        position: of the name.
    """
    tokens = text.tokens([f"{name}." for name in NAMES])
    words, start = text.embed(tokens.ids), text.start_rows
    contexts = context.expand(len(NAMES), -1, -1)
    first = {"end": contexts.shape[1], "middle": contexts.shape[1] // 2, "front": 0}[position]
    prefix = torch.cat([words[:, :start], contexts[:, :first]], dim=1)
    rows = [
        torch.cat([row[start:dot], more, row[dot:]])
        for row, more, dot in zip(words, contexts[:, first:], (tokens.ends - 1).tolist(), strict=True)
    ]
    ends = tokens.ends - start + contexts.shape[1] - first
    return (prefix[:1] if context.ndim == 2 else prefix), torch.stack(rows), ends


@pytest.mark.parametrize("per_class", [False, True], ids=["shared", "class-specific"])
@pytest.mark.parametrize(
    ("position", "deep"), [("end", False), ("middle", False), ("front", False), ("end", True)]
)
def test_the_cheap_forms_equal_the_whole_one(text, position, deep, per_class):
    context, *layers = leaves((3, 4, 24) if per_class else (4, 24), (4, 24), (2, 24))
    replaced = {1: layers[0], 2: layers[1]} if deep else None
    prefix, own, ends = parts(text, context, position)
    used = [context, *layers] if deep else [context]
    cheap = text.prompted(prefix, own, ends, replaced)
    padding = own.new_zeros(len(own), text.length - prefix.shape[1] - own.shape[1], text.width)
    whole = text.run(
        torch.cat([prefix.expand(len(own), -1, -1), own, padding], dim=1), ends + prefix.shape[1], replaced
    )
    assert whole.std() > 0.1
    torch.testing.assert_close(cheap, whole, rtol=0, atol=1e-12)
    weights = torch.linspace(-1, 1, cheap.numel(), dtype=torch.float64).view_as(cheap)
    found = torch.autograd.grad((cheap * weights).sum(), used)
    expected = torch.autograd.grad((whole * weights).sum(), used)
    for a, b in zip(found, expected, strict=True):
        assert b.abs().max() > 1e-3
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_without_a_causal_mask_every_token_is_run():
    text = tiny_text(causal=False, projection="bias", tokenizer=HashedWords(1000, start_tokens=0)).double()
    (context,) = leaves((4, 24))
    prefix, own, ends = parts(text, context, "end")
    tokens = text.tokens([f"{name}." for name in NAMES])
    assert tokens.ids.shape[1] == text.length
    found = text.prompted(prefix, own, ends)  # as many rows as context and padded text: the padding is cut
    rows = torch.cat([context.expand(3, -1, -1), text.embed(tokens.ids)[:, : text.length - 4]], dim=1)
    torch.testing.assert_close(found, text.run(rows, tokens.ends + 4), rtol=0, atol=1e-12)
    cut = int(ends.max()) + 1  # what a causal tower would stop at is filled up again
    torch.testing.assert_close(text.prompted(prefix, own[:, :cut], ends), found, rtol=0, atol=1e-12)


def test_the_texts_own_words_as_context_give_the_texts_features(text):
    tokens = text.tokens([f"a photo of a {name}." for name in NAMES])
    words = text.embed(tokens.ids)
    found = text.prompted(words[:1, :5], words[:, 5:], tokens.ends - 5)
    expected = text.features([f"a photo of a {name}." for name in NAMES])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_one_class_alone_equals_the_same_among_others(text):
    tokens = text.tokens([f"a photo of a {name}." for name in NAMES])
    words = text.embed(tokens.ids)
    together = text.prompted(words[:1, :5], words[:, 5:], tokens.ends - 5)
    for index in range(len(NAMES)):
        alone = text.prompted(words[:1, :5], words[index : index + 1, 5:], tokens.ends[index : index + 1] - 5)
        torch.testing.assert_close(alone[0], together[index], rtol=0, atol=1e-12)


def test_features_are_the_same_bits_whatever_was_asked_before():
    text, other = tiny_text(), tiny_text()
    text.features(["a dog", "b", "something much longer than that"])
    assert torch.equal(text.features(["a dog", "b"]), other.features(["a dog", "b"]))
    text.features(["a dog", "b"]).zero_()
    assert torch.equal(text.features(["a dog", "b"]), other.features(["a dog", "b"]))


def test_of_many_lists_the_latest_are_kept_and_the_others_give_the_same_bits_again(monkeypatch):
    monkeypatch.setattr(text_tower, "_KEPT", 4 * 12)
    text, runs = tiny_text(), []
    monkeypatch.setattr(text, "run", lambda *rows: runs.append(rows) or FrozenText.run(text, *rows))
    first = text.features(["a", "b"])
    for asked in (["c", "d"], ["a", "b"], ["e"], ["a", "b"]):
        text.features(asked)
    assert len(runs) == 3  # ["c", "d"] has gone, which was asked for in the longest time
    assert sum(kept.numel() for kept in text._features.values()) <= 4 * 12
    text.features([str(i) for i in range(9)])  # the latest is kept, however large
    text.features([str(i) for i in range(9)])
    assert len(runs) == 4
    assert torch.equal(text.features(["a", "b"]), first)
    assert len(runs) == 5


def test_cached_features_follow_the_weights():
    text, other = tiny_text(), tiny_text(seed=1)
    before = text.features(["a dog"])
    text.load_state_dict(other.state_dict())
    assert torch.equal(text.features(["a dog"]), other.features(["a dog"]))
    twin = copy.deepcopy(text)
    twin.load_state_dict(tiny_text().state_dict())
    assert torch.equal(twin.features(["a dog"]), before)
    assert text.double().features(["a dog"]).dtype == torch.float64


def test_a_text_that_does_not_fit_is_refused_with_its_length(text):
    with pytest.raises(ConfigError, match=r'text "(w ){19}" is 21 tokens long.*at most 20'):
        text.tokens(["short", "w " * 19])
    assert text.tokens(["w " * 18]).ids.shape == (1, 20)


def test_a_prompted_text_that_does_not_fit_is_refused(text):
    prefix, own = torch.zeros(1, 17, 24).double(), torch.zeros(2, 9, 24).double()
    assert text.prompted(prefix, own, torch.tensor([2, 1])).shape == (2, 12)
    with pytest.raises(ConfigError, match=r"21 tokens does not fit.*at most 20"):
        text.prompted(prefix, own, torch.tensor([3, 1]))


def test_deep_prompts_outside_the_prefix_are_refused(text):
    with pytest.raises(ConfigError, match="block 1: 4 rows do not fit into a prefix of 4"):
        text.prompted(
            torch.zeros(1, 4, 24).double(), torch.zeros(2, 3, 24).double(), torch.tensor([2, 2]),
            {1: torch.zeros(4, 24)},
        )  # fmt: skip


def test_no_texts_have_no_features(text):
    assert text.features([]).shape == (0, 12)
    assert text.tokens([]).ids.shape[0] == 0


def test_it_is_frozen_and_stays_in_eval_mode():
    backbone = tiny_image_text()
    backbone.train()
    assert not any(module.training for module in backbone.modules())
    assert not any(parameter.requires_grad for parameter in backbone.parameters())


def test_unknown_words_are_spelled_and_unknown_characters_refused():
    words = WordTokenizer(["a", "Photo", "b", "."])
    assert words.encode("A photo. Ab") == [5, 1, 2, 4, 1, 3, 6]
    with pytest.raises(ConfigError, match='text "a z": this text tower has no token for "z"'):
        words.encode("a z")


# ------------------------------------------------------------------------------- beside an image tower


def test_a_text_tower_leaves_the_image_tower_alone():
    backbone, alone = tiny_image_text(), tiny_image_text()
    images = torch.randn(2, 3, 16, 16)
    features = FrozenViT(alone.vit).features(images)
    assert torch.equal(backbone.features(images), features)
    assert backbone.project(features).shape == (2, backbone.joint_width) == (2, 12)


def test_a_backbone_of_images_alone_projects_nothing():
    backbone = FrozenViT(tiny_image_text().vit)
    features = torch.randn(2, backbone.width)
    assert backbone.text is None
    assert backbone.joint_width == backbone.width
    assert backbone.project(features) is features
    assert (backbone.scale, backbone.logit_bias) == (1.0, None)


def test_the_fingerprint_covers_all_that_logits_are_made_of():
    backbone = tiny_image_text()
    found = {FrozenViT(backbone.vit).fingerprint(), backbone.fingerprint()}
    assert backbone.fingerprint() == tiny_image_text().fingerprint()
    backbone.projection.weight.data[0, 0] += 1
    found.add(backbone.fingerprint())
    backbone.text.positional_embedding.data[0, 0] += 1
    found.add(backbone.fingerprint())
    backbone.scale = 21.0
    found.add(backbone.fingerprint())
    backbone.logit_bias = -1.0
    assert len(found | {backbone.fingerprint()}) == 6


def test_scale_and_bias_are_part_of_the_state():
    backbone = tiny_image_text(scale=20.5)
    backbone.add_text(backbone.text, projection=backbone.projection.weight.T, scale=20.5, logit_bias=-3.0)
    other = tiny_image_text(seed=1)
    other.add_text(other.text, projection=other.projection.weight.T, scale=1.0, logit_bias=0.0)
    other.load_state_dict(backbone.state_dict())
    assert (other.scale, other.logit_bias) == (20.5, -3.0)
    assert other.fingerprint() == backbone.fingerprint()


def test_towers_that_end_in_two_spaces_are_refused():
    backbone = FrozenViT(tiny_image_text().vit)
    with pytest.raises(BackboneError, match="width 32 and text features of width 12"):
        backbone.add_text(tiny_text(), projection=None, scale=1.0)
