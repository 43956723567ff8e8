"""Names: registered by a decorator, found with a hint when mistyped, refused when taken."""

from __future__ import annotations

import subprocess
import sys

import pytest

from clprompt import registry
from clprompt.errors import (
    BackboneError,
    CheckpointError,
    ClpromptError,
    ConfigError,
    DataError,
    Interrupted,
    ProtocolError,
    RunFolderError,
    nearest,
)
from clprompt.registry import Registry


def _method(backbone: object, *, seed: int = 0) -> None:
    """A method of the tests.

    More of its docstring.
    """


def _other(backbone: object) -> None:
    """Another one."""


def test_a_registered_object_is_returned_unchanged() -> None:
    assert Registry("strategy").register("my_method", year=2020)(_method) is _method


def test_a_registered_object_is_found_with_what_was_said_of_it() -> None:
    known = Registry("strategy")
    known.register("my_method", paper="Nobody 2020", year=2020)(_method)
    entry = known.get("my_method")
    assert (entry.name, entry.target, entry.module) == ("my_method", _method, __name__)
    assert entry.summary == "A method of the tests."
    assert entry.info == {"paper": "Nobody 2020", "year": 2020}


def test_the_name_defaults_to_that_of_the_object() -> None:
    known = Registry("scenario")
    known.register()(_other)
    assert known.names() == ["_other"]


@pytest.mark.parametrize("name", ["my_method", "my-method"])
def test_hyphen_equals_underscore_in_names(name: str) -> None:
    known = Registry("strategy")
    known.register("my-method")(_method)
    assert known.get(name).name == "my-method"


def test_an_unknown_name_is_one_line_with_the_nearest_and_all_that_are_known() -> None:
    known = Registry("strategy")
    known.register("alpha")(_method)
    known.register("beta")(_other)
    with pytest.raises(ConfigError) as caught:
        known.get("alhpa")
    assert str(caught.value) == 'unknown strategy "alhpa"; did you mean "alpha"?; known: alpha, beta'


def test_the_same_object_may_be_registered_again() -> None:
    known = Registry("strategy")
    known.register("alpha", year=1)(_method)
    known.register("alpha", year=2)(_method)
    assert known.get("alpha").info == {"year": 1}


@pytest.mark.parametrize("name", ["taken_name", "taken-name"])
def test_a_taken_name_is_refused_and_both_owners_are_told(name: str) -> None:
    known = Registry("strategy")
    known.register("taken_name")(_method)
    with pytest.raises(ConfigError, match=r"registered twice: by .*_method and by .*_other"):
        known.register(name)(_other)


def test_the_same_file_under_a_second_module_path_is_refused() -> None:
    known = Registry("strategy")
    known.register("alpha")(type("Model", (), {"__module__": "clprompt.strategies.alpha"}))
    with pytest.raises(
        ConfigError, match=r"clprompt\.strategies\.alpha\.Model and by strategies\.alpha\.Model"
    ):
        known.register("alpha")(type("Model", (), {"__module__": "strategies.alpha"}))


def test_names_are_loaded_before_the_first_look_up_and_not_before() -> None:
    known = Registry("strategy", load=lambda: known.register("late")(_method) and None)
    known.register("early")(_other)
    assert known.names() == ["early", "late"]


def test_what_clprompt_brings_is_registered_under_the_installed_module_paths() -> None:
    for known, package in (
        (registry.strategies, "clprompt.strategies."),
        (registry.scenarios, "clprompt.scenarios."),
        (registry.datasets, "clprompt.data.sets."),
    ):
        entries = [known.get(name) for name in known.names()]
        assert entries
        assert all(entry.module.startswith(package) for entry in entries)
        assert all(entry.summary for entry in entries)


class _Point:
    """An installed entry point, as `importlib.metadata` gives it."""

    group, value = "clprompt.strategies", "somewhere:Model"

    def __init__(self, name: str, target: object) -> None:
        self.name, self._target = name, target

    def load(self) -> object:
        if isinstance(self._target, Exception):
            raise self._target
        return self._target


def test_an_entry_point_that_registers_nothing_itself_is_registered_under_its_name() -> None:
    known = Registry("strategy")
    registry._load_entry_point(_Point("outside", _method), known)  # type: ignore[arg-type]
    assert known.get("outside").target is _method


def test_an_entry_point_that_registers_itself_keeps_its_own_name() -> None:
    known = Registry("strategy")
    known.register("own_name", year=2021)(_method)
    registry._load_entry_point(_Point("other_name", _method), known)  # type: ignore[arg-type]
    registry._load_entry_point(_Point("a_module", sys), known)  # type: ignore[arg-type]
    assert known.names() == ["own_name"]


def test_a_broken_entry_point_warns_and_stops_nobody() -> None:
    known = Registry("strategy")
    with pytest.warns(UserWarning, match="entry point broken .* is left out: no such thing"):
        registry._load_entry_point(_Point("broken", ImportError("no such thing")), known)  # type: ignore[arg-type]
    assert known.names() == []


def _short_form(*, outside: bool = False) -> None:
    """A plug-in of the tests."""


def test_a_plug_in_of_an_entry_point_serves_every_method_unless_it_says_otherwise() -> None:
    known = Registry("plug-in", check=registry._check_short_form)
    registry._load_entry_point(_Point("outside", _short_form), known)  # type: ignore[arg-type]
    assert known.get("outside").serves(_method)
    assert known.get("outside").lacking


@pytest.mark.parametrize(
    "target",
    [
        type("Plugin", (), {"__doc__": "A plug-in itself: every run would have it."}),
        lambda *, outside: None,
        lambda outside=0: None,
        lambda *, weight=1.0: None,
    ],
    ids=["class", "no default", "positional", "no switch"],
)
def test_a_plug_in_that_runs_could_not_do_without_is_left_out(target: object) -> None:
    known = Registry("plug-in", check=registry._check_short_form)
    with pytest.warns(UserWarning, match=r"outside \(somewhere:Model\) is left out: .* the argument outside"):
        registry._load_entry_point(_Point("outside", target), known)  # type: ignore[arg-type]
    assert known.names() == []


def test_importing_clprompt_and_its_registry_loads_no_torch() -> None:
    code = (
        "import sys, clprompt, clprompt.registry\n"
        "assert clprompt.__version__\n"
        "assert 'FrozenViT' in dir(clprompt)\n"
        "assert not {'torch', 'timm', 'avalanche', 'matplotlib', 'numpy'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_the_public_names_are_those_of_their_modules() -> None:
    import clprompt
    from clprompt.backbones.vit import FrozenViT
    from clprompt.prompting.model import PromptModel

    assert clprompt.FrozenViT is FrozenViT
    assert clprompt.PromptModel is PromptModel
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = clprompt.nothing


@pytest.mark.parametrize(
    ("kind", "builtin"),
    [
        (ConfigError, ValueError),
        (DataError, ValueError),
        (BackboneError, ValueError),
        (CheckpointError, RuntimeError),
        (RunFolderError, RuntimeError),
        (ProtocolError, RuntimeError),
    ],
)
def test_mistakes_are_also_the_builtin_errors_that_python_users_expect(
    kind: type[Exception], builtin: type[Exception]
) -> None:
    assert issubclass(kind, ClpromptError)
    assert issubclass(kind, builtin)


def test_an_interruption_knows_its_signal_and_the_folders_to_resume() -> None:
    stop = Interrupted(15, ["runs/a", "runs/b"])  # type: ignore[list-item]
    assert stop.signal == 15
    assert [folder.name for folder in stop.folders] == ["a", "b"]
    assert str(stop) == "interrupted; continue with: clprompt resume runs/a runs/b"


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("e_lenght", '; did you mean "e_length"?'),
        ("E-Length", '; did you mean "e_length"?'),
        ("pul", '; did you mean "pull"?'),
        ("zzz", ""),
    ],
)
def test_the_nearest_name_ignores_case_and_hyphens(name: str, hint: str) -> None:
    assert nearest(name, ["e_length", "pull", "g_layers"]) == hint
