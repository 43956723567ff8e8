"""A run that was killed and resumed leaves the files of one that was not."""

import hashlib
import json
import logging
import os
import signal
import subprocess
import sys
import textwrap

import pytest
from drawing import written_picture
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from clprompt.errors import CheckpointError, ClpromptError
from clprompt.tracking.tracker import RunTracker

NAMES = ["zero", "one", "two"]
GROUPS = [[0, 1], [2]]


def train(step):
    return {"kind": "train", "step": step, "terms": {"loss": 1 / step, "pull": 0.5}, "lr": 0.01}


def evaluation(experience):
    return {
        "kind": "evaluation",
        "experience": experience,
        "when": "experience",
        "accuracy": 0.7,
        "groups": [[0.75, None], [0.5, 0.625]][experience],
        "confusion": [[0, 0, 3], [0, 1, 1]],
    }


@pytest.fixture(scope="module", autouse=True)
def _written_picture():
    """What is drawn is the subject, not how."""
    with written_picture():
        yield


RECORDS = [train(1), train(2), train(3), evaluation(0), train(4), train(5), evaluation(1)]


def read_events(folder):
    """All points by tag as TensorBoard's own reader finds them, provided that it warns of nothing."""
    said = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda message: said.append(message.getMessage())
    logger = logging.getLogger("tensorboard")
    logger.addHandler(handler)
    try:
        kinds = ("scalars", "images", "tensors")
        reader = EventAccumulator(str(folder), size_guidance=dict.fromkeys(kinds, 0))
        reader.Reload()
    finally:
        logger.removeHandler(handler)
    assert said == []
    tags = reader.Tags()
    found = {tag: [(event.step, event.value) for event in reader.Scalars(tag)] for tag in tags["scalars"]}
    for tag in tags["images"]:
        found[tag] = [(event.step, event.encoded_image_string) for event in reader.Images(tag)]
    for tag in tags["tensors"]:
        found[tag] = [(event.step, event.tensor_proto.string_val[0]) for event in reader.Tensors(tag)]
    return found


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """The folder of a run that nobody interrupted."""
    folder = tmp_path_factory.mktemp("straight")
    tracker = RunTracker(folder, NAMES, GROUPS)
    for record in RECORDS:
        tracker.record(record)
    tracker.finish()
    tracker.close()
    return folder


@pytest.mark.parametrize("cut", [0, 2, 4, 6, 7])
def test_a_resumed_run_ends_with_the_files_of_an_uninterrupted_one(tmp_path, straight, cut):
    killed = RunTracker(tmp_path, NAMES, GROUPS)
    for record in RECORDS[:cut]:
        killed.record(record)
    sizes = killed.flush()
    # After the checkpoint: some of this reaches the disk, the last point only the process's memory.
    for record in [*RECORDS[cut:], train(6)][:2]:
        killed.record(record)
    killed.flush()
    killed.speed(99, 1.0)
    # Killed once more after the resume, before a second checkpoint.
    again = RunTracker(tmp_path, NAMES, GROUPS, sizes)
    again.record(train(7))
    again.flush()
    tracker = RunTracker(tmp_path, NAMES, GROUPS, sizes)
    del killed, again
    assert tracker.records == RECORDS[:cut]
    for record in RECORDS[cut:]:
        tracker.record(record)
    tracker.finish()
    tracker.close()

    assert read_events(tmp_path) == read_events(straight)
    assert len(read_events(tmp_path)["custom_scalars__config__"]) == 1
    for name in ("metrics.jsonl", "accuracy_matrix.csv", "figures/accuracy_curves.png"):
        assert (tmp_path / name).read_bytes() == (straight / name).read_bytes()


def test_several_resumes_in_one_second_make_files_whose_names_sort_in_their_order(tmp_path):
    sizes, written = None, []
    for step in range(1, 6):
        tracker = RunTracker(tmp_path, NAMES, GROUPS, sizes)
        tracker.record(train(step))
        sizes = tracker.flush()
        written.append(next(name for name in sizes if name not in written and "tfevents" in name))
        tracker.close()
    assert written == sorted(written)
    assert set(sizes) == {"metrics.jsonl", *written}
    assert read_events(tmp_path)["train/pull"] == [(step, 0.5) for step in range(1, 6)]


def test_a_new_event_file_sorts_last_even_when_the_clock_was_set_back(tmp_path):
    tracker = RunTracker(tmp_path, NAMES, GROUPS)
    sizes = tracker.flush()
    tracker.close()
    (name,) = (name for name in sizes if "tfevents" in name)
    ahead = "events.out.tfevents.4000000000.elsewhere.1.0"
    os.rename(tmp_path / name, tmp_path / ahead)
    sizes[ahead] = sizes.pop(name)
    sizes = RunTracker(tmp_path, NAMES, GROUPS, sizes).flush()
    assert [name.split(".")[3] for name in sorted(sizes)[:-1]] == ["4000000000", "4000000001"]


def test_sizes_are_those_of_the_files(tmp_path):
    tracker = RunTracker(tmp_path, NAMES, GROUPS)
    tracker.record(train(1))
    sizes = tracker.flush()
    assert sizes == {name: (tmp_path / name).stat().st_size for name in sizes}
    on_disk = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert set(sizes) == on_disk


def test_a_process_killed_while_it_writes_can_be_resumed(tmp_path):
    code = """
        import json, os, signal, sys
        from pathlib import Path
        from clprompt.tracking.tracker import RunTracker
        folder = Path(sys.argv[1])
        tracker = RunTracker(folder, ["a"], [[0]])
        for step in range(1, 200):
            tracker.record({"kind": "train", "step": step, "terms": {"loss": 1.0}})
            if step == 100:
                (folder / "sizes.json").write_text(json.dumps(tracker.flush()))
        tracker.sinks[0].events.file._file.write(b"half of a rec")
        tracker._records._file._file.write(b'{"kind": "tr')
        os.kill(os.getpid(), signal.SIGKILL)
    """
    ended = subprocess.run([sys.executable, "-c", textwrap.dedent(code), str(tmp_path)], timeout=60)
    assert ended.returncode == -signal.SIGKILL
    tracker = RunTracker(tmp_path, ["a"], [[0]], json.loads((tmp_path / "sizes.json").read_text()))
    assert [record["step"] for record in tracker.records] == list(range(1, 101))
    tracker.record({"kind": "train", "step": 101, "terms": {"loss": 1.0}})
    tracker.close()
    assert read_events(tmp_path)["train/loss"] == [(step, 1.0) for step in range(1, 102)]


def files_of(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refuse(folder, sizes, message):
    """A resume with these sizes fails in one line and changes nothing."""
    before = files_of(folder)
    with pytest.raises(CheckpointError, match=message) as caught:
        RunTracker(folder, NAMES, GROUPS, sizes)
    assert "\n" not in str(caught.value)
    assert files_of(folder) == before


def test_a_checkpoint_that_does_not_fit_the_files_is_refused(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (tmp_path / "outside").write_text("precious")
    tracker = RunTracker(folder, NAMES, GROUPS)
    tracker.record(train(1))
    tracker.record(train(2))
    sizes = tracker.flush()
    tracker.close()
    events = next(name for name in sizes if "tfevents" in name)
    size = sizes["metrics.jsonl"]
    refuse(folder, {**sizes, "metrics.jsonl": size + 1}, f"has {size} bytes, fewer than the {size + 1}")
    refuse(folder, {**sizes, events: 10**9}, "fewer than the 1000000000 that the checkpoint recorded")
    refuse(folder, {**sizes, "metrics.jsonl": size - 3}, "cannot be read up to the checkpoint.*end of a line")
    refuse(folder, {**sizes, "x.tfevents.1": 0}, "is missing")
    refuse(folder, {**sizes, "../outside": 0}, "not ours")
    refuse(folder, {**sizes, "tensorboard/../../outside.tfevents": 0}, "not ours")
    refuse(folder, {**sizes, "metrics.jsonl": -1}, "not ours")
    (folder / "metrics.jsonl").write_text("no json\n")
    refuse(folder, {**sizes, "metrics.jsonl": 8}, "cannot be read")
    (folder / "metrics.jsonl").unlink()
    refuse(folder, sizes, "metrics.jsonl is missing")
    (folder / "metrics.jsonl").symlink_to(tmp_path / "outside")
    refuse(folder, {**sizes, "metrics.jsonl": 0}, "is missing")
    assert (tmp_path / "outside").read_text() == "precious"


@pytest.mark.parametrize("which", ["metrics", "tfevents"])
def test_files_with_other_bytes_than_the_checkpoint_recorded_are_refused(tmp_path, which):
    tracker = RunTracker(tmp_path, NAMES, GROUPS)
    tracker.record(train(1))
    sizes, checksums = tracker.flush(), tracker.checksums
    tracker.record(train(2))
    tracker.close()
    (name,) = (name for name in sizes if which in name)
    data = bytearray((tmp_path / name).read_bytes())
    data[sizes[name] // 2] ^= 1
    (tmp_path / name).write_bytes(data)
    before = files_of(tmp_path)
    with pytest.raises(
        CheckpointError, match=f"{name} was changed or damaged: its first {sizes[name]} bytes"
    ):
        RunTracker(tmp_path, NAMES, GROUPS, sizes, checksums=checksums)
    assert files_of(tmp_path) == before


def test_checksums_go_on_where_the_checkpoint_left_them(tmp_path, straight):
    sizes, checksums = None, None
    for record in RECORDS:
        tracker = RunTracker(tmp_path, NAMES, GROUPS, sizes, checksums=checksums)
        tracker.record(record)
        sizes, checksums = tracker.flush(), tracker.checksums
        tracker.close()
    assert checksums == {name: hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() for name in sizes}


@pytest.mark.parametrize("which", ["metrics", "tfevents"])
@pytest.mark.parametrize("act", [os.unlink, lambda path: os.truncate(path, 1)], ids=["removed", "cut"])
def test_a_file_that_is_gone_or_shorter_is_told_at_the_next_flush(tmp_path, which, act):
    tracker = RunTracker(tmp_path, NAMES, GROUPS)
    tracker.record(train(1))
    (name,) = (name for name in tracker.flush() if which in name)
    act(tmp_path / name)
    with pytest.raises(ClpromptError, match=f"{name} was (removed|cut) while the run was writing it"):
        tracker.flush()


def test_a_folder_that_does_not_exist_is_one_line(tmp_path):
    with pytest.raises(ClpromptError, match=r"cannot prepare .*: No such file or directory"):
        RunTracker(tmp_path / "no", NAMES, GROUPS)
