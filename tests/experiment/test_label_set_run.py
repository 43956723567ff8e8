"""Multi-label experiments from the configuration to the files, with every strategy that can."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from drawing import same_picture
from small_methods import SMALL, image_methods

from clprompt import registry
from clprompt.cli import results as results_
from clprompt.data.loading import training_batches
from clprompt.errors import ClpromptError, DataError, ProtocolError
from clprompt.experiment import config
from clprompt.experiment import run as experiment
from clprompt.metrics.label_sets import multi_label_scores
from clprompt.metrics.measure import Accuracy, LabelSets
from clprompt.scenarios.multi_label import plan
from clprompt.testing.bench import tiny_vit
from clprompt.training.evaluation import Evaluator, evaluate, evaluator_for
from clprompt.training.fit import fit
from clprompt.training.settings import Training

CLASSES = 6


class Patterns:
    """Sums of one pattern per class: items are (image [3, 16, 16], multi-hot target)."""

    random_transform = False

    def __init__(self, count: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(7)
        patterns = torch.randn(CLASSES, 3, 16, 16, generator=generator)
        own = torch.Generator().manual_seed(seed)
        self.hot = (torch.rand(count, CLASSES, generator=own) < 0.3).to(torch.uint8)
        noise = torch.randn(count, 3, 16, 16, generator=own)
        self.images = torch.einsum("nc,cxyz->nxyz", self.hot.float(), patterns) + 0.3 * noise
        self.targets = self.hot.numpy()

    def __len__(self) -> int:
        return len(self.hot)

    def __getitem__(self, index: int):
        return self.images[index], self.hot[index]


@pytest.fixture(scope="module")
def data():
    return Patterns(150, 0), Patterns(80, 1)


def model_of(name: str):
    arguments = {"dualprompt": {"g_layers": (0,), "e_layers": (1, 2)}}.get(name, {})
    return registry.strategies.get(name).target(tiny_vit(), **arguments)


@pytest.mark.parametrize("name", ["multilane", "linear_probe", "l2p", "dualprompt"])
def test_strategies_learn_multi_hot_targets_above_chance(data, name):
    train, test = data
    stream = plan(train.targets, classes_per_experience=2)
    model = model_of(name)
    records = fit(model, stream, train, test, training=Training(train_epochs=6, lr=0.02))
    assert len(records) == 3
    assert all("accuracy" not in record for record in records)
    chance = test.targets[stream.seen_test(test.targets, 2)].mean()
    assert records[-1]["mAP"] > chance + 0.1
    assert records[-1]["classes"] == list(range(CLASSES))
    assert [record["images"] for record in records] == [
        len(stream.seen_test(test.targets, t)) for t in range(3)
    ]


def test_the_evaluator_scores_one_set_of_images_over_the_seen_classes(data):
    train, test = data
    model = model_of("linear_probe")
    stream = plan(train.targets, classes_per_experience=2)
    evaluator = evaluator_for(stream, test, test.targets, batch_size=7)
    assert isinstance(evaluator.measure, LabelSets)
    for classes in ([0, 1], [4, 5]):
        model.begin_experience(classes)
        model.observe(torch.eye(CLASSES)[classes])
        found = evaluator.run(model)
        seen = model.seen.nonzero().flatten().tolist()
        rows = np.flatnonzero(test.targets[:, seen].any(1))
        with torch.no_grad():
            logits = model.eval()(test.images[rows])[:, seen]
        expected = multi_label_scores(logits.numpy(), test.targets[rows][:, seen])
        assert found.images == len(rows)
        assert found.scores.mAP == pytest.approx(expected.mAP, abs=1e-6)
        assert found.scores.OF1 == expected.OF1
    with pytest.raises(DataError, match="accuracy is not defined on multi-hot targets"):
        Evaluator(test, test.targets, [], measure=Accuracy())


def test_labels_of_other_experiences_never_reach_the_model(data):
    train, _ = data
    stream = plan(train.targets, classes_per_experience=2)
    model = model_of("linear_probe")
    received = []
    observe = model.observe
    model.observe = lambda targets: received.append(targets) or observe(targets)
    fit(model, stream, train, training=Training(train_mb_size=16))
    sizes = [-(-len(index) // 16) for index in stream.indices]
    for classes, batches in zip(
        stream.classes, np.split(np.arange(sum(sizes)), np.cumsum(sizes)[:-1]), strict=True
    ):
        hidden = [c for c in range(CLASSES) if c not in classes]
        assert not any(received[batch][:, hidden].any() for batch in batches)
        assert all(received[batch].any(1).all() for batch in batches)
    for images, targets in training_batches(train, seed=0, experience=0, epoch=0, batch_size=4):
        assert images.shape[0] == targets.shape[0]
        break


def settings(**changed):
    values = {
        "name": "multi",
        "data": {"name": "digit_mosaics", "train_images": 120, "test_images": 60},
        "scenario": {"name": "multi_label", "classes_per_experience": 4},
        "backbone": {
            "name": "vit_tiny_patch16_224",
            "img_size": 16,
            "patch_size": 4,
            "embed_dim": 24,
            "depth": 3,
            "num_heads": 2,
            "in_chans": 1,
        },
        "strategy": {"name": "multilane", "selectors": 3, "prompts": 2, "prompt_blocks": 2},
        "training": {"train_epochs": 1, "lr": 0.02},
    }
    return {**values, **changed}


def test_a_run_of_label_sets_reports_map(tmp_path):
    run = settings(runs_dir=str(tmp_path), compare=[{"name": "linear_probe"}])
    results = experiment.run(run)
    for result in results:
        written = json.loads((result.folder / "results.json").read_text())
        assert {"mAP_last", "mAP_average", "CF1", "OF1"} <= written.keys()
        assert "average_accuracy" not in written
        for name in ("map_matrix.csv", "per_class_ap.csv", "figures/map_curves.png", "figures/class_ap.png"):
            assert (result.folder / name).stat().st_size > 0, name
        assert result.matrix.shape == (3, 4)
    text = results_.results(results)
    assert "mAP (%)" in text
    assert "average mAP" in text
    assert "average accuracy" not in text


def test_an_interrupted_run_continues_to_the_same_records(tmp_path):
    from clprompt.training.engine import Engine

    with same_picture():
        whole = experiment.run(settings(runs_dir=str(tmp_path / "whole")))[0]
    data, stream = Patterns(90, 0), None
    stream = plan(data.targets, classes_per_experience=2)

    def engine(log):
        evaluator = evaluator_for(stream, data, data.targets, batch_size=16)
        model = model_of("multilane")
        return Engine(model, data, stream.indices, stream.classes, evaluator=evaluator, listeners=[log])

    class Log(list):
        def record(self, record):
            self.append(record)

        def speed(self, *_): ...

        def diagnostics(self, *_): ...

    straight, first, second = Log(), Log(), Log()
    engine(straight).run()
    begun = engine(first)
    begun.run_experience()
    begun.run_experience()
    state = begun.state()
    resumed = engine(second)
    resumed.load_state(state)
    resumed.run()
    assert [*first, *second] == list(straight)
    assert whole.summary["mAP_last"] == whole.records[-1]["mAP"]


@pytest.mark.parametrize(
    ("changed", "text"),
    [({"scenario": {"name": "split"}}, "class ids"), ({"data": {"name": "digits"}}, "needs multi-hot")],
)
def test_a_stream_that_does_not_fit_the_targets_is_refused_in_one_line(tmp_path, changed, text):
    with pytest.raises(ClpromptError, match=text) as caught:
        experiment.run(settings(runs_dir=str(tmp_path), **changed))
    assert "\n" not in str(caught.value)


def test_the_quickstart_is_a_checked_configuration():
    loaded = config.load("quickstart-multilabel")
    assert loaded.scenario["name"] == "multi_label"


NAMES = image_methods()
ONE_LABEL = [name for name in NAMES if not registry.strategies.get(name).target.multi_label]


@pytest.mark.parametrize("name", ONE_LABEL)
def test_a_method_of_one_label_per_image_says_so(data, name):
    train, _ = data
    stream = plan(train.targets, classes_per_experience=2)
    model = registry.strategies.get(name).target(tiny_vit(), **SMALL.get(name, {}))
    with pytest.raises(ProtocolError, match="one label per image"):
        fit(model, stream, train)


@pytest.mark.parametrize("name", [n for n in NAMES if n not in ("joint", *ONE_LABEL)])
def test_predictions_on_multi_hot_streams_never_name_an_unseen_class(data, name):
    train, test = data
    stream = plan(train.targets, classes_per_experience=2)
    model = registry.strategies.get(name).target(
        tiny_vit(), **{"dualprompt": {"g_layers": (0,), "e_layers": (1, 2)}}.get(name, {})
    )
    fit(model, _first(stream, 2), train, training=Training(train_epochs=1, lr=0.01))
    images = test.images[:7]
    model.eval()
    with torch.no_grad():
        together = model(images)
        alone = torch.cat([model(image[None]) for image in images])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)
    seen = sorted(c for group in stream.classes[:2] for c in group)
    unseen = [c for c in range(together.shape[1]) if c not in seen]
    assert together[:, seen].isfinite().all()
    assert (together[:, unseen] == -torch.inf).all()


def _first(stream, experiences: int):
    return replace(stream, indices=stream.indices[:experiences], classes=stream.classes[:experiences])


def test_evaluate_scores_label_sets_as_the_evaluator_does(data):
    _, test = data
    model = model_of("linear_probe")
    model.begin_experience([0, 1])
    model.observe(torch.eye(CLASSES)[[0, 1]])
    short = evaluate(model, test, batch_size=9)
    rows = np.flatnonzero(test.targets[:, :2].any(1))
    with torch.no_grad():
        logits = model.eval()(test.images[rows])[:, :2]
    expected = multi_label_scores(logits.numpy(), test.targets[rows][:, :2])
    assert short.images == len(rows)
    assert short.classes == [0, 1]
    assert short.scores.mAP == pytest.approx(expected.mAP, abs=1e-6)


def test_a_few_images_of_label_sets_stand_with_the_group_that_was_seen_first(data):
    train, test = data
    model = model_of("linear_probe")
    stream = plan(train.targets, classes_per_experience=2)
    evaluator = evaluator_for(stream, test, test.targets, batch_size=7)
    assert evaluator.few(3) == []
    joined = np.zeros(len(test), dtype=bool)
    for number, classes in enumerate(([4, 5], [0, 1]), start=1):
        model.begin_experience(classes)
        model.observe(torch.eye(CLASSES)[classes])
        evaluator.run(model)
        members = np.flatnonzero(test.targets[:, classes].any(1) & ~joined)
        joined[members] = True
        groups = evaluator.few(3)
        assert [len(group) for group in groups] == [3] * number
        assert torch.equal(groups[-1], test.images[members[[0, (len(members) - 1) // 2, -1]]])


def test_every_evaluation_of_label_sets_names_its_measure(data):
    train, test = data
    stream = plan(train.targets, classes_per_experience=3)
    records = fit(model_of("linear_probe"), stream, train, test, training=Training(train_epochs=1))
    assert [record["measure"] for record in records] == ["label_sets"] * 2
