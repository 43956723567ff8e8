"""The quickstart's strategies over paired seeds, each with the same tuning budget.

Every strategy gets the same three learning rates on the same two tuning seeds; the best by average accuracy
is then run on new seeds. A seed decides class order, data order and initial values: comparisons are paired.

python -m benchmarks.quickstart [--seeds 5] [--out FILE]
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import torch

from clprompt import FrozenViT, fit
from clprompt.data import datasets_for, digits
from clprompt.metrics import accuracy as metrics
from clprompt.scenarios import split
from clprompt.strategies.dualprompt import DualPromptModel
from clprompt.strategies.linear_probe import LinearProbeModel
from clprompt.strategies.ncm import NCMModel
from clprompt.training.settings import Training

RATES = (0.003, 0.01, 0.03)
TUNING_SEEDS = (100, 101)
PROMPTS: dict[str, Any] = {"e_layers": (1, 2, 3, 4), "e_length": 10}
STRATEGIES: dict[str, tuple[Any, dict[str, Any]]] = {
    "dualprompt, general prompt frozen after the first experience": (
        DualPromptModel,
        {**PROMPTS, "g_layers": (0,), "freeze_general_after": 1},
    ),
    "dualprompt, general prompt trained throughout": (DualPromptModel, {**PROMPTS, "g_layers": (0,)}),
    "dualprompt, no general prompt": (DualPromptModel, {**PROMPTS, "g_layers": ()}),
    "linear_probe": (LinearProbeModel, {}),
    "ncm": (NCMModel, {}),
}


def run(name: str, seed: int, lr: float) -> dict[str, float]:
    """One run; its metrics as fractions."""
    kind, arguments = STRATEGIES[name]
    backbone = FrozenViT("vit_letters")
    train, clean, test = datasets_for(digits(), backbone)
    plan = split.plan(train.targets, experiences=5, seed=seed)
    model = kind(backbone, seed=seed, **arguments)
    training = Training(train_mb_size=32, train_epochs=5 if model.trains else 1, lr=lr)
    records = fit(model, plan, train, test, clean=clean, training=training, seed=seed)
    return metrics.summarise(records)


def main() -> None:
    """Tune, run, print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)  # the model is tiny: more threads only wait for one another
    rows: dict[str, dict[str, Any]] = {}
    for name, (kind, _) in STRATEGIES.items():
        rates = RATES if kind.trains else RATES[:1]
        tuned = {
            lr: statistics.mean(run(name, seed, lr)["average_accuracy"] for seed in TUNING_SEEDS)
            for lr in rates
        }
        best = max(tuned, key=lambda lr: tuned[lr])
        runs = [run(name, seed, best) for seed in range(options.seeds)]
        rows[name] = {
            "lr": best if kind.trains else None,
            "tuning": tuned,
            "average_accuracy": [r["average_accuracy"] for r in runs],
            "forgetting": [r["forgetting"] for r in runs],
        }
        print(f"{name}: lr {best}, {[round(v, 3) for v in rows[name]['average_accuracy']]}", flush=True)
    print("\n| strategy | lr | average accuracy | forgetting | wins against linear_probe |")
    print("|---|---|---|---|---|")
    probe = np.array(rows["linear_probe"]["average_accuracy"])
    for name, row in rows.items():
        accuracy, forgetting = np.array(row["average_accuracy"]), np.array(row["forgetting"])
        wins = "-" if name == "linear_probe" else f"{int((accuracy > probe).sum())} of {len(probe)}"
        lr = "-" if row["lr"] is None else row["lr"]
        print(f"| {name} | {lr} | {_mean(accuracy)} | {_mean(forgetting)} | {wins} |")
    if options.out:
        options.out.write_text(json.dumps(rows, indent=2) + "\n")


def _mean(values: np.ndarray) -> str:
    error = values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else 0.0
    return f"{100 * values.mean():.1f} ± {100 * error:.1f}"


if __name__ == "__main__":
    main()
