"""What a stream of many images and classes costs beside its steps: start-up, memory, evaluation, checkpoint.

python -m benchmarks.scale --images 1000000 --classes 1000 --strategy l2p --out FILE

Images are noise that is drawn when one is asked for; none is held. Two runs are made, as ``clprompt run``
makes them, each in a process of its own:

* *start*: the whole stream, stopped by a signal after ``--steps`` steps. What depends on the number of images
  (labels, plan, order, fingerprints) is there; the resident size is that of the process at its end.
* *classes*: a whole run with all classes and ``--per-class`` training images of each. What depends on the
  number of classes is there: logits, statistics, records, checkpoint.

Nothing is extrapolated. Seconds are processor time of one thread, imports left out.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from clprompt.data import DataBundle, ImageSource
from clprompt.errors import Interrupted
from clprompt.experiment.run import run
from clprompt.registry import datasets
from clprompt.reporting.markup import markdown_table
from clprompt.seeding import generator
from clprompt.system.memory import peak_memory
from clprompt.system.progress import Progress


@datasets.register("drawn_noise")
def drawn_noise(*, classes: int, train: int, test: int, size: int) -> DataBundle:
    """Noise, uint8 [3, size, size], drawn image by image; ``train`` and ``test`` images of each class."""

    def source(part: str, per_class: int) -> ImageSource:
        def load(index: int) -> torch.Tensor:
            own = generator(0, part, index)
            return torch.randint(0, 256, (3, size, size), dtype=torch.uint8, generator=own)

        return ImageSource(load=load, targets=np.repeat(np.arange(classes), per_class))

    return DataBundle(
        "drawn_noise", source("train", train), source("test", test), [f"class {c}" for c in range(classes)]
    )


class Watch(Progress):
    """Notes when a run starts, takes its first step and ends its experiences; stops it after some steps.

    Args:
        steps: after which the run is asked to stop; None for never.
    """

    def __init__(self, steps: int | None) -> None:
        self.began = time.process_time()
        self.steps = steps
        self.made = 0
        self.start_up = 0.0
        self.resident: list[int] = []  # bytes when each experience begins

    def experience(self, index: int, total: int) -> None:
        self.resident.append(resident())

    def step(self) -> None:
        self.made += 1
        if self.made == 1:
            self.start_up = time.process_time() - self.began
        if self.made == self.steps:
            os.kill(os.getpid(), signal.SIGTERM)


def resident() -> int:
    """Bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def measured(options: argparse.Namespace, train: int, steps: int | None) -> dict[str, Any]:
    """One run, and what it cost."""
    watch = Watch(steps)
    torch.set_num_threads(1)
    before = resident()
    with tempfile.TemporaryDirectory() as folder:
        config = {
            "name": "scale",
            "seed": 0,
            "device": "cpu",
            "runs_dir": folder,
            "data": {
                "name": "drawn_noise",
                "classes": options.classes,
                "train": train,
                "test": options.test,
                "size": options.size,
            },
            "scenario": {"name": "split", "experiences": options.experiences},
            "backbone": {"name": options.model, "img_size": options.size, "pretrained": False},
            "strategy": {"name": options.strategy},
            "training": {"train_mb_size": 64, "train_epochs": 1, "eval_mb_size": 128},
        }
        results: list[Any] = []
        try:
            results = run(config, progress=watch)
        except Interrupted:
            assert steps is not None
        seconds = time.process_time() - watch.began
        (place,) = Path(folder, "scale").iterdir()
        size = {
            str(path.relative_to(place)): path.stat().st_size for path in place.rglob("*") if path.is_file()
        }
    return {
        "training images": train * options.classes,
        "finished": bool(results),
        "seconds": seconds,
        "start-up, s": watch.start_up,
        "imported, MiB": before / 2**20,
        "resident, MiB": resident() / 2**20,
        "peak, MiB": peak_memory() / 2**20,
        "resident when each experience begins, MiB": [value / 2**20 for value in watch.resident],
        "checkpoint, MiB": size.get("checkpoint/state.pt", 0) / 2**20,
        "predictions, MiB": size.get("predictions.npz", 0) / 2**20,
        "metrics.jsonl, MiB": size.get("metrics.jsonl", 0) / 2**20,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--experiences", type=int, default=10)
    parser.add_argument("--test", type=int, default=5, help="test images of each class")
    parser.add_argument("--per-class", type=int, default=4, help="training images of each in the whole run")
    parser.add_argument("--steps", type=int, default=20, help="of the run that is stopped")
    parser.add_argument("--strategy", default="l2p")
    parser.add_argument("--model", default="vit_tiny_patch16_224")
    parser.add_argument("--size", type=int, default=32, help="of an image, in pixels")
    parser.add_argument("--out", type=Path, help="also write the figures here, as JSON")
    parser.add_argument("--only", choices=["start", "classes"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        whole = options.only == "classes"
        train = options.per_class if whole else options.images // options.classes
        print(json.dumps(measured(options, train, None if whole else options.steps)))
        return
    found: dict[str, dict[str, Any]] = {}
    for name in ("start", "classes"):
        command = [sys.executable, "-m", "benchmarks.scale", *sys.argv[1:], "--only", name]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        found[name] = json.loads(done.stdout.splitlines()[-1])
        if options.out:
            options.out.write_text(json.dumps(found, indent=1))
    rows = [[key, *(_shown(figures[key]) for figures in found.values())] for key in found["start"]]
    print("\n".join(markdown_table([["", *found], *rows])))


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(f"{v:.0f}" for v in value)
    return f"{value:.1f}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
