"""Sources of text: templates, descriptions and pairs from files, and how several texts become one row."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from image_text import tiny_text

from clprompt.errors import ConfigError, DataWarning
from clprompt.prompting.text.sources import (
    check_fit,
    fill,
    read_candidates,
    read_descriptions,
    read_pairs,
    read_templates,
    tell_of_strangers,
    text_rows,
)

READERS = {
    "templates": read_templates,
    "descriptions": read_descriptions,
    "pairs": read_pairs,
    "candidates": read_candidates,
}
PAIR = {"classes": ["cat", "red_panda"], "prompts": {"cat": ["whiskers"], "red_panda": ["red fur", "rings"]}}


def file(tmp_path: Path, values, name: str = "texts.json") -> str:
    path = tmp_path / name
    path.write_text(values if isinstance(values, str) else json.dumps(values))
    return str(path)


def test_a_template_may_hold_other_braces():
    assert fill("a {} in {braces} or {0}, {}", "cat") == "a cat in {braces} or {0}, cat"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.json", '["a {}", "the {}"]'),
        ("t.yaml", "- a {}\n- the {}\n"),
        ("t.txt", "a {}\n\n  the {}\na {}\n"),
    ],
)
def test_templates_come_from_json_yaml_or_lines(tmp_path: Path, name: str, content: str):
    assert read_templates(file(tmp_path, content, name)) == ["a {}", "the {}"]


@pytest.mark.parametrize(("name", "count"), [("imagenet_7", 7), ("imagenet_80", 80)])
def test_published_templates_are_those_of_open_clip(name: str, count: int):
    metadata = pytest.importorskip("open_clip").zero_shot_metadata
    theirs = (
        metadata.SIMPLE_IMAGENET_TEMPLATES if name == "imagenet_7" else metadata.OPENAI_IMAGENET_TEMPLATES
    )
    ours = read_templates(name)
    assert len(ours) == count
    assert [fill(template, "red panda") for template in ours] == [make("red panda") for make in theirs]


def test_published_templates_without_open_clip_say_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(__import__("sys").modules, "open_clip", None)
    with pytest.raises(ConfigError, match=r"pip install clprompt\[clip\]"):
        read_templates("imagenet_7")


def test_names_in_files_are_compared_as_text(tmp_path: Path):
    assert read_descriptions(file(tmp_path, {"red_panda ": ["it is red"]})) == {"red panda": ["it is red"]}
    pairs = read_pairs(file(tmp_path, [PAIR]))
    assert pairs == {("cat", "red panda"): ["whiskers"], ("red panda", "cat"): ["red fur", "rings"]}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("none.json", None),
        ("folder", ...),
        ("bytes.json", b"\xff\xfe"),
        ("broken.json", "[1,"),
        ("deep.json", "[" * 100_000),
        ("twice.json", '{"cat": ["x"], "cat": ["y"]}'),
        ("broken.yaml", "a: [b"),
        ("null\x00.json", None),
        ("empty.yaml", ""),
        ("number.json", "3"),
        ("numbers.json", "[1, 2]"),
        ("nothing.json", "[]"),
        ("mapping.json", "{}"),
        ("no-list.json", '{"cat": "one sentence"}'),
        ("empty-list.json", '{"cat": []}'),
        ("number-in-list.json", '{"cat": ["x", 3]}'),
        ("blank.json", '["  "]'),
        ("number-as-name.yaml", "3: [x]"),
        ("blank-name.json", '{"_": ["x"]}'),
        ("no-mark.json", '["a photo of a cat"]'),
    ],
)
def test_a_bad_file_is_one_line_that_names_it(tmp_path: Path, reader: str, name: str, content):
    path = tmp_path / name
    if content is ...:
        path.mkdir()
    elif content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigError) as error:
        READERS[reader](str(path))
    line = str(error.value)
    assert line.startswith(reader)
    assert name in line
    assert "\n" not in line


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"classes": ["cat"]}, "pair 2 must be"),
        ({"classes": ["cat", "cat"], "prompts": {"cat": ["x"]}}, "is of one class"),
        (PAIR, "comes twice"),
        ({"classes": ["red_panda", "cat"], "prompts": PAIR["prompts"]}, "comes twice"),
        ({"classes": ["cat", "dog"], "prompts": {"cat": ["x"]}}, 'must be of "cat" and "dog", got "cat"'),
        ({"classes": ["cat", "dog"], "prompts": {"cat": ["x"], "dog": "y"}}, '"dog" must be a list'),
        ("cat, dog", "pair 2 must be"),
    ],
)
def test_a_bad_pair_is_named_by_its_number(tmp_path: Path, entry, words: str):
    with pytest.raises(ConfigError, match=words):
        read_pairs(file(tmp_path, [PAIR, entry]))


def test_a_misspelt_name_of_published_templates_gets_the_nearest():
    with pytest.raises(ConfigError, match='did you mean "imagenet_7"'):
        read_templates("imagenet-7x")


def test_candidates_are_templates_or_sentences(tmp_path: Path):
    assert read_candidates(file(tmp_path, ["a {}"])) == ["a {}"]
    assert read_candidates(file(tmp_path, {"cat": ["fur"]})) == {"cat": ["fur"]}


@pytest.mark.parametrize("rule", ["normalised", "raw"])
def test_a_row_depends_on_its_own_texts_alone(rule):
    text = tiny_text()
    groups = [["a cat", "the cat sleeps"], ["a dog"], ["a bird", "a small bird", "wings"]]
    rows = text_rows(text, groups, rule)
    torch.testing.assert_close(text_rows(text, groups[::-1], rule).flip(0), rows)
    features = text.features(groups[0])
    parts = F.normalize(features, dim=-1) if rule == "normalised" else features
    torch.testing.assert_close(rows[0], F.normalize(parts.mean(0), dim=-1))


def test_no_classes_give_no_rows():
    assert text_rows(tiny_text(), []).shape == (0, 12)


def test_a_text_that_does_not_fit_is_refused_with_its_length_and_file():
    with pytest.raises(ConfigError, match=r'^descriptions d\.json: text "x x .*" is 32 tokens long'):
        check_fit(tiny_text(), ["x " * 30], "descriptions d.json")


def test_names_that_are_no_classes_are_told_once_with_the_nearest_class():
    with pytest.warns(
        DataWarning, match='d.json: "red pnda" and 1 more are no .* did you mean "red panda"'
    ) as w:
        tell_of_strangers(["cat", "red pnda", "lion"], ["cat", "red panda"], "descriptions d.json")
    assert len(w) == 1
