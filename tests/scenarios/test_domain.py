"""Domain-incremental streams: one domain in each experience, whatever the domains and classes are."""

import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clprompt.data.plan import make_plan
from clprompt.errors import ConfigError, DataError
from clprompt.scenarios.domain import DomainPlan, plan

NAMES = ["clipart", "real", "sketch"]
#: three domains of four classes; the second one lacks class 3
TARGETS = np.array([0, 1, 2, 3, 0, 1, 2, 0, 1, 2, 3, 3])
DOMAINS = np.array([0, 0, 0, 0, 1, 1, 1, 2, 2, 2, 2, 2])


def made(**arguments: object) -> DomainPlan:
    return plan(TARGETS, **{"domains": DOMAINS, "domain_names": NAMES, "shuffle": False} | arguments)  # type: ignore[arg-type]


@st.composite
def data(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Class ids without gaps, and domain ids of which two at least occur."""
    count = draw(st.integers(2, 40))
    targets = np.array(draw(st.lists(st.integers(0, 5), min_size=count, max_size=count)))
    domains = np.array(draw(st.lists(st.integers(0, 7), min_size=count, max_size=count)))
    domains[0], domains[1] = 2, 5
    return np.unique(targets, return_inverse=True)[1], domains


@settings(max_examples=60, deadline=None)
@given(data(), st.integers(0, 2**32 - 1), st.booleans())
def test_every_sample_comes_once_with_its_domain(
    samples: tuple[np.ndarray, np.ndarray], seed: int, shuffle: bool
) -> None:
    targets, domains = samples
    found = plan(targets, domains=domains, seed=seed, shuffle=shuffle)
    assert sorted(np.concatenate(found.indices)) == list(range(len(targets)))
    assert sorted(found.order) == sorted(set(domains))
    for domain, index, classes in zip(found.order, found.indices, found.classes, strict=True):
        assert set(domains[index]) == {domain}
        assert list(classes) == sorted(set(targets[index]))
        assert (np.diff(targets[index]) >= 0).all()


@settings(max_examples=40, deadline=None)
@given(data(), st.lists(st.integers(0, 7), min_size=1, max_size=30))
def test_a_test_image_is_in_one_group_at_most_and_in_none_where_its_domain_is_not_trained(
    samples: tuple[np.ndarray, np.ndarray], test: list[int]
) -> None:
    targets, domains = samples
    found, tested = plan(targets, domains=domains), np.array(test)
    groups = found.test_groups(np.zeros(len(test), dtype=int), tested)
    assert len(groups) == len(found) == len(found.group_names(tested))
    together = np.concatenate(groups)
    assert len(set(together)) == len(together)
    trained = np.isin(tested, domains)
    assert sorted(together) == list(np.flatnonzero(trained) if trained.any() else range(len(test)))


def test_the_seed_decides_the_order_and_nothing_else() -> None:
    state = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002
    orders = {made(shuffle=True, seed=seed).order for seed in range(30)}
    assert len(orders) == 6
    assert made(shuffle=True, seed=7).order == made(shuffle=True, seed=7).order
    assert torch.equal(torch.get_rng_state(), state[0])
    assert np.random.get_state()[1].tolist() == state[1]  # noqa: NPY002
    assert random.getstate() == state[2]


@pytest.mark.parametrize("order", [["sketch", "clipart", "real"], [2, 0, 1], "sketch, 0,real"])
def test_an_order_is_given_by_names_or_ids(order: list[int | str] | str) -> None:
    found = made(domain_order=order)
    assert found.order == (2, 0, 1)
    assert found.session_names == ["sketch", "clipart", "real"]


def test_a_number_is_no_id_where_domains_are_called_by_numbers() -> None:
    with pytest.raises(ConfigError, match='no training image is of a domain "2"'):
        made(domain_names=["1", "3", "4"], domain_order=["1", "2", "4"])


def test_a_domain_that_is_called_as_another_is_numbered_goes_by_its_name() -> None:
    assert made(domain_names=["2", "1", "0"], domain_order=["2", "1", "0"]).order == (0, 1, 2)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"domain_order": ["real", "clipart"]}, ConfigError, "must name every domain, it lacks sketch"),
        ({"domain_order": "real,real,sketch"}, ConfigError, 'names the domain "real" twice'),
        (
            {"domain_order": ["real", "scetch", 0]},
            ConfigError,
            'no training image is of a domain "scetch"; did',
        ),
        ({"domain_order": [0, 1, 3]}, ConfigError, 'no training image is of a domain "3"'),
        ({"domains": np.ones(12, int)}, DataError, 'all training images are of one domain, "real"'),
        ({"domains": DOMAINS[:5]}, DataError, r"a domain id for each of the 12 samples, got int64 \[5\]"),
        ({"domains": DOMAINS - 1}, DataError, "must be domain ids 0..D-1, got -1"),
        ({"domain_names": ["a", "b"]}, DataError, "domain 2 has no name"),
    ],
)
def test_what_does_not_fit_is_one_line(arguments: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        made(**arguments)
    assert "\n" not in str(caught.value)


def test_notes_say_which_classes_domains_lack_and_which_images_take_no_part() -> None:
    test = np.array([0, 0, 1, 3])
    found = plan(TARGETS, domains=DOMAINS, domain_names=[*NAMES, "toys"], shuffle=False)
    assert found.notes(TARGETS, test, np.array([0, 1, 3, 3])) == [
        "2 test images of domains that are never trained are left out: toys",
        "domains without a test image have no accuracy: sketch",
        "of the 4 classes some domains lack training images: real 1",
    ]


def test_a_test_set_of_other_domains_is_one_group_after_every_experience() -> None:
    found = plan(TARGETS, domains=DOMAINS, domain_names=[*NAMES, "toys", "art"], shuffle=False)
    tested = np.array([4, 3, 3])
    groups = found.test_groups(np.zeros(3, dtype=int), tested)
    assert [group.tolist() for group in groups] == [[0, 1, 2], [], []]
    assert found.group_names(tested)[0] == "toys + art"
    assert "all are evaluated after every experience" in found.notes(TARGETS, TARGETS[:3], tested)[0]


def test_a_test_set_without_domains_is_one_line() -> None:
    with pytest.raises(DataError, match="the test set does not say the domains of its images"):
        made().test_groups(TARGETS)


def test_data_without_domains_is_one_line_that_names_the_data_sets_with_them() -> None:
    with pytest.raises(
        DataError, match=r"digits does not say the domains of its images.*csv .*imagefolder .*npz"
    ):
        make_plan({"name": "domain"}, TARGETS, seed=0, data="digits")


def test_multi_hot_targets_are_one_line() -> None:
    with pytest.raises(DataError, match="must be a non-empty list of class ids"):
        plan(np.eye(3, dtype=int), domains=[0, 1, 2])
