"""Every registered strategy keeps every promise of the contract, with boundaries and, if it can, without."""

from __future__ import annotations

import contextlib
import inspect
import itertools
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from devices import DEVICE, as_in_a_run
from small_methods import SMALL, takes_label_sets_its_own_way

from clprompt import registry, testing
from clprompt.errors import ClpromptError
from clprompt.testing import label_sets
from clprompt.testing.bench import KINDS, Workbench
from clprompt.testing.label_sets import ScenesBench

TEXTS = Path(__file__).parents[1] / "fixtures" / "texts"

#: Further forms that only some methods have. Plug-ins are tried in pairs of what they could depend on: a head
#: from statistics with and without prompts, and with and without boundaries; coordination of prompts in every
#: place (those of l2p are tried with two plug-ins more in ``tests/prompting/test_plugin.py``).
FORMS: dict[str, list[dict[str, Any]]] = {
    "coda_prompt": [{"coordinate": True}],
    "dualprompt": [
        {"coordinate": True},
        {"statistics": "align", "align_covariance": "diagonal", "task_adaptive": True},
        {"form": "projected", "freeze_general_after": 1},
        {"form": "fresh", "boundary_free": True, "pool_size": 3},
    ],
    "damvp": [
        {"prompt": "token", "layers": (1, 3)},
        {"head": "active", "share": True, "train_assign": "current"},
    ],
    "linear_probe": [{"mask": "seen"}, {"statistics": "lda"}],
    "joint": [{"base": "linear_probe", "when": "each"}],
    "multilane": [
        {"head": "task"},
        {"selectors": 0, "merge_to": 6},
        {"drop_and_replace": False, "lane_chunk": 1},
    ],
    "prompt_cam": [
        {"gate": "none", "visibility": "all"},
        {"gate_by": "lda", "shared_length": 2, "layers": 3},
    ],
    "mvp": [{"query": "features"}, {"coordinate": True, "variant": "prefix"}],
    "ncm": [{"metric": "euclidean", "normalise_first": True}],
    "semantic_proxies": [{"classifier": "proxies", "loss": "nca", "mask": "experience"}],
    "tcpa": [{"prompts": "shared", "mask": "seen"}, {"mask_position": "after", "select": "task"}],
    "vpt_deep": [
        {"coordinate": True, "boundary_free": True},
        {"statistics": "lda", "boundary_free": True},
    ],
    "zero_shot": [
        # sentences that are the same against every class: else a new class may change an old one's logits
        {"pairs": str(TEXTS / "pairs.json")},
        {"candidates": str(TEXTS / "templates.json"), "budget": 6, "cache_size": 2},
    ],
}

#: Backbones that no form of a method can do with: lanes start from the class token.
REFUSED = {("multilane", "average pooling and q/k norm")}


#: Arguments that decide what is done with features and over which classes, and nothing within the blocks.
BEHIND_THE_BACKBONE = {
    "align_covariance",
    "base",
    "boundary_free",
    "budget",
    "cache_size",
    "candidates",
    "classifier",
    "loss",
    "mask",
    "metric",
    "normalise_first",
    "pairs",
    "statistics",
    "task_adaptive",
    "when",
}


def forms() -> list[tuple[str, tuple[tuple[str, Any], ...]]]:
    """(name, arguments) of every strategy: its defaults, without boundaries, and what the table adds."""
    found: list[tuple[str, tuple[tuple[str, Any], ...]]] = []
    for name in registry.strategies.names():
        given: list[dict[str, Any]] = [{}]
        if "boundary_free" in inspect.signature(registry.strategies.get(name).target).parameters:
            given.append({"boundary_free": True})
        for arguments in [*given, *FORMS.get(name, [])]:
            found.append((name, tuple({**arguments, **SMALL.get(name, {})}.items())))
    return found


def title(form: tuple[str, tuple[tuple[str, Any], ...]]) -> str:
    """Its name and arguments, of files their names."""
    given = {key: Path(value).name if isinstance(value, str) else value for key, value in form[1]}
    return form[0] + "".join(f",{key}={value}" for key, value in given.items())


@cache
def bench(form: tuple[str, tuple[tuple[str, Any], ...]]) -> Workbench:
    """One workbench for all checks of a form: its stream is trained on once."""
    return Workbench(registry.strategies.get(form[0]).target, device=DEVICE, **dict(form[1]))


def case(form: tuple[str, tuple[tuple[str, Any], ...]], check: Callable[[Workbench], None]) -> Any:
    return pytest.param(form, check, id=f"{title(form)}-{check.__name__.removeprefix('check_')}")


def cases() -> list[Any]:
    """Every check of every form; kinds of backbone where its way through the blocks is no other form's."""
    return [
        case(form, check)
        for form in forms()
        for check in testing.CHECKS
        if check is not testing.check_kinds_of_backbone or not is_behind_the_backbone(form)
    ]


def is_behind_the_backbone(form: tuple[str, tuple[tuple[str, Any], ...]]) -> bool:
    """Whether a form is another than its method's first in what follows the blocks alone."""
    further = dict(form[1]).keys() - SMALL.get(form[0], {}).keys()
    return bool(further) and further <= BEHIND_THE_BACKBONE


@pytest.mark.parametrize(("form", "check"), cases())
def test_strategy_keeps_its_promise(
    form: tuple[str, tuple[tuple[str, Any], ...]], check: Callable[[Workbench], None]
) -> None:
    with as_in_a_run():
        check(bench(form))


def multi_label_forms() -> list[tuple[str, tuple[tuple[str, Any], ...]]]:
    """Forms of methods that take multi-hot targets, with boundaries: they decide which labels are hidden.

    Class statistics are counted by the same code whatever the method: of them one form is tried.
    """
    return [
        form
        for form in forms()
        if registry.strategies.get(form[0]).target.multi_label
        and not dict(form[1]).get("boundary_free")
        and dict(form[1]).get("statistics") != "align"
    ]


@cache
def scenes(form: tuple[str, tuple[tuple[str, Any], ...]]) -> ScenesBench:
    return ScenesBench(registry.strategies.get(form[0]).target, device=DEVICE, **dict(form[1]))


def multi_label_cases() -> list[Any]:
    """The checks of targets, of forms in which these could make a difference.

    What else a form promises is of its state, which is the same under every kind of targets: it is tried on
    the first form of methods that treat label sets their own way, and of one that leaves them to shared code.
    """
    found, known = [], set()
    for form in multi_label_forms():
        own = takes_label_sets_its_own_way(form[0])
        is_first = form[0] not in known
        known.add(form[0])
        if is_first or own or is_behind_the_backbone(form):
            every = is_first and (own or form[0] == "linear_probe")
            found += [
                case(form, check) for check in (testing.MULTI_LABEL_CHECKS if every else label_sets.CHECKS)
            ]
    return found


@pytest.mark.parametrize(("form", "check"), multi_label_cases())
def test_strategy_keeps_its_promise_on_multi_hot_targets(
    form: tuple[str, tuple[tuple[str, Any], ...]], check: Callable[[Workbench], None]
) -> None:
    with as_in_a_run():
        check(scenes(form))


def test_every_kind_of_backbone_serves_some_form_of_every_strategy() -> None:
    served = set()
    for form in forms():
        for kind in KINDS:
            with contextlib.suppress(ClpromptError):
                bench(form).make(kind)
                served.add((form[0], kind))
    assert served == set(itertools.product(registry.strategies.names(), KINDS)) - REFUSED


def test_the_table_names_registered_strategies() -> None:
    assert set(FORMS) <= set(registry.strategies.names())


def test_a_strategy_can_do_without_boundaries_where_it_says_so() -> None:
    for form in forms():
        if dict(form[1]).get("boundary_free"):
            assert bench(form).make().boundaries == "unused", title(form)
