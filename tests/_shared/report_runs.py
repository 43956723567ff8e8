"""Folders of finished runs, as far as a report reads them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from clprompt.metrics.last import LastPredictions
from clprompt.reporting import predictions

OF_ALL = ("base", "new", "base_of_all", "new_of_all")


def a_run(
    folder: Path,
    *,
    strategy: str = "alpha",
    seed: int = 0,
    accuracy: float = 0.5,
    experiences: int = 2,
    arguments: dict[str, Any] | None = None,
    metrics: dict[str, Any] | None = None,
    trained: float | None = None,
    last: LastPredictions | None = None,
    zero_shot: float | None = None,
    **settings: Any,
) -> Path:
    """The folder of a finished run, as far as the report reads it.

    ``trained``: the accuracy of its trained head, where something else answered; ``last``: what it predicted
    last; ``zero_shot``: the accuracy of its names on the first group, of a run on names.
    """
    folder.mkdir(parents=True)
    config = {
        "name": "one",
        "seed": seed,
        "data": {"name": "digits", "test_fraction": 0.2},
        "scenario": {"name": "split", "experiences": experiences},
        "backbone": {"name": "vit"},
        "strategy": {"name": strategy, **(arguments or {})},
        "compare": [],
        "training": {"lr": 0.1, "eval_mb_size": 8 + seed},
        "online": None,
    } | settings
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    rows = [
        [accuracy + 0.1 * (i - j) if j <= i else None for j in range(experiences)] for i in range(experiences)
    ]
    records = [{"kind": "train", "terms": {"loss": 1.0}}] + [
        {
            "kind": "evaluation",
            "when": "experience",
            "experience": i,
            "accuracy": accuracy,
            "groups": row,
            "confusion": [],
        }
        for i, row in enumerate(rows)
    ]
    if trained is not None:
        for record in records[1:]:
            groups = [None if value is None else trained for value in record["groups"]]
            record["trained_head"] = {"accuracy": trained, "groups": groups, "per_class": []}
        head = {"average_accuracy": trained, "average_incremental_accuracy": trained, "forgetting": 0.0}
        metrics = {**(metrics or {}), "trained_head": head}
    if zero_shot is not None:
        own = [None] * experiences
        for record in records[1:]:
            of_groups = [
                zero_shot - 0.1 * j if value is not None else None for j, value in enumerate(record["groups"])
            ]
            record["names"] = {"zero_shot": of_groups, "own": own, **dict.fromkeys(OF_ALL, 0.5)}
        metrics = {**(metrics or {}), "zero_shot": zero_shot - 0.05 * (experiences - 1)}
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    results = {
        "strategy": strategy,
        "seed": seed,
        "average_accuracy": accuracy,
        "average_incremental_accuracy": accuracy,
        "forgetting": None if experiences == 1 else 0.25,
        "cost": {"seconds": 10.0 + seed, "method_parameters": 1234},
        **(metrics or {}),
    }
    if last is not None:
        results["checksums"] = {"predictions.npz": predictions.write(folder, last)}
    (folder / "results.json").write_text(json.dumps(results))
    return folder
