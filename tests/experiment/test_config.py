"""Configurations: YAML, overrides, defaults, and one clear line for everything that is wrong."""

from __future__ import annotations

import copy
import dataclasses
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from nasty_text import NASTY

from clprompt import plain_yaml, registry
from clprompt.errors import ConfigError, printable
from clprompt.experiment import config
from clprompt.experiment.config import Config
from clprompt.registry import Registry
from clprompt.system import overlay
from clprompt.system.overlay import difference
from clprompt.training.settings import Online, Training

BASE = """\
# An experiment of the tests.
seed: 0
data: {name: blobs, size: 4}
scenario: {name: parts, pieces: 2}
backbone: {name: vit_tiny_patch16_224, img_size: 32}
strategy: {name: long-name, length: 5, layers: [0, 1]}
training: {train_mb_size: 8, lr: 1e-3}
"""


class LongName:
    """A method with typed arguments."""

    trains = False  # asked by those of the plug-ins' short forms that need it

    def __init__(
        self,
        backbone: object,
        *,
        seed: int = 0,
        length: int = 20,
        layers: tuple[int, ...] = (2, 3),
        pull: float = 1.0,
        form: Literal["prefix", "fresh"] = "prefix",
        limit: int | None = None,
    ) -> None: ...


class Short:
    """A method without arguments of its own."""

    trains = False

    def __init__(self, backbone: object, *, seed: int = 0) -> None: ...


def blobs(*, size: int = 10, path: str | Path | None = None) -> None:
    """Data."""


def parts(targets: np.ndarray, *, seed: int = 0, pieces: int = 5, order: list[int] | None = None) -> None:
    """A stream."""


@pytest.fixture(autouse=True)
def toy_registries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what is registered here."""
    registry.load_builtin()  # or a first look-up would register the package's own in the toys
    known = {
        "strategies": Registry("strategy"),
        "scenarios": Registry("scenario"),
        "datasets": Registry("data set"),
    }
    known["strategies"].register("long_name")(LongName)
    known["strategies"].register("short")(Short)
    known["scenarios"].register("parts")(parts)
    known["datasets"].register("blobs")(blobs)
    for name, toy in known.items():
        monkeypatch.setattr(registry, name, toy)
    for key, name in (("data", "datasets"), ("scenario", "scenarios"), ("strategy", "strategies")):
        monkeypatch.setitem(config.REGISTRIES, key, known[name])


Load = Callable[..., Config]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """Load the YAML of these tests, or another text, with overrides."""

    def load(*overrides: str, text: str = BASE) -> Config:
        path = tmp_path / "trial.yaml"
        path.write_text(text, encoding="utf-8")
        return config.load(path, overrides)

    return load


def test_defaults_are_written_out(load: Load) -> None:
    found = load()
    assert found.name == "trial"
    assert (found.seed, found.precision, found.device, found.runs_dir) == (0, "float32", "auto", "runs")
    assert found.data == {"name": "blobs", "size": 4, "path": None}
    assert found.scenario == {"name": "parts", "pieces": 2, "order": None}
    assert found.backbone == {
        "name": "vit_tiny_patch16_224",
        "pretrained": False,
        "checkpoint": None,
        "img_size": 32,
    }
    assert found.strategy == {
        "name": "long_name",
        "length": 5,
        "layers": [0, 1],
        "pull": 1.0,
        "form": "prefix",
        "limit": None,
    }
    assert found.training == Training(train_mb_size=8, lr=0.001)
    assert found.compare == []
    assert found.online is None


@pytest.mark.parametrize(
    ("overrides", "key", "value"),
    [
        (["training.lr=1e-3"], "training.lr", 0.001),
        (["training.lr=1e3"], "training.lr", 1000.0),
        (["training.lr=1"], "training.lr", 1.0),
        (["training.clip_grad=1"], "training.clip_grad", 1.0),
        (["training.clip_grad=null"], "training.clip_grad", None),
        (["seed=3"], "seed", 3),
        (["seed=0,1,2"], "seed", [0, 1, 2]),
        (["seed=[0,1,2]"], "seed", [0, 1, 2]),
        (["name=other"], "name", "other"),
        (["strategy.layers=3,4"], "strategy.layers", [3, 4]),
        (["strategy.layers=[7]"], "strategy.layers", [7]),
        (["strategy.limit=9"], "strategy.limit", 9),
        (["strategy.pull=2"], "strategy.pull", 2.0),
        (["strategy=short"], "strategy", {"name": "short"}),
        (["strategy=long-name"], "strategy.length", 20),
        (["strategy.length=7", "strategy=long_name"], "strategy.length", 7),
        (["strategy=long_name", "strategy.length=7"], "strategy.layers", [2, 3]),
        (["strategy={name: long_name, length: 9}"], "strategy.length", 9),
        (["data=blobs"], "data.size", 10),
        (["data.path=some/where"], "data.path", "some/where"),
        (["data.path=/data/runs #2"], "data.path", "/data/runs #2"),
        (["data.path='/data/runs #2'"], "data.path", "/data/runs #2"),
        (["data.path=#2"], "data.path", "#2"),
        (["runs_dir=\\${HOME}/runs"], "runs_dir", "${HOME}/runs"),
        (["backbone=vit_base_patch16_224"], "backbone.name", "vit_base_patch16_224"),
        (["backbone=vit_base_patch16_224"], "backbone.checkpoint", None),
        (["backbone.dynamic_img_size=true"], "backbone.dynamic_img_size", True),
        (["backbone.pretrained=true", "backbone=vit_x"], "backbone.pretrained", True),
        (["compare=[short]"], "compare", [{"name": "short"}]),
        (["compare=short"], "compare", [{"name": "short"}]),
        (["compare=null"], "compare", []),
        (["compare=[{name: short, training: {lr: 1}}]"], "compare.0.training", {"lr": 1.0}),
        (["compare.0.training.lr=2", "compare=short,long-name"], "compare.0.training", {"lr": 2.0}),
        (["compare=short,long-name", "compare.1.length=2"], "compare.1.length", 2),
        (["compare=short,long-name", "compare[1].length=2"], "compare.1.length", 2),
        (["online={}"], "online.iterations", 1),
        (["online.iterations=3"], "online.iterations", 3),
        (["online.eval_every=1000"], "online.eval_every", 1000),
        (["training.lr=${strategy.pull}", "strategy.pull=0.5"], "training.lr", 0.5),
        (["precision=bf16"], "precision", "bf16"),
        (["training={optimizer: sgd}"], "training.train_mb_size", 32),
    ],
)
def test_overrides(load: Load, overrides: Sequence[str], key: str, value: Any) -> None:
    found: Any = load(*overrides).to_dict()
    for part in key.split("."):
        found = found[int(part)] if part.isdigit() else found[part]
    assert found == value
    assert type(found) is type(value)


def test_a_section_in_the_file_may_be_a_bare_name_too(load: Load) -> None:
    found = load("strategy.length=3", text=BASE.replace("{name: blobs, size: 4}", "blobs"))
    assert found.data["size"] == 10
    assert found.strategy["length"] == 3


def test_interpolations_in_the_file_see_the_overrides(load: Load) -> None:
    text = BASE.replace("lr: 1e-3", "lr: 0.1, weight_decay: '${.lr}'")
    assert load("training.lr=0.25", text=text).training.weight_decay == 0.25


WRONG_OVERRIDES = [
    (
        "stratgy.length=1",
        'unknown key "stratgy"; did you mean "strategy"?; allowed: backbone, compare, data, ',
    ),
    ("lr=0.1", 'unknown key "lr"; did you mean "training.lr"?'),
    (
        "training.train_mbsize=1",
        'unknown key "training.train_mbsize"; did you mean "train_mb_size"?; allowed: ',
    ),
    ("strategy.lenght=1", 'unknown key "strategy.lenght"; did you mean "length"?; allowed: form, layers, '),
    ("strategy.seed=1", 'unknown key "strategy.seed"'),
    ("strategy.backbone=1", 'unknown key "strategy.backbone"'),
    ("scenario.seed=1", 'unknown key "scenario.seed"; allowed: order, pieces'),
    ("scenario.targets=[1]", 'unknown key "scenario.targets"'),
    ("online.iteration=1", 'unknown key "online.iteration"; did you mean "iterations"?'),
    (
        "strategy=shrot",
        'strategy.name: unknown strategy "shrot"; did you mean "short"?; known: long_name, short',
    ),
    ("strategy.training={}", 'unknown key "strategy.training"'),
    ("scenario=part", 'scenario.name: unknown scenario "part"; did you mean "parts"?; known: parts'),
    ("data=blob", 'data.name: unknown data set "blob"; did you mean "blobs"?; known: blobs'),
    ("data=3", "data must be a name or a mapping with a name, got 3"),
    ("data={size: 3}", "data.name is missing"),
    ("data={name: [1]}", "data.name must be str, got [1]"),
    ("strategy=null", "strategy is missing; it must be a mapping with a name"),
    ("strategy.length=abc", 'strategy.length must be int, got "abc"'),
    ("strategy.length=2.5", "strategy.length must be int, got 2.5"),
    (
        "strategy.form=perfix",
        'strategy.form must be one of "prefix", "fresh", got "perfix"; did you mean "prefix"?',
    ),
    ("strategy.length.x=1", '"strategy.length.x": strategy.length is a value (5), not a section'),
    ("seed=a", 'seed must be int or list of int, got "a"'),
    ("seed=-1", "seed must be between 0 and 4294967295, got -1"),
    ("seed=[]", "seed must be a number or a list of numbers, got an empty list"),
    ("seed=0,1,0", "seed names a seed twice: [0, 1, 0]"),
    ("seed=null", "seed must be int or list of int, got null"),
    (
        "precision=float16",
        'precision must be one of "float32", "bf16", "fp16", got "float16"; did you mean "float32"?',
    ),
    ("device=0", "device must be str, got 0"),
    ("device=''", "device must not be empty"),
    ("name=a/b", 'name must be the plain name of a folder, got "a/b"'),
    ("name=..", 'name must be the plain name of a folder, got ".."'),
    ("runs_dir=1", "runs_dir must be str, got 1"),
    ("backbone.pretrained=maybe", 'backbone.pretrained must be bool, got "maybe"'),
    ("backbone.checkpoint=3", "backbone.checkpoint must be str or null, got 3"),
    ("compare=3", "compare must be a list of strategies, got 3"),
    ("compare=[shrot]", 'compare.0.name: unknown strategy "shrot"; did you mean "short"?'),
    ("compare=[short, {length: 3}]", "compare.1.name is missing"),
    ("compare=[{name: long_name, lenght: 3}]", 'unknown key "compare.0.lenght"; did you mean "length"?'),
    (
        "compare=[{name: short, training: {lr: 0}}]",
        "compare.0.training.lr must be above 0, got 0",
    ),
    ("compare=[{name: short, training: {l: 0}}]", 'unknown key "compare.0.training.l"; did you mean "lr"?'),
    ("compare=[{name: short, training: 3}]", "compare.0.training must be mapping, got 3"),
    ("compare.0.length=3", '"compare.0.length": compare is a list; allowed positions: none, it is empty'),
    ("training=fast", 'training must be a mapping, got "fast"'),
    ("training.train_mb_size=0", "training.train_mb_size must be at least 1, got 0"),
    ("training.eval_mb_size=-5", "training.eval_mb_size must be at least 1, got -5"),
    ("training.train_epochs=-1", "training.train_epochs must be at least 0, got -1"),
    ("training.workers=-1", "training.workers must be at least 0, got -1"),
    ("training.lr=0", "training.lr must be above 0, got 0"),
    ("training.lr=.nan", "training.lr must be a finite number above 0, got nan"),
    ("training.lr=.inf", "training.lr must be a finite number above 0, got inf"),
    ("training.lr=high", 'training.lr must be float (above 0), got "high"'),
    ("training.clip_grad=0", "training.clip_grad must be above 0, got 0"),
    ("training.weight_decay=-0.1", "training.weight_decay must be at least 0, got -0.1"),
    (
        "training.optimizer=adm",
        'training.optimizer must be one of "adam", "adamw", "sgd" or module:function, got "adm"; did you ',
    ),
    ("training.checkpoint_every=0", "training.checkpoint_every must be at least 1, got 0"),
    ("training.log_every=0", "training.log_every must be at least 1, got 0"),
    ("online=3", "online must be a mapping, got 3"),
    ("online.iterations=0", "online.iterations must be at least 1, got 0"),
    ("online.eval_every=0", "online.eval_every must be at least 1, got 0"),
    ("training.lr=${nothing.here}", "training.lr: Interpolation key 'nothing.here' not found"),
    ("training.lr=${training.lr}", "training.lr: Recursive interpolation detected"),
    ("training.lr=${", "training.lr"),
    ("training.lr=???", "training.lr has no value in "),
    ("training.lr=[1", 'the override "training.lr=[1" is not valid YAML: '),
    ("training.lr", '"training.lr" is not an override; write key=value or section.key=value'),
    ("=3", '"=3" is not an override'),
    ("training..lr=3", '"training..lr=3" is not an override'),
]


@pytest.mark.parametrize(
    ("override", "message"), WRONG_OVERRIDES, ids=[wrong for wrong, _ in WRONG_OVERRIDES]
)
def test_a_wrong_override_is_one_line(load: Load, override: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(override)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "trial.yaml: the file is empty"),
        ("# a comment alone\n", "trial.yaml: the file is empty"),
        ("- 1\n- 2\n", "trial.yaml: must hold a mapping of sections, not a list"),
        ("hello", "trial.yaml: must hold a mapping of sections, not a single value"),
        ("seed: 0\ndata: [1\nname: x\n", "trial.yaml, line 3: "),
        ("seed: 0\n\tname: x\n", "trial.yaml, line 2: "),
        ("seed: 0\nseed: 1\n", "trial.yaml, line 2: found duplicate key seed"),
        ("seed: 0\ndata: " + "[" * 50_000, "trial.yaml, line 2: more than 50 levels of nesting"),
        (
            BASE + "label: '${none}'\n",
            "trial.yaml: label: Interpolation key 'none' not found",
        ),
        (BASE + "label: '${'\n", "trial.yaml: label: "),
        (BASE + "label: '${label}'\n", "trial.yaml: label: "),
        (BASE + "label: ???\n", "label has no value in "),
        ("seed: *nothing\n", "trial.yaml, line 1: "),
        ("seed: !!python/object:os.system x\n", "trial.yaml, line 1: "),
        ("seed: 0\n", "data is missing; it must be a mapping with a name"),
        (BASE + "1: 2\n", 'unknown key "1"; allowed: '),
        (BASE.replace("size: 4", "4: 4"), "data: a key must be a name, got 4"),
        (BASE + "extra: 1\n", 'unknown key "extra"; allowed: '),
        (BASE + "online: yes\n", "online must be a mapping, got true"),
    ],
)
def test_a_wrong_file_is_one_line_that_names_it(load: Load, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(text=text)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_missing_a_folder_or_not_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "latin.yaml").write_text("seed: 0\nlabel: fünf\n", encoding="latin-1")
    (tmp_path / "folder.yaml").mkdir()
    for name, message in [
        ("missing.yaml", "there is no such file"),
        ("binary.yaml, line 1", "not a text file in UTF-8"),
        ("latin.yaml, line 2", "not a text file in UTF-8"),
        ("folder.yaml", "it is a folder, not a regular file"),
    ]:
        with pytest.raises(ConfigError, match=f"{re.escape(str(tmp_path / name))}: {message}"):
            config.load(tmp_path / name.partition(",")[0])


def test_a_byte_order_mark_is_no_part_of_the_first_key(load: Load) -> None:
    assert load(text="\ufeff" + BASE.partition("\n")[2]) == load()


def test_an_unknown_configuration_is_told_with_the_nearest_packaged_one() -> None:
    with pytest.raises(
        ConfigError, match=r'no configuration is called "quikstart"; did you mean "quickstart"\?'
    ):
        config.load("quikstart")


def test_packaged_configurations_have_a_name_and_a_summary() -> None:
    found = dict(overlay.names())
    assert "quickstart" in found
    assert all(found.values())


def test_every_mistake_of_one_setting_is_found_in_python_too() -> None:
    with pytest.raises(ConfigError, match=r"training\.lr must be float"):
        Training(lr="fast")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"online\.iterations must be at least 1, got 0"):
        Online(iterations=0)
    assert type(Training(lr=1).lr) is float


def test_settings_and_configurations_cannot_be_changed(load: Load) -> None:
    found = load()
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.seed = 1  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.training.lr = 1.0  # type: ignore[misc]


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["seed=0,1", "online.iterations=2", "compare=[{name: short, training: {lr: 1e-5}}, long-name]"],
        ["name='1e3'", "runs_dir='null'", "device='yes'", "training.lr=1e-7", "data.path='12:30'"],
    ],
)
def test_resolved_yaml_reads_back_to_an_equal_configuration(load: Load, overrides: list[str]) -> None:
    found = load(*overrides)
    assert load(text=config.to_yaml(found)) == found
    assert config.from_dict(found.to_dict()) == found


def places(text: str) -> list[str]:
    """The keys at which a text may stand."""
    keys = ["label", "data.path", "backbone.weights"]
    if text.strip():  # what stands for a name is no empty one
        keys += ["device", "runs_dir"]
        if printable(text) == text and not any(mark in text for mark in "/\\\n\t\r"):
            keys.append("name")
    return keys


@pytest.mark.parametrize("way", ["file", "override", "python"])
def test_every_text_is_the_same_in_the_written_configuration(load: Load, tmp_path: Path, way: str) -> None:
    base = plain_yaml.read(BASE)
    for text in NASTY:
        written = config.overlay.write({"at": text})
        if text == "???" and way != "python":
            continue  # a value that is missing
        if way == "override":
            configuration = load(*(f"{key}={written.removeprefix('at:').strip()}" for key in places(text)))
        else:
            values = copy.deepcopy(base)
            for key in places(text):
                section, _, argument = key.rpartition(".")
                (values[section] if section else values)[argument] = text
            if way == "file":
                configuration = load(text=config.overlay.write(values))
            else:
                configuration = config.from_dict(values)
        path = tmp_path / "config.yaml"
        path.write_text(config.to_yaml(configuration), encoding="utf-8")
        found = config.overlay.flat(configuration.to_dict())
        assert {key: found[key] for key in places(text)} == dict.fromkeys(places(text), text)
        assert config.from_dict(config.overlay.read_written(path)) == configuration
        if text != "???":
            assert config.load(path) == configuration


def test_numbers_of_numpy_and_paths_are_written_as_plain_values() -> None:
    values = plain_yaml.read(BASE) | {
        "backbone": {"name": "vit", "img_size": np.int64(32), "at": Path("a/b")}
    }
    assert config.from_dict(values).backbone["img_size"] == 32
    assert "at: a/b\n" in config.to_yaml(config.from_dict(values))


def test_a_value_that_no_yaml_can_hold_is_refused_before_anything_is_written() -> None:
    values = plain_yaml.read(BASE) | {"backbone": {"name": "vit", "hook": print}}
    with pytest.raises(ConfigError, match=r"^backbone.hook must be null, a bool, a number, text, or a list"):
        config.from_dict(values)


def test_difference_names_the_dotted_keys_that_differ(load: Load) -> None:
    first = load("compare=[short]")
    assert difference(first.to_dict(), load("compare=[short]").to_dict()) == []
    second = load("training.lr=0.5", "strategy.layers=[1]", "compare=[long_name]", "seed=0,1")
    assert difference(first.to_dict(), second.to_dict()) == [
        "compare.0.form",
        "compare.0.layers",
        "compare.0.length",
        "compare.0.limit",
        "compare.0.name",
        "compare.0.pull",
        "seed",
        "strategy.layers",
        "training.lr",
    ]
    assert difference(first.to_dict(), load("compare=[short]", "online={}").to_dict()) == [
        "online",
        "online.cut_at_sessions",
        "online.eval_every",
        "online.iterations",
    ]


def test_compared_strategies_come_with_settings_of_their_own(load: Load) -> None:
    found = load("compare=[{name: short, training: {train_epochs: 3}}, long_name]", "seed=4")
    (first, usual), (short, own), (_, same) = found.strategies()
    assert first == found.strategy
    assert short == {"name": "short"}
    assert own == dataclasses.replace(usual, train_epochs=3)
    assert same == usual == found.training
    assert found.seeds == [4]
