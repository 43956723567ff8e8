"""The evaluator on names: classes that are still to come."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from image_text import tiny_image_text
from torch import nn

from clprompt.metrics.names import zero_shot_accuracy
from clprompt.prompting.text.model import TextModel
from clprompt.strategies.coop import CoOpModel
from clprompt.strategies.zero_shot import ZeroShotModel
from clprompt.training.evaluation import Evaluator

TARGETS = np.array([0, 1, 2, 3, 4, 5] * 4)
GROUPS = [np.flatnonzero(np.isin(TARGETS, pair)) for pair in ((0, 1), (2, 3), (4, 5))]
NAMES = {c: f"class number {c} thing{c}" for c in range(6)}


class Shifted(TextModel):
    def __init__(self, backbone, **arguments):
        super().__init__(backbone, **arguments)
        self.shift = nn.Parameter(torch.linspace(-0.3, 0.3, backbone.joint_width))

    def live_rows(self, names):
        text = self.text.features([self.template.format(name) for name in names])
        return F.normalize(text + self.shift, dim=-1)


@pytest.fixture(scope="module")
def items():
    images = torch.rand(len(TARGETS), 3, 16, 16, generator=torch.Generator().manual_seed(1))
    return [(image, int(target)) for image, target in zip(images, TARGETS, strict=True)]


def trained(experiences):
    model = Shifted(tiny_image_text())
    model.name_classes(NAMES)
    for classes in experiences:
        model.begin_experience(classes)
        model.observe(torch.tensor(classes))
        model.end_experience()
    return model


def evaluator(items, **arguments):
    return Evaluator(items, TARGETS, GROUPS, batch_size=5, **arguments)


def accuracy(logits, rows, among):
    scores = torch.full_like(logits, -torch.inf)
    scores[:, among] = logits[:, among]
    return float((scores[rows].argmax(1).numpy() == TARGETS[rows]).mean())


def test_groups_still_to_come_are_scored_by_their_names(items):
    model = trained([[0, 1]])
    names = evaluator(items).run(model, 0, beyond=True).names
    every = torch.stack([image for image, _ in items])
    live = model.name_logits(every, [NAMES[c] for c in range(6)])
    plain = model.similarity(model.features(every), model.frozen_rows([NAMES[c] for c in range(6)]))
    later = np.concatenate(GROUPS[1:])
    assert names["own"] == [None, accuracy(live, GROUPS[1], [2, 3]), accuracy(live, GROUPS[2], [4, 5])]
    assert names["new"] == accuracy(live, later, [2, 3, 4, 5])
    assert names["base"] == accuracy(live, GROUPS[0], [0, 1])
    assert names["new_of_all"] == accuracy(live, later, list(range(6)))
    assert names["zero_shot"] == [accuracy(plain, GROUPS[0], [0, 1]), None, None]


def test_what_is_kept_between_evaluations_changes_no_figure(items):
    kept, fresh = evaluator(items), evaluator(items, cache_bytes=0)
    model = Shifted(tiny_image_text())
    model.name_classes(NAMES)
    for experience, classes in enumerate(([0, 1], [2, 5], [3, 4])):  # the second one is of two groups
        model.begin_experience(classes)
        model.observe(torch.tensor(classes))
        model.end_experience()
        first, second = (one.run(model, experience, beyond=True).names for one in (kept, fresh))
        assert first == second
    assert first["new"] is None


class Bordered(Shifted):
    """Prompts the images, and counts how many it encodes."""

    def __init__(self, backbone, **arguments):
        super().__init__(backbone, **arguments)
        self.border = nn.Parameter(torch.linspace(-1, 1, 3 * 16 * 16).reshape(3, 16, 16))
        self.encoded = 0

    def image_features(self, images, cached=None):
        self.encoded += len(images)
        return super().image_features(images + self.border)


def test_prompted_images_are_encoded_once_for_what_is_predicted_and_for_names(items):
    model = Bordered(tiny_image_text())
    model.name_classes(NAMES)
    model.begin_experience([0, 1])
    model.observe(torch.tensor([0, 1]))
    model.end_experience()
    every = torch.stack([image for image, _ in items])
    live = model.name_logits(every, [NAMES[c] for c in range(6)])
    model.encoded = 0
    evaluation = evaluator(items).run(model, 0, beyond=True)
    assert model.encoded == len(items)
    assert evaluation.names["base"] == evaluation.accuracy == accuracy(live, GROUPS[0], [0, 1])
    assert evaluation.names["own"][1:] == [
        accuracy(live, GROUPS[1], [2, 3]),
        accuracy(live, GROUPS[2], [4, 5]),
    ]
    assert torch.equal(model(every[:2]), model(every.clone()[:2]))
    model.encoded = 0
    model(every)
    model(every)
    assert model.encoded == 2 * len(items)  # nothing is remembered behind an evaluation


@pytest.mark.parametrize("cache_bytes", [0, 2**20])
def test_each_of_several_templates_is_scored_as_if_it_were_alone(items, tmp_path, cache_bytes):
    templates = ["a photo of a {}.", "the {} again", "{} on a table"]
    (tmp_path / "templates.txt").write_text("\n".join(templates))
    backbone = tiny_image_text()

    def names_of(**arguments):
        model = ZeroShotModel(backbone, **arguments)
        model.name_classes({c: [name, f"other{c} word"] for c, name in NAMES.items()})
        model.observe(torch.arange(4))
        return evaluator(items, cache_bytes=cache_bytes).run(model, 1, beyond=True).names

    for synonyms in (False, True):
        found = names_of(templates=str(tmp_path / "templates.txt"), synonyms=synonyms)["templates"]
        alone = [names_of(template=template, synonyms=synonyms) for template in templates]
        assert list(found) == templates
        assert list(found.values()) == pytest.approx([zero_shot_accuracy(names) for names in alone])
        assert not any("templates" in names for names in alone)
    assert len(set(found.values())) > 1


def test_only_an_evaluation_that_is_asked_scores_names(items):
    assert evaluator(items).run(trained([[0, 1]]), 0).names is None


def test_a_test_set_with_a_class_without_a_name_is_not_scored_by_names(items):
    model = Shifted(tiny_image_text())
    model.name_classes({0: "cat", 1: "dog"})
    model.begin_experience([0, 1])
    model.observe(torch.tensor([0, 1]))
    assert evaluator(items).run(model, 0, beyond=True).names is None


@pytest.mark.parametrize(
    "form",
    [
        {"length": 2},
        {"length": 2, "class_specific": True},
        {"length": 2, "contexts": 2},
        {"gate": (("a photo of a {}.",), ("a drawing of a {}.",))},
        {"residual": True},
    ],
    ids=str,
)
def test_every_form_of_learned_text_answers_for_classes_to_come_and_explains(items, form):
    model = CoOpModel(tiny_image_text(length=32), **form)
    model.name_classes(NAMES)
    model.begin_experience([0, 1])
    model.observe(torch.tensor([0, 1]))
    model.end_experience()
    names = evaluator(items).run(model, 0, beyond=True).names
    every = torch.stack([image for image, _ in items])
    live = model.name_logits(every, [NAMES[c] for c in range(6)])
    assert names["own"][1:] == [accuracy(live, GROUPS[1], [2, 3]), accuracy(live, GROUPS[2], [4, 5])]
    drawn = model.explain(every[:1])
    assert ("words" in drawn) == (not form.get("class_specific") and not form.get("residual"))
