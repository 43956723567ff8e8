"""check_strategy: the contract of :class:`clprompt.prompting.model.PromptModel`, as checks of a method.

    from clprompt.testing import check_strategy
    check_strategy(MyModel, boundary_free=True)

Each check is a function of a :class:`clprompt.testing.bench.Workbench` that raises AssertionError with a
sentence and the numbers; ``CHECKS`` lists them, so that a test may run them one by one. Nothing here knows a
method: what is expected follows from what it declares (``boundaries``, ``trains``, ``rehearsal_free``, ...).
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from clprompt.errors import place
from clprompt.prompting.model import PromptModel
from clprompt.prompting.plugin import Plugin
from clprompt.system.runtime import reproducible
from clprompt.testing import label_sets, state
from clprompt.testing.bench import Workbench
from clprompt.testing.label_sets import ScenesBench
from clprompt.testing.learning import (
    check_boundaries,
    check_declarations,
    check_declared_parameters,
    check_encoded,
    check_everything_is_in_the_state,
    check_frozen_backbone,
    check_kinds_of_backbone,
    check_learning,
    check_refusals,
    check_repeated_classes,
    check_soft_labels,
)
from clprompt.testing.prediction import (
    check_autocast,
    check_batch_companions,
    check_batch_size,
    check_cache,
    check_exportable,
    check_forward_changes_nothing,
    check_number_formats,
    check_savings,
    check_unseen_classes,
)

Check = Callable[[Workbench], None]


def check_strategy(
    model_class: type[PromptModel],
    *,
    multi_label: bool = False,
    plugins: Sequence[Plugin] = (),
    device: str = "cpu",
    tell: Callable[[str], object] | None = print,
    **arguments: Any,
) -> None:
    """Run a method through every check, on tiny vision transformers and a toy stream, in a few seconds.

    A model that does not require boundaries is checked without them; call this for each form of a method.

    Args:
        model_class: the method, a PromptModel; it need not be registered.
        multi_label: run it on multi-hot targets instead, through the checks that have a meaning there.
        plugins: every model gets copies of them.
        device: where it is tried, such as "cuda"; there with deterministic algorithms, as in any run.
        tell: is given a line for each check that is passed; None for silence.
        **arguments: its own and short forms of plug-ins, for all checks. The backbones have 5 blocks, width
            32 and 16 patches; for a method that needs text the text tower of ``clip_letters`` is beside them.

    Raises:
        AssertionError: one sentence: the check, what was expected, and the numbers.
    """
    kind = ScenesBench if multi_label else Workbench
    bench = kind(model_class, plugins=plugins, device=device, **arguments)
    named = {**arguments, **({"plugins": [plugin.name for plugin in plugins]} if plugins else {})}
    settings = ", ".join(f"{key}={value!r}" for key, value in named.items())
    for check in MULTI_LABEL_CHECKS if multi_label else CHECKS:
        start = time.perf_counter()
        try:
            with reproducible(torch.device(device)) if device != "cpu" else contextlib.nullcontext():
                check(bench)
        except Exception as error:
            text = str(error) if isinstance(error, AssertionError) else f"{type(error).__name__}: {error}"
            where = place(error, *bench.kinds)
            text = " ".join(text.split()) + f" ({where})" * bool(where) + _hint(error)
            raise AssertionError(f"{model_class.__name__}({settings}): {check.__name__}: {text}") from error
        if tell is not None:
            promise = (check.__doc__ or "").partition("\n")[0]
            tell(f"{check.__name__}: kept, {time.perf_counter() - start:.1f} s. {promise}")


#: What most often leads to an error of torch, by words of its message.
_HINTS = {
    "loading state_dict": "what experiences add must be there before a state is loaded: resize_to",
    "The size of tensor": "a tensor with an entry for each class grows in grow_classes",
}


def _hint(error: Exception) -> str:
    found = [] if isinstance(error, AssertionError) else [_HINTS[key] for key in _HINTS if key in str(error)]
    return "".join(f"; {hint}" for hint in found)


#: Every check, the quick and telling ones first.
CHECKS: tuple[Check, ...] = (
    check_declarations,
    check_encoded,
    check_everything_is_in_the_state,
    check_learning,
    check_boundaries,
    check_repeated_classes,
    check_frozen_backbone,
    state.check_determinism,  # what it draws without a seed looks like other faults elsewhere
    check_declared_parameters,
    check_unseen_classes,
    check_refusals,
    check_soft_labels,
    check_batch_companions,
    check_batch_size,
    check_forward_changes_nothing,
    check_cache,
    check_exportable,
    check_savings,
    check_autocast,
    check_number_formats,
    check_kinds_of_backbone,
    *(check for check in state.CHECKS if check is not state.check_determinism),
)

#: The checks of a method on multi-hot targets: what is special there, and what could depend on the targets.
MULTI_LABEL_CHECKS: tuple[Check, ...] = (
    *label_sets.CHECKS,
    check_encoded,
    check_frozen_backbone,
    check_declared_parameters,
    check_unseen_classes,
    check_batch_companions,
    check_forward_changes_nothing,
    check_cache,
    state.check_counting,
    state.check_growth,
    state.check_save_and_load,
    state.check_resume,
    state.check_determinism,
)
