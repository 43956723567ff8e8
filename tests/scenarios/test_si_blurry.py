import random
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clprompt.errors import ClpromptError, ConfigError, DataError
from clprompt.scenarios.si_blurry import SiBlurryPlan, plan

GOLDEN = np.load(Path(__file__).parent.parent / "golden" / "si_blurry.npz")
CASES = sorted({key.split(".")[0] for key in GOLDEN.files} - {"metrics", "schedule"})
BALANCED = np.arange(600) % 10


def draw(targets, sessions, n, m, seed=0, **more) -> SiBlurryPlan:
    return plan(targets, sessions=sessions, n=n, m=m, seed=seed, **more)


def session_of(found: SiBlurryPlan, count: int) -> np.ndarray:
    """The session in which each sample arrives, [n]."""
    arrives = np.full(count, -1)
    for t, indices in enumerate(found.indices):
        arrives[indices] = t
    return arrives


@st.composite
def streams(draw_, n=None, m=None, variant=None):
    """Labels of any class sizes and arguments that fit them, more sessions than classes among them."""
    sizes = draw_(st.lists(st.integers(1, 30), min_size=1, max_size=12))
    targets = np.repeat(np.arange(len(sizes)), sizes)
    np.random.default_rng(draw_(st.integers(0, 99))).shuffle(targets)
    sessions = draw_(st.integers(1, min(len(targets), 20)))
    percent = st.one_of(st.sampled_from([0, 50, 100]), st.integers(0, 100), st.floats(0, 100))
    return targets, {
        "sessions": sessions,
        "n": draw_(percent) if n is None else n,
        "m": draw_(percent) if m is None else m,
        "variant": variant or draw_(st.sampled_from(["stochastic", "fixed"])),
        "seed": draw_(st.integers(0, 2**32 - 1)),
        "min_classes_per_session": int(sessions <= len(sizes)),
    }


# ------------------------------------------------------------------------------ the released generator


@pytest.mark.parametrize("case", CASES)
def test_compat_reference_gives_the_index_lists_of_the_released_generator(case):
    def value(name):
        return GOLDEN[f"{case}.{name}"]

    targets = value("targets")
    found = draw(
        targets,
        int(value("tasks")),
        int(value("n")),
        int(value("m")),
        int(value("seed")),
        variant="stochastic" if value("varying") else "fixed",
        compat="reference",
    )
    assert np.concatenate(found.indices).tolist() == value("indices").tolist()
    assert [len(part) for part in found.indices] == value("task_sizes").tolist()
    assert np.array_equal(found.describe(targets), value("histogram"))
    assert np.array_equal(np.where(found.kinds == "disjoint", found.home, -1), value("disjoint_home"))
    assert np.array_equal(np.where(found.kinds == "blurry", found.home, -1), value("blurry_home"))
    assert found.moved.sum() == value("moved_samples")
    assert np.flatnonzero(found.kinds == "dropped").tolist() == value("dropped_classes").tolist()
    assert len(targets) - len(np.concatenate(found.indices)) == value("dropped_samples")


@pytest.mark.parametrize("case", ["varying_indivisible", "fixed_indivisible", "fixed_sorted"])
def test_what_the_released_generator_drops_or_leaves_out_arrives_here(case):
    targets = GOLDEN[f"{case}.targets"]
    found = draw(targets, int(GOLDEN[f"{case}.tasks"]), int(GOLDEN[f"{case}.n"]), int(GOLDEN[f"{case}.m"]))
    assert sorted(np.concatenate(found.indices)) == list(range(len(targets)))


def test_samples_of_every_blurry_class_are_scattered_in_sorted_data():
    targets = np.sort(BALANCED)
    found = draw(targets, 2, 0, 20, variant="fixed")
    assert set(targets[found.moved]) == set(range(10))  # the released generator moves some classes only


# ------------------------------------------------------------------------------ invariants


@given(streams())
@settings(deadline=None)
def test_every_sample_arrives_exactly_once(stream):
    targets, arguments = stream
    found = plan(targets, **arguments)
    assert len(found) == arguments["sessions"]
    assert sorted(np.concatenate(found.indices)) == list(range(len(targets)))


@given(streams())
@settings(deadline=None)
def test_a_disjoint_class_arrives_whole_in_its_home_session(stream):
    targets, arguments = stream
    found = plan(targets, **arguments)
    arrives = session_of(found, len(targets))
    disjoint = found.kinds[targets] == "disjoint"
    assert (arrives == found.home[targets])[disjoint].all()
    assert np.array_equal(found.moved, arrives != found.home[targets])


@given(streams())
@settings(deadline=None)
def test_disjoint_and_blurry_classes_partition_the_classes(stream):
    targets, arguments = stream
    found = plan(targets, **arguments)
    count = targets.max() + 1
    assert set(found.kinds) <= {"disjoint", "blurry"}
    assert (found.kinds == "disjoint").sum() == round(count * arguments["n"] / 100)
    assert sorted(c for group in found.classes for c in group) == list(range(count))
    if arguments["min_classes_per_session"]:
        assert all(found.classes)
        assert all(len(part) for part in found.indices) or arguments["m"] > 0


@given(st.one_of(streams(m=0), streams(n=100)))
@settings(deadline=None)
def test_without_scattered_samples_the_stream_is_class_incremental(stream):
    targets, arguments = stream
    found = plan(targets, **arguments)
    assert not found.moved.any()
    assert ((found.describe(targets) > 0).sum(axis=0) == 1).all()


@given(streams())
@settings(deadline=None)
def test_exactly_m_percent_of_the_blurry_samples_are_scattered(stream):
    targets, arguments = stream
    found = plan(targets, **arguments)
    blurry = (found.kinds[targets] == "blurry").sum()
    assert sum(found.quotas) == pytest.approx(arguments["m"] / 100 * blurry, abs=1)
    if arguments["m"] == int(arguments["m"]):
        assert sum(found.quotas) == blurry * int(arguments["m"]) // 100
    assert found.moved.sum() <= sum(found.quotas)
    # what a session gives it gets back: its size is that of its classes
    if arguments["variant"] == "stochastic":
        sizes = [np.isin(targets, group).sum() for group in found.classes]
        assert [len(part) for part in found.indices] == sizes


def test_the_expected_share_in_a_foreign_session_is_that_of_a_random_return():
    expected, observed = [], []
    for seed in range(40):
        found = draw(np.arange(5000) % 20, 4, 0, 40, seed)
        share = np.array(found.quotas) / sum(found.quotas)
        expected.append(1 - (share**2).sum())
        observed.append(found.moved.sum() / sum(found.quotas))
    assert np.mean(observed) == pytest.approx(np.mean(expected), abs=0.01)


@given(st.integers(0, 1000), st.integers(2, 6))
@settings(deadline=None, max_examples=25)
def test_a_fixed_stream_with_everything_scattered_has_every_class_in_equal_sessions(seed, sessions):
    targets = np.arange(3000) % 6
    found = draw(targets, sessions, 0, 100, seed, variant="fixed")
    sizes = [len(part) for part in found.indices]
    assert max(sizes) - min(sizes) <= 1
    assert (found.describe(targets) > 0).all()


@given(streams())
@settings(deadline=None)
def test_a_seed_decides_everything(stream):
    targets, arguments = stream
    first, second = plan(targets, **arguments), plan(targets, **arguments)
    for a, b in zip(first.indices, second.indices, strict=True):
        assert np.array_equal(a, b)
    assert np.array_equal(first.home, second.home)


@given(streams())
@settings(deadline=None)
def test_global_random_states_stay(stream):
    targets, arguments = stream
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    plan(targets, **arguments)
    assert torch.equal(states[0], torch.get_rng_state())
    assert np.array_equal(states[1], np.random.get_state()[1])  # noqa: NPY002
    assert states[2] == random.getstate()


def test_another_seed_gives_another_stream():
    lists = [np.concatenate(draw(BALANCED, 5, 50, 10, seed).indices).tolist() for seed in range(5)]
    assert len({tuple(one) for one in lists}) == 5


def test_a_session_is_shuffled():
    for t, part in enumerate(draw(np.sort(BALANCED), 3, 50, 10).indices):
        assert part.tolist() != sorted(part), f"session {t} is in data set order"
        assert abs(np.corrcoef(np.arange(len(part)), part)[0, 1]) < 0.3


def test_a_million_labels_take_about_a_second():
    targets = np.random.default_rng(0).integers(0, 1000, 10**6)
    started = time.process_time()
    draw(targets, 20, 50, 10)
    assert time.process_time() - started < 3


# ------------------------------------------------------------------------------ shapes of streams


def test_as_many_sessions_as_classes_get_a_class_each():
    for seed in range(5):
        found = draw(BALANCED, 10, 50, 10, seed)
        assert [len(group) for group in found.classes] == [1] * 10


def test_sessions_may_stay_empty_where_that_is_asked_for():
    found = draw(BALANCED, 25, 50, 0, min_classes_per_session=0)
    assert sum(len(part) == 0 for part in found.indices) >= 15
    assert sorted(np.concatenate(found.indices)) == list(range(600))


def test_fixed_sessions_differ_by_one_class_at_most():
    found = draw(np.arange(130) % 13, 4, 50, 10, variant="fixed")
    assert sorted(len(group) for group in found.classes) == [3, 3, 3, 4]


def test_the_avalanche_benchmark_has_the_sessions_as_experiences():
    from clprompt.scenarios import to_avalanche

    class Data(torch.utils.data.Dataset):
        def __init__(self, targets):
            self.targets = targets.tolist()

        def __len__(self):
            return len(self.targets)

        def __getitem__(self, index):
            return torch.zeros(3, 2, 2), self.targets[index]

    found = draw(BALANCED, 3, 50, 30, seed=1)
    benchmark = to_avalanche(found, Data(BALANCED), Data(np.arange(50) % 10))
    table = found.describe(BALANCED)
    for t, experience in enumerate(benchmark.train_stream):
        assert len(experience.dataset) == len(found.indices[t])
        assert set(experience.classes_in_this_experience) == set(np.flatnonzero(table[t]).tolist())
    assert [len(e.dataset) for e in benchmark.test_stream] == [5 * len(group) for group in found.classes]


# ------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"n": 101}, "n must be at least 0 and at most 100, got 101"),
        ({"n": -1}, "n must be at least 0 and at most 100, got -1"),
        ({"m": float("nan")}, "m must be a finite number at least 0 and at most 100, got nan"),
        ({"m": 100.5}, "m must be at least 0 and at most 100, got 100.5"),
        ({"sessions": 0}, "sessions must be at least 1, got 0"),
        ({"sessions": 601}, "scenario.sessions must be 1..600"),
        ({"sessions": 601, "min_classes_per_session": 0}, "600 samples, got 601"),
        ({"sessions": 11}, "min_classes_per_session=0 allows more"),
        ({"min_classes_per_session": 2}, "min_classes_per_session must be one of 0, 1, got 2"),
        ({"n": 0.5, "compat": "reference"}, "whole percentage"),
    ],
)
def test_an_argument_out_of_range_is_one_clear_line(arguments, words):
    with pytest.raises(ConfigError, match=words) as caught:
        plan(BALANCED, **arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "targets",
    [
        np.array([0, 1, -1]),
        np.array([0.5, 1.0]),
        np.eye(4, dtype=int),
        np.array([], dtype=int),
        np.array([0, 2]),
    ],
)
def test_targets_that_are_no_class_ids_are_refused(targets):
    with pytest.raises(DataError) as caught:
        plan(targets)
    assert "\n" not in str(caught.value)


def test_the_command_line_knows_the_arguments_of_the_stream():
    from clprompt.experiment import config

    values = {"data": "digits", "backbone": "vit_letters", "strategy": "ncm"}
    scenario = {"name": "si-blurry", "n": 30, "compat": "reference"}
    assert config.from_dict({**values, "scenario": scenario}).scenario["n"] == 30
    with pytest.raises(ClpromptError, match="variant"):
        config.from_dict({**values, "scenario": {"name": "si_blurry", "variant": "random"}})
