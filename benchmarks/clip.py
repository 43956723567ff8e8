"""Context learning in a text tower: the whole sequences against the two exact savings, in one run.

Forward and backward down to the context of ViT-B/16's text tower (random weights) for so many names and
context tokens: every text as long as the tower takes, as released; cut behind the last end token; one prefix
for all names. The forms are interleaved; medians, and the largest difference of features and gradients.

Then a whole training step of coop on ViT-B/16 against what cannot be left out of it: the images forward
without gradient, and the text of the classes that compete forward and backward in the cheapest form.

python -m benchmarks.clip [--names 100] [--context 16] [--classes 10] [--batch 4] [--repeats 3]
                          [--only forms,step] [--device cpu|cuda] [--out FILE]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clprompt import FrozenViT
from clprompt.backbones.text import FrozenText
from clprompt.backbones.tokenizers import WordTokenizer
from clprompt.strategies.coop import CoOpModel

TARGET = 12.0  # times less than the whole form
STEP_TARGET = 1.15  # of a step over what cannot be left out of it
#: Shares of names of one, two and three tokens, about CIFAR-100's in CLIP's byte pairs.
NAME_LENGTHS = (1,) * 7 + (2,) * 2 + (3,)


def tower(device: torch.device) -> FrozenText:
    """ViT-B/16's text tower with random weights; its vocabulary, of which embeddings alone ask, is small."""
    words = WordTokenizer([chr(97 + index) for index in range(26)] + ["."])
    text = FrozenText(
        width=512,
        depth=12,
        num_heads=8,
        length=77,
        vocabulary=words.vocabulary,
        joint_width=512,
        tokenizer=words,
    )
    return text.to(device)


def forms(text: FrozenText, names: int, context: Tensor) -> dict[str, Callable[[], Tensor]]:
    """Each form as a function of nothing that gives features with gradient, [names, E]."""
    lengths = [NAME_LENGTHS[index % len(NAME_LENGTHS)] for index in range(names)]
    tokens = text.tokens([" ".join(["a"] * length) + " ." for length in lengths])
    words, count = text.embed(tokens.ids), len(context)
    rest = text.length - 1 - count
    padded = torch.cat([words[:, 1:], words.new_zeros(names, rest + 1 - words.shape[1], text.width)], dim=1)

    def prefix() -> Tensor:
        return torch.cat([words[0, :1], context])[None]

    def whole() -> Tensor:
        return text.run(torch.cat([prefix().expand(names, -1, -1), padded], dim=1), tokens.ends + count)

    def cut() -> Tensor:
        return text.prompted(prefix().expand(names, -1, -1), words[:, 1:], tokens.ends - 1)

    def shared() -> Tensor:
        return text.prompted(prefix(), words[:, 1:], tokens.ends - 1)

    return {"whole": whole, "cut": cut, "shared": shared}


def wait(device: torch.device) -> None:
    """Until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def measure_forms(options: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """The three forms of the text tower."""
    text = tower(device)
    context = (torch.randn(options.context, text.width) * 0.02).to(device).requires_grad_()
    runs = forms(text, options.names, context)
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    results: dict[str, tuple[Tensor, Tensor]] = {}
    for repeat in range(options.repeats + 1):  # the first warms up
        for name, run in runs.items():
            start = time.perf_counter()
            features = run()
            gradient = torch.autograd.grad(features.sum(), context)[0]
            wait(device)
            if repeat:
                seconds[name].append(time.perf_counter() - start)
            results[name] = features.detach(), gradient
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    return {
        "names": options.names,
        "seconds": medians,
        "times_less": {name: medians["whole"] / medians[name] for name in ("cut", "shared")},
        "target": TARGET,
        "largest_difference": {
            name: [
                float((mine - theirs).abs().max() / theirs.abs().max())
                for mine, theirs in zip(results[name], results["whole"], strict=True)
            ]
            for name in ("cut", "shared")
        },
    }


def measure_step(options: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """A step of coop over its floor, of interleaved pairs."""
    text = tower(device)
    backbone = FrozenViT("vit_base_patch16_clip_quickgelu_224", pretrained=False).to(device)
    projection = torch.randn(backbone.width, text.joint_width, device=device) * backbone.width**-0.5
    backbone.add_text(text, projection=projection, scale=100.0)
    model = CoOpModel(backbone, length=options.context).to(device)
    # as long as CIFAR-100's: a letter is a token
    letters = [chr(97 + index) for index in range(options.classes)]
    lengths = [NAME_LENGTHS[index % len(NAME_LENGTHS)] for index in range(options.classes)]
    model.name_classes({c: " ".join(letters[c] * lengths[c]) for c in range(options.classes)})
    model.begin_experience(range(options.classes))
    images = torch.rand(options.batch, 3, 224, 224, device=device)
    targets = torch.arange(options.batch, device=device) % options.classes
    model.observe(torch.arange(options.classes))
    optimizer = torch.optim.Adam(model.trainable().values())
    context = (torch.randn(options.context, text.width) * 0.02).to(device).requires_grad_()
    cheapest = forms(text, options.classes, context)["shared"]

    def step() -> None:
        model.observe(targets)
        optimizer.zero_grad()
        model.training_loss(images, targets).loss.backward()
        optimizer.step()

    def floor() -> None:
        with torch.no_grad():
            backbone.project(backbone.features(images))
        torch.autograd.grad(cheapest().sum(), context)

    seconds: dict[str, list[float]] = {"step": [], "floor": []}
    for repeat in range(options.repeats + 1):
        for name, run in (("step", step), ("floor", floor)):
            start = time.perf_counter()
            run()
            wait(device)
            if repeat:
                seconds[name].append(time.perf_counter() - start)
    ratios = [mine / least for mine, least in zip(seconds["step"], seconds["floor"], strict=True)]
    return {
        "classes": options.classes,
        "batch": options.batch,
        "seconds": {name: statistics.median(times) for name, times in seconds.items()},
        "step_over_floor": statistics.median(ratios),
        "ratios": ratios,
        "target": STEP_TARGET,
    }


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--names", type=int, default=100)
    parser.add_argument("--context", type=int, default=16)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", default="forms,step")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    device = torch.device(options.device)
    torch.manual_seed(0)
    found: dict[str, Any] = {
        "context": options.context,
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
    }
    for name, measure in (("forms", measure_forms), ("step", measure_step)):
        if name in options.only.split(","):
            found[name] = measure(options, device)
    print(json.dumps(found, indent=2))
    if options.out:
        options.out.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
