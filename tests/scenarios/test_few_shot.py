"""Few-shot streams: the base keeps everything, each novel class its shots, whatever the counts."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clprompt.data.plan import make_plan
from clprompt.errors import ConfigError, DataError
from clprompt.scenarios import Plan
from clprompt.scenarios.few_shot import plan

TARGETS = np.arange(90) % 9


@st.composite
def streams(draw: st.DrawFn) -> tuple[np.ndarray, dict]:
    """Labels of any class sizes, in any order, and arguments that fit them."""
    ways, experiences, base = (draw(st.integers(1, 4)) for _ in range(3))
    count = base + ways * experiences
    sizes = draw(st.lists(st.integers(1, 12), min_size=count, max_size=count))
    targets = np.repeat(np.arange(count), sizes)
    np.random.default_rng(draw(st.integers(0, 99))).shuffle(targets)
    chosen = {"base_classes": base, "ways": ways, "shots": draw(st.integers(1, min(sizes)))}
    return targets, chosen | {"seed": draw(st.integers(0, 2**32 - 1)), "shuffle": draw(st.booleans())}


@settings(max_examples=60, deadline=None)
@given(streams())
def test_the_base_is_whole_and_each_novel_class_has_its_shots(stream: tuple[np.ndarray, dict]) -> None:
    targets, chosen = stream
    found = plan(targets, **chosen)
    assert sorted(c for group in found.classes for c in group) == list(range(found.num_classes))
    assert [len(group) for group in found.classes[1:]] == [chosen["ways"]] * (len(found) - 1)
    assert found.base_classes == found.classes[0]
    assert len(found.classes[0]) == chosen["base_classes"]
    table, sizes = found.describe(targets), np.bincount(targets)
    for number, group in enumerate(found.classes):
        assert set(np.flatnonzero(table[number])) == set(group)
        for c in group:
            assert table[number, c] == (chosen["shots"] if number else sizes[c])
    everything = np.concatenate(found.indices)
    assert len(set(everything)) == len(everything)


@settings(max_examples=20, deadline=None)
@given(streams())
def test_what_takes_no_part_is_said_to_the_image(stream: tuple[np.ndarray, dict]) -> None:
    targets, chosen = stream
    found = plan(targets, **chosen)
    left = len(targets) - sum(map(len, found.indices))
    notes = found.notes(targets, targets)
    assert notes == (
        [
            f"{left} of {len(targets)} training images take no part: of each of the "
            f"{sum(map(len, found.classes[1:]))} novel classes all but {chosen['shots']}"
        ]
        if left
        else []
    )


def made(**arguments: object) -> Plan:
    return plan(TARGETS, **{"base_classes": 3, "ways": 2, "shots": 4} | arguments)  # type: ignore[arg-type]


def test_shots_are_a_function_of_the_seed() -> None:
    of_seeds = [made(seed=seed, shuffle=False) for seed in (0, 0, 1)]
    assert of_seeds[0].fingerprint() == of_seeds[1].fingerprint()
    assert of_seeds[0].fingerprint() != of_seeds[2].fingerprint()
    assert of_seeds[0].indices[0].tolist() == of_seeds[2].indices[0].tolist()


def test_fewer_shots_are_some_of_more() -> None:
    few, many = made(shots=2), made(shots=7)
    for small, large in zip(few.indices[1:], many.indices[1:], strict=True):
        assert set(small) < set(large)


@pytest.mark.parametrize(
    ("count", "arguments", "sizes"),
    [
        (100, {}, [60, *[5] * 8]),  # CIFAR-100 and miniImageNet of Tao et al.
        (200, {"base_classes": 100, "ways": 10}, [100, *[10] * 10]),  # CUB-200
    ],
)
def test_published_protocols_are_a_line_each(count: int, arguments: dict, sizes: list[int]) -> None:
    found = plan(np.arange(count * 6) % count, shuffle=False, **arguments)
    assert [len(group) for group in found.classes] == sizes
    assert [len(index) for index in found.indices[1:]] == [5 * ways for ways in sizes[1:]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"shots": 11}, "scenario.shots must be at most 10, the training images of the novel class"),
        ({"ways": 4}, r"scenario.ways must divide the 6 classes beside the 3 of .*\(1, 2, 3, 6\), got 4"),
        ({"base_classes": 9}, "scenario.base_classes must be below the 9 classes of the data"),
        ({"class_order": [0, 1]}, "permutation of the class ids 0..8"),
        ({"shots": 0}, "shots must be at least 1"),
    ],
)
def test_counts_that_do_not_fit_are_one_line(arguments: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        made(**arguments)
    assert "\n" not in str(caught.value)


def test_more_shots_than_images_names_the_poorest_novel_class() -> None:
    targets = np.concatenate([np.zeros(2, int), TARGETS[TARGETS > 0], np.zeros(0, int)])
    section = {
        "name": "few_shot",
        "base_classes": 3,
        "ways": 2,
        "shots": 3,
        "class_order": [*range(8, -1, -1)],
    }
    with pytest.raises(ConfigError, match='at most 2, the training images of the novel class "newt", got 3'):
        make_plan(section, targets, seed=0, class_names=["newt", *"abcdefgh"])
    found = plan(targets, base_classes=3, ways=2, shots=3, shuffle=False)
    assert [len(index) for index in found.indices] == [22, 6, 6, 6]  # the base may be poor


def test_multi_hot_targets_are_one_line() -> None:
    with pytest.raises(DataError, match="must be a non-empty list of class ids"):
        plan(np.eye(3, dtype=int))
