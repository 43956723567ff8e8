"""Streams by domain, of few shots and with repetition as Avalanche benchmarks: the same bits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from avalanche_runs import SETTINGS, shared_vit, trained

from clprompt.data.plan import make_plan
from clprompt.errors import DataError
from clprompt.registry import strategies
from clprompt.scenarios import Plan, benchmark, to_online_avalanche
from clprompt.testing.asserts import bits, changed
from clprompt.testing.bench import CLASSES, ToyImages
from clprompt.training.fit import fit
from clprompt.training.settings import Training

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning:avalanche"),
    pytest.mark.filterwarnings("ignore::UserWarning:torch"),
]


def images(per_class: int, part: str = "train") -> Any:
    """Toy images with class ids without gaps and two domains that take turns."""
    made: Any = ToyImages(per_class, part)
    made.targets = np.searchsorted(sorted(c for group in CLASSES for c in group), made.targets)
    made.domains = np.arange(len(made)) % 2
    return made


SECTIONS: dict[str, dict[str, Any]] = {
    "domain": {"domain_order": [1, 0]},
    "few_shot": {"base_classes": 2, "ways": 2, "shots": 3},
    "repetition": {"experiences": 4, "probability": 0.6, "samples_per_experience": 12},
}


def stream(name: str) -> tuple[Plan, Any, Any, Any]:
    """A plan, both parts of the data, and the benchmark."""
    train, test = images(12), images(6, "test")
    plan = make_plan({"name": name, **SECTIONS[name]}, train.targets, seed=0, domains=train.domains)
    return plan, train, test, benchmark(name, train, test, **SECTIONS[name])


@pytest.mark.parametrize("name", SECTIONS)
def test_an_experience_holds_what_the_plan_says(name: str) -> None:
    plan, train, test, made = stream(name)
    groups = plan.test_groups(test.targets, test.domains)
    for number, experience in enumerate(made.train_stream):
        assert sorted(experience.classes_in_this_experience) == sorted(plan.classes[number])
        assert list(experience.dataset.targets) == train.targets[plan.indices[number]].tolist()
        tested = made.test_stream[number].dataset
        assert list(tested.targets) == test.targets[groups[number]].tolist()


@pytest.mark.parametrize(
    ("name", "scenario"), [("dualprompt", "domain"), ("ncm", "domain"), ("linear_probe", "few_shot")]
)
def test_both_front_ends_train_to_the_same_bits(name: str, scenario: str) -> None:
    plan, train, _, made = stream(scenario)
    strategy = trained(name, made)
    strategy.eval(made.test_stream)
    model = strategies.get(name).target(shared_vit())
    fit(model, plan, train, training=Training(**SETTINGS))
    assert not changed(bits(model), bits(strategy.model))
    assert len(strategy.model.seen) == 6


def test_an_online_benchmark_of_domains_tests_all_of_them() -> None:
    plan, train, test, _ = stream("domain")
    made = to_online_avalanche(plan, train, test, batch_size=8)
    assert len(made.test_stream[0].dataset) == len(test)


def test_a_benchmark_of_images_without_domains_is_one_line() -> None:
    train = images(4)
    del train.domains
    with pytest.raises(DataError, match=r"^the data does not say the domains of its images"):
        benchmark("domain", train, train)
