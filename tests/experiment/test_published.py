"""Presets beside the released code of their papers: what the heads say is what differs."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

from clprompt.cli.main import main
from clprompt.errors import ConfigError
from clprompt.experiment import config, published
from clprompt.system import overlay

REPOSITORY = Path(__file__).parents[2]
RELEASED = published.names()


def rows(name: str, *overrides: str) -> dict[str, published.Row]:
    return {row.field: row for row in published.against(name, overrides)[1]}


@pytest.mark.parametrize("name", RELEASED)
def test_the_head_of_a_preset_says_every_difference_from_the_released_run_and_no_other(name):
    head = published.head(overlay.find(name))
    assert head.differences is not None
    assert list(head.differences.values()) == published.block(published.against(name)[1])


@pytest.mark.parametrize("name", RELEASED)
def test_every_difference_has_a_reason(name):
    assert [row.field for row in rows(name).values() if row.differs and not row.reason] == []


@pytest.mark.parametrize("name", RELEASED)
def test_every_released_value_is_one_of_a_key_of_the_preset(name):
    keys = overlay.flat(config.load(name).to_dict())
    assert [key for key in published.released(overlay.find(name)).fields if key not in keys] == []


@pytest.mark.parametrize("name", RELEASED)
def test_every_released_value_is_said_by_a_file_of_a_commit(name):
    run = published.released(overlay.find(name))
    assert run.fields
    for field in (run.fields | run.no_switch).values():
        assert re.fullmatch(r"[\w.-]+/[\w.-]+", field.repository)
        assert re.fullmatch(r"[0-9a-f]{40}", field.commit)
        assert field.file
        assert field.called
    assert all(field.reason is None and field.ours is None for field in run.fields.values())
    assert all(field.reason and field.ours != field.released for field in run.no_switch.values())


def test_released_values_are_those_of_presets():
    assert set(RELEASED) <= {name for name, _ in overlay.names()}


@pytest.mark.parametrize("name", [name for name, _ in overlay.names() if not name.startswith("quickstart")])
def test_a_preset_on_a_published_data_set_says_what_differs_or_that_nothing_is_published(name):
    head = published.head(overlay.find(name))
    assert (head.differences is not None) == (name in RELEASED)
    assert bool(head.none) == (name not in RELEASED)


def test_a_line_of_a_head_may_run_on(tmp_path):
    (tmp_path / "own.yaml").write_text(
        "# A preset\n# differs from the published run:\n#   training.lr: ours 1, released 2 (a reason\n"
        "#     that is long)\n#   seed: ours 3, released 4 (short)\n# More words\nseed: 3\n#   seed: ours 5\n"
    )
    assert published.head(tmp_path / "own.yaml") == published.Head(
        {
            "training.lr": "training.lr: ours 1, released 2 (a reason that is long)",
            "seed": "seed: ours 3, released 4 (short)",
        },
        None,
    )


def test_nothing_differs_where_a_head_says_so(tmp_path):
    (tmp_path / "own.yaml").write_text("# A preset\n# differs from the published run: nothing\nseed: 3\n")
    assert published.head(tmp_path / "own.yaml") == published.Head({}, None)


def test_an_override_is_a_difference_without_a_reason():
    changed = rows("l2p-split-cifar100", "training.lr=0.5")["training.lr"]
    assert (changed.released, changed.ours, changed.differs) == ("0.001875", "0.5", True)
    assert changed.reason == ""
    assert not rows("l2p-split-cifar100")["training.lr"].differs


def test_a_key_that_an_override_takes_away_is_not_set():
    assert rows("l2p-split-cifar100", "strategy=ncm")["strategy.top_k"].ours == "not set"


def test_the_command_line_prints_released_and_ours(capsys):
    assert main(["config", "l2p-split-cifar100", "training.lr=0.5", "--against", "released"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "https://github.com/JH-LEE-KR/l2p-pytorch/tree/f7bc994365f51221e059b7be18c9b08c369444e6" in lines
    table = [line.split() for line in lines]
    assert ["field", "released", "ours"] in table
    assert ["training.lr", "0.001875", "0.5", "differs"] in table
    assert ["training.train_mb_size", "16", "16"] in table
    assert re.fullmatch(r"3 of \d+ fields differ", lines[-1])


def test_a_file_is_compared_as_the_preset_of_its_name(tmp_path, capsys):
    own = tmp_path / "l2p-split-cifar100.yaml"
    own.write_text(overlay.find("l2p-split-cifar100").read_text().replace("top_k: 5", "top_k: 4"))
    assert main(["config", str(own), "--against", "released"]) == 0
    assert ["strategy.top_k", "5", "4", "differs"] in [
        line.split() for line in capsys.readouterr().out.splitlines()
    ]


def test_a_preset_without_a_published_run_is_answered_by_its_reason(tmp_path, capsys):
    own = tmp_path / "own.yaml"
    own.write_text("# A stream\n# no published run: nothing is published for it\ndata: digits\n")
    assert main(["config", str(own), "--against", "released"]) == 2
    assert capsys.readouterr().err == (
        "clprompt: error: own has no published run: nothing is published for it\n"
    )


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("quickstart", 'no published run of "quickstart" is known; known: '),
        ("no-such-preset", 'no configuration is called "no-such-preset"'),
        ("no-such-file.yaml", "no-such-file.yaml: there is no such file"),
    ],
)
def test_what_has_no_published_run_is_answered_in_one_line(name, answer):
    with pytest.raises(ConfigError, match=re.escape(answer)):
        published.against(name)


def test_the_page_of_published_runs_is_made_of_the_presets():
    path = REPOSITORY / "scripts" / "published_runs.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    text = script.PAGE.read_text(encoding="utf-8")
    assert script.page(text) == text, "run python scripts/published_runs.py"
