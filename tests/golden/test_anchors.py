"""Anchors and the averaging of prompts against the golden file."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from devices import DEVICE
from golden_files import Golden
from image_text import (
    COUPLED,
    INDEPENDENT,
    check_golden_step,
    golden_backbone,
    golden_learner,
    golden_names,
    golden_texts,
)

from clprompt.prompting.build import construct
from clprompt.prompting.text.anchors import consistency
from clprompt.prompting.text.plugin import LiveText
from clprompt.prompting.text.trajectory import Trajectory
from clprompt.strategies.coop.model import CoOpModel
from clprompt.strategies.maple.model import MaPLeModel

DTYPES = [torch.float64, torch.float32]
#: the suffix of a key in the file, and the classes that it is over
OVER = [("", range(6)), ("_current", [2, 3])]


@pytest.fixture(params=DTYPES, ids=["float64", "float32"])
def base(request: pytest.FixtureRequest, golden: Any) -> Golden:
    return golden("clip", request.param)


def coop(base: Golden, **arguments: Any) -> Any:
    """A model with plug-ins, whose six classes are named."""
    model = construct(CoOpModel, golden_backbone(base), **arguments).to(DEVICE, base.dtype)
    model.name_classes(dict(enumerate(golden_names(base))))
    return model


@pytest.mark.parametrize(("suffix", "classes"), OVER, ids=["all classes", "current classes"])
def test_the_terms_of_published_features_are_the_published_ones(
    base: Golden, suffix: str, classes: Any, tmp_path: Path
) -> None:
    texts = golden_texts(base, "ensemble", tmp_path)
    model = coop(base, length=4, anchor="self_regulation", anchor_texts=texts)
    classes = list(classes)
    base.check(model.self_regulation.teacher(range(6)), "promptsrc.fixed_text")
    live = LiveText(
        classes,
        base["promptsrc.text_features"][classes],
        base["promptsrc.image_features"],
        base["promptsrc.logits"][:, classes],
        base["labels"],
        base["images"],
        lambda: model.features(base["images"]),
    )
    terms = model.self_regulation.text_terms(live)
    base.check(model.features(base["images"]), "promptsrc.fixed_image")
    base.check(terms["self_regulation_text"], f"promptsrc.loss.text{suffix}")
    base.check(terms["self_regulation_image"], "promptsrc.loss.image")
    base.check(terms["self_regulation_logits"], f"promptsrc.loss.logits_kl{suffix}")


@pytest.mark.parametrize(("epochs", "mean", "std"), [(20, 15, 1), (50, 30, 30), (5, 3, 2)])
def test_epochs_weigh_as_published(golden: Any, epochs: int, mean: float, std: float) -> None:
    base, plugin = golden("clip"), Trajectory(mean=mean, std=std)
    given = [plugin.weight_of(epoch, epochs) for epoch in range(1, epochs + 1)]
    weights = torch.tensor(given, dtype=torch.float64, device=DEVICE)
    base.check(weights / weights.sum(), f"gpa.weights_{epochs}_{mean}_{std}")


def test_prompts_become_the_published_average_of_their_trajectory(base: Golden) -> None:
    model = coop(base, length=3, trajectory=True, trajectory_mean=3, trajectory_std=2)
    model.begin_experience(range(6))
    for epoch, prompts in enumerate(base["gpa.trajectory"]):
        model.start_epoch(epoch, 5)
        with torch.no_grad():
            model.contexts[0].copy_(prompts)
    model.end_experience()
    base.check(model.contexts[0], "gpa.average")


# -------------------------------------------------------------------------------- on prompts of both towers


@pytest.mark.parametrize("over", ["all", "current"])
def test_self_regulated_prompts_have_the_published_loss_and_gradients(
    base: Golden, over: str, tmp_path: Path
) -> None:
    """As released over all classes, and over those of the experience."""
    model = golden_learner(
        base,
        partial(construct, MaPLeModel),
        {name: base[f"promptsrc.{key}"] for name, key in INDEPENDENT.items()},
        length=3,
        coupling="none",
        vision="train",
        mask="seen" if over == "all" else "experience",
        anchor="self_regulation",
        anchor_texts=golden_texts(base, "ensemble", tmp_path),
    )
    check_golden_step(base, model, f"promptsrc.{over}", INDEPENDENT)


def test_consistent_prompts_have_the_logits_losses_and_gradients_of_the_formula(
    base: Golden, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(consistency, "second_view", lambda images, drawn, *part: base["coprompt.second_view"])
    prompts = {name: base[f"maple.{key}"] for name, key in COUPLED.items()}
    adapters = {
        f"consistency.{tower}.{layer}": f"{tower}.{layer}"
        for tower in ("image", "text")
        for layer in ("down", "up")
    }
    model = golden_learner(
        base,
        partial(construct, MaPLeModel),
        prompts | {name: base[f"coprompt.{key}"] for name, key in adapters.items()},
        vision="train",
        anchor="consistency",
        anchor_texts=golden_texts(base, "ensemble", tmp_path),
        anchor_image_weight=8.0,
        anchor_text_weight=8.0,
    )
    base.check(model.eval()(base["images"]), "coprompt.logits")
    terms = model.train().training_loss(base["images"], base["labels"]).terms
    for tower in ("image", "text"):
        base.check(terms[f"consistency_{tower}"] / 8, f"coprompt.consistency_{tower}")
    check_golden_step(base, model, "coprompt", adapters)
