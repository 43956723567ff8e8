"""What a Si-Blurry stream costs to draw, and what MVP's own arithmetic costs beside its backbone.

python -m benchmarks.si_blurry stream [--samples 14000000] [--classes 21000] [--sessions 100]
python -m benchmarks.si_blurry step [--device cpu|cuda] [--model vit_small_patch16_224] [--batch 64]
                                    [--pairs 9]
python -m benchmarks.si_blurry evaluation [--device cpu|cuda] [--model ...] [--test 10000] [--every 1000]

`stream` prints seconds and peak memory of the whole process. `step` prints the medians of interleaved
repeats: a full training step; the bookkeeping in it (choice, factors, both losses, focal weights, counts, and
their backward pass) on ready features; and the focal scores in closed form against one backward pass per
sample. `evaluation` times an online run's training between two periodic evaluations, and such an evaluation
with and without the queries that the evaluator keeps; how many of its samples choose another slot than at the
evaluation before; and what evaluation takes of a run.
"""

from __future__ import annotations

import argparse
import copy
import resource
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

TARGETS = {"stream": "< 10 s and < 2 GB for 14 M samples", "step": "bookkeeping <= 2 % of a step"}


def stream(samples: int, classes: int, sessions: int) -> None:
    """Draw one stream; time and memory."""
    from clprompt.scenarios.si_blurry import plan

    labels = np.random.default_rng(0).integers(0, classes, samples)
    labels[:classes] = np.arange(classes)
    started, busy = time.perf_counter(), time.process_time()
    found = plan(labels, sessions=sessions)
    seconds, busy = time.perf_counter() - started, time.process_time() - busy
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    assert sum(map(len, found.indices)) == samples
    print(f"{samples} samples, {classes} classes, {sessions} sessions")
    print(f"{seconds:.1f} s ({busy:.1f} s of one core), peak {peak:.2f} GiB   ({TARGETS['stream']})")


def interleaved(runs: dict[str, Callable[[], object]], pairs: int, device: str) -> dict[str, list[float]]:
    """Seconds of each, in turn, after one warm-up."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(pairs + 1):
        for name, run in runs.items():
            if device == "cuda":
                torch.cuda.synchronize()
            started = time.perf_counter()
            run()
            if device == "cuda":
                torch.cuda.synchronize()
            if turn:
                times[name].append(time.perf_counter() - started)
    return times


def scores_by_loop(head: torch.nn.Module, feature: Tensor, factors: Tensor, seen: Tensor, targets: Tensor):
    """The focal scores as published implementations compute them: one backward pass per sample."""

    def gradient(rows: slice) -> Tensor:
        head.zero_grad()
        logits = (head(feature[rows]) * factors[rows]).masked_fill(~seen, float("-inf"))
        F.cross_entropy(logits, targets[rows]).backward()
        return head.weight.grad.clone()

    whole = gradient(slice(None))
    own = torch.stack([gradient(slice(i, i + 1))[target] for i, target in enumerate(targets)])
    return 1 - F.cosine_similarity(own, whole[targets])


def step(device: str, name: str, batch: int, pairs: int, classes: int = 100) -> None:
    """Medians of a step, of its bookkeeping, and of the focal scores both ways."""
    from clprompt import FrozenViT
    from clprompt.prompting.model import Encoded
    from clprompt.strategies.mvp import Choice, MVPModel
    from clprompt.training.optim import build
    from clprompt.training.steps import train_step

    model = MVPModel(FrozenViT(name, pretrained=False)).to(device)
    model.observe(torch.arange(classes))
    model.to(device)
    optimizer = build(model)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(batch, 3, *model.backbone.image_size, generator=generator).to(device)
    targets = torch.randint(0, classes, (batch,), generator=generator).to(device)
    ready = torch.randn(batch, model.backbone.width, generator=generator).to(device).requires_grad_()
    query = torch.randn(batch, model.backbone.width, generator=generator).to(device)

    class Ready(MVPModel):
        """The same loss on features that are there already."""

        def encode(self, images, cached=None):
            distance, chosen, _ = self.select(query)
            return Encoded(ready, details=Choice(chosen, distance))

    own = copy.copy(model)
    own.__class__ = Ready
    with torch.no_grad():
        factors = model._factors(torch.arange(batch, device=device) % len(model.counts))
        logits = model.logits(ready) * factors
    head = torch.nn.Linear(model.backbone.width, classes).to(device)
    head.load_state_dict(model.head.state_dict())
    detached = ready.detach()
    times = interleaved(
        {
            "step": lambda: train_step(model, optimizer, images, targets),
            "bookkeeping": lambda: own.training_loss(images, targets).loss.backward(),
            "scores": lambda: model.focal_weights(detached, logits, factors, targets),
            "scores by loop": lambda: scores_by_loop(head, detached, factors, model.seen, targets),
        },
        pairs,
        device,
    )
    medians = {key: statistics.median(values) for key, values in times.items()}
    for key, values in times.items():
        print(
            f"{key:16} {1e3 * medians[key]:10.2f} ms   ({1e3 * min(values):.2f} .. {1e3 * max(values):.2f})"
        )
    print(f"bookkeeping / step  {100 * medians['bookkeeping'] / medians['step']:.2f} %   ({TARGETS['step']})")
    print(f"loop / closed form  {medians['scores by loop'] / medians['scores']:.1f} x")


def evaluation(device: str, name: str, batch: int, test: int, every: int, classes: int = 100) -> None:
    """What periodic evaluation takes of an online run with three iterations, with queries kept or not."""
    from clprompt import FrozenViT
    from clprompt.strategies.mvp import MVPModel
    from clprompt.training.evaluation import Evaluator
    from clprompt.training.optim import build
    from clprompt.training.steps import train_step

    model = MVPModel(FrozenViT(name, pretrained=False)).to(device)
    model.observe(torch.arange(classes))
    model.to(device)
    optimizer = build(model)
    generator = torch.Generator().manual_seed(0)
    shape = (model.backbone.in_chans, *model.backbone.image_size)
    images = torch.randn(batch, *shape, generator=generator).to(device)
    targets = torch.randint(0, classes, (batch,), generator=generator).to(device)
    few = max(2 * batch, min(test, 256))  # evaluation is linear in the images: a few are measured
    items = [(image, 0) for image in torch.randn(few, *shape, generator=generator)]
    labels = np.arange(few) % classes
    evaluators = {size: Evaluator(items, labels, [np.arange(few)], cache_bytes=size) for size in (0, 2**30)}

    def clock(run: Callable[[], object]) -> float:
        if device == "cuda":
            torch.cuda.synchronize()
        started = time.perf_counter()
        run()
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - started

    def chosen() -> Tensor:
        with torch.no_grad():
            query = torch.cat(
                [cache["penultimate class token"] for cache in evaluators[2**30]._kept.values()]
            )
            model.eval()
            return model.select(query)[1]

    times: dict[str, list[float]] = {"step": [], "without": [], "with": []}
    moved = []
    before = None
    for turn in range(6):
        times["step"].append(clock(lambda: train_step(model.train(), optimizer, images, targets)))
        times["without"].append(clock(lambda: evaluators[0].run(model)))
        times["with"].append(clock(lambda: evaluators[2**30].run(model)))
        now = chosen()
        if before is not None:
            moved.append(float((now != before).float().mean()))
        before = now
        if not turn:
            for values in times.values():
                values.clear()  # the first turn fills caches
    between = statistics.median(times["step"]) * 3 * every / batch
    print(f"{name}, {device}, batch {batch}: {every} samples of training {between:.1f} s")
    for key in ("without", "with"):
        seconds = statistics.median(times[key]) * test / few
        share = 100 * seconds / (seconds + between)
        print(
            f"one evaluation of {test} images {key:7} kept queries {seconds:8.1f} s: {share:.0f} % of the run"
        )
    print(f"of its samples {100 * statistics.median(moved):.0f} % choose another slot after one more step")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    kinds = parser.add_subparsers(dest="kind", required=True)
    drawn = kinds.add_parser("stream")
    drawn.add_argument("--samples", type=int, default=14_000_000)
    drawn.add_argument("--classes", type=int, default=21_000)
    drawn.add_argument("--sessions", type=int, default=100)
    trained = kinds.add_parser("step")
    trained.add_argument("--device", default="cpu")
    trained.add_argument("--model", default="vit_small_patch16_224")
    trained.add_argument("--batch", type=int, default=64)
    trained.add_argument("--pairs", type=int, default=9)
    periodic = kinds.add_parser("evaluation")
    periodic.add_argument("--device", default="cpu")
    periodic.add_argument("--model", default="vit_small_patch16_224")
    periodic.add_argument("--batch", type=int, default=64)
    periodic.add_argument("--test", type=int, default=10_000)
    periodic.add_argument("--every", type=int, default=1000)
    given = parser.parse_args()
    if given.kind == "evaluation":
        evaluation(given.device, given.model, given.batch, given.test, given.every)
    elif given.kind == "stream":
        stream(given.samples, given.classes, given.sessions)
    else:
        step(given.device, given.model, given.batch, given.pairs)


if __name__ == "__main__":
    main()
