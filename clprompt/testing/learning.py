"""Checks of what a method learns, and of what it may not touch."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from clprompt.backbones.vit import FrozenViT
from clprompt.errors import BackboneError, ConfigError, ProtocolError
from clprompt.prompting.losses import SoftLabels
from clprompt.prompting.model import Encoded, PromptModel
from clprompt.targets import MOST_CLASSES, is_label_sets
from clprompt.testing.asserts import bits, changed, chunked, finite_losses, near, refused, require, steady
from clprompt.testing.bench import CLASSES, KINDS, Log, Workbench, tiny_backbone
from clprompt.training.engine import Engine
from clprompt.training.processes import Part
from clprompt.training.steps import receive, train_step

# ------------------------------------------------------------------------------------------ what it declares


def check_declarations(bench: Workbench) -> None:
    """The constructor can be configured, shared methods stay shared, and facts have legal values."""
    for name, parameter in list(inspect.signature(bench.model_class).parameters.items())[1:]:
        configurable = parameter.kind is parameter.KEYWORD_ONLY and parameter.default is not parameter.empty
        require(
            configurable and parameter.annotation is not parameter.empty,
            f"constructor argument {name} must be keyword-only, with a type and a default",
        )
    model = bench.make()
    for name, hooks in {
        "forward": "encode, classify or predictable",
        "training_loss": "encode, losses, received or count_step",
    }.items():
        require(
            getattr(type(model), name) is getattr(PromptModel, name),
            f"{name} is no method's own, or plug-ins would not reach it; override {hooks}",
        )
    for name, allowed in {
        "boundaries": ("required", "optional", "unused"),
        "optimizer_reset": ("experience", "never"),
        "trains": (True, False),
        "rehearsal_free": (True, False),
        "revisits": ("never", "each", "last"),
        "soft_labels": (True, False),
    }.items():
        value = getattr(model, name)
        require(value in allowed, f"{name} must be one of {allowed}, got {value!r}")
    require(
        model.revisits == "never" or not model.rehearsal_free,
        f"revisits is {model.revisits}, so rehearsal_free must be False",
    )
    require(
        model.rehearsal_free or "rehears" in (inspect.getdoc(bench.model_class) or "").lower(),
        "rehearsal_free is False, and the class docstring does not say so",
    )


class _Half(Part):
    """Half of a batch, where nobody encodes the other."""

    def __init__(self, total: int, rows: slice) -> None:
        self.total, self.rows = total, rows

    def means(self, own: Sequence[Tensor]) -> list[Tensor]:
        return list(own)

    def _collect(self, own: Tensor) -> Tensor:
        return own


@torch.no_grad()
def check_encoded(bench: Workbench) -> None:
    """encode gives the head's input, details with a row for each image, and terms that are means of them."""
    model, _ = bench.begun(experience=0)
    images, targets = bench.batch(0)
    model.observe(targets)
    whole = copy.deepcopy(model).encode(images)
    require(
        isinstance(whole, Encoded),
        f"encode must return Encoded(features), it returned a value of type {type(whole).__name__}",
    )
    form, expected = (whole.features.shape, whole.features.dtype), (len(images), model.feature_width)
    require(
        form == (expected, model.backbone.dtype),
        f"encode gave features {list(form[0])} of {form[1]}; {list(expected)} of {model.backbone.dtype} are "
        "expected, for each image as many as feature_width says",
    )
    parts, half = [], len(images) // 2
    for rows in (slice(0, half), slice(half, len(images))):
        twin, part = copy.deepcopy(model), _Half(len(images), rows)
        with twin.encoding_part(part):
            encoded = twin.encode(images[rows])
        try:
            parts.append(twin.gather(encoded, part))
        except ProtocolError as error:
            raise AssertionError(f"features or details of what encode returns: {error}") from error
    for name, value in whole.terms.items():
        values = [float(value), sum(float(part.terms[name]) for part in parts) / len(parts)]
        require(
            not bool(value.isfinite()) or abs(values[0] - values[1]) <= 1e-3 * max(map(abs, values)),
            f"the term {name} is {values[0]:.4g} over a batch and {values[1]:.4g} on average over halves; "
            "it must be a mean over the images, and what compares images belongs into losses",
        )


def check_boundaries(bench: Workbench) -> None:
    """A stream without boundaries is refused, or one with them is no obstacle, as ``boundaries`` says."""
    model = bench.make()
    if model.boundaries == "required":
        refused(lambda: bench.engine(model, online=True), "a stream without boundaries")
        images, targets = bench.batch(0)
        model.observe(targets)
        refused(lambda: model.train().training_loss(images, targets), "a step before begin_experience")
    else:  # the form that the other checks do not try
        records = bench.run(model, online=False, epochs=2, experiences=2, train=bench.few)
        finite_losses(records, " of a stream with boundaries")


def check_repeated_classes(bench: Workbench) -> None:
    """Classes that come again after their experience are a new experience, or refused before training."""
    model, log = bench.make(), Log()
    rows = bench.train.groups()[0]
    parts = [rows[::2], rows[1::2]]
    try:
        engine = Engine(
            model,
            bench.train,
            parts,
            [CLASSES[0]] * len(parts),
            evaluator=bench.evaluator(),
            training=bench.training(),
            listeners=[log],
        )
    except ConfigError as error:
        require("\n" not in str(error), f"a stream that is refused is one line, got {error}")
        return
    engine.run()
    finite_losses(log.records, " of a stream whose classes come again")
    if model.boundaries != "unused" and model.revisits != "last":
        began = int(model.experience) + 1
        require(began == len(parts), f"{len(parts)} experiences of the same classes, {began} were begun")


# ------------------------------------------------------------------------------------------------ learning


def check_learning(bench: Workbench) -> None:
    """It learns above chance on a separable problem, with finite loss terms."""
    require(len(bench.stages) == len(CLASSES), "the stream did not run to its end")
    finite_losses(bench.log.records, "")
    evaluations = [record for record in bench.log.records if record["kind"] == "evaluation"]
    for record, least in ((evaluations[0], 0.8), (evaluations[-1], 1.5 / sum(map(len, CLASSES)))):
        accuracy, seen = record["accuracy"], len(bench.seen(record["experience"]))
        require(
            accuracy >= least,
            f"accuracy {accuracy:.2f} after experience {record['experience'] + 1} of a separable problem; "
            f"at least {least:.2f} is expected, chance is {1 / seen:.2f}{_never_found(bench, record)}",
        )


@torch.no_grad()
def _never_found(bench: Workbench, record: Mapping[str, Any]) -> str:
    """Of which classes no image is found, where it is some of them."""
    right = bench.stages[record["experience"]](bench.test.images).argmax(1).cpu() == torch.as_tensor(
        bench.test.targets
    )
    seen = bench.seen(record["experience"])
    lost = [c for c in seen if not bool(right[torch.as_tensor(bench.test.targets) == c].any())]
    return f"; no image is found of the classes {', '.join(map(str, lost))}" if lost else ""


def check_kinds_of_backbone(bench: Workbench) -> None:
    """It works with a class token, registers and layer scale, average pooling and q/k norm, rotary positions.

    A method that reads what a backbone does not have may refuse it, in one line, when it is constructed.
    """
    for kind in KINDS:
        where = f" on a backbone with {kind}"
        try:
            model = bench.make(kind)
        except (BackboneError, ConfigError) as error:
            require(kind != "class token" and "\n" not in str(error), f"refused{where}: {error}")
            continue
        if kind == "class token":  # what the other checks train on
            continue
        train = bench.train if bench.online else bench.few  # what is masked when is not to be learned, too
        records = bench.run(model, epochs=6, experiences=1, train=train)
        finite_losses(records, where)
        accuracy = records[-1]["accuracy"]
        require(accuracy >= 0.75, f"accuracy {accuracy:.2f}{where}; at least 0.75 is expected, chance is 0.5")
        images = bench.test.images[:9]
        alone = chunked(model.eval(), images, 1)
        near(chunked(model, images, 9), alone, steady(model, images, alone), f"alone and in a batch{where}")


def check_frozen_backbone(bench: Workbench) -> None:
    """The backbone keeps its bits, takes no gradient and stays in eval mode."""
    model, _ = bench.short
    model.train()
    moved = changed(tiny_backbone(bench.model_class).state_dict(), model.backbone.state_dict())
    require(not moved, f"training changed {len(moved)} tensors of the backbone: {moved[:3]}")
    open_ = [n for n, p in model.backbone.named_parameters() if p.requires_grad or p.grad is not None]
    require(not open_, f"{len(open_)} parameters of the backbone take a gradient: {open_[:3]}")
    training = [name for name, module in model.backbone.named_modules() if module.training]
    require(not training, f"{len(training)} modules of the backbone are in training mode: {training[:3]}")


def check_declared_parameters(bench: Workbench) -> None:
    """The optimizer holds what is declared, nothing of the backbone; all of it is trained, nothing else."""
    ever: set[str] = set()
    for experience in range(2):
        model, optimizer = bench.begun(experience=experience)
        ever |= {_list_of(name) for name in model.trainable()}
        images, targets = bench.batch(experience)
        receive(model, optimizer, targets)
        declared = _declared(model)
        if optimizer is None:
            continue
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        lost = [name for name, p in model.named_parameters() if (id(p) in held) != (name in declared)]
        require(not lost, f"optimizer and param_groups disagree on {lost[:3]}")
        before = bits(model)
        for _ in range(3):
            train_step(model, optimizer, images, targets)
        after = dict(model.named_parameters())
        moved = [name for name in changed(before, bits(model)) if name in after]
        other = [name for name in moved if name not in declared]
        require(not other, f"three steps changed parameters that are not declared: {other[:3]}")
        require(bool(moved), f"three steps changed none of {len(declared)} declared parameters")
        # of a list some may be of classes or clusters that are not in the batch
        reached = {_list_of(name) for name in declared if after[name].grad is not None}
        idle = [name for name in declared if after[name].numel() and _list_of(name) not in reached]
        require(not idle, f"declared parameters that got no gradient in three steps: {idle[:3]}")
    own = (name for name, parameter in model.own_parameters().items() if parameter.numel())
    never = [name for name in own if _list_of(name) not in ever] if model.trains else []
    require(
        not never,
        f"parameters that are trained in no experience: {never[:3]}; set_stage decides on requires_grad, and "
        "what shall never be trained is a buffer",
    )


def _list_of(name: str) -> str:
    """Where a parameter stands, without its number in a list."""
    return ".".join(part for part in name.split(".") if not part.isdigit())


def check_everything_is_in_the_state(bench: Workbench) -> None:
    """What the logits hang on is a parameter or a buffer: it is saved, trained and moved to a device."""
    # one that has not answered yet: what it keeps of answers is no matter
    model, _ = bench.begun(experience=0)
    model.observe(bench.batch(0)[1])
    loose = dict(_loose(model))
    for path, tensor in loose.items():
        require(
            not tensor.requires_grad,
            f"{path} is a parameter that the model does not know of, so it is neither trained nor saved nor "
            "moved to a device; assign it to an attribute, or put it into an nn.ParameterList",
        )
    logits = _logits(model, bench)
    for path, tensor in loose.items():
        if tensor.is_floating_point() and tensor.numel():
            kept = tensor.clone()
            tensor.add_(torch.ones_like(tensor))
            moved = not torch.equal(_logits(model, bench), logits)
            tensor.copy_(kept)
            require(
                not moved,
                f"{path} decides on the logits and is no part of the state: make it a parameter, or call "
                "register_buffer",
            )


@torch.no_grad()
def _logits(model: PromptModel, bench: Workbench) -> Tensor:
    """Of a few images, in eval mode, by a copy that keeps nothing of them."""
    return copy.deepcopy(model).eval()(bench.probes[:4]).nan_to_num()


def _loose(model: PromptModel) -> Iterator[tuple[str, Tensor]]:
    """Tensors that a model holds beside its parameters and buffers, by where they are; not the backbone's."""
    known = {id(tensor) for tensor in (*model.parameters(), *model.buffers())}
    met: set[int] = set()

    def within(path: str, value: Any) -> Iterator[tuple[str, Tensor]]:
        if id(value) in met or isinstance(value, FrozenViT):
            return
        met.add(id(value))
        if isinstance(value, Tensor):
            if id(value) not in known:
                yield path, value
        elif isinstance(value, nn.Module):
            for name, part in vars(value).items():
                yield from within(path if name in _REGISTERED else f"{path}.{name}", part)
        elif isinstance(value, Mapping):
            registered = path == "self"
            for key, part in value.items():
                yield from within(f"{path}.{key}" if registered else f"{path}[{key!r}]", part)
        elif isinstance(value, list | tuple):
            for number, part in enumerate(value):
                yield from within(f"{path}[{number}]", part)

    return within("self", model)


#: Where torch keeps what a module knows of.
_REGISTERED = ("_parameters", "_buffers", "_modules")


def _declared(model: PromptModel) -> list[str]:
    declared = [name for group in model.param_groups() for name in group["params"]]
    parameters = dict(model.named_parameters())
    require(len(set(declared)) == len(declared), f"param_groups names a parameter twice: {sorted(declared)}")
    wrong = [name for name in declared if name not in parameters or name.startswith("backbone.")]
    require(not wrong, f"param_groups names {wrong[:3]}, which are not the method's parameters")
    require(bool(declared) == model.trains, f"trains is {model.trains}, but param_groups has {len(declared)}")
    missing = sorted(set(model.trainable()) ^ set(declared))
    require(not missing, f"requires_grad and param_groups disagree on {missing[:3]}")
    return declared


# ------------------------------------------------------------------------------------------------ refusals


def check_soft_labels(bench: Workbench) -> None:
    """Smoothed labels change the loss, or are refused by a method that says so."""
    if is_label_sets(bench.train.targets):
        return
    model, optimizer = bench.begun()
    images, targets = bench.batch(1)
    receive(model, optimizer, targets)
    soft = SoftLabels(targets, 0.5)
    if not model.soft_labels:
        refused(lambda: model.training_loss(images, targets, soft), "smoothed labels")
        return
    steps = [copy.deepcopy(model).training_loss(images, targets, labels) for labels in (None, soft)]
    losses = [float(step.loss.detach()) for step in steps]
    require(losses[0] != losses[1], f"the loss is {losses[0]} with labels as they are and with smoothed ones")


def check_refusals(bench: Workbench) -> None:
    """Labels never observed, bad labels, bad images and empty batches are refused, in one line each."""
    model, optimizer = bench.begun()
    images, targets = bench.batch(1)
    receive(model, optimizer, targets)
    targets = targets.cpu()  # labels are looked at where that makes nobody wait
    for label in (2, CLASSES[2][0], 99):
        wrong = targets.clone()
        wrong[-1] = label
        refused(partial(model.training_loss, images, wrong), f"label {label}, never observed,")
    refused(lambda: model.training_loss(images[:0], targets[:0]), "an empty batch")
    refused(lambda: model.training_loss(images, targets[:-1]), "a batch of fewer labels than images")
    refused(lambda: model.training_loss(images[..., 1:], targets), "a batch of images of another size")
    refused(lambda: model(images[0]), "an image that is no batch")
    refused(lambda: model(images.to(torch.uint8)), "images of bytes")
    refused(lambda: model.observe(targets - 8), "a negative label")
    refused(lambda: model.observe(targets + MOST_CLASSES), f"a label above {MOST_CLASSES}")
    no_targets: dict[str, Any] = {
        "labels that are no integers": targets.float(),
        "labels in a list": targets.tolist(),
        "a label by itself": targets[0],
        "labels of three dimensions": targets[None, None],
    }
    for what, value in no_targets.items():
        refused(partial(model.observe, value), what)
        refused(partial(model.training_loss, images, value), what)
    no_classes: list[Any] = [[-3], ["cat"], 5]
    for classes in no_classes if model.boundaries != "unused" else ():
        refused(partial(model.begin_experience, classes), f"an experience of the classes {classes!r}")
    if not model.multi_label:
        hot = torch.nn.functional.one_hot(targets, model.num_classes)
        refused(lambda: model.training_loss(images, hot), "multi-hot targets where multi_label is False")
