"""What a report writes for a paper: LaTeX that compiles, CSV with the numbers, drawings as vectors."""

from __future__ import annotations

import csv
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
from report_runs import a_run

from clprompt.cli.main import main
from clprompt.metrics.last import LastPredictions
from clprompt.metrics.paired import over_seeds
from clprompt.reporting import paper, report
from clprompt.reporting.markup import as_latex, latex_table


def three_rows(folder: Path) -> Path:
    """alpha and gamma have one mean, beta the best; of forgetting beta has most."""
    for seed, accuracy in enumerate((0.4, 0.6)):
        for name, more, lost in (("alpha", 0.0, 0.1), ("be_ta & co", 0.2, 0.3), ("gamma", 0.0001, 0.2)):
            metrics = {"forgetting": lost}
            where = folder / f"{name}{seed}"
            a_run(where, strategy=name, seed=seed, accuracy=accuracy + more, metrics=metrics)
    return folder


def lines_of(text: str) -> dict[str, list[str]]:
    """The cells of a LaTeX table's lines by their first cell."""
    rows = [line.strip().removesuffix(r"\\").split(" & ") for line in text.splitlines() if r"\\" in line]
    return {first: [cell.strip() for cell in rest] for first, *rest in rows}


def test_the_best_of_each_column_is_bold_whichever_way_is_better(tmp_path: Path) -> None:
    text = paper.latex(report.collect([three_rows(tmp_path)]))
    lines = lines_of(text.replace(r"\& co", "and co"))
    assert lines["strategy"][0] == r"average accuracy $\uparrow$"
    assert lines["strategy"][2] == r"forgetting $\downarrow$"
    assert lines[r"be\_ta and co"] == [
        r"$\mathbf{70.0} \pm 10.0$",
        r"$\mathbf{70.0} \pm 10.0$",
        r"$30.0 \pm 0.0$",
    ]
    assert lines["alpha"] == [r"$50.0 \pm 10.0$", r"$50.0 \pm 10.0$", r"$\mathbf{10.0} \pm 0.0$"]
    assert "underline" not in text
    assert "over 2 seeds" in text


def test_the_second_best_is_underlined_where_that_is_asked_for(tmp_path: Path) -> None:
    text = paper.latex(report.collect([three_rows(tmp_path)]), underline_second=True)
    lines = lines_of(text)
    assert lines["gamma"][0] == r"$\underline{50.0} \pm 10.0$"  # as good as alpha, as it is shown
    assert lines["alpha"][0] == r"$\underline{50.0} \pm 10.0$"
    assert lines["gamma"][2] == r"$\underline{20.0} \pm 0.0$"


def test_a_column_without_differences_has_no_best(tmp_path: Path) -> None:
    for name in ("alpha", "beta"):
        a_run(tmp_path / name, strategy=name)
    text = paper.latex(report.collect([tmp_path]))
    assert "mathbf" not in text
    assert "one seed" in text


def test_rows_of_other_numbers_of_seeds_say_theirs(tmp_path: Path) -> None:
    a_run(three_rows(tmp_path) / "delta", strategy="delta")
    text = paper.latex(report.collect([tmp_path]))
    assert lines_of(text)["delta"][0] == "$1$"
    assert lines_of(text)["alpha"][0] == "$2$"
    assert "over 1 to 2 seeds" in text


@pytest.mark.parametrize("text", ["100% & $x_1$", r"\input{/etc/passwd}", "a~b^c#d{e}", '<p>|"q"'])
def test_names_are_shown_by_latex_and_not_obeyed(text: str) -> None:
    shown = as_latex(text)
    bare = re.sub(r"\\(?:[{}$&#_%]|text[a-z]+\{\})", "", shown)
    assert not set(bare) & set('\\{}$&#_%~^<>|"')


def test_a_table_is_whole(tmp_path: Path) -> None:
    text = paper.latex(report.collect([three_rows(tmp_path)], against="alpha"))
    begun, ended = (re.findall(rf"\\{word}\{{(\w+)\}}", text) for word in ("begin", "end"))
    assert sorted(begun) == sorted(ended)
    assert begun.count("table") == 2  # the metrics, and the differences in all of them
    for table in text.split(r"\begin{tabular}")[1:]:
        columns = table.splitlines()[0].count("l") + table.splitlines()[0].count("r")
        lines = table.splitlines()
        titles = [line for line in lines if rf"\multicolumn{{{columns}}}" in line]
        rows = [line for line in lines if line.endswith(r"\\") and line not in titles]
        assert len(rows) > 1
        assert {len(re.findall(r"(?<!\\)&", line)) + 1 for line in rows} == {columns}
    bare = re.sub(r"\\.", "", text)  # without escapes and the first letters of commands
    assert bare.count("{") == bare.count("}")
    assert bare.count("$") % 2 == 0
    labels = re.findall(r"\\label\{(.*)\}", text)
    assert len(set(labels)) == 2
    assert len(titles) == 3
    differences = text[text.index("differences to alpha") :]
    assert "percentage points, paired by seed, mean $\\pm$ standard error over 2 seeds" in differences
    assert "paired t test" in differences
    assert "minus" not in lines_of(differences)["gamma"][0]


def test_a_table_over_test_images_says_what_its_interval_is(tmp_path: Path) -> None:
    for seed in range(2):
        for name, outputs in (("alpha", [0, 0]), ("beta", [0, 1])):
            of_image, answers = np.arange(2, dtype=np.int32), np.array(outputs, dtype=np.int32)
            last = LastPredictions(of_image, of_image, answers, test_set=np.zeros(32, dtype=np.uint8))
            a_run(tmp_path / f"{name}{seed}", strategy=name, seed=seed, last=last)
    text = paper.latex(report.collect([tmp_path], against="alpha"))
    table = text[text.index("in accuracy over the same 2 test images") :]
    assert "mean over 2 seeds" in table
    assert "bootstrap" in table
    assert "McNemar's p" in table
    assert lines_of(table)["beta"][0] == "$+50.0$"


def test_what_rows_were_told_and_errors_of_nothing_are_said(tmp_path: Path) -> None:
    for seed in range(2):
        folder = a_run(tmp_path / f"a{seed}", seed=seed, arguments={"length": 4})
        environment = {"not_default": ["strategy.length", "data.test_fraction"], "mask": "seen"}
        (folder / "environment.json").write_text(json.dumps(environment))
    a_run(tmp_path / "b", strategy="beta", arguments={"mask": "batch"})
    text = paper.latex(report.collect([tmp_path]))
    assert (
        "% alpha: length=4\n% Rows differ in the classes that compete in training: mask=seen (alpha)" in text
    )
    assert r"$\pm$ 0.0 (alpha): seeds agree, which tells nothing of other test images." in text


def test_numbers_are_formulas_and_words_are_not() -> None:
    cells = ["x", "72.3 ± 1.4", "-3.5 .. +15.1", "1,234,567", "<0.0001", "0.07, 0.5", "lr=1", "-"]
    (line,) = (line for line in latex_table([cells], "c", "l").splitlines() if line.strip().startswith("x "))
    assert line.strip() == (
        r"x & $72.3 \pm 1.4$ & $-3.5 \ldots {+}15.1$ & $1{,}234{,}567$ & $<0.0001$ & $0.07, 0.5$ & "
        r"lr=1 & - \\"
    )


def test_the_csv_has_the_numbers_of_every_seed(tmp_path: Path) -> None:
    text = paper.csv(report.collect([three_rows(tmp_path)]))
    lines = {(line["strategy"], line["metric"]): line for line in csv.DictReader(text.splitlines())}
    line = lines["alpha", "average_accuracy"]
    assert line["stream"] == "split on digits, 2 class groups"
    assert (line["n"], line["seed_0"], line["seed_1"]) == ("2", "0.4", "0.6")
    assert float(line["mean"]) == pytest.approx(0.5)
    assert float(line["standard_error"]) == pytest.approx(0.1)
    assert lines["gamma", "seconds"]["seed_1"] == "11.0"  # a cost is what was measured
    assert "minus" not in line


def test_the_csv_of_a_report_against_a_row_has_the_differences_and_their_tests(tmp_path: Path) -> None:
    text = paper.csv(report.collect([three_rows(tmp_path)], against="alpha"))
    read = list(csv.DictReader(text.splitlines()))
    own = {(line["strategy"], line["metric"]): line for line in read if not line["minus"]}
    lines = {(line["strategy"], line["metric"]): line for line in read if line["minus"] == "alpha"}
    assert {strategy for strategy, _ in lines} == {"be_ta & co", "gamma"}
    line = lines["gamma", "average_accuracy"]
    both = [
        [float(of[f"seed_{s}"]) for s in (0, 1)]
        for of in (own["gamma", "average_accuracy"], own["alpha", "average_accuracy"])
    ]
    ours = [a - b for a, b in zip(*both, strict=True)]
    assert [float(line["seed_0"]), float(line["seed_1"])] == pytest.approx(ours)
    assert float(line["mean"]) == pytest.approx(sum(ours) / 2)
    found = over_seeds(ours)
    for key, value in {"low": found.low, "high": found.high, "p_t": found.t, "p_sign": found.sign}.items():
        assert line[key] == "" if math.isnan(value) else float(line[key]) == pytest.approx(value)


def test_the_command_writes_all_that_a_paper_needs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    three_rows(tmp_path / "runs")
    latex, numbers, out = tmp_path / "t.tex", tmp_path / "t.csv", tmp_path / "out"
    words = [
        "report",
        str(tmp_path / "runs"),
        "--out",
        str(out),
        "--latex",
        str(latex),
        "--csv",
        str(numbers),
    ]
    assert main([*words, "--figures", "pdf"]) == 0
    shown = capsys.readouterr().out
    for path in (latex, numbers, out / "forgetting.pdf"):
        assert str(path) in shown
    drawn = (out / "forgetting.pdf").read_bytes()
    assert drawn.startswith(b"%PDF")
    assert b"/Type3" not in drawn
    assert main([*words, "--figures", "pdf"]) == 0
    assert (out / "forgetting.pdf").read_bytes() == drawn


def test_underlining_needs_a_file_to_underline_in(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(tmp_path), "--underline-second"]) == 2
    assert "--underline-second needs --latex FILE" in capsys.readouterr().err
