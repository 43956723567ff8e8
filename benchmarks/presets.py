"""What a training step and an evaluation of each preset cost, without its data and its weights.

The backbone is the preset's with random weights, the images are noise on the device; the batch, precision,
clipping and the strategy's arguments are the preset's. A step is everything between two batches but loading
and mixing images. Every experience has ten classes, and the model is in its second one where it has any.
Beside it the floor of a step in the same precision: the bare timm model's work for a method that is prompted
from the same block (see benchmarks.speed).

python -m benchmarks.presets [--device cpu|cuda] [--presets NAME,...] [--precision preset,bf16] [--pairs 9]
                             [--model vit_tiny_patch16_224] [--batch N] [--seconds 4] [--minutes 30]
                             [--out FILE]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.speed import floor_step, interleaved, ratio
from clprompt import FrozenViT
from clprompt.experiment import config
from clprompt.experiment.config import Config
from clprompt.prompting.build import make_method
from clprompt.system import overlay
from clprompt.training import optim
from clprompt.training.precision import autocast
from clprompt.training.settings import Training
from clprompt.training.steps import begin, receive, train_step

CLASSES = 10


def presets() -> list[str]:
    """The packaged experiments over published weights."""
    named = [name for name, _ in overlay.names() if not name.startswith("quickstart")]
    return [name for name in named if "patch16_224" in config.load(name).backbone["name"]]


def targets_for(loaded: Config, count: int, experience: int, device: torch.device) -> Tensor:
    """Labels [B] of an experience's classes, or label sets [B, C] with two labels each."""
    first = CLASSES * experience
    labels = first + torch.arange(count, device=device) % CLASSES
    if loaded.scenario["name"] != "multi_label":
        return labels
    hot = torch.zeros(count, first + CLASSES, dtype=torch.uint8, device=device)
    rows = torch.arange(count, device=device)
    hot[rows, labels] = 1
    hot[rows, first + (labels + 1) % CLASSES] = 1
    return hot


def measure(
    loaded: Config,
    section: dict[str, Any],
    training: Training,
    backbone: FrozenViT,
    options: argparse.Namespace,
    precision: str,
) -> dict[str, Any]:
    """Milliseconds, images a second, the ratio to the floor, and memory."""
    device = torch.device(options.device)
    batch = options.batch or training.train_mb_size
    source = torch.Generator().manual_seed(0)
    images = torch.randn(batch, backbone.in_chans, *backbone.image_size, generator=source).to(device)
    seen = images[: training.eval_mb_size]
    model = make_method(section, backbone, seed=0).to(device)
    has_experiences = loaded.online is None and model.wants_experiences()
    for experience in range(2):
        targets = targets_for(loaded, batch, experience, device)
        samples = partial(iter, [(images, targets)])
        if has_experiences:
            begin(model, range(CLASSES * experience, CLASSES * (experience + 1)), samples)
        receive(model, None, targets)
        if has_experiences and not experience:
            model.end_experience(samples)
    optimizer = optim.build(model, training)
    cache: dict[str, Tensor] = {}
    model.eval()
    with torch.no_grad(), autocast(device, precision):
        model(images, cache)
    query, first = bool(cache), model.first_block
    if not model.trains:
        query, first = True, backbone.depth

    def step() -> None:
        model.train()
        receive(model, optimizer, targets)
        train_step(model, optimizer, images, targets, precision=precision, clip_grad=training.clip_grad)

    def evaluate() -> None:
        model.eval()
        with torch.no_grad(), autocast(device, precision):
            model(seen)

    def floor() -> None:
        floor_step(backbone.vit, images, first, query, precision)

    begun = time.perf_counter()
    times = interleaved(1, device, step=step, floor=floor, evaluation=evaluate)
    pairs = max(3, min(options.pairs, int(options.seconds / max(1e-3, (time.perf_counter() - begun) / 2))))
    times = interleaved(pairs, device, step=step, floor=floor, evaluation=evaluate)
    peak = None
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        step()
        peak = round(torch.cuda.max_memory_allocated() / 2**20)
    seconds = statistics.median(times["step"].wall)
    return {
        "batch": batch,
        "step_ms": round(1000 * seconds, 2),
        "images_per_second": round(batch / seconds, 1),
        "step_to_floor": {
            key: round(value, 3) for key, value in ratio(times["step"], times["floor"]).items()
        },
        "evaluation_images_per_second": round(len(seen) / statistics.median(times["evaluation"].wall), 1),
        "pairs": pairs,
        "peak_mib": peak,
    }


def main() -> None:
    """Measure the presets, one backbone at a time, and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--presets", help="comma-separated; all over published weights by default")
    parser.add_argument("--precision", default="preset", help="comma-separated: preset, float32, bf16")
    parser.add_argument("--model", help="in place of each preset's backbone")
    parser.add_argument("--batch", type=int, help="in place of each preset's")
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument(
        "--seconds", type=float, default=4, help="for the pairs of a row; at least three are taken"
    )
    parser.add_argument("--minutes", type=float, default=30, help="after which no new row is begun")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    start = time.perf_counter()
    where = torch.cuda.get_device_name() if options.device == "cuda" else f"{torch.get_num_threads()} threads"
    print(f"{options.device} ({where}), torch {torch.__version__}; median (quartiles)\n")
    print("| preset | strategy | precision | batch | step ms | to floor | images/s | evaluated/s | MiB |")
    print("|---|---|---|---|---|---|---|---|---|")
    rows: list[dict[str, Any]] = []
    backbones: dict[str, FrozenViT] = {}
    for name in options.presets.split(",") if options.presets else presets():
        loaded = config.load(name)
        source = options.model or loaded.backbone["name"].partition(".")[0]  # random weights, any tag
        if source not in backbones:
            backbones[source] = FrozenViT(source, pretrained=False).to(options.device)
        for section, training in loaded.strategies():
            for word in options.precision.split(","):
                precision = loaded.precision if word == "preset" else word
                row: dict[str, Any] = {"preset": name, "strategy": section["name"], "precision": precision}
                if time.perf_counter() - start > 60 * options.minutes:
                    rows.append(row | {"skipped": "out of time"})
                    print(f"| {name} | {section['name']} | {precision} | out of time |", flush=True)
                    continue
                row |= measure(loaded, section, training, backbones[source], options, precision)
                rows.append(row)
                floor = row["step_to_floor"]
                print(
                    f"| {name} | {row['strategy']} | {precision} | {row['batch']} | {row['step_ms']} | "
                    f"{floor['median']} ({floor['low']}-{floor['high']}) | {row['images_per_second']} | "
                    f"{row['evaluation_images_per_second']} | {row['peak_mib'] or '-'} |",
                    flush=True,
                )
                if options.out:
                    options.out.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
