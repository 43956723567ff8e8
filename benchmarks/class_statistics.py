"""What class statistics cost: one update, one solution, a run of slda beside one of ncm, a share of a run.

A share is what the plug-in takes of a run with it: the time spent in its hooks over that of the whole run,
so that both are of the same run on a machine that others use as well. Run times of slda and ncm are medians
of interleaved pairs.

python -m benchmarks.class_statistics [--model vit_small_patch16_224] [--pixels 112] [--images 10]
                                      [--pairs 9] [--epochs 5] [--device cpu|cuda]
                                      [--only update,solve,runs,shares] [--out FILE]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from clprompt import FrozenViT, fit
from clprompt.data import datasets_for
from clprompt.data.sets.synthetic import synthetic
from clprompt.prompting.build import make_method
from clprompt.prompting.model import PromptModel
from clprompt.prompting.statistics import ClassStatistics, lda, ridge
from clprompt.scenarios import split
from clprompt.training.settings import Online, Training

CLASSES = 10
WIDE, MANY = 768, 1000  # of update and solution
TARGETS = {  # what a reader compares the medians with
    "update, ms": "<= 3",
    "solution by lda, ms": "<= 50",
    "slda / ncm": "0.95 to 1.05",
    "share offline": "<= 0.25",
    "share online": "<= 0.03",
}


def timed(call: Callable[[], Any], device: str) -> float:
    """Seconds of one call."""
    if device == "cuda":
        torch.cuda.synchronize()
    begin = time.perf_counter()
    call()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begin


def repeated(call: Callable[[], Any], device: str, times: int) -> list[float]:
    """Milliseconds of several calls after one that is not counted."""
    call()
    return [1000 * timed(call, device) for _ in range(times)]


def filled(device: str) -> ClassStatistics:
    """Statistics of three samples for each of many classes."""
    kept = ClassStatistics(WIDE).to(device)
    kept.grow(MANY)
    labels = torch.arange(MANY).repeat(3)
    features = torch.randn(len(labels), WIDE, generator=torch.Generator().manual_seed(0))
    kept.add(features.to(device), labels.to(device))
    return kept


def update(rows: int, device: str) -> Callable[[], None]:
    """Counts so many samples."""
    kept, features = filled(device), torch.randn(rows, WIDE, device=device)
    labels = torch.arange(rows, device=device)
    return lambda: kept.add(features, labels)


class Bench:
    """One backbone and data set for all runs.

    Args:
        model: a timm name; its weights are random, which costs the same.
        pixels: of a side.
        images: for training, of each class.
        epochs: of an offline run of a trained method.
        device: where it runs.
    """

    def __init__(self, model: str, pixels: int, images: int, epochs: int, device: str) -> None:
        self.backbone = FrozenViT(model, pretrained=False, img_size=pixels).to(device)
        data = synthetic(classes=CLASSES, train_per_class=images, test_per_class=2, size=32)
        self.train, self.clean, self.test = datasets_for(data, self.backbone)
        self.epochs = epochs
        self.device = device

    def run(self, section: dict[str, Any], online: bool = False) -> tuple[PromptModel, float, float]:
        """A run: the model, its seconds, and those of them that its plug-ins took."""
        model = make_method(section, self.backbone, seed=0).to(self.device)
        taken = [0.0]
        for plugin in model.plugins:
            for hook in ("received", "end_experience", "logits"):
                setattr(plugin, hook, self.watched(getattr(plugin, hook), taken))
        plan = split.plan(self.train.targets, experiences=2, shuffle=False)
        training = Training(train_mb_size=16, train_epochs=self.epochs if model.trains else 1, lr=0.001)
        sections = {"training": training, "online": Online(iterations=2) if online else None}
        seconds = timed(
            lambda: fit(model, plan, self.train, self.test, clean=self.clean, **sections), self.device
        )
        return model, seconds, taken[0]

    def watched(self, hook: Callable[..., Any], taken: list[float]) -> Callable[..., Any]:
        """The hook, adding its time."""

        def call(*arguments: Any) -> Any:
            found: list[Any] = []
            taken[0] += timed(lambda: found.append(hook(*arguments)), self.device)
            return found[0]

        return call

    def pair(self, number: int) -> float:
        """The time of slda over that of ncm, one after the other; every other pair begins with ncm."""
        order = ["slda", "ncm"] if number % 2 else ["ncm", "slda"]
        seconds = {name: self.run({"name": name})[1] for name in order}
        return seconds["slda"] / seconds["ncm"]

    def share(self, section: dict[str, Any], online: bool) -> float:
        _, seconds, taken = self.run(section, online)
        return taken / seconds


def quartiles(values: list[float]) -> str:
    low, middle, high = statistics.quantiles(values, n=4) if len(values) > 1 else 3 * values
    return f"{middle:.4g} ({low:.4g}-{high:.4g})"


def main() -> None:
    """Measure, and print a Markdown table as it is made."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="vit_small_patch16_224")
    parser.add_argument("--pixels", type=int, default=112)
    parser.add_argument("--images", type=int, default=10)
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--only", default="update,solve,runs,shares")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    measured: dict[str, list[float]] = {}
    parts, device, pairs = options.only.split(","), options.device, options.pairs
    print("| what | median (quartiles) | aim |\n|---|---|---|")

    def tell(name: str, values: list[float]) -> None:
        measured[name] = values
        aim = next((aim for key, aim in TARGETS.items() if name.startswith(key)), "-")
        print(f"| {name} | {quartiles(values)} | {aim} |", flush=True)

    if "update" in parts:
        for rows in (16, 128):
            tell(f"update, ms: {rows} rows of {WIDE}", repeated(update(rows, device), device, 3 * pairs))
    if "solve" in parts:
        kept = filled(device)
        for name, solve in (("lda", lambda: lda(kept)), ("ridge", lambda: ridge(kept, 0.3))):
            title = f"solution by {name}, ms: {WIDE} features, {MANY} classes"
            tell(title, repeated(solve, device, pairs))
    if "runs" in parts or "shares" in parts:
        bench = Bench(options.model, options.pixels, options.images, options.epochs, device)
        if "runs" in parts:
            bench.pair(0)
            tell("slda / ncm, time of a run", [bench.pair(number) for number in range(pairs)])
        if "shares" in parts:
            dual = {"name": "dualprompt", "statistics": "lda"}
            mvp = {"name": "mvp", "statistics": "lda"}
            tell("share offline: dualprompt, lda", [bench.share(dual, False) for _ in range(3)])
            tell("share online: mvp, lda", [bench.share(mvp, True) for _ in range(3)])
    if options.out:
        options.out.write_text(json.dumps(measured, indent=2) + "\n")


if __name__ == "__main__":
    main()
