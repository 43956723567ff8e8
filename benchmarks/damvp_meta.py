"""What a meta-prompt does to the first epochs of DAM-VP: frames from meta-init, from zero, and random ones.

The frame is learnt by `clprompt meta-init letters`; the digits then come in one experience, and the test
accuracy is taken before training and after every epoch. A seed decides initial values, meta-init, data order.

python -m benchmarks.damvp_meta [--seeds 3] [--epochs 8] [--prompt-lr 0.05] [--head-lr 0.001]
                                [--png FILE] [--out FILE] [KEY=VALUE of the meta-init]...
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from clprompt import FrozenViT, evaluate
from clprompt.data import datasets_for, digits
from clprompt.data.loading import sample_stream, training_batches
from clprompt.prompting.build import construct
from clprompt.strategies.damvp import DAMVPModel
from clprompt.strategies.damvp.meta_init import run as meta_init
from clprompt.strategies.damvp.meta_sources import load
from clprompt.system.files import atomic_write
from clprompt.system.progress import Progress
from clprompt.training import optim
from clprompt.training.settings import Training
from clprompt.training.steps import receive, train_step

STARTS = {"meta": "#0072b2", "zero": "#009e73", "random": "#d55e00"}


def curve(arguments: dict[str, Any], seed: int, epochs: int) -> list[float]:
    """Test accuracy before training and after each epoch on all ten digits."""
    backbone = FrozenViT("vit_letters")
    train, clean, test = datasets_for(digits(), backbone)
    model = construct(DAMVPModel, backbone, seed=seed, pad=3, **arguments)
    model.begin_experience(range(10), lambda: sample_stream(clean, 128))
    model.observe(torch.arange(10))
    optimizer = optim.build(model, Training())
    found = [evaluate(model, test).accuracy]
    for epoch in range(epochs):
        batches = training_batches(train, seed=seed, experience=0, epoch=epoch, batch_size=32)
        for images, targets, *_ in batches:
            receive(model, optimizer, targets)
            train_step(model.train(), optimizer, images, targets)
        found.append(evaluate(model, test).accuracy)
    return found


def draw(found: dict[str, list[list[float]]]) -> Any:
    """Mean accuracy after each epoch with the standard error as a band."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.add_subplot(xlabel="epoch", ylabel="test accuracy on ten digits (%)")
    for name, colour in STARTS.items():
        values = 100 * np.asarray(found[name])
        mean, error = values.mean(0), values.std(0, ddof=1) / len(values) ** 0.5
        mean, error = mean[1:], error[1:]  # before training all are at chance, which would flatten the rest
        epochs = 1 + np.arange(len(mean))
        axes.plot(epochs, mean, color=colour, marker="o", markersize=4, label=f"frames from {name}")
        axes.fill_between(epochs, mean - error, mean + error, color=colour, alpha=0.2, linewidth=0)
    axes.grid(axis="y", color="#dddddd", linewidth=0.6)
    axes.set_title(f"DAM-VP, {len(values)} seeds, mean and standard error", fontsize=10)
    axes.legend(frameon=False)
    return figure


def main() -> None:
    """Learn the frames, train from each start, print a Markdown table, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--prompt-lr", type=float, default=0.05)
    parser.add_argument("--head-lr", type=float, default=1e-3)
    parser.add_argument("--png", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("overrides", nargs="*")
    options = parser.parse_args()
    torch.set_num_threads(1)  # the model is tiny: more threads only wait for one another
    found: dict[str, list[list[float]]] = {name: [] for name in STARTS}
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(options.seeds):
            file, began = Path(folder) / f"{seed}.safetensors", time.perf_counter()
            settings = load("letters", [f"seed={seed}", *options.overrides])
            meta_init(settings, file, progress=Progress(), command=[])
            print(f"seed {seed}: meta-init took {time.perf_counter() - began:.0f} s", flush=True)
            for name in STARTS:
                start = {"init_file": str(file)} if name == "meta" else {"init": name}
                rates = {"prompt_lr": options.prompt_lr, "head_lr": options.head_lr}
                found[name].append(curve({**start, **rates}, seed, options.epochs))
    print("\n| frames from | " + " | ".join(f"epoch {e}" for e in range(options.epochs + 1)) + " |")
    print("|---|" + "---|" * (options.epochs + 1))
    for name, curves in found.items():
        values = 100 * np.asarray(curves)
        error = values.std(0, ddof=1) / len(values) ** 0.5
        cells = [f"{m:.1f} ± {e:.1f}" for m, e in zip(values.mean(0), error, strict=True)]
        print(f"| {name} | " + " | ".join(cells) + " |")
    if options.png:
        from clprompt.reporting.plots import png

        atomic_write(options.png, png(draw(found), dpi=80))
    if options.out:
        options.out.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
