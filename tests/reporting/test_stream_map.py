"""The map of a stream: counts, the printed table, the drawing, and what the command says to mistakes."""

import time

import numpy as np
import pytest

from clprompt import registry
from clprompt.cli import stream
from clprompt.cli.main import main
from clprompt.data.plan import Plan
from clprompt.errors import ConfigError, DataWarning
from clprompt.experiment import config
from clprompt.reporting import plots
from clprompt.reporting.stream_map import StreamMap
from clprompt.scenarios import domain, si_blurry, split

TARGETS = np.arange(600) % 10


@pytest.fixture
def blurry() -> StreamMap:
    return StreamMap.of(si_blurry.plan(TARGETS, seed=3, m=30), TARGETS, "a stream")


def test_every_sample_is_counted_once_and_apart_by_kind(blurry):
    assert blurry.counts.sum() == 600
    assert (blurry.moved <= blurry.counts).all()
    assert blurry.kind_names == ["disjoint", "blurry"]
    at_home = np.zeros_like(blurry.counts)
    at_home[blurry.home, np.arange(10)] = 1
    assert ((blurry.counts > blurry.moved) <= at_home).all()
    assert (blurry.moved[:, blurry.kinds == "disjoint"] == 0).all()


def test_sessions_that_have_names_are_called_by_them():
    targets, domains = np.arange(12) % 3, np.arange(12) // 4
    names = ["$a$", "b" * 30, "c"]
    made = domain.plan(targets, domains=domains, domain_names=names, shuffle=False)
    drawn = StreamMap.of(made, targets, "domains")
    lines = drawn.table().splitlines()
    assert lines[2].split()[-1] == "name"
    assert [line.split()[-1] for line in lines[4:7]] == ["$a$", "b" * 20, "c"]
    ticks = drawn.figure().axes[1].get_xticklabels()
    assert [tick.get_text() for tick in ticks] == ["$a$", "b" * 20, "c"]


def test_the_table_adds_up_and_is_narrow(blurry):
    lines = blurry.table().splitlines()
    last = next(line for line in lines if line.strip().startswith("all")).split()[1:]
    assert int(last[0]) == 600
    assert sum(map(int, last[2:])) == 600  # disjoint, blurry, moved
    assert max(map(len, lines)) <= 80
    assert sum("disjoint" in line for line in lines[8:]) == 5  # a line for each class


def test_the_drawing_has_a_colour_for_each_kind(blurry):
    bars, cells = blurry.figure().axes
    assert [text.get_text() for text in bars.get_legend().get_texts()] == [
        "disjoint",
        "blurry",
        "moved away from home",
    ]
    assert len(cells.texts) == (blurry.counts > 0).sum()
    assert plots.png(bars.figure).startswith(b"\x89PNG")


def test_a_stream_without_kinds_is_drawn_plain():
    found = StreamMap.of(split.plan(TARGETS, experiences=4), TARGETS, "split")
    assert "moved" not in found.table()
    assert found.figure().axes[0].get_legend() is None


def test_a_million_labels_of_many_classes_take_seconds():
    targets = np.random.default_rng(0).integers(0, 2000, 10**6)
    started = time.process_time()
    found = StreamMap.of(si_blurry.plan(targets, sessions=50), targets, "large")
    plots.png(found.figure())
    assert len(found.table().splitlines()) == 55
    assert time.process_time() - started < 8


# ------------------------------------------------------------------------------ the command


def test_the_command_says_which_images_take_no_part(tmp_path, capsys):
    tail = ["scenario.long_tail=ordered", "scenario.imbalance=20", "scenario.experiences=5"]
    assert main(["stream", "split", "data=digits", *tail, f"out={tmp_path / 'map.png'}"]) == 0
    printed = capsys.readouterr().out
    assert "957 of 1437 training images take no part: a long tail (ordered, imbalance 20)" in printed


def test_the_command_shows_the_stream(tmp_path, capsys):
    out = tmp_path / "map.png"
    words = ["si-blurry", "data=digits", "scenario.n=50", "scenario.m=10", "seed=3", f"out={out}"]
    assert main(["stream", *words]) == 0
    printed = capsys.readouterr().out
    assert "si_blurry stream of digits, seed 3" in printed
    assert "1437" in printed
    assert str(out) in printed
    assert out.read_bytes().startswith(b"\x89PNG")


def test_labels_alone_are_enough(tmp_path, capsys):
    np.save(tmp_path / "labels.npy", TARGETS)
    out = tmp_path / "map.png"
    labels = f"labels={tmp_path / 'labels.npy'}"
    assert main(["stream", "si_blurry", labels, "scenario.sessions=3", f"out={out}"]) == 0
    assert "600" in capsys.readouterr().out


def test_the_stream_of_a_configuration_is_drawn_with_its_overrides():
    ((found, out),) = stream.read("quickstart-siblurry", ["scenario.sessions=3", "strategy.pool_size=4"])
    assert found.counts.shape == (3, 10)
    assert out.name == "stream-si_blurry-seed1.png"


FORMS = [
    *(
        "seed: 0,1",
        "seed: '0, 1'",
        "seed: [0, 1]",
        "seed: 3",
        "label: '${name}'\nname: x",
        "compare: 'ncm,l2p'",
    ),
    *("data: {name: digits}", "data: digits", "scenario: {name: split, experiences: 5}", "scenario: split"),
    *("online: {}", "online: null", "training: null", "strategy: ncm", "name: null", "runs_dir: '\\${x}'"),
]


@pytest.mark.parametrize("form", FORMS)
def test_every_form_that_a_run_takes_draws_its_stream(form, tmp_path, recwarn):
    sections = {"data": "digits", "scenario": "split", "backbone": "vit_letters", "strategy": "linear_probe"}
    path = tmp_path / "form.yaml"
    others = [f"{key}: {name}\n" for key, name in sections.items() if not form.startswith(key)]
    path.write_text("".join(others) + form)
    assert config.load(path).seeds[0] == (3 if form == "seed: 3" else 0)
    ((_, out),) = stream.read(str(path))
    assert out.name == f"stream-split-seed{config.load(path).seeds[0]}.png"
    told = [str(warning.message) for warning in recwarn if warning.category is DataWarning]
    assert told == ["the stream of seed 0; of others: seed=1"] * ("1" in form)


def drip(labels, *, first: int = 2, seed: int = 0) -> Plan:
    """The first classes together, then one class after the other; labels by a name of their own."""
    classes = np.unique(labels)
    groups = [classes[:first], *classes[first:, None]]
    indices = tuple(np.flatnonzero(np.isin(labels, group)) for group in groups)
    return Plan(indices, tuple(tuple(map(int, group)) for group in groups), int(classes[-1]) + 1)


def test_a_study_draws_its_streams_whatever_a_scenario_calls_its_labels(tmp_path, capsys, monkeypatch):
    registry.scenarios.names()  # the built-in ones first
    monkeypatch.setattr(registry.scenarios, "_entries", dict(registry.scenarios._entries))
    registry.scenarios.register("drip")(drip)
    path = tmp_path / "both.yaml"
    path.write_text(
        "data: digits\nscenarios: {split: {experiences: 5}, slow: {name: drip, first: 4}}\n"
        "backbone: vit_letters\nstrategies: {ncm: {}, linear_probe: {}}\nseed: 3,4\n"
    )
    assert main(["stream", str(path), f"out={tmp_path / 'map.png'}"]) == 0
    printed = capsys.readouterr().out
    assert "split stream of digits, seed 3" in printed
    assert "drip stream of digits, seed 3" in printed
    assert sorted(p.name for p in tmp_path.glob("*.png")) == ["map-slow.png", "map-split.png"]


def test_a_seed_is_wrong_to_a_stream_as_it_is_to_a_run(tmp_path):
    for wrong in ("0,0", "-1", "one", "[]", "1.5", "true"):
        with pytest.raises(ConfigError) as of_run:
            config.load("quickstart", [f"seed={wrong}"])
        with pytest.raises(ConfigError) as of_stream:
            stream.read("quickstart", [f"seed={wrong}"])
        assert str(of_run.value) == str(of_stream.value)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["si_blurry"], "give data=NAME or labels=FILE.npy"),
        (["si_blury", "data=digits"], "or a scenario ("),
        (
            ["si_blurry", "data=digits", "scenario.n=101"],
            "scenario.n must be at least 0 and at most 100, got 101",
        ),
        (["si_blurry", "data=digits", "scenario.q=1"], 'unknown key "scenario.q"'),
        (["si_blurry", "data=digits", "scenari.n=1"], 'unknown key "scenari"'),
        (["si_blurry", "data=digits", "scenario.sessions=5000"], "1..1437"),
        (["si_blurry", "data=digits", "seed=x"], "seed"),
        (["si_blurry", "labels=nowhere.npy"], "there is no file nowhere.npy"),
        (["si_blurry", "labels=pyproject.toml"], "is not a .npy file"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(words, said, capsys, tmp_path, monkeypatch):
    (tmp_path / "pyproject.toml").write_text("[project]")
    monkeypatch.chdir(tmp_path)
    assert main(["stream", *words]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert list(tmp_path.glob("*.png")) == []


@pytest.mark.parametrize("labels", [[0, -1], [0.5, 1.5], [[0, 1], [1, 0]]])
def test_labels_that_are_no_class_ids_are_one_line(labels, tmp_path, capsys):
    np.save(tmp_path / "labels.npy", np.array(labels))
    assert main(["stream", "si_blurry", f"labels={tmp_path / 'labels.npy'}"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
