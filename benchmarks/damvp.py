"""How far DAM-VP's pixel prompts run from the floor, and what they save, in interleaved pairs.

The floor of a training step is what the bare timm model costs: a forward without gradient for the query, a
forward, and a backward to the pixels. The loop is how the released code writes the same step: a query pass of
its own, and per image a frame put together from four tensors; `released` is the loop with the backbone's
gradients, which it computes and never uses.

python -m benchmarks.damvp [--model vit_tiny_patch16_224] [--batch 8] [--clusters 4] [--pairs 9]
                           [--device cpu|cuda] [--out FILE]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.speed import CLASSES, interleaved, ratio
from clprompt import FrozenViT
from clprompt.prompting.model import Cache
from clprompt.strategies.damvp import DAMVPModel
from clprompt.strategies.damvp.clustering import cluster, mean_distance
from clprompt.training import optim
from clprompt.training.settings import Training
from clprompt.training.steps import train_step

TARGETS = {  # what a reader compares the medians with
    "step_to_floor": "<= 1.10",
    "loop_to_step": "",
    "released_to_step": "",
    "cached_eval_to_eval": "<= 0.60",
    "clustering_seconds": "< 1",
    "bytes_per_prompt": "",
}


def floor_step(vit: Any, images: Tensor) -> None:
    """The bare timm model: query forward, forward, backward to the pixels."""
    with torch.no_grad():
        vit.forward_head(vit.forward_features(images), pre_logits=True)
    pixels = images.clone().requires_grad_(True)
    vit.forward_head(vit.forward_features(pixels), pre_logits=True).square().mean().backward()


class Loop:
    """A training step as the released code writes it: an assignment, a frame and an addition per image."""

    def __init__(self, vit: Any, prototypes: Tensor, side: int, pad: int) -> None:
        self.vit, self.prototypes = vit, prototypes
        shapes = [(3, pad, side), (3, pad, side), (3, side - 2 * pad, pad), (3, side - 2 * pad, pad)]
        self.frames = [
            [nn.Parameter(torch.zeros(shape, device=prototypes.device)) for shape in shapes]
            for _ in prototypes
        ]
        self.inner = torch.zeros(3, side - 2 * pad, side - 2 * pad, device=prototypes.device)
        self.head = nn.Linear(prototypes.shape[1], CLASSES).to(prototypes.device)
        learned = [part for frame in self.frames for part in frame]
        self.optimizer = torch.optim.Adam([*learned, *self.head.parameters()], lr=1e-4)

    def step(self, images: Tensor, targets: Tensor) -> None:
        """Query pass, assignment, prompted pass, backward, update; images [B, 3, H, W], targets [B]."""
        with torch.no_grad():
            query = self.vit.forward_head(self.vit.forward_features(images), pre_logits=True)
        prompted = []
        for image, row in zip(images, query, strict=True):
            nearest = int((self.prototypes - row).square().sum(1).sqrt().argmin())
            up, down, left, right = self.frames[nearest]
            middle = torch.cat([left, self.inner, right], dim=2)
            prompted.append(image + torch.cat([up, middle, down], dim=1))
        features = self.vit.forward_head(self.vit.forward_features(torch.stack(prompted)), pre_logits=True)
        loss = F.cross_entropy(self.head(features), targets)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()


def model_for(backbone: FrozenViT, images: Tensor, clusters: int) -> DAMVPModel:
    """DAM-VP in its first experience, with prototypes at the features of the first ``clusters`` images."""
    model = DAMVPModel(backbone, seed=0, max_clusters=clusters).to(images.device)
    centres = backbone.features(images[:clusters])
    rows = centres.repeat_interleave(10, 0)
    spread = mean_distance(centres.cpu()) / rows.shape[1] ** 0.5
    model.begin_experience(range(CLASSES))
    model.fit_clusters(rows + 0.05 * spread * torch.randn(rows.shape).to(rows))
    return model


def clustering_seconds(times: int) -> list[float]:
    """Seconds that 1000 features of width 768 in one blob take, where the cap cuts a second time."""
    rows = torch.randn(1000, 768, generator=torch.Generator().manual_seed(0))
    threshold, found = 0.9 * mean_distance(rows), []
    for _ in range(times):
        start = time.perf_counter()
        cluster(rows, threshold, max_clusters=16, min_size=5)
        found.append(time.perf_counter() - start)
    return found


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Every metric of TARGETS, with milliseconds of the step."""
    device = torch.device(options.device)
    backbone = FrozenViT(options.model, pretrained=False).to(device)
    images = torch.randn(options.batch, 3, *backbone.image_size, generator=torch.Generator().manual_seed(0))
    targets = (torch.arange(options.batch) % CLASSES).to(device)
    images = images.to(device)
    model = model_for(backbone, images, options.clusters)
    model.observe(targets)
    optimizer = optim.build(model, Training(train_mb_size=options.batch))
    loop = Loop(backbone.vit, model.prototypes.clone(), backbone.image_size[0], model.pad)
    cache: Cache = {}
    with torch.no_grad():
        model.eval()(images, cache)

    def step() -> None:
        train_step(model.train(), optimizer, images, targets)

    def released() -> None:
        backbone.vit.requires_grad_(True)
        loop.step(images, targets)
        backbone.vit.requires_grad_(False)
        backbone.vit.zero_grad(set_to_none=True)

    @torch.no_grad()
    def evaluate(kept: Cache | None) -> None:
        model.eval()(images, kept)

    times = interleaved(
        options.pairs,
        device,
        step=step,
        floor=lambda: floor_step(backbone.vit, images),
        loop=lambda: loop.step(images, targets),
        released=released,
        evaluation=lambda: evaluate(None),
        cached=lambda: evaluate(dict(cache)),
    )
    seconds = clustering_seconds(max(3, options.pairs // 2))
    low, median, high = statistics.quantiles(seconds, n=4)
    told = model.describe()
    return {
        "step_to_floor": ratio(times["step"], times["floor"]),
        "loop_to_step": ratio(times["loop"], times["step"]),
        "released_to_step": ratio(times["released"], times["step"]),
        "cached_eval_to_eval": ratio(times["cached"], times["evaluation"]),
        "clustering_seconds": {"median": median, "low": low, "high": high},
        "bytes_per_prompt": told["bytes_per_prompt"],
        "prompts": told["prompts"],
        "milliseconds_per_step": 1000 * statistics.median(times["step"].busy),
    }


def main() -> None:
    """Measure and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="vit_tiny_patch16_224")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--clusters", type=int, default=4)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    found = measure(options)
    print(f"{options.model}, batch {options.batch}, {found['prompts']} prompts, {options.device}, ", end="")
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads; median (quartiles)\n")
    print("| metric | measured | target |\n|---|---|---|")
    for key, target in TARGETS.items():
        value = found[key]
        shown = (
            f"{value['median']:.2f} ({value['low']:.2f}-{value['high']:.2f})" if "bytes" not in key else value
        )
        print(f"| {key.replace('_', ' ')} | {shown} | {target} |")
    print(f"| milliseconds per step | {found['milliseconds_per_step']:.0f} | |")
    if options.out:
        options.out.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
