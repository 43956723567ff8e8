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


def test_a_strategy_trains_on_label_sets_and_sees_no_label_of_other_experiences():
    train, test = Images(0), Images(1)
    stream = plan(train.targets, classes_per_experience=2)
    benchmark = to_avalanche(stream, train, test)
    strategy = PromptStrategy(
        model=MultiLaneModel(tiny_vit(), selectors=3, prompts=2), train_mb_size=8, evaluator=None
    )
    for number, experience in enumerate(benchmark.train_stream):
        classes = stream.classes[number]
        assert tuple(experience.classes_in_this_experience) == classes
        sets = list(experience.dataset.label_sets)
        assert all(own and set(own) <= set(classes) for own in sets)
        hot = torch.stack([experience.dataset[i][1] for i in range(len(experience.dataset))])
        assert [np.flatnonzero(row).tolist() for row in hot.numpy()] == [sorted(own) for own in sets]
        strategy.train(experience)
        assert len(benchmark.test_stream[number].dataset) == len(stream.seen_test(test.targets, number))
    strategy.eval(benchmark.test_stream)
    assert strategy.model.seen.all()
