"""The runs of a report: run folders, read without torch, and what makes two of them comparable or equal."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clprompt.metrics.measure import Accuracy, Measure, measure_in
from clprompt.system.overlay import flat, read_written

#: What may differ between runs whose results are the same, or says nothing about them.
NO_MATTER = {
    *("seed", "device", "runs_dir", "export", "compare", "data.path", "data.source.path", "data.download"),
    *(f"training.{key}" for key in ("eval_mb_size", "workers", "checkpoint_every", "log_every")),
}
#: The sections that make up a stream.
STREAM = ("data", "scenario")


@dataclass(frozen=True)
class Run:
    """A finished run as its folder tells it.

    Attributes:
        folder: the run folder.
        name: its label, or the strategy.
        seed: its seed.
        config: its config.yaml.
        results: its results.json.
        measure: what it was measured by.
        curves: by metric, its values after each experience [T]; [0] where none was measured.
        anytime: accuracy by the number of samples received, of the online protocol.
    """

    folder: Path
    name: str
    seed: int
    config: dict[str, Any]
    results: dict[str, Any]
    measure: Measure = field(default_factory=Accuracy)
    curves: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    anytime: dict[int, float] = field(default_factory=dict)

    @property
    def experiences(self) -> int:
        """How many experiences were evaluated at their end."""
        return max(map(len, self.curves.values()), default=0)

    @property
    def settings(self) -> dict[str, Any]:
        """Dotted keys that make up the identity of the run, but for the seed."""
        values = flat(self.config)
        values = {key: value for key, value in values.items() if key not in NO_MATTER and value is not None}
        if "backbone.checkpoint" in values:  # the same weights in the folders of two machines
            values["backbone.checkpoint"] = Path(values["backbone.checkpoint"]).name
        return values

    @property
    def stream(self) -> str:
        """What two runs share whose metrics compare: data, scenario, class groups, boundaries or none."""
        keys = {k: v for k, v in self.settings.items() if k.split(".")[0] in STREAM}
        keys["groups"] = self.experiences
        keys["online"] = self.config.get("online") is not None
        return json.dumps(keys, sort_keys=True, default=str)


def find_runs(path: Path) -> list[Path]:
    """The run folders at or below a path, sorted; a run folder is one that holds a config.yaml."""
    folders = []
    for folder, below, files in os.walk(path):
        if "config.yaml" in files:
            folders.append(Path(folder))
            below.clear()  # nothing inside a run folder is another
        below.sort()
    return sorted(folders)


def read_run(folder: Path) -> Run:
    """A finished run from its folder; whatever a damaged file raises."""
    config = read_written(folder / "config.yaml")
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    with open(folder / "metrics.jsonl", encoding="utf-8") as file:
        # most lines are losses, which nobody reads here
        records = [json.loads(line) for line in file if '"evaluation"' in line]
    measure = measure_in(records)
    name, seed = str(config.get("label") or config["strategy"]["name"]), int(results["seed"])
    anytime = measure.anytime(records)
    return Run(folder, name, seed, config, results, measure, measure.curves(records), anytime)
