"""Sinks: an outsider's own takes part in a run and is cut back with it."""

import csv
import io
import json
from importlib.metadata import EntryPoint

import numpy as np
import pytest
from matplotlib.figure import Figure

from clprompt import registry
from clprompt.errors import CheckpointError
from clprompt.experiment import run as experiment
from clprompt.system.files import AppendOnlyFile
from clprompt.tracking.sink import Sink
from clprompt.tracking.tensorboard import TensorBoard
from clprompt.tracking.tracker import RunTracker

pytestmark = pytest.mark.usefixtures("same_picture")
NAMES = ["zero", "one"]
GROUPS = [[0], [1]]


class Table(Sink):
    """Everything that a run shows, a line of CSV each."""

    files = ("shown.csv",)

    def __init__(self, folder, earlier=()):
        super().__init__(folder, earlier)
        self.file = AppendOnlyFile(folder / "shown.csv")

    def line(self, *cells):
        buffer = io.StringIO()
        csv.writer(buffer, lineterminator="\n").writerow(cells)
        self.file.append(buffer.getvalue().encode())

    def scalars(self, step, values):
        for tag, value in values.items():
            self.line(step, tag, value)

    def image(self, step, tag, figure):
        self.line(step, tag, type(figure).__name__)

    def histogram(self, step, tag, values):
        self.line(step, tag, f"{values.size} numbers")

    def text(self, step, tag, markdown):
        self.line(step, tag, markdown.splitlines()[0])

    def charts(self, charts):
        self.title = next(iter(charts))

    def settings(self, values):
        self.line("", "settings", json.dumps(values))

    def finish(self):
        self.line("", "finish", "")

    def flush(self):
        return {"shown.csv": self.file.sync()}

    def close(self):
        self.file.close()


class Silent(Sink):
    """Overrides nothing."""


def train(step):
    return {"kind": "train", "step": step, "terms": {"loss": 1 / step}, "lr": 0.01}


def evaluation(experience):
    return {
        "kind": "evaluation",
        "when": "experience",
        "experience": experience,
        "accuracy": 0.5,
        "groups": [[0.5, None], [0.25, 0.75]][experience],
        "confusion": [[0, 0, 1], [0, 1, 1]],
    }


RECORDS = [train(1), evaluation(0), train(2), evaluation(1)]


def lines(folder):
    return list(csv.reader(io.StringIO((folder / "shown.csv").read_text())))


def tracker_in(folder, sizes=None, sinks=(TensorBoard, Table, Silent)):
    return RunTracker(folder, NAMES, GROUPS, sizes, sinks=sinks)


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """The lines of a run that nobody interrupted."""
    folder = tmp_path_factory.mktemp("straight")
    tracker = tracker_in(folder)
    for record in RECORDS:
        tracker.record(record)
    tracker.finish()
    tracker.close()
    return lines(folder)


def test_a_sink_is_told_every_number_of_the_records(straight):
    assert straight[:2] == [["1", "train/loss", "1.0"], ["1", "train/lr", "0.01"]]
    assert ["2", "accuracy/forgetting", "0.25"] in straight


def test_a_sink_is_told_the_plots_of_an_evaluation(straight):
    assert [line for line in straight if line[2] == "Figure"] == [
        [step, tag, "Figure"]
        for step in "12"
        for tag in ("accuracy_matrix", "accuracy_curves", "confusion_matrix")
    ]


def test_a_sink_is_told_the_accuracy_of_each_class_as_a_table(straight):
    assert ["1", "per_class_accuracy", "| class | name | group | samples | correct | accuracy |"] in straight


def test_a_sink_is_told_the_final_metrics_once(straight):
    assert straight[-2:] == [["2", "final/last_accuracy", "0.5"], ["", "finish", ""]]
    assert len([line for line in straight if line[1] == "final/last_accuracy"]) == 1


def test_a_sink_is_told_what_a_method_says_of_itself(tmp_path):
    tracker = tracker_in(tmp_path)
    tracker.diagnostics(3, {"keys": np.ones(5), "scale": 2.5, "picture": Figure()})
    tracker.speed(7, 12.5)
    tracker.settings({"seed": 0})
    tracker.finish()
    tracker.close()
    assert lines(tmp_path) == [
        ["3", "keys", "5 numbers"],
        ["3", "scale", "2.5"],
        ["3", "picture", "Figure"],
        ["7", "speed/images_per_second", "12.5"],
        ["", "settings", '{"seed": 0}'],
        ["", "finish", ""],
    ]


def test_a_sink_knows_the_charts_before_the_first_number(tmp_path):
    assert tracker_in(tmp_path).sinks[1].title == "average accuracy"


@pytest.mark.parametrize("cut", [0, 1, 3, 4])
def test_the_file_of_a_sink_is_cut_back_when_a_run_is_resumed(tmp_path, straight, cut):
    killed = tracker_in(tmp_path)
    for record in RECORDS[:cut]:
        killed.record(record)
    sizes = killed.flush()
    for record in [*RECORDS[cut:], train(9)]:
        killed.record(record)
    killed.flush()
    tracker = tracker_in(tmp_path, sizes)
    for record in RECORDS[cut:]:
        tracker.record(record)
    tracker.finish()
    tracker.close()
    assert lines(tmp_path) == straight


def test_a_fresh_start_removes_the_file_of_a_sink(tmp_path):
    tracker = tracker_in(tmp_path)
    tracker.record(train(1))
    tracker.close()
    tracker_in(tmp_path).close()
    assert lines(tmp_path) == []


def test_a_checkpoint_of_a_sink_that_is_not_here_is_refused_in_one_line(tmp_path):
    tracker = tracker_in(tmp_path)
    sizes = tracker.flush()
    tracker.close()
    with pytest.raises(CheckpointError, match=r"'shown\.csv' with size 0: not ours, nor of a sink") as caught:
        tracker_in(tmp_path, sizes, sinks=(TensorBoard,))
    assert "\n" not in str(caught.value)


def test_a_run_needs_no_sink_at_all(tmp_path):
    tracker = tracker_in(tmp_path, sinks=())
    tracker.record(train(1))
    tracker.record(evaluation(0))
    tracker.finish()
    tracker.close()
    assert not list(tmp_path.glob("*tfevents*"))
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2


# ------------------------------------------------------------------------------------------- in an experiment


@pytest.fixture
def registered():
    """An installed package whose entry point brings the table."""
    registry.sinks.names()  # what is there already
    before = dict(registry.sinks._entries)
    point = EntryPoint("shown", f"{__name__}:Table", "clprompt.sinks")
    object.__setattr__(point, "load", lambda: Table)  # this module has no importable name
    registry._load_entry_point(point, registry.ENTRY_POINTS[point.group])
    yield
    registry.sinks._entries.clear()
    registry.sinks._entries.update(before)


def test_tensorboard_is_a_sink_like_any_other():
    assert registry.sinks.get("tensorboard").target is TensorBoard


def test_the_sink_of_an_entry_point_takes_part_where_it_is_named(tmp_path, registered):
    (result,) = experiment.run(
        {
            "name": "tiny",
            "runs_dir": str(tmp_path),
            "trackers": ["tensorboard", "shown"],
            "data": {"name": "synthetic", "classes": 4, "train_per_class": 4, "size": 8},
            "scenario": {"name": "split", "experiences": 2},
            "backbone": {"name": "vit_letters"},
            "strategy": {"name": "ncm"},
            "training": {"train_mb_size": 512, "train_epochs": 1, "eval_mb_size": 512},
        }
    )
    shown = lines(result.folder)
    assert (shown[0][1], shown[-1][1]) == ("settings", "finish")
    told = {tag: value for _, tag, value in shown}
    assert float(told["final/average_accuracy"]) == result.summary["average_accuracy"]
    assert json.loads(told["settings"])["strategy.name"] == "ncm"
    assert list(result.folder.glob("*tfevents*"))
