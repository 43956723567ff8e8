"""Context learning in a text tower: the whole sequences against the two exact savings, in one run.

Forward and backward down to the context of ViT-B/16's text tower (random weights) for so many names and
context tokens: every text as long as the tower takes, as released; cut behind the last end token; one prefix
for all names. The forms are interleaved; medians, and the largest difference of features and gradients.

python -m benchmarks.clip [--names 100] [--context 16] [--repeats 3] [--device cpu|cuda] [--out FILE]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from clprompt.backbones.text import FrozenText
from clprompt.backbones.tokenizers import WordTokenizer

TARGET = 12.0  # times less than the whole form
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


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--names", type=int, default=100)
    parser.add_argument("--context", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    device = torch.device(options.device)
    torch.manual_seed(0)
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
            if device.type == "cuda":
                torch.cuda.synchronize()
            if repeat:
                seconds[name].append(time.perf_counter() - start)
            results[name] = features.detach(), gradient
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    found = {
        "names": options.names,
        "context": options.context,
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
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
    print(json.dumps(found, indent=2))
    if options.out:
        options.out.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
