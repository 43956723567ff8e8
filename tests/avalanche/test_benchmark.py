"""A multi-label stream as an Avalanche benchmark that carries label sets."""

import numpy as np
import torch

from clprompt.avalanche.strategy import PromptStrategy
from clprompt.scenarios import to_avalanche
from clprompt.scenarios.multi_label import plan
from clprompt.strategies.multilane import MultiLaneModel
from clprompt.testing.bench import tiny_vit


class Images:
    random_transform = False

    def __init__(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.images = torch.randn(40, 3, 16, 16, generator=generator)
        self.targets = (torch.rand(40, 5, generator=generator) < 0.3).to(torch.uint8).numpy()

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int):
        return self.images[index], torch.from_numpy(self.targets[index])


def made() -> tuple:
    """A plan of label sets, its benchmark, and the labels of the test images."""
    train, test = Images(0), Images(1)
    stream = plan(train.targets, classes_per_experience=2)
    return stream, to_avalanche(stream, train, test), test.targets


def test_an_experience_shows_no_label_of_another():
    stream, benchmark, _ = made()
    for number, experience in enumerate(benchmark.train_stream):
        classes = stream.classes[number]
        assert tuple(experience.classes_in_this_experience) == classes
        assert all(labels and set(labels) <= set(classes) for labels in experience.dataset.label_sets)


def test_the_targets_of_an_experience_are_its_label_sets():
    _, benchmark, _ = made()
    for experience in benchmark.train_stream:
        hot = torch.stack([experience.dataset[i][1] for i in range(len(experience.dataset))])
        sets = [sorted(labels) for labels in experience.dataset.label_sets]
        assert [np.flatnonzero(row).tolist() for row in hot.numpy()] == sets


def test_a_test_experience_holds_the_images_of_the_seen_classes():
    stream, benchmark, targets = made()
    for number, experience in enumerate(benchmark.test_stream):
        assert len(experience.dataset) == len(stream.seen_test(targets, number))


def test_a_strategy_trains_on_label_sets():
    _, benchmark, _ = made()
    strategy = PromptStrategy(
        model=MultiLaneModel(tiny_vit(), selectors=3, prompts=2), train_mb_size=8, evaluator=None
    )
    for experience in benchmark.train_stream:
        strategy.train(experience)
    strategy.eval(benchmark.test_stream)
    assert strategy.model.seen.all()
