"""What semantic proxies are worth on Split-Digits: by proxies, by class means, and in retrieval.

Every row is trained once a seed and answers in both ways; Recall@1 is among the test images of all ten
classes, after the last experience. Nearest class mean on the frozen features stands beside them.

python -m benchmarks.semantic_proxies [--seeds 0,1,2] [--epochs 5]
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from typing import Any

from clprompt import FrozenViT, evaluate, fit
from clprompt.data import datasets_for, digits
from clprompt.metrics import summarise
from clprompt.prompting.model import PromptModel
from clprompt.scenarios import split
from clprompt.strategies.ncm import NCMModel
from clprompt.strategies.semantic_proxies import SemanticProxiesModel
from clprompt.training.settings import Training

#: Title -> arguments of the stream, and after how many experiences the embedding is frozen.
ROWS: dict[str, tuple[dict[str, Any], int | None]] = {
    "all ten classes at once": ({"experiences": 1}, 1),
    "6 classes, then 2 + 2; embedding of the first": ({"experiences": 3, "base_classes": 6}, 1),
    "5 x 2; embedding of the first": ({"experiences": 5}, 1),
    "5 x 2; embedding throughout": ({"experiences": 5}, None),
}


def figures(stream: dict[str, Any], freeze: int | None, seed: int, epochs: int) -> dict[str, float]:
    """One run: accuracies over all test images by each classifier, Recall@1, and those of frozen features."""
    backbone = FrozenViT("vit_letters")
    train, clean, test = datasets_for(digits(), backbone)
    plan = split.plan(train.targets, seed=seed, **stream)
    model = SemanticProxiesModel(backbone, seed=seed, freeze_embedding_after=freeze)
    training = Training(train_epochs=epochs, lr=0.005)
    records = fit(model, plan, train, test, clean=clean, training=training, seed=seed, retrieval=True)
    found = {key: summarise(records)[key] for key in ("recall_at_1", "map_at_r", "frozen_recall_at_1")}
    for classifier in ("proxies", "means"):
        model.classifier = classifier
        found[classifier] = _accuracy(model, test)
    ncm = NCMModel(backbone)
    fit(ncm, plan, train, training=Training(train_epochs=1))
    return {**found, "frozen_means": _accuracy(ncm, test)}


def _accuracy(model: PromptModel, test: Any) -> float:
    return evaluate(model, test).accuracy  # type: ignore[union-attr]


def shown(values: Sequence[float]) -> str:
    """Mean and standard error."""
    error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.3f} ± {error:.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--epochs", type=int, default=5)
    options = parser.parse_args()
    columns = ["proxies", "means", "recall_at_1", "map_at_r", "frozen_means", "frozen_recall_at_1"]
    print("| " + " | ".join(["training", *columns]) + " |")
    print("|---" * (len(columns) + 1) + "|")
    for title, (stream, freeze) in ROWS.items():
        runs = [figures(stream, freeze, int(seed), options.epochs) for seed in options.seeds.split(",")]
        cells = [shown([run[column] for run in runs]) for column in columns]
        print("| " + " | ".join([title, *cells]) + " |", flush=True)


if __name__ == "__main__":
    main()
