"""What whoever starts a run should know of it: what is left out, and what is known to go wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from clprompt.backbones.sources import has_random_weights
from clprompt.experiment.build import Parts
from clprompt.experiment.config import Config
from clprompt.prompting.model import PromptModel
from clprompt.system.runtime import has_bf16
from clprompt.targets import is_label_sets
from clprompt.training.evaluation import Evaluator

#: Prompts of the published methods are a tenth of the image's tokens; at four tenths they cost 8 points, see
#: docs/results.md.
_PROMPT_SHARE = 0.25
_PUBLISHED_TOKENS = 196
_FEW_TEST_IMAGES = 20


def notices(config: Config, parts: Parts, evaluator: Evaluator | None) -> list[str]:
    """What a run says at its start.

    Args:
        config: of this one run.
        parts: what it names, built.
        evaluator: of its evaluations.
    """
    model, test, train = parts.model, parts.bundle.test, parts.bundle.train
    sentences = parts.plan.notes(train.targets, test.targets, test.domains)
    sentences += random_weights(config.backbone)
    sentences = [*sentences, *model.notes(), *([str(config.memory)] if config.memory else [])]
    sentences += evaluator.notes() if evaluator else []
    sentences += [*config.training.notes(), *_precision(config, parts)]
    if not is_label_sets(test.targets):
        if config.online is None and config.memory is None:
            alone = one_class_experiences(model, parts.plan.classes)
            model.told_of_one_class = bool(alone)
            sentences += alone
        sentences += few_test_images(test.targets, parts.plan.classes)
    return sentences + many_prompt_tokens(model)


def random_weights(backbone: Mapping[str, Any]) -> list[str]:
    """A sentence where a model of timm is used without the weights that it is known for.

    Args:
        backbone: its section of the configuration.
    """
    name, given = backbone["name"], (backbone.get("pretrained"), backbone.get("checkpoint"))
    if not has_random_weights(name, *given, backbone):
        return []
    return [
        f"the weights of backbone {name} are random; backbone.pretrained=true or "
        "backbone.checkpoint=FILE gives it trained ones"
    ]


def one_class_experiences(model: PromptModel, classes: Sequence[Sequence[int]]) -> list[str]:
    """A sentence where experiences teach nothing, as their one class has no other to compete with.

    Args:
        model: before training.
        classes: of each experience.
    """
    alone = [number for number, group in enumerate(classes, start=1) if len(group) == 1]
    if not alone or not model.needs_two_classes or model.revisits != "never":
        return []
    which = f"experience {alone[0]} has"
    if len(alone) > 1:
        which = f"{len(alone)} of {len(classes)} experiences have"
    return [
        f"{which} one class: only classes of one {model.mask} compete (mask={model.mask}), so its loss is 0, "
        f"nothing is learnt of it, and what was never learnt is not forgotten{model.help_for_one_class()}"
    ]


def few_test_images(targets: np.ndarray, classes: Sequence[Sequence[int]]) -> list[str]:
    """A sentence where a test image is worth many points of its class's accuracy.

    Args:
        targets: of the test images, [n].
        classes: of each experience.
    """
    trained = sorted({c for group in classes for c in group})
    counts = np.bincount(targets, minlength=max(trained, default=0) + 1)[trained]
    few = counts[(counts > 0) & (counts < _FEW_TEST_IMAGES)]
    if not few.size:
        return []
    fewest = int(few.min())
    return [
        f"{len(few)} of {len(trained)} classes have fewer than {_FEW_TEST_IMAGES} test images, the fewest "
        f"{fewest}: there a single image is worth {100 / fewest:.1f} points of the class's accuracy. An "
        "error over seeds does not show how much that matters, as all seeds are tested on the same images"
    ]


def many_prompt_tokens(model: PromptModel) -> list[str]:
    """A sentence where prompts make up much of a short sequence."""
    tokens, backbone = model.prompt_tokens, model.backbone
    patches = backbone.num_tokens - backbone.num_prefix_tokens
    if tokens <= _PROMPT_SHARE * patches:
        return []
    share = max(1, round(tokens * patches / _PUBLISHED_TOKENS))
    return [
        f"{tokens} prompt tokens stand beside {patches} of the image, a share of a short sequence that can "
        f"cost accuracy; published lengths are meant for {_PUBLISHED_TOKENS}: in proportion, {share} in all"
    ]


def _precision(config: Config, parts: Parts) -> list[str]:
    keys = [key for key in ("precision", "query_precision") if getattr(config, key) == "bf16"]
    if not keys or parts.device.type != "cpu" or has_bf16() is not False:
        return []
    return [f"{keys[0]}=bf16 makes this run slower, not faster: the processor has no instructions for bf16"]
