"""Split: every class in one experience, nothing lost, whatever the counts."""

import random
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clprompt.errors import ConfigError, DataError
from clprompt.experiment.config import from_dict
from clprompt.scenarios import Plan, benchmark, to_avalanche
from clprompt.scenarios.split import plan
from clprompt.schema import arguments
from clprompt.testing.bench import ToyImages

BALANCED = np.arange(60) % 10


@st.composite
def labels(draw: st.DrawFn) -> np.ndarray:
    """Labels of any class sizes, in any order."""
    sizes = draw(st.lists(st.integers(1, 20), min_size=1, max_size=15))
    targets = np.repeat(np.arange(len(sizes)), sizes)
    np.random.default_rng(draw(st.integers(0, 99))).shuffle(targets)
    return targets


@st.composite
def streams(draw: st.DrawFn) -> tuple[np.ndarray, dict]:
    """Labels and arguments that fit them."""
    targets = draw(labels())
    count = int(targets.max()) + 1
    chosen: dict = {"seed": draw(st.integers(0, 2**32 - 1)), "shuffle": draw(st.booleans())}
    if draw(st.booleans()):
        cuts = sorted(draw(st.sets(st.integers(1, count - 1))) if count > 1 else [])
        chosen["classes_per_experience"] = np.diff([0, *cuts, count]).tolist()
    else:
        chosen["experiences"] = draw(st.integers(1, count))
        most = count - chosen["experiences"] + 1
        whole = chosen["experiences"] == 1
        chosen["base_classes"] = draw(st.sampled_from([0, count]) if whole else st.integers(0, most))
    if draw(st.booleans()):
        chosen["class_order"] = draw(st.permutations(range(count)))
    return targets, chosen


@settings(max_examples=200, deadline=None)
@given(streams())
def test_every_class_and_every_sample_occurs_exactly_once(stream: tuple[np.ndarray, dict]) -> None:
    targets, chosen = stream
    found = plan(targets, **chosen)
    assert sorted(np.concatenate(found.indices)) == list(range(len(targets)))
    assert sorted(c for group in found.classes for c in group) == list(range(found.num_classes))
    for indices, group in zip(found.indices, found.classes, strict=True):
        assert len(group) >= 1
        assert set(targets[indices]) == set(group)
    if "class_order" in chosen:
        assert [c for group in found.classes for c in group] == list(chosen["class_order"])
    elif not chosen["shuffle"]:
        assert [c for group in found.classes for c in group] == list(range(found.num_classes))


@settings(max_examples=100, deadline=None)
@given(streams())
def test_sizes_are_those_asked_for(
    stream: tuple[np.ndarray, dict],
) -> None:
    targets, chosen = stream
    sizes = [len(group) for group in plan(targets, **chosen).classes]
    if "classes_per_experience" in chosen:
        assert sizes == chosen["classes_per_experience"]
        return
    assert len(sizes) == chosen["experiences"]
    if chosen["base_classes"]:
        assert sizes.pop(0) == chosen["base_classes"]
    assert sizes == sorted(sizes, reverse=True)
    assert not sizes or sizes[0] - sizes[-1] <= 1


@pytest.mark.parametrize(
    ("chosen", "sizes"),
    [
        ({"experiences": 5}, [2, 2, 2, 2, 2]),
        ({"experiences": 3}, [4, 3, 3]),
        ({"experiences": 1}, [10]),
        ({"experiences": 10}, [1] * 10),
        ({"experiences": 6, "base_classes": 5}, [5, 1, 1, 1, 1, 1]),
        ({"experiences": 4, "base_classes": 2}, [2, 3, 3, 2]),
        ({"experiences": 1, "base_classes": 10}, [10]),
        ({"classes_per_experience": [7, 1, 2]}, [7, 1, 2]),
    ],
)
def test_ten_classes_are_split_as_asked(chosen: dict, sizes: list[int]) -> None:
    assert [len(group) for group in plan(BALANCED, **chosen).classes] == sizes


def test_samples_come_by_class_id_in_data_set_order() -> None:
    found = plan(np.array([1, 0, 2, 1, 0, 2]), experiences=2, class_order=[2, 0, 1])
    assert [indices.tolist() for indices in found.indices] == [[1, 4, 2, 5], [0, 3]]


def test_test_groups_hold_the_test_samples_of_each_class_group() -> None:
    test = np.array([3, 1, 0, 2, 2, 0, 3])
    found = plan(np.arange(8) % 4, experiences=2, class_order=[2, 0, 3, 1])
    assert [group.tolist() for group in found.test_groups(test)] == [[2, 3, 4, 5], [0, 1, 6]]
    assert [group.tolist() for group in found.test_groups(np.array([3]))] == [[], [0]]


@given(labels(), st.integers(0, 99))
@settings(max_examples=50, deadline=None)
def test_the_table_counts_samples_by_experience_and_class(targets: np.ndarray, seed: int) -> None:
    found = plan(targets, experiences=int(targets.max()) // 2 + 1, seed=seed)
    table = found.describe(targets)
    assert table.shape == (len(found), found.num_classes)
    assert table.sum(0).tolist() == np.bincount(targets).tolist()
    assert (table > 0).sum() == found.num_classes


# -------------------------------------------------------------------------------------------- order and seeds


def order(**chosen: object) -> list[int]:
    return [c for group in plan(BALANCED, **chosen).classes for c in group]


def test_the_seed_decides_the_class_order_and_nothing_else_does() -> None:
    orders = [order(seed=seed) for seed in range(20)]
    assert orders[3] == order(seed=3)
    assert orders[3] == order(seed=3, experiences=5)
    assert len({tuple(found) for found in orders}) > 15


def test_a_seed_means_the_same_order_for_ever() -> None:
    assert order(seed=0) == FIRST_ORDER


FIRST_ORDER = [8, 7, 9, 1, 6, 3, 5, 4, 2, 0]


def test_global_random_states_are_neither_read_nor_changed() -> None:
    def states() -> tuple:
        return torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002

    before = states()
    first = order(seed=1), order(class_order="numpy-7")
    assert states() == before
    random.random(), torch.rand(1), np.random.rand()  # noqa: NPY002
    assert (order(seed=1), order(class_order="numpy-7")) == first


def test_published_orders_have_names() -> None:
    targets = np.arange(100)

    def named(name: str) -> list[int]:
        return [c for group in plan(targets, class_order=name).classes for c in group]

    assert named("numpy-1993")[:12] == [68, 56, 78, 8, 23, 84, 90, 65, 74, 76, 40, 89]
    assert named("icarl-cifar100")[:12] == [87, 0, 52, 58, 44, 91, 68, 97, 51, 15, 94, 92]
    assert sorted(named("icarl_cifar100")) == list(range(100))
    assert sorted(order(class_order="numpy-0")) == list(range(10))


@pytest.mark.parametrize("written", ["9,8,7,6,5,4,3,2,1,0", [9, 8, 7, 6, 5, 4, 3, 2, 1, 0]])
def test_an_order_may_be_written_in_a_configuration(written: object) -> None:
    given_ = arguments(plan, {"class_order": written}, "scenario", skip=("targets", "seed"))
    assert order(**given_) == list(range(9, -1, -1))
    sections = {
        "data": "digits",
        "scenario": {"name": "split", "class_order": written},
        "backbone": "vit_letters",
    }
    assert from_dict({**sections, "strategy": "ncm"}).scenario["class_order"] == written


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"experiences": 0}, "experiences must be at least 1, got 0"),
        ({"experiences": 11}, r"scenario\.experiences must be 1\.\.10, as the data has 10 classes, got 11"),
        (
            {"experiences": 5, "base_classes": 7},
            r"scenario\.base_classes must leave a class .* other 4 .*, got 7",
        ),
        ({"base_classes": -1}, "base_classes must be at least 0, got -1"),
        (
            {"experiences": 1, "base_classes": 3},
            r"scenario\.base_classes is 3, but a single experience holds all 10",
        ),
        (
            {"classes_per_experience": [5, 4]},
            r"must add up to the 10 classes .*, got \[5, 4\]",
        ),
        (
            {"classes_per_experience": [10, 0]},
            r"classes_per_experience must be list of int \(at least 1\) or null, got \[10, 0\]",
        ),
        ({"classes_per_experience": []}, "must add up to the 10 classes"),
        ({"class_order": [0, 1, 2]}, r"scenario\.class_order must be a permutation of the class ids 0\.\.9"),
        ({"class_order": [0] * 10}, "must be a permutation"),
        ({"class_order": "0,1"}, "must be a permutation"),
        ({"class_order": "icarl-cifar100"}, "icarl-cifar100 is an order of 100 classes, the data has 10"),
        (
            {"class_order": "icarl-cifar10"},
            r'there is no order "icarl-cifar10"; did you mean "icarl-cifar100"\?',
        ),
    ],
)
def test_counts_and_orders_that_do_not_fit_are_one_line(chosen: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as told:
        plan(BALANCED, **chosen)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ([], "non-empty list"),
        ([[0, 1], [1, 0]], r"got shape \[2, 2\]"),
        ([0.0, 1.0], "must be integers"),
        ([-1, 0], r"class ids 0\.\.C-1, got -1"),
        ([0, 2], "class 1 has no training sample"),
    ],
)
def test_labels_that_are_no_class_ids_are_refused(targets: list, message: str) -> None:
    with pytest.raises(DataError, match=message):
        plan(np.array(targets), experiences=1)


def test_time_grows_with_the_samples_and_not_with_samples_times_classes() -> None:
    targets = np.random.default_rng(0).permutation(np.arange(1_000_000) % 1000)
    started = time.process_time()
    found = plan(targets, experiences=100)
    assert time.process_time() - started < 5  # a pass per class takes longer by far
    assert sum(map(len, found.indices)) == 1_000_000


# --------------------------------------------------------------------------------------------- as a benchmark


def test_an_avalanche_benchmark_holds_the_plan() -> None:
    train, test = ToyImages(4), ToyImages(2, "test")
    targets = np.unique(train.targets, return_inverse=True)[1]
    train.targets, test.targets = targets, np.unique(test.targets, return_inverse=True)[1]
    found = plan(train.targets, experiences=2, seed=3)
    assert isinstance(found, Plan)
    for stream in (to_avalanche(found, train, test), benchmark("split", train, test, experiences=2, seed=3)):
        assert len(stream.train_stream) == len(stream.test_stream) == 2
        for t, (seen, unseen) in enumerate(zip(stream.train_stream, stream.test_stream, strict=True)):
            assert set(seen.classes_in_this_experience) == set(found.classes[t])
            assert list(seen.dataset.targets) == train.targets[found.indices[t]].tolist()
            assert list(unseen.dataset.targets) == test.targets[found.test_groups(test.targets)[t]].tolist()
            first = int(found.indices[t][0])
            assert torch.equal(seen.dataset[0][0], train[first][0])
