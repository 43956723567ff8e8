"""zero_shot against the golden values: one template, ensembles, CuPL, FuDD, TFUP."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from devices import DEVICE
from golden_files import Golden
from image_text import golden_backbone, golden_names

from clprompt.prompting.text.sources import ensemble_rows
from clprompt.strategies.zero_shot.cache import affinity, prediction_similarity
from clprompt.strategies.zero_shot.model import ZeroShotModel


@pytest.fixture(params=[torch.float64, torch.float32], ids=["float64", "float32"])
def golden(request: pytest.FixtureRequest) -> Golden:
    return Golden("clip", request.param)


def sentences(golden: Golden, ids) -> list[str]:
    """Texts whose ids are these, without start and end."""
    words = [str(word) for word in golden.arrays["config.words"]]
    return [
        " ".join(words[i - 1] for i in row if 0 < i <= len(words)) for row in ids.reshape(-1, 16).tolist()
    ]


def model(golden: Golden, **arguments) -> ZeroShotModel:
    made = ZeroShotModel(golden_backbone(golden), template="a photo of a {} .", **arguments)
    made.to(DEVICE, golden.dtype)
    made.name_classes(dict(enumerate(golden_names(golden))))
    made.observe(torch.arange(6))
    return made.eval()


def written(path: Path, values) -> str:
    path.write_text(json.dumps(values))
    return str(path)


def test_one_template_gives_the_zero_shot_logits(golden: Golden):
    golden.check(model(golden)(golden["eval_images"]), "zero_shot.logits")


@pytest.mark.parametrize(("rule", "key"), [("normalised", "weights"), ("raw", "weights_raw_mean")])
def test_an_ensemble_gives_the_rows_of_its_rule(golden: Golden, tmp_path: Path, rule, key):
    first = sentences(golden, golden["ensemble.ids"][:, 0])
    templates = written(tmp_path / "t.json", [text.replace("cat", "{}") for text in first])
    ensemble = model(golden, templates=templates, ensemble=rule)
    golden.check(ensemble.rows, f"ensemble.{key}")
    features = golden["ensemble.features"].transpose(0, 1).reshape(-1, 16)
    golden.check(ensemble_rows(features, [3] * 6, rule), f"ensemble.{key}")
    if rule == "normalised":
        golden.check(ensemble(golden["eval_images"]), "ensemble.logits")


def described(golden: Golden) -> dict[str, list[str]]:
    texts = iter(sentences(golden, golden["cupl.ids"]))
    counts = golden["cupl.counts"].tolist()
    return {
        name: [next(texts) for _ in range(n)] for name, n in zip(golden_names(golden), counts, strict=True)
    }


def test_descriptions_give_the_rows_and_logits_of_cupl(golden: Golden, tmp_path: Path):
    cupl = model(golden, descriptions=written(tmp_path / "d.json", described(golden)))
    golden.check(cupl.rows, "cupl.weights")
    golden.check(cupl(golden["eval_images"]), "cupl.logits")


def test_pairs_give_the_cosines_of_fudd(golden: Golden, tmp_path: Path):
    names = golden_names(golden)
    entries = []
    for (a, b), ids in zip(golden["fudd.pairs"].tolist(), golden["fudd.ids"], strict=True):
        of_both = {names[c]: sentences(golden, side) for c, side in zip((a, b), ids, strict=True)}
        entries.append({"classes": [names[a], names[b]], "prompts": of_both})
    fudd = model(golden, pairs=written(tmp_path / "p.json", entries), top_k=3)
    cosines = fudd(golden["eval_images"]) / fudd.backbone.scale  # of others: below -1
    golden.check(cosines.masked_fill(cosines < -1.5, -torch.inf), "fudd.cosines")


def test_the_cache_gives_the_logits_of_tfup(golden: Golden):
    features = F.normalize(golden["zero_shot.image_features"], dim=-1)
    keys, rows, values = golden["tfup.keys"], golden["ensemble.weights"], golden["tfup.values"]
    golden.check(prediction_similarity(features, keys, rows), "tfup.similarity")
    golden.check(100 * features @ rows.T + affinity(features, keys, rows) @ values, "tfup.logits")


def test_the_model_with_a_filled_cache_adds_what_tfup_adds(golden: Golden, tmp_path: Path):
    first = sentences(golden, golden["ensemble.ids"][:, 0])
    templates = written(tmp_path / "t.json", [text.replace("cat", "{}") for text in first])
    cached = model(golden, templates=templates, cache_size=2)
    classes = golden["tfup.values"].argmax(1)
    cached.cache.add(golden["tfup.keys"], classes, torch.tensor([0.9, 0.8, 0.7, 0.6], device=DEVICE))
    features = F.normalize(cached.backbone.project(cached.backbone.features(golden["eval_images"])), dim=-1)
    logits = cached(golden["eval_images"]) + (100 - cached.backbone.scale) * features @ cached.rows.T
    golden.check(logits, "tfup.logits")
