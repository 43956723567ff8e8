"""How far each method runs from the floor, in one process, in interleaved pairs.

The floor of a training step is what the bare timm model costs: a forward without gradient for the query (if
the method needs one), a forward, and a backward down to the tokens that enter the first prompted block, twice
where images pass under two sets of prompts (PASSES). Where no gradient enters the backbone it is one forward
without gradient. The naive formulation is a separate full
query pass, explicit softmax attention, every row of the last block, and weight gradients of the frozen
backbone that are thrown away; of the released codes only CODA-Prompt's and TCPA's compute those (how far the
released codes are: benchmarks.peers).

Times are those of the processor, which other processes disturb less than the clock; on a GPU those of the
clock. FILE has both.

python -m benchmarks.speed [--model vit_small_patch16_224] [--batch 16] [--dtype float32|bfloat16]
                           [--device cpu|cuda] [--threads 1] [--pairs 9] [--methods l2p,dualprompt]
                           [--out FILE]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import TensorDataset

from clprompt import FrozenViT, PromptModel, registry
from clprompt.prompting.model import Cache
from clprompt.training import optim
from clprompt.training.engine import Engine
from clprompt.training.precision import autocast
from clprompt.training.settings import Training
from clprompt.training.steps import train_step

CLASSES = 10
PASSES = {"semantic_proxies": 2}  # under prompts that all share, and under those of each image's class
TARGETS = {  # what a reader compares the medians with
    "step_to_floor": "<= 1.10",
    "naive_to_step": ">= 1.30",
    "kept_step_to_step": "<= 0.75 when prompted from block 0",
    "cached_eval_to_eval": "<= 0.60 when prompted from block 0",
    "avalanche_overhead": "<= 1.05",
}


def explicit_attention(
    query: Tensor, keys: Tensor, values: Tensor, attn_mask: Tensor | None = None, **_: Any
) -> Tensor:
    """Attention as published code writes it: the whole [B, H, N, N] matrix in memory."""
    scores = (query * query.shape[-1] ** -0.5) @ keys.transpose(-2, -1)
    if attn_mask is not None:
        scores = scores + attn_mask
    return scores.softmax(-1) @ values


@contextlib.contextmanager
def naive(backbone: FrozenViT) -> Iterator[None]:
    """The naive formulation, on the same code: every exact saving off, and the backbone's gradients on."""
    fused = F.scaled_dot_product_attention
    backbone.share_prefix = backbone.trim_last_block = False
    backbone.vit.requires_grad_(True)
    for block in backbone.blocks:
        block.attn.fused_attn = False
    F.scaled_dot_product_attention = explicit_attention  # type: ignore[assignment]
    try:
        yield
    finally:
        F.scaled_dot_product_attention = fused
        backbone.share_prefix = backbone.trim_last_block = True
        backbone.vit.requires_grad_(False)
        for parameter in backbone.vit.parameters():
            parameter.grad = None
        for block in backbone.blocks:
            block.attn.fused_attn = True


def floor_step(vit: Any, images: Tensor, first: int, query: bool, precision: str, passes: int = 1) -> None:
    """The bare timm model: query forward, forward, backward to the tokens that enter block ``first``.

    Without a block to go back to there is one forward, which whoever reads features needs. Several passes
    share what is before that block.
    """
    with autocast(images.device, precision):
        if query or first >= len(vit.blocks):
            with torch.no_grad():
                vit.forward_head(vit.forward_features(images), pre_logits=True)
        if first >= len(vit.blocks):
            return
        with torch.no_grad():
            x = vit.norm_pre(vit._pos_embed(vit.patch_embed(images)))
            for block in vit.blocks[:first]:
                x = block(x)
        x.requires_grad_(True)
        losses = []
        for _ in range(passes):
            out = x
            for block in vit.blocks[first:]:
                out = block(out)
            losses.append(vit.forward_head(vit.norm(out), pre_logits=True).float().square().mean())
    sum(losses).backward()


class Seconds(NamedTuple):
    """How long something took, time after time.

    Attributes:
        busy: of the processor, all threads together; on a GPU, on which it waits, as ``wall``.
        wall: of the clock.
    """

    busy: list[float]
    wall: list[float]


def interleaved(pairs: int, device: torch.device, **runs: Callable[[], object]) -> dict[str, Seconds]:
    """Seconds of each callable, taken in turn ``pairs`` times after one warm-up round."""
    seconds = {name: Seconds([], []) for name in runs}
    for number in range(pairs + 1):
        for name, call in runs.items():
            _wait(device)
            wall, busy = time.perf_counter(), time.process_time()
            call()
            _wait(device)
            busy, wall = time.process_time() - busy, time.perf_counter() - wall
            if number:
                seconds[name].busy.append(busy if device.type == "cpu" else wall)
                seconds[name].wall.append(wall)
    return seconds


def ratio(above: Seconds, below: Seconds) -> dict[str, float]:
    """Median of the pairwise ratios with the quartiles as the spread, and the same of the clock."""
    spread = {}
    for key, over, under in (("", above.busy, below.busy), ("wall_", above.wall, below.wall)):
        ratios = [a / b for a, b in zip(over, under, strict=True)]
        low, median, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else [ratios[0]] * 3
        spread |= {f"{key}median": median, f"{key}low": low, f"{key}high": high}
    return spread


def shown(spread: dict[str, float]) -> str:
    """A ratio as tables have it: median (quartiles)."""
    return f"{spread['median']:.2f} ({spread['low']:.2f}-{spread['high']:.2f})"


def measure(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """The metrics of one method."""
    device = torch.device(options.device)
    precision = "bf16" if options.dtype == "bfloat16" else "float32"
    backbone = FrozenViT(options.model, pretrained=False).to(device)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(options.batch, backbone.in_chans, *backbone.image_size, generator=generator)
    targets = torch.arange(options.batch) % CLASSES
    images, targets = images.to(device), targets.to(device)
    model = make_model(name, backbone, device)
    if model.boundaries != "unused":
        model.begin_experience(range(CLASSES), lambda: iter([(images, targets)]))
    model.observe(targets)
    training = Training(train_mb_size=options.batch, lr=1e-4)
    optimizer = optim.build(model, training)
    cache: Cache = {}
    model.eval()
    with torch.no_grad():
        model(images, cache)
    query = bool(cache)  # what the model keeps comes from an unprompted pass
    model.train()

    def step(kept: Cache | None = None) -> None:
        model.observe(targets)
        train_step(model, optimizer, images, targets, precision=precision, cached=kept)

    kept: Cache = {}  # as of an earlier epoch
    step(kept)

    def naive_step() -> None:
        with naive(backbone):
            step()

    def evaluate(kept: Cache | None) -> None:
        model.eval()
        with torch.no_grad(), autocast(device, precision):
            model(images, kept)
        model.train()

    def floor() -> None:
        floor_step(backbone.vit, images, model.first_block, query, precision, PASSES.get(name, 1))

    times = interleaved(
        options.pairs,
        device,
        step=step,
        floor=floor,
        naive=naive_step,
        kept=lambda: step(dict(kept)),
        evaluation=lambda: evaluate(None),
        cached=lambda: evaluate(dict(cache)),
    )
    return {
        "step_to_floor": ratio(times["step"], times["floor"]),
        "naive_to_step": ratio(times["naive"], times["step"]),
        "kept_step_to_step": ratio(times["kept"], times["step"]),
        "cached_eval_to_eval": ratio(times["cached"], times["evaluation"]),
        "avalanche_overhead": avalanche_overhead(name, options, device),
        "milliseconds_per_step": 1000 * statistics.median(times["step"].busy),
    }


def avalanche_overhead(name: str, options: argparse.Namespace, device: torch.device) -> dict[str, float]:
    """An experience through the Avalanche strategy against the same one through the engine."""
    from avalanche.benchmarks import benchmark_from_datasets, with_classes_timeline
    from avalanche.benchmarks.utils import as_classification_dataset

    from clprompt.avalanche.strategy import PromptStrategy

    backbone = FrozenViT(options.model, pretrained=False).to(device)
    count = 3 * options.batch
    images = torch.randn(count, backbone.in_chans, *backbone.image_size)
    labels = torch.arange(count) % CLASSES
    data: Any = TensorDataset(images, labels)
    data.random_transform, data.targets = False, labels.tolist()
    stream = with_classes_timeline(benchmark_from_datasets(train=[as_classification_dataset(data)]))
    training = Training(train_mb_size=options.batch, lr=1e-4)
    precision = "bf16" if options.dtype == "bfloat16" else "float32"

    def through_avalanche() -> None:
        strategy = PromptStrategy(
            model=make_model(name, backbone, device),
            train_mb_size=options.batch,
            lr=1e-4,
            device=device,
            precision=precision,  # type: ignore[arg-type]
            evaluator=None,
        )
        strategy.train(stream.train_stream[0])

    def through_the_engine() -> None:
        model = make_model(name, backbone, device)
        Engine(
            model,
            data,
            [torch.arange(count).numpy()],
            [list(range(CLASSES))],
            training=training,
            precision=precision,
        ).run()

    times = interleaved(max(3, options.pairs // 3), device, a=through_avalanche, e=through_the_engine)
    return ratio(times["a"], times["e"])


def no_floor(name: str) -> str | None:
    """Why a step of this method has no floor here; None where it has one."""
    if registry.strategies.get(name).target.needs_text:
        return "its step runs a text tower, which timm's model has not; benchmarks.clip measures coop's"
    return None


def make_model(name: str, backbone: FrozenViT, device: torch.device) -> PromptModel:
    """A registered method with its default arguments, its classes named."""
    model: PromptModel = registry.strategies.get(name).target(backbone, seed=0)
    model.name_classes({c: f"number {c}" for c in range(CLASSES)})
    return model.to(device)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main() -> None:
    """Measure every method and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="vit_small_patch16_224")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--methods", help="comma-separated; by default all that have a floor")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    names = options.methods.split(",") if options.methods else registry.strategies.names()
    print(f"{options.model}, batch {options.batch}, {options.dtype}, {options.device}, ", end="")
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads; median (quartiles)\n")
    keys = list(TARGETS)
    print("| method | ms per step | " + " | ".join(key.replace("_", " ") for key in keys) + " |")
    print("|---|---|" + "---|" * len(keys))
    print("| target | | " + " | ".join(TARGETS.values()) + " |")
    results = {}
    without = {}
    for name in names:
        reason = no_floor(name)
        if reason is not None:
            without[name] = reason
            continue
        metrics = results[name] = measure(name, options)
        cells = [shown(metrics[k]) for k in keys]
        print(f"| {name} | {metrics['milliseconds_per_step']:.0f} | {' | '.join(cells)} |", flush=True)
    for name, reason in without.items():
        print(f"{name} is left out: {reason}")
    if options.out:
        flat = {n: {k: f[k]["median"] for k in keys} | {"spread": f} for n, f in results.items()}
        options.out.write_text(json.dumps(flat, indent=2) + "\n")


if __name__ == "__main__":
    main()
