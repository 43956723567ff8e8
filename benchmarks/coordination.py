"""Does it help that every token chooses its prompts? Methods with and without coordination, forms of TCPA.

Split-Digits, 5 experiences of 2 classes, the embedded `vit_letters`. The learning rate of every row is the
best of --rates on a seed that the table does not use, by average accuracy: the same budget for all. Rows are
then run on the same seeds (class order, data order, initial values); the last column is the paired difference
to the row that is named there.

python -m benchmarks.coordination [--seeds 3] [--epochs 5] [--rates 0.001,0.003,0.01] [--only "NAME;NAME"]
                                  [--out FILE]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from benchmarks.damvp_clusters import cell
from clprompt import FrozenViT, fit
from clprompt.data import datasets_for, digits
from clprompt.metrics import accuracy
from clprompt.prompting.build import make_method
from clprompt.scenarios import split
from clprompt.training.settings import Training

TUNING_SEED = 1000
VPT = {"name": "vpt_deep", "length": 12}
DUAL = {"name": "dualprompt", "g_layers": (0,), "e_layers": (1, 2, 3, 4), "e_length": 10}
POOLS = {"pool_cls": 6, "pool_image": 6, "top_k_cls": 3, "top_k_image": 3}
TCPA = {"name": "tcpa", **POOLS}

#: row -> the strategy, and the row that it is compared with.
ROWS: dict[str, tuple[dict[str, Any], str | None]] = {
    "linear head alone": ({"name": "linear_probe"}, None),
    "vpt_deep": (VPT, None),
    "vpt_deep, coordinate": ({**VPT, "coordinate": True}, "vpt_deep"),
    "l2p": ({"name": "l2p"}, None),
    "l2p, coordinate": ({"name": "l2p", "coordinate": True}, "l2p"),
    "dualprompt": (DUAL, None),
    "dualprompt, coordinate": ({**DUAL, "coordinate": True}, "dualprompt"),
    "tcpa": (TCPA, "vpt_deep"),
    "tcpa, prompts=shared": ({**TCPA, "prompts": "shared"}, "tcpa"),
    "tcpa, prompts=first": ({**TCPA, "prompts": "first"}, "tcpa"),
    "tcpa, select=task": ({**TCPA, "select": "task"}, "tcpa"),
    "tcpa, random_epochs=0": ({**TCPA, "random_epochs": 0}, "tcpa"),
    "tcpa, token_matching=false (roles alone)": ({**TCPA, "token_matching": False}, "tcpa"),
}


def run(section: dict[str, Any], rate: float, seed: int, epochs: int) -> dict[str, float]:
    """One run: its metrics as fractions."""
    backbone = FrozenViT("vit_letters")
    train, clean, test = datasets_for(digits(), backbone)
    plan = split.plan(train.targets, experiences=5, seed=seed)
    model = make_method(section, backbone, seed=seed)
    training = Training(train_mb_size=32, train_epochs=epochs, lr=rate)
    return accuracy.summarise(fit(model, plan, train, test, clean=clean, training=training, seed=seed))


def tune(section: dict[str, Any], rates: list[float], epochs: int) -> dict[float, float]:
    """Average accuracy of each rate on the tuning seed."""
    return {rate: run(section, rate, TUNING_SEED, epochs)["average_accuracy"] for rate in rates}


def main() -> None:
    """Tune and run every row, and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument(
        "--rates", type=lambda text: [float(part) for part in text.split(",")], default="0.001,0.003,0.01"
    )
    parser.add_argument("--only", help="parts of row names, separated by ;")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)  # the model is tiny: more threads only wait for one another
    words = options.only.split(";") if options.only else [""]
    every: dict[str, dict[str, Any]] = {}
    print(
        "| form | lr | average accuracy | forgetting | difference in average accuracy |\n"
        "|---|---|---|---|---|"
    )
    for name, (section, other) in ROWS.items():
        if not any(word in name for word in words):
            continue
        tuned = tune(section, options.rates, options.epochs)
        rate = max(tuned, key=lambda each: tuned[each])
        found = [run(section, rate, seed, options.epochs) for seed in range(options.seeds)]
        row: dict[str, Any] = {key: [each[key] for each in found] for key in found[0]}
        every[name] = row | {"lr": rate, "tuning": tuned}
        difference = ""
        if other in every:
            pairs = zip(row["average_accuracy"], every[other]["average_accuracy"], strict=True)
            difference = f"{cell([own - theirs for own, theirs in pairs], 100)} to {other}"
        cells = [f"{rate:g}", cell(row["average_accuracy"], 100), cell(row["forgetting"], 100), difference]
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)
    if options.out:
        options.out.write_text(json.dumps(every, indent=2) + "\n")


if __name__ == "__main__":
    main()
