"""Checks of what a prediction depends on."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from clprompt.errors import place
from clprompt.prompting.model import PromptModel
from clprompt.seeding import generator
from clprompt.testing.asserts import (
    bits,
    changed,
    chunked,
    finite_losses,
    near,
    require,
    same_bits,
    scale,
    seen_columns,
)
from clprompt.testing.bench import CLASSES, Workbench
from clprompt.training import optim
from clprompt.training.precision import autocast
from clprompt.training.steps import receive, train_step

# ------------------------------------------------------------------------------------------------ prediction


def check_batch_companions(bench: Workbench) -> None:
    """In eval mode a sample's logits depend neither on its companions in the batch nor on its place in it."""
    model, images = bench.copy(), bench.probes
    alone, kept = bench.alone
    order = torch.randperm(len(images), generator=generator(0, "companions"))
    for size in (8, 7):  # published mix-ups of the batch axis show on even or on odd batches only
        mixed = torch.empty_like(alone)
        mixed[order] = chunked(model, images[order], size)
        near(mixed, alone, kept, f"alone and in a mixed batch of {size}")
    with torch.no_grad():
        repeated = model(images[:1].expand(5, -1, -1, -1))
    near(repeated, alone[:1].expand(5, -1), kept[:1].expand(5), "alone and beside copies of itself")


def check_batch_size(bench: Workbench) -> None:
    """Predictions do not depend on the evaluation batch size."""
    model, images = bench.copy(), bench.probes
    alone, kept = bench.alone
    for size in (2, 5, 16, len(images)):
        near(chunked(model, images, size), alone, kept, f"in evaluation batches of 1 and of {size}")


def check_unseen_classes(bench: Workbench) -> None:
    """Exactly the classes seen so far have finite logits, in evaluation and training, whatever their ids."""
    with torch.no_grad():
        seen_columns(bench.make().eval()(bench.test.images), [], "before any class was observed")
    for stage in range(len(CLASSES)):
        with torch.no_grad():
            seen_columns(
                bench.copy(stage)(bench.test.images), bench.seen(stage), f"after experience {stage + 1}"
            )
    model, optimizer = bench.begun(1)
    images, targets = bench.batch(1)
    receive(model, optimizer, targets)
    step = model.training_loss(images, targets)
    seen_columns(step.logits, [c for group in CLASSES[:2] for c in group], "in training")
    require(step.loss.ndim == 0, f"the loss must be a scalar, got {list(step.loss.shape)}")
    attached = [name for name, term in step.terms.items() if term.requires_grad]
    require(not attached, f"the loss terms {attached} keep the graph alive; detach them")


def check_forward_changes_nothing(bench: Workbench) -> None:
    """forward leaves the state alone, and training does not notice an evaluation between two steps."""
    (model, optimizer), (other, other_optimizer) = bench.begun(1), bench.begun(1)
    images, targets = bench.batch(1)
    before = bits(model)
    for mode in (False, True):
        with torch.no_grad():
            model.train(mode)(bench.test.images[:5])
        moved = changed(before, bits(model))
        require(
            not moved,
            f"forward in {'training' if mode else 'eval'} mode changed {moved[:3]}; "
            "what a method counts or keeps of a batch belongs into received or count_step",
        )
    for learner, its in ((model, optimizer), (other, other_optimizer)):
        receive(learner, its, targets)
        if learner is model:
            with torch.no_grad():
                learner.eval()(bench.test.images[:5])
        train_step(learner.train(), its, images, targets)
    moved = changed(bits(other), bits(model))
    require(
        not moved, f"an evaluation between observe and training_loss changed what was learned: {moved[:3]}"
    )


def check_cache(bench: Workbench) -> None:
    """Logits are the same bits without a cache, with an empty one, and with one filled earlier.

    So is the loss of a later step on the same images.
    """
    images = bench.test.images[:6]
    kept: dict[str, Tensor] = {}
    for stage in range(len(CLASSES)):
        model = bench.copy(stage)
        with torch.no_grad():
            plain = model(images)
            for text, cache in (("an empty cache", {}), ("a cache filled earlier", kept)):
                same = same_bits(model(images, cache), plain)
                require(same, f"{text} changes the logits after experience {stage + 1}")
    wrong = [key for key, value in kept.items() if value.shape[:1] != images.shape[:1]]
    require(not wrong, f"cached values must be per sample, [B, ...]; {wrong} are not")
    model, optimizer = bench.begun(experience=0)
    images, targets = bench.batch(0)
    kept = {}
    for _ in range(2):
        receive(model, optimizer, targets)
        train_step(model, optimizer, images, targets, cached=kept)
    steps = [copy.deepcopy(model).training_loss(images, targets, cached=cache) for cache in (None, kept)]
    require(same_bits(steps[0].loss, steps[1].loss), "what a step keeps changes the loss of a later one")


class _AsksNoTensor(TorchDispatchMode):
    """Raises where Python asks a tensor for its value, as ``int``, ``bool``, ``float`` and ``item`` do."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            raise _AskedForItsValue
        return func(*args, **(kwargs or {}))


class _AskedForItsValue(Exception):
    pass


@contextmanager
def _as_if_compiled() -> Iterator[None]:
    """Code may ask whether it is being compiled, and then leave out what waits for a value."""
    asked = torch.compiler.is_compiling
    torch.compiler.is_compiling = lambda: True
    try:
        yield
    finally:
        torch.compiler.is_compiling = asked


def check_exportable(bench: Workbench) -> None:
    """What predicts asks no tensor for its value in Python, so that it can be exported and compiled."""
    model, images = bench.copy(), bench.probes[:3]
    with torch.no_grad():
        model(images)  # what is asked of the state once and kept is no matter
        try:
            with _as_if_compiled(), _AsksNoTensor():
                model(images)
        except _AskedForItsValue as error:
            where = place(error, *bench.kinds) or place(error, PromptModel)
            raise AssertionError(
                f"a prediction asks a tensor for its value ({where}) and can be neither exported nor "
                "compiled in one piece; the index of the experience is self.experience_index"
            ) from None


def check_savings(bench: Workbench) -> None:
    """What the backbone saves (a shared start, a trimmed last block) changes no prediction."""
    model, images = bench.copy(), bench.probes
    alone, kept = bench.alone
    for switch in ("share_prefix", "trim_last_block"):
        setattr(model.backbone, switch, False)
        near(chunked(model, images, len(images)), alone, kept, f"with backbone.{switch} on and off")


def check_autocast(bench: Workbench) -> None:
    """bf16 autocast trains with finite losses and predicts the same where the margin is not tiny."""
    records = bench.run(bench.make(), experiences=2, train=bench.few, precision="bf16")
    finite_losses(records, " under bf16 autocast")
    # training images too: among few predictions, one that flips is more than 3 %
    model, images = bench.copy(), torch.cat([bench.test.images, bench.train.images])
    with torch.no_grad():
        full = model(images)
        with autocast(images.device, "bf16"):
            half = model(images)
    seen_columns(half, bench.seen(len(CLASSES) - 1), "under bf16 autocast")
    best = full.topk(2, dim=1).values  # (B, 2)
    clear = best[:, 0] - best[:, 1] > 0.02 * scale(full)
    require(bool(clear.any()), "no prediction has a margin of 2 % of the logits' range")
    equal = float((full.argmax(1) == half.argmax(1))[clear].float().mean())
    require(
        equal >= 0.97,
        f"bf16 autocast keeps {equal:.1%} of {int(clear.sum())} clear predictions; 97 % expected",
    )


def check_number_formats(bench: Workbench) -> None:
    """Cast to 16 or 64 bits, before or inside an experience, it trains and predicts; additions follow."""
    for dtype, inside in ((torch.float16, False), (torch.bfloat16, True), (torch.float64, False)):
        model = copy.deepcopy(bench.make())  # with a backbone of its own, which is cast, too
        if not inside:
            model.to(dtype)
        for experience in range(2):
            images, targets = bench.batch(experience, 4)
            if not bench.online:
                classes = bench.arrived(CLASSES, experience)
                model.begin_experience(classes, partial(_placed, bench, experience, model))
            if inside and not experience:
                model.to(dtype)
            optimizer = optim.build(model.train(), bench.training())
            receive(model, optimizer, targets)
            loss = train_step(model, optimizer, model.placed(images), targets).loss.detach()
            when = "inside" if inside else "before"
            where = f"in experience {experience + 1} of {dtype}, cast {when} the first"
            require(bool(loss.isfinite()), f"the loss is {float(loss)} {where}")
            other = [f"{name} ({p.dtype})" for name, p in model.named_parameters() if p.dtype != dtype]
            require(not other, f"parameters of another number format {where}: {other[:3]}")
            with torch.no_grad():
                logits = model.eval()(model.placed(images))
            seen_columns(logits, model.predictable().nonzero().flatten().tolist(), where)


def _placed(bench: Workbench, experience: int, model: PromptModel) -> Iterator[tuple[Tensor, Tensor]]:
    first = itertools.islice(bench.samples(experience)(), 1)  # enough for whoever looks at them
    return ((model.placed(images), targets) for images, targets in first)
