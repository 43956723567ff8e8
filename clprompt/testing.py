"""check_strategy: the contract of :class:`clprompt.model.PromptModel` as checks that a method can be run through.

    from clprompt.testing import check_strategy
    check_strategy(MyModel, boundary_free=True)

Each check is a function of a :class:`clprompt.testbed.Workbench` that raises AssertionError with a sentence and the
numbers; ``CHECKS`` lists them, so that a test may run them one by one. Nothing here knows a method: what is expected
follows from what the model declares (``boundaries``, ``trains``, ``rehearsal_free``, ``optimizer_reset``).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from clprompt import testing_multilabel, testing_state
from clprompt.errors import BackboneError, ConfigError
from clprompt.evaluation import autocast
from clprompt.model import PromptModel
from clprompt.seeding import generator
from clprompt.steps import receive, train_step
from clprompt.testbed import (
    CLASSES,
    KINDS,
    Workbench,
    bits,
    changed,
    chunked,
    columns,
    finite_losses,
    near,
    refused,
    require,
    same_bits,
    scale,
    steady,
    tiny_vit,
)
from clprompt.testing_multilabel import ScenesBench

Check = Callable[[Workbench], None]


def check_strategy(model_class: type[PromptModel], *, multi_label: bool = False, **arguments: Any) -> None:
    """Run a method through every check, on tiny vision transformers and a toy stream, in a few seconds.

    A model that does not require boundaries is checked without them; call this once for each form of a method.

    Args:
        model_class: the method, a PromptModel; it need not be registered.
        multi_label: run it on multi-hot targets instead, through the checks that have a meaning there.
        **arguments: its own, for all checks. The backbones have 5 blocks, width 32 and 16 patches.

    Raises:
        AssertionError: one sentence: the check, what was expected, and the numbers.
    """
    bench = (ScenesBench if multi_label else Workbench)(model_class, **arguments)
    given = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
    for check in MULTI_LABEL_CHECKS if multi_label else CHECKS:
        try:
            check(bench)
        except Exception as error:
            text = str(error) if isinstance(error, AssertionError) else f"{type(error).__name__}: {error}"
            raise AssertionError(f"{model_class.__name__}({given}): {check.__name__}: {text}") from error


# ------------------------------------------------------------------------------------------------ what it declares


def check_declarations(bench: Workbench) -> None:
    """The constructor can be configured, and what the model says of itself is among what may be said."""
    for name, parameter in list(inspect.signature(bench.model_class).parameters.items())[1:]:
        configurable = parameter.kind is parameter.KEYWORD_ONLY and parameter.default is not parameter.empty
        require(
            configurable and parameter.annotation is not parameter.empty,
            f"constructor argument {name} must be keyword-only, with a type and a default",
        )
    model = bench.make()
    for name, allowed in {
        "boundaries": ("required", "optional", "unused"),
        "optimizer_reset": ("experience", "never"),
        "trains": (True, False),
        "rehearsal_free": (True, False),
        "revisits": ("never", "each", "last"),
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


def check_boundaries(bench: Workbench) -> None:
    """A stream without boundaries is refused, or one with them is no obstacle, as ``boundaries`` says."""
    model = bench.make()
    if model.boundaries == "required":
        refused(lambda: bench.engine(model, online=True), "a stream without boundaries")
        images, targets = bench.batch(0)
        model.observe(targets)
        refused(lambda: model.train().training_loss(images, targets), "a step before begin_experience")
    else:  # the form that the other checks do not try
        finite_losses(bench.run(model, online=False, epochs=2, experiences=2), " of a stream with boundaries")


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
            f"at least {least:.2f} is expected, chance is {1 / seen:.2f}",
        )


def check_kinds_of_backbone(bench: Workbench) -> None:
    """It works with a class token, with registers and layer scale, with average pooling and q/k norm.

    A method that reads what a backbone does not have may refuse it, in one line, when it is constructed.
    """
    for kind in KINDS:
        where = f" on a backbone with {kind}"
        try:
            model = bench.make(kind)
        except (BackboneError, ConfigError) as error:
            require(kind != "class token" and "\n" not in str(error), f"refused{where}: {error}")
            continue
        records = bench.run(model, epochs=4, experiences=1)
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
    moved = changed(tiny_vit().state_dict(), model.backbone.state_dict())
    require(not moved, f"training changed {len(moved)} tensors of the backbone: {moved[:3]}")
    open_ = [n for n, p in model.backbone.named_parameters() if p.requires_grad or p.grad is not None]
    require(not open_, f"{len(open_)} parameters of the backbone take a gradient: {open_[:3]}")
    training = [name for name, module in model.backbone.named_modules() if module.training]
    require(not training, f"{len(training)} modules of the backbone are in training mode: {training[:3]}")


def check_declared_parameters(bench: Workbench) -> None:
    """The optimizer holds what is declared and nothing of the backbone; nothing else is trained."""
    for experience in range(2):
        model, optimizer = bench.begun(experience=experience)
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


def _declared(model: PromptModel) -> list[str]:
    declared = [name for group in model.param_groups() for name in group["params"]]
    known = dict(model.named_parameters())
    require(len(set(declared)) == len(declared), f"param_groups names a parameter twice: {sorted(declared)}")
    wrong = [name for name in declared if name not in known or name.startswith("backbone.")]
    require(not wrong, f"param_groups names {wrong[:3]}, which are not the method's parameters")
    require(bool(declared) == model.trains, f"trains is {model.trains}, but param_groups has {len(declared)}")
    missing = sorted(set(model.trainable()) ^ set(declared))
    require(not missing, f"requires_grad and param_groups disagree on {missing[:3]}")
    return declared


# ------------------------------------------------------------------------------------------------ prediction


def check_batch_companions(bench: Workbench) -> None:
    """In eval mode a sample's logits depend neither on its companions in the batch nor on its place in it."""
    model, images = bench.copy(), bench.test.images
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
    model, images = bench.copy(), bench.test.images
    alone, kept = bench.alone
    for size in (2, 5, 16, len(images)):
        near(chunked(model, images, size), alone, kept, f"in evaluation batches of 1 and of {size}")


def check_unseen_classes(bench: Workbench) -> None:
    """Exactly the classes seen so far have finite logits, in evaluation and in training, whatever their ids."""
    with torch.no_grad():
        columns(bench.make().eval()(bench.test.images), [], "before any class was observed")
    for stage in range(len(CLASSES)):
        with torch.no_grad():
            columns(bench.copy(stage)(bench.test.images), bench.seen(stage), f"after experience {stage + 1}")
    model, optimizer = bench.begun(1)
    images, targets = bench.batch(1)
    receive(model, optimizer, targets)
    step = model.training_loss(images, targets)
    columns(step.logits, [c for group in CLASSES[:2] for c in group], "in training")
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
        require(not moved, f"forward in {'training' if mode else 'eval'} mode changed {moved[:3]}")
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
    """Logits are the same bits without a cache, with an empty one, and with one filled earlier in the stream."""
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


def check_savings(bench: Workbench) -> None:
    """What the backbone saves (a shared start, a trimmed last block) changes no prediction."""
    model, images = bench.copy(), bench.test.images[:16]
    alone, kept = (values[:16] for values in bench.alone)
    for switch in ("share_prefix", "trim_last_block"):
        setattr(model.backbone, switch, False)
        near(chunked(model, images, 16), alone, kept, f"with backbone.{switch} on and off")


def check_autocast(bench: Workbench) -> None:
    """bf16 autocast trains with finite losses and predicts the same where the margin is not tiny."""
    finite_losses(bench.run(bench.make(), experiences=2, precision="bf16"), " under bf16 autocast")
    # training images too: among few predictions, one that flips is more than 3 %
    model, images = bench.copy(), torch.cat([bench.test.images, bench.train.images])
    with torch.no_grad():
        full = model(images)
        with autocast(images.device, "bf16"):
            half = model(images)
    columns(half, bench.seen(len(CLASSES) - 1), "under bf16 autocast")
    best = full.topk(2, dim=1).values  # (B, 2)
    clear = best[:, 0] - best[:, 1] > 0.02 * scale(full)
    require(bool(clear.any()), "no prediction has a margin of 2 % of the logits' range")
    equal = float((full.argmax(1) == half.argmax(1))[clear].float().mean())
    require(
        equal >= 0.97,
        f"bf16 autocast keeps {equal:.1%} of {int(clear.sum())} clear predictions; 97 % expected",
    )


# ------------------------------------------------------------------------------------------------ refusals


def check_refusals(bench: Workbench) -> None:
    """Labels never observed, bad labels and empty batches are refused, in one line each."""
    model, optimizer = bench.begun()
    images, targets = bench.batch(1)
    receive(model, optimizer, targets)
    for label in (2, CLASSES[2][0], 99):
        wrong = targets.clone()
        wrong[-1] = label
        refused(partial(model.training_loss, images, wrong), f"label {label}, never observed,")
    refused(lambda: model.training_loss(images[:0], targets[:0]), "an empty batch")
    refused(lambda: model.observe(targets - 8), "a negative label")
    refused(lambda: model.observe(targets.float()), "a label that is no integer")
    if not model.multi_label:
        hot = torch.nn.functional.one_hot(targets, model.num_classes)
        refused(lambda: model.training_loss(images, hot), "multi-hot targets where multi_label is False")


#: Every check, the quick and telling ones first.
CHECKS: tuple[Check, ...] = (
    check_declarations,
    check_learning,
    check_boundaries,
    check_frozen_backbone,
    check_declared_parameters,
    check_unseen_classes,
    check_refusals,
    check_batch_companions,
    check_batch_size,
    check_forward_changes_nothing,
    check_cache,
    check_savings,
    check_autocast,
    check_kinds_of_backbone,
    *testing_state.CHECKS,
)

#: The checks of a method on multi-hot targets: what is special there, and what could depend on the targets.
MULTI_LABEL_CHECKS: tuple[Check, ...] = (
    *testing_multilabel.CHECKS,
    check_frozen_backbone,
    check_declared_parameters,
    check_unseen_classes,
    check_batch_companions,
    check_batch_size,
    check_forward_changes_nothing,
    check_cache,
    testing_state.check_counting,
    testing_state.check_growth,
    testing_state.check_save_and_load,
    testing_state.check_resume,
    testing_state.check_determinism,
)
