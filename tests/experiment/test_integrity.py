"""What is on disk is what the run wrote: other weights or images, flipped bits and foreign files are told.

Every command that reads a run folder is called in this process, with a finished and with an interrupted run.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import clprompt
from clprompt.cli.main import main
from clprompt.errors import ClpromptError, Interrupted
from clprompt.experiment import run as experiment
from clprompt.reporting import report
from clprompt.scenarios import split
from clprompt.system.progress import Progress

VIT = {"img_size": 8, "patch_size": 4, "in_chans": 1, "embed_dim": 16, "depth": 2, "num_heads": 2}
CLASSES = ("ant", "bee", "cow", "dog")

pytestmark = pytest.mark.usefixtures("same_picture", "no_waiting")


@pytest.fixture(name="no_waiting")
def _no_waiting() -> Iterator[None]:
    """A test that waits for something ends."""

    def end(*_: Any) -> None:
        raise AssertionError("it waits")

    before = signal.signal(signal.SIGALRM, end)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


class At(Progress):
    """Does something after a number of steps."""

    def __init__(self, step: int, act: Callable[[], object]) -> None:
        self.left, self.act = step, act

    def step(self) -> None:
        self.left -= 1
        if self.left == 0:
            self.act()


def sections(root: Path) -> dict[str, Any]:
    return {
        "name": "runs",
        "device": "cpu",
        "runs_dir": str(root),
        "data": {"name": "imagefolder", "path": str(root / "images")},
        "scenario": {"name": "split", "experiences": 2},
        "backbone": {"name": "vit_tiny_patch16_224", "checkpoint": str(root / "weights.pth"), **VIT},
        "strategy": {"name": "linear_probe"},
        "training": {"train_mb_size": 2, "train_epochs": 1, "log_every": 1},
    }


def write_weights(path: Path, seed: int) -> None:
    import timm

    torch.manual_seed(seed)
    torch.save(timm.create_model("vit_tiny_patch16_224", num_classes=0, **VIT).state_dict(), path)


def write_images(root: Path) -> None:
    draw = np.random.default_rng(0)
    for part, label, number in itertools.product(("train", "test"), CLASSES, range(4)):
        folder = root / part / label
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 256, (8, 8), dtype=np.uint8)).save(folder / f"{number}.bmp", "BMP")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images, weights, two finished runs and an interrupted one."""
    root = tmp_path_factory.mktemp("world")
    write_images(root / "images")
    write_weights(root / "weights.pth", 0)
    for name, seed in (("finished", 0), ("second", 1)):
        (result,) = experiment.run(sections(root) | {"seed": seed})
        result.folder.rename(root / name)
    stop = At(6, lambda: os.kill(os.getpid(), signal.SIGTERM))  # in the second experience
    with pytest.raises(Interrupted) as caught:
        experiment.run(sections(root), progress=stop)
    caught.value.folders[0].rename(root / "interrupted")
    (root / "runs").rmdir()
    return root


def resumed(folder: Path) -> dict[str, Any]:
    """The metrics of an interrupted run that goes on."""
    return experiment.resume(folder).summary


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# ------------------------------------------------------------------------ another world under the same names


def swap_weights(root: Path) -> None:
    write_weights(root / "weights.pth", 1)


def rename_class(root: Path) -> None:
    for part in ("train", "test"):
        (root / "images" / part / "bee").rename(root / "images" / part / "bat")


def other_pixel(root: Path) -> None:
    path = root / "images" / "train" / "bee" / "1.bmp"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def other_test_pixel(root: Path) -> None:
    path = root / "images" / "test" / "bee" / "1.bmp"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def other_size(root: Path) -> None:
    Image.new("L", (9, 9)).save(root / "images" / "train" / "bee" / "1.bmp", "BMP")


def one_more(root: Path) -> None:
    shutil.copy(root / "images" / "train" / "bee" / "1.bmp", root / "images" / "train" / "bee" / "9.bmp")


def one_less(root: Path) -> None:
    (root / "images" / "test" / "bee" / "1.bmp").unlink()


def exchange(root: Path) -> None:
    one, other = (root / "images" / "train" / label / "1.bmp" for label in ("bee", "cow"))
    one.rename(root / "x"), other.rename(one), (root / "x").rename(other)


def rename_image(root: Path) -> None:
    folder = root / "images" / "train" / "bee"
    (folder / "1.bmp").rename(folder / "11.bmp")


def swap_classes(root: Path) -> None:
    one, other = (root / "images" / "train" / label for label in ("bee", "cow"))
    one.rename(root / "x"), other.rename(one), (root / "x").rename(other)


CHANGES = {
    swap_weights: r"other backbone weights \(backbone.checkpoint=.*weights.pth\)",
    rename_class: 'other class names \\(class 1 is "bat", not "bee"\\)',
    other_pixel: r"other training images \(data.name=imagefolder\): contents",
    other_test_pixel: r"other test images \(data.name=imagefolder\): contents",
    other_size: "other training images .*: file sizes, contents",
    one_more: r"other training images .*: number \(17, not 16\)",
    one_less: r"other test images .*: number \(15, not 16\)",
    exchange: "other training images .*: contents",
    rename_image: "other training images .*: file names",
    swap_classes: "other training images .*: contents",
}


@pytest.fixture
def elsewhere(world: Path, tmp_path: Path) -> Iterator[Path]:
    """The world itself, put back as it was afterwards."""
    shutil.copytree(world, tmp_path / "kept")
    yield world
    shutil.rmtree(world)
    shutil.copytree(tmp_path / "kept", world)


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_run_is_not_continued_in_another_world(change: Callable[[Path], None], elsewhere: Path) -> None:
    change(elsewhere)
    before = snapshot(elsewhere / "interrupted")
    with pytest.raises(ClpromptError, match=CHANGES[change]) as caught:
        resumed(elsewhere / "interrupted")
    assert "\n" not in str(caught.value)
    assert snapshot(elsewhere / "interrupted") == before


def test_touched_files_are_the_same_world(elsewhere: Path) -> None:
    for path in [*(elsewhere / "images").rglob("*.bmp"), elsewhere / "weights.pth"]:
        os.utime(path, (0, 0))
    assert resumed(elsewhere / "interrupted")


def moved(world: Path, target: Path) -> Path:
    """The interrupted run in a copy of the world, its configuration mended."""
    shutil.copytree(world, target)
    path = target / "interrupted" / "config.yaml"
    text = path.read_text()
    for name in ("images", "weights.pth"):
        text = text.replace(str(world / name), str(target / name))
    path.write_text(text)
    return path.parent


def test_a_run_goes_on_with_data_and_weights_that_were_moved(world: Path, tmp_path: Path) -> None:
    expected = json.loads((world / "finished" / "results.json").read_text())
    assert resumed(moved(world, tmp_path / "moved"))["average_accuracy"] == expected["average_accuracy"]


def test_a_run_goes_on_with_lists_that_name_the_same_images(world: Path, tmp_path: Path) -> None:
    folder = moved(world, tmp_path / "moved")
    lists = []
    for part in ("train", "test"):
        paths = [f"{part}/{label}/{number}.bmp\n" for label in sorted(CLASSES) for number in range(4)]
        lists.append(tmp_path / f"{part}.txt")
        lists[-1].write_text("".join(paths))
    config = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(config.replace("lists: null", f"lists: {list(map(str, lists))}"))
    expected = json.loads((world / "finished" / "results.json").read_text())
    assert resumed(folder)["average_accuracy"] == expected["average_accuracy"]


def test_data_that_were_moved_and_changed_are_told(world: Path, tmp_path: Path) -> None:
    folder = moved(world, tmp_path / "moved")
    other_pixel(tmp_path / "moved")
    with pytest.raises(ClpromptError, match="other training images"):
        resumed(folder)


def with_order(world: Path, target: Path, order: list[int]) -> Path:
    """The interrupted run in a copy, its class order in a file beside it."""
    folder = Path(shutil.copytree(world / "interrupted", target / "run"))
    (target / "order.txt").write_text("\n".join(CLASSES[c] for c in order))
    path = folder / "config.yaml"
    path.write_text(path.read_text().replace("class_order: null", f"class_order: {target / 'order.txt'}"))
    return folder


def test_of_a_class_order_in_a_file_the_content_counts(world: Path, tmp_path: Path) -> None:
    order = [c for group in split.plan(np.arange(4), experiences=2).classes for c in group]
    (tmp_path / "other").mkdir()
    folder = with_order(world, tmp_path / "other", order[::-1])
    with pytest.raises(ClpromptError, match=r"another stream \(scenario.class_order=.*order.txt\)"):
        resumed(folder)
    expected = json.loads((world / "finished" / "results.json").read_text())
    assert resumed(with_order(world, tmp_path, order))["average_accuracy"] == expected["average_accuracy"]


# -------------------------------------------------------------------------- flipped bits


def logits(folder: Path) -> torch.Tensor:
    """What the model of a finished run says of an image, and what it calls its classes."""
    model = clprompt.load(folder)
    with torch.no_grad():
        return model(torch.linspace(-1, 1, 64).reshape(1, 1, 8, 8)), model.class_names


def reported(folder: Path, good: Path) -> list[str]:
    """What the report over a folder and a good one says of the folder; of the good one it says its row.

    Times are not looked at: no checksum covers them.
    """
    found = report.collect([good, folder])
    runs = [run for section in found.sections for row in section.rows for run in row.runs.values()]
    assert good in [run.folder for run in runs]
    lines = [line for path, line in [*found.left_out, *found.noted] if path == folder]
    shown = [run for run in runs if run.folder == folder]
    figures = [
        f"{run.settings} {run.name} {run.seed} {run.environment} {run.curves}"
        f"{[run.results.get(key) for key in report.METRICS]} {run.results['cost']['method_parameters']}"
        for run in shown
    ]
    assert len(lines) or shown
    assert not any("\n" in line for line in lines)
    return [*figures, *(f"told: {line}" for line in lines)]


def is_told(call: Callable[[], Any], expected: Any) -> bool:
    """Whether a command gives what it gave of the undamaged folder, or says in one line that it cannot."""
    try:
        found = call()
    except ClpromptError as error:
        return "\n" not in str(error) and len(str(error)) < 1000
    if isinstance(found, list):
        return found == expected or any(line.startswith("told: ") for line in found)
    return torch.equal(found[0], expected[0]) and found[1] == expected[1]


@pytest.fixture(scope="module")
def second(world: Path) -> Path:
    """A run of another seed that nobody damages."""
    return world / "second"


@pytest.fixture(scope="module")
def undamaged(world: Path, second: Path) -> dict[str, Any]:
    """What the commands say of the finished run."""
    return {"report": reported(world / "finished", second), "load": logits(world / "finished")}


def flipped(data: bytes, position: int, bit: int) -> bytes:
    changed = bytearray(data)
    changed[position] ^= 1 << bit
    return bytes(changed)


FILES = (
    "config.yaml",
    "environment.json",
    "metrics.jsonl",
    "results.json",
    "model.json",
    "model.safetensors",
)


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_in_a_finished_run_changes_nothing_or_is_told(
    name: str, world: Path, second: Path, undamaged: dict[str, Any], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(world / "finished", folder)
    commands = {"report": lambda: reported(folder, second), "load": lambda: logits(folder)}
    if name in ("config.yaml", "environment.json", "metrics.jsonl", "results.json"):
        del commands["load"]  # which does not read it
    elif name == "model.safetensors":
        del commands["report"]
    data = (folder / name).read_bytes()
    draw = np.random.default_rng(0)
    silent = []
    for position in draw.choice(len(data), 8):
        bit = int(draw.integers(8))
        (folder / name).write_bytes(flipped(data, position, bit))
        silent += [
            (command, int(position), bit)
            for command, call in commands.items()
            if not is_told(call, undamaged[command])
        ]
    assert silent == []


@pytest.mark.parametrize("name", ["config.yaml", "metrics.jsonl", "*tfevents*", "checkpoint/state.pt"])
def test_a_flipped_bit_in_an_interrupted_run_changes_nothing_or_is_told_before_any_writing(
    name: str, world: Path, tmp_path: Path
) -> None:
    expected = json.loads((world / "finished" / "results.json").read_text())
    draw = np.random.default_rng(1)
    for number in range(6):
        folder = tmp_path / str(number)
        shutil.copytree(world / "interrupted", folder)
        (path,) = folder.glob(name)
        data = path.read_bytes()
        path.write_bytes(flipped(data, int(draw.integers(len(data))), int(draw.integers(7))))
        before = snapshot(folder)
        summary, said = None, ""
        try:
            summary = resumed(folder)
        except ClpromptError as error:
            said = str(error)
        if said:
            assert "\n" not in said
            assert snapshot(folder) == before
        else:  # not every byte of an archive or of a configuration counts
            assert name not in ("metrics.jsonl", "*tfevents*")
            assert summary is not None
            assert summary.items() <= expected.items()


def test_two_lines_of_the_records_that_changed_places_are_told(world: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(world / "interrupted", folder)
    lines = (folder / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_bytes(b"".join([lines[1], lines[0], *lines[2:]]))
    with pytest.raises(ClpromptError, match=r"metrics\.jsonl was changed or damaged"):
        experiment.resume(folder)


def empty(data: bytes) -> bytes:
    return b""


def cut(data: bytes) -> bytes:
    return b"".join(data.splitlines(keepends=True)[:-1])


def half(data: bytes) -> bytes:
    return data[: len(data) // 2]


@pytest.mark.parametrize("change", [empty, cut, half])
def test_records_that_are_not_whole_are_left_out_of_a_report(
    change: Callable[[bytes], bytes], world: Path, second: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(world / "finished", folder)
    path = folder / "metrics.jsonl"
    path.write_bytes(change(path.read_bytes()))
    (line,) = reported(folder, second)
    assert line.startswith("told: it cannot be read: metrics.jsonl")


# -------------------------------------------------------------------------- foreign content

DEEP = "[" * 100_000
WHOLE = ["", "{", "[1]", "5", "null", '"text"', DEEP, '{"a":' * 100_000, "\0", "\ud800"]
RESULTS: list[dict[str, Any]] = [
    {"average_accuracy": "high"},
    {"average_accuracy": 1.1},
    {"average_accuracy": True},
    {"average_accuracy": [0.5]},
    {"forgetting": {"a": 1}},
    {"cost": 5},
    {"cost": {"seconds": "long"}},
    {"cost": {"experience_seconds": ["a"]}},
    {"cost": {"method_parameters": -1}},
    {"seed": "x"},
    {"seed": -1},
    {"seed": 1.5},
    {"seed": 10**400},
    {"seed": float("inf")},
    {"strategy": 7},
    {"strategy": "another"},
    {"checksums": 3},
    {"checksums": {"metrics.jsonl": "0"}},
]
MODEL: list[dict[str, Any]] = [
    {"class_names": ["one"]},
    {"class_names": []},
    {"class_names": "ant"},
    {"class_names": [1, 2, 3, 4]},
    {"class_names": None},
    {"seed": "x"},
    {"seed": -1},
    {"seed": float("inf")},
    {"strategy": "linear_probe"},
    {"strategy": {"name": "no_such"}},
    {"strategy": {"name": 5}},
    {"strategy": {"name": "linear_probe", "length": 5}},
    {"strategy": {"name": "linear_probe", "mask": "x"}},
    {"strategy": {"name": "l2p"}},
    {"strategy": {"name": "ncm"}},
    {"backbone": {"name": "vit_tiny_patch16_224"}},
    {"backbone": {"name": "no_such", "sha256": "0"}},
    {"backbone": {"name": 3, "sha256": "0"}},
    {"backbone": {"name": "vit_tiny_patch16_224", "sha256": "0", "no_such": 1}},
    {"backbone": []},
    {"transform": {"mean": "x"}},
    {"transform": {"interpolation": "cubist", "antialias": True, "mean": [0.5], "std": [0.5]}},
    {"transform": {"interpolation": "bicubic", "antialias": True, "mean": [0.5], "std": [0.0]}},
    {"transform": {"interpolation": "bicubic", "antialias": True, "mean": [0.5, 0.5], "std": [0.5, 0.5]}},
    {"transform": {"interpolation": "bicubic", "antialias": True, "mean": [], "std": []}},
    *(
        {
            "transform": {
                "interpolation": "bicubic",
                "antialias": True,
                "mean": [0.5],
                "std": [0.5],
                "test_resize": odd,
            }
        }
        for odd in (3, 0, "stretch", True, [])
    ),
    {"multi_label": "no"},
    {"tensors_sha256": 5},
    {"tensors_sha256": "0"},
]


def edited(path: Path, changes: dict[str, Any]) -> None:
    """Other values in a JSON file, as if it were of an older version, which wrote no checksum."""
    values = json.loads(path.read_text()) | changes
    values.pop("checksum", None)
    path.write_text(json.dumps(values))


def shown(value: Any) -> str:
    return str(value)[:40]


@pytest.mark.parametrize("name", ["config.yaml", "results.json", "metrics.jsonl", "environment.json"])
def test_a_file_of_anything_else_takes_no_other_run_out_of_a_report(
    name: str, world: Path, second: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(world / "finished", folder)
    for text in WHOLE:
        (folder / name).write_bytes(text.encode(errors="surrogatepass"))
        lines = reported(folder, second)
        assert any(line.startswith("told: ") and name in line for line in lines), text[:20]


def test_results_of_another_kind_are_left_out_of_a_report(world: Path, second: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(world / "finished", folder)
    text = (folder / "results.json").read_text()
    for changes in RESULTS:
        (folder / "results.json").write_text(text)
        edited(folder / "results.json", changes)
        (line,) = reported(folder, second)
        assert line.startswith("told: it cannot be read: "), shown(changes)


RECORDS: list[dict[str, Any]] = [
    {"experience": 10**9},
    {"experience": -1},
    {"experience": "x"},
    {"experience": None},
    {"groups": 5},
    {"groups": ["a"]},
    {"measure": "no_such"},
    {"measure": 5},
    {"when": 5},
]


def test_records_of_another_kind_take_no_other_run_out_of_a_report(
    world: Path, second: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(world / "finished", folder)
    edited(folder / "results.json", {"checksums": None})
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    for changes in RECORDS:
        record = json.loads(lines[-1]) | changes
        (folder / "metrics.jsonl").write_text("\n".join([*lines[:-1], json.dumps(record)]) + "\n")
        assert any(line.startswith("told: ") for line in reported(folder, second)), changes


@pytest.mark.parametrize("text", WHOLE, ids=shown)
def test_a_model_json_of_anything_else_is_one_line(text: str, world: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(world / "finished", folder)
    (folder / "model.json").write_bytes(text.encode(errors="surrogatepass"))
    with pytest.raises(ClpromptError, match=r"model\.json cannot be read") as caught:
        clprompt.load(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("changes", MODEL, ids=shown)
def test_a_model_json_of_another_kind_is_one_line(
    changes: dict[str, Any], world: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(world / "finished", folder)
    edited(folder / "model.json", changes)
    with pytest.raises(ClpromptError) as caught:
        clprompt.load(folder)
    assert "\n" not in str(caught.value)


def at(*keys: Any, value: Any) -> Callable[[dict[str, Any]], None]:
    """Put a value in a place of a checkpoint; `...` removes what is there."""

    def change(payload: dict[str, Any]) -> None:
        inner = payload
        for key in keys[:-1]:
            inner = inner[key]
        if value is ...:
            del inner[keys[-1]]
        else:
            inner[keys[-1]] = value

    change.__name__ = f"{'.'.join(map(str, keys))}={shown(value)}"
    return change


def lose_records(payload: dict[str, Any]) -> None:
    del payload["checksums"]
    payload["sizes"]["metrics.jsonl"] = 0


ENGINE = ("engine", "position")
PAYLOADS = [
    *(at(key, value=...) for key in ("config", "sizes", "seconds", "experience_seconds", "engine")),
    *(at(key, value=None) for key in ("config", "sizes", "seconds", "experience_seconds", "engine")),
    *(at("engine", key, value=...) for key in ("position", "model", "optimizer", "exposed", "rng")),
    *(at("engine", key, value=3) for key in ("position", "model", "optimizer", "exposed", "rng")),
    *(at("engine", key, value={}) for key in ("position", "model", "optimizer", "exposed", "rng")),
    at("sizes", value={}),
    at("sizes", value={"metrics.jsonl": "x"}),
    lose_records,
    at("sizes", value={"metrics.jsonl": 10**12}),
    at("sizes", "../weights.pth", value=5),
    at("checksums", value={}),
    at("checksums", "metrics.jsonl", value="0"),
    at("fingerprints", value=5),
    at("fingerprints", "backbone weights", value=3),
    at("fingerprints", "class names", value={}),
    at("fingerprints", "training images", value=["a"]),
    at("fingerprints", "training images", value=5),
    at("fingerprints", "stream", value={}),
    at("seconds", value="x"),
    at("seconds", value=float("nan")),
    at("experience_seconds", value=["x"]),
    at("config", "seed", value=5),
    at("config", "strategy", value={"name": "no_such"}),
    at("config", "no_such", value=1),
    at(*ENGINE, "experience", value=7),
    at(*ENGINE, "experience", value=-1),
    at(*ENGINE, "experience", value="x"),
    at(*ENGINE, "experience", value=1.5),
    at(*ENGINE, "epoch", value=5),
    at(*ENGINE, "batch", value=1000),
    at(*ENGINE, "step", value=None),
    at(*ENGINE, "samples", value=torch.zeros(2)),
    at("engine", "exposed", value=[[1000]]),
    at("engine", "exposed", value=[[0], [0]]),
    at("engine", "exposed", value=[["x"]]),
    at("engine", "model", "head.weight", value=torch.zeros(2, 2)),
    at("engine", "model", "head.weight", value=torch.zeros(4, 16, dtype=torch.float64)),
    at("engine", "model", "head.weight", value=...),
    at("engine", "model", "head.more", value=torch.zeros(1)),
    at("engine", "model", "head.weight", value=5),
    at("engine", "optimizer", value=None),
    at("engine", "optimizer", "groups", value=[]),
    at("engine", "optimizer", "groups", 0, "lr", value="x"),
    at("engine", "optimizer", "groups", 0, "betas", value=...),
    at("engine", "optimizer", "groups", 0, "names", value=["head.no_such"]),
    at("engine", "optimizer", "moments", "no.such", value={}),
    at("engine", "optimizer", "moments", "head.weight", value={"exp_avg": torch.zeros(3)}),
    at("engine", "rng", "torch", value=torch.zeros(3, dtype=torch.uint8)),
    at("engine", "rng", "numpy", value=["x"]),
    at("engine", "rng", "python", value=None),
]


@pytest.mark.parametrize("change", PAYLOADS, ids=lambda change: change.__name__)
def test_a_checkpoint_of_another_content_is_one_line_and_nothing_is_written(
    change: Callable[[dict[str, Any]], None], world: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(world / "interrupted", folder)
    path = folder / "checkpoint" / "state.pt"
    payload = torch.load(path, weights_only=True)
    change(payload)
    torch.save(payload, path)
    before = snapshot(folder)
    with pytest.raises(ClpromptError) as caught:
        experiment.resume(folder)
    assert "\n" not in str(caught.value)
    assert snapshot(folder) == before


def older(folder: Path) -> Path:
    """A run folder whose checkpoint holds what an older version wrote."""
    path = folder / "checkpoint" / "state.pt"
    payload = torch.load(path, weights_only=True)
    del payload["checksums"], payload["fingerprints"]
    torch.save(payload, path)
    return folder


def test_an_older_run_is_not_continued_with_other_weights(elsewhere: Path) -> None:
    folder = older(elsewhere / "interrupted")
    swap_weights(elsewhere)
    with pytest.raises(ClpromptError, match="other backbone weights"):
        resumed(folder)


def test_a_checkpoint_without_the_newer_facts_goes_on_and_says_so(world: Path, tmp_path: Path) -> None:
    folder = older(Path(shutil.copytree(world / "interrupted", tmp_path / "run")))
    expected = json.loads((world / "finished" / "results.json").read_text())
    assert resumed(folder)["average_accuracy"] == expected["average_accuracy"]
    assert "holds no fingerprints: classes and images are not compared" in (folder / "run.log").read_text()


# -------------------------------------------------------------------------- what is no regular file


def pipe(path: Path) -> None:
    os.mkfifo(path)


def endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


def folder_of_that_name(path: Path) -> None:
    path.mkdir()


def to_nowhere(path: Path) -> None:
    path.symlink_to("/no/such/file")


KINDS = [pipe, endless, folder_of_that_name, to_nowhere]
kinds = pytest.mark.parametrize("make", KINDS, ids=lambda make: make.__name__)


@kinds
@pytest.mark.parametrize("name", FILES)
def test_no_command_waits_for_a_file_that_is_none(
    name: str,
    make: Callable[[Path], None],
    world: Path,
    second: Path,
    undamaged: dict[str, Any],
    tmp_path: Path,
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(world / "finished", folder)
    (folder / name).unlink()
    make(folder / name)
    if name in ("model.json", "model.safetensors"):
        assert is_told(lambda: logits(folder), undamaged["load"])
    else:
        assert reported(folder, second)[-1].startswith("told: ")


@pytest.mark.parametrize(
    ("name", "make"),
    [
        *itertools.product(("config.yaml", "metrics.jsonl", "checkpoint/state.pt"), KINDS),
        *(("run.log", make) for make in KINDS if make is not endless),  # which takes what it is given
    ],
)
def test_a_resume_waits_for_no_file_that_is_none(
    name: str, make: Callable[[Path], None], world: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(world / "interrupted", folder)
    (folder / name).unlink()
    make(folder / name)
    with pytest.raises(ClpromptError) as caught:
        experiment.resume(folder)
    assert "\n" not in str(caught.value)
    assert not (folder / "results.json").exists()


@kinds
@pytest.mark.parametrize("command", ["run", "config", "study", "stream"])
def test_a_configuration_that_is_no_file_is_one_line(
    command: str, make: Callable[[Path], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "config.yaml"
    make(path)
    assert main([command, str(path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"clprompt: error: {path}: ")


# -------------------------------------------------------------------------- removed while a run goes on


@pytest.mark.parametrize("name", ["metrics.jsonl", "*tfevents*", "."])
def test_a_run_whose_files_are_removed_ends_with_one_line(name: str, world: Path, tmp_path: Path) -> None:
    def remove() -> None:
        (folder,) = (tmp_path / "runs").iterdir()
        for path in [folder] if name == "." else list(folder.glob(name)):
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    with pytest.raises(ClpromptError) as caught:
        experiment.run(sections(world) | {"runs_dir": str(tmp_path)}, progress=At(6, remove))
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.rglob("results.json"))
