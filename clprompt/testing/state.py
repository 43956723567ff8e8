"""The checks of :mod:`clprompt.testing` on state: growth, saving, resuming, determinism, rehearsal."""

from __future__ import annotations

import contextlib
import copy
import itertools
import random
import signal
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from clprompt.errors import Interrupted
from clprompt.prompting.model import PromptModel
from clprompt.prompting.plugin import Plugin
from clprompt.prompting.step import Step
from clprompt.seeding import preserved_rng, rng_state
from clprompt.testing.asserts import bits, changed, chunked, near, refused, require, same_bits, steady
from clprompt.testing.bench import CLASSES, CuriousLog, Log, Workbench, through_file
from clprompt.training import optim
from clprompt.training.steps import receive


def check_growth(bench: Workbench) -> None:
    """A new class leaves old ones' logits and moments as they are; observe tells that parameters grew."""
    model, optimizer = bench.begun(2)
    images = bench.test.images[:8]
    alone = chunked(model.eval(), images, 1)
    kept = steady(model, images, alone)
    moments = None if optimizer is None else copy.deepcopy(_moments(optimizer, model))
    parameters = dict(model.named_parameters())
    far = torch.tensor([model.num_classes + 3], device=model.device)
    grew = model.observe(far)
    replaced = [name for name, p in model.named_parameters() if p is not parameters.get(name)]
    require(grew or not replaced, f"observe returned False, but made new parameters: {replaced}")
    require(not model.observe(far), "observe returned True for a class that it knew")
    columns = alone.shape[1]
    near(chunked(model, images, 1)[:, :columns], alone, kept, "before and after a new class was observed")
    if optimizer is None or moments is None:
        return
    optim.sync(optimizer, model)
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    lost = [name for name, p in model.trainable().items() if id(p) not in held]
    require(not lost, f"parameters that are not in the optimizer after growth: {lost[:3]}")
    after = _moments(optimizer, model)
    require(bool(moments), "two steps left no moments in the optimizer")
    for name, values in moments.items():
        require(name in after, f"the moments of {name} were lost in growth")
        for key, old in values.items():
            new = after[name][key]
            if isinstance(old, Tensor) and old.ndim:
                new = new[tuple(slice(0, size) for size in old.shape)]
            require(same_bits(old, new), f"{key} of {name} changed in growth")


def _moments(optimizer: Optimizer, model: PromptModel) -> dict[str, dict[str, Any]]:
    return {name: optimizer.state[p] for name, p in model.named_parameters() if p in optimizer.state}


def check_experiences(bench: Workbench) -> None:
    """begin_experience for the open experience and end_experience without one do nothing."""
    model = bench.make()
    if model.boundaries == "unused":
        return
    refused(lambda: model.begin_experience([]), "an experience without classes")
    if bench.online:
        images, targets = bench.batch(0)
        model.begin_experience(CLASSES[0])
        model.observe(targets)
        model.train().training_loss(images, targets)
    else:
        model, _ = bench.begun(2)
    group = model.current.nonzero().flatten().tolist()
    before, parameters = bits(model), model.trainable()
    model.begin_experience(group)
    moved = changed(before, bits(model))
    require(not moved, f"a second begin_experience for the same classes changed {moved[:3]}")
    again = model.trainable()
    other = [name for name in {*parameters, *again} if parameters.get(name) is not again.get(name)]
    require(not other, f"a second begin_experience for the same classes made new parameters: {other[:3]}")
    model.end_experience()
    before = bits(model)
    model.end_experience()
    moved = changed(before, bits(model))
    require(not moved, f"a second end_experience changed {moved[:3]}")


def check_counting(bench: Workbench) -> None:
    """training_loss trains no parameter itself and counts one step; backward and optimizer count none."""
    model, optimizer = bench.begun(1)
    images, targets = bench.batch(1)
    receive(model, optimizer, targets)
    names = dict(model.named_parameters())
    states = [bits(model)]
    for _ in range(2):
        step = model.training_loss(images, targets)
        states.append(bits(model))
    moved = [name for name in changed(states[0], states[2]) if name in names]
    require(not moved, f"training_loss itself changed the parameters {moved[:3]}")
    if step.loss.requires_grad:
        step.loss.backward()
        moved = changed(states[2], bits(model))
        require(not moved, f"backward changed {moved[:3]}")
    for name, value in states[0].items():
        if not value.is_floating_point() and value.dtype != torch.bool:
            zero, one, two = (int(state[name].sum()) for state in states)
            # a method may count a received batch once, however many iterations are made over it
            require(
                two - one in (0, one - zero),
                f"{name} grew by {one - zero} in the first step on a batch and by {two - one} in the second",
            )


# ------------------------------------------------------------------------------------------------ saving


def check_save_and_load(bench: Workbench) -> None:
    """A saved state gives the same bits, logits and trainable parameters in a new or smaller model."""
    images = bench.test.images[:9]
    for where, model in (
        ("after an experience", bench.copy(0)),
        ("within an experience", bench.begun(2)[0]),
        ("after the stream", bench.copy()),
    ):
        state = through_file(model.method_state())
        strange = [name for name, value in state.items() if not isinstance(value, Tensor)]
        require(not strange, f"the state must hold tensors only; {strange[:3]} are not")
        with torch.no_grad():
            logits = model.eval()(images)
        for target, other in (("a new model", bench.make()), ("a smaller model", bench.copy(0))):
            other.load_state_dict(state)
            moved = changed(state, bits(other))
            require(not moved, f"{target} that loaded a state saved {where} differs in {moved[:3]}")
            frozen = sorted(set(other.trainable()) ^ set(model.trainable()))
            require(
                not frozen,
                f"{target} that loaded a state saved {where}: requires_grad differs for {frozen[:3]}",
            )
            with torch.no_grad():
                same = same_bits(other.eval()(images), logits)
            require(
                same,
                f"{target} that loaded a state saved {where} gives other logits"
                + ("" if same else _other_numbers(model, other)),
            )


def _other_numbers(model: PromptModel, loaded: PromptModel) -> str:
    """Attributes that a state does not hold and that may be why a loaded model is another."""
    ours, its = vars(model), vars(loaded)
    moved = [n for n, value in ours.items() if isinstance(value, int | float) and its.get(n) != value]
    other = [f"self.{name} is {its.get(name)}, not {ours[name]}" for name in moved if name != "_received"]
    return f"; {', '.join(other[:3])}: what the logits hang on is a buffer" if other else ""


def check_resume(bench: Workbench) -> None:
    """A run that a new process goes on with from its saved state, time and again, ends with the same bits.

    Each of these processes enters within an epoch, and is stopped where the next one enters.
    """
    whole, records = bench.short
    require(len(bench.points) == 3, "the run did not come by the points where its state is saved")
    for point, until in zip(bench.points, [*bench.points[1:], None], strict=True):
        resumed, log, left = bench.make(), Log(), itertools.count(point.batch + 1)
        last = None if until is None else until.batch
        engine = bench.engine(
            resumed,
            epochs=2,
            experiences=2,
            train=bench.few,
            log=log,
            stop=lambda left=left, last=last: signal.SIGTERM if next(left) == last else None,
        )
        engine.load_state(point.state)
        where = f"a run stopped after batch {point.batch} and resumed"
        if until is None:
            engine.run()
            moved = changed(bits(whole), bits(resumed))
            require(not moved, f"{where} differs in {moved[:3]}")
        else:
            with contextlib.suppress(Interrupted):
                engine.run()
            state = through_file(engine.state())
            moved = changed(until.state["model"], state["model"])
            moved += [key for key, value in until.state.items() if not same_bits(state[key], value)]
            require(not moved, f"{where} differs in {moved[:3]} after batch {until.batch}")
        made = records[point.records : None if until is None else until.records]
        require(log.records == made, f"{where} leaves other records")


# -------------------------------------------------------------------------------------------- random numbers


def check_determinism(bench: Workbench) -> None:
    """Two runs with the same seed give the same bits and losses, whatever the global random states."""
    first, records = bench.short
    second, again, _ = bench.again
    moved = changed(bits(first), bits(second))
    require(
        not moved,
        f"two runs with the same seed differ in {moved[:3]}; draw from seeding.generator(seed, ...), "
        "not from the global random states, as torch's dropout does",
    )
    require(records == again, "two runs with the same seed differ in their losses or accuracies")


def check_random_states(bench: Workbench) -> None:
    """The global random states of torch, numpy and random are left as they were found."""
    *_, moved = bench.again
    require(not moved, f"training changed the global random state of {', '.join(moved)}")
    steps: list[tuple[str, Callable[[], Any]]] = [
        ("the constructor", bench.make),
        ("prediction", lambda: chunked(bench.copy(), bench.test.images[:4], 4)),
        ("loading", lambda: bench.make().load_state_dict(bench.copy().method_state())),
        ("diagnostics", lambda: CuriousLog().diagnostics(1, bench.copy().diagnostics())),
    ]
    with preserved_rng(5):
        for what, step in steps:
            random.random(), np.random.rand(), torch.rand(1)  # noqa: NPY002
            before = rng_state()
            step()
            after = rng_state()
            moved = [name for name in before if not same_bits(before[name], after[name])]
            require(not moved, f"{what} changed the global random state of {', '.join(moved)}")


# ------------------------------------------------------------------------------------------------ rehearsal


def check_rehearsal(bench: Workbench) -> None:
    """What is stored does not grow with the number of samples and holds no image and no feature of one."""
    if not bench.make().rehearsal_free:
        return  # declared, and said so in its docstring
    found, models = [], []
    for per_class in (4, 8):
        train, features = bench.images(per_class), list[Tensor]()
        model = bench.make().plug(_Watch(features.append))
        sizes: list[tuple[int, int]] = []
        bench.engine(
            model, train=train, experiences=2, stop=lambda m=model, s=sizes: s.append(_sizes(m))
        ).run()
        found.append([max(column) for column in zip(*sizes, strict=True)])
        models.append((model, train, features))
    (state, beside), (state_twice, beside_twice) = found
    grew = "{} numbers when it has seen 8 samples of an experience and {} when 16"
    bounds = {model.state_bound(experiences=2) for model, *_ in models}
    keeps_features = bounds != {None}  # and says so by max_state_size
    if not keeps_features:
        require(state == state_twice, f"the state holds {grew.format(state, state_twice)}")
    else:  # what is stored follows from the data, up to a bound that does not
        require(len(bounds) == 1, f"max_state_size gives {bounds} for the same classes and experiences")
        bound = bounds.pop() or 0
        require(
            max(state, state_twice) <= bound,
            f"the state is to hold at most {bound} numbers: {state}, {state_twice}",
        )
    require(beside == beside_twice, f"beside its state the model keeps {grew.format(beside, beside_twice)}")
    for model, train, features in models:
        _no_copies(model, train, torch.cat(features)[:0] if keeps_features else torch.cat(features))


class _Watch(Plugin):
    """Hands on the features of each step as they are at that time, and keeps none."""

    name = "watch_features"

    def __init__(self, tell: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.tell = tell

    def terms(self, step: Step, collected: Sequence[Any]) -> Mapping[str, Tensor]:
        self.tell(step.features)
        return {}


def _sizes(model: PromptModel) -> tuple[int, int]:
    """How many numbers the model keeps, in its state and beside it."""
    state = model.state_size()
    parts = {name: part for name, part in model.named_children() if name != "backbone"}
    return state, _numbers({**vars(model), "_modules": parts}, set()) - state


def _numbers(value: Any, known: set[int]) -> int:
    """How many numbers are reachable from a value through containers and modules, the backbone left out."""
    if isinstance(value, int | float):  # before identities are compared: equal small numbers are one object
        return 1
    if id(value) in known or isinstance(value, str | bytes | type):
        return 0
    known.add(id(value))
    if isinstance(value, Tensor):
        return value.numel() + _numbers(vars(value), known)
    if isinstance(value, np.ndarray):
        return value.size
    if isinstance(value, nn.Module):
        return 0 if type(value).__name__ == "FrozenViT" else _numbers(vars(value), known)
    if isinstance(value, Mapping):
        return sum(_numbers(item, known) for item in value.values())
    if isinstance(value, Iterable) and hasattr(value, "__len__"):
        return sum(_numbers(item, known) for item in value)
    return 0


def _no_copies(model: PromptModel, train: Any, prompted: Tensor) -> None:
    indices = np.concatenate(train.groups()[:2])
    images = train.images[indices]
    stored = {
        "an image": (images.flatten(1), 0.9999),
        "the features of an image": (model.backbone.features(images), 0.9999),
        # those of images of a class may lie so close together that a mean is near to one
        "the features of a training image": (prompted, 1 - 1e-7),
    }
    for what, (vectors, most) in stored.items():
        if not len(vectors):
            continue
        vectors = F.normalize(vectors.double(), dim=1)  # (n, width)
        for name, value in model.method_state().items():
            if value.numel() and value.numel() % vectors.shape[1] == 0:
                rows = F.normalize(value.detach().double().reshape(-1, vectors.shape[1]), dim=1)
                closest = float((rows @ vectors.T).max())
                require(
                    closest < most,
                    f"{name} holds {what} (cosine {closest:.6f}), and rehearsal_free is True",
                )


CHECKS = (
    check_counting,
    check_growth,
    check_experiences,
    check_save_and_load,
    check_resume,
    check_determinism,
    check_random_states,
    check_rehearsal,
)
