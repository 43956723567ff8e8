"""Both towers of an image-text model against values of released code."""

from __future__ import annotations

import pytest
import torch
from golden_files import Golden
from image_text import golden_backbone, golden_names
from torch.nn.functional import normalize


@pytest.fixture(params=[torch.float64, torch.float32], ids=["float64", "float32"])
def golden(request: pytest.FixtureRequest) -> Golden:
    return Golden("clip", request.param)


def test_texts_have_the_ids_of_the_file(golden):
    text = golden_backbone(golden).text
    tokens = text.tokens([f"a photo of a {name} ." for name in golden_names(golden)])
    expected = golden["text.ids"]
    assert torch.equal(tokens.ids, expected[:, : tokens.ids.shape[1]])
    assert torch.equal(tokens.ends, expected.argmax(1))


def test_zero_shot_features_and_logits(golden):
    backbone = golden_backbone(golden)
    images = backbone.project(backbone.features(golden["eval_images"]))
    texts = backbone.text.features([f"a photo of a {name}." for name in golden_names(golden)])
    golden.check(images, "zero_shot.image_features")
    golden.check(texts, "zero_shot.text_features")
    golden.check(backbone.scale * normalize(images) @ normalize(texts).T, "zero_shot.logits")


def test_ensembles_of_templates(golden):
    backbone = golden_backbone(golden)
    ids = golden["ensemble.ids"]  # [templates, classes, L]
    features = torch.stack(
        [backbone.text.run(backbone.text.embed(rows), rows.argmax(1)) for rows in ids]
    )  # [templates, classes, E]
    golden.check(features, "ensemble.features")
    golden.check(normalize(normalize(features, dim=-1).mean(0), dim=-1), "ensemble.weights")
    golden.check(normalize(features.mean(0), dim=-1), "ensemble.weights_raw_mean")


@pytest.mark.parametrize("position", ["end", "middle", "front"])
def test_a_learned_context_in_each_position_of_the_name(golden, position):
    """Of prefix and own rows, as a strategy puts them together."""
    backbone = golden_backbone(golden)
    text = backbone.text
    tokens = text.tokens([f"X X X X {name}." for name in golden_names(golden)])
    words, context = text.embed(tokens.ids), golden["coop.ctx"]
    first = {"end": 4, "middle": 2, "front": 0}[position]
    prefix = torch.cat([words[0, :1], context[:first]])[None]
    lengths = tokens.ends - 6  # of the names: start, four words, name, ".", end
    rows = [
        torch.cat([row[5 : 5 + size], context[first:], row[5 + size :]])
        for row, size in zip(words, lengths.tolist(), strict=True)
    ]
    features = text.prompted(prefix, torch.stack(rows), tokens.ends - 1 - first)
    golden.check(features, f"coop.{position}.text_features")


@pytest.mark.parametrize("learned", [2, 3])
def test_deep_prompts_of_the_text_tower(golden, learned):
    backbone = golden_backbone(golden)
    text = backbone.text
    tokens = text.tokens([f"a photo of a {name}." for name in golden_names(golden)])
    words = text.embed(tokens.ids)
    if learned == 2:
        first, key = golden["maple.ctx"], "maple.text_features"
        deep = {block: golden[f"maple.compound_prompts_text.{block - 1}"] for block in (1, 2)}
    else:
        first, key = golden["promptsrc.text.0"], "promptsrc.text_features"
        deep = {block: golden[f"promptsrc.text.{block}"] for block in (1, 2)}
    prefix = torch.cat([words[0, :1], first, words[0, 1 + learned : 5]])[None]
    features = text.prompted(prefix, words[:, 5:], tokens.ends - 5, deep)
    golden.check(normalize(features, dim=-1) if learned == 3 else features, key)
