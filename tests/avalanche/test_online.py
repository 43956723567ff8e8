"""The online Avalanche stream, and a memory by Avalanche's own plugin on it."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

from clprompt.errors import ConfigError
from clprompt.scenarios import to_online_avalanche
from clprompt.scenarios.si_blurry import plan

TARGETS = np.arange(100) % 5
EXAMPLE = Path(__file__).parents[2] / "examples" / "mvp_replay.py"


class Data(torch.utils.data.Dataset):
    def __init__(self, targets):
        self.targets = targets.tolist()

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, index):
        return torch.full((3, 2, 2), float(index)), self.targets[index]


@pytest.mark.parametrize("cut", [True, False])
def test_each_batch_is_an_experience_that_knows_its_data_only(cut):
    found = plan(TARGETS, sessions=3, m=30)
    stream = to_online_avalanche(found, Data(TARGETS), Data(TARGETS), batch_size=8, cut_at_sessions=cut)
    sizes = [len(experience.dataset) for experience in stream.train_stream]
    sessions = [len(part) for part in found.indices]
    assert len(sizes) == (sum(-(-size // 8) for size in sessions) if cut else 13)
    assert sum(size < 8 for size in sizes) <= (3 if cut else 1)
    received = [int(image[0, 0, 0]) for e in stream.train_stream for image, *_ in e.dataset]
    assert sorted(received) == list(range(100))
    assert set(received[: sessions[0]]) == set(found.indices[0].tolist())
    for experience in stream.train_stream:
        assert not hasattr(experience, "classes_in_this_experience")
    assert len(stream.test_stream[0].dataset) == 100


def test_a_batch_size_below_one_is_refused():
    with pytest.raises(ConfigError, match="batch_size must be at least 1, got 0"):
        to_online_avalanche(plan(TARGETS, sessions=2), Data(TARGETS), Data(TARGETS), batch_size=0)


def example():
    spec = importlib.util.spec_from_file_location("mvp_replay", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_reservoir_adds_half_a_batch_of_memory_to_every_iteration():
    strategy, accuracy = example().main(memory=48, batch=16, iterations=2, samples=80)
    assert 0 < accuracy <= 1
    (replay,) = (p for p in strategy.plugins if type(p).__name__ == "ReplayPlugin")
    assert len(replay.storage_policy.buffer) == 48
    # five batches, two iterations each; the first one comes before there is a memory
    assert strategy.model.counts.sum() == 2 * (5 * 16 + 4 * 8)
