"""zero_shot: texts of names, pairs, the search over texts and the feature cache, class-incrementally."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from image_text import tiny_image_text

from clprompt.errors import ConfigError, DataError, DataWarning, ProtocolError
from clprompt.prompting.text.sources import fill
from clprompt.seeding import generator
from clprompt.strategies.zero_shot.cache import FeatureCache, prediction_similarity
from clprompt.strategies.zero_shot.model import ZeroShotModel
from clprompt.strategies.zero_shot.search import fitness_of, search
from clprompt.testing.bench import tiny_vit

NAMES: dict[int, Any] = {0: "cat", 1: "dog", 2: "red_panda", 3: ["fish", "trout"], 4: "oak"}
TEMPLATES = ["a photo of a {}.", "the {}", "one {} on a table", "{} again"]
BACKBONE = tiny_image_text()


def images(count: int = 10, seed: int = 0):
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


def made(*, names=NAMES, cls=ZeroShotModel, **arguments: Any) -> ZeroShotModel:
    model = cls(BACKBONE, **arguments)
    model.name_classes(names)
    return model


def seen(model: ZeroShotModel, classes=range(5)) -> ZeroShotModel:
    model.observe(torch.tensor(list(classes)))
    return model.eval()


def samples(classes, count: int = 12):
    targets = torch.tensor(list(classes)).repeat(count)[:count]
    batch = images(count, seed=1 + sum(classes))
    return lambda: iter([(batch[:7], targets[:7]), (batch[7:], targets[7:])])


def lived(model: ZeroShotModel, *experiences) -> ZeroShotModel:
    for classes in experiences:
        model.begin_experience(classes, samples(classes))
        model.observe(torch.tensor(classes))
        model.end_experience()
    return model.eval()


def file(tmp_path: Path, values, name: str = "texts.json") -> str:
    path = tmp_path / name
    path.write_text(json.dumps(values))
    return str(path)


def sentences(names=NAMES) -> dict[str, list[str]]:
    first = [name if isinstance(name, str) else name[0] for name in names.values()]
    return {name: [f"{name} number {i}" for i in range(3)] for name in first}


def all_pairs(count: int = 5) -> list[dict[str, Any]]:
    first = ["cat", "dog", "red panda", "fish", "oak"][:count]
    return [
        {"classes": [a, b], "prompts": {a: [f"{a} unlike {b}", f"{a} a"], b: [f"{b} unlike {a}"]}}
        for i, a in enumerate(first)
        for b in first[:i]
    ]


def rows_of(texts: list[str]):
    return F.normalize(F.normalize(BACKBONE.text.features(texts), dim=-1).mean(0), dim=-1)


# ------------------------------------------------------------------------------------------------- texts


def test_nothing_is_trained_and_a_state_holds_rows_and_names_alone():
    model = seen(made())
    assert model.trainable() == {}
    assert model.boundaries == "unused"
    step = model.train().training_loss(images(4), torch.tensor([0, 1, 2, 3]))
    assert step.terms == {}
    assert not step.loss.requires_grad


def test_other_names_get_the_logits_that_they_would_get_as_classes():
    model = seen(made())
    shown = ["cat", "dog", "red panda", "fish", "oak"]
    torch.testing.assert_close(model.name_logits(images(), shown), model(images()))
    one = model.name_logits(images(), ["oak", "never trained", "cat"])
    torch.testing.assert_close(one[:, [0, 2]], model(images())[:, [4, 0]])


@pytest.mark.parametrize("extra", [{}, {"ensemble": "raw"}, {"templates": True}, {"descriptions": True}])
def test_a_column_depends_neither_on_other_classes_nor_on_their_order(tmp_path: Path, extra):
    extra = dict(extra)
    if "templates" in extra:
        extra["templates"] = file(tmp_path, TEMPLATES)
    if "descriptions" in extra:
        extra["descriptions"] = file(tmp_path, sentences())
    few, many = made(**extra), made(**extra)
    few.observe(torch.tensor([2, 1]))
    logits = few.eval()(images())[:, 1:3]
    for classes in ([4], [1, 0], [3, 2]):
        many.observe(torch.tensor(classes))
    torch.testing.assert_close(many.eval()(images())[:, 1:3], logits)


def test_synonyms_take_part_where_they_are_asked_for():
    texts = ["a photo of a fish.", "a photo of a trout."]
    torch.testing.assert_close(seen(made()).rows[3], rows_of(texts[:1]))
    torch.testing.assert_close(seen(made(synonyms=True)).rows[3], rows_of(texts))


def test_sentences_are_found_under_any_name_of_a_class(tmp_path: Path):
    given = sentences() | {"trout": ["it swims"]}
    del given["fish"]
    model = seen(made(descriptions=file(tmp_path, given)))
    torch.testing.assert_close(model.rows[3], rows_of(["it swims"]))


def test_a_name_that_no_file_describes_falls_back_to_the_template(tmp_path: Path):
    model = made(descriptions=file(tmp_path, sentences()))
    torch.testing.assert_close(model.frozen_rows(["lion"])[0], rows_of(["a photo of a lion."]))


@pytest.mark.parametrize("key", ["descriptions", "candidates"])
def test_a_class_without_sentences_is_refused_with_the_nearest_name(tmp_path: Path, key):
    given = sentences()
    given["red pnda"] = given.pop("red_panda")
    with pytest.raises(ConfigError, match='no sentences of class "red panda"; did you mean "red pnda"'):
        made(**{key: file(tmp_path, given)})


@pytest.mark.parametrize("key", ["descriptions", "pairs"])
def test_names_in_a_file_that_are_no_classes_are_told_once(tmp_path: Path, key):
    strange = {"classes": ["catt", "cat"], "prompts": {"cat": ["x"], "catt": ["y"]}}
    given = sentences() | {"catt": ["x"]} if key == "descriptions" else [*all_pairs(), strange]
    model = ZeroShotModel(BACKBONE, **{key: file(tmp_path, given)})
    with pytest.warns(DataWarning, match='"catt" is no name of a class; did you mean "cat"'):
        model.name_classes(NAMES)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.name_classes(NAMES)


LONG = "very " * 30


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("template", LONG + "{}"),
        ("templates", ["{}", LONG + "{}"]),
        ("candidates", ["{}", LONG + "{}"]),
        ("descriptions", sentences() | {"oak": [LONG]}),
        ("candidates", sentences() | {"oak": [LONG]}),
        ("pairs", [{"classes": ["cat", "dog"], "prompts": {"cat": [LONG], "dog": ["x"]}}]),
    ],
)
def test_a_text_that_does_not_fit_is_refused_before_training(tmp_path: Path, key, values):
    with pytest.raises(ConfigError, match=rf"^{key}.* tokens long") as error:
        made(**{key: values if key == "template" else file(tmp_path, values)})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "keys",
    [
        ("templates", "descriptions"),
        ("templates", "candidates"),
        ("descriptions", "candidates"),
        ("pairs", "candidates"),
    ],
)
def test_two_sources_at_once_are_refused(tmp_path: Path, keys):
    with pytest.raises(ConfigError, match=f"give {keys[0]} or {keys[1]}, not both"):
        made(**{key: file(tmp_path, TEMPLATES) for key in keys})


def test_pairs_and_a_cache_at_once_are_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match="pairs or cache_size"):
        made(pairs=file(tmp_path, all_pairs()), cache_size=2)


def test_a_backbone_without_text_is_refused():
    with pytest.raises(ConfigError, match="needs a backbone with a text tower"):
        ZeroShotModel(tiny_vit())


# ------------------------------------------------------------------------------------------------- pairs


def test_pairs_decide_between_the_best_classes_and_others_keep_their_order_behind(tmp_path: Path):
    model, plain = seen(made(pairs=file(tmp_path, all_pairs()), top_k=2)), seen(made())
    told, logits, scale = model(images()), plain(images()), BACKBONE.scale
    order = logits.argsort(1, descending=True)
    for row, (first, second, *others) in zip(told, order.tolist(), strict=True):
        assert {first, second} == set(row.topk(2).indices.tolist())
        assert row[others].tolist() == sorted(row[others].tolist(), reverse=True)
        assert row[others].max() < -scale <= row[[first, second]].min()


def test_all_classes_among_the_best_take_every_pair(tmp_path: Path):
    model = seen(made(pairs=file(tmp_path, all_pairs()), top_k=10))
    texts = [f"cat unlike {other}" for other in ("dog", "red panda", "fish", "oak")]
    other_way = [e["prompts"]["cat"] for e in all_pairs() if "cat" in e["classes"]]
    row = rows_of([line for lines in other_way for line in lines])
    assert [lines[0] for lines in other_way] == texts
    features = model.encode(images()).features
    torch.testing.assert_close(model(images())[:, 0], BACKBONE.scale * features @ row)


def test_a_pair_that_is_missing_gets_the_texts_of_the_class_with_one_notice(tmp_path: Path):
    model = seen(made(pairs=file(tmp_path, all_pairs(4))))
    with pytest.warns(DataWarning, match="lacks 8 of the pairs, such as") as told:
        logits = model(images())
    assert len(told) == 1
    torch.testing.assert_close(logits[:, 4], seen(made())(images())[:, 4])


def test_one_seen_class_has_no_pair(tmp_path: Path):
    model = seen(made(pairs=file(tmp_path, all_pairs())), [1])
    torch.testing.assert_close(model(images())[:, 1], seen(made(), [1])(images())[:, 1])


# ------------------------------------------------------------------------------------------------ search


def test_a_search_finds_the_best_set_of_a_few():
    target = {0, 3, 4}

    def score(chosen):
        return -float(len(target ^ set(chosen[0])))

    best = search([6], score, draws=generator(0, "test"), budget=63, population=4)
    assert best[0] == (0.0, ((0, 3, 4),))
    assert [scored.score for scored in best] == sorted((s.score for s in best), reverse=True)


def test_a_search_scores_no_set_twice_none_that_is_empty_and_no_more_than_its_budget():
    tried = []

    def score(chosen):
        tried.append(chosen)
        return 0.0

    search([3, 1], score, draws=generator(0, "test"), budget=5, population=3)
    assert len(tried) == 5
    search([3, 1], score, draws=generator(0, "test"), budget=1000, population=3)
    assert sorted(set(tried[5:])) == sorted(tried[5:])
    assert len(tried[5:]) == 7  # all that there are: 7 subsets of three, one of one
    assert all(texts for chosen in tried for texts in chosen)


def test_fitness_is_the_share_of_right_images_or_that_of_proapo():
    logits = torch.tensor([[2.0, 1, 0, -1, -2, -3], [0, 1, 2, 3, 4, 5], [1, 0, 0, 0, 0, 2]])
    labels = torch.tensor([0, 0, 5])
    entropy = F.cross_entropy(logits.double(), labels).item()
    assert fitness_of(logits, labels, "top1", sentences=False) == pytest.approx(2 / 3)
    accuracies = (0.5 * 200 / 3 + 0.05 * 200 / 3, 0.2 * 200 / 3)
    for sentences_, share in zip((False, True), accuracies, strict=True):
        found = fitness_of(logits, labels, "proapo", sentences=sentences_)
        assert found == pytest.approx(share - 10 * entropy)


def searched(tmp_path: Path, values=TEMPLATES, *, cls=ZeroShotModel, budget: int = 15, **arguments):
    arguments = {"budget": budget, "population": 3} | arguments
    return made(candidates=file(tmp_path, values, "c.json"), cls=cls, **arguments)


@pytest.mark.parametrize("fitness", ["top1", "proapo"])
def test_the_chosen_templates_score_at_least_as_all_of_them(tmp_path: Path, fitness):
    found = lived(searched(tmp_path, fitness=fitness), [0, 1, 2])
    everything = seen(made(templates=file(tmp_path, TEMPLATES)), [0, 1, 2])
    batch = list(samples([0, 1, 2])())
    scores = []
    for model in (found, everything):
        logits = torch.cat([model(part) for part, _ in batch])[:, :3]
        scores.append(fitness_of(logits, torch.cat([t for _, t in batch]), fitness, sentences=False))
    assert scores[0] >= scores[1]
    assert found.best_sets[0][0] == pytest.approx(scores[0], abs=1e-4)
    texts = [fill(template, "cat") for template in found.best_sets[0][1]]
    torch.testing.assert_close(found.rows[0], rows_of(texts))


@pytest.mark.parametrize("values", [TEMPLATES, sentences()], ids=["templates", "sentences"])
def test_rows_of_old_classes_keep_their_bits(tmp_path: Path, values):
    model = lived(searched(tmp_path, values), [0, 1])
    before = model.rows[:2].clone()
    lived(model, [2, 3], [4])
    assert torch.equal(model.rows[:2], before)
    assert bool((model.rows.norm(dim=1) - 1).abs().max() < 1e-5)


@pytest.mark.parametrize("values", [TEMPLATES, sentences()], ids=["templates", "sentences"])
def test_seen_classes_answer_beside_those_to_come_by_the_rows_that_were_chosen(tmp_path: Path, values):
    model = lived(searched(tmp_path, values), [0, 1], [2])
    rows, frozen = model.open_rows([0, 1, 2, 3])
    assert torch.equal(rows[:3], model.rows[:3])
    assert torch.equal(rows[3], frozen[3])


def test_sentences_are_chosen_class_by_class(tmp_path: Path):
    model = lived(searched(tmp_path, sentences()), [0, 1])
    subsets = [[0], [1], [2], [0, 1], [0, 2], [1, 2], [0, 1, 2]]
    for c, name in enumerate(("cat", "dog")):
        options = [rows_of([f"{name} number {i}" for i in subset]) for subset in subsets]
        assert min(float((model.rows[c] - row).abs().max()) for row in options) < 1e-5


@pytest.mark.parametrize("values", [TEMPLATES, sentences()], ids=["templates", "sentences"])
def test_a_search_continues_from_its_saved_state_to_the_bit(tmp_path: Path, values):
    model = lived(searched(tmp_path, values, cache_size=2), [0, 1])
    other = searched(tmp_path, values, cache_size=2)
    other.load_state_dict(model.method_state())
    lived(model, [2, 3]), lived(other, [2, 3])
    ours, theirs = model.method_state(), other.method_state()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert torch.equal(model(images()), other(images()))


def test_the_best_templates_so_far_are_tried_first(tmp_path: Path):
    model = lived(searched(tmp_path, budget=15), [0, 1])
    model.budget = 1
    chosen = model.best_sets[0][1]
    lived(model, [2, 3])
    assert model.best_sets[0][1] == chosen


class Proposing(ZeroShotModel):
    """Has a writer of templates, who is told what was tried."""

    told: ClassVar[list[Any]] = []
    texts: Any = ("a drawing of a {}", "a {} at sea")

    def propose(self, history):
        self.told.append(history)
        return self.texts


def test_proposed_templates_are_tried_and_may_be_chosen(tmp_path: Path):
    Proposing.told.clear()
    model = lived(searched(tmp_path, ["{}"], cls=Proposing, budget=40), [0, 1, 2])
    score, texts = Proposing.told[0][0]
    assert (score <= 1, texts) == (True, ["{}"])
    tried = {text for history in Proposing.told for _, texts in history for text in texts}
    assert tried == {"{}", *Proposing.texts}
    assert model.state_size() <= model.max_state_size(1)


@pytest.mark.parametrize(
    ("texts", "words"),
    [(["no mark"], "must hold {}"), ([3], "must give texts, got 3"), ([LONG + "{}"], "tokens long")],
)
def test_a_bad_proposal_is_one_line(tmp_path: Path, monkeypatch, texts, words):
    monkeypatch.setattr(Proposing, "texts", texts)
    with pytest.raises(ConfigError, match=rf"Proposing\.propose.*{words}"):
        lived(searched(tmp_path, cls=Proposing), [0, 1])


@pytest.mark.parametrize("arguments", [{"candidates": True}, {"cache_size": 2}])
def test_what_looks_at_images_needs_the_experience_and_its_images(tmp_path: Path, arguments):
    model = made(**{k: file(tmp_path, TEMPLATES) if k == "candidates" else v for k, v in arguments.items()})
    assert model.boundaries == "required"
    with pytest.raises(ProtocolError, match=r"begin_experience\(classes, samples\)"):
        model.begin_experience([0, 1])
    with pytest.raises(DataError, match="no images to look at"):
        made(cache_size=2).begin_experience([0, 1], lambda: iter(()))


# ------------------------------------------------------------------------------------------------- cache


def test_the_cache_keeps_the_most_confident_of_each_class_and_of_equals_the_first():
    cache = FeatureCache(2, 3)
    cache.grow(2)
    features = F.normalize(torch.randn(6, 3, generator=generator(0, "test")), dim=1)
    classes, confidence = torch.tensor([1, 1, 1, 1, 1, 0]), torch.tensor([0.5, 0.9, 0.5, 0.4, 0.5, 0.3])
    for part in (slice(0, 3), slice(3, 6)):
        cache.add(features[part], classes[part], confidence[part])
    assert torch.equal(cache.keys[1], features[[1, 0]])
    assert torch.equal(cache.keys[0, 0], features[5])
    assert cache.confidence.tolist() == [pytest.approx([0.3, 0]), pytest.approx([0.9, 0.5])]


def test_the_cache_is_bounded_and_reads_no_label():
    model, other = made(cache_size=2), made(cache_size=2)
    lived(model, [0, 1, 2])
    batch, hidden = samples([0, 1, 2]), lambda: ((x, torch.zeros_like(y)) for x, y in samples([0, 1, 2])())
    assert len(list(batch())) == 2
    other.begin_experience([0, 1, 2], hidden)
    other.observe(torch.tensor([0, 1, 2]))
    other.end_experience()
    assert torch.equal(model.cache.keys, other.cache.keys)
    assert model.cache.keys.shape == (3, 2, 12)


def test_a_cached_feature_adds_its_weight_at_most_and_old_keys_stay():
    model = lived(made(cache_size=2, cache_weight=0.5), [0, 1])
    keys = model.cache.keys[:2].clone()
    lived(model, [2, 3])
    assert torch.equal(model.cache.keys[:2], keys)
    plain = seen(made(), [0, 1, 2, 3])
    added = model(images())[:, :4] - plain(images())[:, :4]
    filled = (model.cache.confidence > 0).sum(1)[:4]
    assert bool((added >= -1e-5).all())
    assert bool(((added > 0).any(0) == (filled > 0)).all())


def test_keys_that_are_all_equally_alike_give_no_nan():
    features, rows = F.normalize(images(2).flatten(1)[:, :3], dim=1), torch.eye(3)
    assert prediction_similarity(features, features[:1].repeat(2, 1), rows).tolist() == [[2, 2], [2, 2]]


@pytest.mark.parametrize("form", ["plain", "pairs", "cache"])
def test_logits_do_not_depend_on_batch_companions(tmp_path: Path, form):
    extra = {"pairs": {"pairs": file(tmp_path, all_pairs()), "top_k": 3}, "cache": {"cache_size": 2}}
    model = made(**extra.get(form, {}))
    model = lived(model, [0, 1, 2, 3, 4]) if form == "cache" else seen(model)
    together = model(images())
    alone = torch.cat([model(image[None]) for image in images()])
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-4)
