"""A workbench for trying a method in seconds: tiny vision transformers, a separable toy stream, short runs.

:mod:`clprompt.testing` checks methods on it; it is useful while writing one, too.
"""

from __future__ import annotations

import copy
import io
import itertools
import random
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.optim import Optimizer

from clprompt.backbones.sources import embedded_text
from clprompt.backbones.vit import FrozenViT
from clprompt.prompting.build import construct
from clprompt.prompting.model import PromptModel
from clprompt.prompting.plugin import Plugin, Samples
from clprompt.seeding import generator, preserved_rng, rng_state
from clprompt.targets import visible
from clprompt.testing.asserts import chunked, same_bits, steady
from clprompt.training import optim
from clprompt.training.engine import Engine
from clprompt.training.evaluation import Evaluator
from clprompt.training.settings import Online, Training
from clprompt.training.steps import receive, train_step

#: Class ids by experience: not in order, with gaps (2, 3, 6, 8 and 9 never occur).
CLASSES = ((4, 1), (0, 7), (10, 5))
SIDE = 16

#: What the classes are called, in words that the text tower of ``clip_letters`` knows.
_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
NAMES = dict(
    enumerate([*(f"digit {word}" for word in _NUMBERS), *(f"small letter {c}" for c in "kmrtwxaehn")])
)

#: What timm builds for each kind of backbone that a method is tried on.
KINDS: dict[str, Callable[..., nn.Module]] = {
    "class token": VisionTransformer,
    "registers and layer scale": partial(VisionTransformer, reg_tokens=2, init_values=0.5),
    "average pooling and q/k norm": partial(
        VisionTransformer, class_token=False, global_pool="avg", qk_norm=True
    ),
    "rotary positions and inner norms": partial(
        Eva,
        global_pool="token",
        num_reg_tokens=1,
        use_abs_pos_emb=False,
        use_rot_pos_emb=True,
        rope_type="dinov3",
        rope_rotate_half=True,
        qkv_fused=False,
        swiglu_mlp=True,
        scale_mlp=True,
        scale_attn_inner=True,
    ),
}


def tiny_vit(kind: str = "class token", *, depth: int = 5, width: int = 32) -> FrozenViT:
    """A vision transformer of 16 patches with random weights, large enough that features tell images apart.

    Args:
        kind: a key of ``KINDS``.
        depth: blocks; five by default, so that the layer lists of published methods exist.
        width: of the residual stream.
    """
    with preserved_rng(0):
        vit = KINDS[kind](
            img_size=SIDE,
            patch_size=4,
            embed_dim=width,
            depth=depth,
            num_heads=2,
            mlp_ratio=2,
            num_classes=0,
        )
        for name, parameter in vit.named_parameters():
            if parameter.ndim == 2:  # timm's initial 0.02 would drown the image in the position embedding
                nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
            elif name.endswith("bias"):
                nn.init.normal_(parameter, std=0.05)
    return FrozenViT(vit)


def tiny_backbone(model_class: type[PromptModel], kind: str = "class token") -> FrozenViT:
    """A tiny backbone that a method can do with: where it needs text, with a text tower that knows ``NAMES``.

    The text tower is that of the embedded ``clip_letters``. Image features of the toy images are projected,
    by least squares, to the texts of their names.
    """
    backbone = tiny_vit(kind)
    if not model_class.needs_text:
        return backbone
    embedded = embedded_text("clip_letters")
    assert embedded is not None
    text, _, scale = embedded
    toys = ToyImages(17)
    classes, of_class = np.unique(toys.targets, return_inverse=True)
    texts = text.features([f"a photo of a {NAMES[int(c)]}." for c in classes])[torch.from_numpy(of_class)]
    texts = F.normalize(texts, dim=1).double()
    features = F.normalize(backbone.features(toys.images), dim=1).double()
    ridge = 0.1 * torch.eye(backbone.width, dtype=torch.float64)
    projection = torch.linalg.solve(features.T @ features + ridge, features.T @ texts)
    return backbone.add_text(text, projection=projection.float(), scale=scale)


def tiny_model(
    model_class: type[PromptModel],
    backbone: FrozenViT | None = None,
    *,
    seed: int = 0,
    plugins: Sequence[Plugin] = (),
    **arguments: Any,
) -> PromptModel:
    """A model of a method over a tiny backbone, its classes named where it reads names.

    Args:
        model_class: the method.
        backbone: None for :func:`tiny_backbone`.
        seed: of its initial values.
        plugins: it gets copies of them.
        **arguments: its own, and short forms of plug-ins.
    """
    if backbone is None:
        backbone = tiny_backbone(model_class)
    model = construct(model_class, backbone, seed=seed, plugins=plugins, **arguments)
    model.name_classes(NAMES)
    return model


class ToyImages:
    """One pattern per class and noise around it: items are (image [3, 16, 16], class id).

    Args:
        per_class: samples per class.
        part: "train" and "test" draw different noise around the same patterns.
        device: where ``images`` lies; items come from memory of the host, as those of any loader.
    """

    random_transform = False

    def __init__(self, per_class: int, part: str = "train", device: str = "cpu") -> None:
        ids = [c for group in CLASSES for c in group]
        self.targets = np.repeat(np.array(ids, dtype=np.int64), per_class)
        shape = (3, SIDE, SIDE)
        patterns = {c: torch.randn(shape, generator=generator(0, "pattern", c)) for c in ids}
        noise = torch.randn(len(self.targets), *shape, generator=generator(0, "noise", part))
        self._items = torch.stack([patterns[int(c)] for c in self.targets]) + 0.5 * noise
        self.images = self._items.to(device)

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self._items[index], int(self.targets[index])

    def groups(self) -> list[np.ndarray]:
        """Sample indices of each experience."""
        return [np.flatnonzero(np.isin(self.targets, group)) for group in CLASSES]


class Log:
    """A listener that keeps every record, and asks a model for nothing beside them."""

    diagnostics: Callable[[int, Mapping[str, Any]], None] | None = None

    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []

    def record(self, record: Any, /) -> None:
        self.records.append(dict(record))

    def speed(self, step: int, images_per_second: float, /) -> None: ...


class CuriousLog(Log):
    """A listener that has the model draw what it says of itself, as any run folder does, and drops it.

    Attributes:
        draws: whether it does now; drawing takes longer than a short experience.
    """

    draws = True

    def diagnostics(self, step: int, values: Mapping[str, Any], /) -> None:
        for value in values.values():
            if self.draws and callable(value):
                value()


class Point(NamedTuple):
    """Where a run can be entered again.

    Attributes:
        batch: how many batches were trained on.
        records: how many records were made.
        state: the engine's, through a file.
    """

    batch: int
    records: int
    state: dict[str, Any]


def through_file(values: Mapping[str, Any]) -> dict[str, Any]:
    """Tensors and plain values as a file gives them back, read without pickled code."""
    buffer = io.BytesIO()
    torch.save(dict(values), buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


class Workbench:
    """A method on the toy stream; what takes time is done once.

    A method that can do without boundaries is tried without them: one pass over the stream, several
    iterations per batch, no experience begun or ended.

    Args:
        model_class: the method.
        plugins: every model gets copies of them.
        device: where models and the batches made for them lie.
        **arguments: its own, and short forms of plug-ins; every check constructs it with them.
    """

    def __init__(
        self,
        model_class: type[PromptModel],
        *,
        plugins: Sequence[Plugin] = (),
        device: str = "cpu",
        **arguments: Any,
    ) -> None:
        self.model_class = model_class
        self.plugins = plugins
        self.device = device
        self.arguments = arguments
        self.train, self.test = self.images(17), self.images(6, "test")  # 17: the last batch is a small one
        self.few = self.images(9)  # the same for what needs to train, but not to learn
        self.probes = self.test.images[::2]  # of every class, for what goes through a model one by one

    @property
    def kinds(self) -> list[type]:
        """The classes that are tried: the method's and those of the plug-ins."""
        return [self.model_class, *map(type, self.plugins)]

    def images(self, per_class: int, part: str = "train") -> Any:
        """The toy data."""
        return ToyImages(per_class, part, self.device)

    def evaluator(self) -> Evaluator:
        """An evaluator of the toy stream's test images."""
        return Evaluator(self.test, self.test.targets, self.test.groups(), batch_size=16)

    @cached_property
    def backbones(self) -> dict[str, FrozenViT]:
        """One backbone of each kind."""
        return {kind: tiny_backbone(self.model_class, kind).to(self.device) for kind in KINDS}

    @cached_property
    def online(self) -> bool:
        """Whether the method is tried without boundaries."""
        return self.make().boundaries != "required"

    @cached_property
    def revisits(self) -> str:
        """What the method declares under this name."""
        return self.make().revisits

    def make(self, kind: str = "class token", seed: int = 0) -> PromptModel:
        """A new model."""
        backbone = self.backbones[kind]
        model = tiny_model(self.model_class, backbone, seed=seed, plugins=self.plugins, **self.arguments)
        return model if self.device == "cpu" else model.to(self.device)  # a walk over the whole backbone

    def training(self, epochs: int = 1) -> Training:
        """The training section of every run here."""
        return Training(train_mb_size=8, train_epochs=epochs, lr=0.02, eval_mb_size=16, log_every=1)

    def engine(
        self,
        model: PromptModel,
        *,
        epochs: int = 1,
        experiences: int = len(CLASSES),
        train: Any = None,
        online: bool | None = None,
        precision: str = "float32",
        log: Log | None = None,
        **arguments: Any,
    ) -> Engine:
        """An engine over the toy stream's first experiences; online, ``epochs`` are iterations per batch."""
        train = train or self.train
        without = self.online if online is None else online
        return Engine(
            model,
            train,
            train.groups()[:experiences],
            CLASSES[:experiences],
            evaluator=self.evaluator(),
            training=self.training(1 if without else epochs),
            online=Online(iterations=epochs) if without else None,
            precision=precision,
            listeners=[] if log is None else [log],
            **arguments,
        )

    def run(self, model: PromptModel, **arguments: Any) -> list[dict[str, Any]]:
        """Train a model as :meth:`engine` says; returns the records."""
        log = Log()
        self.engine(model, log=log, **arguments).run()
        return log.records

    @cached_property
    def short(self) -> tuple[PromptModel, list[dict[str, Any]]]:
        """A model after two epochs on a few images of two experiences, not to be trained on, and its records.

        On its way ``points`` are taken down.
        """
        model, log, done = self.make(), Log(), itertools.count(1)
        once = sum(-(-len(group) // 8) for group in self.few.groups()[:2])
        batches = once if self.online else 2 * once
        stops = (2, batches // 2, batches - 2)

        def stop() -> None:
            batch = next(done)
            if batch in stops:
                self.points.append(Point(batch, len(log.records), through_file(engine.state())))

        engine = self.engine(model, epochs=2, experiences=2, train=self.few, log=log, stop=stop)
        engine.run()
        return model, log.records

    @cached_property
    def points(self) -> list[Point]:
        """Where the run that ``short`` made can be entered again, three of them."""
        return []

    @cached_property
    def again(self) -> tuple[PromptModel, list[dict[str, Any]], list[str]]:
        """What ``short`` gave, under other global random states, and the names of those that it changed."""
        with preserved_rng(1):
            model, log = self.make(), Log()
            engine = self.engine(model, epochs=2, experiences=2, train=self.few, log=log)
            random.random(), np.random.rand(), torch.rand(1)  # noqa: NPY002
            before = rng_state()
            engine.run()
            after = rng_state()
        return model, log.records, [name for name in before if not same_bits(before[name], after[name])]

    @cached_property
    def stages(self) -> list[PromptModel]:
        """The model after each experience of the whole stream; take :meth:`copy` to go on with one."""
        model = self.make()
        # without boundaries all experiences are forgotten alike, which takes more to learn against
        engine = self.engine(model, epochs=5 if self.online else 3, log=self.log)
        stages = []
        for number in range(len(CLASSES)):
            self.log.draws = number == len(CLASSES) - 1
            engine.run_experience()
            stages.append(_twin(model).eval())
        return stages

    @cached_property
    def log(self) -> CuriousLog:
        """The records of the run that ``stages`` made, in whose last experience the model draws."""
        return CuriousLog()

    def copy(self, stage: int = -1) -> PromptModel:
        """A model of one's own as it was after an experience."""
        return _twin(self.stages[stage])

    @cached_property
    def alone(self) -> tuple[Tensor, Tensor]:
        """Logits of ``probes`` one by one after the stream [B, C], and which of them are steady [B]."""
        model = self.copy()
        logits = chunked(model, self.probes, 1)
        return logits, steady(model, self.probes, logits)

    def arrived(self, parts: Sequence[Any], experience: int) -> list[Any]:
        """What an experience gives to training: its part, or all so far for a model that revisits them."""
        first = experience if self.revisits == "never" else 0
        return [item for part in parts[first : experience + 1] for item in part]

    def seen(self, stage: int) -> list[int]:
        """The classes that the model has seen after an experience."""
        if self.revisits == "last" and stage < len(CLASSES) - 1:
            return []
        return [c for group in CLASSES[: stage + 1] for c in group]

    def batch(self, experience: int, size: int = 8) -> tuple[Tensor, Tensor]:
        """Training samples of an experience, classes mixed: [B, 3, 16, 16] and [B]."""
        indices = np.array(self.arrived(self.train.groups(), experience))
        indices = indices[np.linspace(0, len(indices) - 1, size).astype(int)]
        return self.train.images[indices], torch.from_numpy(self.train.targets[indices]).to(self.device)

    def samples(self, experience: int) -> Samples:
        """Streams what an experience trains on, with visible labels."""
        indices = np.array(self.arrived(self.train.groups(), experience))
        classes = self.arrived(CLASSES, experience)
        targets = visible(torch.as_tensor(self.train.targets[indices]).to(self.device), classes)
        return lambda: zip(self.train.images[indices].split(16), targets.split(16), strict=True)

    def begun(self, steps: int = 0, experience: int = 1) -> tuple[PromptModel, Optimizer | None]:
        """A model in training mode inside an experience, after some steps there, and its optimizer."""
        model = self.copy(experience - 1) if experience else self.make()
        model.train()
        if not self.online:
            model.begin_experience(self.arrived(CLASSES, experience), self.samples(experience))
        optimizer = optim.build(model, self.training())
        inputs, targets = self.batch(experience)
        for _ in range(steps):
            receive(model, optimizer, targets)
            train_step(model, optimizer, inputs, targets)
        return model, optimizer


def _twin(model: PromptModel) -> PromptModel:
    """A copy of a model over the same frozen weights, which are most of it."""
    return copy.deepcopy(model, {id(part): part for part in model.backbone.children()})
