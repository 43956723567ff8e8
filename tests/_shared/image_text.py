"""Image-text backbones of the tests: the golden file's, and tiny random ones that take any text."""

from __future__ import annotations

import json
import math
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import devices
import torch
from golden_files import Golden
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from clprompt.backbones.text import FrozenText, text_weights
from clprompt.backbones.tokenizers import WordTokenizer
from clprompt.backbones.vit import FrozenViT
from clprompt.prompting.text.model import TextModel

Learner = TypeVar("Learner", bound=TextModel)

#: Names of six classes, of one word and more.
NAMES = {0: "cat", 1: "dog", 2: "red bird", 3: "old stone house", 4: "u.s. car", 5: "lamp"}
#: Names of MaPLe's prompts in ``clip.npz`` by ours.
COUPLED = {
    "prompts.text.0": "ctx",
    "prompts.maps.0.weight": "proj.weight",
    "prompts.maps.0.bias": "proj.bias",
    **{f"prompts.text.{block}": f"compound_prompts_text.{block - 1}" for block in (1, 2)},
    **{
        f"prompts.maps.{block}.{part}": f"compound_prompt_projections.{block - 1}.{part}"
        for block in (1, 2)
        for part in ("weight", "bias")
    },
}
#: The same of PromptSRC's.
INDEPENDENT = {
    f"prompts.{ours}.{block}": f"{theirs}.{block}"
    for ours, theirs in (("text", "text"), ("images", "vision"))
    for block in range(3)
}


class HashedWords:
    """A tokenizer that takes any text: a word's id is a hash of it."""

    padding = 0

    def __init__(self, vocabulary: int = 1000, start_tokens: int = 1) -> None:
        self.vocabulary = vocabulary
        self.start_tokens = start_tokens

    def encode(self, text: str) -> list[int]:
        words = re.findall(r"[^\W_]+|[^\w\s]|_", text.lower())
        ids = [1 + zlib.crc32(word.encode()) % (self.vocabulary - 3) for word in words]
        return [*[self.vocabulary - 2] * self.start_tokens, *ids, self.vocabulary - 1]

    def word(self, token: int) -> str | None:
        return f"word {token}" if 0 < token < self.vocabulary - 2 else None


def tiny_text(*, joint_width: int = 12, seed: int = 0, **changes: Any) -> FrozenText:
    """A random text tower: width 24, three blocks of two heads, at most 20 tokens."""
    arguments = {"width": 24, "depth": 3, "num_heads": 2, "length": 20, "vocabulary": 1000} | changes
    arguments.setdefault("tokenizer", HashedWords(arguments["vocabulary"]))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        text = FrozenText(joint_width=joint_width, **arguments)
        for parameter in text.parameters():  # at their usual size, the embeddings of words would hardly count
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
    return text


def tiny_image_text(
    source: Any = None, *, joint_width: int = 12, seed: int = 0, scale: float = 20.0, **changes: Any
) -> FrozenViT:
    """A random image-text backbone.

    Args:
        source: its image tower, a backbone that gets the text tower in place; None for a random one of
            16 x 16 pixels, width 32, four blocks.
        joint_width: of the joint space.
        seed: of its weights.
        scale: of its logits.
        **changes: of the text tower, see :func:`tiny_text`.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if source is None:
            source = FrozenViT(
                VisionTransformer(
                    img_size=16, patch_size=4, embed_dim=32, depth=4, num_heads=2, num_classes=0
                )
            )
        projection = torch.randn(source.width, joint_width) * source.width**-0.5
    text = tiny_text(joint_width=joint_width, seed=seed, **changes)
    return source.add_text(text, projection=projection, scale=scale)


def learn_text(
    pictures: Tensor, model: TextModel, classes: Sequence[int], *, steps: int = 2, ends: bool = True
) -> None:
    """A few steps on six pictures, in an experience unless the method knows of none."""
    told = model.boundaries != "unused"
    if told:
        model.begin_experience(classes)
    targets = torch.tensor(classes).repeat(6)[:6]
    model.observe(targets)
    optimizer = torch.optim.Adam(model.train().trainable().values(), lr=0.02)
    for _ in range(steps):
        optimizer.zero_grad()
        model.training_loss(pictures, targets).loss.backward()
        optimizer.step()
    if told and ends:
        model.end_experience()


def golden_backbone(golden: Golden) -> FrozenViT:
    """Both towers of ``clip.npz``."""
    vit = VisionTransformer(
        img_size=32,
        patch_size=8,
        embed_dim=32,
        depth=4,
        num_heads=2,
        num_classes=0,
        pre_norm=True,
        norm_layer=partial(nn.LayerNorm, eps=1e-5),  # type: ignore[arg-type]
        act_layer="quick_gelu",
    ).to(golden.dtype)  # before loading: its norms' weights are no float32 numbers
    vit.load_state_dict({key.removeprefix("backbone."): golden[key] for key in golden.keys("backbone.")})
    names = [key for key in golden.keys("text.") if key != "text.ids"]
    tensors = {key.removeprefix("text."): golden[key] for key in names}
    words = WordTokenizer([str(word) for word in golden.arrays["config.words"]])
    vocabulary, width = tensors["token_embedding.weight"].shape
    text = FrozenText(
        width=width,
        depth=3,
        num_heads=2,
        length=len(tensors["positional_embedding"]),
        vocabulary=vocabulary,
        joint_width=tensors["text_projection"].shape[1],
        tokenizer=words,
        quick_gelu=True,
    )
    text.to(golden.dtype).load_state_dict(text_weights(tensors))
    backbone = FrozenViT(vit).add_text(
        text, projection=golden["image_projection"], scale=math.exp(float(golden["logit_scale"]))
    )
    return backbone.to(golden.dtype).to(devices.DEVICE)


def golden_names(golden: Golden) -> list[str]:
    """The names of its classes, as they are shown."""
    return [str(name).replace("_", " ") for name in golden.arrays["config.names"]]


def golden_learner(
    golden: Golden, method: Callable[..., Learner], values: Mapping[str, Tensor], **arguments: Any
) -> Learner:
    """A model whose six classes are seen and whose experience is that of classes 2 and 3, its rows live."""
    arguments = {"rows": "live", "mask": "experience"} | arguments
    model = method(golden_backbone(golden), **arguments).to(devices.DEVICE, golden.dtype)
    model.name_classes(dict(enumerate(golden_names(golden))))
    model.begin_experience(range(6))
    model.observe(torch.arange(6))
    model.begin_experience([2, 3])
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, value in values.items():
            parameters[name].copy_(value)
    return model


def check_golden_step(golden: Golden, model: TextModel, prefix: str, names: Mapping[str, str]) -> None:
    """The loss over classes 2 and 3, and in float64 its gradients.

    Args:
        golden: the file.
        model: see :func:`golden_learner`.
        prefix: of its keys.
        names: of gradients in the file, by ours.
    """
    total = model.train().training_loss(golden["images"], golden["labels"]).loss
    golden.check(total, f"{prefix}.loss")
    if golden.dtype == torch.float64:
        total.backward()
        for name, key in names.items():
            gradient = dict(model.named_parameters())[name].grad
            assert gradient is not None, name
            golden.check(gradient.reshape(golden[f"{prefix}.grad.{key}"].shape), f"{prefix}.grad.{key}")


def golden_texts(golden: Golden, source: str, folder: Path) -> str:
    """The texts of a teacher of the golden file as a user gives them: templates, or sentences by name."""
    words = ["", *map(str, golden.arrays["config.words"])]
    if source == "ensemble":  # of the class "nine", one word
        texts = [
            " ".join("{}" if words[i] == "nine" else words[i] for i in ids[5].tolist() if 0 < i < len(words))
            for ids in golden["ensemble.ids"]
        ]
        content: Any = texts
    else:
        texts = [" ".join(words[i] for i in ids.tolist() if 0 < i < len(words)) for ids in golden["cupl.ids"]]
        ends = golden["cupl.counts"].cumsum(0).tolist()
        content = {
            name: texts[end - int(count) : end]
            for name, count, end in zip(golden_names(golden), golden["cupl.counts"], ends, strict=True)
        }
    path = folder / f"{source}.json"
    path.write_text(json.dumps(content))
    return str(path)
