"""Evaluation time against the number of lanes: MULTI-LANE as it is here, its plain form, and the floor.

The floor is one bare frozen forward, without gradient. The plain formulation is what the method's description
says word by word: per lane, summaries as tokens, all their rows computed, over fused attention; selectors per
image. Full-token pathways are one prompted pass of all patches per lane (measured once and multiplied by the
lanes). Runs are interleaved; every metric is the median of the pairwise ratios.

python -m benchmarks.multilane --out FILE [--model vit_small_patch16_224] [--batch 16] [--pairs 9]
                               [--lanes 1,5,10,20,50] [--plain-lanes 20] [--device cpu|cuda] [--threads 1]

FILE gets {lanes: {ours_to_forward, plain_to_forward}} and more; a drawing of the same name ends in .png.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.speed import interleaved, ratio
from clprompt import FrozenViT
from clprompt.backbones.attention import (
    BlockPrompt,
    finish_attention,
    project_stream,
    residual_mlp,
    split_heads,
)
from clprompt.strategies.multilane import MultiLaneModel
from clprompt.system.files import atomic_write

TARGETS = {1: 1.05, 5: 1.08, 10: 1.15, 20: 1.25, 50: 1.75}  # ViT-S, batch 16


def build(backbone: FrozenViT, lanes: int) -> MultiLaneModel:
    """A model with so many lanes of two classes, S = P = 20, E = 5."""
    model = MultiLaneModel(backbone)
    for lane in range(lanes):
        classes = [2 * lane, 2 * lane + 1]
        model.begin_experience(classes)
        model.observe(torch.tensor(classes))
    return model.to(backbone.class_token.device).eval()


@torch.no_grad()
def plain(model: MultiLaneModel, images: Tensor) -> Tensor:
    """All lanes as described: 1 + S tokens of every lane through every block; features [T * B, D]."""
    backbone, batch, count = model.backbone, len(images), model.num_lanes
    cls = backbone.class_token.expand(count * batch, -1, -1)
    chosen = torch.stack(list(model.selectors)).repeat_interleave(batch, 0)  # (T * B, S, D)
    x = backbone.embed(images)
    for index, block in enumerate(backbone.blocks):
        normed, own = block.norm1(x), block.norm1(chosen)
        scores = own.unflatten(0, (count, batch)) @ normed.mT * backbone.width**-0.5  # (T, B, S, N)
        summary = (scores.softmax(-1) @ normed).flatten(0, 1)
        tokens = torch.cat([block.norm1(cls), summary], dim=1)
        query, keys, values = project_stream(block.attn, tokens)
        if index < model.sizes[2]:
            raw = torch.stack([lane[index] for lane in model.prompts]).repeat_interleave(batch, 0)
            learned = [split_heads(part, block.attn) for part in raw.unbind(1)]
            keys, values = torch.cat([learned[0], keys], dim=2), torch.cat([learned[1], values], dim=2)
        heads = F.scaled_dot_product_attention(query, keys, values)
        attended = finish_attention(block.attn, tokens, heads)
        stream = residual_mlp(block, torch.cat([cls, chosen], 1), torch.cat([attended[:, :1], own], 1))
        cls, chosen = stream[:, :1], stream[:, 1:]
        x = block(x)
    return F.normalize(backbone.norm(cls)[:, 0], dim=-1)


@torch.no_grad()
def pathway(model: MultiLaneModel, images: Tensor) -> Tensor:
    """One lane over all patches: a pass with the first lane's prompts as prefixes."""

    def prompts(block: int, _: Tensor) -> BlockPrompt | None:
        if block >= model.sizes[2]:
            return None
        return BlockPrompt("prefix", *(part[None] for part in model.prompts[0][block]))

    backbone = model.backbone
    return backbone.prompted(backbone.embed(images), prompts)


def peak(model: MultiLaneModel, images: Tensor) -> int:
    """Peak bytes of tensors while one batch is evaluated."""
    if images.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        with torch.no_grad():
            model(images)
        return torch.cuda.max_memory_allocated() - before
    from torch.profiler import ProfilerActivity, profile

    with torch.no_grad():
        model(images)  # selectors are kept from here on
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
            model(images)
    used = top = 0
    for event in found.profiler.kineto_results.events():  # type: ignore[union-attr]
        if event.name() == "[memory]":
            used += event.nbytes()
            top = max(top, used)
    return top


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """All metrics, by the number of lanes."""
    device = torch.device(options.device)
    backbone = FrozenViT(options.model, pretrained=False).to(device)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(options.batch, backbone.in_chans, *backbone.image_size, generator=generator).to(
        device
    )
    vit: Any = backbone.vit

    def floor() -> None:
        with torch.no_grad():
            vit.forward_head(vit.forward_features(images), pre_logits=True)

    found: dict[str, Any] = {}
    single = None
    for lanes in options.lanes:
        model = build(backbone, lanes)

        def ours(model: MultiLaneModel = model) -> None:
            with torch.no_grad():
                model(images)

        runs: dict[str, Any] = {"ours": ours, "floor": floor}
        if lanes <= options.plain_lanes:
            runs["plain"] = lambda model=model: plain(model, images)
        if lanes == options.lanes[0]:
            runs["pathway"] = lambda model=model: pathway(model, images)
        seconds = interleaved(options.pairs, device, **runs)
        metrics: dict[str, Any] = {
            "ours_to_forward": ratio(seconds["ours"], seconds["floor"])["median"],
            "plain_to_forward": ratio(seconds["plain"], seconds["floor"])["median"]
            if "plain" in runs
            else None,
            "spread": {key: ratio(seconds[key], seconds["floor"]) for key in runs if key != "floor"},
            "forward_milliseconds": 1000 * statistics.median(seconds["floor"].busy),
            "peak_bytes": peak(model, images),
            "target": TARGETS.get(lanes),
        }
        if "pathway" in runs:
            single = ratio(seconds["pathway"], seconds["floor"])["median"]
        metrics["pathways_to_forward"] = None if single is None else single * lanes
        found[str(lanes)] = metrics
        print(line(lanes, metrics), flush=True)
    found["training"] = {"step_to_forward": training_step(backbone, images, floor, options, device)}
    print(f"training step to the bare forward: {found['training']['step_to_forward']}")
    return found


def training_step(
    backbone: FrozenViT, images: Tensor, floor: Any, options: argparse.Namespace, device: torch.device
) -> dict[str, float]:
    """Forward, backward and optimizer step of one lane against the bare forward without gradient."""
    model = build(backbone, 1).train()
    optimizer = torch.optim.Adam(model.trainable().values(), lr=1e-4)
    targets = torch.arange(len(images), device=device) % 2

    def step() -> None:
        optimizer.zero_grad()
        model.training_loss(images, targets).loss.backward()
        optimizer.step()

    seconds = interleaved(options.pairs, device, step=step, floor=floor)
    return ratio(seconds["step"], seconds["floor"])


def line(lanes: int, metrics: dict[str, Any]) -> str:
    """One row of the table that is printed."""
    other = metrics["plain_to_forward"]
    spread = metrics["spread"]["ours"]
    return (
        f"{lanes:3d} lanes: ours {metrics['ours_to_forward']:.2f} ({spread['low']:.2f}-{spread['high']:.2f}, "
        f"target {metrics['target'] or '-'}), plain {'-' if other is None else f'{other:.2f}'}, "
        f"full-token pathways {metrics['pathways_to_forward']:.1f} times the bare forward of "
        f"{metrics['forward_milliseconds']:.0f} ms; peak {metrics['peak_bytes'] / 2**20:.1f} MiB"
    )


def draw(found: dict[str, Any], path: Path, title: str) -> None:
    """Time against lanes, in forwards of the bare model."""
    from matplotlib.figure import Figure

    from clprompt.reporting.plots import png

    rows = {int(lanes): metrics for lanes, metrics in found.items() if lanes.isdigit()}
    figure = Figure(figsize=(7, 4.5))
    axes = figure.add_subplot()
    styles = {
        "pathways_to_forward": ("full-token pathways", "#999999", "v"),
        "plain_to_forward": ("plain formulation", "#d55e00", "s"),
        "ours_to_forward": ("ours", "#0072b2", "o"),
    }
    for key, (label, colour, marker) in styles.items():
        known = [(lanes, metrics[key]) for lanes, metrics in rows.items() if metrics[key] is not None]
        axes.plot(*zip(*known, strict=True), color=colour, marker=marker, label=label)
    axes.axhline(1, color="black", linestyle="--", linewidth=1, label="floor: one bare forward")
    axes.set(xlabel="lanes", ylabel="time / bare forward", title=title, yscale="log")
    axes.set_yticks([1, 1.5, 2, 3, 5, 10, 20, 50], ["1", "1.5", "2", "3", "5", "10", "20", "50"])
    axes.minorticks_off()
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.legend(frameon=False)
    atomic_write(path, png(figure))


def main() -> None:
    """Measure, print, and write the metrics and their drawing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="vit_small_patch16_224")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument(
        "--lanes", type=lambda text: [int(part) for part in text.split(",")], default="1,5,10,20,50"
    )
    parser.add_argument(
        "--plain-lanes", type=int, default=20, help="measure the plain formulation up to so many lanes"
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    title = f"{options.model}, batch {options.batch}, {options.device}, {torch.get_num_threads()} threads"
    print(f"{title}, torch {torch.__version__}; medians of {options.pairs} interleaved pairs (quartiles)")
    found = measure(options)
    options.out.write_text(json.dumps(found, indent=2) + "\n")
    draw(found, options.out.with_suffix(".png"), title)


if __name__ == "__main__":
    main()
