"""Text of other people in tables: no formula to a spreadsheet, no tag or link to a viewer of Markdown."""

from __future__ import annotations

import csv
import io
import math
import re
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from nasty_text import NASTY

from clprompt.errors import printable
from clprompt.reporting.markup import as_markdown, csv_table, html_page, html_table, markdown_table

FORMULAS = [
    "=cmd|' /C calc'!A0",
    "@SUM(1+1)",
    "-2+3",
    "+1+1",
    "\t=1",
    "\r=1",
    "\n=1",
    "＝1+1",
    "'=1",
    "-",
    "-inf",
]
texts = st.one_of(st.text(), st.sampled_from(NASTY + FORMULAS), st.text("'=+-@0.e\r\n,\" "))


def read_back(cell: str) -> str:
    """A name as it was, by the rule that the documentation gives."""
    return cell[1:] if re.match("'+[=+\\-@\t\r\n＝＋－＠]", cell) else cell


@example(FORMULAS)
@example([text for text in NASTY if "\0" not in text])
@given(st.lists(texts, min_size=1, max_size=4))
@settings(max_examples=200, deadline=None)
def test_names_are_read_back_from_a_table_that_holds_no_formula(names: list[str]) -> None:
    names = [name for name in names if "\0" not in name]
    written = csv_table([["name", "share"], *([name, 0.5] for name in names)])
    read = list(csv.reader(io.StringIO(written, newline="")))[1:]
    assert [read_back(name) for name, _ in read] == names
    for name, share in read:
        assert share == "0.5"
        assert not re.match("[=+\\-@\t\r\n＝＋－＠]", name) or math.isfinite(float(name))


def test_numbers_stay_numbers() -> None:
    assert csv_table([[-1, -0.25, 1e-7, "-0.250000", "+3", None, "", "cat", "-2.5e-3"]]) == (
        "-1,-0.25,1e-07,-0.250000,+3,,,cat,-2.5e-3\n"
    )


def test_ordinary_names_are_written_as_they_are() -> None:
    names = ["cat", "n01440764", "a b", "a,b", 'the "third"', "ünï", "3", "a=b", "x-1", "'tis"]
    expected = io.StringIO()
    csv.writer(expected, lineterminator="\n").writerow(names)
    assert csv_table([names]) == expected.getvalue()


def test_a_path_that_looks_like_a_formula_still_names_its_file() -> None:
    paths = [Path("=1.png"), Path("-2.png"), Path("a/=1.png"), Path("/x.png")]
    assert csv_table([paths]) == "./=1.png,./-2.png,a/=1.png,/x.png\n"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("<script>alert(1)</script>", "&lt;script&gt;alert(1)&lt;/script&gt;"),
        ("<img src=x onerror=alert(1)>", "&lt;img src=x onerror=alert(1)&gt;"),
        ("[click](javascript:alert(1))", "[click]\\(javascript:alert(1))"),
        ("![x](http://example.com/y.png)", "![x]\\(http://example.com/y.png)"),
        ("[a][b]", "[a]\\[b]"),
        ("a|b", "a\\|b"),
        ("a\nb\r\nc", "a b c"),
        ("\x1b[31mred", "\\x1b[31mred"),
        ("layers=[0, 1], A & B", "layers=[0, 1], A &amp; B"),
        ("linear_probe lr=0.01", "linear_probe lr=0.01"),
    ],
)
def test_markdown_shows_text_and_obeys_none(text: str, shown: str) -> None:
    assert as_markdown(text) == shown
    assert markdown_table([[text], ["x"]])[0] == f"| {shown} |"


@pytest.mark.parametrize("text", NASTY + FORMULAS)
def test_a_page_holds_no_tag_and_no_control_character_of_a_name(text: str) -> None:
    page = html_page(text, [html_table([["name"], [text]])])
    assert "<script>" not in page
    assert printable(page) == page
    page.encode()


@pytest.mark.parametrize("text", NASTY)
def test_printable_text_keeps_what_a_terminal_only_shows(text: str) -> None:
    shown = printable(text)
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\ud800-\udfff]", shown)
    assert shown == text or "\\" in shown
    assert printable("ünï 数据 👩\u200d💻\n\tx") == "ünï 数据 👩\u200d💻\n\tx"
