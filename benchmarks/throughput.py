"""Images a second in training and evaluation, method by method, and the share of time spent on loading.

python -m benchmarks.throughput [CONFIG] [KEY=VALUE]... [--methods l2p,dualprompt] [--images 200]
                                [--passes 2] [--out FILE]

The configuration (quickstart unless told) gives data, backbone, batch sizes, workers, precision and device;
overrides are those of `clprompt run`. Each method trains on images of the stream's first experience: once to
warm up, which also decodes every image for the first time, then --passes times. Evaluation is measured on as
many test images, with nothing kept of an earlier one, and again with what a model keeps between evaluations.
"loading" is the share of time spent waiting for a batch (decoding, resizing, augmenting, collating).
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from clprompt import registry
from clprompt.data import datasets_for
from clprompt.data.loading import fixed_batches, sample_stream, subset, training_batches
from clprompt.errors import ClpromptError
from clprompt.experiment import config as configuration
from clprompt.experiment import folder
from clprompt.experiment.build import Builder, Parts
from clprompt.experiment.config import Config
from clprompt.prompting.model import Cache
from clprompt.reporting.tables import columns
from clprompt.targets import visible
from clprompt.training import optim
from clprompt.training.precision import autocast
from clprompt.training.steps import receive, train_step


@dataclass
class Watch:
    """Seconds of a pass, and those of them that waited for images."""

    images: int = 0
    waiting: float = 0.0
    seconds: float = 0.0

    def over(self, batches: Iterable[Any], device: torch.device) -> Iterator[tuple[Any, ...]]:
        """Hand batches on; what happens between two of them counts as work."""
        start = time.perf_counter()
        source = iter(batches)
        while True:
            before = time.perf_counter()
            batch = next(source, None)
            self.waiting += time.perf_counter() - before
            if batch is None:
                break
            self.images += len(batch[0])
            yield batch
            if device.type == "cuda":
                torch.cuda.synchronize()
        self.seconds += time.perf_counter() - start

    def metrics(self) -> dict[str, float]:
        """Images a second, and the share of the time that waited."""
        return {"images_per_second": self.images / self.seconds, "loading": self.waiting / self.seconds}


def measure(config: Config, builder: Builder, images: int, passes: int) -> dict[str, Any]:
    """The metrics of one method."""
    parts = builder.build(config)
    train, clean, test = datasets_for(parts.bundle, parts.backbone)
    chosen = np.asarray(parts.plan.indices[0])[:images]
    model, device, classes = parts.model, parts.device, list(parts.plan.classes[0])
    if model.boundaries != "unused":
        stream = subset(clean, chosen)
        size = config.training.eval_mb_size
        model.begin_experience(classes, lambda: ((x.to(device), y) for x, y in sample_stream(stream, size)))
    found: dict[str, Any] = {}
    optimizer, watch = None, Watch()
    for epoch in range(passes + 1):
        watch = watch if epoch > 1 else Watch()  # the first pass stands alone
        model.train()
        batches = training_batches(
            subset(train, chosen),
            seed=0,
            experience=0,
            epoch=epoch,
            batch_size=config.training.train_mb_size,
            workers=config.training.workers,
        )
        for pixels, targets, *_ in watch.over(batches, device):
            pixels, targets = pixels.to(device), visible(targets.to(device), classes)
            receive(model, optimizer, targets)
            if epoch == 0 and optimizer is None:
                optimizer = optim.build(model, config.training)
            train_step(model, optimizer, pixels, targets, precision=config.precision)
        found["training" if epoch else "first_epoch"] = watch.metrics()
    model.end_experience()
    return found | _evaluate(config, parts, test, images)


@torch.no_grad()
def _evaluate(config: Config, parts: Parts, test: Any, images: int) -> dict[str, Any]:
    size, device = config.training.eval_mb_size, parts.device
    order = np.concatenate(parts.test_groups[:1])[:images] if parts.test_groups else np.arange(0)
    batches = [order[i : i + size].tolist() for i in range(0, len(order), size)]
    parts.model.eval()
    kept: list[Cache] = [{} for _ in batches]
    found = {}
    for name in ("decoding", "evaluation", "evaluation_again"):
        watch = Watch()
        if name == "evaluation":
            kept = [{} for _ in batches]
        loader = fixed_batches(test, batches, config.training.workers)
        for number, (pixels, *_) in enumerate(watch.over(loader, device)):
            with autocast(device, config.precision):
                parts.model(pixels.to(device), kept[number])
        found[name] = watch.metrics()
    return found


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("words", nargs="*", metavar="CONFIG|KEY=VALUE")
    parser.add_argument("--methods", default="", help="comma-separated; all by default")
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--passes", type=int, default=2)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    names = [word for word in options.words if "=" not in word] or ["quickstart"]
    overrides = [word for word in options.words if "=" in word]
    builder = Builder()
    results: dict[str, Any] = {}
    header = (
        "method",
        "train img/s",
        "loading",
        "first epoch",
        "eval img/s",
        "loading",
        "again img/s",
        "loading",
    )
    rows: list[tuple[str, ...]] = [header]
    facts: dict[str, Any] = {}
    for method in options.methods.split(",") if options.methods else registry.strategies.names():
        try:
            text = ["backbone=clip_letters"] if registry.strategies.get(method).target.needs_text else []
            loaded = configuration.load(names[0], [f"strategy={method}", "compare=[]", *text, *overrides])
            config = replace(loaded, seed=loaded.seeds[0])
            results[method] = found = measure(config, builder, options.images, options.passes)
            facts = facts or folder.environment(builder.build(config).model, torch.device("cpu"))
        except ClpromptError as error:
            print(f"{method}: left out: {error}", flush=True)
            continue
        told = [method]
        for key in ("training", "first_epoch", "evaluation", "evaluation_again"):
            share = f"{100 * found[key]['loading']:.1f} %"
            told += [share] if key == "first_epoch" else [f"{found[key]['images_per_second']:.1f}", share]
        rows.append(tuple(told))
        print(columns([header, rows[-1]])[1], flush=True)
    print("\n".join(["", *columns(rows)]))
    if options.out:
        options.out.write_text(json.dumps({"methods": results, "environment": facts}, indent=2) + "\n")


if __name__ == "__main__":
    main()
