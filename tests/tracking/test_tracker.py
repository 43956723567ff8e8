import csv
import io
import json
import re
import textwrap

import numpy as np
import pytest
import torch
from drawing import same_picture
from matplotlib.figure import Figure
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2

from clprompt.metrics import accuracy
from clprompt.reporting.summary import text_summary
from clprompt.tracking.tracker import RunTracker

NAN = float("nan")
NAMES = ["zero", "one", "two", 'th"ree,\n']
GROUPS = [[0, 1], [2], [3]]
ROWS = [[0.9, None, None], [0.5, 0.6, None], [0.6, 0.8, 1.0]]


def train(step):
    return {
        "kind": "train",
        "step": step,
        "samples": 8 * step,
        "experience": 0,
        "epoch": 0,
        "terms": {"loss": 1 / step, "pull": 0.5},
        "accuracy": 0.25,
        "lr": 0.01,
    }


def anytime(samples):
    return {
        "kind": "evaluation",
        "step": samples // 8,
        "samples": samples,
        "experience": 0,
        "when": "anytime",
        "accuracy": samples / 100,
        "groups": [0.5, None, None],
    }


def evaluation(experience):
    return {
        "kind": "evaluation",
        "step": 10,
        "samples": 80,
        "experience": experience,
        "when": "experience",
        "accuracy": 0.7 + experience / 10,
        "groups": ROWS[experience],
        "confusion": [[0, 0, 3], [0, 1, 1], [1, 1, 2], [2, 0, 1]][: 2 + experience],
    }


def whole_run():
    """The records of a run of three experiences."""
    records = []
    for experience in range(3):
        records += [train(3 * experience + step) for step in (1, 2, 3)]
        records += [anytime(8 * (3 * experience + 3)), evaluation(experience)]
    return records


def read_events(folder):
    """TensorBoard's own reader, told to keep everything."""
    kinds = ("scalars", "images", "histograms", "tensors")
    reader = EventAccumulator(str(folder), size_guidance=dict.fromkeys(kinds, 0))
    return reader.Reload()


def points(reader):
    """Scalars by tag: [(step, value)], values as the float32 that they are stored as."""
    return {
        tag: [(event.step, event.value) for event in reader.Scalars(tag)] for tag in reader.Tags()["scalars"]
    }


def pictures(reader):
    return {tag: [event.step for event in reader.Images(tag)] for tag in reader.Tags()["images"]}


def float32(pairs):
    return [(step, float(np.float32(value))) for step, value in pairs]


def read_csv(path):
    return list(csv.reader(io.StringIO(path.read_text(encoding="utf-8"), newline="")))


@pytest.fixture
def one_picture():
    """Pictures are not the subject."""
    with same_picture():
        yield


def test_records_are_json_lines(tmp_path):
    tracker = RunTracker(tmp_path, NAMES, GROUPS)
    odd = train(1)
    odd["terms"] = {"loss": torch.tensor(0.5), "bad": float("nan"), "worse": np.float32(np.inf)}
    odd["samples"] = np.int64(8)
    tracker.record(odd)
    tracker.record({"kind": "note", "text": "größer"})
    tracker.close()
    first, second = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert first == (
        '{"accuracy": 0.25, "epoch": 0, "experience": 0, "kind": "train", "lr": 0.01, "samples": 8, '
        '"step": 1, "terms": {"bad": null, "loss": 0.5, "worse": null}}'
    )
    assert [json.loads(first), json.loads(second)] == tracker.records


def test_what_json_cannot_hold_is_refused_before_anything_is_written(tmp_path):
    tracker = RunTracker(tmp_path, NAMES, GROUPS)
    with pytest.raises(TypeError, match="a record cannot hold a set"):
        tracker.record({"kind": "note", "text": {1}})
    with pytest.raises(ValueError, match='a loss term may not be called "lr"'):
        tracker.record({**train(1), "terms": {"lr": 1.0}})
    tracker.close()
    assert (tmp_path / "metrics.jsonl").read_text() == ""
    assert tracker.records == []


def test_two_runs_with_the_same_records_write_the_same_bytes(tmp_path):
    with same_picture():
        for name in ("a", "b"):
            (tmp_path / name).mkdir()
            tracker = RunTracker(tmp_path / name, NAMES, GROUPS)
            for record in whole_run()[:5]:
                tracker.record(record)
            tracker.finish()
            tracker.close()
    for file in ("metrics.jsonl", "accuracy_matrix.csv", "per_class_accuracy.csv", "confusion_matrix.csv"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_every_tag_stands_on_its_documented_axis(tmp_path):
    with same_picture():
        tracker = RunTracker(tmp_path, NAMES, GROUPS)
        for record in whole_run():
            tracker.record(record)
        tracker.speed(3, 120.5)
        summary = tracker.finish()
        tracker.close()
    reader = read_events(tmp_path)
    found = points(reader)
    assert found.pop("train/loss") == float32([(step, 1 / step) for step in range(1, 10)])
    assert found.pop("train/pull") == [(step, 0.5) for step in range(1, 10)]
    assert found.pop("train/accuracy") == [(step, 0.25) for step in range(1, 10)]
    assert found.pop("train/lr") == float32([(step, 0.01) for step in range(1, 10)])
    assert found.pop("speed/images_per_second") == [(3, 120.5)]
    assert found.pop("accuracy/group_01") == float32([(1, 0.9), (2, 0.5), (3, 0.6)])
    assert found.pop("accuracy/group_02") == float32([(2, 0.6), (3, 0.8)])
    assert found.pop("accuracy/group_03") == [(3, 1.0)]
    assert found.pop("accuracy/average") == float32([(1, 0.9), (2, 0.55), (3, (0.6 + 0.8 + 1.0) / 3)])
    assert found.pop("accuracy/forgetting") == float32([(2, 0.4), (3, (0.3 - 0.2) / 2)])
    assert found.pop("anytime/accuracy") == float32([(24, 0.24), (48, 0.48), (72, 0.72)])
    assert found == {f"final/{key}": float32([(3, value)]) for key, value in summary.items()}
    steps = [1, 2, 3]
    assert pictures(reader) == dict.fromkeys(
        ["accuracy_matrix", "accuracy_curves", "confusion_matrix"], steps
    )


def test_a_trained_head_beside_another_has_tags_of_its_own(tmp_path):
    with same_picture():
        tracker = RunTracker(tmp_path, NAMES, GROUPS)
        for experience in range(3):
            figures = {"accuracy": 0.1, "groups": ROWS[experience], "per_class": []}
            shifted = [None if value is None else value / 2 for value in ROWS[experience]]
            tracker.record(evaluation(experience) | {"groups": shifted, "trained_head": figures})
        tracker.record(anytime(24) | {"trained_head": {"accuracy": 0.25, "groups": ROWS[0]}})
        tracker.finish()
        tracker.close()
    found = points(read_events(tmp_path))
    assert found["trained_head/accuracy/group_01"] == float32([(1, 0.9), (2, 0.5), (3, 0.6)])
    assert found["accuracy/group_01"] == float32([(1, 0.45), (2, 0.25), (3, 0.3)])
    assert found["trained_head/accuracy/forgetting"] == float32([(2, 0.4), (3, (0.3 - 0.2) / 2)])
    assert found["trained_head/anytime/accuracy"] == [(24, 0.25)]
    assert found["trained_head/final/average_accuracy"] == float32([(3, 0.8)])


def test_pictures_in_the_dashboard_can_be_read_and_say_their_true_size(tmp_path):
    tracker = RunTracker(tmp_path, NAMES, GROUPS)
    tracker.record(evaluation(0))
    tracker.close()
    reader = read_events(tmp_path)
    for tag in reader.Tags()["images"]:
        event = reader.Images(tag)[0]
        image = Image.open(io.BytesIO(event.encoded_image_string))
        image.load()
        assert image.size == (event.width, event.height)
        assert image.width > 200
        assert image.convert("L").getextrema() != (255, 255)


def test_one_chart_shows_the_forgetting_of_all_groups(tmp_path):
    with same_picture():
        tracker = RunTracker(tmp_path, NAMES, GROUPS)
        for record in whole_run():
            tracker.record(record)
        tracker.close()
    reader = read_events(tmp_path)
    (event,) = reader.Tensors("custom_scalars__config__")
    plugin = reader.SummaryMetadata("custom_scalars__config__").plugin_data.plugin_name
    assert plugin == "custom_scalars"
    layout = layout_pb2.Layout.FromString(event.tensor_proto.string_val[0])
    tags = reader.Tags()["scalars"]
    charts = {chart.title: matching(chart.multiline.tag, tags) for chart in layout.category[0].chart}
    assert charts == {
        "average accuracy": ["accuracy/average"],
        "forgetting": ["accuracy/forgetting"],
        "accuracy per class group (select one run)": [f"accuracy/group_0{number}" for number in (1, 2, 3)],
        "loss terms (select one run)": ["train/loss", "train/pull"],
    }


def matching(expressions, tags):
    """As the dashboard's server does it."""
    return sorted(tag for tag in tags if any(re.match(expression, tag) for expression in expressions))


@pytest.mark.usefixtures("one_picture")
def test_group_tags_sort_by_number_beyond_a_hundred_groups(tmp_path):
    tracker = RunTracker(tmp_path, NAMES, [[]] * 100)
    record = {**evaluation(0), "groups": [0.5, 0.5] + [None] * 98}
    tracker.record(record)
    tracker.close()
    tags = [tag for tag in read_events(tmp_path).Tags()["scalars"] if "group" in tag]
    assert sorted(tags) == ["accuracy/group_001", "accuracy/group_002"]


def test_a_loss_that_is_not_finite_is_a_visible_point(tmp_path):
    tracker = RunTracker(tmp_path, NAMES, GROUPS)
    tracker.record({**train(1), "terms": {"loss": NAN}, "accuracy": None})
    tracker.close()
    found = points(read_events(tmp_path))
    assert np.isnan(found["train/loss"][0][1])
    assert "train/accuracy" not in found


def test_diagnostics_become_pictures_histograms_and_scalars(tmp_path):
    tracker = RunTracker(tmp_path, NAMES, GROUPS)
    figure = Figure(figsize=(3, 2))
    figure.add_subplot().plot([1, 2])
    keys = torch.tensor([[0.0, 1.0], [3.0, NAN]], dtype=torch.bfloat16, requires_grad=True)
    tracker.diagnostics(
        7,
        {
            "prompts/usage": np.array([1, 2, 2, 5]),
            "prompts/keys": keys,
            "prompts/same": np.ones(5),
            "prompts/first": np.ones((1, 1)),  # there will be more of them
            "prompts/none": np.full(3, NAN),
            "prompts/empty": np.empty(0),
            "prompts/scale": torch.tensor(2.5),
            "prompts/count": 3,
            "prompts/picture": figure,
        },
    )
    tracker.close()
    reader = read_events(tmp_path)
    assert points(reader) == {"prompts/scale": [(7, 2.5)], "prompts/count": [(7, 3.0)]}
    assert pictures(reader) == {"prompts/picture": [7]}
    assert [path.name for path in (tmp_path / "figures").iterdir()] == ["prompts_picture.png"]
    assert sorted(reader.Tags()["histograms"]) == [
        f"prompts/{name}" for name in ("first", "keys", "same", "usage")
    ]
    (usage,) = reader.Histograms("prompts/usage")
    value = usage.histogram_value
    assert (usage.step, value.min, value.max, value.num, value.sum, value.sum_squares) == (7, 1, 5, 4, 10, 34)
    assert sum(value.bucket) == 4
    assert len(value.bucket) == len(value.bucket_limit)
    assert reader.Histograms("prompts/keys")[0].histogram_value.num == 3


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a run that ended, its records, and what its end returned."""
    folder = tmp_path_factory.mktemp("finished")
    tracker = RunTracker(folder, NAMES, GROUPS, sinks=())
    for record in whole_run():
        tracker.record(record)
    summary = tracker.finish()
    tracker.close()
    return folder, tracker.records, summary


def test_finish_returns_the_summary(finished):
    _, records, summary = finished
    assert summary == accuracy.summarise(records)


def test_finish_writes_tables(finished):
    folder, *_ = finished
    assert read_csv(folder / "accuracy_matrix.csv") == [
        ["after_experience", "group_1", "group_2", "group_3"],
        ["1", "0.9", "", ""],
        ["2", "0.5", "0.6", ""],
        ["3", "0.6", "0.8", "1.0"],
    ]
    assert read_csv(folder / "per_class_accuracy.csv") == [
        ["class", "name", "group", "samples", "correct", "accuracy"],
        ["0", "zero", "1", "4", "3", "0.75"],
        ["1", "one", "1", "2", "2", "1.0"],
        ["2", "two", "2", "1", "0", "0.0"],
        ["3", NAMES[3], "3", "0", "0", ""],
    ]
    assert read_csv(folder / "confusion_matrix.csv") == [
        ["true class \\ predicted class", *NAMES],
        ["zero", "3", "1", "0", "0"],
        ["one", "0", "2", "0", "0"],
        ["two", "1", "0", "0", "0"],
        [NAMES[3], "0", "0", "0", "0"],
    ]


def test_finish_draws_pictures(finished):
    folder, *_ = finished
    drawn = sorted(path.name for path in (folder / "figures").iterdir())
    assert drawn == [
        "accuracy_curves.png",
        "accuracy_matrix.png",
        "confusion_matrix.png",
        "forgetting.png",
    ]
    for path in (folder / "figures").iterdir():
        Image.open(path).load()


@pytest.mark.usefixtures("one_picture")
def test_finish_twice_doubles_no_point(tmp_path):
    tracker = RunTracker(tmp_path, NAMES, GROUPS)
    tracker.record(evaluation(0))
    tracker.finish()
    tracker.finish()
    tracker.close()
    assert all(len(found) == 1 for found in points(read_events(tmp_path)).values())


def test_finish_without_any_evaluation_writes_no_empty_tables(tmp_path):
    tracker = RunTracker(tmp_path, NAMES, GROUPS)
    tracker.record(train(1))
    assert np.isnan(tracker.finish()["average_accuracy"])
    tracker.close()
    assert [path.name.split(".")[0] for path in sorted(tmp_path.iterdir())] == ["events", "metrics"]


def test_a_fresh_start_removes_what_an_earlier_start_left(tmp_path):
    tracker = RunTracker(tmp_path, NAMES, GROUPS)
    tracker.record(train(1))
    tracker.close()
    (tmp_path / "notes.txt").write_text("mine")
    tracker = RunTracker(tmp_path, NAMES, GROUPS)
    tracker.record(train(2))
    tracker.close()
    assert tracker.records == [train(2)]
    assert points(read_events(tmp_path))["train/pull"] == [(2, 0.5)]
    assert (tmp_path / "notes.txt").exists()
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 1


def summarised(matrix):
    rows = [[None if np.isnan(value) else value for value in row] for row in matrix]
    records = [
        {"kind": "evaluation", "when": "experience", "experience": i, "accuracy": 0.5, "groups": row}
        for i, row in enumerate(rows)
    ]
    return matrix, accuracy.summarise(records)


def test_the_printed_block_shows_matrices_and_a_comparison():
    first = summarised(np.array([[0.9, NAN], [0.5, 1.0]]))
    second = summarised(np.array([[1.0, NAN], [0.875, 0.75]]))
    assert text_summary({"ours": first, "ncm": second}) == textwrap.dedent(
        """\
        ours
        ====
        accuracy (%) on each class group, after each experience
        group        1     2
        after  1  90.0     -
        after  2  50.0 100.0
        average accuracy 75.0 %, forgetting 40.0 points

        ncm
        ===
        accuracy (%) on each class group, after each experience
        group        1     2
        after  1 100.0     -
        after  2  87.5  75.0
        average accuracy 81.2 %, forgetting 12.5 points

        in percent  average  incremental  forgetting  backward transfer  last
        ours           75.0         82.5        40.0              -40.0  50.0
        ncm            81.2         90.6        12.5              -12.5  50.0"""
    )


def test_the_zero_shot_line_is_printed_of_runs_that_have_one():
    matrix, summary = summarised(np.array([[1.0, NAN], [0.875, 0.75]]))
    lines = text_summary({"coop": (matrix, {**summary, "zero_shot": 0.5}), "ncm": (matrix, summary)})
    assert "average accuracy 81.2 %, forgetting 12.5 points, zero-shot 50.0 %\n" in lines
    assert [line.split()[-1] for line in lines.splitlines()[-2:]] == ["50.0", "-"]


def test_the_figures_of_both_heads_are_printed():
    of_both = summarised(np.array([[1.0, NAN], [0.875, 0.75]]))
    _, trained = summarised(np.array([[0.9, NAN], [0.5, 1.0]]))
    lines = text_summary({"l2p": of_both, "ncm": of_both}, None, {"l2p": trained, "ncm": None}).splitlines()
    place = lines.index("trained head: average accuracy 75.0 %, forgetting 40.0 points")
    assert lines[place - 1] == "average accuracy 81.2 %, forgetting 12.5 points"
    assert [line.split()[:-1] for line in lines[-3:]] == [
        ["l2p", "81.2", "90.6", "12.5", "-12.5"],
        ["l2p", "(trained", "head)", "75.0", "82.5", "40.0", "-40.0"],
        ["ncm", "81.2", "90.6", "12.5", "-12.5"],
    ]


def test_one_experience_has_no_forgetting():
    text = text_summary({"ncm": summarised(np.array([[1.0]]))})
    assert text.endswith("average accuracy 100.0 %, forgetting -")


def test_one_strategy_alone_needs_no_comparison():
    text = text_summary({"ncm": summarised(np.array([[1.0]]))})
    assert "in percent" not in text


@pytest.mark.parametrize("size", [0, 12, 13, 20, 200])
def test_the_printed_block_fits_into_eighty_columns(size):
    matrix, summary = summarised(np.where(np.tri(size, dtype=bool), 1.0, NAN))
    results = {"a name without end " * 10: (matrix, summary), "b": (matrix, {**summary, "zero_shot": 0.5})}
    lines = text_summary(results).splitlines()
    assert max(map(len, lines)) <= 80
    if size > 12:
        assert f"after{size:3d}" in "\n".join(lines)
        assert "accuracy_matrix.csv" in "\n".join(lines)
