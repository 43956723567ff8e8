"""Class-incremental with repetition: what comes back, which samples, and what is said of the others."""

import contextlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from clprompt.errors import ConfigError, DataError
from clprompt.scenarios.repetition import RepetitionPlan, plan

BALANCED = np.random.default_rng(0).permutation(np.arange(200) % 10)


@st.composite
def labels(draw: st.DrawFn) -> np.ndarray:
    """Labels of any class sizes, in any order."""
    sizes = draw(st.lists(st.integers(4, 20), min_size=1, max_size=10))
    targets = np.repeat(np.arange(len(sizes)), sizes)
    np.random.default_rng(draw(st.integers(0, 99))).shuffle(targets)
    return targets


@st.composite
def sampled(draw: st.DrawFn) -> tuple[np.ndarray, dict[str, Any]]:
    """Labels and arguments of a stream by sampling."""
    targets = draw(labels())
    count = int(targets.max()) + 1
    return targets, {
        "experiences": draw(st.integers(1, 8)),
        "probability": draw(st.floats(0.5, 1)),
        "first_occurrence": draw(st.none() | st.floats(0.01, 0.9)),
        "samples_per_experience": draw(st.integers(count, 40)),
        "seed": draw(st.integers(0, 2**32 - 1)),
    }


@st.composite
def slotted(draw: st.DrawFn) -> tuple[np.ndarray, dict[str, Any]]:
    """Labels and arguments of a stream by slots."""
    targets = draw(labels())
    count = int(targets.max()) + 1
    slots = draw(st.integers(1, count))
    experiences = draw(st.integers(-(-count // slots), max(-(-count // slots), 3 * count // slots)))
    return targets, {"experiences": experiences, "slots": slots, "seed": draw(st.integers(0, 2**32 - 1))}


def check_classes(found: RepetitionPlan, targets: np.ndarray) -> None:
    """Experiences name the classes of their samples; each class comes, and its samples do once a time."""
    for index, classes in zip(found.indices, found.classes, strict=True):
        assert len(index) == len(np.unique(index)) > 0
        assert set(targets[index].tolist()) == set(classes)
    assert {c for classes in found.classes for c in classes} == set(range(found.num_classes))


def attempt(targets: np.ndarray, arguments: dict[str, Any]) -> RepetitionPlan:
    """The plan; another example where chance left an experience empty again and again."""
    with contextlib.suppress(ConfigError):
        return plan(targets, **arguments)
    reject()


@settings(max_examples=60, deadline=None)
@given(sampled())
def test_sampled_experiences_share_their_size_among_their_classes(
    stream: tuple[np.ndarray, dict[str, Any]],
) -> None:
    targets, arguments = stream
    found = attempt(targets, arguments)
    assert len(found) == arguments["experiences"]
    check_classes(found, targets)
    sizes = np.bincount(targets)
    for index, classes in zip(found.indices, found.classes, strict=True):
        share, rest = divmod(arguments["samples_per_experience"], len(classes))
        counts = np.bincount(targets[index], minlength=found.num_classes)
        assert all(min(sizes[c], share) <= counts[c] <= min(sizes[c], share + 1) for c in classes)
        assert sum(counts[c] > share for c in classes) <= rest


@settings(max_examples=60, deadline=None)
@given(slotted())
def test_by_slots_every_sample_comes_exactly_once(stream: tuple[np.ndarray, dict[str, Any]]) -> None:
    targets, arguments = stream
    found = plan(targets, **arguments)
    assert len(found) == arguments["experiences"]
    check_classes(found, targets)
    assert sorted(np.concatenate(found.indices)) == list(range(len(targets)))
    assert all(len(classes) <= arguments["slots"] for classes in found.classes)
    assert found.notes(targets, targets) == []


@settings(max_examples=40, deadline=None)
@given(sampled())
def test_the_groups_of_the_metrics_hold_each_class_where_it_comes_first(
    stream: tuple[np.ndarray, dict[str, Any]],
) -> None:
    targets, arguments = stream
    found = attempt(targets, arguments)
    groups = found.test_groups(targets)
    assert sorted(np.concatenate(groups)) == list(range(len(targets)))
    for t, group in enumerate(groups):
        before = {c for classes in found.classes[:t] for c in classes}
        assert set(targets[group].tolist()) == set(found.classes[t]) - before


def test_the_two_ends_of_probability_are_ordinary_streams() -> None:
    always = plan(BALANCED, experiences=4, probability=1.0, first_occurrence=1.0)
    assert all(classes == tuple(range(10)) for classes in always.classes)
    never = plan(BALANCED, experiences=3, probability=0.0)
    assert sorted(c for classes in never.classes for c in classes) == list(range(10))
    split = plan(BALANCED, experiences=5, slots=2)
    assert sorted(c for classes in split.classes for c in classes) == list(range(10))
    domains = plan(BALANCED, experiences=4, slots=10)
    assert all(classes == tuple(range(10)) for classes in domains.classes)


def test_classes_come_back_with_their_probability() -> None:
    targets = np.arange(4000) % 200
    found = plan(targets, experiences=10, probability=0.3, first_occurrence=1.0, samples_per_experience=400)
    shares = [len(classes) / 200 for classes in found.classes]
    assert shares[0] == 1
    assert 0.25 < np.mean(shares[1:]) < 0.35


def test_first_occurrences_follow_their_distribution() -> None:
    targets = np.arange(2000) % 1000

    def begins(share: float | None) -> np.ndarray:
        arguments = {"experiences": 4, "probability": 1.0, "samples_per_experience": 1000}
        found = plan(targets, first_occurrence=share, **arguments)
        return np.array([len(group) for group in found.test_groups(np.arange(1000))])

    expected = 1000 * 0.5 ** np.arange(1, 5) / (1 - 0.5**4)
    assert np.abs(begins(0.5) - expected).max() < 60
    assert np.abs(begins(None) - 250).max() < 60


def test_a_seed_means_the_same_stream_for_ever() -> None:
    found = [plan(BALANCED, seed=seed).fingerprint() for seed in (0, 0, 1)]
    assert found[0] == found[1] != found[2]
    slots = [plan(BALANCED, slots=3, seed=seed).fingerprint() for seed in (0, 0, 1)]
    assert slots[0] == slots[1] != slots[2]


def test_what_comes_never_or_several_times_is_said() -> None:
    found = plan(BALANCED, experiences=4, probability=1.0, first_occurrence=1.0)
    times = np.bincount(np.concatenate(found.indices), minlength=200)
    never, often = found.notes(BALANCED, BALANCED)
    assert never == (
        f"{(times == 0).sum()} of 200 training images take no part: every experience draws its own"
    )
    assert often == f"{(times > 1).sum()} of 200 training images come several times, at most {times.max()}"
    short = plan(BALANCED, experiences=2, probability=0.0, samples_per_experience=190).notes(BALANCED, [])
    assert short[-1].startswith("in 2 of 2 experiences there are fewer than 190 images, as their classes")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"experiences": 0}, "experiences must be at least 1, got 0"),
        ({"probability": 1.5}, "probability must be at least 0 and at most 1, got 1.5"),
        ({"first_occurrence": 0.0}, "first_occurrence must be above 0 and at most 1, got 0"),
        (
            {"experiences": 60, "probability": 0.0},
            r"scenario\.experiences=60 of 10 classes with .* was empty",
        ),
        (
            {"probability": 1.0, "first_occurrence": 1.0, "samples_per_experience": 9},
            r"scenario\.samples_per_experience must be at least 10, the classes of experience 1, got 9",
        ),
        ({"slots": 11}, r"scenario\.slots must be 1\.\.10, as the data has 10 classes, got 11"),
        (
            {"slots": 1, "experiences": 3},
            "slots must be at least 4, so that 3 experiences .* got 1",
        ),
        (
            {"slots": 10, "experiences": 21},
            "slots=10 in 21 experiences cuts class 0 into 21 parts, .* 20",
        ),
        ({"slots": 2, "probability": 0.2}, r"scenario\.probability has no meaning beside scenario\.slots"),
        ({"slots": 2, "samples_per_experience": 9}, r"samples_per_experience has no meaning beside"),
    ],
)
def test_a_mistake_is_one_line(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as told:
        plan(BALANCED, **arguments)
    assert "\n" not in str(told.value)


def test_labels_that_are_no_class_ids_are_refused() -> None:
    with pytest.raises(DataError, match="class 1 has no training sample"):
        plan(np.array([0, 2]))
