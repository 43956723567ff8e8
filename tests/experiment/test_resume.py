"""A run that was killed and resumed leaves the same bits as one that was not.

The killed processes are forks of one warm process (`_crash/warm.py`), in which a method of an outsider
(`_crash/outsider.py`) grows in every way and draws from the global random states.
"""

import csv
import json
import shlex
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader
from warm_process import BACKBONE

CRASH = Path(__file__).parents[1] / "_crash"
SECTIONS = {
    "seed": 3,
    "device": "cpu",
    "data": {"name": "crash_patterns", "augment": "standard"},
    "scenario": {"name": "split", "experiences": 3},
    "backbone": BACKBONE,
    "strategy": {"name": "crash_growing"},
}
# Each experience: 24 images, 5 steps an epoch, and 12 test images more to evaluate: 2, 3 and 5 forwards.
TRAINING = {"train_mb_size": 5, "train_epochs": 2, "lr": 0.01, "eval_mb_size": 8, "log_every": 3}
CONFIGS = {
    "between experiences": {"training": {**TRAINING, "optimizer": "adam", "schedule": "cosine"}},
    "every 3 steps": {
        "data": {"name": "crash_patterns", "augment": "none"},
        "training": {**TRAINING, "optimizer": "sgd", "momentum": 0.9, "checkpoint_every": 3},
    },
    "one optimizer": {
        "strategy": {"name": "crash_keeping"},
        "training": {
            **TRAINING,
            "optimizer": "adamw",
            "weight_decay": 0.01,
            "schedule": "cosine",
            "clip_grad": 0.1,
            "log_every": 1,
            "checkpoint_every": 7,
        },
    },
    "online": {
        "strategy": {"name": "crash_keeping", "boundary_free": True},
        "training": {**TRAINING, "checkpoint_every": 4},
        "online": {"iterations": 2, "eval_every": 12},
    },
}
# name:n is the n-th time at a point of outsider.py
POINTS = {
    "between experiences": [
        *("loss:1", "stepped:5", "stepped:30", "forward:4", "forward:10"),
        *("begin:1", "looked:2", "begin:2", "begun:3", "end:2", "replace environment.json"),
        *("sync checkpoint:1", "sync checkpoint:2", "replace state.pt:3", "replaced state.pt:3"),
        *("replaced accuracy_matrix.csv", "sync figures:2", "replaced model.safetensors", "sync run:8"),
    ],
    "every 3 steps": [
        *("loss:3", "loss:4", "loss:13", "forward:2", "begun:2", "end:1"),
        *("sync checkpoint:2", "replace state.pt:4", "replaced state.pt:2"),
    ],
    "one optimizer": ["loss:13", "begun:3", "end:2", "replaced state.pt:3"],
    "online": [
        *("loss:1", "stepped:9", "loss:24", "forward:1", "forward:4", "forward:9"),
        *("sync checkpoint:2", "replaced state.pt:3"),
    ],
}


class Runs:
    """Runs of the configurations above, in forks of a warm process."""

    def __init__(self, folder, process):
        self.folder = folder
        self._process = process
        self._runs = 0
        self._whole = {}

    @property
    def said(self):
        """What the last command printed."""
        return self._process.said

    def __call__(self, *argv, **how):
        """The exit code, or minus the signal that ended it."""
        return self._process(*argv, **how)

    def configuration(self, config, **changes):
        """A configuration file, whose runs go to a folder of its name."""
        self._runs += 1
        path = self.folder / f"run{self._runs}.yaml"
        values = SECTIONS | {"runs_dir": str(self.folder)} | CONFIGS[config]
        path.write_text(yaml.safe_dump(values | changes))
        return path

    def start(self, config, at=None, signal=9, draw=False, **changes):
        """`clprompt run`: the exit code and the run folders."""
        path = self.configuration(config, **changes)
        code = self("run", "--import", "outsider", path, at=at, signal=signal, draw=draw)
        return code, sorted(path.with_suffix("").glob("*-seed*"))  # beside the mean over seeds

    def table(self):
        """The rows of the CSV that the last command printed, without its notes."""
        lines = [line for line in self.said.splitlines() if not line.startswith("clprompt: note:")]
        return list(csv.DictReader(lines))

    def resume(self, folder, **how):
        return self("resume", "--import", "outsider", folder, **how)

    def whole(self, config, draw=False):
        """What a run that nobody disturbs leaves."""
        if (config, draw) not in self._whole:
            code, folders = self.start(config, draw=draw)
            assert code == 0, self.said
            self._whole[config, draw] = left(folders[0])
        return self._whole[config, draw]


@pytest.fixture(scope="module")
def warm(tmp_path_factory, warm_process):
    return Runs(tmp_path_factory.mktemp("runs"), warm_process)


def events(folder):
    """(tag, step, value) of every point but the speed, with how often it is there."""
    found = Counter()
    for path in sorted(folder.glob("*tfevents*")):
        for event in LegacyEventFileLoader(str(path)).Load():
            for value in event.summary.value:
                if value.tag.startswith("_hparams_/"):  # the folder's name and times
                    value.ClearField("metadata")
                if not value.tag.startswith("speed/"):
                    found[value.tag, event.step, value.SerializeToString()] += 1
    return found


def plain(value):
    """Nested tensors as something that == compares bit for bit."""
    if isinstance(value, torch.Tensor):
        return str(value.dtype), list(value.shape), value.contiguous().numpy().tobytes()
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def left(folder):
    """Everything in a run folder that must not depend on how often it was interrupted."""
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    data = {
        name: (folder / name).read_bytes()
        for name in names
        if name.endswith((".csv", ".png", ".jsonl", ".safetensors")) or name == "model.json"
    }
    results = json.loads((folder / "results.json").read_text())
    cost = results.pop("cost")
    state = torch.load(folder / "checkpoint" / "state.pt", weights_only=True)
    return {
        "names": {name for name in names if "tfevents" not in name},
        "files": data,
        "results": results,
        "cost": (cost["steps"], cost["state_numbers"]),
        "events": events(folder),
        "state": plain(state["engine"]),
    }


def assert_same(found, expected):
    assert found["names"] == expected["names"]
    assert found["results"] == expected["results"]
    assert found["cost"] == expected["cost"]
    different = [name for name, data in expected["files"].items() if found["files"][name] != data]
    assert different == []
    assert found["events"] == expected["events"]
    assert found["state"] == expected["state"]


def test_an_undisturbed_run_has_no_doubled_line_and_no_doubled_point(warm):
    expected = warm.whole("between experiences")
    lines = expected["files"]["metrics.jsonl"].splitlines()
    assert len(lines) == len(set(lines)) == 10 + 3
    points = Counter((tag, step) for tag, step, _ in expected["events"].elements())
    assert set(points.values()) == {1}
    assert {"train/loss", "train/pull", "accuracy/average", "growing/drawn"} <= {tag for tag, _ in points}
    rows = list(csv.reader(expected["files"]["accuracy_matrix.csv"].decode().splitlines()))
    assert len(rows) == 4


@pytest.mark.parametrize(
    ("config", "point"), [(config, point) for config, points in POINTS.items() for point in points]
)
def test_a_killed_run_resumes_to_the_same_bits(warm, config, point):
    code, (folder,) = warm.start(config, at=point)
    assert code == -9, f"{point} was never reached: {warm.said}"
    assert not (folder / "results.json").exists()
    assert warm.resume(folder) == 0, warm.said
    assert_same(left(folder), warm.whole(config))


@pytest.mark.parametrize(
    ("config", "points"),
    [
        ("between experiences", ["loss:25", "loss:2", "begun:1", "replaced state.pt:1"]),
        ("every 3 steps", ["loss:8", "replaced state.pt:1", "sync checkpoint:1", "forward:1"]),
        ("one optimizer", ["forward:3", "loss:3", "stepped:6"]),
    ],
)
def test_a_run_that_is_killed_again_and_again_resumes_to_the_same_bits(warm, config, points):
    code, (folder,) = warm.start(config, at=points[0])
    assert code == -9
    for point in points[1:]:
        assert warm.resume(folder, at=point) == -9, warm.said
    assert warm.resume(folder) == 0, warm.said
    assert_same(left(folder), warm.whole(config))


def test_loader_processes_change_nothing_killed_or_not(warm):
    training = {**CONFIGS["between experiences"]["training"], "workers": 2}
    code, (folder,) = warm.start("between experiences", at="loss:14", training=training)
    assert code == -9
    assert warm.resume(folder) == 0, warm.said
    assert_same(left(folder), warm.whole("between experiences"))


def test_a_run_is_done_when_its_results_are_there(warm):
    code, (folder,) = warm.start("between experiences", at="replaced results.json")
    assert code == -9
    assert_same(left(folder), warm.whole("between experiences"))
    assert warm.resume(folder) == 2
    assert "is complete: it has results.json" in warm.said
    assert len(warm.said.splitlines()) == 1


def test_a_run_that_never_began_is_resumed_from_its_configuration(warm):
    code, folders = warm.start("between experiences", at="loss:2", seed=[5, 3])
    assert code == -9
    assert [folder.name.split("-")[2] for folder in folders] == ["seed3", "seed5"]
    assert [path.name for path in folders[0].iterdir()] == ["config.yaml"]
    assert warm.resume(folders[0]) == 0, warm.said
    assert_same(left(folders[0]), warm.whole("between experiences"))


def test_what_ran_before_in_the_same_process_changes_nothing(warm):
    code, folders = warm.start("between experiences", seed=[5, 3])
    assert code == 0, warm.said
    assert_same(left(folders[0]), warm.whole("between experiences"))


# ---------------------------------------------------------------------------------------------- signals


@pytest.mark.parametrize(
    ("config", "point", "steps"),
    [
        ("between experiences", "loss:7", 7),
        ("between experiences", "looked:4", 11),  # the first batch is done before it is heeded
        ("between experiences", "forward:3", 20),  # the evaluation is finished
        ("between experiences", "forward:10", 30),
        ("every 3 steps", "replaced state.pt:1", 3),
        ("online", "loss:11", 12),  # all iterations on the batch are done
    ],
)
def test_a_signal_writes_a_checkpoint_and_tells_how_to_continue(warm, config, point, steps):
    ended, (folder,) = warm.start(config, at=point, signal=2)
    assert ended == 130, warm.said
    assert warm.said.splitlines()[-1] == (
        f"interrupted; continue with: clprompt resume --import outsider {folder}"
    )
    state = torch.load(folder / "checkpoint" / "state.pt", weights_only=True)
    assert state["engine"]["position"]["step"] == steps
    assert warm.resume(folder) == 0, warm.said
    assert_same(left(folder), warm.whole(config))


def test_a_second_signal_acts_at_once(warm):
    code, (folder,) = warm.start("between experiences", at="loss:14, stepped:14", signal=2)
    assert code == 130
    assert warm.said.splitlines()[-1] == "interrupted"
    state = torch.load(folder / "checkpoint" / "state.pt", weights_only=True)
    assert state["engine"]["position"]["step"] == 10
    assert warm.resume(folder) == 0, warm.said
    assert_same(left(folder), warm.whole("between experiences"))


def test_a_signal_while_results_are_written_lets_this_run_alone_finish(warm):
    code, (last, first) = warm.start(
        "between experiences", at="replaced accuracy_matrix.csv", signal=15, seed=[5, 3]
    )
    assert code == 143
    assert warm.said.splitlines()[-1].endswith(f"clprompt resume --import outsider {last}")
    assert (first / "results.json").exists()
    assert [path.name for path in last.iterdir()] == ["config.yaml"]
    assert warm.resume(last) == 0, warm.said
    assert_same(left(last), warm.whole("between experiences"))


def test_the_line_that_a_stopped_run_prints_continues_to_the_same_pictures_too(warm):
    code, _ = warm.start("between experiences", at="loss:14", signal=15, draw=True)
    assert code == 143, warm.said
    words = shlex.split(warm.said.splitlines()[-1].removeprefix("interrupted; continue with: "))
    assert words[:2] == ["clprompt", "resume"]
    assert warm(*words[1:], draw=True) == 0, warm.said
    assert_same(left(Path(words[-1])), warm.whole("between experiences", draw=True))


# ---------------------------------------------------------------------------------------- names of classes

WORDS = ["zero", "one", "two", "three"]
#: Names by mapping and by file, of learned and of searched text; killed in the middle of an experience, the
#: averaged prompts of both towers in the middle of an epoch, before and after those of images are stored.
NAMED = {
    "mapping": (
        {"name": "coop", "length": 2, "encoder": "shared"},
        1,
        ["stepped:4", "replaced state.pt:4"],
    ),
    "averaged": (
        {"name": "maple", "depth": 2, "trajectory": True, "anchor": ["consistency", "direction"]},
        3,
        ["stepped:9", "stepped:25"],
    ),
    "file": (
        {"name": "zero_shot", "candidates": "templates.json", "budget": 5, "cache_size": 2},
        1,
        ["replaced state.pt:4"],
    ),
}


@pytest.mark.parametrize("given", NAMED)
def test_a_run_on_names_that_is_killed_resumes_to_the_same_bits_and_predicts_with_them(warm, given):
    strategy, epochs, points = NAMED[given]
    names = {c: [f"digit_{word}", word] for c, word in enumerate(WORDS)}
    (warm.folder / "names.yaml").write_text(yaml.safe_dump(names))
    images = np.random.default_rng(0).integers(0, 255, (60, 8, 8), dtype=np.uint8)
    np.savez(warm.folder / "images.npz", images=images, labels=np.arange(60) % 4)
    (warm.folder / "templates.json").write_text('["the {}", "a photo of a {}", "thin {}"]')
    if "candidates" in strategy:
        strategy = strategy | {"candidates": str(warm.folder / "templates.json")}
    sections = {
        "data": {
            **{"name": "npz", "path": str(warm.folder / "images.npz"), "test_fraction": 0.3},
            "class_names": str(warm.folder / "names.yaml") if given == "file" else names,
        },
        "scenario": {"name": "split", "experiences": 2},
        "backbone": {"name": "clip_letters"},
        "strategy": strategy,
        "training": {**TRAINING, "train_epochs": epochs, "checkpoint_every": 2},
    }
    code, (undisturbed,) = warm.start("between experiences", **sections)
    assert code == 0, warm.said
    expected = left(undisturbed)
    for point in points:
        code, (folder,) = warm.start("between experiences", at=point, **sections)
        assert code == -9, f"{point} was never reached: {warm.said}"
        at = torch.load(folder / "checkpoint" / "state.pt", weights_only=True)["engine"]["position"]
        assert at["batch"] > 0
        if "candidates" in strategy:  # rows of later classes would come from other texts
            texts = Path(strategy["candidates"])
            before = texts.read_text()
            texts.write_text('["the {}", "a {}"]')
            assert warm.resume(folder) == 2, warm.said
            assert f"other contents of files (strategy.candidates={texts})" in warm.said
            texts.write_text(before)
        assert warm.resume(folder) == 0, warm.said
        assert_same(left(folder), expected)
    (warm.folder / "names.yaml").unlink()
    image = warm.folder / "digit.png"
    Image.fromarray(images[0]).save(image)
    assert warm("predict", folder, image) == 0, warm.said
    rows = warm.table()
    assert {row["class"] for row in rows} == {f"digit_{word}" for word in WORDS}
    assert warm("predict", folder, image, "--names", "digit nine,digit_one") == 0, warm.said
    rows = warm.table()
    assert sorted(row["class"] for row in rows) == ["digit nine", "digit one"]
