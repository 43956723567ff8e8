"""A finished run of any strategy is read again as what it was."""

from __future__ import annotations

from pathlib import Path

import pytest

from clprompt.experiment import run as experiment
from clprompt.registry import strategies
from clprompt.reporting.finished import read_run
from tests._shared.small_methods import SMALL

TINY = {"img_size": 8, "patch_size": 4, "in_chans": 1, "embed_dim": 32, "depth": 6, "num_heads": 2}
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


@pytest.mark.usefixtures("same_picture")
@pytest.mark.parametrize("name", strategies.names())
def test_a_report_reads_the_run_of_every_strategy(tmp_path: Path, name: str) -> None:
    needs_text = strategies.get(name).target.needs_text
    (finished,) = experiment.run(
        {
            "device": "cpu",
            "runs_dir": str(tmp_path),
            "retrieval": True,
            "data": {"name": "digits", "train_per_class": 20, "test_fraction": 0.1}
            | ({"class_names": list(DIGITS)} if needs_text else {}),
            "scenario": {"name": "split", "experiences": 2},
            "backbone": {"name": "clip_letters"} if needs_text else {"name": "vit_tiny_patch16_224", **TINY},
            "strategy": {"name": name, **SMALL.get(name, {})},
            "training": {"train_mb_size": 256, "train_epochs": 1, "eval_mb_size": 256},
        }
    )
    run = read_run(Path(finished.folder))
    assert run.results["average_accuracy"] == pytest.approx(finished.summary["average_accuracy"])
    for metric in ("recall_at_1", "frozen_recall_at_1"):
        assert 0 < run.results[metric] == pytest.approx(finished.summary[metric])
    assert run.curves["average_accuracy"][-1] == pytest.approx(run.results["average_accuracy"])
