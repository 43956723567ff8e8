"""TextModel: names classify; rows of old classes are kept."""

import pytest
import torch
import torch.nn.functional as F
from image_text import tiny_image_text
from torch import nn

from clprompt.backbones.vit import FrozenViT
from clprompt.errors import ConfigError, ProtocolError
from clprompt.prompting.statistics.plugin import Statistics
from clprompt.prompting.text.model import TextModel

NAMES = {0: "cat", 1: "dog", 2: "red bird", 3: "fish", 4: "lamp"}


class Shifted(TextModel):
    """The smallest trained text: one vector that is added to every name's features."""

    def __init__(self, backbone, **arguments):
        super().__init__(backbone, **arguments)
        self.shift = nn.Parameter(torch.full((backbone.joint_width,), 0.01))

    def live_rows(self, names):
        text = self.text.features([self.template.format(name) for name in names])
        return F.normalize(text + self.shift, dim=-1)


class Untrained(Shifted):
    trains = False


def images(count=6, seed=0):
    return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


def made(**arguments):
    model = Shifted(tiny_image_text(), **arguments)
    model.name_classes(NAMES)
    return model


def learn(model, classes, *, steps=3, told=True):
    if told:
        model.begin_experience(classes)
    targets = torch.tensor(classes).repeat(3)[:6]
    batch = images(len(targets), seed=sum(classes))
    optimizer = torch.optim.SGD(model.trainable().values(), lr=0.1)
    for _ in range(steps):
        model.observe(targets)
        optimizer.zero_grad()
        model.training_loss(batch, targets).loss.backward()
        optimizer.step()
    if told:
        model.end_experience()


def predicted(model):
    model.eval()
    with torch.no_grad():
        return model(images())


def test_logits_are_scaled_cosines_to_the_text_of_the_names():
    model = Untrained(tiny_image_text(), rows="frozen", boundary_free=True)
    model.name_classes(NAMES)
    model.observe(torch.tensor([0, 1, 2]))
    backbone = model.backbone
    text = backbone.text.features([f"a photo of a {NAMES[c]}." for c in range(3)])
    image = backbone.project(backbone.features(images()))
    expected = backbone.scale * F.normalize(image, dim=-1) @ F.normalize(text, dim=-1).T
    assert torch.allclose(predicted(model), expected, atol=1e-4)


def test_kept_rows_of_old_classes_do_not_move():
    model = made()
    learn(model, [0, 1])
    before, columns = model.rows[:2].clone(), predicted(model)[:, :2]
    learn(model, [2, 3])
    assert torch.equal(model.rows[:2], before)
    assert torch.allclose(predicted(model)[:, :2], columns)


def test_live_rows_of_old_classes_follow_the_prompts():
    model = made(rows="live")
    learn(model, [0, 1])
    columns = predicted(model)[:, :2]
    learn(model, [2, 3])
    assert not torch.allclose(predicted(model)[:, :2], columns, atol=1e-4)


def test_rows_of_the_open_experience_follow_the_prompts_in_evaluation():
    model = made()
    model.begin_experience([0, 1])
    model.observe(torch.tensor([0, 1]))
    before = predicted(model)
    with torch.no_grad():
        model.shift += torch.linspace(-1, 1, len(model.shift))
    assert not torch.allclose(predicted(model)[:, :2], before[:, :2], atol=1e-4)


def test_a_batch_without_experiences_stores_its_rows():
    model = made(boundary_free=True)
    learn(model, [0, 1], told=False)
    before = model.rows.clone()
    learn(model, [2, 3], told=False)
    assert torch.equal(model.rows[:2], before[:2])
    assert torch.isfinite(predicted(model)[:, :4]).all()


def test_evaluation_changes_no_state():
    model = made()
    learn(model, [0, 1])
    before = {name: value.clone() for name, value in model.method_state().items()}
    predicted(model)
    model.name_logits(images(), ["horse"])
    assert all(torch.equal(before[name], value) for name, value in model.method_state().items())


def test_other_names_answer_in_any_order_and_change_no_other_column():
    model = made()
    learn(model, [0, 1])
    three = model.name_logits(images(), ["horse", "green car", "cat"])
    two = model.name_logits(images(), ["cat", "horse"])
    assert torch.allclose(three[:, [2, 0]], two, atol=1e-5)


def test_names_are_read_once_until_the_prompts_change(monkeypatch):
    model = made().eval()
    asked = []
    read = Shifted.live_rows
    monkeypatch.setattr(Shifted, "live_rows", lambda self, names: asked.append(1) or read(self, names))
    first = model.name_logits(images(), ["horse"])
    assert torch.equal(model.name_logits(images(), ["horse"]), first)
    assert len(asked) == 1
    with torch.no_grad():
        model.shift += torch.linspace(-1, 1, len(model.shift))
    assert not torch.equal(model.name_logits(images(), ["horse"]), first)


def test_a_state_predicts_with_its_names_elsewhere():
    model = made()
    learn(model, [0, 1])
    learn(model, [4])
    other = Shifted(tiny_image_text())
    other.load_state_dict(model.method_state())
    assert torch.equal(predicted(other), predicted(model))
    assert other.names.shown(4) == "lamp"


def test_statistics_count_projected_and_normalised_features():
    model = made().plug(Statistics("lda"))
    model.begin_experience([0, 1])
    targets = torch.tensor([0, 1, 0, 1, 0, 1])
    model.observe(targets)
    model.training_loss(images(), targets)
    model.end_experience(lambda: iter([(images(), targets)]))
    sums = model.statistics.head.classes.sums
    assert sums.shape == (2, model.backbone.joint_width)
    features = F.normalize(model.backbone.project(model.backbone.features(images())), dim=-1)
    assert torch.allclose(sums[0], features[::2].double().sum(0), atol=1e-5)


def test_a_class_without_a_name_is_refused():
    model = Shifted(tiny_image_text())
    model.name_classes({0: "cat"})
    with pytest.raises(ProtocolError, match="class 1 has no name"):
        model.begin_experience([0, 1])
    free = Shifted(tiny_image_text(), boundary_free=True)
    with pytest.raises(ProtocolError, match="class 0 has no name"):
        free.observe(torch.tensor([0]))


def test_a_backbone_without_text_is_refused():
    with pytest.raises(ConfigError, match="needs a backbone with a text tower"):
        Shifted(FrozenViT("vit_letters"))


def test_frozen_rows_are_refused_where_nothing_else_is_trained():
    with pytest.raises(ConfigError, match="nothing to train"):
        made(rows="frozen")


def test_label_sets_are_refused_without_a_bias():
    model = made()
    model.begin_experience([0, 1])
    targets = torch.tensor([[1, 0], [1, 1]])
    model.observe(targets)
    with pytest.raises(ProtocolError, match="label sets"):
        model.training_loss(images(2), targets)
