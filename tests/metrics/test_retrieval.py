"""Retrieval: held to golden figures, to torchmetrics, and to what they mean in small cases."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from golden_files import arrays
from torchmetrics.retrieval import RetrievalHitRate, RetrievalRPrecision

from clprompt.errors import DataError
from clprompt.metrics import retrieval
from clprompt.metrics.measure import Accuracy
from clprompt.metrics.retrieval import check_retrieval, retrieval_scores, search_all, summarise_retrieval


@pytest.fixture(scope="module")
def golden() -> tuple[np.ndarray, np.ndarray]:
    stored = arrays("semantic_proxies")
    return stored["retrieval.embeds"], stored["retrieval.labels"]


def random(count: int = 50, classes: int = 6) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    return generator.normal(size=(count, 5)), generator.integers(0, classes, count)


@pytest.mark.parametrize("figure", sorted(retrieval.FIGURES))
def test_the_figures_are_the_golden_ones(golden, figure):
    figures = retrieval_scores(*golden).figures
    assert figures[figure] == pytest.approx(
        float(arrays("semantic_proxies")[f"retrieval.{figure}"]), rel=1e-7
    )


@pytest.mark.parametrize("k", [1, 2, 4, 8])
def test_recall_is_the_hit_rate_of_torchmetrics(k):
    embeddings, labels = random()
    figures = retrieval_scores(embeddings, labels).figures
    assert figures[f"recall_at_{k}"] == pytest.approx(
        by_torchmetrics(RetrievalHitRate(top_k=k), embeddings, labels)
    )


def test_r_precision_is_that_of_torchmetrics():
    embeddings, labels = random()
    figures = retrieval_scores(embeddings, labels).figures
    assert figures["r_precision"] == pytest.approx(by_torchmetrics(RetrievalRPrecision(), embeddings, labels))


def by_torchmetrics(metric, embeddings, labels) -> float:
    unit = torch.nn.functional.normalize(torch.from_numpy(embeddings), dim=1)
    others = ~torch.eye(len(labels), dtype=torch.bool)
    same = torch.from_numpy(labels[:, None] == labels)
    queries = torch.arange(len(labels))[:, None].expand_as(same)
    return float(metric((unit @ unit.T)[others], same[others], queries[others]))


def test_map_at_r_counts_precision_at_hits_among_the_first_r():
    # the first query's neighbours by angle: another class, its own, its own
    angles = np.array([0.0, 0.1, 0.2, 0.3])
    embeddings = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    first = np.array([True, False, False, False])
    figures = retrieval_scores(embeddings, np.array([7, 3, 7, 7]), first).figures
    assert figures["map_at_r"] == pytest.approx((1 / 2) / 2)
    assert figures["r_precision"] == 0.5
    assert (figures["recall_at_1"], figures["recall_at_2"]) == (0.0, 1.0)


def test_a_duplicated_image_is_found_at_once():
    embeddings, labels = random()
    scores = retrieval_scores(np.repeat(embeddings, 2, axis=0), np.repeat(labels, 2))
    assert scores.figures["recall_at_1"] == 1.0


def test_ties_go_to_the_lower_index():
    embeddings = np.ones((4, 3))
    figures = retrieval_scores(embeddings, np.array([0, 1, 1, 0])).figures
    # nearest of 0 is 1; of 1, 2 and 3 it is 0: the last one alone finds its class
    assert figures["recall_at_1"] == 0.25


def test_length_does_not_matter_and_zero_is_no_number_gone_wrong():
    embeddings, labels = random()
    longer = embeddings * np.arange(1, len(labels) + 1)[:, None]
    assert retrieval_scores(longer, labels) == retrieval_scores(embeddings, labels)
    embeddings[3] = 0
    assert all(np.isfinite(value) for value in retrieval_scores(embeddings, labels).figures.values())


def test_few_queries_at_a_time_give_the_same_figures(monkeypatch):
    embeddings, labels = random()
    whole = retrieval_scores(embeddings, labels)
    monkeypatch.setattr(retrieval, "_CHUNK_BYTES", 8 * len(labels) * 7)
    parts = retrieval_scores(embeddings, labels)
    assert parts.figures == pytest.approx(whole.figures, rel=1e-12)


def test_a_query_without_a_second_image_of_its_class_leaves_the_means_and_is_counted():
    embeddings, labels = random(20, 3)
    alone = np.append(labels, 99)
    scores = retrieval_scores(np.vstack([embeddings, embeddings[:1]]), alone)
    assert (scores.queries, scores.left_out) == (20, 1)


def test_nothing_to_find_has_no_figures():
    assert retrieval_scores(np.eye(3), np.arange(3)) == (0, 3, {})


def test_searches_are_among_the_seen_among_all_and_among_the_unseen():
    embeddings, labels = random()
    seen = labels < 4
    searches = search_all(embeddings, labels, seen, seen)
    for name, part in (("seen", seen), ("unseen", ~seen)):
        alone = retrieval_scores(embeddings[part], labels[part])
        assert searches[name] == {"queries": int(part.sum()), "left_out": 0, **alone.figures}
    assert searches["all"]["queries"] == int(seen.sum())
    assert searches["all"]["recall_at_1"] <= searches["seen"]["recall_at_1"]


def test_a_stream_that_is_seen_to_its_end_has_one_search():
    embeddings, labels = random()
    everything = np.ones(len(labels), dtype=bool)
    searches = search_all(embeddings, labels, everything, everything)
    assert [name for name, search in searches.items() if search is not None] == ["seen"]


def record(experience: int, seen: float, later: float | None) -> dict:
    values = {"seen": seen, "all": later, "unseen": later}
    searches = {
        name: None if value is None else dict.fromkeys(retrieval.FIGURES, value)
        for name, value in values.items()
    }
    of = {"kind": "evaluation", "when": "experience", "experience": experience}
    return {**of, "retrieval": {**searches, "frozen": searches}}


def test_a_summary_is_of_the_last_experience_and_of_the_mean_of_what_was_still_to_come():
    summary = summarise_retrieval([record(0, 0.5, 0.2), record(1, 0.6, 0.4), record(2, 0.7, None)])
    assert set(summary) == set(retrieval.RETRIEVAL_METRICS)
    assert summary["recall_at_1"] == summary["frozen_recall_at_1"] == 0.7
    assert summary["map_at_r_unseen"] == summary["map_at_r_among_all"] == pytest.approx(0.3)


def test_a_run_without_retrieval_has_none_of_its_metrics():
    assert summarise_retrieval([{"kind": "evaluation", "when": "experience", "experience": 0}]) == {}
    assert "recall_at_1" not in Accuracy().shown([{"average_accuracy": 0.5}])


def test_tables_show_recall_and_that_of_frozen_features_where_a_run_has_them():
    shown = Accuracy().shown([{"average_accuracy": 0.5, "recall_at_1": 0.5, "frozen_recall_at_1": 0.4}])
    assert [shown[key] for key in ("recall_at_1", "frozen_recall_at_1")] == ["Recall@1", "frozen Recall@1"]


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (np.arange(4), "each of 4 is the only one of its class"),
        (np.eye(3, dtype=np.int64), "retrieval needs one label per image, got multi-hot targets"),
    ],
)
def test_what_has_nothing_to_find_is_refused_in_one_line(targets, message):
    with pytest.raises(DataError, match=message) as raised:
        check_retrieval(targets)
    assert "\n" not in str(raised.value)


def test_one_line_says_how_many_queries_are_left_out():
    line = "retrieval: 2 of 5 test images, each the only one of its class, are no queries"
    assert check_retrieval(np.array([0, 0, 1, 2, 0])) == line
    assert check_retrieval(np.array([0, 0, 1, 2, 0]), [np.array([0, 1])]) is None
