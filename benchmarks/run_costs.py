"""Where the time of a whole run goes, part by part, and which part grows with the experiences.

python -m benchmarks.run_costs [CONFIG | experiences | classes] [KEY=VALUE]... [--out FILE]

The run is `clprompt run`'s own, into a folder that is removed, with a timer around each part: processor time
of this process, whatever else the machine does. A part's time is its own, without that of parts inside it.

`experiences` is 100 experiences of 2 classes, `classes` 1000 classes in 10 experiences, both with tiny images
on the embedded backbone; a configuration is any that `clprompt run` takes, of which the first strategy and
seed are run.

| part | what |
|---|---|
| data | waiting for batches, in training and evaluation |
| query | unprompted features in training |
| forward | the training loss without the query |
| backward, optimizer | as they are called |
| evaluation | the walk over test images, queries included, and its figures |
| tracking | records, charts and pictures, and what a method is asked for them |
| checkpoint | the state, and its files |
| rest | growth between experiences, the loop itself |

A table shows the parts, and the seconds of one experience each at a few places with the memory that the
process then holds; "growth" is the median of the last fifth of experiences over that of the second fifth.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from clprompt.experiment import config as configuration
from clprompt.experiment import run as runs
from clprompt.prompting.model import PromptModel
from clprompt.reporting.tables import columns
from clprompt.tracking.tracker import RunTracker
from clprompt.training import engine, evaluation
from clprompt.training.engine import Engine
from clprompt.training.evaluation import Evaluator

PARTS = (
    "data",
    "query",
    "forward",
    "backward",
    "optimizer",
    "evaluation",
    "tracking",
    "checkpoint",
    "rest",
)

_TINY = ["data=synthetic", "data.size=8", "training.train_epochs=1", "training.train_mb_size=16"]
#: Streams that are long in experiences or in classes: what differs from the quickstart.
STREAMS = {
    "experiences": [
        *_TINY,
        "data.classes=200",
        "data.train_per_class=8",
        "data.test_per_class=5",
        "scenario.experiences=100",
    ],
    "classes": [
        *_TINY,
        "data.classes=1000",
        "data.train_per_class=4",
        "data.test_per_class=2",
        "scenario.experiences=10",
    ],
}


class Costs:
    """Processor seconds by part, all of them and by experience."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self.experiences: list[dict[str, float]] = []
        self.memory: list[float] = []  # MiB that the process held after each experience
        self._inside: list[str] = []
        self._since = 0.0

    def _pass(self) -> None:
        """Give the time since the last change to the innermost part."""
        now = time.process_time()
        if self._inside:
            self.seconds[self._inside[-1]] += now - self._since
        self._since = now

    def enter(self, part: str) -> None:
        """What follows is this part's; inside an evaluation all but loading is the evaluation's."""
        self._pass()
        self._inside.append("evaluation" if part == "query" and "evaluation" in self._inside else part)

    def leave(self) -> None:
        """Back to the part around it."""
        self._pass()
        self._inside.pop()

    def timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function with its time taken."""

        def call(*arguments: Any, **named: Any) -> Any:
            self.enter(part)
            try:
                return function(*arguments, **named)
            finally:
                self.leave()

        return call

    def loading(self, function: Callable[..., Iterable[Any]]) -> Callable[..., Iterator[Any]]:
        """What gives batches, with the time taken that is spent waiting for them."""

        def batches(*arguments: Any, **named: Any) -> Iterator[Any]:
            source = iter(function(*arguments, **named))
            following = self.timed("data", lambda: next(source, None))
            while (batch := following()) is not None:
                yield batch

        return batches

    def experience(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """An experience of the loop, noted apart."""

        def call(*arguments: Any) -> Any:
            before = Counter(self.seconds)
            function(*arguments)
            self._pass()
            self.experiences.append({part: self.seconds[part] - before[part] for part in PARTS})
            self.memory.append(_resident())

        return call


@contextmanager
def watching(costs: Costs) -> Iterator[None]:
    """Timers around the parts of every run in this process."""
    timed = [
        ("query", PromptModel, "features"),
        ("forward", PromptModel, "training_loss"),
        ("backward", torch.Tensor, "backward"),
        ("evaluation", Evaluator, "run"),
        ("tracking", Engine, "_tell"),
        *(("tracking", RunTracker, name) for name in ("__init__", "record", "speed", "flush", "finish")),
        ("checkpoint", runs.Session, "save"),
        ("rest", Engine, "run"),
    ]
    hooks = (
        register_optimizer_step_pre_hook(lambda *_: costs.enter("optimizer")),
        register_optimizer_step_post_hook(lambda *_: costs.leave()),
    )
    with ExitStack() as stack:
        for hook in hooks:
            stack.callback(hook.remove)
        for part, owner, name in timed:
            stack.enter_context(mock.patch.object(owner, name, costs.timed(part, getattr(owner, name))))
        for module, name in ((engine, "numbered"), (evaluation, "fixed_batches")):
            stack.enter_context(mock.patch.object(module, name, costs.loading(getattr(module, name))))
        stack.enter_context(
            mock.patch.object(Engine, "run_experience", costs.experience(Engine.run_experience))
        )
        yield


def growth(values: list[float]) -> float:
    """The median of the last fifth over that of the second fifth; nan where there is no fifth or no time."""
    fifth = len(values) // 5
    early = statistics.median(values[fifth : 2 * fifth]) if fifth else 0.0
    return statistics.median(values[-fifth:]) / early if early else float("nan")


def tables(costs: Costs) -> str:
    """Shares of the run, and what an experience takes at a few places."""
    whole, count = sum(costs.seconds.values()), len(costs.experiences)
    shares = [
        PARTS,
        tuple(f"{100 * costs.seconds[part] / whole:.1f} %" for part in PARTS),
    ]
    places = sorted({0, *(round(count * part / 4) - 1 for part in (1, 2, 3, 4))} & set(range(count)))
    rows: list[tuple[str, ...]] = [("ms in experience", *PARTS, "MiB held")]
    for place in places:
        parts = costs.experiences[place]
        times = (f"{1000 * parts[part]:.0f}" for part in PARTS)
        rows.append((str(place + 1), *times, f"{costs.memory[place]:.0f}"))
    series = [*([parts[part] for parts in costs.experiences] for part in PARTS), costs.memory]
    rows.append(("growth", *(f"{growth(values):.2f}" for values in series)))
    return "\n".join([f"{whole:.1f} CPU s", *columns(shares), "", *columns(rows)])


def _resident() -> float:
    """MiB that the process holds now, 0 where nobody says."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def main() -> None:
    """Run once, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("words", nargs="*", metavar="CONFIG|KEY=VALUE")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    (name,) = [word for word in options.words if "=" not in word] or ["quickstart"]
    overrides = [*STREAMS.get(name, ()), *(word for word in options.words if "=" in word)]
    costs = Costs()
    with tempfile.TemporaryDirectory() as folder:
        of_config = "quickstart" if name in STREAMS else name
        config = configuration.load(of_config, [*overrides, f"runs_dir={folder}"])
        config = replace(config, seed=config.seeds[0], compare=[])
        with watching(costs):
            runs.run(config)
    print(tables(costs))
    if options.out:
        found = {
            "config": config.to_dict(),
            "seconds": costs.seconds,
            "experiences": costs.experiences,
            "memory": costs.memory,
        }
        options.out.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
