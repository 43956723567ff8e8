"""Pre-train the embedded backbone, a tiny timm vision transformer, on rendered letters.

    python scripts/pretrain_letters.py                                             # writes clprompt/assets/
    python scripts/pretrain_letters.py --glyphs 2000 --epochs 1 --out somewhere    # a small trial

Letters are drawn by `clprompt.data.sets.letters` as 8x8 images in [0, 1], resized to the model's 16x16 with
`torch.nn.functional.interpolate(mode="bilinear", align_corners=False)`, without anti-aliasing, and
normalised with the recorded mean and standard deviation. Images that the model is used on later, the
digits first of all, must be scaled to [0, 1] and resized in the same way. No digit takes part in the
training or in its settings: scikit-learn's digits are read only at the end, to report how well the features
carry over. (The drawing imitates their amount of ink and their placement, see `clprompt.data.sets.letters`.)

Two files are written, each atomically: `vit_letters.safetensors`, the weights without the head, under
timm's names, in float16 (cast to float32 on loading); and `vit_letters.json`, the model's arguments, the
normalisation, and the SHA-256 of the weights. On one machine, with one version of each library, every
run writes the same bytes.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import safetensors.torch
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from torch.nn import functional as F

from clprompt.data.sets.letters import render_letters
from clprompt.seeding import generator, preserved_rng
from clprompt.system.files import atomic_write

MODEL = {
    "img_size": 16,
    "patch_size": 4,
    "in_chans": 1,
    "embed_dim": 64,
    "depth": 5,
    "num_heads": 4,
    "mlp_ratio": 2,
    "class_token": True,
    "num_classes": 0,
}
MEAN, STD = 0.5, 0.5
LEARNING_RATE, WEIGHT_DECAY, WARMUP = 1.5e-3, 0.05, 0.05
BATCH = 64
SEED = 0
SPLITS = 10  # stratified 80/20 splits of the digits, for the report
HELD_OUT_SEED = 1  # letters drawn from another seed, to report the accuracy on letters


@contextlib.contextmanager
def deterministic(seed: int, threads: int) -> Iterator[None]:
    """Fix everything that could change the result on one machine; restore it on leaving."""
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(threads)  # the number of threads decides in which order sums are formed
    torch.use_deterministic_algorithms(True)
    try:
        with preserved_rng(seed):  # timm initialises from the global state
            yield
    finally:
        torch.set_num_threads(before[0])
        torch.use_deterministic_algorithms(before[1])


def prepare(images: Tensor) -> Tensor:
    """From 8x8 images in [0, 1] to the model's input: [N, 8, 8] -> [N, 1, 16, 16]."""
    size = (MODEL["img_size"], MODEL["img_size"])
    images = F.interpolate(images.float().unsqueeze(1), size=size, mode="bilinear", align_corners=False)
    return (images - MEAN) / STD


def pretrain(glyphs: int, epochs: int) -> tuple[VisionTransformer, list[str]]:
    """Train a classifier of letters; return it without its head, and the letters."""
    images, labels, classes = render_letters(glyphs, seed=SEED)
    inputs, targets = prepare(torch.from_numpy(images)), torch.from_numpy(labels)
    model = VisionTransformer(**{**MODEL, "num_classes": len(classes)})
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    total = epochs * math.ceil(glyphs / BATCH)
    warmup = max(1, round(WARMUP * total))

    def factor(step: int) -> float:
        """Linear warm-up, then half a cosine down to zero."""
        if step < warmup:
            return (step + 1) / warmup
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    for epoch in range(epochs):
        model.train()
        summed, start = 0.0, time.perf_counter()
        for batch in torch.randperm(glyphs, generator=generator(SEED, "order", epoch)).split(BATCH):
            loss = F.cross_entropy(model(inputs[batch]), targets[batch])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            summed += loss.item() * len(batch)
        print(f"epoch {epoch + 1}/{epochs}: loss {summed / glyphs:.4f}, {time.perf_counter() - start:.0f} s")
    held_out, labels, _ = render_letters(min(2000, glyphs), seed=HELD_OUT_SEED)
    with torch.inference_mode():
        predicted = model.eval()(prepare(torch.from_numpy(held_out))).argmax(1)
    print(f"accuracy on held-out letters: {(predicted == torch.from_numpy(labels)).float().mean():.4f}")
    model.reset_classifier(0)
    return model, classes


def save(model: VisionTransformer, folder: Path, trained_on: str) -> None:
    """Write the weights and their description; the description last, since it vouches for the weights."""
    tensors = {name: value.detach().half().contiguous() for name, value in model.state_dict().items()}
    weights = safetensors.torch.save(tensors)
    description = {
        "model": MODEL,
        "mean": [MEAN],
        "std": [STD],
        "interpolation": "bilinear",
        "antialias": False,
        "sha256": hashlib.sha256(weights).hexdigest(),
        "size": len(weights),
        "parameters": sum(value.numel() for value in tensors.values()),
        "trained_on": trained_on,
    }
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write(folder / "vit_letters.safetensors", weights)
    atomic_write(folder / "vit_letters.json", json.dumps(description, indent=2) + "\n")
    print(f"{folder / 'vit_letters.safetensors'}: {len(weights)} bytes, sha256 {description['sha256']}")


def report_digits(model: VisionTransformer) -> None:
    """Print what the features are worth on scikit-learn's digits, beside raw pixels and random weights."""
    from sklearn.datasets import load_digits
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import train_test_split
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    digits = load_digits()
    images, targets = prepare(torch.from_numpy(digits.images / 16)), torch.from_numpy(digits.target)
    with torch.inference_mode():
        features = {
            "pre-trained": model.eval()(images),
            "random weights": VisionTransformer(**MODEL).eval()(images),
            "raw pixels": torch.from_numpy(digits.data / 16).float(),
        }
    for name, values in features.items():
        scores = []
        for split in range(SPLITS):
            fit, test = train_test_split(
                torch.arange(len(images)), test_size=0.2, stratify=digits.target, random_state=split
            )
            means = torch.stack([values[fit][targets[fit] == label].mean(0) for label in range(10)])
            nearest = (F.normalize(values[test]) @ F.normalize(means).T).argmax(1)
            scores.append(float((nearest == targets[test]).float().mean()))
        classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
        probe = classifier.fit(values[fit], targets[fit]).score(values[test], targets[test])
        print(
            f"digits, {name}: nearest class mean {sum(scores) / SPLITS:.3f} over {SPLITS} splits "
            f"({scores[0]:.3f} on the first), joint linear probe {probe:.3f} on the last"
        )


def main(argv: Sequence[str] | None = None) -> None:
    """Run the script with the given arguments (those of the process when None)."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    assets = Path(__file__).resolve().parent.parent / "clprompt" / "assets"
    parser.add_argument(
        "--out", type=Path, default=assets, help="folder to write into (default: %(default)s)"
    )
    parser.add_argument(
        "--glyphs", type=int, default=40_000, help="letters to train on (default: %(default)s)"
    )
    parser.add_argument("--epochs", type=int, default=5, help="passes over them (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="changes the bytes (default: %(default)s)")
    parser.add_argument("--no-report", action="store_true", help="do not look at the digits afterwards")
    arguments = parser.parse_args(argv)
    for name in ("glyphs", "epochs", "threads"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name}: {getattr(arguments, name)} is not allowed; it must be at least 1")
    start = time.perf_counter()
    with deterministic(SEED, arguments.threads):
        model, classes = pretrain(arguments.glyphs, arguments.epochs)
        print(f"pre-trained in {time.perf_counter() - start:.0f} s")
        trained_on = (
            f"{arguments.glyphs} rendered letters of the {len(classes)} classes {' '.join(classes)}, "
            f"{arguments.epochs} epochs, by scripts/pretrain_letters.py; no digit was trained on"
        )
        save(model, arguments.out, trained_on)
        if not arguments.no_report:
            report_digits(model)


if __name__ == "__main__":
    main()
