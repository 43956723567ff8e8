"""TCPA against VPT-deep with as many prompt tokens, both against the floor: time, and memory of the masks.

The floor of a training step is the bare timm model's forward and backward down to the tokens of block 0, that
of an evaluation its forward; neither method has a query pass. VPT-deep shows every token all prompts of a
block. Runs are interleaved; every metric is the median of the pairwise ratios with the quartiles. Grown:
after --experiences experiences, whose entries all columns hold; VPT-deep beside it has as many columns.

Masks: the bytes of the masks of one block over stream and prompt columns, as attention gets them, and
what autograd keeps for the backward pass of one block's attention with and without them (saved tensors that
are not parameters, each storage once), at --mask-batch images, 197 tokens, 200 prompt columns.

python -m benchmarks.tcpa [--model vit_tiny_patch16_224] [--batch 8] [--pairs 9] [--device cpu|cuda]
                          [--experiences 10] [--mask-batch 128] [--out FILE]
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

from benchmarks.speed import floor_step, interleaved, ratio
from clprompt import FrozenViT, PromptModel
from clprompt.strategies.tcpa import TCPAModel
from clprompt.strategies.vpt_deep import VPTDeepModel
from clprompt.training import optim
from clprompt.training.settings import Training
from clprompt.training.steps import train_step

TARGETS = {"one experience": 1.05, "grown": 1.15}


def prepared(model: PromptModel, experiences: int, device: torch.device) -> PromptModel:
    """A model that has begun so many experiences of two classes each."""
    for experience in range(experiences):
        classes = [2 * experience, 2 * experience + 1]
        if model.boundaries != "unused":
            model.begin_experience(classes)
        model.observe(torch.tensor(classes))
    return model.to(device)


def times(
    backbone: FrozenViT, images: Tensor, experiences: int, options: argparse.Namespace
) -> dict[str, Any]:
    """Step and evaluation of both methods and of the floor, after so many experiences."""
    device, count = images.device, len(images)
    models = {
        "tcpa": prepared(TCPAModel(backbone, random_epochs=0), experiences, device),
        "vpt": prepared(VPTDeepModel(backbone, length=20 * experiences), experiences, device),
    }
    targets = (torch.arange(count) % 2 + 2 * (experiences - 1)).to(device)
    training = Training(train_mb_size=count, lr=1e-4)
    optimizers = {name: optim.build(model, training) for name, model in models.items()}
    vit: Any = backbone.vit

    def step(name: str) -> None:
        train_step(models[name].train(), optimizers[name], images, targets)

    def evaluate(name: str) -> None:
        with torch.no_grad():
            models[name].eval()(images)

    def forward() -> None:
        with torch.no_grad():
            vit.forward_head(vit.forward_features(images), pre_logits=True)

    found: dict[str, Any] = {}
    runs: dict[str, tuple[Any, Any]] = {
        "step": (step, lambda: floor_step(vit, images, 0, False, "float32")),
        "evaluation": (evaluate, forward),
    }
    for kind, (method, floor) in runs.items():
        seconds = interleaved(
            options.pairs, device, tcpa=lambda m=method: m("tcpa"), vpt=lambda m=method: m("vpt"), floor=floor
        )
        found[kind] = {
            "tcpa_to_vpt": ratio(seconds["tcpa"], seconds["vpt"]),
            "tcpa_to_floor": ratio(seconds["tcpa"], seconds["floor"]),
            "vpt_to_floor": ratio(seconds["vpt"], seconds["floor"]),
            "floor_milliseconds": 1000 * statistics.median(seconds["floor"].busy),
        }
    return found


def masks(backbone: FrozenViT, options: argparse.Namespace) -> dict[str, int]:
    """Bytes of one block's masks at 200 prompt columns, and of what its attention keeps for backward."""
    device = torch.device(options.device)
    batch, width = options.mask_batch, backbone.width
    length = backbone.num_prefix_tokens + 196
    source = torch.Generator().manual_seed(0)
    stream = torch.randn(batch, length, width, generator=source).to(device).requires_grad_()
    model: Any = prepared(TCPAModel(backbone, random_epochs=0, layers=(0,)), 10, device).train()
    plain: Any = prepared(VPTDeepModel(backbone, length=200, layers=(0,)), 1, device).train()
    fused, sizes = F.scaled_dot_product_attention, []
    shapes: set[tuple[int, ...]] = set()  # of the masks
    of_masks: dict[int, int] = {}

    def watched(*tensors: Tensor, attn_mask: Tensor | None = None, **options: Any) -> Tensor:
        if attn_mask is not None:
            sizes.append(attn_mask.untyped_storage().nbytes())
            shapes.add(tuple(attn_mask.shape))
        return fused(*tensors, attn_mask=attn_mask, **options)

    known = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    known |= {parameter.untyped_storage().data_ptr() for parameter in plain.parameters()}

    def kept(prompts: Any) -> int:
        """Bytes that autograd keeps between the forward and the backward pass of block 0."""
        storages: dict[int, Any] = {}
        of_masks.clear()

        def pack(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in known:
                storages[storage.data_ptr()] = storage  # held, so that no address is given out twice
                if tuple(tensor.shape) in shapes:
                    of_masks[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            backbone.run(stream, prompts, blocks=slice(0, 1))
        return sum(storage.nbytes() for storage in storages.values())

    F.scaled_dot_product_attention = watched  # type: ignore[assignment]
    try:
        coordinated = kept(model._prompts(batch, []))
    finally:
        F.scaled_dot_product_attention = fused
    kept_masks = sum(of_masks.values())
    return {
        "mask_bytes": sum(sizes),
        "kept_mask_bytes": kept_masks,
        "kept_bytes": coordinated,
        "kept_bytes_vpt": kept(plain.block_prompt),
        "kept_bytes_bare": kept(None),
    }


def cell(found: dict[str, float]) -> str:
    """Median and quartiles."""
    return f"{found['median']:.2f} ({found['low']:.2f}-{found['high']:.2f})"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="vit_tiny_patch16_224")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--experiences", type=int, default=10)
    parser.add_argument("--mask-batch", type=int, default=128)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    device = torch.device(options.device)
    backbone = FrozenViT(options.model, pretrained=False).to(device)
    source = torch.Generator().manual_seed(0)
    size = (options.batch, backbone.in_chans, *backbone.image_size)
    images = torch.randn(size, generator=source).to(device)
    print(f"{options.model}, batch {options.batch}, {options.device}, ", end="")
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads; median (quartiles)\n")
    print("| | ms of the floor | TCPA / VPT-deep | target | TCPA / floor | VPT-deep / floor |")
    print("|---|---|---|---|---|---|")
    every: dict[str, Any] = {}
    for name, experiences in (("one experience", 1), ("grown", options.experiences)):
        every[name] = times(backbone, images, experiences, options)
        for kind, found in every[name].items():
            cells = [
                f"{found['floor_milliseconds']:.0f}",
                cell(found["tcpa_to_vpt"]),
                f"<= {TARGETS[name]}",
                cell(found["tcpa_to_floor"]),
                cell(found["vpt_to_floor"]),
            ]
            print(f"| {kind}, {name} | " + " | ".join(cells) + " |", flush=True)
    found = every["masks"] = masks(backbone, options)
    print(
        f"\nmasks of a block: {found['mask_bytes'] / 1e6:.1f} MB at batch {options.mask_batch}; "
        f"kept for the backward pass of one block: {found['kept_bytes'] / 1e6:.0f} MB, "
        f"of which masks {found['kept_mask_bytes'] / 1e6:.1f} MB; "
        f"VPT-deep {found['kept_bytes_vpt'] / 1e6:.0f} MB, bare {found['kept_bytes_bare'] / 1e6:.0f} MB"
    )
    if options.out:
        options.out.write_text(json.dumps(every, indent=2) + "\n")


if __name__ == "__main__":
    main()
