"""The evaluator on embeddings: what is searched, what stands beside it, and what it leaves alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from clprompt.errors import DataError, ProtocolError
from clprompt.metrics.measure import Accuracy, of_trained_head
from clprompt.metrics.retrieval import retrieval_scores
from clprompt.prompting.model import Encoded, PromptModel
from clprompt.strategies.linear_probe import LinearProbeModel
from clprompt.strategies.ncm import NCMModel
from clprompt.testing.bench import CLASSES, ToyImages, tiny_vit
from clprompt.training.evaluation import Evaluator

TEST = ToyImages(4, "test")


class Doubled(LinearProbeModel):
    """Offers the squares of its features."""

    encoded = 0

    def encode(self, images: Any, cached: Any = None) -> Encoded:
        type(self).encoded += len(images)
        return super().encode(images, cached)

    def embedding(self, encoded: Encoded) -> torch.Tensor:
        return encoded.features.square()


class Broken(LinearProbeModel):
    """Its embeddings are not finite."""

    def embedding(self, encoded: Encoded) -> torch.Tensor:
        return encoded.features / 0


def begun(kind: type[PromptModel], experiences: int = 1) -> PromptModel:
    model = kind(tiny_vit())
    for classes in CLASSES[:experiences]:
        model.begin_experience(classes)
        model.observe(torch.tensor(classes))
        model.end_experience()
    return model.eval()


def evaluator(**arguments: Any) -> Evaluator:
    return Evaluator(TEST, TEST.targets, TEST.groups(), batch_size=5, retrieval=True, **arguments)


@pytest.fixture(scope="module")
def model() -> PromptModel:
    return begun(Doubled)


def test_searches_are_of_what_a_method_offers_and_of_frozen_features(model):
    found = evaluator().run(model, 0, beyond=True).record()["retrieval"]
    with torch.no_grad():
        embeddings, frozen = model.embed(TEST.images), model.features(TEST.images)
    seen = np.isin(TEST.targets, CLASSES[0])
    for searches, values in ((found, embeddings), (found["frozen"], frozen)):
        for name, part in (("seen", seen), ("unseen", ~seen)):
            expected = retrieval_scores(values.numpy()[part], TEST.targets[part]).figures
            assert {key: searches[name][key] for key in expected} == pytest.approx(expected)
    assert found["seen"] != found["frozen"]["seen"]


def test_a_method_offers_its_features_by_default():
    found = evaluator().run(begun(LinearProbeModel), 0, beyond=True).record()["retrieval"]
    assert found["seen"] == found["frozen"]["seen"]


def test_what_is_kept_between_evaluations_changes_no_figure_and_stays_within_its_bound():
    kept, fresh, bounded = evaluator(), evaluator(cache_bytes=0), evaluator(cache_bytes=3000)
    for experiences in (1, 2, 3):
        model = begun(Doubled, experiences)
        records = [one.run(model, experiences - 1, beyond=True).record() for one in (kept, fresh, bounded)]
        assert records[0] == records[1] == records[2]
        assert bounded._kept_bytes <= 3000


def test_an_image_is_encoded_once_for_prediction_and_retrieval(model):
    before = Doubled.encoded
    evaluator().run(model, 0, beyond=True)
    assert Doubled.encoded - before == len(TEST)


def test_retrieval_changes_no_other_figure(model):
    with_it = evaluator().run(model, 0, beyond=True).record()
    plain = Evaluator(TEST, TEST.targets, TEST.groups(), batch_size=5).run(model, 0, beyond=True).record()
    assert {key: value for key, value in with_it.items() if key != "retrieval"} == plain


def test_periodic_evaluations_search_nothing(model):
    assert "retrieval" not in evaluator().run(model, 0).record()


def test_an_evaluation_charts_its_searches(model):
    record = {"when": "experience", "experience": 0, **evaluator().run(model, 0, beyond=True).record()}
    record["kind"] = "evaluation"
    scalars = Accuracy().scalars([record], record, CLASSES)
    for tag in ("recall_at_1", "map_at_r_unseen", "r_precision_among_all", "frozen_recall_at_8"):
        assert f"retrieval/{tag}" in scalars


def test_figures_of_a_trained_head_beside_another_keep_the_searches(model):
    record = {"when": "experience", "experience": 0, **evaluator().run(model, 0, beyond=True).record()}
    head = {"accuracy": 0.5, "groups": record["groups"], "per_class": [], "calibration_error": 0.5}
    (trained,) = of_trained_head([{"kind": "evaluation", **record, "trained_head": head}])
    assert trained["retrieval"] == record["retrieval"]


def test_an_embedding_that_is_not_finite_is_refused_in_one_line():
    with pytest.raises(ProtocolError, match=r"embedding of test image \d+ is not finite") as raised:
        evaluator().run(begun(Broken), 0, beyond=True)
    assert "\n" not in str(raised.value)


def test_closed_forms_offer_embeddings_too():
    model = NCMModel(tiny_vit())
    model.observe(torch.tensor(CLASSES[0]))
    found = evaluator().run(model.eval(), 0, beyond=True).record()["retrieval"]
    assert found["seen"]["queries"] == 4 * len(CLASSES[0])


def test_queries_that_are_left_out_are_told():
    targets = TEST.targets.copy()
    targets[0] = 99
    one = Evaluator(TEST, targets, TEST.groups(), retrieval=True)
    assert one.notes() == ["retrieval: 1 of 24 test images, each the only one of its class, are no queries"]
    assert evaluator().notes() == []


def test_a_test_set_in_which_nothing_is_to_be_found_is_refused():
    with pytest.raises(DataError, match="no query has anything to find"):
        Evaluator(TEST, np.arange(len(TEST)), TEST.groups(), retrieval=True)
