"""The report: means over seeds by strategy, one table per stream, and a page that needs nothing else."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from report_runs import OF_ALL, a_run

from clprompt.cli.main import main
from clprompt.errors import CheckpointError, ConfigError, RunFolderError
from clprompt.metrics.last import LastPredictions
from clprompt.reporting import plots, predictions, report
from clprompt.reporting.paired import Comparison


def cells(text: str, name: str) -> list[str]:
    """The cells of the first line of a printed table that begins with a name."""
    line = next(line for line in text.splitlines() if line.startswith(name))
    return re.split(r"\s{2,}", line)


class Page(HTMLParser):
    """What a page shows and what it loads."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.sources: list[str] = []
        self.texts: list[str] = []
        self.tags: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


# ------------------------------------------------------------------------------------------------ the table


def test_runs_that_differ_in_their_seed_alone_are_one_row(
    tmp_path: Path,
) -> None:
    for seed, accuracy in enumerate((0.5, 0.7)):
        a_run(tmp_path / f"a{seed}", seed=seed, accuracy=accuracy)
        a_run(tmp_path / f"b{seed}", seed=seed, accuracy=0.9, strategy="beta")
    text = report.collect([tmp_path]).text(500)
    assert text.startswith("split on digits, 2 class groups\n")
    assert cells(text, "strategy") == [
        *("strategy", "seeds", "average accuracy", "incremental", "forgetting", "parameters", "seconds"),
    ]
    assert cells(text, "alpha") == [
        *("alpha", "2", "60.0 ± 10.0", "60.0 ± 10.0", "25.0 ± 0.0", "1,234", "10.5"),
    ]
    assert text.index("\nbeta") < text.index("\nalpha")  # the best first


def test_differences_are_paired_by_seed_and_stand_in_a_table_of_their_own(tmp_path: Path) -> None:
    # seeds differ far more than methods
    for seed, (base, other) in enumerate(((0.3, 0.35), (0.5, 0.57), (0.9, None))):
        a_run(tmp_path / f"a{seed}", seed=seed, accuracy=base)
        if other is not None:
            a_run(tmp_path / f"b{seed}", seed=seed, accuracy=other, strategy="beta")
    a_run(tmp_path / "elsewhere", strategy="beta", experiences=3)
    found = report.collect([tmp_path], against="alpha")
    tables = {section.slug: found.tables(section) for section in found.sections}
    _, differences, _, forgotten = tables["digits-split-2"]
    assert differences[0] == [
        "average accuracy (positive: the first is better)",
        *("seeds", "difference", "95% interval", "p (t)", "p (sign)"),
    ]
    # 6 - 12.706 and 6 + 12.706; t = 6 on one degree of freedom; two of two signs
    assert differences[1:] == [["beta minus alpha", "2", "+6.0 ± 1.0", "-6.7 .. +18.7", "0.11", "0.5"]]
    assert forgotten[0][0] == "forgetting (negative: the first is better)"
    assert forgotten[1][2:] == ["+0.0 ± 0.0", "-", "-", "1"]  # equal differences say nothing of how they vary
    assert len(tables["digits-split-3"]) == 1  # alpha did not run there
    found.write(tmp_path / "out")
    for text in (
        found.text(500),
        (tmp_path / "out" / "report.md").read_text(),
        (tmp_path / "out" / "report.html").read_text(),
    ):
        assert "beta minus alpha" in text
    assert "minus" not in report.collect([tmp_path]).text(500)


def test_a_run_of_two_heads_is_two_rows_that_can_be_subtracted(tmp_path: Path) -> None:
    for seed, (both, trained) in enumerate(((0.5, 0.4), (0.7, 0.5))):
        a_run(tmp_path / f"a{seed}", seed=seed, accuracy=both, trained=trained)
    a_run(tmp_path / "b", strategy="beta", accuracy=0.1)
    found = report.collect([tmp_path], against="alpha (trained head)")
    text = found.text(500)
    assert cells(text, "alpha  ")[1:5] == ["2", "60.0 ± 10.0", "60.0 ± 10.0", "25.0 ± 0.0"]
    assert cells(text, "alpha (trained head)")[1:5] == ["2", "45.0 ± 5.0", "45.0 ± 5.0", "0.0 ± 0.0"]
    assert cells(text, "alpha minus alpha (trained head)")[1:3] == ["2", "+15.0 ± 5.0"]
    assert "checksums: 3 of 3 runs hold none" in text  # a run of two rows is one run
    found.write(tmp_path / "out")
    assert "| alpha (trained head) | 2 |" in (tmp_path / "out" / "report.md").read_text()


def test_no_label_is_taken_by_a_trained_head(tmp_path: Path) -> None:
    a_run(tmp_path / "a", trained=0.4)
    a_run(tmp_path / "b", label="alpha (trained head)")
    (section,) = report.collect([tmp_path]).sections
    assert len({row.label for row in section.rows}) == 3


@pytest.mark.parametrize("file", ["results.json", "metrics.jsonl"])
def test_a_trained_head_that_one_file_alone_tells_of_is_left_out(tmp_path: Path, file: str) -> None:
    a_run(tmp_path / "good", strategy="beta")
    folder = a_run(tmp_path / "a", trained=0.4)
    other = a_run(tmp_path / "without")
    (folder / file).write_bytes((other / file).read_bytes())
    ((left_out, why),) = report.collect([tmp_path / "good", folder]).left_out
    assert left_out == folder
    assert f"{file} holds no trained_head" in why


@pytest.mark.parametrize("odd", [5, [0.5], {"average_accuracy": 1.5}, {"forgetting": "low"}])
def test_results_of_a_trained_head_of_another_kind_are_left_out(tmp_path: Path, odd: Any) -> None:
    a_run(tmp_path / "good", strategy="beta")
    folder = a_run(tmp_path / "a", trained=0.4)
    results = json.loads((folder / "results.json").read_text())
    (folder / "results.json").write_text(json.dumps({**results, "trained_head": odd}))
    ((_, why),) = report.collect([tmp_path]).left_out
    assert "results.json" in why
    assert "trained_head" in why


# ------------------------------------------------------------------------------------------ over test images


def right_on(*images: int, count: int = 40, trained: int = 0, **more: Any) -> LastPredictions:
    """Predictions of images of class 1 that are right on some; the trained head's are on the first ones."""
    outputs = np.zeros(count, dtype=np.int32)
    outputs[list(images)] = 1
    head = (np.arange(count) < trained).astype(np.int32) if trained else None
    made = LastPredictions(
        np.arange(count, dtype=np.int32),
        np.ones(count, dtype=np.int32),
        outputs,
        head,
        test_set=np.zeros(32, dtype=np.uint8),
    )
    return replace(made, **more)


def over_images(folder: Path, against: str = "alpha") -> Comparison:
    (section,) = report.collect([folder], against=against).sections
    return section.compared


def test_rows_are_compared_over_test_images_seed_by_seed_and_all_together(tmp_path: Path) -> None:
    for seed in (0, 1):
        a_run(tmp_path / f"a{seed}", seed=seed, last=right_on(*range(10)))
        last = right_on(*range(1, 9 + 8 * (seed + 1)))  # 1 lost, 7 and 15 gained
        a_run(tmp_path / f"b{seed}", seed=seed, strategy="beta", last=last)
    found = over_images(tmp_path)
    header, (label, seeds, images, mean, interval, p) = found.table
    assert header == [
        "accuracy over test images (positive: the first is better)",
        "seeds",
        "images",
        "difference",
        "95% interval",
        "McNemar's p by seed",
    ]
    assert (label, seeds, images) == ("beta minus alpha", "2", "40")
    assert mean == "+25.0"  # of 6 and 14 in 40
    assert p == "0.07, 0.00052"  # 18 / 256 and 34 / 65536
    low, high = map(float, interval.split(" .. "))
    assert 5 < low < 15 < 35 < high < 45
    (remark,) = found.remarks
    assert "McNemar's p: his exact test of each seed" in remark


def test_both_heads_of_a_run_are_compared_over_test_images(tmp_path: Path) -> None:
    a_run(tmp_path / "a", trained=0.4, last=right_on(*range(12), trained=6))
    found = over_images(tmp_path, "alpha (trained head)")
    assert found.table[1][:4] == ["alpha minus alpha (trained head)", "1", "40", "+15.0"]


def test_label_sets_are_compared_by_their_map(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    targets = (draw.random((50, 3)) < 0.4).astype(np.uint8)
    for name, noise in (("alpha", 2.0), ("beta", 0.5)):
        scores = (targets + noise * draw.normal(size=(50, 3))).astype(np.float32)
        last = right_on(count=50, targets=targets, outputs=scores, classes=np.arange(3, dtype=np.int32))
        a_run(tmp_path / name, strategy=name, last=last)
    header, line = over_images(tmp_path).table
    assert header[0] == "mAP over test images (positive: the first is better)"
    assert header[3:] == ["difference", "95% interval"]
    low, high = map(float, line[4].split(" .. "))
    assert 0 < low < float(line[3]) < high


OTHERS: dict[str, tuple[Any, str]] = {
    "none": (None, "not compared over test images, no predictions.npz: beta (seed 0)"),
    "images": (right_on(3, count=39), "tested on other images than alpha: beta (seed 0)"),
    "targets": (
        right_on(3, targets=np.zeros(40, dtype=np.int32)),
        "tested on other images than alpha: beta (seed 0)",
    ),
    "test set": (
        right_on(3, test_set=np.ones(32, dtype=np.uint8)),
        "tested on other images than alpha: beta (seed 0)",
    ),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_one_line_says_why_a_row_is_not_compared_over_test_images(tmp_path: Path, kind: str) -> None:
    other, line = OTHERS[kind]
    a_run(tmp_path / "a", last=right_on(1))
    a_run(tmp_path / "b", strategy="beta", last=other)
    found = report.collect([tmp_path], against="alpha")
    assert found.sections[0].compared.table == []
    (remark,) = found.sections[0].compared.remarks
    assert remark.endswith(line)
    found.write(tmp_path / "out")
    assert remark in " ".join(found.text(500).split())
    assert remark in Page(tmp_path / "out" / "report.html").texts


def test_seeds_with_other_test_images_have_no_common_interval(tmp_path: Path) -> None:
    for seed in (0, 1):
        for name, right in (("alpha", (1,)), ("beta", (1, 2))):
            last = right_on(*right, count=30 + seed)
            a_run(tmp_path / f"{name}{seed}", seed=seed, strategy=name, last=last)
    found = over_images(tmp_path)
    assert found.table[1][4:] == ["-", "1, 1"]
    assert found.remarks[1].endswith("no interval over seeds with other test images: beta")


def test_damaged_predictions_leave_a_run_in_its_table(tmp_path: Path) -> None:
    a_run(tmp_path / "a", last=right_on(1))
    path = a_run(tmp_path / "b", strategy="beta", last=right_on(2)) / "predictions.npz"
    data = path.read_bytes()
    path.write_bytes(data[:40] + bytes([data[40] ^ 1]) + data[41:])
    found = report.collect([tmp_path], against="alpha")
    assert [row.label for row in found.sections[0].rows] == ["alpha", "beta"]
    (remark,) = found.sections[0].compared.remarks
    assert f"{path} was changed or damaged" in remark


ODD: dict[str, dict[str, Any]] = {
    "another kind": {"outputs": np.zeros(40)},
    "another length": {"targets": np.zeros(39, dtype=np.int32)},
    "images twice": {"images": np.zeros(40, dtype=np.int32)},
    "pickled": {"outputs": np.array([None] * 40)},
    "no test set": {"test_set": None},
    "scores of labels": {"classes": np.arange(2, dtype=np.int32)},
}


@pytest.mark.parametrize("kind", ODD)
def test_arrays_that_are_no_predictions_are_refused_in_one_line(tmp_path: Path, kind: str) -> None:
    checksum = predictions.write(tmp_path, right_on(1, **ODD[kind]))
    with pytest.raises(
        CheckpointError, match=r"predictions\.npz (cannot be read|holds no predictions)"
    ) as caught:
        predictions.read(tmp_path, checksum)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("data", [b"", b"PK", b"\x93NUMPY\x01\x00", b"text"])
def test_a_file_of_anything_else_holds_no_predictions(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "predictions.npz").write_bytes(data)
    with pytest.raises(CheckpointError, match=r"predictions\.npz cannot be read"):
        predictions.read(tmp_path, hashlib.sha256(data).hexdigest())


def test_the_command_takes_the_row_to_subtract(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a_run(tmp_path / "runs" / "a", accuracy=0.5)
    a_run(tmp_path / "runs" / "b", accuracy=0.25, strategy="beta")
    words = ["report", str(tmp_path / "runs"), "--out", str(tmp_path / "out"), "--against"]
    assert main([*words, "alpha"]) == 0
    assert cells(capsys.readouterr().out, "beta minus alpha") == [
        *("beta minus alpha", "1", "-25.0", "-", "-", "-"),  # of one seed nothing can be said
    ]


def test_the_signs_of_seeds_cannot_tell_more_than_their_number(tmp_path: Path) -> None:
    for seed, accuracy in enumerate((0.3, 0.5, 0.9)):
        a_run(tmp_path / f"a{seed}", seed=seed, accuracy=accuracy)
        a_run(tmp_path / f"b{seed}", seed=seed, accuracy=accuracy + 0.01 * (1 + seed), strategy="beta")
    found = report.collect([tmp_path], against="alpha")
    (first, *_) = found.remarks(found.sections[0])
    assert "cannot be below (seeds: p) 3: 0.25" in first
    found.write(tmp_path / "out")
    assert first in " ".join(found.text(500).split())
    assert first in Page(tmp_path / "out" / "report.html").texts


def test_a_report_for_a_terminal_fits_eighty_columns(tmp_path: Path) -> None:
    for seed, accuracy in enumerate((0.3, 0.5)):
        for length in (4, 8):
            folder = tmp_path / f"{length}-{seed}"
            a_run(
                folder, seed=seed, accuracy=accuracy, arguments={"length": length, "a_long_argument": length}
            )
    found = report.collect([tmp_path], against="alpha (a_long_argument=4, length=4)")
    found.noted.clear()  # lines with folders are not broken
    lines = found.text().splitlines()
    assert max(map(len, lines)) <= 80
    assert any("30.0" in line or "40.0 ± 10.0" in line for line in lines)


def test_few_test_images_are_told_with_what_they_leave_uncertain(tmp_path: Path) -> None:
    for name, accuracy in (("alpha", 0.5), ("beta", 0.9)):
        folder = a_run(tmp_path / name, strategy=name, accuracy=accuracy)
        records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        records[-1]["confusion"] = [[0, 0, 40], [0, 1, 10], [1, 1, 50]]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    found = report.collect([tmp_path])
    (line,) = found.remarks(found.sections[0])
    assert line.startswith(
        "Few test images: with 100 of them the sampling error of one accuracy is up to ±5.0"
    )
    assert "(alpha)" in line
    assert line in " ".join(found.text(500).split())
    records[-1]["confusion"] = [[0, 0, 10**5]]
    (tmp_path / "alpha" / "metrics.jsonl").unlink()
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    found = report.collect([tmp_path])
    assert found.remarks(found.sections[0]) == []


def test_rows_of_other_masks_are_named(tmp_path: Path) -> None:
    for name, mask in (("alpha", "experience"), ("beta", "seen"), ("gamma", None)):
        folder = a_run(tmp_path / name, strategy=name)
        (folder / "environment.json").write_text(json.dumps({"mask": mask} if mask else {}))
    (section,) = report.collect([tmp_path]).sections
    (line,) = section.remarks()
    assert "mask=experience (alpha); mask=seen (beta)." in line
    (tmp_path / "beta" / "environment.json").write_text(json.dumps({"mask": "experience"}))
    (section,) = report.collect([tmp_path]).sections
    assert section.remarks() == []
    a_run(tmp_path / "older", strategy="delta", arguments={"mask": "none"})  # its configuration tells it
    assert "mask=none (delta)" in report.collect([tmp_path]).text(500)


def test_each_row_tells_what_is_not_the_default(tmp_path: Path) -> None:
    of_all = ["data.test_fraction", "training.lr", "training.train_epochs"]
    for name, lr, more in (("alpha", 0.1, ["strategy.length"]), ("beta", 0.2, []), ("gamma", 0.1, None)):
        training = {"lr": lr, "train_epochs": 3}
        folder = a_run(tmp_path / name, strategy=name, arguments={"length": 4, "top": 1}, training=training)
        told = {} if more is None else {"not_default": [*of_all, *more] if lr > 0.1 or more else more}
        (folder / "environment.json").write_text(json.dumps(told))
    found = report.collect([tmp_path])
    assert found.sections[0].arguments() == ["alpha: length=4, training.lr=0.1", "beta: training.lr=0.2"]
    assert found.sections[0].details == "test_fraction=0.2, experiences=2"  # an older run is among them
    found.write(tmp_path / "out")
    for text in (
        found.text(500),
        *((tmp_path / "out" / f"report.{kind}").read_text() for kind in ("md", "html")),
    ):
        assert "alpha: length=4, training.lr=0.1" in text
    (tmp_path / "gamma" / "environment.json").write_text(json.dumps({"not_default": []}))
    (section,) = report.collect([tmp_path]).sections
    assert section.details == "test_fraction=0.2"
    assert "gamma: the defaults" in section.arguments()


def test_numbers_that_are_the_same_for_every_seed_are_told(tmp_path: Path) -> None:
    for seed, accuracy in enumerate((0.5, 0.7)):
        lost = {"forgetting": accuracy}
        a_run(tmp_path / f"a{seed}", seed=seed, accuracy=accuracy, metrics=lost)
        a_run(tmp_path / f"b{seed}", seed=seed, accuracy=0.5 + 0.0001 * seed, strategy="beta", metrics=lost)
    a_run(tmp_path / "c", strategy="gamma")  # of one seed nothing is known
    (section,) = report.collect([tmp_path]).sections
    (line,) = section.remarks()
    assert line.startswith("± 0.0 (beta): seeds agree")


def test_the_command_names_the_rows_when_there_is_none_of_that_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a_run(tmp_path / "runs" / "a", accuracy=0.5)
    a_run(tmp_path / "runs" / "b", accuracy=0.25, strategy="beta")
    words = ["report", str(tmp_path / "runs"), "--out", str(tmp_path / "out"), "--against", "gamma"]
    assert main(words) == 2
    assert "no row 'gamma' to compare with; the rows are alpha, beta" in capsys.readouterr().err


def test_other_arguments_are_another_row_that_names_what_differs(tmp_path: Path) -> None:
    a_run(tmp_path / "a", arguments={"length": 4})
    a_run(tmp_path / "b", arguments={"length": 8})
    a_run(tmp_path / "c", arguments={"length": 8}, seed=1, training={"lr": 0.2})
    (section,) = report.collect([tmp_path]).sections
    assert {row.label for row in section.rows} == {
        "alpha (length=4, training.lr=0.1)",
        "alpha (length=8, training.lr=0.1)",
        "alpha (length=8, training.lr=0.2)",
    }


def test_configurations_are_told_apart_by_their_names_where_that_is_enough(tmp_path: Path) -> None:
    a_run(tmp_path / "a", name="short", arguments={"length": 4})
    a_run(tmp_path / "b", name="long", arguments={"length": 8})
    (section,) = report.collect([tmp_path]).sections
    assert sorted(row.label for row in section.rows) == ["alpha (long)", "alpha (short)"]


def test_another_stream_is_another_table(tmp_path: Path) -> None:
    a_run(tmp_path / "a")
    a_run(tmp_path / "b", experiences=3)
    a_run(tmp_path / "c", data={"name": "letters"})
    a_run(tmp_path / "d", online={"iterations": 1})
    a_run(tmp_path / "e", data={"name": "digits", "test_fraction": 0.2, "path": "elsewhere"}, strategy="beta")
    found = report.collect([tmp_path])
    assert [section.title for section in found.sections] == [
        "split on digits, 2 class groups",
        "split on digits, 3 class groups",
        "split on letters, 2 class groups",
        "split on digits, online, 2 class groups",
    ]
    assert [len(section.rows) for section in found.sections] == [2, 1, 1, 1]
    written = {path.name for path in found.write(tmp_path / "out")}
    assert "forgetting-digits-split-online-2.png" in written
    assert len(written) == 2 + 2 * 4


def test_only_metrics_that_some_run_has_are_columns(tmp_path: Path) -> None:
    a_run(tmp_path / "a", experiences=1, metrics={"A_auc": 0.3, "mAP_last": None})
    header = cells(report.collect([tmp_path]).text(500), "strategy")
    assert "A_auc" in header
    assert "forgetting" not in header
    assert "mAP last" not in header


def test_a_table_shows_the_metrics_that_it_is_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a_run(tmp_path / "a", metrics={"last_accuracy": 0.55})  # as written before there were the other two
    a_run(tmp_path / "b", strategy="beta", metrics={"nonnegative_forgetting": 0.125})
    names = "nonnegative_forgetting, average_incremental_accuracy_by_samples,last_accuracy"
    assert main(["report", str(tmp_path), f"out={tmp_path / 'out'}", "--metrics", names]) == 0
    assert "nonnegative" in capsys.readouterr().out
    text = report.collect([tmp_path], metrics=[name.strip() for name in names.split(",")]).text(500)
    asked = ["nonnegative forgetting", "incremental by samples", "last"]
    assert cells(text, "strategy") == ["strategy", "seeds", *asked, "parameters", "seconds"]
    # group 1 gains what it had lost, so nothing: its records tell it
    assert cells(text, "alpha")[1:5] == ["1", "0.0", "50.0", "55.0"]
    assert cells(text, "beta")[1:5] == ["1", "12.5", "50.0", "-"]


def test_a_metric_that_there_is_not_is_one_line(tmp_path: Path) -> None:
    a_run(tmp_path / "a")
    with pytest.raises(ConfigError, match=r'no metric is called "forgeting"; did you mean "forgetting"\?'):
        report.collect([tmp_path], metrics=["forgeting"])
    with pytest.raises(RunFolderError, match="no run has the metric mAP_last"):
        report.collect([tmp_path], metrics=["forgetting", "mAP_last"])


def test_the_same_run_made_twice_counts_once(tmp_path: Path) -> None:
    a_run(tmp_path / "20260101-seed0", accuracy=0.1)
    a_run(tmp_path / "20260102-seed0", accuracy=0.5)
    found = report.collect([tmp_path])
    assert cells(found.text(500), "alpha")[1:3] == ["1", "50.0"]
    assert "20260101-seed0: " in found.text(500)


# ------------------------------------------------------------------------------------------------ the folders


def test_unfinished_runs_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a_run(tmp_path / "runs" / "one" / "a")
    unfinished = a_run(tmp_path / "runs" / "one" / "b", seed=1)
    (unfinished / "results.json").unlink()
    damaged = a_run(tmp_path / "runs" / "c", seed=2)
    (damaged / "results.json").write_text("{")
    (tmp_path / "runs" / "README.md").write_text("not a run")
    (tmp_path / "runs" / "empty").mkdir()
    words = [*map(str, sorted((tmp_path / "runs").iterdir())), f"out={tmp_path / 'out'}"]
    assert main(["report", *words]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert f"  {unfinished}: not finished\n" in out
    assert f"  {damaged}: it cannot be read: " in out
    assert cells(out, "alpha")[1] == "1"
    for name in ("report.md", "report.html", "average_accuracy.png", "forgetting.png"):
        assert str(tmp_path / "out" / name) in out
        assert (tmp_path / "out" / name).stat().st_size > 0


def test_nothing_finished_is_a_mistake_that_names_what_is_there(tmp_path: Path) -> None:
    folder = a_run(tmp_path / "a")
    (folder / "results.json").unlink()
    with pytest.raises(RunFolderError, match=r"no finished run to report; left out: .*a \(not finished\)"):
        report.collect([tmp_path])


def test_a_damaged_environment_is_noted_wherever_the_report_is_read(tmp_path: Path) -> None:
    folder = a_run(tmp_path / "a")
    (folder / "environment.json").write_text("{")
    found = report.collect([folder])
    found.write(tmp_path / "out")
    texts = [
        found.text(500),
        *((tmp_path / "out" / name).read_text() for name in ("report.md", "report.html")),
    ]
    assert all("environment.json cannot be read: it is no JSON" in text for text in texts)


def test_results_without_checksums_that_say_otherwise_than_the_records_are_noted(tmp_path: Path) -> None:
    text = report.collect([a_run(tmp_path / "a", metrics={"average_accuracy": 0.9})]).text(500)
    assert "results.json says average_accuracy=0.9, its metrics.jsonl 0.55" in text


def test_the_report_says_how_many_runs_hold_no_checksums(tmp_path: Path) -> None:
    text = report.collect([a_run(tmp_path / "a"), a_run(tmp_path / "b", seed=1)]).text(500)
    assert "checksums: 2 of 2 runs hold none, as an older version wrote them" in text


# ------------------------------------------------------------------------------------------------ the files


def test_the_page_loads_nothing(tmp_path: Path) -> None:
    a_run(tmp_path / "a", strategy="<b>bold</b>|$x_1$")
    a_run(tmp_path / "b", experiences=3)
    report.collect([tmp_path]).write(tmp_path / "out")
    page = Page(tmp_path / "out" / "report.html")
    assert len(page.sources) == 4
    assert all(source.startswith("data:image/png;base64,") for source in page.sources)
    assert "<b>bold</b>|$x_1$" in page.texts
    assert not {"script", "link", "b"} & set(page.tags)
    assert "url(" not in (tmp_path / "out" / "report.html").read_text()


def test_the_markdown_file_shows_the_drawings_beside_it(tmp_path: Path) -> None:
    a_run(tmp_path / "a", strategy="a|b")
    report.collect([tmp_path]).write(tmp_path / "out")
    text = (tmp_path / "out" / "report.md").read_text()
    assert "\n| a\\|b | 1 | 50.0 |" in text
    names = re.findall(r"!\[.*\]\((.*)\)", text)
    assert names == ["average_accuracy.png", "forgetting.png"]
    for name in names:
        with Image.open(tmp_path / "out" / name) as image:
            assert image.format == "PNG"


def test_runs_on_multi_hot_targets_have_a_drawing_of_their_map(tmp_path: Path) -> None:
    folder = a_run(tmp_path / "a", metrics={"mAP_last": 0.6, "average_accuracy": None})
    lines = [
        json.dumps(
            {"kind": "evaluation", "when": "experience", "experience": number, "mAP": 0.6 + number / 10}
        )
        for number in range(3)
    ]
    (folder / "metrics.jsonl").write_text("\n".join(lines))
    found = report.collect([folder])
    assert found.text(500).startswith("split on digits, 3 class groups\n")
    assert [path.name for path in found.write(tmp_path / "out")] == ["report.md", "report.html", "mAP.png"]
    assert cells(found.text(500), "strategy")[2] == "mAP last"


def test_the_overlay_draws_the_mean_with_a_band_of_the_standard_error() -> None:
    nan = float("nan")
    curves = {"a": np.array([[nan, 0.5, 0.4], [nan, 0.7, nan]]), "b": np.array([[1.0, 1.0, 1.0]])}
    (axes,) = plots.overlay(curves, "Accuracy", "accuracy (%)").axes
    mean = np.asarray(axes.lines[0].get_ydata(), dtype=float)
    np.testing.assert_allclose(mean, [nan, 60.0, 40.0])
    band = axes.collections[0].get_paths()[0].vertices
    assert (band[:, 1].min(), band[:, 1].max()) == pytest.approx((40.0, 70.0))
    assert {text.get_text() for text in axes.texts} == {"a", "b"}
    plots.png(plots.overlay({}, "nothing", "at all"))


def drawn_references(path: Path) -> dict[str, list[float]]:
    """The dashed lines beside the average accuracies of a report's only stream, in percent by title."""
    (section,) = report.collect([path]).sections
    found: dict[str, Any] = section._references(lambda run: run.references.get("average_accuracy"))
    (axes,) = plots.overlay(section._curves("average_accuracy"), "t", "l", references=found).axes
    dashed = [line for line in axes.lines if line.get_linestyle() == "--"]
    return {str(line.get_label()): np.round(line.get_ydata(), 6).tolist() for line in dashed}


def test_the_zero_shot_line_of_several_methods_is_drawn_once(tmp_path: Path) -> None:
    for seed, accuracy in enumerate((0.5, 0.6)):
        a_run(tmp_path / f"a{seed}", seed=seed, zero_shot=accuracy)
        a_run(tmp_path / f"n{seed}", seed=seed, strategy="ncm")
    a_run(tmp_path / "b1", seed=1, zero_shot=0.6, strategy="beta")
    assert drawn_references(tmp_path) == {"zero-shot line": [55, 50]}
    text = report.collect([tmp_path]).text(500)
    assert cells(text, "strategy")[4:6] == ["forgetting", "zero-shot"]
    assert cells(text, "alpha")[4:6] == ["25.0 ± 0.0", "50.0 ± 5.0"]
    assert cells(text, "ncm")[4:6] == ["25.0 ± 0.0", "-"]
    assert "Zero-shot: average accuracy of the class names" in text


def test_zero_shot_lines_that_differ_are_named_by_their_rows(tmp_path: Path) -> None:
    a_run(tmp_path / "a", accuracy=0.7, zero_shot=0.5)
    a_run(tmp_path / "b", zero_shot=0.7, strategy="beta")
    assert drawn_references(tmp_path) == {
        "zero-shot line (alpha)": [50, 45],
        "zero-shot line (beta)": [70, 65],
    }


def test_transfer_and_base_to_new_stand_in_a_table_of_runs_on_names(tmp_path: Path) -> None:
    a_run(tmp_path / "a", zero_shot=0.5, metrics={"transfer": 0.25, "base_new_H": 0.75})
    a_run(tmp_path / "n", strategy="ncm")
    text = report.collect([tmp_path]).text(500)
    titles = ["zero-shot", "transfer to unseen", "H of base and new"]
    assert cells(text, "strategy")[5:8] == titles
    assert cells(text, "alpha")[5:8] == ["45.0", "25.0", "75.0"]
    assert cells(text, "ncm")[5:8] == ["-", "-", "-"]


def test_runs_without_names_have_no_zero_shot_line(tmp_path: Path) -> None:
    a_run(tmp_path / "a")
    assert drawn_references(tmp_path) == {}
    assert "zero-shot" not in report.collect([tmp_path]).text(500).lower()


# ------------------------------------------------------------------------------------------ what else is told


def test_costs_rates_and_common_settings_stand_beside_the_metrics(tmp_path: Path) -> None:
    cost = {
        "seconds": 9.0,
        "method_parameters": 5,
        "experience_seconds": [2.0, 4.0],
        "peak_memory_bytes": 3 * 2**20,
    }
    shared = {"backbone": {"name": "vit", "img_size": 84, "checkpoint": "/here/w.safetensors"}}
    training = {"train_epochs": 3, "weight_decay": 0.0, "mixup": 0.0, "mixup_probability": 1.0}
    for name, lr in (("alpha", 0.1), ("beta", 0.2)):
        a_run(
            tmp_path / name,
            strategy=name,
            metrics={"cost": cost},
            training=training | {"lr": lr},
            **shared,
        )
    found = report.collect([tmp_path])
    text = found.text(500)
    assert cells(text, "strategy")[-4:] == ["parameters", "seconds", "s/experience", "peak MiB"]
    assert cells(text, "alpha")[-4:] == ["5", "9.0", "3.0", "3"]
    assert (cells(text, "strategy")[2], cells(text, "beta")[2]) == ("lr", "0.2")
    assert found.sections[0].shared == (
        "backbone.checkpoint=w.safetensors, backbone.img_size=84, backbone=vit, train_epochs=3"
    )
    found.write(tmp_path / "out")
    assert "/here" not in (tmp_path / "out" / "report.md").read_text()


def test_a_row_shows_the_rates_that_its_method_was_given_in_place_of_the_common_one(tmp_path: Path) -> None:
    a_run(tmp_path / "a", arguments={"head_lr": 0.004, "prompt_lr": 0.05})
    a_run(tmp_path / "b", strategy="beta")
    a_run(tmp_path / "c", strategy="gamma", metrics={"cost": {"method_parameters": 0}})
    text = report.collect([tmp_path]).text(500)
    assert cells(text, "alpha")[2] == "head_lr=0.004, prompt_lr=0.05"
    assert cells(text, "beta")[2] == "0.1"
    assert cells(text, "gamma")[2] == "-"  # it trains nothing


def test_a_label_names_its_row_and_runs_of_one_strategy_stand_apart(tmp_path: Path) -> None:
    a_run(tmp_path / "a", label="alpha of old", arguments={"length": 4})
    a_run(tmp_path / "b", arguments={"length": 8})
    (section,) = report.collect([tmp_path]).sections
    assert {row.label for row in section.rows} == {"alpha of old", "alpha"}


def test_equal_environments_are_told_once(tmp_path: Path) -> None:
    facts = {
        "device": "cpu",
        "processor": "A Processor",
        "processors": 8,
        "threads": 4,
        "platform": "Some-OS",
        "python": "3.12",
        "versions": {"torch": "2.9", "timm": None},
        "git": {"commit": "0123456789abcdef", "modified": True},
    }
    for number, device in enumerate(("cpu", "cpu", "A GPU")):
        folder = a_run(tmp_path / str(number), seed=number)
        (folder / "environment.json").write_text(json.dumps(facts | {"device": device}))
    text = report.collect([tmp_path]).text(500)
    assert "hardware: A Processor, 8 cores (4 used by a run); Some-OS (2 of 3 runs)\n" in text
    assert "hardware: A GPU, A Processor, 8 cores (4 used by a run); Some-OS (1 of 3 runs)" in text
    assert text.count("versions: ") == 1
    assert {"versions: python 3.12, torch 2.9", "revision: 0123456789ab (modified)"} <= set(text.splitlines())


def test_online_runs_are_told_and_drawn_by_the_metrics_of_their_protocol(tmp_path: Path) -> None:
    merit = {"A_auc": 0.3, "A_avg": 0.4, "A_last": 0.2, "F_last": 0.1}
    for seed, strategy, worth in ((0, "alpha", 0.3), (1, "alpha", 0.3), (0, "beta", 0.5)):
        folder = a_run(
            tmp_path / f"{strategy}{seed}",
            strategy=strategy,
            seed=seed,
            online={"iterations": 1},
            metrics=merit | {"A_auc": worth},
        )
        marks = [100, 200] if seed else [100, 200, 300]
        with open(folder / "metrics.jsonl", "a") as file:
            for mark in marks:
                record = {"kind": "evaluation", "when": "anytime", "experience": 0, "accuracy": 0.5}
                file.write(json.dumps(record | {"nominal": mark}) + "\n")
    found = report.collect([tmp_path])
    (section,) = found.sections
    assert section.metrics() == ["A_auc", "A_avg", "A_last", "F_last"]
    assert [row.label for row in section.rows] == ["beta", "alpha"]
    assert "anytime_accuracy.png" in {path.name for path in found.write(tmp_path / "out")}
    assert any("F_last is a mean over single classes" in line for line in found.remarks(section))
    assert "not F_last" in section.drawings()["forgetting"].axes[0].get_title()
    (axes,) = plots.overlay({"a": [[0.5, 0.6]]}, "t", "l", at=[100, 200], axis="samples received").axes
    assert np.asarray(axes.lines[0].get_xdata()).tolist() == [100, 200]
    assert axes.get_xlabel() == "samples received"


def test_the_anytime_accuracy_is_held_against_the_zero_shot_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = {"kind": "evaluation", "measure": "online"}
    record: dict[str, Any] = {**measured, "accuracy": 0.5, "groups": [0.5, 0.5]}
    names = {"zero_shot": [0.5, 0.5], "own": [None, None], **dict.fromkeys(OF_ALL, 0.5)}
    records = [record | {"when": "anytime", "experience": 0, "nominal": at} for at in (50, 100, 150, 250)]
    for number, (at, line) in enumerate({100: 0.6, 200: 0.4}.items()):
        ended = {"when": "experience", "experience": number, "samples": at, "confusion": []}
        records.append(record | ended | {"names": names | {"zero_shot_base": line}})
    for strategy in ("alpha", "beta"):
        folder = a_run(tmp_path / strategy, strategy=strategy, online={"iterations": 1})
        (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    drawn: list[Any] = []
    overlay = plots.overlay
    monkeypatch.setattr(plots, "overlay", lambda *of, **how: drawn.append(how) or overlay(*of, **how))
    (section,) = report.collect([tmp_path]).sections
    section._anytime()
    (line,) = drawn[0]["references"]["zero-shot line"]
    np.testing.assert_allclose(line, [np.nan, 0.6, 0.5, np.nan])


def test_images_of_label_sets_are_listed_with_all_their_classes(tmp_path: Path) -> None:
    last = LastPredictions(
        images=np.array([0, 2], np.int32),
        targets=np.array([[1, 1], [0, 0]], np.uint8),
        outputs=np.zeros((2, 2), np.float32),
        classes=np.array([2, 0], np.int32),
    )
    files = ["/data/a/1.png", "/data/a/2.png", "/data/=b.png"]
    predictions.write_images(tmp_path, last, files, "/data/", ["cat", "dog", "ant"])
    assert (tmp_path / "test_images.csv").read_text().splitlines() == [
        *("index,path,class", "0,a/1.png,ant; cat", "2,./=b.png,"),
    ]
