"""Long-tailed streams: sizes as published, images drawn by the seed, and said what is left out."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clprompt.data.plan import Plan
from clprompt.errors import ConfigError
from clprompt.scenarios import si_blurry, split

CIFAR100 = np.arange(50_000) % 100
BALANCED = np.random.default_rng(0).permutation(np.arange(200) % 10)
STREAMS = {"split": split.plan, "si_blurry": si_blurry.plan}
KINDS = ("ordered", "shuffled", "by_class_id")


def arriving(plan: Plan) -> np.ndarray:
    """The samples of a stream, ascending."""
    return np.sort(np.concatenate(plan.indices))


def sizes(plan: Plan, targets: np.ndarray) -> np.ndarray:
    """How many samples of each class arrive, [C]."""
    return np.bincount(targets[arriving(plan)], minlength=plan.num_classes)


@pytest.mark.parametrize(("imbalance", "total", "last"), [(10, 19573, 50), (50, 12608, 10), (100, 10847, 5)])
def test_by_class_id_has_the_sizes_of_the_usual_long_tailed_cifar(
    imbalance: float, total: int, last: int
) -> None:
    found = split.plan(CIFAR100, long_tail="by_class_id", imbalance=imbalance, class_order="numpy-1993")
    counts = sizes(found, CIFAR100)
    assert (counts[0], counts[-1], counts.sum()) == (500, last, total)
    assert (np.diff(counts) <= 0).all()
    assert found.classes[0][:3] == (68, 56, 78)


def test_ordered_falls_along_the_stream_whatever_its_class_order() -> None:
    for seed in (0, 1):
        found = split.plan(BALANCED, experiences=5, long_tail="ordered", imbalance=20, seed=seed)
        counts = sizes(found, BALANCED)[[c for group in found.classes for c in group]]
        assert counts.tolist() == [20, 14, 10, 7, 5, 3, 2, 1, 1, 1]
    blurry = si_blurry.plan(BALANCED, long_tail="ordered", imbalance=20, m=0)
    means = [sizes(blurry, BALANCED)[list(group)].mean() for group in blurry.classes]
    assert means == sorted(means, reverse=True)


def test_shuffled_draws_the_places_in_the_tail_and_the_images_from_the_seed() -> None:
    def found(seed: int) -> Plan:
        return split.plan(BALANCED, shuffle=False, long_tail="shuffled", imbalance=20, seed=seed)

    assert found(1).fingerprint() == found(1).fingerprint()
    assert len({tuple(sizes(found(seed), BALANCED)) for seed in range(10)}) == 10
    assert all(sorted(sizes(found(seed), BALANCED))[-1] == 20 for seed in range(10))
    images = [
        split.plan(BALANCED, shuffle=False, long_tail="ordered", imbalance=20, seed=seed).fingerprint()
        for seed in range(10)
    ]
    assert len(set(images)) == 10


@st.composite
def streams(draw: st.DrawFn) -> tuple[str, np.ndarray, dict[str, Any]]:
    """A scenario, labels of any class sizes, and a long tail that fits them."""
    counts = draw(st.lists(st.integers(1, 20), min_size=1, max_size=12))
    targets = np.repeat(np.arange(len(counts)), counts)
    np.random.default_rng(draw(st.integers(0, 99))).shuffle(targets)
    name = draw(st.sampled_from(sorted(STREAMS)))
    parts = draw(st.integers(1, len(counts) // 2 + 1))  # nearer to all, drawing homes takes many tries
    return (
        name,
        targets,
        {
            "experiences" if name == "split" else "sessions": parts,
            "seed": draw(st.integers(0, 2**32 - 1)),
            "long_tail": draw(st.sampled_from(KINDS)),
            "imbalance": draw(st.floats(1, len(targets) // len(counts))),
        },
    )


@settings(max_examples=60, deadline=None)
@given(streams())
def test_every_class_arrives_and_no_sample_twice(stream: tuple[str, np.ndarray, dict[str, Any]]) -> None:
    name, targets, arguments = stream
    found, whole = (
        STREAMS[name](targets, **{**arguments, **more})  # type: ignore[operator]
        for more in ({}, {"long_tail": None, "imbalance": None})
    )
    indices = arriving(found)
    assert len(np.unique(indices)) == len(indices)
    assert found.classes == whole.classes
    counts, mean = sizes(found, targets), len(targets) / found.num_classes
    assert (counts >= 1).all()
    assert (counts <= np.minimum(np.bincount(targets), int(mean))).all()
    left = len(targets) - len(indices)
    note = f"{left} of {len(targets)} training images take no part: a long tail ({arguments['long_tail']}, "
    assert [text.startswith(note) for text in found.notes(targets, targets)] == [True] * bool(left)


@settings(max_examples=50, deadline=None)
@given(streams(), st.floats(0, 1))
def test_a_smaller_imbalance_keeps_what_a_larger_one_keeps(
    stream: tuple[str, np.ndarray, dict[str, Any]], share: float
) -> None:
    name, targets, arguments = stream
    smaller = 1 + share * (arguments["imbalance"] - 1)
    fewer, more = (
        STREAMS[name](targets, **{**arguments, "imbalance": ratio})  # type: ignore[operator]
        for ratio in (arguments["imbalance"], smaller)
    )
    assert set(arriving(fewer)) <= set(arriving(more))


@pytest.mark.parametrize("name", STREAMS)
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"long_tail": "by_class_id", "imbalance": 21},
            r"imbalance must be 1\.\.20, as the data have 20 training images a class, got 21: class 9 would",
        ),
        ({"long_tail": "ordered"}, r"imbalance must be 1\.\.20, .* got 100"),
        ({"imbalance": 10}, r"scenario\.imbalance=10 needs scenario\.long_tail"),
        ({"long_tail": "ordered", "imbalance": 0.5}, r"imbalance must be at least 1.*got 0\.5"),
        ({"long_tail": "reversed"}, "long_tail must be one of"),
    ],
)
def test_a_tail_that_does_not_fit_is_one_line(name: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as told:
        STREAMS[name](BALANCED, **arguments)  # type: ignore[operator]
    assert "\n" not in str(told.value)


def test_the_released_generator_has_no_long_tail_and_says_what_it_loses() -> None:
    with pytest.raises(ConfigError, match="long_tail has no released form"):
        si_blurry.plan(BALANCED, compat="reference", long_tail="ordered", imbalance=10)
    found = si_blurry.plan(BALANCED, compat="reference", sessions=3)
    assert "training images take no part: the released generator loses them" in found.notes(BALANCED, [])[0]
