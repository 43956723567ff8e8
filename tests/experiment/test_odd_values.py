"""Anything at any place of a configuration, a study or a meta-init: read rightly, or refused in one line."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from clprompt import plain_yaml
from clprompt.errors import ClpromptError, ConfigError
from clprompt.experiment import config, folder, study
from clprompt.experiment.meta_init import settings as meta_init
from clprompt.strategies.damvp import meta_sources

ODD = [
    *(5, -1, 10**30, 1.5, math.inf, math.nan, True, None),
    *("", "x", "0,1", "\n", "\x1b[31m", "${", "${seed}", "???", "a/b", "\udcff"),
    *([], [[1]], [None], {}, {"a": 1}, {1: 2}, {None: 1}),
    *({"name": 5}, {"name": ["l2p"]}, {"name": "l2p", "training": 5}, [{"name": "l2p", "training": [1]}]),
]
DATA = {
    "name": "digits",
    "test_fraction": 0.5,
    "crop_scale": [0.1, 1.0],
    "test_resize": "squash",
    "corrupt": "blur",
}
STREAM = {"data": DATA, "scenario": {"name": "split", "experiences": 2}}
BASES: dict[str, tuple[Callable[[Any], Any], dict[str, Any]]] = {
    "configuration": (
        config.load,
        STREAM
        | {
            "seed": 0,
            "backbone": {"name": "vit_letters", "pretrained": False},
            "strategy": {"name": "l2p", "pool_size": 3},
            "compare": [{"name": "ncm", "training": {"lr": 0.1}}],
            "training": {"optimizer": "sgd", "schedule": "cosine-coda", "cutmix": 1.0},
            "online": None,
        },
    ),
    "study": (
        study.load,
        {
            "data": {"name": "digits"},
            "backbone": "vit_letters",
            "scenarios": {"a": {"name": "split"}, "b": "si_blurry"},
            "strategies": {
                "l2p": None,
                "x": {"name": "l2p", "sweep": {"training.lr": [0.1, 0.2]}, "tuned": "y"},
            },
            "metric": "average_accuracy",
        },
    ),
    "meta-init of frames": (
        meta_sources.load,
        {"backbone": "vit_letters", "sources": ["digits", {"name": "letters"}], "seed": 0, "steps": 5},
    ),
    "meta-init": (
        meta_init.load,
        {
            "backbone": "vit_letters",
            "strategy": {"name": "l2p", "length": 2},
            "sources": ["digits", {"name": "letters"}],
            "objective": "reptile",
            "inner_steps": 2,
            "training": {"lr": 0.1},
        },
    ),
}


def places(values: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    items = (
        values.items() if isinstance(values, dict) else enumerate(values if isinstance(values, list) else ())
    )
    for key, value in items:
        yield from places(value, (*path, key))


def put(values: Any, path: tuple[Any, ...], odd: Any) -> Any:
    if not path:
        return odd
    values = copy.deepcopy(values)
    inner = values
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = odd
    return values


def answer(load: Callable[..., Any], *arguments: Any) -> str:
    """What is said against it; any other exception is a bug of ours."""
    try:
        load(*arguments)
    except ClpromptError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("kind", BASES)
def test_an_odd_value_at_any_place_is_read_or_refused_in_one_line(kind: str, tmp_path: Path) -> None:
    load, base = BASES[kind]
    file = tmp_path / "odd.yaml"
    answers = []
    for number, path in enumerate(places(base)):
        for odd in ODD[number % 4 :: 4]:  # all of them at all places take a minute
            file.write_text(plain_yaml.write(put(base, path, odd)), encoding="utf-8")
            answers.append(answer(load, str(file)))
    assert sum(map(bool, answers)) > len(answers) / 2
    assert not any("\n" in line for line in answers)


@pytest.mark.parametrize("key", ["label", "backbone", "compare.0", "training.lr", "a[0]"])
def test_an_odd_override_is_read_or_refused_in_one_line(key: str) -> None:
    texts = [plain_yaml.write(odd).removesuffix("...\n").strip() for odd in ODD]
    texts += [
        "[" * 50_000,
        "{a: " * 50_000,
        "&a [*a]",
        "!!python/name:os.abort x",
        "\t",
        "a: b: c",
        "0x_",
        "]",
    ]
    answers = [answer(config.load, "quickstart", [f"{key}={text}"]) for text in texts]
    assert all(answers[-2:])
    assert not any("\n" in line for line in answers)


def test_a_key_of_many_levels_is_refused() -> None:
    with pytest.raises(ConfigError, match="names a key of more than 50 levels"):
        config.load("quickstart", ["a." * 5000 + "b=1"])


def test_nothing_is_replaced_in_the_configuration_of_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET", "leaked")
    text = config.to_yaml(config.load("quickstart", ["label=mine"]))
    (tmp_path / "config.yaml").write_text(text.replace("label: mine", "label: ${oc.env:SECRET}/${seed}"))
    assert folder.read_config(tmp_path).label == "${oc.env:SECRET}/${seed}"
    again = config.to_yaml(folder.read_config(tmp_path))
    (tmp_path / "config.yaml").write_text(again)
    assert folder.read_config(tmp_path).label == "${oc.env:SECRET}/${seed}"
    assert config.load(tmp_path / "config.yaml").label == "${oc.env:SECRET}/${seed}"
