"""From a configuration to run folders: what they hold, and which ones are refused."""

import json
import os
import random
import signal
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import clprompt
from clprompt.backbones.build import make_backbone
from clprompt.cli.results import results as block
from clprompt.data import datasets_for, digits
from clprompt.errors import CheckpointError, ClpromptError, ConfigError, Interrupted, RunFolderError
from clprompt.experiment import config as configuration
from clprompt.experiment import folder as runfolder
from clprompt.experiment import run as experiment
from clprompt.experiment.inference import load
from clprompt.metrics import Accuracy, accuracy
from clprompt.system import checkpoint
from clprompt.system.files import FolderLock
from clprompt.system.progress import Progress
from clprompt.training.evaluation import evaluate

VIT = {
    "name": "vit_tiny_patch16_224",
    "img_size": 8,
    "patch_size": 4,
    "in_chans": 1,
    "embed_dim": 16,
    "depth": 2,
    "num_heads": 2,
}
SECTIONS = {
    "device": "cpu",
    "data": {"name": "digits"},
    "scenario": {"name": "split", "experiences": 2},
    "backbone": VIT,
    "strategy": {"name": "linear_probe"},
    "training": {"train_mb_size": 256, "train_epochs": 2, "eval_mb_size": 256},
}


def values(folder, **changes):
    return SECTIONS | {"runs_dir": str(folder)} | changes


def names(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


pytestmark = pytest.mark.usefixtures("same_picture")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Two strategies on two seeds; the second one trains for a single epoch."""
    compare = [{"name": "ncm", "training": {"train_epochs": 1}}]
    return experiment.run(values(tmp_path_factory.mktemp("runs"), seed=[0, 1], compare=compare, name="both"))


class At(Progress):
    """Does something after a number of steps."""

    def __init__(self, step, act):
        self.left, self.act = step, act

    def step(self):
        self.left -= 1
        if self.left == 0:
            self.act()


def interrupted(folder, **changes):
    """The folder of a run that a signal stopped after three steps."""
    stop = At(3, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Interrupted) as caught:
        experiment.run(values(folder, **changes), progress=stop)
    return caught.value.folders[0]


@pytest.mark.parametrize(
    "strategy",
    [
        {"name": "coda_prompt", "layers": [0], "components_per_experience": 9},
        {"name": "dualprompt", "g_layers": [0], "e_layers": [1], "pool_size": 1},
    ],
)
def test_a_stream_that_must_fail_later_is_refused_before_a_folder_is_made(tmp_path, strategy):
    with pytest.raises(ConfigError, match=r"2 experiences|at least 2, a slot for each"):
        experiment.run(values(tmp_path, strategy=strategy))
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------------------------------ run folders


def test_every_strategy_and_seed_gets_a_run_folder_of_its_own(results):
    assert [(result.name, result.seed) for result in results] == [
        ("linear_probe", 0),
        ("ncm", 0),
        ("linear_probe", 1),
        ("ncm", 1),
    ]
    endings = [result.folder.name.split("-", 2)[2] for result in results]
    assert endings == ["seed0-linear_probe", "seed0-ncm", "seed1-linear_probe", "seed1-ncm"]
    assert {result.folder.parent.name for result in results} == {"both"}


def test_a_finished_run_folder_holds_what_is_promised_and_no_more(results):
    for result in results:
        found = names(result.folder)
        events = {name for name in found if name.startswith("events.out.tfevents.")}
        assert len(events) == 1
        assert found - events == {
            *("config.yaml", "environment.json", "run.log", "metrics.jsonl", "lock", "results.json"),
            "predictions.npz",
            *("checkpoint/state.pt", "model.safetensors", "model.json"),
            *("accuracy_matrix.csv", "confusion_matrix.csv"),
            *("per_class_accuracy.csv", "per_class_history.csv"),
            *(f"figures/{name}.png" for name in ("accuracy_matrix", "accuracy_curves", "forgetting")),
            *("figures/confusion_matrix.png", "figures/stream_map.png"),
        }


def test_the_configuration_in_a_run_folder_is_that_of_this_run_alone(results):
    for result in results:
        config = configuration.load(result.folder / "config.yaml")
        assert config.seeds == [result.seed]
        assert config.strategy["name"] == result.name
        assert config.compare == []
        assert config.training.train_epochs == (1 if result.name == "ncm" else 2)


def test_tensorboard_has_the_mean_over_seeds_as_a_run_of_its_own(results):
    (folder,) = results[0].folder.parent.glob("*-mean-ncm")
    reader = EventAccumulator(str(folder)).Reload()
    means = np.mean([accuracy.accuracy_curve(results[number].matrix) for number in (1, 3)], axis=0)
    found = [(event.step, event.value) for event in reader.Scalars("accuracy/average")]
    assert [step for step, _ in found] == [1, 2]
    assert [value for _, value in found] == pytest.approx(means.tolist())
    assert not list(folder.parent.glob("*-mean-*-2"))


def test_results_are_a_table_where_pandas_is_installed(results, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "pandas", None)
        with pytest.raises(ClpromptError, match="to_frame needs pandas: pip install pandas"):
            results.to_frame()
    pandas = pytest.importorskip("pandas")
    frame = results.to_frame()
    assert isinstance(frame, pandas.DataFrame)
    assert list(frame["strategy"]) == ["linear_probe", "ncm", "linear_probe", "ncm"]
    assert list(frame["average_accuracy"]) == [result.summary["average_accuracy"] for result in results]
    read = clprompt.results(results[0].folder.parent).to_frame().set_index(["label", "seed"])
    assert sorted(read.index) == sorted((result.name, result.seed) for result in results)
    last = results[-1]
    assert read.loc[(last.name, last.seed), "average_accuracy"] == last.summary["average_accuracy"]


def test_the_log_of_a_run_says_how_well_each_experience_went(results):
    for result in results:
        log = (result.folder / "run.log").read_text().splitlines()
        told = [line.split(" ", 2)[2] for line in log if " experience " in line]
        count = len(result.groups)
        assert [line.split(":")[0] for line in told] == [
            f"experience {n}/{count}" for n in range(1, count + 1)
        ]
        average, lost = (100 * result.summary[key] for key in ("average_accuracy", "forgetting"))
        assert f"average accuracy {average:.1f} %, forgetting {lost:.1f} points, " in told[-1]
        assert "ETA" in told[0]


def test_results_are_written_last(results):
    for result in results:
        times = {name: (result.folder / name).stat().st_mtime_ns for name in names(result.folder)}
        del times["run.log"]
        assert times["results.json"] == max(times.values())


def test_results_hold_the_metrics_of_the_records_as_fractions_and_the_cost_apart(results):
    for result in results:
        found = json.loads((result.folder / "results.json").read_text())
        lines = (result.folder / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(line) for line in lines] == result.records
        expected = Accuracy().summarise(result.records)
        assert result.summary == expected
        for key, value in expected.items():
            assert found[key] == value
            assert found["per_seed"][key] == {str(result.seed): value}
        assert 0 <= found["average_accuracy"] <= 1
        assert found["strategy"] == result.name
        assert found["seed"] == result.seed
        assert {"seconds", "steps", "state_numbers", "peak_memory_bytes", "device"} <= found["cost"].keys()
        assert found["cost"]["steps"] == (6 if result.name == "ncm" else 12)
        assert found["cost"]["peak_memory_bytes"] > 2**20


def test_a_figure_that_is_not_defined_is_null(tmp_path):
    (result,) = experiment.run(values(tmp_path, scenario={"name": "split", "experiences": 1}))
    text = (result.folder / "results.json").read_text()
    assert "NaN" not in text
    assert json.loads(text)["forgetting"] is None


def test_the_environment_tells_what_a_run_was_made_with(results):
    found = json.loads((results[0].folder / "environment.json").read_text())
    assert torch.__version__.startswith(found["versions"]["torch"])
    assert {"clprompt", "timm", "numpy"} <= found["versions"].keys()
    assert found["device"] == "cpu"
    backbone = make_backbone(VIT)
    assert found["backbone"]["sha256"] == backbone.fingerprint()
    assert found["parameters"]["backbone"] == sum(p.numel() for p in backbone.parameters())
    assert found["mask"] == "experience"  # which its configuration leaves open
    assert "scenario.experiences" in found["not_default"]
    assert not {"strategy.mask", "data.name", "training.optimizer"} & set(found["not_default"])
    others = [json.loads((result.folder / "environment.json").read_text()) for result in results]
    assert ["mask" in found for found in others] == [True, False, True, False]  # ncm trains nothing


def test_the_block_at_the_end_says_what_the_errors_of_its_table_leave_out(results):
    text = " ".join(block(results).split())
    assert "Few test images: with 360 of them the sampling error" in text


def test_several_masks_are_told_before_anything_is_trained(tmp_path):
    class Said(Exception):
        pass

    class Display(Progress):
        def message(self, text):
            raise Said(text)

    compare = [{"name": "vpt_deep", "mask": "seen"}, {"name": "ncm"}]
    with pytest.raises(Said, match=r"mask=experience \(linear_probe\); mask=seen \(vpt_deep\)\."):
        experiment.run(values(tmp_path, compare=compare), progress=Display())


def test_the_log_tells_when_a_run_began_and_ended(results):
    first, *_, last = (results[0].folder / "run.log").read_text().splitlines()
    assert [line.split(" ", 2)[2] for line in (first, last)] == ["start: linear_probe, seed 0", "done"]


def test_the_records_tell_no_time(results):
    assert "seconds" not in (results[0].folder / "metrics.jsonl").read_text()


def test_seeds_have_streams_of_their_own(results):
    probe, _, other = results[:3]
    assert probe.groups != other.groups


def test_strategies_share_the_stream_of_a_seed(results):
    probe, ncm = results[:2]
    assert probe.groups == ncm.groups
    counts = [[r["samples"] for r in run.records if r["kind"] == "evaluation"] for run in (probe, ncm)]
    assert counts[0] == [2 * count for count in counts[1]]


def test_a_run_is_repeated_to_the_same_bits(results, tmp_path):
    (again,) = experiment.run(values(tmp_path, seed=1))
    for name in ("metrics.jsonl", "model.safetensors", "accuracy_matrix.csv", "confusion_matrix.csv"):
        assert (again.folder / name).read_bytes() == (results[2].folder / name).read_bytes()


def test_a_trained_model_is_loaded_with_what_it_has_learned(results):
    result = results[0]
    model = load(result.folder)
    assert not model.training
    _, _, test = datasets_for(digits(), model.backbone)
    assert evaluate(model, test, batch_size=256).accuracy == pytest.approx(result.summary["last_accuracy"])
    exported = (result.folder / "model.safetensors").stat().st_size
    assert exported < 8 * model.state_size() + 2000  # the backbone is not in it


def test_a_model_is_not_loaded_over_another_backbone(results, tmp_path):
    facts = json.loads((results[0].folder / "model.json").read_text())
    assert facts["class_names"] == [str(digit) for digit in range(10)]
    facts["backbone"]["embed_dim"] = 24
    for name in ("config.yaml", "model.safetensors"):
        (tmp_path / name).write_bytes((results[0].folder / name).read_bytes())
    (tmp_path / "model.json").write_text(json.dumps(facts))
    with pytest.raises(ClpromptError, match="other weights than in the run"):
        load(tmp_path)


def test_two_runs_within_a_second_get_two_folders(tmp_path, monkeypatch):
    monkeypatch.setattr(experiment.time, "strftime", lambda *_: "20300101-000000")
    training = {"train_mb_size": 256, "train_epochs": 0}
    for ending in ("seed0-linear_probe", "seed0-linear_probe-2", "seed0-linear_probe-3"):
        (result,) = experiment.run(values(tmp_path, training=training))
        assert result.folder.name == f"20300101-000000-{ending}"


# ------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"strategy": {"name": "dualprompt", "g_layers": [7]}}, "g_layers"),
        (
            {"strategy": {"name": "linear_probe", "boundary_free": False}, "online": {}},
            "needs experience boundaries",
        ),
        (
            {"compare": [{"name": "dualprompt", "e_layers": [1], "top_k": 2}]},
            "top_k is no argument: DualPrompt uses one",
        ),
        ({"scenario": {"name": "split", "experiences": 11}}, "experiences must be 1..10"),
        ({"backbone": VIT | {"patch_size": 3}}, "size"),
        ({"device": "cuda:77"}, 'device "cuda:77" is not there'),
    ],
)
def test_a_mistake_shows_before_any_folder_is_made(tmp_path, changes, message):
    with pytest.raises(ClpromptError) as caught:
        experiment.run(values(tmp_path / "runs", **changes))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "runs").exists()


def test_what_is_no_unfinished_run_is_not_resumed(results, tmp_path):
    with pytest.raises(RunFolderError, match=r"is complete: it has results\.json"):
        experiment.resume(results[0].folder)
    with pytest.raises(RunFolderError, match="there is no such folder"):
        experiment.resume(tmp_path / "none")
    with pytest.raises(RunFolderError, match=r"it has no config\.yaml"):
        experiment.resume(tmp_path)
    with pytest.raises(RunFolderError, match="it holds no config"):
        load(tmp_path)


def test_a_folder_in_use_is_not_resumed(tmp_path):
    folder = interrupted(tmp_path)
    with FolderLock(folder), pytest.raises(RunFolderError, match="is in use by another process"):
        experiment.resume(folder)
    assert experiment.resume(folder).summary["average_accuracy"] >= 0


def test_a_checkpoint_is_not_continued_under_another_configuration(tmp_path):
    folder = interrupted(tmp_path)
    text = (folder / "config.yaml").read_text()
    changed = text.replace("lr: 0.005", "lr: 0.5").replace("\nseed: 0", "\nseed: 7")
    (folder / "config.yaml").write_text(changed)
    with pytest.raises(CheckpointError, match=r"another configuration; different: seed, training\.lr"):
        experiment.resume(folder)
    (folder / "config.yaml").write_text(text)
    experiment.resume(folder)


def test_a_damaged_checkpoint_is_refused_and_nothing_is_lost(tmp_path):
    folder = interrupted(tmp_path)
    path = folder / checkpoint.CHECKPOINT
    data, log = path.read_bytes(), (folder / "metrics.jsonl").read_bytes()
    path.write_bytes(data[:-100])
    with pytest.raises(CheckpointError, match="cannot be read"):
        experiment.resume(folder)
    assert (folder / "metrics.jsonl").read_bytes() == log
    path.write_bytes(data)
    experiment.resume(folder)


# ------------------------------------------------------------------------------------------ interruptions


def test_a_signal_names_all_runs_that_are_left(tmp_path):
    stop = At(14, lambda: os.kill(os.getpid(), signal.SIGINT))  # two steps into the second run
    with pytest.raises(Interrupted) as caught:
        experiment.run(values(tmp_path, seed=[0, 1, 2]), progress=stop)
    assert caught.value.signal == signal.SIGINT
    assert [folder.name.split("-")[2] for folder in caught.value.folders] == ["seed1", "seed2"]
    first, *left = sorted((tmp_path / "experiment").iterdir())
    assert (first / "results.json").exists()
    assert left == caught.value.folders
    assert [experiment.resume(folder).seed for folder in left] == [1, 2]


def test_results_that_could_not_be_written_are_written_by_resuming(tmp_path, monkeypatch):
    def full(*_):
        raise ClpromptError("cannot write model.safetensors: No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(runfolder, "export_model", full)
        with pytest.raises(ClpromptError, match="No space left"):
            experiment.run(values(tmp_path))
    (folder,) = (tmp_path / "experiment").iterdir()
    assert not (folder / "results.json").exists()
    assert experiment.resume(folder).seed == 0
    assert (folder / "results.json").exists()


def test_a_run_leaves_the_process_as_it_found_it(tmp_path):
    def found():
        states = torch.get_rng_state().tolist(), np.random.get_state(), random.getstate()  # noqa: NPY002
        handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
        return str(states), handlers, torch.are_deterministic_algorithms_enabled()

    before = found()
    experiment.run(values(tmp_path))
    assert found() == before
    interrupted(tmp_path)
    assert found() == before


def test_a_run_in_a_thread_that_no_signal_reaches_is_a_run_all_the_same(tmp_path, results):
    done = []
    thread = threading.Thread(target=lambda: done.extend(experiment.run(values(tmp_path))))
    thread.start()
    thread.join()
    assert done[0].summary == results[0].summary


def test_an_unknown_key_is_refused_with_the_nearest_one(tmp_path):
    with pytest.raises(ConfigError, match='did you mean "train_epochs"'):
        experiment.run(values(tmp_path, training={"train_epoch": 2}))
    assert not list(Path(tmp_path).iterdir())
