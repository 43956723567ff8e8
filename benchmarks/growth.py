"""What grows with the number of experiences: cost of a step and of an evaluation, method by method.

Every method that does not go back to old data goes through --after experiences of two classes each, with one
step in each; its state is copied on the way. Then a step on the newest classes and evaluations of one batch
are timed in turns over the copies, after each of --after experiences: CPU time of one thread, as medians of
the pairwise ratios to the first copy. "Kept" is an evaluation of images that were evaluated before, from what
the evaluator keeps of them. An evaluation of *all* seen classes grows with their images besides.

A second row of a method bounds what grows by an argument of its own.

python -m benchmarks.growth [--model vit_tiny_patch16_224] [--image-size 96] [--depth 5] [--batch 4]
                            [--pairs 5] [--after 1,10,30,60] [--methods l2p,tcpa] [--out FILE]
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.speed import interleaved, ratio
from clprompt import FrozenViT, PromptModel, registry
from clprompt.prompting.model import Cache
from clprompt.training import optim
from clprompt.training.settings import Training
from clprompt.training.steps import begin, train_step

#: row -> the strategy and its arguments; any other row is a strategy with its defaults
ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    "coda_prompt": ("coda_prompt", {"orthogonalise": "none"}),  # 60 times 10 are not orthogonal in width 192
    "coop": ("coop", {"length": 4}),  # more do not fit into the text tower of clip_letters
    "ranpac": ("ranpac", {"random_features": 256}),  # the default is made for one closed form, not for 60
    "flyprompt": ("flyprompt", {"random_features": 256, "samples_per_expert": 4}),
    "tcpa, max_entries=100": ("tcpa", {"max_entries": 100}),
    "tcpa, select=task": ("tcpa", {"select": "task"}),
}
COLUMNS = ("step", "evaluation", "kept")


def strategies() -> list[str]:
    """Names of the strategies that never go back to old data."""
    found = registry.strategies.names()
    return [name for name in found if registry.strategies.get(name).target.rehearsal_free]


def rows(asked: str | None) -> list[str]:
    """Names of the rows for the strategies asked for, a strategy's own first."""
    names = asked.split(",") if asked else strategies()
    more = {name: [row for row, (other, _) in ROWS.items() if other == name != row] for name in names}
    return [row for name in names for row in (name, *more[name])]


def backbone_for(name: str, options: argparse.Namespace) -> FrozenViT:
    """The backbone asked for; for a method that needs text the embedded one that has a text tower."""
    if registry.strategies.get(name).target.needs_text:
        return FrozenViT("clip_letters")
    return FrozenViT(options.model, img_size=options.image_size, depth=options.depth)


def stages(row: str, options: argparse.Namespace) -> tuple[list[tuple[PromptModel, PromptModel]], Tensor]:
    """Copies of a method after so many experiences, inside the last one and behind it; a batch of images."""
    name, arguments = ROWS.get(row, (row, {}))
    backbone, last = backbone_for(name, options), max(options.after)
    model: PromptModel = registry.strategies.get(name).target(backbone, seed=0, **arguments)
    model.name_classes({c: f"number {c}" for c in range(2 * last)})
    size = (options.batch, backbone.in_chans, *backbone.image_size)
    found: list[tuple[PromptModel, PromptModel]] = []
    for experience in range(last):
        source = torch.Generator().manual_seed(experience)
        images = torch.randn(size, generator=source)
        targets = labels(experience + 1, options.batch)
        samples = lambda batch=(images, targets): iter([batch])  # noqa: E731
        begin(model, [2 * experience, 2 * experience + 1], samples)
        model.observe(targets)
        step_of(model, images, targets)()
        inside = copy.deepcopy(model) if experience + 1 in options.after else None
        model.end_experience(samples)
        if inside is not None:
            found.append((inside, copy.deepcopy(model)))
    return found, images


def labels(experiences: int, count: int) -> Tensor:
    """Labels [count] of the two newest classes."""
    return torch.arange(count) % 2 + 2 * (experiences - 1)


def step_of(model: PromptModel, images: Tensor, targets: Tensor) -> Callable[[], object]:
    """A training step, as a loop would make it; nothing but receiving where nothing trains."""
    optimizer = optim.build(model, Training(train_mb_size=len(images), lr=1e-4))

    def step() -> None:
        model.observe(targets)
        train_step(model.train(), optimizer, images, targets)

    return step


def measure(row: str, options: argparse.Namespace) -> dict[str, Any]:
    """By column, CPU milliseconds after the first number of experiences and ratios of the others to it."""
    copies, images = stages(row, options)
    runs: dict[tuple[str, int], Callable[[], object]] = {}
    for after, (inside, behind) in zip(options.after, copies, strict=True):
        cache: Cache = {}

        def evaluate(kept: Cache | None, model: PromptModel = behind) -> None:
            with torch.no_grad():
                model.eval()(images, kept)

        evaluate(cache)
        runs["step", after] = step_of(inside, images, labels(after, options.batch))
        runs["evaluation", after] = lambda evaluate=evaluate: evaluate(None)
        runs["kept", after] = lambda evaluate=evaluate, cache=cache: evaluate(dict(cache))
    named = {f"{column} {after}": call for (column, after), call in runs.items()}
    seconds = interleaved(options.pairs, torch.device("cpu"), **named)
    first = options.after[0]
    return {
        column: {"milliseconds": 1000 * statistics.median(seconds[f"{column} {first}"].busy)}
        | {str(n): ratio(seconds[f"{column} {n}"], seconds[f"{column} {first}"]) for n in options.after[1:]}
        for column in COLUMNS
    }


def main() -> None:
    """Measure every row and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="vit_tiny_patch16_224")
    parser.add_argument("--image-size", type=int, default=96)
    parser.add_argument("--depth", type=int, default=5)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument(
        "--after", type=lambda text: [int(part) for part in text.split(",")], default="1,10,30,60"
    )
    parser.add_argument("--methods", help="comma-separated; all that never go back to old data by default")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)  # CPU time of one thread is what is compared
    first, *others = options.after
    heads = [f"{column}, ms after {first} | after {', '.join(map(str, others))}" for column in COLUMNS]
    print(f"{options.model}, {options.depth} blocks, {options.image_size} pixels, ", end="")
    print(f"batch {options.batch}, torch {torch.__version__}, one thread\n")
    print("| method | " + " | ".join(heads) + " |\n|---|" + "---|" * 2 * len(COLUMNS))
    every = {}
    for row in rows(options.methods):
        found = every[row] = measure(row, options)
        cells = [row]
        for column in COLUMNS:
            cells.append(f"{found[column]['milliseconds']:.1f}")
            cells.append(", ".join(f"{found[column][str(n)]['median']:.2f}" for n in others))
        print("| " + " | ".join(cells) + " |", flush=True)
    if options.out:
        options.out.write_text(json.dumps(every, indent=2) + "\n")


if __name__ == "__main__":
    main()
