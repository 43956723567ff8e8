"""A run of two processes, as torchrun starts them: killed, stopped, resumed, refused."""

import json

import pytest
import yaml
from warm_process import BACKBONE

from clprompt.system import launched

CONFIG = {
    "seed": 3,
    "device": "cpu",
    "data": {"name": "crash_patterns", "augment": "standard", "train": 7, "test": 3},
    "scenario": {"name": "split", "experiences": 3},
    "backbone": BACKBONE,
    "strategy": {"name": "l2p", "statistics": "lda"},
    # an experience has 14 images, 3 batches an epoch
    "training": {"train_mb_size": 5, "train_epochs": 2, "lr": 0.01, "eval_mb_size": 2, "checkpoint_every": 4},
}


class Pair:
    """Runs of the configuration in two processes."""

    def __init__(self, folder, process):
        self.folder = folder
        self.process = process
        self._whole = None

    def configuration(self, name, **changes):
        path = self.folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump({**CONFIG, "runs_dir": str(self.folder), **changes}))
        return path

    def start(self, name, **how):
        """`clprompt run`: the exit codes and the run folder."""
        codes = self.process.several("run", "--import", "outsider", self.configuration(name), **how)
        (folder,) = self.folder.glob(f"{name}/*")
        return codes, folder

    def resume(self, folder, **how):
        return self.process.several("resume", "--import", "outsider", folder, **how)

    @property
    def whole(self):
        """The folder of a run that nobody disturbs."""
        if self._whole is None:
            codes, self._whole = self.start("whole")
            assert codes == [0, 0], self.process.said
        return self._whole

    def lines(self):
        """What both processes said of why they ended."""
        return [line for line in self.process.said.splitlines() if "clprompt: error" in line]


@pytest.fixture(scope="module")
def pair(warm_process, tmp_path_factory):
    return Pair(tmp_path_factory.mktemp("pair"), warm_process)


def written(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if "events" not in path.name}


def results(folder):
    """Results but the calibration error, which follows the bits of probabilities; and that by itself."""
    values = json.loads((folder / "results.json").read_text())
    calibration = [part.pop("calibration_error") for part in (values, values["trained_head"])]
    values["per_seed"].pop("calibration_error")
    left = {key: value for key, value in values.items() if key not in ("cost", "checksum", "checksums")}
    return left, calibration


def test_one_process_of_two_writes(pair):
    path = pair.configuration("alone")
    assert pair.process("run", "--import", "outsider", path) == 0, pair.process.said
    (alone,) = pair.folder.glob("alone/*")
    assert written(alone) == written(pair.whole)
    (one, of_one), (two, of_two) = results(alone), results(pair.whole)
    assert one == two
    assert of_one == pytest.approx(of_two, abs=0.01)
    first, second = ((folder / "metrics.jsonl").read_text().splitlines() for folder in (alone, pair.whole))
    assert len(first) == len(second)
    log = (pair.whole / "run.log").read_text()
    assert log.count("start:") == log.count("done") == 1
    assert json.loads((pair.whole / "environment.json").read_text())["processes"] == 2


@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_process_ends_the_run_with_one_line_and_it_resumes_to_the_same_bits(pair, rank):
    codes, folder = pair.start(f"killed{rank}", at="stepped:9", rank=rank)
    assert codes[rank] == -9
    assert codes[1 - rank] == 2, pair.process.said
    (line,) = pair.lines()
    assert "another process of this run has ended" in line
    assert f"torchrun --nproc-per-node 2 -m clprompt resume {folder}" in line
    assert "Traceback" not in pair.process.said
    assert pair.resume(folder) == [0, 0], pair.process.said
    assert (folder / "metrics.jsonl").read_bytes() == (pair.whole / "metrics.jsonl").read_bytes()
    model = "model.safetensors"
    assert (folder / model).read_bytes() == (pair.whole / model).read_bytes()


def test_a_signal_to_one_process_stops_both_with_a_checkpoint(pair):
    codes, folder = pair.start("stopped", at="stepped:5", rank=1, signal=15)
    assert codes == [143, 143], pair.process.said
    assert pair.process.said.count("interrupted; continue with: torchrun --nproc-per-node 2") == 1
    assert pair.process("resume", "--import", "outsider", folder) == 0, pair.process.said
    assert "begun in 2 processes, goes on in 1" in (folder / "run.log").read_text()
    assert results(folder)[0].keys() == results(pair.whole)[0].keys()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["list"], "clprompt list runs in one process"),
        (["study", "compare"], "clprompt study runs in one process"),
        (["run", "quickstart", "training.lr=-1"], "training.lr"),
        (["run", "quickstart", "device=cuda:0"], "device must be auto, cpu or cuda in several processes"),
    ],
)
def test_what_two_processes_refuse_is_told_once(pair, words, told):
    assert pair.process.several(*words) == [2, 2], pair.process.said
    (line,) = pair.lines()
    assert told in line
    assert "Traceback" not in pair.process.said


def test_a_memory_in_two_processes_is_refused_before_a_folder_is_made(pair):
    online = {"strategy": {"name": "mvp"}, "online": {"iterations": 1}, "memory": {"size": 4}}
    training = {key: value for key, value in CONFIG["training"].items() if key != "train_epochs"}
    path = pair.configuration("memory", **online, training=training)
    assert pair.process.several("run", "--import", "outsider", path) == [2, 2], pair.process.said
    (line,) = pair.lines()
    assert "a memory runs in one process" in line
    assert not (pair.folder / "memory").exists()


@pytest.mark.parametrize("missing", ["RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"])
def test_a_process_is_alone_where_it_is_not_told_how_to_find_others(monkeypatch, missing):
    for name, value in {"RANK": 1, "WORLD_SIZE": 2, "MASTER_ADDR": "here", "MASTER_PORT": 1}.items():
        monkeypatch.setenv(name, str(value))
    assert (launched.processes(), launched.rank()) == (2, 1)
    monkeypatch.delenv(missing)
    assert (launched.processes(), launched.rank()) == (1, 0)
