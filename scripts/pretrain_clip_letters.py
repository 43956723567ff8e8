"""Train the embedded image-text backbone on captions of rendered letters and printed digits.

    python scripts/pretrain_clip_letters.py                                          # writes clprompt/assets/
    python scripts/pretrain_clip_letters.py --glyphs 2000 --epochs 1 --out somewhere # a small trial

The image tower is the embedded `vit_letters` as it is (locked-image training, Zhai et al. 2022, LiT): its
features of all glyphs are computed once, and only a projection, the text tower and the scale of the logits
are learned. Glyphs are those of `clprompt.data.sets.letters`: 52 letters, and the ten digits of the same
fonts. Captions come from a grammar: what a glyph is, at times how it was drawn, in one of several wordings.

Many captions of a batch fit many of its images, so the target of a pair is whether every claim of the caption
is true of the image, shared out evenly over what is true, in both directions. No handwritten digit takes part
in the training or in its settings: scikit-learn's digits are read only at the end, to report how many of
them the names of the digits find.

Two files are written, each atomically: `clip_letters.safetensors`, projection, text tower and the logarithm
of the scale, in float16 (cast to float32 on loading); and `clip_letters.json`, the shape of the tower, its
words, and the SHA-256 of the weights. On one machine, with one version of each library, every run writes
the same bytes.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import math
import string
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clprompt.backbones.text import FrozenText
from clprompt.backbones.tokenizers import WordTokenizer
from clprompt.backbones.vit import FrozenViT
from clprompt.data.sets.letters import Strokes, render_glyphs
from clprompt.seeding import derive, generator, preserved_rng
from clprompt.system.files import atomic_write

IMAGE = "vit_letters"
TEXT = {"width": 64, "depth": 3, "num_heads": 4, "length": 32, "joint_width": 64, "mlp_ratio": 2.0}
CHARACTERS = string.ascii_letters + string.digits  # the classes
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
TEMPLATES = (
    "{}",
    "a {}",
    "the {}",
    "a photo of a {}",
    "a photo of the {}",
    "an image of a {}",
    "a picture of the {}",
    "a drawing of the {}",
    "a print of one {}",
    "a scan of this {}",
    "this is a {}",
    "here is the {}",
    "it shows a {}",
)
#: Words of the texts of others that a token each spares being spelled.
MORE_WORDS = (
    *("and", "are", "at", "bad", "black", "blurry", "bright", "by", "clean", "close", "dark", "good", "hand"),
    *("handwritten", "in", "large", "my", "on", "or", "sketch", "up", "white", "with", "written"),
)
THIN, BOLD = 2.6, 3.4  # half the width of the pen, of 2 to 4 pixels
LEFT, UPRIGHT, RIGHT = -0.05, 0.12, 0.25  # leaning to the left below, upright between, slanted above
NARROW, WIDE = 14.0, 20.0  # pixels of 32
LEARNING_RATE, WEIGHT_DECAY, WARMUP = 2e-3, 0.05, 0.05
SCALE, MOST_SCALE = 10.0, 100.0  # of the logits, at first and at most
BATCH = 256
SEED = 0
HELD_OUT_SEED = 1  # glyphs drawn from another seed, to report the accuracy on them


class Claims(NamedTuple):
    """What captions claim.

    Attributes:
        classes: those of which the noun is true, bool, [n, 62].
        traits: pen, slant and width, see :func:`traits`; -1 where nothing is said of it, [n, 3].
    """

    classes: np.ndarray
    traits: np.ndarray


@contextlib.contextmanager
def deterministic(seed: int, threads: int) -> Iterator[None]:
    """Fix everything that could change the result on one machine; restore it on leaving."""
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(threads)  # the number of threads decides in which order sums are formed
    torch.use_deterministic_algorithms(True)
    try:
        with preserved_rng(seed):
            yield
    finally:
        torch.set_num_threads(before[0])
        torch.use_deterministic_algorithms(before[1])


def nouns() -> list[list[tuple[str, str]]]:
    """For every class the nouns that are true of it, and the classes of which each is true."""
    small, capital, digits = string.ascii_lowercase, string.ascii_uppercase, string.digits
    result = []
    for character in CHARACTERS:
        if character in digits:
            word = DIGITS[int(character)]
            names = [f"digit {word}", f"digit {word}", f"number {word}", f"numeral {word}", word]
            names += [f"digit {character}", f"numeral {character}", character]
            kinds = [("digit", digits), ("number", digits)]
        else:
            low = character.lower()
            case, others = ("small", small) if character in small else ("capital", capital)
            names = [f"{case} letter {low}"] * 3
            names += [f"{'lower' if case == 'small' else 'upper'} case {low}"]
            kinds = [(f"letter {low}", low + low.upper()), ("letter", small + capital)]
            kinds += [(f"{case} letter", others)]
        kinds.append(("character", CHARACTERS))
        result.append([(name, character) for name in names] + kinds)
    return result


def traits(strokes: Strokes) -> np.ndarray:
    """How glyphs were drawn, as captions say it; 0 where they have no word for it: [n, 3]."""
    pen = np.select([strokes.pen < THIN, strokes.pen > BOLD], [1, 2])
    slant = np.select(
        [strokes.slant < LEFT, strokes.slant < UPRIGHT, strokes.slant > RIGHT], [1, 2, 3], default=0
    )
    width = np.select([strokes.width < NARROW, strokes.width > WIDE], [1, 2])
    return np.stack([pen, slant, width], -1)


ADJECTIVES = (("", "thin", "bold"), ("", "leaning", "upright", "slanted"), ("", "narrow", "wide"))


def write_captions(labels: np.ndarray, drawn: np.ndarray, seed: int) -> tuple[list[str], Claims]:
    """One caption for each glyph, true of it.

    Args:
        labels: classes, [n].
        drawn: see :func:`traits`, [n, 3].
        seed: of the choice of words.
    """
    rng = np.random.default_rng(seed)
    choices = nouns()
    said = np.where((rng.random(drawn.shape) < 0.3) & (drawn > 0), drawn, -1)
    dots, templates, words = rng.random(len(labels)), rng.integers(len(TEMPLATES), size=len(labels)), []
    classes = np.zeros((len(labels), len(CHARACTERS)), bool)
    picks = rng.random(len(labels))
    for row, label in enumerate(labels):
        noun, true_of = choices[label][int(picks[row] * len(choices[label]))]
        classes[row] = [character in true_of for character in CHARACTERS]
        adjectives = [ADJECTIVES[trait][value] for trait, value in enumerate(said[row]) if value > 0]
        phrase = " ".join([*adjectives, noun])
        words.append(TEMPLATES[templates[row]].format(phrase) + ("." if dots[row] < 0.5 else ""))
    return words, Claims(classes, said)


def truth(claims: Claims, labels: np.ndarray, drawn: np.ndarray) -> Tensor:
    """Whether every claim of a caption is true of an image: float [images, captions]."""
    said = claims.traits[None]
    true = claims.classes[:, labels].T & ((said == -1) | (said == drawn[:, None])).all(-1)
    return torch.from_numpy(true).float()


def vocabulary() -> list[str]:
    """The words of all captions and some more, then single characters, by which others are spelled."""
    texts = [*TEMPLATES, *(word for kind in ADJECTIVES for word in kind), *MORE_WORDS]
    texts += [noun for choices in nouns() for noun, _ in choices]
    words = {word for text in texts for word in text.replace("{}", "").split() if len(word) > 1}
    return [*sorted(words), *string.ascii_lowercase, *string.digits, *string.punctuation]


class Model(nn.Module):
    """What is learned: the projection of image features [D, E], the text tower, the log of the scale."""

    def __init__(self, image_width: int, words: Sequence[str]) -> None:
        super().__init__()
        tokenizer = WordTokenizer(words)
        self.projection = nn.Parameter(torch.randn(image_width, TEXT["joint_width"]) * image_width**-0.5)
        self.text = FrozenText(vocabulary=tokenizer.vocabulary, tokenizer=tokenizer, **TEXT)
        self.text.requires_grad_(True)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(SCALE)))

    def forward(self, features: Tensor, texts: Sequence[str]) -> Tensor:
        """Logits of image features [B, D] and texts: [B, number of texts]."""
        tokens = self.text.tokens(texts)
        rows = self.text.run(self.text.embed(tokens.ids), tokens.ends)
        images = F.normalize(features @ self.projection, dim=-1)
        return self.logit_scale.exp() * images @ F.normalize(rows, dim=-1).T


@torch.no_grad()
def image_features(backbone: FrozenViT, images: np.ndarray) -> Tensor:
    """The frozen tower's features of 8x8 images in [0, 1], [N, D]."""
    inputs = backbone.inputs
    pixels = torch.from_numpy(images).float().unsqueeze(1)
    pixels = F.interpolate(pixels, size=inputs.size, mode=inputs.interpolation, align_corners=False)
    return torch.cat(
        [backbone.features(part) for part in ((pixels - inputs.mean[0]) / inputs.std[0]).split(500)]
    )


def pretrain(glyphs: int, epochs: int) -> Model:
    """Train projection and text tower; report how many glyphs of another seed they find."""
    backbone = FrozenViT(IMAGE)
    images, labels, strokes = render_glyphs(CHARACTERS, glyphs, seed=SEED)
    features, drawn = image_features(backbone, images), traits(strokes)
    model = Model(backbone.width, vocabulary())
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
        captions, claims = write_captions(labels, drawn, derive(SEED, "captions", epoch))
        summed, start = 0.0, time.perf_counter()
        for batch in torch.randperm(glyphs, generator=generator(SEED, "order", epoch)).split(BATCH):
            rows = batch.numpy()
            logits = model(features[batch], [captions[row] for row in rows])
            true = truth(Claims(*(part[rows] for part in claims)), labels[rows], drawn[rows])
            loss = sum(
                F.cross_entropy(side, fits / fits.sum(1, keepdim=True))
                for side, fits in ((logits, true), (logits.T, true.T))
            )
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            with torch.no_grad():
                model.logit_scale.clamp_(max=math.log(MOST_SCALE))
            summed += loss.item() * len(batch)
        print(f"epoch {epoch + 1}/{epochs}: loss {summed / glyphs:.4f}, {time.perf_counter() - start:.0f} s")
    images, labels, _ = render_glyphs(CHARACTERS, min(3000, glyphs), seed=HELD_OUT_SEED)
    features = image_features(backbone, images)
    for what, kind in ("letters, cases apart", string.ascii_letters), ("printed digits", string.digits):
        classes = [c for c, character in enumerate(CHARACTERS) if character in kind]
        among = np.isin(labels, classes)
        with torch.no_grad():
            logits = model(features[among], [f"a photo of the {nouns()[c][0][0]}" for c in classes])
        found = np.array(classes)[logits.argmax(1).numpy()] == labels[among]
        print(f"zero-shot on held-out {what}: {found.mean():.4f}")
    return model


def save(model: Model, folder: Path, trained_on: str) -> None:
    """Write the weights and their description; the description last, since it vouches for the weights."""
    tensors = {name: value.detach().half().contiguous() for name, value in model.state_dict().items()}
    weights = safetensors.torch.save(tensors)
    description = {
        "image": IMAGE,
        "text": TEXT,
        "words": vocabulary(),
        "sha256": hashlib.sha256(weights).hexdigest(),
        "size": len(weights),
        "parameters": sum(value.numel() for value in tensors.values()),
        "trained_on": trained_on,
    }
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write(folder / "clip_letters.safetensors", weights)
    atomic_write(folder / "clip_letters.json", json.dumps(description, indent=2) + "\n")
    print(f"{folder / 'clip_letters.safetensors'}: {len(weights)} bytes, sha256 {description['sha256']}")


def report_digits(model: Model) -> None:
    """Print how many of scikit-learn's handwritten digits several wordings of their names find."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    features, targets = image_features(FrozenViT(IMAGE), digits.images / 16), torch.from_numpy(digits.target)
    for template in (
        "a photo of the digit {}",
        "a photo of a digit {}.",
        "digit {}",
        "{}",
        "a bad sketch of a {}.",
    ):
        with torch.no_grad():
            predicted = model(features, [template.format(word) for word in DIGITS]).argmax(1)
        print(f'handwritten digits, "{template}": zero-shot {(predicted == targets).float().mean():.3f}')


def main(argv: Sequence[str] | None = None) -> None:
    """Run the script with the given arguments (those of the process when None)."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    assets = Path(__file__).resolve().parent.parent / "clprompt" / "assets"
    parser.add_argument(
        "--out", type=Path, default=assets, help="folder to write into (default: %(default)s)"
    )
    parser.add_argument(
        "--glyphs", type=int, default=20_000, help="glyphs to train on (default: %(default)s)"
    )
    parser.add_argument("--epochs", type=int, default=8, help="passes over them (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="changes the bytes (default: %(default)s)")
    parser.add_argument("--no-report", action="store_true", help="do not look at the digits afterwards")
    arguments = parser.parse_args(argv)
    for name in ("glyphs", "epochs", "threads"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name}: {getattr(arguments, name)} is not allowed; it must be at least 1")
    start, cpu = time.perf_counter(), time.process_time()
    with deterministic(SEED, arguments.threads):
        model = pretrain(arguments.glyphs, arguments.epochs)
        print(f"{time.perf_counter() - start:.0f} s, of the processor {time.process_time() - cpu:.0f} s")
        trained_on = (
            f"captions of {arguments.glyphs} rendered letters and printed digits ({len(CHARACTERS)} "
            f"classes), {arguments.epochs} epochs, by scripts/pretrain_clip_letters.py; "
            "no handwritten digit was trained on"
        )
        save(model, arguments.out, trained_on)
        if not arguments.no_report:
            report_digits(model)


if __name__ == "__main__":
    main()
