"""How many clusters DAM-VP makes on Split-Digits, and what they are worth: thresholds, caps, none at all.

Every row is run on the same seeds (class order, data order, initial values), 5 experiences of 2 classes, as
in `quickstart-damvp`; `linear head alone` trains no prompt, at the rate of DAM-VP's head.

python -m benchmarks.damvp_clusters [--seeds 3] [--epochs 5] [--prompt-lr RATE] [--head-lr 0.001]
                                    [--only "NAME;NAME"] [--out FILE]
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from clprompt import FrozenViT, fit
from clprompt.data import datasets_for, digits
from clprompt.metrics import accuracy
from clprompt.prompting.build import construct
from clprompt.scenarios import split
from clprompt.strategies.damvp import DAMVPModel
from clprompt.strategies.damvp.meta_init import run as meta_init
from clprompt.strategies.damvp.meta_sources import load
from clprompt.strategies.linear_probe import LinearProbeModel
from clprompt.system.progress import Progress
from clprompt.training.settings import Training

RATIOS, CAPS = (0.9, 0.95, 1.0), (1, 4, 8, 16)


def rows(init_file: str) -> dict[str, dict[str, Any]]:
    """The arguments of each row of the table."""
    found: dict[str, dict[str, Any]] = {
        f"ratio {ratio}, cap {cap}": {"threshold_ratio": ratio, "max_clusters": cap}
        for ratio in RATIOS
        for cap in CAPS
    }
    return found | {
        "cluster=false (one prompt per experience)": {"cluster": False},
        "cluster=false, max_prompts=1 (generic prompt)": {"cluster": False, "max_prompts": 1},
        "prompt=token": {"prompt": "token"},
        "init=nearest": {"init": "nearest"},
        "init=random": {"init": "random"},
        "init=meta": {"init_file": init_file},
        "share=true": {"share": True},
        "train_assign=current": {"train_assign": "current"},
    }


def run(arguments: dict[str, Any] | None, seed: int, options: argparse.Namespace) -> dict[str, float]:
    """One run: its metrics as fractions, clusters per experience, prompts in all. None: the head alone."""
    backbone = FrozenViT("vit_letters")
    train, clean, test = datasets_for(digits(), backbone)
    plan = split.plan(train.targets, experiences=5, seed=seed)
    training = Training(train_mb_size=32, train_epochs=options.epochs, lr=options.head_lr)
    if arguments is None:
        model: Any = LinearProbeModel(backbone, seed=seed)
    else:
        rates = {"prompt_lr": options.prompt_lr, "head_lr": options.head_lr}
        pad = {} if arguments.get("prompt") == "token" else {"pad": 3}
        model = construct(DAMVPModel, backbone, seed=seed, **pad, **rates, **arguments)
    records = fit(model, plan, train, test, clean=clean, training=training, seed=seed)
    clusters = len(model.prototypes) / 5 if arguments is not None else 0.0
    prompts = len(model.frames) if arguments is not None else 0
    return accuracy.summarise(records) | {"clusters": clusters, "prompts": prompts}


def cell(values: list[float], scale: float = 1.0, digits: int = 1) -> str:
    """Mean and standard error."""
    array = scale * np.asarray(values, dtype=np.float64)
    error = array.std(ddof=1) / len(array) ** 0.5 if len(array) > 1 else 0.0
    return f"{array.mean():.{digits}f} ± {error:.{digits}f}"


def main() -> None:
    """Run every row on every seed and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--prompt-lr", type=float, help="in place of the method's defaults")
    parser.add_argument("--head-lr", type=float, default=1e-3)
    parser.add_argument("--only", help="parts of row names, separated by ;")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)  # the model is tiny: more threads only wait for one another
    every: dict[str, dict[str, list[float]]] = {}
    print(
        "| form | clusters per experience | prompts | average accuracy | forgetting |\n|---|---|---|---|---|"
    )
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "meta.safetensors"
        chosen: dict[str, Any] = {**rows(str(file)), "linear head alone": None}
        if options.only:
            words = options.only.split(";")
            chosen = {name: value for name, value in chosen.items() if any(word in name for word in words)}
        if "init=meta" in chosen:
            meta_init(load("letters"), file, progress=Progress(), command=[])
        for name, arguments in chosen.items():
            found = [run(arguments, seed, options) for seed in range(options.seeds)]
            row = every[name] = {key: [each[key] for each in found] for key in found[0]}
            cells = [
                cell(row["clusters"]),
                cell(row["prompts"]),
                cell(row["average_accuracy"], 100),
                cell(row["forgetting"], 100),
            ]
            print(f"| {name} | " + " | ".join(cells) + " |", flush=True)
    if options.out:
        options.out.write_text(json.dumps(every, indent=2) + "\n")


if __name__ == "__main__":
    main()
